"""What all engines have in common: the interface, the adapter onto it, sessions, and how they merge."""
