"""The memory engine: bounded, isolated, safe between threads, and expiring without a thread."""

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import SyncToAsync
from django.core.checks import run_checks
from django.test.utils import override_settings

from gsession_django import SessionMap, SessionStore, Storage
from gsession_django.backends import memory
from tests.support.clock import Clock, moved_clock
from tests.support.engines import engine, new_session, stored
from tests.support.processes import TIMEOUT, promised
from tests.support.sites import AUTHENTICATION, OURS, Visitor, settings_of_the_site


@pytest.fixture
def clock() -> Iterator[Clock]:
    with moved_clock() as found:
        yield found


@pytest.fixture
def store_class(tmp_path: Path, clock: Clock) -> Iterator[type[SessionStore]]:
    with engine("memory", tmp_path, max_sessions=3) as found:
        yield found


@pytest.fixture
def storage(store_class: type[SessionStore]) -> Storage:
    return store_class.get_storage()


def make(storage: Storage, *names: str, ttl: int = 60) -> None:
    for name in names:
        assert storage.create(name, SessionMap({"name": name}), ttl)


def live(storage: Storage) -> set[str]:
    return set(storage.ids())


# The number of sessions.


def test_beyond_max_sessions_the_oldest_goes(storage: Storage) -> None:
    make(storage, "a", "b", "c", "d")
    assert live(storage) == {"b", "c", "d"}
    make(storage, "e", "f")
    assert live(storage) == {"d", "e", "f"}


def test_reading_a_session_is_using_it(storage: Storage) -> None:
    make(storage, "a", "b", "c")
    storage.get_session("a", 60)
    make(storage, "d")
    assert live(storage) == {"a", "c", "d"}


def test_touching_a_session_is_using_it(storage: Storage) -> None:
    make(storage, "a", "b", "c")
    storage.update_ttl("a", 60)
    make(storage, "d")
    assert live(storage) == {"a", "c", "d"}


def test_saving_a_session_is_using_it(storage: Storage) -> None:
    make(storage, "a", "b", "c")
    storage.apply("a", SessionMap({"name": "a", "more": 1}), 60)
    make(storage, "d")
    assert live(storage) == {"a", "c", "d"}


def test_a_session_under_a_new_id_still_counts_as_one(storage: Storage) -> None:
    make(storage, "a", "b", "c")
    assert storage.move("a", "d", 60)
    assert live(storage) == {"b", "c", "d"}
    make(storage, "e")
    assert live(storage) == {"c", "d", "e"}


def test_saving_and_touching_stored_sessions_drops_none(storage: Storage) -> None:
    make(storage, "a", "b", "c")
    for _ in range(10):
        for name in "abc":
            held = storage.get_session(name, 60)
            assert isinstance(held, SessionMap)
            held["more"] = held.get("more", 0) + 1
            assert storage.apply(name, held, 60)
            assert storage.update_ttl(name, 60)
    assert live(storage) == {"a", "b", "c"}


def test_a_dropped_session_is_unknown(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"key": 1})
    for _ in range(3):
        new_session(store_class, {"key": 2})
    assert stored(store_class, key) is None
    assert not store_class().exists(key)


def test_a_hundred_thousand_sessions_fit_by_default() -> None:
    storage = memory.MemoryStorage()
    for number in range(100_001):
        storage.create(str(number), SessionMap({}), 60)
    assert len(list(storage.ids())) == 100_000
    assert not storage.exists("0")
    assert storage.exists("1")


def test_max_sessions_is_an_option_of_the_setting(tmp_path: Path) -> None:
    with engine("memory", tmp_path, max_sessions=1) as store_class:
        first, second = (new_session(store_class, {"key": 1}) for _ in range(2))
        assert stored(store_class, first) is None
        assert stored(store_class, second) == {"key": 1}


# Expiry.


def test_a_session_expires_on_time(storage: Storage, clock: Clock) -> None:
    make(storage, "a", ttl=10)
    clock.offset = 9
    assert storage.exists("a")
    clock.offset = 10.1
    assert live(storage) == set()
    assert not storage.exists("a")
    assert storage.get_session("a", 60) is None
    assert storage.update_ttl("a", 60) is False
    assert storage.apply("a", SessionMap({}), 60) is False
    assert storage.move("a", "b", 60) is False


