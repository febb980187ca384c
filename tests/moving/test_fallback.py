"""``GSESSION["FALLBACK_ENGINE"]``: a rollout signs nobody out, and brings no ended session back."""

import asyncio
import contextlib
import functools
import itertools
import threading
import unittest
from collections.abc import Callable, Iterator
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.backends.base import CreateError, UpdateError
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.test import TestCase, override_settings

from gsession_django import SessionMap, StorageUnavailable
from gsession_django.core.engine import engine_of
from gsession_django.core.reserved import UNFINISHED
from gsession_django.moving import steps
from gsession_django.moving.fallback import FallbackEngine
from gsession_django.moving.steps import MOVING_KEY
from tests.moving.test_migrate_sessions import TYPED, before_each
from tests.support import databases, engine_that_purges, processes
from tests.support.old_sites import OURS, new_session, store_of, stored
from tests.support.redis_servers import RedisServer
from tests.support.rollouts import (
    SOURCES,
    TARGETS,
    Mover,
    alias,
    at_source,
    at_target,
    command,
    first_touch,
    here,
    new_engine,
    old_release,
    rollout,
    signed_in,
    there,
)
from tests.support.sites import Visitor, is_503

THREADS, PROCESSES, TASKS = 8, 8, 50
STEPS = 8  # that a first touch takes

each_source = pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
PAIRS = {
    **{f"db-{name}": (SOURCES["db"], engine) for name, engine in TARGETS.items()},
    **{f"{name}-redis_hash": (SOURCES[name], TARGETS["redis_hash"]) for name in ("file", "cache")},
}

each_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
each_pair = pytest.mark.parametrize(("source", "target"), PAIRS.values(), ids=PAIRS)
either_mover = pytest.mark.parametrize("mover", [first_touch, command])


@pytest.fixture
def site(tmp_path: Path, source: str, target: str) -> Iterator[None]:
    with rollout(tmp_path, source, target):
        yield


@pytest.fixture
def db_to_redis(tmp_path: Path) -> Iterator[None]:
    with rollout(tmp_path, SOURCES["db"], TARGETS["redis_hash"]):
        yield


class EachItsLoop:
    """Replaces ``asyncio.Runner``: no event loop may outlive a change of the settings."""

    run = staticmethod(functools.partial(asyncio.run, debug=False))  # the debug mode is slow


@pytest.fixture(params=["sync", "async"])
def visitor_of(request: pytest.FixtureRequest) -> Callable[[str], Visitor]:
    """Make a visitor with a session key in the cookie, under WSGI and under ASGI."""
    runner: Any = None if request.param == "sync" else EachItsLoop()
    return lambda key: Visitor(runner, key)


def store(key: str | None = None) -> Any:
    return store_of(settings.SESSION_ENGINE, key)


def old_session(data: dict[str, Any], expiry: int | None = None) -> str:
    with old_release():
        return new_session(settings.SESSION_ENGINE, data, expiry)


def moved(key: str) -> dict[str, Any]:
    """Return the session in the new engine, and check that the old one has lost it."""
    assert at_source(key) is None
    found = at_target(key)
    assert found is not None
    return found[0]


# What a visitor sees.


@each_source
@each_target
@pytest.mark.usefixtures("site")
def test_a_visitor_stays_signed_in_with_the_cart_and_the_cookie(visitor_of: Callable[[str], Visitor]) -> None:
    key = signed_in(things=2)
    visitor = visitor_of(key)
    response = visitor.does("read")
    assert response.content == b"ada 2 2"
    assert not response.cookies
    assert not [name for name in moved(key) if name.startswith(MOVING_KEY)]
    assert visitor.sees("modify") == "ada 3 3"
    assert visitor.key == key


@each_source
@each_target
@pytest.mark.usefixtures("site")
def test_data_and_ttl_are_kept(source: str) -> None:
    data = {"text": "\N{SNOWMAN}", "list": [1, [2.5, None]], "cart": {"apple": {"n": 1}}, "large": "x" * 50_000}
    key = old_session(data, expiry=300)
    request = store(key)
    assert dict(request.items()) == {**data, "_session_expiry": 300}
    assert 295 < request.ttl_left <= 300
    assert moved(key) == {**data, "_session_expiry": 300}


