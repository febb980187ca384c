"""A demoted database server is read-only: the engine asks its successor, or the site answers 503 and signs nobody out.

The site's own queries get a working connection.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import Error, connections, transaction
from django.test.utils import override_settings

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.backends.database import DatabaseStorage, SessionStore
from gsession_django.models import Session
from tests.database.test_faults import KEPT, site
from tests.database.test_unavailable import DEEDS
from tests.redis.test_faults import deeds, either_mode
from tests.support.database_servers import DatabaseServer, PostgreSQL, shared
from tests.support.databases import connected, database, empty, migrate, options_for, sqlite_entry
from tests.support.engines import new_session, stored
from tests.support.processes import TIMEOUT
from tests.support.proxies import Passed, Proxy, everything

pytestmark = pytest.mark.once

# On MariaDB root may write to a read-only server.
USER = "site"


def given(server: DatabaseServer, statement: str) -> Any:
    """Return the first value of a statement's result."""
    with closing(server.connect()) as control, control.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # the server sends no event


def with_user(server: DatabaseServer) -> dict[str, Any]:
    """Return the entry in ``DATABASES`` for a user with only the rights that a site needs."""
    if isinstance(server, PostgreSQL):
        return server.entry(**KEPT)
    given(server, f"CREATE USER IF NOT EXISTS {USER}@'%'")
    given(server, f"GRANT ALL ON test.* TO {USER}@'%'")
    return server.entry(USER=USER, **KEPT)


@pytest.fixture
def alias(server: DatabaseServer) -> Iterator[str]:
    with connected(with_user(server)) as found, override_settings(**options_for(found)):
        empty(found)
        yield found


