"""manage.py migrate_sessions moves sessions with their keys, data and TTLs, and says what it did."""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import DataError
from django.test import override_settings
from django.utils import timezone
from pytest_django import Settings

from gsession_django import Storage, StorageUnavailable
from gsession_django.management.commands.migrate_sessions import REFUSED
from gsession_django.moving.refused import refused_types
from tests.project.test_docs import rows_under
from tests.support import databases, engine_that_purges, sites, storages
from tests.support.old_sites import DJANGOS, OURS, new_session, old_site, store_of, stored
from tests.support.pages import ROOT
from tests.support.redis_servers import RedisServer
from tests.support.terminals import run_on_terminal

# Each engine of Django's and of ours as a source, and each of ours as a target.
WAYS = [
    (DJANGOS["db"], OURS["redis_hash"]),
    (DJANGOS["db"], OURS["database"]),
    (DJANGOS["cached_db"], OURS["redis"]),
    (DJANGOS["file"], OURS["file"]),
    (DJANGOS["cache"], OURS["redis_hash"]),
    (DJANGOS["cache on Django's Redis"], OURS["redis_hash"]),
    (OURS["file"], OURS["redis"]),
    (OURS["redis"], OURS["redis_hash"]),
    (OURS["redis_hash"], OURS["database"]),
    (OURS["database"], OURS["file"]),
]
NAMES = {engine: name for name, engine in [*OURS.items(), *((f"Django's {name}", it) for name, it in DJANGOS.items())]}
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
DB, HASH, FILE = DJANGOS["db"], OURS["redis_hash"], OURS["file"]