@pytest.mark.usefixtures("db_to_redis")
def test_an_unknown_and_an_expired_key_are_unknown(visitor_of: Callable[[str], Visitor]) -> None:
    for key in ("an-unknown-key-of-somebody", old_session({"user": 1}, expiry=-5)):
        visitor = visitor_of(key)
        assert visitor.sees() == "nobody 0 0"
        assert at_target(key) is None
        assert not store().exists(key)


def test_it_is_for_the_engine_of_session_engine_alone(tmp_path: Path) -> None:
    with rollout(tmp_path, SOURCES["db"], TARGETS["redis_hash"]):
        key = old_session({"user": 1})
        for engine in (OURS["redis"], OURS["file"]):
            assert stored(engine, key) is None
            assert not isinstance(engine_of(type(store_of(engine))), FallbackEngine)
        assert stored(settings.SESSION_ENGINE, key) == {"user": 1}


@pytest.mark.usefixtures("db_to_redis")
def test_a_session_that_the_old_engine_cannot_read_is_empty_keeps_its_key_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = old_session({"user": 1})
    with override_settings(SECRET_KEY="another, so that no signature is right"):
        assert stored(settings.SESSION_ENGINE, key) == {}
    (record,) = caplog.records
    assert record.name == "django.security.SuspiciousSession"
    assert f"is not moved from {SOURCES['db']}, where it cannot be read" in record.message
    assert key not in record.message
    caplog.clear()
    assert stored(settings.SESSION_ENGINE, "an-unknown-key-of-somebody") is None
    assert stored(settings.SESSION_ENGINE, key) == {"user": 1}
    assert not caplog.records


def test_one_that_the_serializer_cannot_take_is_an_error_and_the_visitor_loses_nothing(
    tmp_path: Path, visitor_of: Callable[[str], Visitor]
) -> None:
    with rollout(tmp_path, SOURCES["cache"], TARGETS["redis_hash"]):
        with old_release():
            key = Visitor().signed_in(count=2).key
            old = store(key)
            old["price"] = Decimal("1.50")
            old.save()
        with pytest.raises(ImproperlyConfigured) as raised:
            stored(settings.SESSION_ENGINE, key)
        assert str(raised.value).startswith(
            f"A session cannot be moved from {SOURCES['cache']}: SESSION_SERIALIZER = "
            "'django.contrib.sessions.serializers.JSONSerializer' cannot take its values (decimal.Decimal). Set "
            f"SESSION_SERIALIZER = '{TYPED}'"
        )
        visitor = visitor_of(key)
        response = visitor.does("read")
        assert response.status_code == 500
        assert not response.cookies
        found = at_source(key)
        assert found is not None
        assert found["price"] == Decimal("1.50")
        assert at_target(key) is None
        with override_settings(SESSION_SERIALIZER=TYPED):
            assert visitor.sees("read") == "ada 2 2"
            assert moved(key)["price"] == Decimal("1.50")


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize("end", [lambda request: request.delete(), lambda request: request.cycle_key()])
def test_a_session_of_the_new_engine_is_not_overwritten(end: Callable[[Any], None]) -> None:
    key = old_session({"user": 1})
    with override_settings(GSESSION={}):
        at(key, {"user": 2}).save(must_create=True)
    assert stored(settings.SESSION_ENGINE, key) == {"user": 2}
    assert at_source(key) == {"user": 1}
    assert set(run_move(key).values()) == {steps.Outcome.SKIPPED}
    assert at_source(key) == {"user": 1}
    end(store(key))
    assert at_source(key) is None
    assert stored(settings.SESSION_ENGINE, key) is None


@pytest.mark.usefixtures("db_to_redis")
def test_one_that_was_copied_is_moved_by_removing_what_was_copied() -> None:
    key = old_session({"user": 1, "cart": {"apple": 1}})
    assert set(run_move(key, steps.copy).values()) == {steps.Outcome.MOVED}
    assert at_source(key) == {"user": 1, "cart": {"apple": 1}}
    assert set(run_move(key, steps.copy).values()) == {steps.Outcome.MOVED}
    assert set(run_move(key).values()) == {steps.Outcome.MOVED}
    assert moved(key) == {"user": 1, "cart": {"apple": 1}}


