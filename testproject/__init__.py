"""The test site of gsession-django: a small shop that runs on any session engine."""
