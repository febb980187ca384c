"""Measures our session engines beside Django's: ``python -m benchmarks``, explained in ``docs/benchmarks.md``."""
