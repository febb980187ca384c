"""A clock that tests can move."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from gsession_django import session_file, session_folder
from gsession_django.backends import file, memory
from tests import storages


class Clock:
    """Stands in for the module `time` where sessions are timed, `offset` seconds off the real one."""

    def __init__(self) -> None:
        self.offset = 0.0

    def time(self) -> float:
        return time.time() + self.offset

    def time_ns(self) -> int:
        return time.time_ns() + round(self.offset * 1_000_000_000)

    def monotonic(self) -> float:
        return time.monotonic() + self.offset


@contextmanager
def moved_clock() -> Iterator[Clock]:
    """Yield the clock that the engines and the storages of the tests go by until the end of the block."""
    from gsession_django.database import rows  # not in every process that imports this are there models

    clock = Clock()
    with ExitStack() as stack:
        for module in (memory, file, rows, session_file, session_folder, storages):
            stack.enter_context(mock.patch.object(module, "time", clock))
        yield clock
