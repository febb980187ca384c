"""The parts of the file engine: the format of a session file, and the folder that holds the files."""