each_way = pytest.mark.parametrize(
    ("source", "target"), WAYS, ids=[f"{NAMES[source]} to {NAMES[target]}" for source, target in WAYS]
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[None]:
    with old_site(tmp_path, SESSION_COOKIE_AGE=1000):
        yield


def migrate(source: str, target: str | None = None, *options: str) -> str:
    output = StringIO()
    to = [] if target is None else ["--to", target]
    call_command("migrate_sessions", "--from", source, *to, *options, stdout=output)
    return output.getvalue()


def fails(source: str, target: str | None = None, *options: str) -> CommandError:
    with pytest.raises(CommandError) as raised:
        migrate(source, target, *options)
    return raised.value


def said(source: str, target: str, moved: str, skipped: int = 0, expired: int = 0, unreadable: int = 0) -> str:
    return f"{moved} from {source} to {target}; skipped {skipped}, expired {expired}, unreadable {unreadable}."


def sessions(engine: str, *numbers: int) -> list[str]:
    """Create sessions, each with a number in it, and return their keys."""
    return [new_session(engine, {"number": number}) for number in numbers]


def numbers(engine: str, keys: list[str]) -> list[int | None]:
    """Return the number in each of these sessions, ``None`` for a missing session."""
    return [(stored(engine, key) or {}).get("number") for key in keys]


def count(engine: str) -> int:
    """Return how many sessions an engine of ours keeps."""
    return sum(1 for _ in store_of(engine).get_storage().ids())


def id_at(engine: str, key: str) -> str:
    """Return the id that an engine of ours has for a session key."""
    session_id: str = store_of(engine)._engine.id_of(key)
    return session_id


def before_each(monkeypatch: pytest.MonkeyPatch, engine: str, method: str, call: Callable[[int], None]) -> None:
    """Call `call` before each call of a storage method, with the number of calls so far."""
    storage: type[Storage] = type(store_of(engine).get_storage())
    original = getattr(storage, method)
    calls = 0

    def wrapper(*args: Any) -> Any:
        nonlocal calls
        call(calls)
        calls += 1
        return original(*args)

    monkeypatch.setattr(storage, method, wrapper)


# Moving.


@each_way
def test_sessions_are_moved_with_what_they_hold_and_have_left_to_live(site: None, source: str, target: str) -> None:
    expiries = {None: 1000, 300: 300, timedelta(seconds=500): 500, 0: 1000}
    keys = {new_session(source, {"cart": {"apple": [1, None]}, "ä": "ö"}, expiry): expiry for expiry in expiries}
    before = {key: dict(store_of(source, key).items()) for key in keys}
    assert migrate(source, target) == said(source, target, "Moved 4 sessions") + "\n"
    for key, expiry in keys.items():
        store = store_of(target, key)
        assert dict(store.items()) == before[key]
        assert expiries[expiry] - 20 < store.ttl_left <= expiries[expiry] + 1
        assert store.get_expire_at_browser_close() is (expiry == 0)
        assert not store_of(source).exists(key)


@pytest.mark.parametrize("target", OURS.values(), ids=OURS)
def test_moving_does_not_prolong_a_session(site: None, target: str) -> None:
    (key,) = sessions(DB, 1)
    expiry = timezone.now() + timedelta(seconds=100)  # the last save was 900 seconds ago
    store_of(DB).model.objects.update(expire_date=expiry)
    migrate(DB, target)
    store = store_of(target, key)
    assert store["number"] == 1
    assert 80 < store.ttl_left <= 101


@each_way
def test_a_visitor_stays_signed_in(site: None, source: str, target: str) -> None:
    pages = {"ROOT_URLCONF": sites.__name__, "AUTHENTICATION_BACKENDS": [sites.BACKEND]}
    before = sites.OURS if source in OURS.values() else sites.DJANGOS
    with override_settings(SESSION_ENGINE=source, MIDDLEWARE=[before, AUTHENTICATION], **pages):
        key = sites.Visitor().signed_in(count=3).key
    with override_settings(SESSION_ENGINE=target, MIDDLEWARE=[sites.OURS, AUTHENTICATION], **pages):
        migrate(source)
        visitor = sites.Visitor(key=key)
        assert visitor.sees("read") == "ada 3 3"
        assert visitor.sees("modify") == "ada 4 4"
        assert visitor.key == key
        visitor.does("sign_out")
        assert stored(target, key) is None


def test_the_ids_of_our_engines_are_carried_as_they_are_and_plain_ones_hashed(site: None, settings: Settings) -> None:
    redis = OURS["redis"]
    given = settings.GSESSION["ENGINES"]
    settings.GSESSION = {"ENGINES": {**given, FILE: {"hash_ids": False}, redis: {"hash_ids": False}}}
    keys = sessions(FILE, 1, 2)
    assert migrate(FILE, redis) == said(FILE, redis, "Moved 2 sessions") + "\n"
    assert sorted(store_of(redis).get_storage().ids()) == sorted(keys)
    migrate(redis, HASH)
    assert numbers(HASH, keys) == [1, 2]
    assert not {*store_of(HASH).get_storage().ids()} & {*keys}
    ids = {*store_of(HASH).get_storage().ids()}
    migrate(HASH, OURS["database"])
    assert {*store_of(OURS["database"]).get_storage().ids()} == ids


def test_hashed_ids_cannot_become_plain_ones(site: None, settings: Settings) -> None:
    settings.GSESSION = {"ENGINES": {FILE: {"hash_ids": False}}}
    (key,) = sessions(HASH, 1)
    assert "knows sessions by hashed session keys, and FileStorage" in str(fails(HASH, FILE))
    assert numbers(HASH, [key]) == [1]


def test_the_target_is_session_engine_if_none_is_named(site: None, settings: Settings) -> None:
    settings.SESSION_ENGINE = FILE
    keys = sessions(DB, 1)
    assert migrate(DB) == said(DB, FILE, "Moved 1 session") + "\n"
    assert numbers(FILE, keys) == [1]


def test_sessions_are_moved_in_batches(monkeypatch: pytest.MonkeyPatch, site: None) -> None:
    keys = sessions(DB, *range(7))
    left: list[int] = []
    before_each(monkeypatch, HASH, "create", lambda calls: left.append(store_of(DB).model.objects.count()))
    migrate(DB, HASH, "--batch-size", "3")
    assert left == [7, 7, 7, 4, 4, 4, 1]
    assert sorted(filter(None, numbers(HASH, keys))) == [1, 2, 3, 4, 5, 6]


# What is not moved.


@each_way
def test_what_has_expired_is_left_where_it_is(site: None, source: str, target: str) -> None:
    new_session(source, {"number": 1}, timedelta(seconds=-5))
    listed = {DJANGOS["db"]: 1, DJANGOS["cached_db"]: 1, DJANGOS["file"]: 1}.get(source, 0)
    assert migrate(source, target) == said(source, target, "Moved 0 sessions", expired=listed) + "\n"
    assert count(target) == 0
    if source == DB:
        assert store_of(DB).model.objects.count() == 1


def test_what_cannot_be_read_is_left_where_it_is(site: None, settings: Settings) -> None:
    keys, before = sessions(DB, 1), settings.SECRET_KEY
    settings.SECRET_KEY = "another"
    keys += sessions(DB, 2)
    first, second = migrate(DB, HASH).splitlines()
    assert first == said(DB, HASH, "Moved 1 session", unreadable=1)
    assert "Another SECRET_KEY may have signed them" in second
    assert numbers(HASH, keys) == [None, 2]
    settings.SECRET_KEY = before
    assert numbers(DB, keys) == [1, None]


def test_what_the_target_has_of_its_own_is_never_overwritten(site: None) -> None:
    redis = OURS["redis"]
    keys = sessions(redis, 1, 2)
    migrate(redis, HASH, "--copy")
    for engine, number in ((redis, 10), (HASH, 100)):
        store = store_of(engine, keys[0])
        store["number"] = number
        store.save()
    assert migrate(redis, HASH, "--copy").startswith(said(redis, HASH, "Copied 1 session", skipped=1))
    first, second = migrate(redis, HASH).splitlines()
    assert first == said(redis, HASH, "Moved 1 session", skipped=1)
    assert second == f"Skipped: {HASH} also has these sessions, with other data. Both were left as they are."
    assert numbers(redis, keys) == [10, None]
    assert numbers(HASH, keys) == [100, 2]


@pytest.mark.parametrize("options", [[], ["--copy"]], ids=["move", "copy"])
def test_one_that_ends_meanwhile_stays_ended(monkeypatch: pytest.MonkeyPatch, site: None, options: list[str]) -> None:
    keys = sorted(sessions(DB, 1, 2, 3))
    before_each(monkeypatch, HASH, "create", lambda calls: store_of(DB, keys[0]).delete() if calls == 1 else None)
    verb = "Copied" if options else "Moved"
    first = said(DB, HASH, f"{verb} 2 sessions").replace("unreadable 0", "unreadable 0, ended meanwhile 1")
    assert migrate(DB, HASH, *options) == first + "\n"
    assert numbers(HASH, keys)[0] is None
    assert count(HASH) == 2


@pytest.mark.parametrize("nth", [0, 1])
def test_so_does_one_that_ends_in_the_new_engine(monkeypatch: pytest.MonkeyPatch, site: None, nth: int) -> None:
    """Before the copy is ``certain``, and before the pair is removed."""
    keys = sessions(DB, 1)
    before_each(monkeypatch, HASH, "apply", lambda calls: store_of(HASH, keys[0]).delete() if calls == nth else None)
    first = said(DB, HASH, "Moved 0 sessions").replace("unreadable 0", "unreadable 0, ended meanwhile 1")
    assert migrate(DB, HASH) == first + "\n"
    assert count(HASH) == 0


# What SESSION_SERIALIZER cannot take, or the target refuses.

JSON, TYPED = "django.contrib.sessions.serializers.JSONSerializer", "gsession_django.serializers.TypedSerializer"
CACHE = DJANGOS["cache"]
ODD: list[dict[str, Any]] = [
    {"number": 2, "price": Decimal("1.5"), "seen": [{"at": timezone.now()}]},
    {"number": 3, "ids": {1, 2}},
    {"number": 4, "pair": ({(1, 2): Decimal("1.5")},)},
    {"number": 5, "secret": b"\xff"},
]


def odd_sessions() -> list[str]:
    return [new_session(CACHE, data) for data in [{"number": 1}, *ODD]]


@pytest.mark.parametrize("options", [[], ["--copy"], ["--dry-run"]], ids=["move", "copy", "dry run"])
@pytest.mark.parametrize("batch_size", ["1", "500"])
def test_what_the_serializer_cannot_take_is_counted_and_its_types_named(
    site: None, options: list[str], batch_size: str
) -> None:
    keys, output = odd_sessions(), StringIO()
    with pytest.raises(CommandError) as raised:
        call_command(
            "migrate_sessions", "--from", CACHE, "--to", HASH, "--batch-size", batch_size, *options, stdout=output
        )
    verb = {"": "Moved", "--copy": "Copied", "--dry-run": "Would move"}["".join(options)]
    expected = said(CACHE, HASH, f"{verb} 1 session").replace("unreadable 0", "unreadable 0, refused 4")
    assert output.getvalue() == expected + "\n"
    assert raised.value.returncode == REFUSED
    first_line, by_ids, *listed = str(raised.value).splitlines()
    assert first_line == (
        f"4 sessions hold values that SESSION_SERIALIZER = '{JSON}' cannot take (bytes, datetime.datetime, "
        f"decimal.Decimal, set, tuple as a key of a dict). Set SESSION_SERIALIZER = '{TYPED}', which takes dates, "
        "times, Decimals, UUIDs, bytes, sets and tuples, or write one that takes these types. They were left at "
        f"{CACHE}: then run the command again."
    )
    assert by_ids == f"By their ids at {HASH}:"
    assert sorted(listed) == sorted(
        f"{id_at(HASH, key)}: SESSION_SERIALIZER cannot take {types}"
        for key, types in zip(
            keys[1:],
            ["datetime.datetime, decimal.Decimal", "set", "decimal.Decimal, tuple as a key of a dict", "bytes"],
            strict=True,
        )
    )
    assert numbers(CACHE, keys)[1:] == [2, 3, 4, 5]
    assert numbers(HASH, keys) == [1 if verb != "Would move" else None, None, None, None, None]


def test_with_the_typed_serializer_all_of_it_is_moved(tmp_path: Path) -> None:
    with old_site(tmp_path, SESSION_COOKIE_AGE=1000, SESSION_SERIALIZER=TYPED):
        keys = odd_sessions()
        assert migrate(CACHE, HASH) == said(CACHE, HASH, "Moved 5 sessions") + "\n"
        assert [stored(HASH, key) for key in keys] == [{"number": 1}, *ODD]


def test_what_no_serializer_takes_is_named_too(tmp_path: Path) -> None:
    with old_site(tmp_path, SESSION_SERIALIZER=TYPED):
        key = new_session(CACHE, {"user": User(pk=1)})
        text = str(fails(CACHE, HASH))
        assert text.startswith(
            f"1 session holds values that SESSION_SERIALIZER = '{TYPED}' cannot take (django.contrib"
        )
        assert "auth.models.User). Store something else in place of django.contrib.auth.models.User, or" in text
        assert stored(CACHE, key) == {"user": User(pk=1)}


def test_a_session_that_contains_itself_is_counted_with_what_the_serializer_says(site: None) -> None:
    circle: list[Any] = []
    circle.append(circle)
    new_session(CACHE, {"circle": circle})
    gc.collect()  # no finalizer of another test's objects may run deep in this recursion
    assert "cannot take (ValueError: Circular reference detected)" in str(fails(CACHE, HASH))


def test_a_serializer_that_cannot_be_used_refuses_no_session(settings: Settings) -> None:
    settings.SESSION_SERIALIZER = "no.such.Serializer"
    with pytest.raises(ImproperlyConfigured, match=r"no\.such\.Serializer"):
        refused_types({"number": 1})


class TooLarge(Exception):
    """An error of a site's storage, or of a driver."""


@pytest.mark.parametrize("error", [TooLarge, StorageUnavailable, DataError])
@pytest.mark.parametrize("batch_size", ["1", "3", "500"])
def test_one_that_the_target_refuses_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, site: None, error: type[Exception], batch_size: str
) -> None:
    keys = sessions(DB, 1, 2, 3, 4, 5)
    storage = type(store_of(HASH).get_storage())
    create: Callable[..., bool] = storage.create

    def refuse(self: Any, session_id: str, session: Any, ttl: int) -> bool:
        if session.get("number") == 3:
            raise error("Packet too\n large.")
        return create(self, session_id, session, ttl)

    monkeypatch.setattr(storage, "create", refuse)
    for moved in ("4 sessions", "0 sessions"):
        output = StringIO()
        with pytest.raises(CommandError) as raised:
            call_command("migrate_sessions", "--from", DB, "--to", HASH, "--batch-size", batch_size, stdout=output)
        expected = said(DB, HASH, f"Moved {moved}").replace("unreadable 0", "unreadable 0, refused 1")
        assert output.getvalue() == expected + "\n"
        assert raised.value.returncode == REFUSED
        reason = f"{error.__name__}: Packet too large"
        assert str(raised.value).splitlines() == [
            f"{HASH} refused 1 session, left at {DB}: {reason}.",
            f"By their ids at {HASH}:",
            f"{id_at(HASH, keys[2])}: {reason}",
        ]
    assert numbers(HASH, keys) == [1, 2, None, 4, 5]
    assert numbers(DB, keys) == [None, None, 3, None, None]


