"""The command counts, names and leaves a session that the target refuses. It leaves no part of it at the target, and
moves the others. Real servers refuse with an error, by closing the connection, or without a reason.
"""

import json
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.serializers import JSONSerializer
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from redis import Redis

from gsession_django.moving.choice import source_of
from tests.support import database_servers, engine_by_keys, engine_that_purges, storages
from tests.support.old_sites import DJANGOS, OURS, new_session, old_site, store_of, stored
from tests.support.redis_servers import RedisServer, shared
from tests.support.rollouts import alias as rollout_alias
from tests.support.rollouts import at_source, at_target, old_release, rollout
from tests.support.sites import Visitor

DATABASE, FILE, REDIS, HASH = (OURS[name] for name in ("database", "file", "redis", "redis_hash"))
DB, CACHE = DJANGOS["db"], DJANGOS["cache"]
SERIALIZER = f"{__name__}.WritesMore"
TYPED = "gsession_django.serializers.TypedSerializer"
LARGE = "x" * 200_000
HUGE = "x" * 1_100_000


@contextmanager
def any_server(alias: str) -> Iterator[None]:
    yield


@contextmanager
def small_packets(alias: str) -> Iterator[None]:
    """Let MariaDB close a connection that sends more than 100 kB at once."""
    with closing(database_servers.shared("mariadb").connect()) as control, control.cursor() as cursor:
        cursor.execute("SELECT @@max_allowed_packet")
        (before,) = cursor.fetchone()
        cursor.execute("SET GLOBAL max_allowed_packet = 102400")
        connections[alias].close()
        try:
            yield
        finally:
            cursor.execute(f"SET GLOBAL max_allowed_packet = {before}")
            connections[alias].close()


@contextmanager
def statements(alias: str, do: str, undo: str) -> Iterator[None]:
    with connections[alias].cursor() as cursor:
        cursor.execute(do)
    try:
        yield
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute(undo)


def small_column(alias: str) -> Any:
    change = "ALTER TABLE gsession_django_session MODIFY data {} NOT NULL"
    return statements(alias, change.format("BLOB"), change.format("LONGBLOB"))


def constraint(alias: str) -> Any:
    change = "ALTER TABLE gsession_django_session {} CONSTRAINT small"
    return statements(alias, f"{change.format('ADD')} CHECK (octet_length(data) < 100000)", change.format("DROP"))


def procedure(alias: str) -> Any:
    """Let PostgreSQL refuse to update a large session, with an error that quotes it."""
    return statements(
        alias,
        """
        CREATE FUNCTION too_large() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'too large to be changed' USING DETAIL = 'The secret is ' || left(NEW.id, 5);
        END $$;
        CREATE TRIGGER small BEFORE UPDATE ON gsession_django_session
            FOR EACH ROW WHEN (octet_length(NEW.data) > 100000) EXECUTE FUNCTION too_large();
        """,
        "DROP TRIGGER small ON gsession_django_session; DROP FUNCTION too_large()",
    )


def trigger(alias: str) -> Any:
    """Let a database create a large session, and refuse to update it: it cannot become ``certain``."""
    return statements(
        alias,
        "CREATE TRIGGER small BEFORE UPDATE ON gsession_django_session WHEN length(NEW.data) > 100000 "
        "BEGIN SELECT RAISE(ABORT, 'too large to be changed'); END",
        "DROP TRIGGER small",
    )


@contextmanager
def short_values(alias: str) -> Iterator[None]:
    connection = connections[alias]
    connection.ensure_connection()
    before = connection.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)
    try:
        yield
    finally:
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, before)


@contextmanager
def small_files(alias: str) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@dataclass(frozen=True)
class Refusal:
    """A target that refuses a session.

    Attributes:
        source, target: the engines.
        data: the session.
        says: a part of the reason.
        kind: the kind of the database that the source or the target is in.
        limit: returns a context in which the target refuses the session, for the alias of the database.
        config: the configuration of a Redis server of its own.
        foreseen: whether the dry run foresees it.
        key: the session key, if it matters.
        values: other settings.
    """

    source: str
    target: str
    data: dict[Any, Any]
    says: str
    kind: str = "sqlite"
    limit: Callable[[str], Any] = any_server
    config: dict[str, str] | None = None
    foreseen: bool = False
    key: str | None = None
    values: tuple[tuple[str, Any], ...] = ()


