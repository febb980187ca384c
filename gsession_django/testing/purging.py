"""A purge beside live traffic: the part of StorageContract on ``purge``."""

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from typing import Any, Final

from django.db import connections

from gsession_django.testing.case import ContractCase, needs
from gsession_django.testing.threads import get_through, interrupted
from gsession_django.testing.ttl import WAIT

# Seconds that a writer may take beside a purge, longer than databases let one wait for another by default.
_PATIENCE: Final = 10.0
# Seconds that a writer is given within a step of a purge.
_IN_PURGE: Final = 0.05

# Lines of a purge that are looked at where sessions have to be waited for before each.
_LINES_WITH_A_WAIT: Final = 4


class Purging(ContractCase):
    """``purge``."""

    _waits = False

    def _expired(self, count: int) -> list[str]:
        """Store sessions that are expired and still to be removed, and remove all that were before."""
        for _ in self.storage.purge(1000):
            pass
        ids = [self.put({"key": number}, ttl=0) for number in range(count)]
        if sum(self.storage.purge(1000, dry_run=True)) < count:  # those with such a TTL are removed at once
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
            wanted = "numbers that are 2 at most, and 5 in all"
            self.wrong(self.named("purge", 2), steps, wanted, "5 sessions have expired, a dry run removed none of them")
        self._counts(0, 1000, because="all that had expired was removed before")
        for number, session_id in enumerate(live):
            self.holds(session_id, {"key": number}, "purge()")
        for session_id in expired:
            self.holds(session_id, None, "purge()")

    def _counts(self, wanted: int, batch_size: int, dry_run: bool = False, because: str = "") -> None:
        steps = list(self.storage.purge(batch_size, dry_run))
        if sum(steps) != wanted:
            self.wrong(self.named("purge", batch_size, dry_run), steps, f"numbers that are {wanted} in all", because)

    @needs("purge")
    def test_purge_holds_nothing_between_two_batches(self) -> None:
        expired = self._expired(5)
        resting = "while purge() was between two batches"
        with closing(_generator(self.storage.purge(2))) as steps:  # or a lock may be held for good
            next(steps)
            # Another thread first, as this one may hold a lock that it may take twice.
            get_through(partial(self._store_again, expired), f"A thread that stored sessions {resting}", _PATIENCE)
            self._store_again(expired)
            for _ in steps:
                pass
        for session_id in expired:
            self.holds(session_id, {"new": 1}, f"a session was stored under this id {resting}")

    def _store_again(self, ids: list[str]) -> None:
        for session_id in ids:
            self.call("remove_all", session_id)
            self.put({"new": 1}, session_id=session_id)

    @needs("purge")
    def test_purge_removes_nothing_that_was_stored_after_it_looked(self) -> None:
        """Wherever that is: it is interrupted at each of its lines in turn."""
        seen: set[Any] = set()
        while True:
            before, expired = len(seen), self._expired(3)
            with ThreadPoolExecutor(1) as pool:
                stored: list[Future[None]] = []

                def store(expired: list[str] = expired, stored: list[Future[None]] = stored) -> None:
                    stored.append(pool.submit(self._store, expired))
                    wait(stored, _IN_PURGE)  # it may hold a lock there

                with interrupted(type(self.storage).purge, seen, store):
                    for _ in self.storage.purge(3):
                        pass
                for future in stored:
                    future.result()
            if len(seen) == before:
                break
            for session_id in expired:
                self.holds(session_id, {"new": 1}, "this id was stored again while purge() ran")
            if self._waits and len(seen) == _LINES_WITH_A_WAIT:
                break

    def _store(self, ids: list[str]) -> None:
        try:
            for session_id in ids:
                self.put({"new": 1}, session_id=session_id)
        finally:
            connections.close_all()


def _generator(steps: Iterator[int]) -> Generator[int]:
    yield from steps  # which closes them with itself