@pytest.mark.usefixtures("db_to_redis")
def test_one_that_is_in_use_since_another_has_moved_it_counts_as_moved() -> None:
    key = old_session({"user": 1})
    engine = new_engine()
    found = engine.fallback.read([key])[key]
    assert found is not None
    clears_and_saves(store(key))
    outcomes = engine.run(steps.move(engine, engine.fallback, {key: (engine.id_of(key), found)}, store()))
    assert outcomes == {key: steps.Outcome.MOVED}
    assert moved(key) == {"new": 1}


def at(key: str, data: dict[str, Any]) -> Any:
    """Return a session with this data that has not been stored yet, under a given key."""
    session = store()
    session.update(data)
    session._session_key = key
    return session


def run_move(key: str, move: Any = steps.move) -> Any:
    engine = new_engine()
    source = engine.fallback
    batch = {ref: (engine.id_of(key), found) for ref, found in source.read([source.ref_of(key)]).items()}
    return engine.run(move(engine, source, batch, store()))


# What else a request does first.


def does_nothing(request: Any) -> None:
    request.save()


def asks_if_it_exists(request: Any) -> None:
    assert request.exists(request.session_key)


def clears_and_saves(request: Any) -> None:
    request.clear()
    request["new"] = 1
    request.save()


def cycles(request: Any) -> None:
    request.cycle_key()
    request.save()


def clears_and_cycles(request: Any) -> None:
    request.clear()
    request["new"] = 1
    request.cycle_key()
    request.save()


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize("act", [does_nothing, asks_if_it_exists, clears_and_saves, cycles, clears_and_cycles])
def test_a_session_is_moved_whatever_a_request_does_first(act: Callable[[Any], None]) -> None:
    key = old_session({"user": 1, "large": "x" * 50_000})
    request = store(key)
    act(request)
    found = moved(request.session_key)
    clears = act in (clears_and_saves, clears_and_cycles)
    assert found == ({"new": 1} if clears else {"user": 1, "large": "x" * 50_000})
    if act in (cycles, clears_and_cycles):
        assert request.session_key != key
        assert stored(settings.SESSION_ENGINE, key) is None


@pytest.mark.usefixtures("db_to_redis")
def test_a_key_that_the_old_engine_has_is_taken() -> None:
    key = old_session({"user": 1})
    with pytest.raises(CreateError):
        at(key, {"user": 2}).save(must_create=True)
    assert stored(settings.SESSION_ENGINE, key) == {"user": 1}
    with pytest.raises(CreateError):  # the new one has it now
        at(key, {"user": 2}).save(must_create=True)
    at("a-key-that-nobody-has", {"user": 3}).save(must_create=True)
    assert stored(settings.SESSION_ENGINE, "a-key-that-nobody-has") == {"user": 3}


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize("end", ["flush", "delete"])
@pytest.mark.parametrize("loads", [True, False])
def test_a_session_that_is_ended_is_so_in_both_engines(end: str, loads: bool) -> None:
    key = old_session({"user": 1})
    request = store(key)
    if loads:
        assert request["user"] == 1
    getattr(request, end)()
    assert at_source(key) is None
    assert at_target(key) is None
    assert stored(settings.SESSION_ENGINE, key) is None


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize(("end", "call"), [("flush", "remove_all"), ("delete", "remove_all"), ("cycle_key", "move")])
def test_it_is_so_in_the_old_engine_first(monkeypatch: pytest.MonkeyPatch, end: str, call: str) -> None:
    """Otherwise a kill in between would leave an ended session in the old engine."""
    key = old_session({"user": 1})
    run_move(key, steps.copy)
    request, left = store(key), []
    assert request["user"] == 1
    before_each(monkeypatch, settings.SESSION_ENGINE, call, lambda calls: left.append((at_source(key), at_target(key))))
    getattr(request, end)()
    ((source, target), *_) = left
    assert source is None
    assert target is not None


@pytest.mark.usefixtures("db_to_redis")
def test_the_async_methods_do_the_same() -> None:
    async def visits(key: str) -> None:
        assert await store(key).aexists(key)
        request = store(key)
        request.clear()
        await request.aset("new", 1)
        await request.asave()
        assert await store(key).aget("new") == 1
        with pytest.raises(CreateError):
            await at(key, {"user": 2}).asave(must_create=True)
        request = store(key)
        await request.acycle_key()
        assert await store(key).aget("new") is None
        await request.aflush()

    key = old_session({"user": 1})
    asyncio.run(visits(key))
    assert at_source(key) is None
    key = old_session({"user": 1})
    asyncio.run(store(key).adelete())
    assert at_source(key) is None
    assert stored(settings.SESSION_ENGINE, key) is None


