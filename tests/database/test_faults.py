"""When a database cannot be reached, or stays locked, the site answers 503 and signs nobody out."""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import OperationalError, ProgrammingError, close_old_connections, connections, transaction
from django.test.utils import override_settings
from django.utils.decorators import sync_and_async_middleware

from gsession_django import StorageUnavailable
from gsession_django.backends import database
from tests.redis.test_faults import NOBODY, SIGNED_IN, SOMEBODY, Deed, deeds, either_mode
from tests.support import sites
from tests.support.database_servers import DatabaseServer, PostgreSQL, shared
from tests.support.databases import KINDS, connected, empty, migrate, options_for, sqlite_entry
from tests.support.databases import database as a_database
from tests.support.engines import new_session, stored
from tests.support.proxies import Passed, Proxy, everything
from tests.support.sites import AUTHENTICATION, BETWEEN, OURS, Visitor

pytestmark = pytest.mark.once

KEPT = {"CONN_MAX_AGE": None}
each_age = pytest.mark.parametrize("values", [{}, KEPT], ids=["a connection a request", "kept connections"])


@sync_and_async_middleware
def between_requests(get_response: Any) -> Any:
    """A middleware that does Django's work at the start of a request, which the test client leaves out."""
    if not iscoroutinefunction(get_response):

        def middleware(request: Any) -> Any:
            close_old_connections()
            return get_response(request)

        return middleware

    async def amiddleware(request: Any) -> Any:
        await sync_to_async(close_old_connections)()
        return await get_response(request)

    return amiddleware


@contextmanager
def site(mode: str, entry: dict[str, Any], *more: str) -> Iterator[asyncio.Runner | None]:
    """Put the site's sessions into a database, and yield the runner of its requests; ``None`` under WSGI."""
    middleware = [f"{__name__}.between_requests", OURS, AUTHENTICATION, *more]
    with ExitStack() as stack:
        alias = stack.enter_context(connected(entry))
        empty(alias)
        found = options_for(alias)
        found["GSESSION"]["TOUCH_INTERVAL"] = 0
        stack.enter_context(override_settings(**{**sites.settings_of_the_site(middleware), **found}))
        yield None if mode == "sync" else stack.enter_context(asyncio.Runner(debug=False))


@each_age
@either_mode
def test_while_the_server_is_down_every_page_is_503_and_then_everybody_is_still_signed_in(
    server: DatabaseServer, mode: str, values: dict[str, Any]
) -> None:
    with site(mode, server.entry(**values)) as runner:
        those = deeds(runner)
        server.kill()
        try:
            for _ in range(2):
                assert not any(deed.attempt() for deed in those)
        finally:
            server.restart()
        for deed in those:
            deed.is_undone()
            assert deed.attempt()
            deed.is_done()


@either_mode
def test_a_kept_connection_that_the_server_has_dropped_is_replaced(server: DatabaseServer, mode: str) -> None:
    with site(mode, server.entry(**KEPT)) as runner:
        those = deeds(runner)
        server.kill()
        server.restart()
        for deed in those:
            assert deed.attempt()
            deed.is_done()


def lose(proxy: Proxy, way: str, turn: int, for_good: bool = False) -> Callable[[], bool]:
    """Lose the turn-th message to or from the server, and its connection. The result tells whether that has happened.

    With `for_good`, lose all messages after it too.
    """
    passed = 0

    def cut(connection: int, data: bytes) -> Passed:
        nonlocal passed
        passed += 1
        return (b"", True) if passed == turn or (for_good and passed > turn) else (data, False)

    setattr(proxy, way, cut)
    return lambda: passed >= turn


@either_mode
@pytest.mark.parametrize("way", ["on_request", "on_reply"])
def test_a_connection_that_breaks_in_the_middle_is_replaced_and_the_visitor_notices_nothing(
    server: DatabaseServer, mode: str, way: str
) -> None:
    with Proxy(server.port) as proxy, site(mode, server.entry(PORT=proxy.port, **KEPT)) as runner:
        for deed in deeds(runner):
            for turn in range(1, 10):
                visitor = Visitor(runner)
                again = Deed(visitor, deed.what, deed.before, deed.after)
                for step in {SIGNED_IN: ("modify", "sign_in"), SOMEBODY: ("modify",), NOBODY: ("peek",)}[deed.before]:
                    visitor.does(step)
                was_lost = lose(proxy, way, turn)
                assert again.attempt()
                setattr(proxy, way, everything)
                again.is_done()
                if not was_lost():
                    break
            assert turn > 1


@either_mode
@pytest.mark.parametrize("way", ["on_request", "on_reply"])
def test_if_every_connection_breaks_it_is_a_503_and_the_session_is_the_one_before_or_the_one_after(
    server: DatabaseServer, mode: str, way: str
) -> None:
    """When every query is lost, the site cannot know whether the session has its new key."""
    with Proxy(server.port) as proxy, site(mode, server.entry(PORT=proxy.port, **KEPT)) as runner:
        for turn in (1, 2):
            for deed in deeds(runner):
                deed.visitor.sees()  # opens the connection
                lose(proxy, way, turn, for_good=True)
                assert not deed.attempt() or turn == 2
                setattr(proxy, way, everything)
                lost = deed.what in ("cycle", "sign_in") and way == "on_reply"
                assert deed.visitor.sees() in (deed.before, deed.after, *([NOBODY] if lost else []))


