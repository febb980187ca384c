"""A locked or full database, or one that lets nobody in, raises StorageUnavailable: from the engine, a purge, the list
of ids, and a move of sessions.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.test.utils import override_settings

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.backends.database import DatabaseStorage, SessionStore
from gsession_django.moving.choice import source_of
from gsession_django.users import end_sessions, sessions_of
from tests.support.database_servers import SERVERS, DatabaseServer, MariaDB, PostgreSQL, shared
from tests.support.databases import KINDS, connected, database, migrate, options_for, sqlite_entry
from tests.support.old_sites import DJANGOS, old_site
from tests.support.rollouts import SOURCES, TARGETS, alias, at_source, rollout, signed_in
from tests.support.sign_ins import ids_of, sign_in
from tests.support.sites import Visitor, is_503

pytestmark = pytest.mark.once

each_kind = pytest.mark.parametrize("kind", KINDS)
DEEDS: dict[str, Callable[[DatabaseStorage], Any]] = {
    "load": lambda storage: storage.get_session("session", 60),
    "look": lambda storage: storage.exists("session"),
    "touch": lambda storage: storage.update_ttl("session", 60),
    "create": lambda storage: storage.create("new", SessionMap({"key": 1}), 60),
    "save": lambda storage: storage.apply("session", SessionMap({"key": 1}), 60),
    "move": lambda storage: storage.move("session", "new", 60),
    "remove": lambda storage: storage.remove_all("session"),
    "purge": lambda storage: list(storage.purge(10)),
    "count": lambda storage: list(storage.purge(10, dry_run=True)),
    "list": lambda storage: list(storage.ids()),
    "sessions of a user": lambda storage: storage.sessions_of("7"),
}


def run(alias: str, *statements: str) -> None:
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


# Locks.

IMPATIENT = {
    "sqlite": ["PRAGMA busy_timeout = 0"],
    "postgresql": ["SET lock_timeout = 20"],
    "mariadb": ["SET lock_wait_timeout = 0", "SET innodb_lock_wait_timeout = 0"],
}


@contextmanager
def table_locked(kind: str, alias: str, table: str) -> Iterator[None]:
    """Lock the table for everybody else, and make a waiting statement give up at once."""
    run(alias, *IMPATIENT[kind])
    with connected(connections.settings[alias]) as other:
        if kind == "sqlite":
            # This journal lets nobody read beside a writer, so it locks the whole file.
            run(other, "PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE")
            yield
            run(other, "ROLLBACK")
        elif kind == "postgresql":
            with transaction.atomic(other):
                run(other, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
                yield
        else:
            run(other, f"LOCK TABLES {table} WRITE")
            yield
            run(other, "UNLOCK TABLES")


def without_log(kind: str) -> dict[str, Any]:
    """Return the values that let SQLite change its journal: no other connection may keep a write-ahead log."""
    return {"OPTIONS": {"timeout": 60}} if kind == "sqlite" else {}


@each_kind
def test_a_table_that_stays_locked_is_unavailable_for_every_operation(kind: str) -> None:
    with database(kind, **without_log(kind)) as alias, override_settings(**options_for(alias)):
        storage = DatabaseStorage(alias)
        assert storage.create("session", SessionMap({"key": 0}), 60)
        says = f"The database of the sessions, DATABASES\\['{alias}'\\], did not answer in time: .* a lock"
        with table_locked(kind, alias, "gsession_django_session"):
            for deed in DEEDS.values():
                with pytest.raises(StorageUnavailable, match=says):
                    deed(storage)
            with pytest.raises(CommandError, match="did not answer in time"):
                call_command("purge_sessions")
        assert dict(storage.get_session("session", 60) or {}) == {"key": 0}


@each_kind
def test_while_a_table_stays_locked_the_sessions_of_a_user_are_neither_listed_nor_lost(kind: str) -> None:
    with database(kind, **without_log(kind)) as alias, override_settings(**options_for(alias)):
        store = sign_in(SessionStore())
        with table_locked(kind, alias, "gsession_django_session"):
            for ask in (sessions_of, end_sessions):
                with pytest.raises(StorageUnavailable, match="did not answer in time"):
                    ask("7")
            with pytest.raises(CommandError, match="did not answer in time"):
                call_command("sessions", "show", str(store.session_id))
        assert ids_of() == {store.session_id}


@each_kind
@pytest.mark.parametrize("engine", [DJANGOS["db"], DJANGOS["cached_db"]])
def test_a_table_of_djangos_that_stays_locked_is_unavailable(tmp_path: Path, kind: str, engine: str) -> None:
    with old_site(tmp_path, kind):
        source = source_of(engine)
        says = f"The database of the engine '{engine}', DATABASES\\['{alias()}'\\], did not answer in time"
        if kind == "sqlite":
            run(alias(), "PRAGMA journal_mode = DELETE")
        with table_locked(kind, alias(), "django_session"):
            for ask in (
                lambda: list(source.batches(10)),
                lambda: source.read(["a" * 32]),
                lambda: source.present(["a" * 32]),
                lambda: source.remove(["a" * 32]),
            ):
                with pytest.raises(StorageUnavailable, match=says):
                    ask()
        assert list(source.batches(10)) == []


@each_kind
def test_a_session_in_a_locked_old_table_is_a_503_and_stays_there(tmp_path: Path, kind: str) -> None:
    with rollout(tmp_path, SOURCES["db"], TARGETS["file"], kind=kind):
        key = signed_in()
        if kind == "sqlite":
            run(alias(), "PRAGMA journal_mode = DELETE")
        with table_locked(kind, alias(), "django_session"):
            assert is_503(Visitor(None, key).does("read"))
        assert at_source(key)
        assert Visitor(None, key).sees("read") == "ada 2 2"


# A dead kept connection.


def end_connection(kind: str, alias: str) -> None:
    """Let the server end this thread's connection, as at a restart."""
    connection = connections[alias].connection
    with closing(shared(kind).connect()) as control, control.cursor() as cursor:
        if kind == "postgresql":
            cursor.execute("SELECT pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
        else:
            cursor.execute("KILL CONNECTION %s", [connection.thread_id()])


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("what", ["read", "modify", "sign_out"])
def test_a_fallback_on_djangos_db_whose_connection_died_connects_again(tmp_path: Path, kind: str, what: str) -> None:
    with rollout(tmp_path, SOURCES["db"], TARGETS["file"], kind=kind):
        key = signed_in()
        visitor = Visitor(None, key)
        end_connection(kind, alias())
        assert visitor.sees(what) == {"read": "ada 2 2", "modify": "ada 3 3", "sign_out": "nobody 0 0"}[what]
        assert at_source(key) is None


@pytest.mark.parametrize("kind", SERVERS)
def test_sessions_of_djangos_db_are_moved_by_the_command_if_the_connection_dies(tmp_path: Path, kind: str) -> None:
    with rollout(tmp_path, SOURCES["db"], TARGETS["file"], kind=kind):
        keys = [signed_in() for _ in range(3)]
        end_connection(kind, alias())
        with override_settings(GSESSION={}):
            call_command("migrate_sessions", "--from", SOURCES["db"], stdout=StringIO())
        for key in keys:
            assert Visitor(None, key).sees("read") == "ada 2 2"


@pytest.mark.parametrize("kind", SERVERS)
def test_in_a_transaction_of_the_site_a_fallback_does_not_connect_again(tmp_path: Path, kind: str) -> None:
    with rollout(tmp_path, SOURCES["db"], TARGETS["file"], kind=kind):
        key = signed_in()
        source = source_of(SOURCES["db"])

        def remove_in_a_transaction() -> None:
            with transaction.atomic(alias()):
                assert source.present([key]) == {key}
                end_connection(kind, alias())
                source.remove([key])

        with pytest.raises(StorageUnavailable, match="cannot be reached"):
            remove_in_a_transaction()
        assert source.present([key]) == {key}


# No room.


def test_an_sqlite_file_that_cannot_grow_is_unavailable_and_keeps_what_it_has(tmp_path: Path) -> None:
    with connected(sqlite_entry(tmp_path)) as alias, override_settings(**options_for(alias)):
        migrate(alias)
        storage = DatabaseStorage(alias)
        assert storage.create("session", SessionMap({"key": 0}), 60)
        run(alias, "PRAGMA max_page_count = 20")
        large, session = SessionMap({"text": "a" * 1_000_000}), storage.get_session("session", 60)
        assert session is not None
        session["text"] = "a" * 1_000_000
        saves = (partial(storage.create, "new", large), partial(storage.apply, "session", session))
        says = f"DATABASES\\['{alias}'\\], cannot use its disk: database or disk is full. Check that the disk"
        for save in saves:
            with pytest.raises(StorageUnavailable, match=says):
                save(60)
        assert dict(storage.get_session("session", 60) or {}) == {"key": 0}
        assert list(storage.ids()) == ["session"]
        run(alias, "PRAGMA max_page_count = 100000")
        assert storage.create("new", large, 60)


def test_a_mariadb_whose_tables_are_full_is_unavailable_and_keeps_what_it_has() -> None:
    with (
        MariaDB(innodb_data_file_path="ibdata1:12M", innodb_file_per_table="OFF") as server,
        connected(server.entry()) as alias,
        override_settings(**options_for(alias)),
    ):
        migrate(alias)
        storage = DatabaseStorage(alias)
        assert storage.create("session", SessionMap({"key": 0}), 60)
        large = SessionMap({"text": "a" * 1_000_000})

        def fill() -> None:
            for number in range(40):
                storage.create(f"large-{number}", large, 60)

        with pytest.raises(StorageUnavailable, match=r"cannot use its disk: .*is full.* Check that the disk is"):
            fill()
        assert dict(storage.get_session("session", 60) or {}) == {"key": 0}


TRIGGERS = {
    "postgresql": """CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$;
        CREATE TRIGGER refuses BEFORE UPDATE ON gsession_django_session EXECUTE FUNCTION refuse()
    """,
    "mariadb": """CREATE TRIGGER refuses BEFORE UPDATE ON gsession_django_session FOR EACH ROW
        SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {code}, MESSAGE_TEXT = 'refused'
    """,
}
NO_ROOM, READ_ONLY, LATE = "cannot use its disk", "is read-only", "did not answer in time"


@pytest.mark.parametrize(
    ("kind", "code", "what"),
    [
        ("postgresql", "53100", NO_ROOM),
        ("postgresql", "25006", READ_ONLY),
        ("postgresql", "55P03", LATE),
        *(("mariadb", code, NO_ROOM) for code in (1021, 1030, 1114)),
        *(("mariadb", code, READ_ONLY) for code in (1290, 1792, 1836)),
        *(("mariadb", code, LATE) for code in (1205, 1317, 1969, 3024)),
    ],
)
def test_the_error_codes_of_a_server_are_understood(kind: str, code: Any, what: str) -> None:
    """A trigger raises the code that the server raises when its disk is full."""
    with database(kind) as alias, override_settings(**options_for(alias)):
        storage = DatabaseStorage(alias)
        assert storage.create("session", SessionMap({"key": 0}), 60)
        try:
            run(alias, TRIGGERS[kind].format(code=code))
            with pytest.raises(StorageUnavailable, match=f"DATABASES\\['{alias}'\\], {what}: .*refused"):
                storage.update_ttl("session", 60)
        finally:
            run(alias, f"DROP TRIGGER refuses{' ON gsession_django_session' if kind == 'postgresql' else ''}")
        assert storage.update_ttl("session", 60)


# A server that lets nobody in.


@pytest.mark.parametrize("kind", SERVERS)
def test_with_too_many_connections_sessions_are_unavailable_until_one_is_free(kind: str) -> None:
    server = shared(kind)
    with database(kind) as alias, override_settings(**options_for(alias)):
        storage = DatabaseStorage(alias)
        assert storage.create("session", SessionMap({"key": 0}), 60)
        connections[alias].close()

        def connect_for_ever() -> None:
            while True:
                others.enter_context(closing(server.connect()))

        with ExitStack() as others:
            if kind == "mariadb":
                control = others.enter_context(closing(server.connect())).cursor()
                control.execute("SET GLOBAL max_connections = 10")
                others.callback(control.execute, "SET GLOBAL max_connections = DEFAULT")
            with pytest.raises(server.unreachable, match=r"(?i)too many"):
                connect_for_ever()
            says = r"(?i)cannot be reached: .*too many.* allows enough connections"
            with pytest.raises(StorageUnavailable, match=says):
                storage.get_session("session", 60)
        assert dict(storage.get_session("session", 60) or {}) == {"key": 0}


@contextmanager
def guarded(server: DatabaseServer, password: str) -> Iterator[dict[str, Any]]:
    """Create a user with this password, and yield the entry in ``DATABASES``."""
    with closing(server.connect()) as control, control.cursor() as cursor:
        if isinstance(server, PostgreSQL):
            rules = server.folder / "data" / "pg_hba.conf"
            before = rules.read_text()
            rules.write_text(f"host all guarded 127.0.0.1/32 scram-sha-256\n{before}")
            cursor.execute("SELECT pg_reload_conf()")
            cursor.execute(f"CREATE ROLE guarded LOGIN SUPERUSER PASSWORD '{password}'")
        else:
            cursor.execute(f"CREATE USER guarded IDENTIFIED BY '{password}'")
            cursor.execute("GRANT ALL ON test.* TO guarded")
        try:
            yield server.entry(USER="guarded", PASSWORD=password)
        finally:
            cursor.execute(f"DROP {'ROLE' if isinstance(server, PostgreSQL) else 'USER'} guarded")


@pytest.mark.parametrize("kind", SERVERS)
def test_a_wrong_password_is_unavailable_and_in_no_message(kind: str) -> None:
    wrong = "opens-nothing"
    with database(kind), guarded(shared(kind), "opens-it") as entry:
        with connected({**entry, "PASSWORD": wrong}) as alias, override_settings(**options_for(alias)):
            for deed in DEEDS.values():
                with pytest.raises(StorageUnavailable) as raised:
                    deed(DatabaseStorage(alias))
                error: BaseException | None = raised.value
                assert f"DATABASES[{alias!r}], cannot be reached: " in str(error)
                assert "Check that it runs, that HOST, PORT, USER and PASSWORD are right" in str(error)
                while error is not None:
                    assert wrong not in str(error)
                    error = error.__cause__ or error.__context__
        with connected(entry) as alias:
            assert DatabaseStorage(alias).create("session", SessionMap({}), 60)