# Many at once.


def adds(request: Any, number: int) -> None:
    request["cart"][f"thing {number}"] = number
    request[f"own {number}"] = number
    request.save()


async def aadds(key: str, number: int) -> None:
    request = store(key)
    cart = await request.aget("cart")
    cart[f"thing {number}"] = number
    await request.aset(f"own {number}", number)
    await request.asave()


def all_added(count: int) -> dict[str, Any]:
    own = {f"own {number}": number for number in range(count)}
    return {"user": 1, "cart": {f"thing {number}": number for number in range(count)}, **own}


@each_pair
@pytest.mark.usefixtures("site")
def test_requests_in_threads_that_all_come_first_lose_nothing() -> None:
    key = old_session({"user": 1, "cart": {}})
    barrier = threading.Barrier(THREADS, timeout=processes.TIMEOUT)

    def visits(number: int) -> None:
        request = store(key)
        barrier.wait()
        adds(request, number)

    those = [processes.promised(visits, number) for number in range(THREADS)]
    for one in those:
        one.result(processes.TIMEOUT)
    assert moved(key) == all_added(THREADS)


@each_pair
@pytest.mark.usefixtures("site")
def test_so_do_tasks() -> None:
    key = old_session({"user": 1, "cart": {}})

    async def visit() -> None:
        await asyncio.gather(*(aadds(key, number) for number in range(TASKS)))

    asyncio.run(visit(), debug=False)
    assert moved(key) == all_added(TASKS)


def visits_from_afar(parent: processes.Parent, number: int, where: Any, keys: list[str]) -> None:
    with there(*where):
        for key in keys:
            request = store(key)
            parent.meet()
            adds(request, number)
        parent.say("done")


@each_pair
def test_so_do_processes(tmp_path: Path, source: str, target: str) -> None:
    with rollout(tmp_path, source, target):
        keys = [old_session({"user": 1, "cart": {}}) for _ in range(3)]
        with processes.workers(tmp_path, PROCESSES, visits_from_afar, here(), keys) as those:
            for _ in keys:
                processes.let_them_meet(those)
            assert {one.hear() for one in those} == {"done"}
        for key in keys:
            assert moved(key) == all_added(PROCESSES)


# In the middle of another's move. (test_model.py tries all orders.)


@either_mover
@each_pair
@pytest.mark.usefixtures("site")
def test_who_comes_in_the_middle_of_a_move_completes_it(mover: Any) -> None:
    for number in range(STEPS):
        key = signed_in(2)
        other = Mover(mover, key)
        other.goes(number)
        assert Visitor(None, key).sees("modify") == "ada 3 3"
        other.goes()
        assert Visitor(None, key).sees("read") == "ada 3 3"
        assert not [name for name in moved(key) if name.startswith(MOVING_KEY)]
        found = at_target(key)
        assert found is not None
        assert found[1] > settings.SESSION_COOKIE_AGE - 60


@either_mover
@each_pair
@pytest.mark.usefixtures("site")
def test_who_signs_out_in_the_middle_of_a_move_stays_signed_out(mover: Any) -> None:
    for number in range(STEPS):
        key = signed_in()
        other = Mover(mover, key)
        other.goes(number)
        visitor = Visitor(None, key)
        assert visitor.does("sign_out").content == b"nobody 0 0"
        assert visitor.key == ""
        late = Mover(mover, key)
        for one in (other, late):
            one.goes()
            assert Visitor(None, key).sees() == "nobody 0 0"
        assert at_source(key) is None
        assert at_target(key) is None


@either_mover
@each_pair
@pytest.mark.usefixtures("site")
def test_a_key_that_is_given_up_in_the_middle_of_a_move_stays_so(mover: Any) -> None:
    for number in range(STEPS):
        key = signed_in(2)
        other = Mover(mover, key)
        other.goes(number)
        visitor = Visitor(None, key)
        assert visitor.sees("cycle") == "ada 3 3"
        other.goes()
        assert Visitor(None, key).sees() == "nobody 0 0"
        assert visitor.key not in ("", key)
        assert visitor.sees("read") == "ada 3 3"


