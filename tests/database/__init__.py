"""The database engine."""
