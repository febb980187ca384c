"""The database engine: its statements, transactions, routers and damaged rows."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import asgiref.sync
import pytest
from django.contrib.sessions.backends.base import CreateError
from django.db import OperationalError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test.utils import override_settings
from django.urls import path
from psycopg import IsolationLevel
from psycopg.errors import SerializationFailure

from gsession_django import SessionMap, SessionStore
from gsession_django.backends import database
from gsession_django.core import driving
from gsession_django.core.signing import tag_of
from gsession_django.database.rows import signed_name
from gsession_django.models import Session
from tests.engines.test_lost_updates import own_item
from tests.support.database_servers import shared
from tests.support.databases import KINDS, connected, options_for
from tests.support.databases import database as a_database
from tests.support.engines import id_of, new_session, stored
from tests.support.sites import either_client, get

SERVERS = KINDS[1:]


@contextmanager
def another_connection(alias: str, **values: Any) -> Iterator[str]:
    """Yield another alias of the same database, with its own connection."""
    with connected({**connections.settings[alias], **values}) as other:
        yield other


def change(alias: str, session_id: str, do: Callable[[SessionMap], Any]) -> None:
    """Let another request change a session in the database `alias`."""
    storage = database.DatabaseStorage(using=alias)
    held = storage.get_session(session_id, 60)
    assert held is not None
    do(held)
    assert storage.apply(session_id, held, 60)


# Statements: as the database receives them, not as Django reports them.


@contextmanager
def statements(kind: str, alias: str) -> Iterator[list[str]]:
    """Yield a list. At the end it has the first word of each statement that the database got from this thread."""
    connection = connections[alias]
    connection.ensure_connection()
    given: list[str] = []
    if kind == "sqlite":
        connection.connection.set_trace_callback(given.append)
        yield given
        connection.connection.set_trace_callback(None)
    elif kind == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET log_statement = 'all'")
        log = shared(kind).folder / "log"
        before = log.stat().st_size
        yield given
        with log.open() as lines:
            lines.seek(before)
            given += [line.partition("statement: ")[2] for line in lines if "LOG:  statement: " in line]
    else:
        with closing(shared(kind).connect()) as control, control.cursor() as cursor:
            cursor.execute("TRUNCATE mysql.general_log")
            cursor.execute("SET GLOBAL log_output = 'TABLE', GLOBAL general_log = ON")
            yield given
            cursor.execute("SET GLOBAL general_log = OFF")
            query = "SELECT argument FROM mysql.general_log WHERE command_type = 'Query' AND thread_id = %s"
            cursor.execute(query, [connection.connection.thread_id()])
            given += [statement for (statement,) in cursor.fetchall()]
    given[:] = [statement.split()[0].upper() for statement in given]


def touches(store: SessionStore) -> None:
    store.modified = True
    store.save()


def saves(store: SessionStore) -> None:
    store["cart"]["apple"] = 2
    store.save()


def signs_in(store: SessionStore) -> None:
    store["user"] = 5
    store.cycle_key()
    store.save()


def clears(store: SessionStore) -> None:
    store.clear()
    store["new"] = 1
    store.save()


DEEDS: dict[str, tuple[Callable[[SessionStore], Any], list[str]]] = {
    "load": (lambda store: store["cart"], ["SELECT"]),
    "touch": (touches, ["SELECT", "UPDATE"]),
    "save": (saves, ["SELECT", "UPDATE"]),
    "login": (signs_in, ["SELECT", "SELECT", "UPDATE", "UPDATE"]),
    "exists": (lambda store: store.exists(store.session_key), ["SELECT"]),
    "clear and save": (clears, ["UPDATE"]),
    "delete": (lambda store: store.delete(), ["DELETE"]),
    "flush": (lambda store: store.flush(), ["DELETE"]),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_each_call_of_the_storage_but_a_move_is_one_statement_and_no_transaction(
    kind: str, alias: str, store_class: type[SessionStore], deed: str
) -> None:
    do, expected = DEEDS[deed]
    store = store_class(new_session(store_class, {"cart": {"apple": 1}}))
    with statements(kind, alias) as given:
        do(store)
    assert given == expected


def test_create_is_one_statement(kind: str, alias: str, store_class: type[SessionStore]) -> None:
    with statements(kind, alias) as given:
        new_session(store_class, {"cart": {"apple": 1}})
    assert given == ["INSERT"]


def test_a_new_session_is_saved_again_with_one_statement(
    kind: str, alias: str, store_class: type[SessionStore]
) -> None:
    store = store_class()
    store["cart"] = {"apple": 1}
    store.save()
    with statements(kind, alias) as given:
        saves(store)
    assert given == ["UPDATE"]


@pytest.mark.parametrize("conflicts", [1, 3])
def test_each_conflict_costs_one_read_and_one_write_more(
    kind: str, alias: str, store_class: type[SessionStore], conflicts: int
) -> None:
    key = new_session(store_class, {"cart": {}})
    store = store_class(key)
    store["cart"]["mine"] = 1
    others = iter(range(conflicts))

    with another_connection(alias) as other:

        def first_somebody_else(execute: Any, sql: str, *args: Any) -> Any:
            if sql.startswith("UPDATE") and (number := next(others, None)) is not None:
                change(other, id_of(store_class, key), lambda held: held["cart"].update({f"theirs {number}": 1}))
            return execute(sql, *args)

        with statements(kind, alias) as given, connections[alias].execute_wrapper(first_somebody_else):
            store.save()
    assert given == ["UPDATE", *["SELECT", "UPDATE"] * conflicts]
    assert stored(store_class, key) == {"cart": {"mine": 1, **{f"theirs {n}": 1 for n in range(conflicts)}}}


# Transactions.


def isolated(kind: str, level: str) -> dict[str, Any]:
    """Return the values in ``DATABASES`` for an isolation level."""
    number = IsolationLevel[level.upper().replace(" ", "_")]
    return {"OPTIONS": {"isolation_level": number if kind == "postgresql" else level}}


def test_in_a_transaction_every_operation_works_and_is_undone_with_it(
    alias: str, store_class: type[SessionStore]
) -> None:
    key = new_session(store_class, {"cart": {"apple": 1}})
    gone = new_session(store_class, {"key": 1})

    def do_everything() -> tuple[str, str]:
        store = store_class(key)
        saves(store)
        touches(store_class(key))
        signs_in(store)
        clears(store_class(store.session_key))
        store_class(gone).flush()
        assert store.session_key is not None
        return store.session_key, new_session(store_class, {"new": 2})

    with transaction.atomic(alias):
        new_keys = do_everything()
        assert [stored(store_class, new_key) for new_key in new_keys] == [{"new": 1}, {"new": 2}]
        assert stored(store_class, key) is stored(store_class, gone) is None
        transaction.set_rollback(True, alias)
    assert [stored(store_class, new_key) for new_key in new_keys] == [None, None]
    assert stored(store_class, key) == {"cart": {"apple": 1}}
    assert stored(store_class, gone) == {"key": 1}
    with transaction.atomic(alias):
        new_keys = do_everything()
    assert [stored(store_class, new_key) for new_key in new_keys] == [{"new": 1}, {"new": 2}]
    assert stored(store_class, key) is stored(store_class, gone) is None


def test_a_taken_key_does_not_break_the_transaction(alias: str, store_class: type[SessionStore]) -> None:
    taken, other = new_session(store_class, {"key": 1}), new_session(store_class, {"key": 2})
    storage = store_class.get_storage()
    with transaction.atomic(alias):
        with pytest.raises(CreateError):
            store_class(taken).save(must_create=True)
        assert not storage.move(id_of(store_class, other), id_of(store_class, taken), 60)
        change(alias, id_of(store_class, taken), lambda held: held.update({"key": 3}))
    assert (stored(store_class, taken), stored(store_class, other)) == ({"key": 3}, {"key": 2})


def test_in_a_transaction_only_a_new_id_costs_a_savepoint(
    kind: str, alias: str, store_class: type[SessionStore]
) -> None:
    store = store_class(new_session(store_class, {"cart": {"apple": 1}}))
    with statements(kind, alias) as given, transaction.atomic(alias):
        saves(store)
        touches(store)
        signs_in(store)
        new_session(store_class, {"key": 1})
        store.flush()
    assert [word for word in given if word not in ("SET", "BEGIN", "COMMIT")] == [
        *("SELECT", "UPDATE"),
        "UPDATE",
        *("SAVEPOINT", "SELECT", "UPDATE", "RELEASE", "UPDATE"),
        *("SAVEPOINT", "INSERT", "RELEASE"),
        "DELETE",
    ]
    assert given.count("COMMIT") == 1


def test_with_autocommit_off_sessions_work_too(kind: str, alias: str, store_class: type[SessionStore]) -> None:
    taken = new_session(store_class, {"key": 1})
    transaction.set_autocommit(False, alias)
    try:
        with pytest.raises(CreateError):
            store_class(taken).save(must_create=True)
        key = new_session(store_class, {"cart": {}})
        change(alias, id_of(store_class, key), lambda held: held.update({"cart": {"apple": 1}}))
        transaction.commit(alias)
    finally:
        transaction.rollback(alias)
        transaction.set_autocommit(True, alias)
    assert stored(store_class, key) == {"cart": {"apple": 1}}


def no_more_than(number: int) -> Callable[..., Any]:
    """Return a wrapper that raises after `number` statements, in place of an endless loop."""
    numbers = iter(range(number))

    def execute_one_more(execute: Any, *args: Any) -> Any:
        assert next(numbers, None) is not None, f"more than {number} statements"
        return execute(*args)

    return execute_one_more


@pytest.mark.parametrize(
    ("kind", "level"),
    [("postgresql", "read committed"), ("mariadb", "read committed"), ("mariadb", "repeatable read")],
)
def test_a_conflict_in_a_transaction_is_merged(kind: str, level: str) -> None:
    with a_database(kind, **isolated(kind, level)) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {}})
        with another_connection(alias) as other, transaction.atomic(alias):
            store = database.SessionStore(key)
            own_item(store, "mine")
            change(other, str(store.session_id), lambda held: held["cart"].update(theirs=1))
            with statements(kind, alias) as given, connections[alias].execute_wrapper(no_more_than(10)):
                store.save()
        assert given == ["UPDATE", "SELECT", "UPDATE"]
        assert stored(database.SessionStore, key) == {"cart": {"mine": "mine", "theirs": 1}}


def save_over_a_conflict(alias: str, key: str) -> None:
    """Read a session in a transaction, let another request change it, and save it."""
    with another_connection(alias) as other, transaction.atomic(alias):
        store = database.SessionStore(key)
        own_item(store, "mine")
        change(other, str(store.session_id), lambda held: held["cart"].update(theirs=1))
        store.save()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_conflict_that_a_transaction_cannot_see_is_postgresqls_own_error(level: str) -> None:
    with a_database("postgresql", **isolated("postgresql", level)) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"cart": {}})
        with pytest.raises(OperationalError) as raised:
            save_over_a_conflict(alias, key)
        # A second try in a failed transaction would raise another error.
        assert isinstance(raised.value.__cause__, SerializationFailure)
        assert stored(database.SessionStore, key) == {"cart": {"theirs": 1}}


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_conflict_in_a_transaction_is_sqlites_own_error(alias: str) -> None:
    key = new_session(database.SessionStore, {"cart": {}})
    with pytest.raises(OperationalError, match="locked"):
        save_over_a_conflict(alias, key)
    assert stored(database.SessionStore, key) == {"cart": {"theirs": 1}}


# ATOMIC_REQUESTS.


def counts(request: HttpRequest) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return seen(request)


def cycles(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    return counts(request)


def flushes(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return seen(request)


def fails(request: HttpRequest) -> HttpResponse:
    request.session["count"] = 100
    request.session.cycle_key()
    request.session.save()
    raise ValueError


def seen(request: HttpRequest) -> HttpResponse:
    """Answer with the session's data, and whether the view runs in a transaction."""
    in_transaction = any(connection.in_atomic_block for connection in connections.all(initialized_only=True))
    return HttpResponse(f"{request.session.get('count')} {in_transaction}")