@pytest.mark.usefixtures("db_to_redis")
def test_a_session_that_is_cleared_by_who_did_not_see_it_end_does_not_come_back() -> None:
    key = old_session({"user": 1})
    late = Mover(command, key)
    late.goes(1)  # it has read the session
    request = store(key)
    assert request["user"] == 1
    store(key).flush()
    late.goes(1)  # it makes a copy
    request.clear()
    request["new"] = 1
    with contextlib.suppress(UpdateError):
        request.save()
    late.goes()
    assert stored(settings.SESSION_ENGINE, key) is None
    assert at_target(key) is None


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize("end", ["flush", "cycle_key"])
def test_a_session_that_ends_in_a_transaction_is_not_moved_by_who_does_not_see_that_yet(end: str) -> None:
    """Also if a callback of the site raises after the commit: then Django calls no later callback."""

    def fail() -> None:
        raise LookupError

    key = old_session({"user": 1})
    with contextlib.suppress(LookupError), transaction.atomic(using=alias()):
        transaction.on_commit(fail, using=alias())
        request = store(key)
        assert request["user"] == 1
        getattr(request, end)()
        other = Mover(command, key)
        # A thread has a connection of its own, which sees the session. It gets as far as the removal.
        assert processes.promised(other.goes, 4).result(processes.TIMEOUT)
        assert at_target(key) is not None
    processes.promised(other.goes).result(processes.TIMEOUT)
    assert stored(settings.SESSION_ENGINE, key) is None
    assert (at_source(key), at_target(key)) == (None, None)


@pytest.mark.usefixtures("db_to_redis")
def test_in_a_testcase_of_djangos_no_callback_is_listed_that_the_site_did_not_register() -> None:
    key = old_session({"user": 1})

    class Case(TestCase):
        databases = {alias()}

        def test(self) -> None:
            transaction.on_commit(list, using=alias())
            with self.captureOnCommitCallbacks(using=alias()) as callbacks:
                store(key).flush()
            self.assertEqual(callbacks, [])

    result = unittest.TestResult()
    Case.setUpClass()
    try:
        Case("test")(result)
    finally:
        Case.tearDownClass()
        Case.doClassCleanups()
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert result.testsRun == 1


def begin_again(key: str) -> Any:
    request = store(key)
    request.save(must_create=True)
    request["new"] = 1
    request.save()
    return request


@pytest.mark.usefixtures("db_to_redis")
@pytest.mark.parametrize("rolls_back", [False, True])
def test_one_that_begins_under_its_key_in_the_same_transaction_stays(rolls_back: bool) -> None:
    """Also if a savepoint is rolled back: Redis does not take part in it."""
    key = old_session({"user": 1})
    with transaction.atomic(using=alias()):
        store(key).delete()
        with transaction.atomic(using=alias()):
            begin_again(key)
            transaction.set_rollback(rolls_back, alias())
    assert moved(key) == {"new": 1}


@pytest.mark.usefixtures("db_to_redis")
def test_one_that_ends_again_in_the_same_transaction_does_not() -> None:
    key = old_session({"user": 1})
    late = Mover(command, key)
    late.goes(1)  # it has read the session
    with transaction.atomic(using=alias()):
        store(key).delete()
        begin_again(key)
        store(key).delete()
        late.goes(1)  # it makes a copy
        assert at_target(key) is not None
    assert (at_source(key), at_target(key)) == (None, None)


@pytest.mark.parametrize("then", ["nothing", "undone", "saved again"])
def test_where_the_new_engine_is_part_of_the_transaction_only_what_is_committed_stays(
    tmp_path: Path, then: str
) -> None:
    with rollout(tmp_path, SOURCES["db"], OURS["database"], kind="postgresql"):
        given = {**settings.GSESSION, "ENGINES": {OURS["database"]: {"using": alias()}}}
        with override_settings(GSESSION=given):
            key = old_session({"user": 1})
            with transaction.atomic(using=alias()):
                begin_again("a-key-of-the-sites-own")
                store(key).delete()
                with transaction.atomic(using=alias()) if then != "nothing" else contextlib.nullcontext():
                    request = begin_again(key)
                    transaction.set_rollback(then != "nothing", alias())
                if then == "saved again":
                    request.save()
                other = Mover(command, key)
                if then == "undone":  # otherwise the database would make it wait
                    assert processes.promised(other.goes, 4).result(processes.TIMEOUT)
                    assert at_target(key) is not None
            processes.promised(other.goes).result(processes.TIMEOUT)
            assert at_source(key) is None
            assert at_target(key) is None if then == "undone" else moved(key) == {"new": 1}


