"""The lock of a session in the Redis engines: one holder at a time, on one server and in a cluster."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType

import pytest
from django.test import override_settings

from gsession_django import SessionMap
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.redis.commands import Batch
from gsession_django.redis.storage import BaseRedisStorage
from tests.support import redis_clusters
from tests.support.redis_sentinels import wait_until
from tests.support.redis_servers import settings_for, shared

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
SESSION = "some-session"


@contextmanager
def site(module: ModuleType, place: str) -> Iterator[BaseRedisStorage]:
    prefix = f"{random.getrandbits(64):x}:"
    if place == "cluster":
        settings = redis_clusters.cluster_settings(module.__name__, redis_clusters.shared().url(), prefix=prefix)
    else:
        settings = settings_for(module.__name__, shared().url(), prefix=prefix)
    with override_settings(**settings):
        storage = module.SessionStore.get_storage()
        assert isinstance(storage, BaseRedisStorage)
        yield storage


@pytest.fixture(params=["one server", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def milliseconds_left(storage: BaseRedisStorage) -> int:
    (left,) = storage.client.send(Batch(("PTTL", storage._key(f"lock/{SESSION}"))))
    return int(left)


@both_engines
def test_one_holder_at_a_time(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        assert storage.lock(SESSION, "one", 60)
        assert not storage.lock(SESSION, "other", 60)
        assert storage.lock("another-session", "other", 60)
        storage.unlock(SESSION, "one")
        assert storage.lock(SESSION, "other", 60)
        assert not storage.lock(SESSION, "one", 60)


@both_engines
def test_the_holder_renews_it(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        for seconds in (0.5, 60, 5):
            assert storage.lock(SESSION, "one", seconds)
            assert seconds * 1000 - 5000 < milliseconds_left(storage) <= seconds * 1000
        assert not storage.lock(SESSION, "other", 600)
        assert milliseconds_left(storage) <= 5000, "it is the holder's"


@both_engines
def test_it_is_free_after_its_time(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        assert storage.lock(SESSION, "one", 0.01)
        wait_until(lambda: storage.lock(SESSION, "other", 60), "the lock is free")
        assert not storage.lock(SESSION, "one", 60)
        storage.unlock(SESSION, "one")
        assert not storage.lock(SESSION, "one", 60), "who had it before frees nothing"


@pytest.mark.parametrize("seconds", [0, 0.000001, 1e-9])
def test_no_time_is_too_short(seconds: float, place: str) -> None:
    with site(redis_engine, place) as storage:
        assert storage.lock(SESSION, "one", seconds)
        assert milliseconds_left(storage) <= 1


@both_engines
def test_a_foreign_token_frees_nothing(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        storage.unlock(SESSION, "other")
        assert storage.lock(SESSION, "one", 60)
        for token in ("other", "", "on"):
            storage.unlock(SESSION, token)
            assert not storage.lock(SESSION, token, 60)


@both_engines
def test_others_read_and_write_the_session_still(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        assert storage.lock(SESSION, "one", 60)
        assert storage.create(SESSION, SessionMap({"key": 1}), 60)
        assert storage.get_session(SESSION, 60) == {"key": 1}
        storage.remove_all(SESSION)
        assert not storage.lock(SESSION, "other", 60), "it ends with its holder, and not with the session"


@both_engines
def test_of_many_threads_one_gets_it(module: ModuleType, place: str) -> None:
    with site(module, place) as storage, ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda number: storage.lock(SESSION, str(number), 60), range(40)))
        assert got.count(True) == 1


@both_engines
def test_the_async_twins_do_the_same(module: ModuleType, place: str) -> None:
    async def use() -> None:
        got = await asyncio.gather(*(storage.alock(SESSION, str(number), 60) for number in range(5)))
        assert got.count(True) == 1
        holder = str(got.index(True))
        assert await storage.alock(SESSION, holder, 60)
        await storage.aunlock(SESSION, "other")
        assert not await storage.alock(SESSION, "other", 60)
        await storage.aunlock(SESSION, holder)
        assert await storage.alock(SESSION, "other", 60)

    with site(module, place) as storage:
        asyncio.run(use())
