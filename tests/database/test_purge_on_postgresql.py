"""The purge of the database engine on PostgreSQL, which removes rows by their place in the table."""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from gsession_django.backends.database import DatabaseStorage
from gsession_django.database import postgresql, walk
from tests.database.test_purge import HOUR, fill, left, live, storage_of
from tests.support.databases import connected
from tests.support.engines import engine

pytestmark = pytest.mark.once


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[DatabaseStorage]:
    with engine("postgresql", tmp_path) as store_class:
        storage = storage_of(store_class)
        with storage.table.connection.cursor() as cursor:
            cursor.execute("TRUNCATE gsession_django_session")  # also frees the places of earlier rows
        yield storage


def test_each_look_up_takes_ten_times_as_many_batches_as_the_last(
    storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_MOST", 100)
    fill(storage, live=3, expired=250)
    with CaptureQueriesContext(storage.table.connection) as captured:
        assert list(walk.purge(storage.table, 4, dry_run=False)) == [4, *[4] * 10, *[4] * 25, *[4] * 25, 4, 2]
    words = "".join(query["sql"][0] for query in captured)
    assert words == "S" + "S" + "D" + "S" + "D" * 10 + "S" + "D" * 25 + "S" + "D" * 25 + "S" + "DD"
    assert left(storage) == live(3)


def test_rows_are_removed_in_the_order_of_the_table(storage: DatabaseStorage) -> None:
    fill(storage, live=1, expired=25)  # the first row expired last
    steps = storage.purge(10)
    next(steps)
    assert left(storage) == live(1) | {f"old-{number}" for number in range(15)}
    next(steps)
    assert left(storage) == live(1) | {f"old-{number}" for number in range(10, 15)}


def place(storage: DatabaseStorage, session_id: str) -> str:
    with storage.table.connection.cursor() as cursor:
        cursor.execute("SELECT ctid FROM gsession_django_session WHERE id = %s", [session_id])
        (found,) = cursor.fetchone()
        return str(found)


def renewed(storage: DatabaseStorage) -> str:
    storage.table.rows.filter(id="old-1").update(expires=time.time_ns() // 1_000_000 + HOUR)
    return "old-1"


def replaced(storage: DatabaseStorage) -> str:
    """Put a live session in the place of another, and return its id."""
    was = place(storage, "old-1")
    storage.table.rows.filter(id="old-1").delete()
    for number in range(100):  # usually once, but a snapshot of the server itself may delay the clean-up of a row
        with storage.table.connection.cursor() as cursor:
            cursor.execute("VACUUM (INDEX_CLEANUP ON) gsession_django_session")
        expires = time.time_ns() // 1_000_000 + HOUR
        storage.table.rows.create(id=f"live-{number + 1}", data=b"{}", version=1, expires=expires)
        if place(storage, f"live-{number + 1}") == was:
            return f"live-{number + 1}"
    raise AssertionError("PostgreSQL did not use the place again")


@pytest.mark.parametrize("change", [renewed, replaced])
def test_a_live_session_at_a_place_that_was_looked_up_stays(
    storage: DatabaseStorage, change: Callable[[DatabaseStorage], str]
) -> None:
    fill(storage, live=1, expired=3)
    changed: list[str] = []

    def change_before_the_first(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("DELETE") and not changed:
            changed.append("")
            with connected(connections.settings[storage.table.alias]) as other:
                changed[0] = change(DatabaseStorage(using=other))
        return execute(sql, *args)

    with storage.table.connection.execute_wrapper(change_before_the_first):
        assert sum(storage.purge(10)) == 2
    assert changed[0] in left(storage)
    assert sum(storage.purge(10)) == 0


def test_it_ends_when_more_locked_rows_than_one_look_up_takes_have_one_expiry(
    storage: DatabaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_MOST", 4)
    fill(storage, live=1, expired=15)
    storage.table.rows.filter(id__startswith="old-1").update(expires=1)
    with connected(connections.settings[storage.table.alias]) as other, transaction.atomic(other):
        list(DatabaseStorage(using=other).table.rows.filter(expires=1).select_for_update())
        assert sum(itertools.islice(storage.purge(4), 100)) == 9
    assert len(left(storage)) == 1 + 6


def test_a_live_session_at_the_same_place_of_another_partition_stays(storage: DatabaseStorage) -> None:
    with storage.table.connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA parts")
        try:
            cursor.execute("SET search_path = parts, public")
            cursor.execute(
                "CREATE TABLE gsession_django_session (LIKE public.gsession_django_session) PARTITION BY HASH (id)"
            )
            for number in range(4):
                values = f"FOR VALUES WITH (MODULUS 4, REMAINDER {number})"
                cursor.execute(f"CREATE TABLE part{number} PARTITION OF gsession_django_session {values}")
            fill(storage, live=50, expired=50)
            assert sum(storage.purge(10)) == 50
            assert left(storage) == live(50)
        finally:
            cursor.execute("SET search_path = public")
            cursor.execute("DROP SCHEMA parts CASCADE")