@either_mode
def test_a_server_that_stops_between_reading_and_saving_is_a_503_and_the_session_as_it_was(
    server: DatabaseServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(mode, server.entry(**KEPT), BETWEEN) as runner:
        for deed in deeds(runner)[1:5]:
            with monkeypatch.context() as patch:
                patch.setattr(sites, "between", server.kill)
                try:
                    assert not deed.attempt()
                finally:
                    server.restart()
            deed.is_undone()
            assert deed.attempt()


def test_a_connection_that_somebody_ends_is_replaced_but_not_in_a_transaction(server: DatabaseServer) -> None:
    with connected(server.entry(**KEPT)) as alias, override_settings(**options_for(alias)):
        key = new_session(database.SessionStore, {"key": 1})

        def end() -> None:
            with closing(server.connect()) as control, control.cursor() as cursor:
                connection = connections[alias].connection
                if isinstance(server, PostgreSQL):
                    cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
                else:
                    cursor.execute("KILL CONNECTION %s", [connection.thread_id()])

        end()
        assert stored(database.SessionStore, key) == {"key": 1}

        def save_in_a_transaction() -> None:
            with transaction.atomic(alias):
                store = database.SessionStore(key)
                store["key"] = 2
                store.save()
                end()
                store["key"] = 3
                store.save()

        with pytest.raises(StorageUnavailable):
            save_in_a_transaction()
        assert stored(database.SessionStore, key) == {"key": 1}


def test_a_server_that_does_not_answer_is_unavailable_once_the_driver_gives_up(server: DatabaseServer) -> None:
    options = {"connect_timeout": 2} if isinstance(server, PostgreSQL) else {"read_timeout": 1}
    with connected(server.entry(OPTIONS=options)) as alias, override_settings(**options_for(alias)):
        server.pause()
        try:
            with pytest.raises(StorageUnavailable, match=f"DATABASES\\['{alias}'\\], cannot be reached: .* HOST, PORT"):
                new_session(database.SessionStore, {"key": 1})
        finally:
            server.resume()


# Locks.


@contextmanager
def locked(alias: str, session_id: str) -> Iterator[None]:
    """Lock the row of a session in another transaction."""
    with connected(connections.settings[alias]) as other, transaction.atomic(other):
        assert database.DatabaseStorage(using=other).update_ttl(session_id, 60)
        yield


TIMEOUTS = {
    "sqlite": ["PRAGMA busy_timeout = 50"],
    "postgresql": ["SET lock_timeout = 50", "SET statement_timeout = 50"],
    "mariadb": ["SET innodb_lock_wait_timeout = 1", "SET max_statement_time = 0.05"],
}


@pytest.mark.parametrize(
    ("kind", "setting"), [(kind, setting) for kind, settings in TIMEOUTS.items() for setting in settings]
)
def test_a_session_that_stays_locked_is_unavailable(kind: str, setting: str) -> None:
    with a_database(kind) as alias, override_settings(**options_for(alias)):
        store = database.SessionStore(new_session(database.SessionStore, {"key": 1}))
        store["key"] = 2
        with connections[alias].cursor() as cursor:
            cursor.execute(setting)
        says = f"DATABASES\\['{alias}'\\], did not answer in time: .* Find what holds a lock"
        with locked(alias, str(store.session_id)), pytest.raises(StorageUnavailable, match=says):
            store.save()
        store.save()
        assert stored(database.SessionStore, store.session_key) == {"key": 2}


# Errors that are not an outage.


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_table_is_the_databases_own_error(kind: str) -> None:
    with ExitStack() as stack:
        if kind == "sqlite":
            entry = sqlite_entry(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            entry = shared(kind).entry(NAME={"postgresql": "template1", "mariadb": "mysql"}[kind])
        alias = stack.enter_context(connected(entry))
        stack.enter_context(override_settings(**options_for(alias)))
        for do in (lambda: stored(database.SessionStore, "a" * 32), lambda: new_session(database.SessionStore, {})):
            with pytest.raises((OperationalError, ProgrammingError), match="gsession_django_session"):
                do()


def test_an_sqlite_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    with connected(sqlite_entry(folder)) as alias, override_settings(**options_for(alias)):
        migrate(alias)
        key = new_session(database.SessionStore, {"key": 1})
        connections[alias].close()
        folder.rename(tmp_path / "away")
        for do in (lambda: stored(database.SessionStore, key), lambda: new_session(database.SessionStore, {})):
            with pytest.raises(StorageUnavailable, match="unable to open database file"):
                do()
        (tmp_path / "away").rename(folder)
        assert stored(database.SessionStore, key) == {"key": 1}
