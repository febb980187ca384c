"""What the file engine stands on: the format of a file, and the folder that they are in."""