# Running it in other ways.


@each_way
def test_a_copy_leaves_the_source_as_it_is(site: None, source: str, target: str) -> None:
    keys = sessions(source, 1, 2, 3)
    assert migrate(source, target, "--copy") == said(source, target, "Copied 3 sessions") + "\n"
    assert numbers(source, keys) == numbers(target, keys) == [1, 2, 3]
    assert migrate(source, target, "--copy") == said(source, target, "Copied 3 sessions") + "\n"
    assert migrate(source, target) == said(source, target, "Moved 3 sessions") + "\n"
    assert [store_of(source).exists(key) for key in keys] == [False] * 3
    assert numbers(target, keys) == [1, 2, 3]


def test_a_copy_is_known_again_though_the_serializer_has_made_something_else_of_it(site: None) -> None:
    source = DJANGOS["cache"]
    key = new_session(source, {"pair": (1, 2)})
    migrate(source, HASH, "--copy")
    assert migrate(source, HASH) == said(source, HASH, "Moved 1 session") + "\n"
    assert stored(HASH, key) == {"pair": [1, 2]}


@each_way
def test_a_dry_run_changes_nothing_and_says_what_would_be_done(site: None, source: str, target: str) -> None:
    keys = sessions(source, 1, 2, 3)
    migrate(source, target, "--copy")
    store = store_of(target, keys[0])
    store["number"] = 10
    store.save()
    store_of(target, keys[1]).delete()
    first, _ = migrate(source, target, "--dry-run").splitlines()
    assert first == said(source, target, "Would move 2 sessions", skipped=1)
    first, _ = migrate(source, target, "--dry-run", "--copy").splitlines()
    assert first == said(source, target, "Would copy 2 sessions", skipped=1)
    assert numbers(source, keys) == [1, 2, 3]
    assert numbers(target, keys) == [10, None, 3]
    assert count(target) == 2


