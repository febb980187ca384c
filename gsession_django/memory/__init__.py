"""What the memory engine stands on: sessions by id and by user, the least recently used of them gone first."""