urlpatterns = [path(f"{view.__name__}/", view) for view in (counts, cycles, flushes, fails, seen)]


@either_client
def test_with_atomic_requests_sessions_work_and_a_failed_views_changes_are_undone(kind: str, client_class: Any) -> None:
    values = {"ROOT_URLCONF": __name__, "MIDDLEWARE": ["gsession_django.middleware.SessionMiddleware"]}
    with a_database(kind, ATOMIC_REQUESTS=True) as alias, override_settings(**options_for(alias), **values):
        client = client_class(raise_request_exception=False)
        keys = []

        def visit(view: str) -> str:
            response = get(client, f"/{view}/")
            keys.append(client.cookies["sessionid"].value if "sessionid" in client.cookies else "")
            return response.content.decode() if response.status_code == 200 else str(response.status_code)

        assert [visit("counts"), visit("cycles"), visit("fails"), visit("counts"), visit("flushes"), visit("seen")] == [
            "1 True",
            "2 True",
            "500",
            "3 True",
            "None True",
            "None True",
        ]
        assert keys[0] != keys[1] == keys[2] == keys[3] != ""
        assert keys[4] == keys[5] == ""
        assert list(database.SessionStore.get_storage().ids()) == []


# Routers.


class Router:
    """Reads from a replica, as many sites do."""

    def __init__(self, primary: str, replica: str) -> None:
        self._primary, self._replica = primary, replica

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self._replica

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return self._primary