@each_way
def test_a_second_run_finds_nothing_to_do(site: None, source: str, target: str) -> None:
    keys = sessions(source, 1, 2)
    migrate(source, target)
    assert migrate(source, target) == said(source, target, "Moved 0 sessions") + "\n"
    assert numbers(target, keys) == [1, 2]


def test_ctrl_c_ends_it_between_two_batches_and_the_next_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, site: None
) -> None:
    keys = sessions(DB, *range(1, 8))
    with monkeypatch.context() as patch:
        interrupt = lambda calls: os.kill(os.getpid(), signal.SIGINT) if calls == 3 else None  # noqa: E731
        before_each(patch, HASH, "create", interrupt)
        error = fails(DB, HASH, "--batch-size", "3")
    assert str(error) == f"Interrupted. {said(DB, HASH, 'Moved 6 sessions')} Run it again to go on."
    assert error.returncode == 130
    assert migrate(DB, HASH) == said(DB, HASH, "Moved 1 session") + "\n"
    assert numbers(HASH, keys) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(("method", "nth"), [("create", 4), ("apply", 7)])
def test_an_outage_of_the_target_says_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, nth: int
) -> None:
    with RedisServer(appendonly="yes") as server, old_site(tmp_path, url=server.url()):
        keys = sessions(DB, *range(1, 8))
        with monkeypatch.context() as patch:
            before_each(patch, HASH, method, lambda calls: server.kill() if calls == nth else None)
            text = str(fails(DB, HASH, "--batch-size", "3"))
        assert text.startswith(f"{said(DB, HASH, 'Moved 3 sessions')} Then: CACHES['sessions'] (redis://127.0.0.1:")
        assert text.endswith("Look at the server, and at this entry. Run it again to go on.")
        server.restart()
        assert migrate(DB, HASH) == said(DB, HASH, "Moved 4 sessions") + "\n"
        assert numbers(HASH, keys) == [1, 2, 3, 4, 5, 6, 7]
        assert store_of(DB).model.objects.count() == 0


