"""The file engine."""