def test_nothing_runs_in_the_background(tmp_path: Path) -> None:
    before = threading.enumerate()
    with engine("memory", tmp_path) as store_class, mock.patch.object(threading.Thread, "start") as start:
        store = store_class(new_session(store_class, {"key": 1}))
        store["key"] = 2
        store.save()
        store_class.clear_expired()
    start.assert_not_called()
    assert threading.enumerate() == before


def test_expired_sessions_make_room_for_new_ones(tmp_path: Path, clock: Clock) -> None:
    storage = memory.MemoryStorage(max_sessions=1000)
    for number in range(500):
        storage.create(f"old {number}", SessionMap({}), 10)
    clock.offset = 11
    for number in range(500):
        storage.create(f"new {number}", SessionMap({}), 60)
    assert sum(storage.purge(1000)) == 0, "the storage still kept an expired session"
    assert len(live(storage)) == 500


def test_no_operation_brings_an_expired_session_back(storage: Storage, clock: Clock) -> None:
    make(storage, "a", ttl=10)
    held = storage.get_session("a", 60)
    assert isinstance(held, SessionMap)
    clock.offset = 11
    held["key"] = 1
    assert storage.apply("a", held, 60) is False
    make(storage, "a")
    assert dict(storage.get_session("a", 60) or {}) == {"name": "a"}


def test_a_purge_spares_a_session_created_again_while_it_runs(storage: Storage, clock: Clock) -> None:
    make(storage, "a", ttl=10)
    make(storage, "b", ttl=10)
    make(storage, "c", ttl=100)
    clock.offset = 11
    assert list(storage.purge(1, dry_run=True)) == [1, 1, 0]
    steps = storage.purge(1)
    assert next(steps) == 1
    make(storage, "b")  # created again under the same id, between two steps
    storage.remove_all("c")
    assert sum(steps) == 0
    assert live(storage) == {"b"}


# Nobody else can change a stored session.


def test_no_two_requests_share_an_object(store_class: type[SessionStore]) -> None:
    cart: dict[str, Any] = {"apple": {"count": 1}, "list": [1]}
    key = new_session(store_class, {"cart": cart})
    cart["apple"]["count"] = 5
    one, other = store_class(key), store_class(key)
    one["cart"]["apple"]["count"] = 2
    one["cart"]["list"].append(2)
    assert other["cart"] == {"apple": {"count": 1}, "list": [1]}
    one.save()
    one["cart"]["apple"]["count"] = 3
    assert stored(store_class, key) == {"cart": {"apple": {"count": 2}, "list": [1, 2]}}


def test_a_value_that_cannot_be_encoded_changes_nothing_and_holds_no_lock(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"key": 1})
    store = store_class(key)
    store["bad"] = object()
    with pytest.raises(TypeError):
        store.save()
    assert promised(stored, store_class, key).result(TIMEOUT) == {"key": 1}


def test_two_engines_in_one_process_keep_their_sessions_apart(store_class: type[SessionStore]) -> None:
    class Another(memory.SessionStore):
        pass

    key = new_session(store_class, {"key": 1})
    assert stored(Another, key) is None


# Threads.


def test_threads_that_do_everything_at_once_break_nothing() -> None:
    storage = memory.MemoryStorage(max_sessions=20)
    start = threading.Barrier(8, timeout=TIMEOUT)

    def work(seed: int) -> None:
        chance = random.Random(seed)
        start.wait()
        for _ in range(1500):
            session_id, other = (f"id {chance.randrange(40)}" for _ in range(2))
            match chance.randrange(8):
                case 0:
                    storage.create(session_id, SessionMap({"id": session_id, "items": {}}), chance.choice([0, 60]))
                case 1:
                    storage.remove_all(session_id)
                case 2:
                    storage.move(session_id, other, 60)
                case 3:
                    storage.update_ttl(session_id, chance.choice([-1, 60]))
                case 4:
                    assert sum(storage.purge(7)) >= 0
                case 5:
                    assert len(list(storage.ids())) <= 20
                case _:
                    session = storage.get_session(session_id, 60)
                    if session is not None:
                        assert session.keys() == {"id", "items"}
                        session["items"][str(seed)] = chance.random()
                        storage.apply(session_id, session, 60)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, seed) for seed in range(8)]:
            future.result(TIMEOUT)
    assert len(list(storage.ids())) <= 20