PLAIN_IDS = (("GSESSION", {"ENGINES": {FILE: {"hash_ids": False}}}),)
SMALL_WORDS = {"proto_max_bulk_len": "1mb"}

CASES = {
    "mariadb closes the connection": Refusal(
        *(CACHE, DATABASE, {"text": LARGE}, "max_allowed_packet", "mariadb", small_packets), foreseen=True
    ),
    "mariadb closes the one that the source uses": Refusal(
        *(DB, DATABASE, {"text": LARGE}, "max_allowed_packet", "mariadb", small_packets), foreseen=True
    ),
    "mariadb has a small column": Refusal(
        DB, DATABASE, {"text": LARGE}, "Data too long for column 'data'", "mariadb", small_column
    ),
    "postgresql has a constraint": Refusal(
        DB, DATABASE, {"text": LARGE}, "but no session has it", "postgresql", constraint
    ),
    "postgresql refuses a change": Refusal(
        DB, DATABASE, {"text": LARGE}, "too large to be changed", "postgresql", procedure
    ),
    "sqlite has a limit": Refusal(DB, DATABASE, {"text": LARGE}, "too big", limit=short_values),
    "sqlite refuses a change": Refusal(DB, DATABASE, {"text": LARGE}, "too large to be changed", limit=trigger),
    "redis closes the connection": Refusal(
        DB, REDIS, {"text": HUGE}, "proto-max-bulk-len", config=SMALL_WORDS, foreseen=True
    ),
    "redis_hash closes the connection": Refusal(
        DB, HASH, {"text": HUGE, "small": 1}, "proto-max-bulk-len", config=SMALL_WORDS, foreseen=True
    ),
    "redis_hash does not take the key": Refusal(
        *(CACHE, HASH, {1: 2}, "1 is not text"),
        foreseen=True,
        values=(("SESSION_SERIALIZER", TYPED),),
    ),
    "a file may not be so large": Refusal(DB, FILE, {"text": HUGE}, "File too large", limit=small_files),
    "a file cannot have the name": Refusal(
        CACHE, FILE, {"text": "x"}, "'NoFileName' cannot be the name", foreseen=True, key="NoFileName", values=PLAIN_IDS
    ),
    "a row cannot have the id": Refusal(
        *(CACHE, DATABASE, {"text": "x"}, "cannot be the id of a session"),
        foreseen=True,
        key="x" * 129,
        values=(("hash_ids", False),),
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@contextmanager
def server_of(case: Refusal) -> Iterator[str]:
    if case.config is None:
        yield shared().url()
    else:
        with RedisServer(**case.config) as server:
            yield server.url()


@contextmanager
def site(case: Refusal, folder: Path) -> Iterator[str]:
    """Set up a site before the move, and yield the alias of its database."""
    values = dict(case.values)
    with server_of(case) as url, old_site(folder, case.kind, url, SESSION_COOKIE_AGE=1000):
        alias = settings.GSESSION["ENGINES"][DATABASE]["using"]
        options = {"using": alias, **({"hash_ids": values.pop("hash_ids")} if "hash_ids" in values else {})}
        engines = values.pop("GSESSION", {"ENGINES": {}})["ENGINES"]
        with override_settings(GSESSION={"ENGINES": {**engines, DATABASE: options}}, **values):
            yield alias


def session(engine: str, data: dict[Any, Any], key: str | None = None) -> str:
    if key is None:
        return new_session(engine, data)
    store = store_of(engine)
    store.update(data)
    store._session_key = key
    store.save(must_create=True)
    return key


def migrate(case: Refusal, *options: str) -> tuple[int, str, str]:
    """Run the command. Return its exit status, standard output and standard error."""
    output = StringIO()
    try:
        call_command("migrate_sessions", "--from", case.source, "--to", case.target, *options, stdout=output)
    except CommandError as error:
        return error.returncode, output.getvalue(), str(error)
    return 0, output.getvalue(), ""


def ids(engine: str) -> list[str]:
    return sorted(store_of(engine).get_storage().ids())


def names_in_redis() -> set[bytes]:
    """Return the keys on the site's server, without those of the source."""
    entry = settings.CACHES["sessions"]
    with Redis.from_url(entry["LOCATION"]) as client:
        names = {name for name in client.scan_iter() if b"gsession:" in name}
        return {name for name in names if name.startswith(entry["KEY_PREFIX"].encode())}


def rows(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM gsession_django_session")
        return int(cursor.fetchone()[0])


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("??/*") if not path.name.startswith(".")]


def has_nothing_else(case: Refusal, alias: str, folder: Path, sessions: int) -> None:
    """Check the rows, keys and files of the target: it has nothing but these sessions."""
    assert len(ids(case.target)) == sessions
    assert rows(alias) == (sessions if case.target == DATABASE else 0)
    assert len(names_in_redis()) == (sessions if case.target in (REDIS, HASH) else 0)
    assert len(files(folder)) == (sessions if case.target == FILE else 0)


# The command.


@each_case
def test_the_others_move_and_a_session_that_is_refused_is_left_and_named(case: Refusal, tmp_path: Path) -> None:
    with site(case, tmp_path) as alias:
        others = [session(case.source, {"number": number}) for number in range(4)]
        key = session(case.source, case.data, case.key)
        others += [session(case.source, {"number": number}) for number in range(4, 8)]
        data = stored(case.source, key)
        name = store_of(case.target)._engine.id_of(key)
        with case.limit(alias):
            for moved in (8, 0):
                status, printed, said = migrate(case, "--batch-size", "3")
                assert printed.startswith(f"Moved {moved} sessions from {case.source} to {case.target}; skipped 0, ")
                assert printed.endswith("refused 1.\n")
                assert status == 3
                assert f"{case.target} refused 1 session, left at {case.source}: " in said
                (line,) = [line for line in said.splitlines() if line.startswith(f"{name}: ")]
                if "max" not in case.says:  # the servers do not tell it
                    assert case.says in line
                assert "secret" not in said
                assert len(line) < len(name) + 400
                assert stored(case.source, key) == data
                has_nothing_else(case, alias, tmp_path, 8)
        assert [stored(case.target, other) for other in others] == [{"number": number} for number in range(8)]
        assert [source_of(case.source).present([other]) for other in others] == [set()] * 8


@each_case
def test_a_copy_goes_on_likewise(case: Refusal, tmp_path: Path) -> None:
    with site(case, tmp_path) as alias:
        keys = [session(case.source, {"number": 1}), session(case.source, case.data, case.key)]
        data = [stored(case.source, key) for key in keys]
        with case.limit(alias):
            for _ in range(2):
                status, printed, said = migrate(case, "--copy")
                assert printed.startswith(f"Copied 1 session from {case.source} to {case.target}; skipped 0, ")
                assert (status, "refused 1 session, left" in said) == (3, True)
                has_nothing_else(case, alias, tmp_path, 1)
        assert [stored(case.source, key) for key in keys] == data


@each_case
def test_the_dry_run_foresees_what_can_be_foreseen(case: Refusal, tmp_path: Path) -> None:
    with site(case, tmp_path) as alias:
        session(case.source, {"number": 1})
        key = session(case.source, case.data, case.key)
        name = store_of(case.target)._engine.id_of(key)
        with case.limit(alias):
            status, printed, said = migrate(case, "--dry-run")
            assert printed.startswith("Would move 1 session from" if case.foreseen else "Would move 2 sessions from")
            assert status == (3 if case.foreseen else 0)
            if case.foreseen:
                assert f"{case.target} would refuse 1 session, left at {case.source}: " in said
                assert case.says in said
                assert f"\n{name}: " in said
            has_nothing_else(case, alias, tmp_path, 0)


def test_the_dry_run_counts_what_a_statement_makes_of_a_session(tmp_path: Path) -> None:
    """The driver writes two characters for a byte, always or sometimes."""
    case = CASES["mariadb closes the connection"]
    with site(case, tmp_path) as alias:
        for number in (50_000, 60_000):
            session(case.source, {"text": '"' * (number // 2)})
        with case.limit(alias):
            assert migrate(case, "--dry-run")[1].startswith("Would move 1 session from")
            assert migrate(case)[1].startswith("Moved 1 session from")


LIMITED = {name: case for name, case in CASES.items() if case.limit is not any_server}


@pytest.mark.parametrize("case", LIMITED.values(), ids=LIMITED)
def test_once_the_target_takes_it_the_next_run_moves_it(case: Refusal, tmp_path: Path) -> None:
    with site(case, tmp_path) as alias:
        key = session(case.source, case.data, case.key)
        with case.limit(alias):
            migrate(case)
        assert migrate(case)[0] == 0
        assert stored(case.target, key) == case.data


def test_many_that_are_refused_are_all_in_the_json_and_the_first_in_the_text(tmp_path: Path) -> None:
    case = CASES["redis_hash does not take the key"]
    with site(case, tmp_path):
        keys = [session(case.source, case.data) for _ in range(12)]
        names = {store_of(case.target)._engine.id_of(key) for key in keys}
        _, printed, said = migrate(case, "--json")
        found = json.loads(printed)
        assert {refusal["id"] for refusal in found["refusals"]} == names
        assert {refusal["reason"][:40] for refusal in found["refusals"]} == {"TypeError: The session key 1 is not text"}
        status, _, said = migrate(case)
        lines = said.splitlines()
        assert status == 3
        assert lines[0].startswith(f"{HASH} refused 12 sessions, left at {CACHE}: TypeError: The session key 1")
        assert lines[-1] == "and 2 more, which --json lists."
        assert {line.partition(":")[0] for line in lines[2:-1]} < names
        assert len(lines) == 2 + 10 + 1


def test_a_session_whose_expiry_is_more_than_redis_takes_is_moved_and_has_a_ttl(tmp_path: Path) -> None:
    case = Refusal(DJANGOS["file"], HASH, {"text": LARGE, "_session_expiry": 10**16}, "")
    with site(case, tmp_path), Redis.from_url(shared().url()) as client:
        session(case.source, {"number": 1})
        session(case.source, case.data)
        assert "Moved 2 sessions" in migrate(case)[1]
        assert [client.ttl(name) > 0 for name in names_in_redis()] == [True] * 3  # large values have a key of their own


class WritesMore(JSONSerializer):
    """A serializer that cannot read all that it writes."""

    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj, default=str).encode()

    def loads(self, data: bytes) -> Any:
        if b"1.50" in data:
            raise ValueError("what is 1.50?")
        return super().loads(data)


@pytest.mark.parametrize("target", OURS.values(), ids=OURS)
@pytest.mark.parametrize("options", [(), ("--copy",), ("--dry-run",)], ids=["move", "copy", "dry run"])
def test_what_the_serializer_writes_and_cannot_read_is_refused(
    tmp_path: Path, target: str, options: tuple[str, ...]
) -> None:
    case = Refusal(CACHE, target, {"price": Decimal("1.50")}, "", values=(("SESSION_SERIALIZER", SERIALIZER),))
    with site(case, tmp_path) as alias:
        key = session(CACHE, case.data)
        status, printed, said = migrate(case, *options)
        assert (status, "refused 1." in printed) == (3, True)
        assert (
            f"1 session holds values that SESSION_SERIALIZER = '{SERIALIZER}' cannot take (decimal.Decimal). " in said
        )
        assert stored(CACHE, key) == case.data
        has_nothing_else(case, alias, tmp_path, 0)


# A site's storage that stores a session pair by pair.

PARTS = {"first": 1, "text": LARGE, "last": 2}
# One that does not tell the TTL of a session, and one that does.
PER_KEY = [engine_by_keys.__name__, engine_that_purges.__name__]

each_per_key = pytest.mark.parametrize("target", PER_KEY)


class TooLarge(Exception):
    """An error of the storage, or of its driver."""


def store_in_parts(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Let create() fail in the middle, at a large value, this many times."""
    left = failures

    def create(self: Any, session_id: str, session: Any, ttl: int) -> bool:
        nonlocal left
        if self.medium.live(session_id) is not None:
            return False
        for key, value in session.as_dict().items():
            if value == LARGE and left:
                left -= 1
                raise TooLarge("too large")
            self._set(session_id, {key: value}, ttl)
        return True

    monkeypatch.setattr(storages.CompleteStorage, "create", create)


@each_per_key
def test_no_part_of_a_session_stays_where_the_storage_stored_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    case = Refusal(DB, target, PARTS, "")
    with site(case, tmp_path):
        keys = [session(DB, {"number": 1}), session(DB, PARTS)]
        store_in_parts(monkeypatch, failures=1000)
        for moved in ("1 session", "0 sessions"):
            status, printed, said = migrate(case)
            assert printed.startswith(f"Moved {moved} from")
            assert (status, "TooLarge: too large" in said) == (3, True)
            assert ids(target) == [store_of(target)._engine.id_of(keys[0])]
        assert stored(DB, keys[1]) == PARTS


@each_per_key
def test_a_part_of_a_session_is_not_taken_for_all_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str
) -> None:
    case = Refusal(DB, target, PARTS, "")
    with site(case, tmp_path):
        key = session(DB, PARTS)
        store_in_parts(monkeypatch, failures=1)
        assert migrate(case)[0] == 0
        assert stored(target, key) == PARTS
        assert stored(DB, key) is None


def test_a_session_that_was_stored_though_an_error_says_otherwise_is_moved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = Refusal(DB, engine_that_purges.__name__, {}, "")
    with site(case, tmp_path):
        key = session(DB, {"number": 1})
        create, replies = storages.CompleteStorage.create, iter([True])

        def lose_reply(self: Any, *args: Any) -> bool:
            created = create(self, *args)
            if next(replies, False):
                raise TooLarge("the reply was")
            return created

        monkeypatch.setattr(storages.CompleteStorage, "create", lose_reply)
        assert migrate(case)[0] == 0
        assert stored(case.target, key) == {"number": 1}
        medium = store_of(case.target).get_storage().medium
        assert len(medium.rows) == 1
        assert medium.names().count("remove_all") == 1, "of the session that shows that the target is there"


# The fallback.

TOUCHED = {name: case for name, case in CASES.items() if not case.values}


@pytest.mark.parametrize("case", TOUCHED.values(), ids=TOUCHED)
def test_a_first_touch_that_the_engine_refuses_is_an_error_and_the_visitor_loses_nothing(
    case: Refusal, tmp_path: Path
) -> None:
    with server_of(case) as url, rollout(tmp_path, case.source, case.target, kind=case.kind):
        entry = {**settings.CACHES["sessions"], "LOCATION": url}
        alias = rollout_alias()
        gsession = {**settings.GSESSION, "ENGINES": {DATABASE: {"using": alias}}}
        with override_settings(CACHES={**settings.CACHES, "sessions": entry}, GSESSION=gsession):
            with old_release():
                key = Visitor().signed_in(count=2).key
                old = store_of(case.source, key)
                old.update(case.data)
                old.save()
            before = at_source(key)
            with case.limit(alias):
                visitor = Visitor(key=key)
                for _ in range(2):
                    response = visitor.does("read")
                    assert response.status_code == 500
                    assert not response.cookies
                    assert at_target(key) is None
                    has_nothing_else(case, alias, tmp_path, 0)
                with pytest.raises(ImproperlyConfigured) as raised:
                    stored(case.target, key)
                assert "cannot be moved from" in str(raised.value)
                assert at_source(key) == before
            if case.limit is not any_server:
                assert visitor.sees("read") == "ada 2 2"