def test_without_an_alias_sessions_are_read_where_the_routers_write() -> None:
    with (
        a_database("sqlite") as primary,
        a_database("sqlite") as replica,
        override_settings(SESSION_ENGINE=database.__name__, GSESSION={}, DATABASE_ROUTERS=[Router(primary, replica)]),
    ):
        connections[replica].close()
        store_class = database.SessionStore
        key = new_session(store_class, {"cart": {"apple": 1}})
        store = store_class(key)
        saves(store)
        signs_in(store)
        assert stored(store_class, store.session_key) == {"cart": {"apple": 2}, "user": 5}
        change(primary, str(store.session_id), lambda held: held.update(more=1))
        assert store_class().exists(store.session_key)
        assert list(store_class.get_storage().ids()) == [store.session_id]
        store_class.clear_expired()
        store.flush()
        assert connections[replica].connection is None  # nothing has connected to it


# Rows.


@pytest.mark.parametrize("data", [b"{", b"\x00\xff", b'"text"', b"[]", b"null"], ids=ascii)
def test_a_row_that_the_serializer_cannot_read_stays_as_it_is_and_disturbs_nobody(
    alias: str, store_class: type[SessionStore], data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    key = new_session(store_class, {"cart": {}})
    held, session_id, storage = store_class(key), id_of(store_class, key), store_class.get_storage()
    own_item(held, "mine")
    signed = tag_of("database", signed_name(session_id, None), data) + data
    Session._default_manager.using(alias).update(data=signed, version=5)
    assert stored(store_class, key) == {}
    assert [record.name for record in caplog.records] == ["django.security.SuspiciousSession"]
    held.save()
    assert held.session_key != key
    assert stored(store_class, held.session_key) == {"cart": {"mine": "mine"}}
    held.delete()
    assert list(storage.ids()) == [session_id]
    assert storage.update_ttl(session_id, 60)
    assert storage.move(session_id, "0" * 64, 60)
    storage.remove_all("0" * 64)
    assert list(storage.ids()) == []


def test_ids_that_differ_in_case_or_by_an_accent_are_different(alias: str) -> None:
    storage = database.DatabaseStorage(using=alias)
    ids = ["abcdefgh", "ABCDEFGH", "abcdefgH", "abcdefgh.", "abcdefg"]
    for session_id in ids:
        assert storage.create(session_id, SessionMap({"id": session_id}), 60)
    found = [storage.get_session(session_id, 60) for session_id in ids]
    assert [dict(session or {}) for session in found] == [{"id": session_id} for session_id in ids]
    storage.remove_all("abcdefgh")
    assert set(storage.ids()) == {*ids} - {"abcdefgh"}


@pytest.mark.parametrize("kind", ["postgresql"])
def test_on_postgresql_ids_are_compared_byte_by_byte_whatever_the_databases_collation(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT collation_name FROM information_schema.columns "
            "WHERE table_name = 'gsession_django_session' AND column_name = 'id'"
        )
        assert cursor.fetchall() == [("C",)]


# Async.


def test_under_async_each_operation_is_one_thread_hop(
    store_class: type[SessionStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    hops: list[object] = []

    class Counted(asgiref.sync.SyncToAsync[Any, Any]):
        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            hops.append(self.func)
            return await super().__call__(*args, **kwargs)

    async def visit() -> list[int]:
        store, counts = store_class(), []

        async def count(operation: Awaitable[Any]) -> None:
            before = len(hops)
            await operation
            counts.append(len(hops) - before)

        await store.aset("cart", {"apple": 1})
        await count(store.asave())  # creates it
        store = store_class(store.session_key)
        await count(store.aget("cart"))
        (await store.aget("cart"))["pear"] = 1
        await count(store.asave())
        await count(store.acycle_key())
        await count(store.aexists(store.session_key))
        await count(store.aflush())
        return counts

    monkeypatch.setattr(driving, "sync_to_async", Counted)
    assert asyncio.run(visit()) == [1] * 6