def set_read_only(server: DatabaseServer, on: bool) -> None:
    if isinstance(server, PostgreSQL):
        value = "on" if on else "off"
        given(server, f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        given(server, "SELECT pg_reload_conf()")
        until(lambda: bool(given(server, "SHOW default_transaction_read_only") == value))
    else:
        given(server, f"SET GLOBAL read_only = {int(on)}")


@contextmanager
def demoted(server: DatabaseServer) -> Iterator[None]:
    set_read_only(server, True)
    try:
        yield
    finally:
        set_read_only(server, False)


def save(key: str, value: int) -> None:
    store = SessionStore(key)
    store["key"] = value
    store.save()


def backend(alias: str) -> int:
    """Return the number of the connection of the site's next query."""
    postgresql = connections[alias].vendor == "postgresql"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT {'pg_backend_pid' if postgresql else 'connection_id'}()")
        return int(cursor.fetchone()[0])


@either_mode
def test_readers_are_served_and_writers_see_503_and_then_everybody_is_still_signed_in(
    server: DatabaseServer, mode: str
) -> None:
    with site(mode, with_user(server)) as runner:
        reading, *writing = deeds(runner)
        with demoted(server):
            assert reading.attempt()
            assert not any(deed.attempt() for deed in writing)
        for deed in writing:
            deed.is_undone()
            assert deed.attempt()
            deed.is_done()


@either_mode
def test_if_the_address_has_moved_to_another_server_the_visitor_notices_nothing(
    server: DatabaseServer, mode: str
) -> None:
    kind = "postgresql" if isinstance(server, PostgreSQL) else "mariadb"
    with (
        database(kind) as new,
        Proxy(server.port) as proxy,
        site(mode, {**with_user(server), "PORT": proxy.port}) as runner,
        connected(with_user(server)) as old,
    ):
        with_user(shared(kind))
        those = deeds(runner)
        Session._default_manager.using(new).bulk_create(Session._default_manager.using(old).all())
        with demoted(server):
            for deed in those:
                proxy.server_port = server.port
                proxy.cut_all()
                deed.is_undone()
                proxy.server_port = shared(kind).port
                assert deed.attempt()
                deed.is_done()


def test_the_sites_next_query_goes_over_a_new_connection(server: DatabaseServer, alias: str) -> None:
    key, before = new_session(SessionStore, {"key": 1}), backend(alias)
    says = f"The database of the sessions, DATABASES\\['{alias}'\\], is read-only: .*read-only.* point HOST and PORT"
    with demoted(server):
        with pytest.raises(StorageUnavailable, match=says):
            save(key, 2)
        assert backend(alias) != before
    save(key, 3)
    assert stored(SessionStore, key) == {"key": 3}


def test_no_pool_keeps_a_connection_to_a_server_that_was_demoted() -> None:
    pool = {"min_size": 1, "max_size": 1}
    with (
        PostgreSQL() as server,
        connected(server.entry(OPTIONS={"pool": pool})) as alias,
        override_settings(**options_for(alias)),
    ):
        migrate(alias)
        key = new_session(SessionStore, {"key": 1})
        try:
            before = backend(alias)
            with demoted(server), pytest.raises(StorageUnavailable, match="is read-only"):
                save(key, 2)
            assert backend(alias) != before
            save(key, 3)
            assert stored(SessionStore, key) == {"key": 3}
        finally:
            connections[alias].close()
            connections[alias].close_pool()  # type: ignore[attr-defined]


def test_every_operation_that_writes_is_unavailable_and_reads_go_on(server: DatabaseServer, alias: str) -> None:
    storage = DatabaseStorage(alias)
    assert storage.create("session", SessionMap({"key": 1}), 60)
    assert storage.create("over", SessionMap({}), -1)
    with demoted(server):
        for deed in ("touch", "create", "save", "move", "remove", "purge"):
            before = backend(alias)
            with pytest.raises(StorageUnavailable, match="is read-only"):
                DEEDS[deed](storage)
            assert backend(alias) != before
        assert dict(storage.get_session("session", 60) or {}) == {"key": 1}
        assert list(storage.ids()) == ["session"]
        assert list(storage.purge(10, dry_run=True)) == [1]


def test_in_a_transaction_nothing_is_repeated_and_after_it_the_site_has_a_new_connection(
    server: DatabaseServer, alias: str
) -> None:
    key, before = new_session(SessionStore, {"key": 1}), backend(alias)

    def save_in_a_transaction() -> None:
        with transaction.atomic(alias):
            assert stored(SessionStore, key) == {"key": 1}
            with transaction.atomic(alias):
                save(key, 2)

    with demoted(server):
        with pytest.raises(StorageUnavailable, match="is read-only"):
            save_in_a_transaction()
        assert backend(alias) != before
    assert stored(SessionStore, key) == {"key": 1}
    save(key, 2)
    assert stored(SessionStore, key) == {"key": 2}


def test_a_postgresql_standby_takes_writes_once_it_is_promoted() -> None:
    with PostgreSQL() as server, connected(server.entry(**KEPT)) as alias, override_settings(**options_for(alias)):
        migrate(alias)
        key = new_session(SessionStore, {"key": 1})
        server.kill()
        (signal_file := Path(server.folder, "data", "standby.signal")).touch()
        shutil.chown(signal_file, Path(server.folder, "data").owner())
        server.restart()
        assert stored(SessionStore, key) == {"key": 1}
        with pytest.raises(StorageUnavailable, match="is read-only: cannot execute UPDATE in a read-only"):
            save(key, 2)
        assert given(server, "SELECT pg_promote()")
        save(key, 3)
        assert stored(SessionStore, key) == {"key": 3}


def test_a_transaction_that_postgresql_ends_for_idleness_is_unavailable_and_the_next_query_works() -> None:
    options = {"options": "-c idle_in_transaction_session_timeout=50"}
    with database("postgresql", OPTIONS=options) as alias, override_settings(**options_for(alias)):
        key = new_session(SessionStore, {"key": 1})

        def save_late() -> None:
            with transaction.atomic(alias):
                save(key, 2)
                mine = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {backend(alias)}"
                until(lambda: bool(given(shared("postgresql"), mine) == 0))
                save(key, 3)

        with pytest.raises(StorageUnavailable, match=r"idle for too long: .* raise idle_in_transaction_"):
            save_late()
        assert backend(alias)
        assert stored(SessionStore, key) == {"key": 1}


def test_a_connection_that_breaks_twice_is_closed_so_that_the_sites_next_query_works(server: DatabaseServer) -> None:
    def cut(connection: int, data: bytes) -> Passed:
        return (b"", True) if b"gsession_django_session" in data else (data, False)

    with (
        Proxy(server.port) as proxy,
        connected({**with_user(server), "PORT": proxy.port}) as alias,
        override_settings(**options_for(alias)),
    ):
        key = new_session(SessionStore, {"key": 1})
        proxy.on_request = cut
        with pytest.raises(StorageUnavailable, match="cannot be reached"):
            save(key, 2)
        assert backend(alias)
        proxy.on_request = everything
        assert stored(SessionStore, key) == {"key": 1}


def test_a_site_whose_transaction_lost_its_connection_learns_that_it_was_not_committed(
    server: DatabaseServer, alias: str
) -> None:
    key = new_session(SessionStore, {"key": 1})

    def swallow() -> None:
        with transaction.atomic(alias):
            save(key, 2)
            command = "SELECT pg_terminate_backend(%s, 10000)" if isinstance(server, PostgreSQL) else "KILL %s"
            given(server, command % backend(alias))
            with pytest.raises(StorageUnavailable):
                save(key, 3)

    with pytest.raises(Error):
        swallow()
    connections[alias].close()  # as Django does at the end of the request
    assert stored(SessionStore, key) == {"key": 1}


def test_with_autocommit_off_the_site_keeps_its_connection(server: DatabaseServer, alias: str) -> None:
    """A new connection would commit the site's next statements one by one."""
    key, before = new_session(SessionStore, {"key": 1}), backend(alias)
    with demoted(server):
        transaction.set_autocommit(False, alias)
        try:
            with pytest.raises(StorageUnavailable, match="is read-only"):
                save(key, 2)
            assert not connections[alias].get_autocommit()
        finally:
            transaction.rollback(alias)
            assert backend(alias) == before
            transaction.rollback(alias)
            transaction.set_autocommit(True, alias)


def test_an_sqlite_connection_that_can_only_read_is_replaced_once(tmp_path: Path) -> None:
    with connected(sqlite_entry(tmp_path)) as alias, override_settings(**options_for(alias)):
        migrate(alias)
        key = new_session(SessionStore, {"key": 1})
        with connections[alias].cursor() as cursor:
            cursor.execute("PRAGMA query_only = ON")
        save(key, 2)
        assert stored(SessionStore, key) == {"key": 2}
    with (
        connected(sqlite_entry(tmp_path, OPTIONS={"init_command": "PRAGMA query_only = ON"})) as alias,
        override_settings(**options_for(alias)),
    ):
        with pytest.raises(StorageUnavailable, match="is read-only: attempt to write a readonly database"):
            save(key, 3)
        assert stored(SessionStore, key) == {"key": 2}
