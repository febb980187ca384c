"""The purge of the database engine: in batches, by the index, and beside other users of the table."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections, transaction
from django.test.utils import CaptureQueriesContext

from gsession_django import SessionStore
from gsession_django.backends.database import DatabaseStorage
from gsession_django.database import walk
from gsession_django.models import Session
from tests.support import databases
from tests.support.database_servers import SERVERS, shared
from tests.support.databases import Refusal
from tests.support.engines import engine

pytestmark = pytest.mark.once

LOCKING = sorted(SERVERS)
HOUR = 3_600_000
MANY = 3000  # In a table of a few rows MariaDB looks at each one, and waits for locked ones.


@pytest.fixture(params=databases.KINDS)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


@pytest.fixture(params=LOCKING)
def locking(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, type[SessionStore]]]:
    with engine(request.param, tmp_path) as found:
        yield request.param, found


def storage_of(store_class: type[SessionStore]) -> DatabaseStorage:
    storage = store_class.get_storage()
    assert isinstance(storage, DatabaseStorage)
    return storage


def fill(storage: DatabaseStorage, live: int, expired: int) -> None:
    now = time.time_ns() // 1_000_000
    rows = [Session(id=f"live-{number}", data=b"{}", version=1, expires=now + HOUR) for number in range(live)]
    rows += [Session(id=f"old-{number}", data=b"{}", version=1, expires=now - 1 - number) for number in range(expired)]
    storage.table.rows.bulk_create(rows)


def left(storage: DatabaseStorage) -> set[str]:
    return set(storage.table.rows.values_list("id", flat=True))


def live(number: int) -> set[str]:
    return {f"live-{each}" for each in range(number)}


def test_it_removes_expired_sessions_in_batches_and_nothing_else(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=7, expired=25)
    assert list(storage.purge(10)) == [10, 10, 5]
    assert left(storage) == live(7)
    assert list(storage.purge(10)) == [0]


def test_a_dry_run_counts(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=2, expired=3)
    assert sum(storage.purge(2, dry_run=True)) == 3
    assert len(left(storage)) == 5


def test_a_stopped_purge_holds_nothing(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=25)
    first = storage.purge(10)
    assert next(first) == 10
    assert not storage.table.connection.in_atomic_block
    assert sum(storage.purge(10)) == 15
    assert list(first) == [0]
    assert left(storage) == live(1)


def test_a_batch_may_be_larger_than_all_there_is(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=2500)
    assert list(storage.purge(1_000_000)) == [2500]
    assert left(storage) == live(1)


def test_many_that_expired_at_the_same_moment_are_all_removed(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=25)
    storage.table.rows.filter(id__startswith="old").update(expires=1)
    assert sum(storage.purge(10)) == 25


def test_the_next_batch_is_looked_for_behind_the_last(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=25)
    steps = storage.purge(10)
    next(steps)
    # A row before the last batch: it stands for removed rows, which a database still walks over.
    storage.table.rows.create(id="passed", data=b"{}", version=1, expires=1)
    assert sum(steps) == 15
    assert left(storage) == live(1) | {"passed"}


def test_it_goes_by_the_index_on_the_expiry(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=3000, expired=15)
    connection = storage.table.connection
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {'TABLE ' if connection.vendor == 'mysql' else ''}gsession_django_session")
        with CaptureQueriesContext(connection) as captured:
            assert sum(walk.purge(storage.table, 10, dry_run=False)) == 15
        searches = [query["sql"] for query in captured if "ORDER BY" in query["sql"]]
        assert len(searches) == {"postgresql": 2}.get(connection.vendor, 4)
        for search in searches:
            cursor.execute(f"EXPLAIN {'QUERY PLAN ' if connection.vendor == 'sqlite' else ''}{search}")
            plan = str(cursor.fetchall())
            assert "gsession_django_session_expires_" in plan, plan


def test_a_batch_is_one_short_transaction(locking: tuple[str, type[SessionStore]]) -> None:
    kind, store_class = locking
    storage = storage_of(store_class)
    fill(storage, live=1, expired=15)
    with CaptureQueriesContext(storage.table.connection) as captured:
        list(walk.purge(storage.table, 10, dry_run=False))
    verbs = [query["sql"].split()[0].rstrip(";") for query in captured]
    batch = {"postgresql": ["DELETE"], "mariadb": ["BEGIN", "SELECT", "DELETE", "COMMIT"]}[kind]
    assert verbs == ["SELECT", *2 * ["SELECT", *batch]]  # the first one asks for the time


def test_locked_rows_are_skipped(locking: tuple[str, type[SessionStore]]) -> None:
    kind, store_class = locking
    storage = storage_of(store_class)
    fill(storage, live=MANY, expired=25)
    other = shared(kind).connect()
    try:
        cursor = other.cursor()
        cursor.execute("BEGIN")
        cursor.execute("SELECT id FROM gsession_django_session WHERE id IN ('old-3', 'old-24') FOR UPDATE")
        assert sum(storage.purge(10)) == 23
        assert left(storage) == live(MANY) | {"old-3", "old-24"}
        cursor.execute("ROLLBACK")
    finally:
        other.close()
    assert sum(storage.purge(10)) == 2


def test_a_session_renewed_between_look_up_and_removal_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a MariaDB before 10.6, which cannot skip locked rows."""
    with engine("mariadb", tmp_path) as store_class:
        storage = storage_of(store_class)
        fill(storage, live=1, expired=3)
        monkeypatch.setattr(storage.table.connection.features, "has_select_for_update_skip_locked", False)

        def renew_before(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if sql.startswith("DELETE"):
                storage.table.rows.filter(id="old-1").update(expires=time.time_ns() // 1_000_000 + HOUR)
            return execute(sql, params, many, context)

        with storage.table.connection.execute_wrapper(renew_before):
            assert sum(storage.purge(10)) == 2
        assert left(storage) == live(1) | {"old-1"}


def test_more_than_a_batch_of_locked_rows_with_one_expiry_is_skipped(
    locking: tuple[str, type[SessionStore]],
) -> None:
    kind, store_class = locking
    storage = storage_of(store_class)
    fill(storage, live=MANY, expired=25)
    stuck = [f"old-{number}" for number in range(10, 20)]
    storage.table.rows.filter(id__in=stuck).update(expires=1)
    other = shared(kind).connect()
    try:
        cursor = other.cursor()
        cursor.execute("BEGIN")
        cursor.execute(f"SELECT id FROM gsession_django_session WHERE id IN {tuple(stuck)} FOR UPDATE")
        assert sum(storage.purge(4)) == 15
        cursor.execute("ROLLBACK")
    finally:
        other.close()
    assert sum(storage.purge(4)) == 10


def test_several_purges_at_once_remove_each_session_once(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=5, expired=2000)
    start = threading.Barrier(4, timeout=60)

    def work(number: int) -> int:
        try:
            start.wait()
            return sum(storage.purge(50))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        removed = sum(pool.map(work, range(4)))
    # On MariaDB a purge that skips a row may hold it for a moment, and then the others skip it too.
    passed_over = len(left(storage) - live(5))
    assert passed_over < 100
    assert removed + passed_over == 2000
    assert sum(storage.purge(50)) == passed_over
    assert left(storage) == live(5)


def test_a_batch_that_the_database_refuses_is_tried_again_but_not_for_ever(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=15)
    with storage.table.connection.execute_wrapper(Refusal(99, "DELETE")):
        assert sum(storage.purge(10)) == 15
    fill(storage, live=0, expired=15)
    with (
        storage.table.connection.execute_wrapper(Refusal(100, "DELETE")),
        pytest.raises(OperationalError, match="Deadlock"),
    ):
        list(storage.purge(10))
    assert sum(storage.purge(10)) == 15


def test_in_a_transaction_it_is_not_tried_again(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=1)
    refusal = Refusal(2, "DELETE")
    with (
        storage.table.connection.execute_wrapper(refusal),
        pytest.raises(OperationalError),
        transaction.atomic(storage.table.alias),
    ):
        list(storage.purge(10))
    assert refusal.times == 1


def test_with_autocommit_off_it_is_not_tried_again(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=1, expired=1)
    refusal, alias = Refusal(2, "DELETE"), storage.table.alias
    transaction.set_autocommit(False, alias)
    try:
        with storage.table.connection.execute_wrapper(refusal), pytest.raises(OperationalError):
            list(storage.purge(10))
    finally:
        transaction.rollback(alias)
        transaction.set_autocommit(True, alias)
    assert refusal.times == 1


def test_sessions_are_used_and_created_while_it_runs(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=0, expired=3000)
    store = store_class()
    store["turn"] = 0
    store.save()
    key = store.session_key
    for turn, _ in enumerate(storage.purge(100), 1):
        store = store_class(key)
        assert store["turn"] == turn - 1
        store["turn"] = turn
        store.save()
        new = store_class()
        new.save()
    assert turn >= 30
    assert len(left(storage)) == 1 + turn


@pytest.mark.parametrize("command", ["purge_sessions", "clearsessions"])
def test_the_commands_purge_it(store_class: type[SessionStore], command: str) -> None:
    storage = storage_of(store_class)
    fill(storage, live=3, expired=1500)
    if command == "clearsessions":
        store_class.clear_expired()  # the command does nothing else
    else:
        output = StringIO()
        call_command(command, stdout=output)
        assert output.getvalue() == f"Removed 1500 expired sessions of {databases.ENGINE}.\n"
    assert left(storage) == live(3)


def test_the_ids_are_those_of_all_live_sessions_and_no_others(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    fill(storage, live=2500, expired=5)
    found = list(storage.ids())
    assert len(found) == 2500
    assert set(found) == live(2500)
