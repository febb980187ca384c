"""Measures our session engines beside Django's: ``python -m benchmarks``. ``docs/benchmarks.md`` explains it."""
