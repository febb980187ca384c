"""What holds on every engine; and the memory engine."""