@pytest.mark.parametrize(("method", "nth"), [("create", 4), ("apply", 7)])
def test_an_outage_of_the_source_says_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str, nth: int
) -> None:
    source = DJANGOS["cache on Django's Redis"]
    with RedisServer(appendonly="yes") as server, old_site(tmp_path, url=server.url()):
        keys = sessions(source, *range(1, 8))
        with monkeypatch.context() as patch:
            before_each(patch, FILE, method, lambda calls: server.kill() if calls == nth else None)
            text = str(fails(source, FILE, "--batch-size", "3"))
        assert text.startswith(f"{said(source, FILE, 'Moved 3 sessions')} Then: The engine {source!r} cannot use its ")
        server.restart()
        assert migrate(source, FILE).startswith("Moved 4 sessions")
        assert sorted(filter(None, numbers(FILE, keys))) == [1, 2, 3, 4, 5, 6, 7]
        assert migrate(source, FILE).startswith("Moved 0 sessions")


def test_what_else_a_database_refuses_is_said_too(site: None, settings: Settings, tmp_path: Path) -> None:
    keys = sessions(DB, 1)
    with databases.connected(databases.sqlite_entry(tmp_path)) as alias:  # without the table for sessions
        settings.GSESSION = {"ENGINES": {OURS["database"]: {"using": alias}}}
        text = str(fails(DB, OURS["database"]))
    assert text.startswith(f"{said(DB, OURS['database'], 'Moved 0 sessions')} Then: no such table: ")
    assert text.endswith(". Run it again to go on.")
    assert numbers(DB, keys) == [1]


