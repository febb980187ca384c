"""StorageContract on each kind of database."""

import unittest

from gsession_django.backends import database
from gsession_django.testing import StorageContract
from tests.clock import moved_clock
from tests.engines import engine


class DatabaseContract(StorageContract):
    kind: str

    def setUp(self) -> None:
        self.clock = self.enterContext(moved_clock())
        self.enterContext(engine(self.kind, ""))
        super().setUp()

    def advance(self, seconds: float) -> None:
        self.clock.offset += seconds


class SQLiteTests(DatabaseContract, unittest.TestCase):
    store_class = database.SessionStore
    kind = "sqlite"


class PostgreSQLTests(DatabaseContract, unittest.TestCase):
    store_class = database.SessionStore
    kind = "postgresql"


class MariaDBTests(DatabaseContract, unittest.TestCase):
    store_class = database.SessionStore
    kind = "mariadb"
