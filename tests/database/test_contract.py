"""StorageContract on each kind of database."""

import socket
import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from gsession_django.backends import database
from gsession_django.testing import StorageContract
from tests.support.clock import moved_clock
from tests.support.engines import engine


class DatabaseContract(StorageContract):
    kind: str

    def setUp(self) -> None:
        self.clock = self.enterContext(moved_clock())
        self.enterContext(engine(self.kind, ""))
        super().setUp()

    @contextmanager
    def outage(self) -> Iterator[None]:
        storage = self.store_class.get_storage()
        assert isinstance(storage, database.DatabaseStorage)
        connection = storage.table.connection
        connection.close()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # listens to no one
            away = {"NAME": "/missing/sessions.sqlite3"} if self.kind == "sqlite" else {"PORT": nobody.getsockname()[1]}
            with mock.patch.dict(connection.settings_dict, away):
                yield

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