def test_it_stops_between_two_batches_when_its_time_is_over_and_the_next_run_goes_on(site: None) -> None:
    keys = sessions(DB, *range(1, 8))
    first, second = migrate(DB, HASH, "--batch-size", "3", "--max-seconds", "1e-9").splitlines()
    assert first == said(DB, HASH, "Moved 3 sessions")
    assert second == "There may be more: it stopped after 1e-09 seconds, as asked for."
    assert migrate(DB, HASH, "--max-seconds", "600") == said(DB, HASH, "Moved 4 sessions") + "\n"
    assert numbers(HASH, keys) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("number", ["0", "-1", "nan", "inf", "x"])
def test_the_time_it_may_take_is_more_than_none(site: None, number: str) -> None:
    with pytest.raises(CommandError, match="--max-seconds"):
        migrate(DB, HASH, f"--max-seconds={number}")


# For programs.


def printed_object(source: str, target: str, *options: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status, and the object that ``--json`` prints."""
    output, status = StringIO(), 0
    try:
        call_command("migrate_sessions", "--from", source, "--to", target, "--json", *options, stdout=output)
    except CommandError as error:
        status = error.returncode
    (line,) = output.getvalue().splitlines()
    found: dict[str, Any] = json.loads(line)
    assert 0 < found.pop("seconds") < 60
    return status, found


def an_object(source: str, target: str, **values: Any) -> dict[str, Any]:
    counts = ("moved", "copied", "left", "skipped", "unreadable", "refused", "expired", "ended")
    flags = {"copy": False, "dry_run": False, "refusals": [], "complete": True, "error": None}
    return {"source": source, "target": target, **flags, **dict.fromkeys(counts, 0), **values}


def test_it_prints_one_object_for_programs(site: None, settings: Settings) -> None:
    keys = [new_session(CACHE, data) for data in ({"number": 1}, ODD[0], {"number": 7})]
    refusals = [
        {"id": id_at(HASH, keys[1]), "reason": "SESSION_SERIALIZER cannot take datetime.datetime, decimal.Decimal"}
    ]
    left = {"refused": 1, "left": 1, "refusals": refusals}
    assert printed_object(CACHE, HASH, "--dry-run") == (REFUSED, an_object(CACHE, HASH, dry_run=True, moved=2, **left))
    assert printed_object(CACHE, HASH, "--copy") == (REFUSED, an_object(CACHE, HASH, copy=True, copied=2, **left))
    store = store_of(HASH, keys[2])
    store["number"] = 70
    store.save()
    left = {**left, "skipped": 1, "left": 2}
    assert printed_object(CACHE, HASH) == (REFUSED, an_object(CACHE, HASH, moved=1, **left))


def test_the_object_says_what_was_not_live_or_not_readable(site: None, settings: Settings) -> None:
    new_session(DB, {"number": 1}, timedelta(seconds=-5))
    sessions(DB, 2)
    settings.SECRET_KEY = "another"
    sessions(DB, 3)
    assert printed_object(DB, HASH) == (0, an_object(DB, HASH, moved=1, expired=1, unreadable=1, left=1))


def test_the_object_says_that_there_may_be_more(site: None) -> None:
    sessions(DB, 1, 2)
    stopped = ("--batch-size", "1", "--max-seconds", "1e-9")
    assert printed_object(DB, HASH, *stopped) == (0, an_object(DB, HASH, moved=1, complete=False))
    assert printed_object(DB, HASH) == (0, an_object(DB, HASH, moved=1))


def test_the_page_names_all_that_is_in_the_object(site: None) -> None:
    _, found = printed_object(DB, HASH)
    names = [
        name
        for names, *_ in rows_under(ROOT / "docs" / "migrate-sessions.md", "The JSON object")
        for name in names.split(", ")
    ]
    assert sorted(names) == sorted([*found, "seconds"])


def test_the_object_is_printed_in_an_outage_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with RedisServer() as server, old_site(tmp_path, url=server.url()):
        sessions(DB, *range(1, 8))
        before_each(monkeypatch, HASH, "create", lambda calls: server.kill() if calls == 4 else None)
        status, found = printed_object(DB, HASH, "--batch-size", "3")
        error = found.pop("error")
        assert error.startswith("CACHES['sessions'] (redis://127.0.0.1:")
        expected = an_object(DB, HASH, moved=3, complete=False)
        assert expected.pop("error") is None
        assert (status, found) == (1, expected)


def test_the_object_is_printed_after_ctrl_c_too(monkeypatch: pytest.MonkeyPatch, site: None) -> None:
    sessions(DB, *range(1, 8))
    before_each(monkeypatch, HASH, "create", lambda calls: os.kill(os.getpid(), signal.SIGINT) if calls == 3 else None)
    expected = an_object(DB, HASH, moved=6, complete=False, error="Interrupted")
    assert printed_object(DB, HASH, "--batch-size", "3") == (130, expected)


# What is refused.


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("no.such", FILE, "'no.such' is not a session engine: No module named 'no'"),
        (DB, "no.such", "--to names 'no.such', which is not a session engine: No module named 'no'"),
        (DB, "gsession_django", "--to names 'gsession_django', which is not an engine of gsession_django. Name one of"),
        (HASH, DB, f"--to names '{DB}', which is not an engine of gsession_django. Name one of those"),
        ("django.contrib.sessions.backends.signed_cookies", FILE, "none on a server"),
        (FILE, FILE, f"--from names '{FILE}', which keeps its sessions in the same place as '{FILE}'"),
        ("gsession_django.backends.memory", FILE, "in the memory of a process, and no other process can read them"),
        (DB, "gsession_django.backends.memory", "in the memory of a process, and they would end with it"),
        (
            DB,
            "tests.support.engine_that_cannot_purge",
            "WholeMapStorage of the engine 'tests.support.engine_that_cannot_purge': its",
        ),
        ("tests.support.engine_that_cannot_purge", FILE, "cannot list its sessions: it has no ids()"),
    ],
)
def test_what_cannot_be_moved_is_refused(site: None, source: str, target: str, says: str) -> None:
    assert says in str(fails(source, target))


def test_a_session_engine_that_is_none_of_ours_is_refused(site: None, settings: Settings) -> None:
    settings.SESSION_ENGINE = DB
    assert str(fails(HASH)).startswith(f"SESSION_ENGINE names '{DB}', which is not an engine of gsession_django.")


def test_a_target_that_finds_out_that_it_cannot_is_an_error(monkeypatch: pytest.MonkeyPatch, site: None) -> None:
    class Store(engine_that_purges.SessionStore):
        storage_class = storages.SometimesDisabledStorage

    monkeypatch.setattr(engine_that_purges, "SessionStore", Store)
    keys = sessions(DB, 1)
    assert "its storage needs create() and apply()" in str(fails(DB, "tests.support.engine_that_purges"))
    assert numbers(DB, keys) == [1]


@pytest.mark.parametrize("hash_ids", [True, False])
def test_two_names_of_one_place_are_refused(
    monkeypatch: pytest.MonkeyPatch, site: None, settings: Settings, hash_ids: bool
) -> None:
    """Otherwise each session would be its own copy, and the command would remove it."""

    class Store(import_module(HASH).SessionStore):  # type: ignore[misc]
        storage_class = type("Storage", (import_module(HASH).SessionStore.storage_class,), {})  # hides the place

    monkeypatch.setattr(engine_that_purges, "SessionStore", Store)
    settings.GSESSION = {"ENGINES": {Store.__module__: {"hash_ids": hash_ids}, HASH: {"hash_ids": hash_ids}}}
    keys = sessions(HASH, 1)
    assert "which keeps its sessions in the same place as" in str(fails(HASH, "tests.support.engine_that_purges"))
    assert numbers(HASH, keys) == [1]
    assert count(HASH) == 1


def test_a_source_has_to_be_named(site: None) -> None:
    with pytest.raises(CommandError, match="--from"):
        call_command("migrate_sessions")


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_a_batch_has_at_least_one_session(site: None, number: str) -> None:
    with pytest.raises(CommandError, match="--batch-size"):
        migrate(DB, HASH, f"--batch-size={number}")


# On a terminal.


def test_on_a_terminal_it_shows_a_progress_bar(site: None, tmp_path: Path) -> None:
    sessions(DJANGOS["file"], 1, 2)
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "GSESSION_TEST_FILE_PATH": str(tmp_path)}
    args = [sys.executable, "-m", "django", "migrate_sessions", "--from", DJANGOS["file"], "--to", FILE]
    printed, shown = run_on_terminal(args, environment)
    assert printed == said(DJANGOS["file"], FILE, "Moved 2 sessions") + "\n"
    assert b" 0/2 " in shown, "the command has counted the sessions, so the bar tells how long it takes"
    assert b" sessions/s]" in shown