def test_one_of_many_threads_that_create_the_same_session_succeeds() -> None:
    storage = memory.MemoryStorage()
    start = threading.Barrier(8, timeout=TIMEOUT)

    def work(number: int) -> list[bool]:
        start.wait()
        return [storage.create(f"id {turn}", SessionMap({"by": number}), 60) for turn in range(200)]

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result(TIMEOUT) for future in [pool.submit(work, number) for number in range(8)]]
    assert [sum(turn) for turn in zip(*answers, strict=True)] == [1] * 200


def test_an_async_request_enters_no_thread(store_class: type[SessionStore]) -> None:
    async def request() -> None:
        store = store_class()
        await store.aset("key", 1)
        await store.asave()
        store = store_class(store.session_key)
        assert await store.aget("key") == 1
        await store.asave()
        await store.acycle_key()
        assert await store.aexists(store.session_key)
        await store.aflush()

    with mock.patch.object(SyncToAsync, "__call__", side_effect=AssertionError("it enters a thread")):
        asyncio.run(request())


# The check.


@pytest.mark.parametrize("debug", [True, False])
def test_a_check_warns_of_it_when_debug_is_off(store_class: type[SessionStore], debug: bool) -> None:
    with override_settings(DEBUG=debug):
        found = [message.id for message in run_checks(tags=["gsession_django"])]
    assert found == ([] if debug else ["gsession_django.W001"])


# Settings that a test overrides.


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    """Yield a visitor who has signed in to a site on the memory engine."""
    with override_settings(SESSION_ENGINE=memory.__name__, **settings_of_the_site([OURS, AUTHENTICATION])):
        yield Visitor().signed_in()


@pytest.mark.parametrize(
    "overridden",
    [
        {"SESSION_COOKIE_AGE": 100},
        {"SESSION_SAVE_EVERY_REQUEST": True},
        {"SESSION_EXPIRE_AT_BROWSER_CLOSE": True},
        {"SESSION_SERIALIZER": "django.core.signing.JSONSerializer"},
        {"SESSION_FILE_PATH": "/elsewhere"},
        {"CACHES": {}},
        {"GSESSION": {"TOUCH_INTERVAL": 0}},
        {"GSESSION": {"ENGINES": {"gsession_django.backends.file": {"fsync": True}}}},
        {"LANGUAGE_CODE": "fr"},
    ],
    ids=str,
)
def test_a_test_that_overrides_a_setting_signs_nobody_out(visitor: Visitor, overridden: dict[str, Any]) -> None:
    with override_settings(**overridden):
        assert visitor.sees("read") == "ada 1 1"
        assert visitor.sees("modify") == "ada 2 2"
    assert visitor.sees("read") == "ada 2 2"


def test_a_test_that_overrides_the_engine_signs_nobody_out_of_this_one(visitor: Visitor) -> None:
    with override_settings(SESSION_ENGINE="gsession_django.backends.file"):
        assert Visitor(key=visitor.key).sees() == "nobody 0 0"
    assert Visitor(key=visitor.key).sees("read") == "ada 1 1"


def test_different_options_create_another_storage(tmp_path: Path) -> None:
    with engine("memory", tmp_path, max_sessions=1) as store_class:
        key = new_session(store_class, {"key": 1})
        with engine("memory", tmp_path, max_sessions=2):
            assert stored(store_class, key) is None


def test_the_storage_stays_when_hash_ids_is_turned_off(tmp_path: Path) -> None:
    with engine("memory", tmp_path) as store_class:
        key = new_session(store_class, {"key": 1})
        with override_settings(GSESSION={"ENGINES": {memory.__name__: {"hash_ids": False}}}):
            assert stored(store_class, key) is None
        assert stored(store_class, key) == {"key": 1}


def test_a_forked_child_starts_anew_even_after_a_setting_has_changed(tmp_path: Path) -> None:
    with engine("memory", tmp_path) as store_class:
        key = new_session(store_class, {"key": 1})
        with override_settings(SESSION_COOKIE_AGE=100):
            if not (pid := os.fork()):
                code = 1
                try:
                    code = 0 if stored(store_class, key) is None else 2
                finally:
                    os._exit(code)
            _, status = os.waitpid(pid, 0)
    assert status == 0
