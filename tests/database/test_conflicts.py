"""The database engine when a database undoes a statement because of another transaction."""

import time
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import pytest
from django.db import Error, OperationalError, connections, transaction
from django.test.utils import override_settings

from gsession_django.backends import database
from gsession_django.models import Session
from tests.database.test_engine import DEEDS, another_connection, change
from tests.engines.test_lost_updates import own_item
from tests.support.database_servers import shared
from tests.support.databases import KINDS, Refusal, options_for
from tests.support.databases import database as a_database
from tests.support.engines import id_of, new_session, stored
from tests.support.processes import TIMEOUT, promised

WAITING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'",
    "mariadb": "SELECT 0 + variable_value FROM information_schema.global_status "
    "WHERE variable_name = 'Innodb_row_lock_current_waits'",
}


def wait_until_one_waits(kind: str) -> None:
    """Wait until a statement waits for a row that another transaction has locked."""
    deadline = time.monotonic() + TIMEOUT
    with closing(shared(kind).connect()) as control, control.cursor() as cursor:
        while True:
            cursor.execute(WAITING[kind])
            if cursor.fetchone() == (1,):
                return
            assert time.monotonic() < deadline, "no statement waits for a lock"
            time.sleep(0.01)  # the server sends no event


def save_in_another_thread(alias: str, key: str) -> Future[list[Error]]:
    """Begin to save an item of a session. The result is the errors that the database has returned meanwhile."""

    def work() -> list[Error]:
        errors = []

        def note(execute: Any, *args: Any) -> Any:
            try:
                return execute(*args)
            except Error as error:
                errors.append(error)
                raise

        try:
            with connections[alias].execute_wrapper(note):
                store = database.SessionStore(key)
                own_item(store, "mine")
                store.save()
        finally:
            connections.close_all()
        return errors

    return promised(work)


def test_a_save_that_mariadb_undoes_to_end_a_deadlock_is_repeated() -> None:
    with a_database("mariadb") as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {}})
        session_id = id_of(database.SessionStore, key)
        with another_connection(alias) as other:
            with transaction.atomic(other):
                # MariaDB undoes the transaction that has done less.
                rows = [Session(id=f"more {n}", data=b"", version=0, expires=0) for n in range(50)]
                Session.objects.using(other).bulk_create(rows)
                with connections[other].cursor() as cursor:  # locks the entry in the index, not the row
                    cursor.execute("SELECT expires FROM gsession_django_session WHERE expires > 0 LOCK IN SHARE MODE")
                saving = save_in_another_thread(alias, key)
                wait_until_one_waits("mariadb")
                change(other, session_id, lambda held: held["cart"].update(theirs=1))
            assert [error.args[0] for error in saving.result(TIMEOUT)] == [1213]
        assert stored(database.SessionStore, key) == {"cart": {"mine": "mine", "theirs": 1}}


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_save_that_a_strict_postgresql_refuses_is_repeated(level: str) -> None:
    options = {"options": "-c default_transaction_isolation=" + level.replace(" ", r"\ ")}
    with a_database("postgresql", OPTIONS=options) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {}})
        session_id = id_of(database.SessionStore, key)
        with another_connection(alias) as other:
            with transaction.atomic(other):
                change(other, session_id, lambda held: held["cart"].update(theirs=1))
                saving = save_in_another_thread(alias, key)
                wait_until_one_waits("postgresql")
            assert [getattr(error.__cause__, "sqlstate", None) for error in saving.result(TIMEOUT)] == ["40001"]
        assert stored(database.SessionStore, key) == {"cart": {"mine": "mine", "theirs": 1}}


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_is_repeated_but_not_for_ever(kind: str, deed: str) -> None:
    do, _ = DEEDS[deed]
    with a_database(kind) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {"apple": 1}})
        with connections[alias].execute_wrapper(Refusal(100)), pytest.raises(OperationalError, match="Deadlock"):
            do(database.SessionStore(key))
        with connections[alias].execute_wrapper(refusal := Refusal(99)):
            do(database.SessionStore(key))
        assert refusal.times == 0


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_transaction_nothing_is_repeated_because_all_of_it_is_undone(kind: str) -> None:
    with a_database(kind) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {}})
        refusal = Refusal(2)
        with (
            connections[alias].execute_wrapper(refusal),
            pytest.raises(OperationalError, match="Deadlock"),
            transaction.atomic(alias),
        ):
            database.SessionStore(key).load()
        assert refusal.times == 1


def test_no_operation_finds_its_row_by_the_expiry() -> None:
    """Otherwise two writers of one session may lock the two indexes in opposite order."""
    with a_database("mariadb") as alias, override_settings(**options_for(alias)):
        connection = connections[alias]
        indexes: list[str] = []

        def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            if not sql.startswith("INSERT"):
                execute(f"EXPLAIN {sql}", params, many, context)
                columns = [column[0] for column in context["cursor"].description]
                indexes.extend(dict(zip(columns, row, strict=True))["possible_keys"] for row in context["cursor"])
            return execute(sql, params, many, context)

        for do, _ in DEEDS.values():
            store = database.SessionStore(new_session(database.SessionStore, {"cart": {"apple": 1}}))
            with connection.execute_wrapper(explain):
                do(store)
        with transaction.atomic(alias):  # here the engine reads a conflicting row again with a lock
            key = new_session(database.SessionStore, {"cart": {"apple": 1}})
            store, other = database.SessionStore(key), database.SessionStore(key)
            own_item(store, "mine")
            own_item(other, "theirs")
            other.save()
            with connection.execute_wrapper(explain):
                store.save()
        assert len(indexes) > len(DEEDS)
        assert set(indexes) == {"PRIMARY"}