def test_nor_does_a_transaction_that_shows_what_has_ended_go_on_for_ever(tmp_path: Path) -> None:
    """Under REPEATABLE READ, MariaDB reads the session as it was at the begin, and writes to it as it is now."""
    statements = itertools.count()

    def limited(execute: Any, *args: Any) -> Any:
        assert next(statements) < 100
        return execute(*args)

    with rollout(tmp_path, SOURCES["db"], OURS["database"], kind="mariadb"):
        given = {**settings.GSESSION, "ENGINES": {OURS["database"]: {"using": alias()}}}
        with override_settings(GSESSION=given):
            key = old_session({"user": 1})
            Mover(command, key).goes(2)
            with connections[alias()].cursor() as cursor:
                cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            with transaction.atomic(using=alias()):
                assert at_target(key) is not None
                processes.promised(store(key).flush).result(processes.TIMEOUT)
                with connections[alias()].execute_wrapper(limited):
                    assert stored(settings.SESSION_ENGINE, key) is None
            assert (at_source(key), at_target(key)) == (None, None)


@pytest.mark.parametrize("kind", databases.KINDS)
@pytest.mark.parametrize("deed", ["set", "touch", "cycle_key"])
def test_a_session_that_was_moved_in_a_transaction_that_is_rolled_back_is_moved_again(
    tmp_path: Path, kind: str, deed: str
) -> None:
    with rollout(tmp_path, SOURCES["db"], OURS["database"], kind=kind):
        given = {**settings.GSESSION, "ENGINES": {OURS["database"]: {"using": alias()}}}
        with override_settings(GSESSION=given):
            key = old_session({"user": 1})
            request = store(key)
            with transaction.atomic(using=alias()):
                assert request["user"] == 1
                if deed == "cycle_key":
                    request.cycle_key()
                transaction.set_rollback(True, alias())
            assert (at_source(key), at_target(key)) == ({"user": 1}, None)
            request.modified = True
            if deed == "set":
                request["new"] = 1
            request.save()
            assert moved(request.session_key) == {"user": 1, **({"new": 1} if deed == "set" else {})}
            assert deed != "cycle_key" or (at_source(key), at_target(key)) == (None, None)


# Killed.


def is_killed(parent: processes.Parent, where: Any, keys: list[str], mover: Any) -> None:
    with there(*where):
        for number, key in enumerate(keys):
            Mover(mover, key).goes(number)
        parent.meet()


@either_mover
@each_pair
def test_who_comes_after_one_that_was_killed_completes_the_move(
    tmp_path: Path, source: str, target: str, mover: Any
) -> None:
    with rollout(tmp_path, source, target):
        keys = [signed_in(2) for _ in range(STEPS)]
        ended = [signed_in(2) for _ in range(STEPS)]
        for those in (keys, ended):
            with processes.Worker(tmp_path, is_killed, here(), those, mover) as worker:
                worker.hear()
                worker.kill()
        for key in keys:
            assert Visitor(None, key).sees("modify") == "ada 3 3"
            assert not [name for name in moved(key) if name.startswith(MOVING_KEY)]
        for key in ended:
            Visitor(None, key).does("sign_out")
            assert Visitor(None, key).sees() == "nobody 0 0"
            assert (at_source(key), at_target(key)) == (None, None)


def goes_on_visiting(parent: processes.Parent, where: Any, keys: list[str]) -> None:
    with there(*where):
        for key in keys:
            request = store(key)
            request["seen"] = True
            request.save()
            parent.say()


