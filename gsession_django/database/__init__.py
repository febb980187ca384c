"""What the database engine stands on: its table, the SQL that is run there, and what is said of a database."""
