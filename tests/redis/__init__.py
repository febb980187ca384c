"""The Redis engines."""
