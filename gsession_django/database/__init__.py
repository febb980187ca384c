"""The parts of the database engine: its table, its SQL, the purge, and the errors of a database."""