@pytest.mark.usefixtures("db_to_redis")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    keys = [old_session({"number": number}) for number in range(100)]
    for first in range(0, 100, 10):
        those = keys[first : first + 10]
        with processes.Worker(tmp_path, goes_on_visiting, here(), those) as worker:
            for _ in range(1 + first // 12):
                worker.hear()
            worker.kill()
    for number, key in enumerate(keys):
        assert store(key)["number"] == number
        assert moved(key).keys() <= {"number", "seen"}


# The old engine cannot be reached.


def test_an_outage_of_the_old_engine_signs_nobody_out(
    tmp_path: Path, visitor_of: Callable[[str], Visitor], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        RedisServer(appendonly="yes") as server,
        rollout(tmp_path, SOURCES["cache"], TARGETS["file"], url=server.url()),
    ):
        keys = [signed_in() for _ in range(4)]
        has_moved = visitor_of(keys[0])
        has_moved.does("read")
        server.kill()
        assert has_moved.sees("modify") == "ada 3 3"
        for key, what in zip(keys[1:], ["read", "modify", "sign_out"], strict=True):
            visitor = visitor_of(key)
            response = visitor.does(what)
            assert is_503(response)
            assert not response.cookies
            assert at_target(key) is None
        assert is_503(has_moved.does("sign_out"))
        assert "cache" in caplog.text
        server.restart()
        for key in keys[1:]:
            assert visitor_of(key).sees("read") == "ada 2 2"
        assert has_moved.sees("read") == "ada 3 3"


def test_a_move_that_an_outage_of_the_old_engine_breaks_off_is_completed_later(tmp_path: Path) -> None:
    with (
        RedisServer(appendonly="yes") as server,
        rollout(tmp_path, SOURCES["cache"], TARGETS["file"], url=server.url()),
    ):
        for number in (2, 4):  # the calls of its present() and remove()
            key = signed_in()
            other = Mover(first_touch, key)
            other.goes(1 + number)
            server.kill()
            with pytest.raises(StorageUnavailable):
                other.goes()
            with pytest.raises(StorageUnavailable):
                store(key).load()
            server.restart()
            assert Visitor(None, key).sees("read") == "ada 2 2"
            assert not [name for name in moved(key) if name.startswith(MOVING_KEY)]


def test_a_slow_old_engine_does_not_block_the_event_loop(tmp_path: Path) -> None:
    async def visit(key: str, server: RedisServer) -> None:
        request = store(key)
        server.pause()
        try:
            loading = asyncio.ensure_future(request.aget("user"))
            for _ in range(1000):  # a blocked loop would wait for the old engine here
                await asyncio.sleep(0)
            assert not loading.done()
        finally:
            server.resume()
        assert await loading == 1

    with (
        RedisServer() as server,
        rollout(tmp_path, SOURCES["cache"], "gsession_django.backends.memory", url=server.url()),
    ):
        key = old_session({"user": 1})
        asyncio.run(visit(key, server))


# What nobody sees.


def moving_session(state: str, number: int = 0) -> str:
    """Create a session whose move has begun and is not complete. Return its key."""
    engine, key = engine_of(type(store())), f"a-key-of-somebody-{number}"
    data = {"user": 1, "cart": {"apple": 1}, "large": "x" * 50_000, f"{MOVING_KEY}0123": state}
    assert engine_of(type(store())).storage.create(engine.id_of(key), SessionMap(data), 1000)
    return key


@pytest.mark.parametrize("target", ["memory", "database", *TARGETS])
def test_without_the_setting_what_says_that_a_session_is_moved_is_not_seen(tmp_path: Path, target: str) -> None:
    with rollout(tmp_path, SOURCES["db"], f"gsession_django.backends.{target}"):
        using = {OURS["database"]: {"using": alias()}}
        with override_settings(GSESSION={"ENGINES": using}):
            key = moving_session(steps.CERTAIN)
            for names in (store(key).keys(), dict(store(key).items()), store(key)._session):
                assert sorted(names) == ["cart", "large", "user"]
            request = store(key)
            assert len(request.keys()) == 3
            assert f"{MOVING_KEY}0123" not in request
            request["cart"]["pear"] = 1
            request.save()
            assert store(key)["cart"] == {"apple": 1, "pear": 1}
            assert stored(settings.SESSION_ENGINE, moving_session(UNFINISHED, 1)) is None


def test_nor_where_sessions_are_fetched_key_by_key(tmp_path: Path) -> None:
    with rollout(tmp_path, SOURCES["db"], "tests.support.engine_by_keys"):
        key = old_session({"user": 1, "cart": {"apple": 1}})
        engine = engine_of(type(store()))
        session = SessionMap({"user": 1, "cart": {"apple": 1}, f"{MOVING_KEY}0123": UNFINISHED})
        assert engine.storage.create(engine.id_of(key), session, 1000)
        request = store(key)
        assert sorted(request.keys()) == ["cart", "user"]
        request["cart"]["pear"] = 1
        request.save()
        assert engine.storage.get_map(engine.id_of(key)) == {"user": 1, "cart": {"apple": 1, "pear": 1}}
        with override_settings(GSESSION={**settings.GSESSION, "FALLBACK_ENGINE": None}):
            session = SessionMap({"user": 1, f"{MOVING_KEY}0123": steps.CERTAIN})
            engine = engine_of(type(store()))
            assert engine.storage.create(engine.id_of("a-key-of-somebody"), session, 1000)
            assert list(store("a-key-of-somebody").keys()) == ["user"]


# The settings.


@pytest.mark.parametrize(
    "value",
    [
        *("no.such.engine", "os.path", "django.contrib.sessions.backends.signed_cookies", 5),
        "gsession_django.backends.memory",
    ],
)
def test_a_fallback_that_sessions_cannot_be_moved_from(tmp_path: Path, value: Any) -> None:
    with rollout(tmp_path, value, TARGETS["file"]):
        assert checks() == {"gsession_django.E018": f'GSESSION["FALLBACK_ENGINE"] = {value!r} cannot be used. '[:45]}


def test_a_fallback_in_a_cache_that_sessions_cannot_be_moved_from(tmp_path: Path) -> None:
    with rollout(tmp_path, SOURCES["cache"], TARGETS["file"], SESSION_CACHE_ALIAS="default"):
        assert checks().keys() == {"gsession_django.E018"}


def test_a_fallback_to_the_same_engine(tmp_path: Path) -> None:
    with rollout(tmp_path, TARGETS["file"], TARGETS["file"]):
        assert checks() == {"gsession_django.E019": f'GSESSION["FALLBACK_ENGINE"] names {TARGETS["file"]!r}'[:45]}
        with pytest.raises(ImproperlyConfigured, match="in the same place"):
            store("some-session-key").load()


def test_a_fallback_to_another_name_of_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """cycle_key() would remove the session here along with the source's, and nobody could sign in."""

    class Store(import_module(TARGETS["file"]).SessionStore):  # type: ignore[misc]
        __module__ = engine_that_purges.__name__

    monkeypatch.setattr(engine_that_purges, "SessionStore", Store)
    given = {"FALLBACK_ENGINE": engine_that_purges.__name__}
    with rollout(tmp_path, given["FALLBACK_ENGINE"], TARGETS["file"]):
        assert checks().keys() == {"gsession_django.E019"}
        with pytest.raises(ImproperlyConfigured, match="in the same place"):
            store("some-session-key").load()
        options = {given["FALLBACK_ENGINE"]: {"hash_ids": False}}  # gives a session another id there
        with override_settings(GSESSION={**given, "ENGINES": options}):
            assert checks() == {}
            assert stored(settings.SESSION_ENGINE, "some-session-key") is None


@pytest.mark.parametrize(
    ("target", "lacking"),
    [
        ("django.contrib.sessions.backends.file", "it has no create() and no apply()"),
        ("tests.support.engine_that_keeps_pairs", "it has no apply()"),
        ("gsession_django.backends.memory", "they would end with it"),
    ],
)
def test_a_fallback_for_an_engine_that_sessions_cannot_be_moved_to(tmp_path: Path, target: str, lacking: str) -> None:
    with rollout(tmp_path, SOURCES["db"], target):
        assert checks() == {"gsession_django.E020": 'GSESSION["FALLBACK_ENGINE"] cannot move sessions to'[:45]}
        (message,) = [message.msg for message in run_checks() if message.id == "gsession_django.E020"]
        assert message.endswith(f"{lacking}.")


def test_a_storage_that_lacks_what_a_move_takes_says_so(tmp_path: Path) -> None:
    with rollout(tmp_path, SOURCES["db"], "tests.support.engine_that_keeps_pairs"):
        key = old_session({"user": 1})
        with pytest.raises(ImproperlyConfigured, match=r"needs create\(\) and apply\(\), and has no apply\(\)"):
            store(key).load()
        assert at_source(key) == {"user": 1}


def test_a_fallback_that_is_in_order(tmp_path: Path) -> None:
    for source in SOURCES.values():
        with rollout(tmp_path, source, TARGETS["redis_hash"]):
            assert checks() == {}


def checks() -> dict[str | None, str]:
    """Return the beginning of each message about the fallback, by id."""
    return {message.id: message.msg[:45] for message in run_checks() if "FALLBACK_ENGINE" in message.msg}
