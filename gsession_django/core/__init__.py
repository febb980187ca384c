"""What all engines share: the Storage interface, the adapter onto it, sessions, and how they merge."""
