"""A clock that tests can move."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from django.db.backends.base.base import BaseDatabaseWrapper

from gsession_django.backends import file, memory
from gsession_django.database import clock as database_clock
from gsession_django.database.clock import parameter
from gsession_django.file import folder as session_folder
from gsession_django.file import locks as file_locks
from gsession_django.file import session_file
from gsession_django.file import users as file_users
from gsession_django.memory import entries as memory_entries
from gsession_django.memory import locks as memory_locks
from tests.support import storages


class Clock:
    """Replaces the module `time` in the engines. It is `offset` seconds fast."""

    def __init__(self) -> None:
        self.offset = 0.0

    def time(self) -> float:
        return time.time() + self.offset

    def time_ns(self) -> int:
        return time.time_ns() + round(self.offset * 1_000_000_000)

    def parameter(self, connection: BaseDatabaseWrapper) -> int:
        """Return the parameter of the current moment, as if the server's clock were `offset` seconds fast too."""
        found = parameter(connection)
        return found + round(self.offset * 1000) if connection.vendor in ("postgresql", "mysql") else found

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


@contextmanager
def moved_clock() -> Iterator[Clock]:
    """Yield the clock of the engines, and of the tests' storages, inside the block."""
    clock = Clock()
    with ExitStack() as stack:
        memories = (memory, memory_entries, memory_locks)
        files = (file, session_file, session_folder, file_locks, file_users)
        for module in (*memories, *files, database_clock, storages):
            stack.enter_context(mock.patch.object(module, "time", clock))
        stack.enter_context(mock.patch.object(database_clock, "parameter", clock.parameter))
        yield clock
