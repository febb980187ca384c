"""What the two Redis engines stand on."""
