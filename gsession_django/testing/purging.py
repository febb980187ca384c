"""The part of StorageContract on ``purge``, alone and beside live traffic."""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any, Final

from django.db import connections

from gsession_django.testing.case import ContractCase, needs
from gsession_django.testing.threads import get_through, interrupted
from gsession_django.testing.ttl import WAIT

# Seconds that a writer may take beside a purge: longer than a database's default timeout for locks.
_PATIENCE: Final = 10.0
# Seconds that a purge waits for a writer at one of its lines.
_IN_PURGE: Final = 0.05

# The lines of a purge to interrupt when each takes a wait for sessions to expire.
_LINES_WITH_A_WAIT: Final = 4


class Purging(ContractCase):
    """``purge``."""

    _waits = False

    def _expired(self, count: int) -> list[str]:
        """Store expired sessions for a purge to remove, after a purge of all earlier ones."""
        for _ in self.storage.purge(1000):
            pass
        ids = [self.put({"key": number}, ttl=0) for number in range(count)]
        if sum(self.storage.purge(1000, dry_run=True)) < count:  # this storage removes sessions with such a TTL at once
            ids = [self.put({"key": number}, ttl=1) for number in range(count)]
            self.advance(WAIT)
            self._waits = True
        return ids

    @needs("purge")
    def test_purge_removes_expired_sessions_and_no_others(self) -> None:
        live = [self.put({"key": number}) for number in range(3)]
        expired = self._expired(5)
        self._counts(5, 1000, dry_run=True, because="5 sessions have expired")
        steps = list(self.storage.purge(2))
        if sum(steps) != 5 or max(steps) > 2:
            wanted = "numbers of at most 2 that add up to 5"
            self.wrong(self.named("purge", 2), steps, wanted, "5 sessions have expired, and a dry run removes none")
        self._counts(0, 1000, because="an earlier purge removed every expired session")
        for number, session_id in enumerate(live):
            self.holds(session_id, {"key": number}, "purge()")
        for session_id in expired:
            self.holds(session_id, None, "purge()")

    def _counts(self, wanted: int, batch_size: int, dry_run: bool = False, because: str = "") -> None:
        steps = list(self.storage.purge(batch_size, dry_run))
        if sum(steps) != wanted:
            self.wrong(self.named("purge", batch_size, dry_run), steps, f"numbers that add up to {wanted}", because)

    @needs("purge")
    def test_purge_holds_nothing_between_two_batches(self) -> None:
        expired = self._expired(5)
        resting = "while purge() was between two batches"
        with closing(_generator(self.storage.purge(2))) as steps:  # an open purge could hold a lock for good
            next(steps)
            # Another thread first: this one could pass a lock that it holds itself.
            get_through(partial(self._store_again, expired), f"A thread that stored sessions {resting}", _PATIENCE)
            self._store_again(expired)
            for _ in steps:
                pass
        for session_id in expired:
            self.holds(session_id, {"new": 1}, f"storing a session under this id {resting}")

    def _store_again(self, ids: list[str]) -> None:
        for session_id in ids:
            self.call("remove_all", session_id)
            self.put({"new": 1}, session_id=session_id)

    @needs("purge")
    def test_purge_removes_nothing_that_was_stored_after_it_looked(self) -> None:
        """A writer interrupts the purge at each of its lines in turn."""
        seen: set[Any] = set()
        while True:
            before, expired = len(seen), self._expired(3)
            with ThreadPoolExecutor(1) as pool:
                stored: list[Future[None]] = []

                def store(expired: list[str] = expired, stored: list[Future[None]] = stored) -> None:
                    stored.append(pool.submit(self._store, expired))
                    wait(stored, _IN_PURGE)  # not for ever: the purge may hold a lock at this line

                with interrupted(type(self.storage).purge, seen, store):
                    for _ in self.storage.purge(3):
                        pass
                for future in stored:
                    future.result()
            if len(seen) == before:
                break
            for session_id in expired:
                self.holds(session_id, {"new": 1}, "storing a session under this id while purge() ran")
            if self._waits and len(seen) == _LINES_WITH_A_WAIT:
                break

    def _store(self, ids: list[str]) -> None:
        try:
            for session_id in ids:
                self.put({"new": 1}, session_id=session_id)
        finally:
            connections.close_all()


def _generator(steps: Iterator[int]) -> Generator[int]:
    yield from steps  # closing this generator closes them too
