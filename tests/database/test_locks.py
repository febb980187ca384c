"""Locks in the database: in transactions of the site, among threads, and a purge."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connections, transaction

from gsession_django import SessionStore
from gsession_django.backends.database import DatabaseStorage
from gsession_django.models import SessionLock
from gsession_django.testing.threads import in_threads
from tests.database.test_conflicts import WAITING, wait_until_one_waits
from tests.support.clock import moved_clock
from tests.support.processes import TIMEOUT, promised


@pytest.fixture
def storage(store_class: type[SessionStore]) -> DatabaseStorage:
    found = store_class.get_storage()
    assert isinstance(found, DatabaseStorage)
    return found


def in_a_thread(ask: Callable[[], Any]) -> Any:
    def work() -> Any:
        try:
            return ask()
        finally:
            connections.close_all()

    return promised(work)


@pytest.mark.parametrize("first", [True, False], ids=["that nobody had before", "that somebody had before"])
def test_a_lock_of_a_transaction_is_held_until_it_ends(
    kind: str, alias: str, storage: DatabaseStorage, first: bool
) -> None:
    """Though it was freed before: what the transaction wrote is visible only then."""
    if not first:
        assert storage.lock("session", "before", 60)
        storage.unlock("session", "before")
    with transaction.atomic(alias):
        assert storage.lock("session", "mine", 60)
        theirs = in_a_thread(lambda: storage.lock("session", "theirs", 60))
        if kind in WAITING:
            wait_until_one_waits(kind)
        storage.unlock("session", "mine")
        assert not theirs.done()
    got = theirs.result(TIMEOUT)
    # One that waited for the first row ever may be told no: the lock was taken when it asked.
    assert got or first
    assert storage.lock("session", "theirs", 60)


def test_a_transaction_that_is_rolled_back_has_had_no_lock(alias: str, storage: DatabaseStorage) -> None:
    with transaction.atomic(alias):
        assert storage.lock("session", "mine", 60)
        transaction.set_rollback(True, alias)
    assert storage.lock("session", "theirs", 60)


def test_a_lock_that_is_taken_spoils_no_transaction(alias: str, storage: DatabaseStorage) -> None:
    assert storage.lock("session", "theirs", 60)
    with transaction.atomic(alias):
        assert not storage.lock("session", "mine", 60)
        assert storage.lock("another", "mine", 60)
    assert not storage.lock("another", "theirs", 60)


def test_threads_count_alone_in_transactions_and_without(alias: str, storage: DatabaseStorage) -> None:
    counted = [0]

    def work(number: int) -> None:
        turns = 0
        while turns < 10:
            with transaction.atomic(alias) if number % 2 else nullcontext():
                if storage.lock("session", f"thread {number}", 60):
                    before = counted[0]
                    assert not storage.exists("nothing")  # others have their turn
                    counted[0] = before + 1
                    storage.unlock("session", f"thread {number}")
                    turns += 1

    in_threads(4, work)
    assert counted == [40]


def test_a_purge_removes_locks_that_are_over(alias: str, storage: DatabaseStorage) -> None:
    with moved_clock() as clock:
        for number in range(5):
            assert storage.lock(f"dead{number}", "token", 10)
        assert storage.lock("freed", "token", 100)
        storage.unlock("freed", "token")
        assert storage.lock("session", "mine", 100)
        clock.offset += 20
        list(storage.purge(2, dry_run=True))
        assert SessionLock.objects.using(alias).count() == 7
        assert list(storage.purge(2))
        assert list(SessionLock.objects.using(alias).values_list("id", flat=True)) == ["session"]
        assert not storage.lock("session", "theirs", 60)
