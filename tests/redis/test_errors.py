"""Refusals of the server that are not outages, and names under our prefix that are not sessions."""

import asyncio
import random
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from redis.exceptions import ResponseError

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_settings
from gsession_django.redis.client import RedisClient, alone
from gsession_django.redis.commands import Batch, Command, Script
from gsession_django.redis.settings import CacheEntry
from tests.support.engines import id_of, new_session, stored
from tests.support.redis_servers import RedisServer, ValkeyServer, settings_for, shared

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
KEY = "abcdefgh"
LARGE = "x" * 20_000


@contextmanager
def site(module: ModuleType, **options: Any) -> Iterator[tuple[type[SessionStore], str]]:
    """Yield the SessionStore of an engine, and its prefix."""
    prefix = options.setdefault("prefix", f"{random.getrandbits(64):x}:")
    with override_settings(**settings_for(module.__name__, shared().url(), **options)):
        yield module.SessionStore, prefix


def name_of(store_class: type[SessionStore], key: str) -> str:
    name: str = store_class.get_storage()._keys(id_of(store_class, key))[0]  # type: ignore[attr-defined]
    return name


# A key of another type.


@both_engines
def test_a_key_of_another_type_is_a_session_that_cannot_be_read(
    module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    async def visit() -> SessionStore:
        store = store_class(KEY)
        assert await store.aget("user") is None
        await store.aset("user", 2)
        await store.asave()
        return store

    def visit_without_await() -> SessionStore:
        store = store_class(KEY)
        assert store.get("user") is None
        assert store.session_key == KEY, "the cookie stays"
        store["user"] = 2
        store.save()
        return store

    with site(module) as (store_class, _), shared().client() as client:
        client.rpush(name_of(store_class, KEY), "a list")
        for use in (visit_without_await, lambda: asyncio.run(visit())):
            store = use()
            assert store.session_key != KEY
            assert stored(store_class, store.session_key) == {"user": 2}
        assert client.lrange(name_of(store_class, KEY), 0, -1) == [b"a list"]
        assert client.ttl(name_of(store_class, KEY)) == -1
    assert {record.name for record in caplog.records} == {"django.security.SuspiciousSession"}
    assert "WRONGTYPE" in caplog.text


@both_engines
def test_a_key_that_became_another_type_during_a_request_is_not_written(module: ModuleType) -> None:
    with site(module) as (store_class, _), shared().client() as client:
        key = new_session(store_class, {"user": 1})
        store = store_class(key)
        store["user"] = 2
        name = name_of(store_class, key)
        client.delete(name)
        client.rpush(name, "a list")
        store.save()
        assert client.lrange(name, 0, -1) == [b"a list"]
        assert store.session_key != key
        assert stored(store_class, store.session_key) == {"user": 2}


def test_large_values_of_another_type_leave_no_half_written_session() -> None:
    with site(redis_hash) as (store_class, _), shared().client() as client:
        key = new_session(store_class, {"user": 1})
        name = name_of(store_class, key)
        client.rpush(f"{name}:large", "a list")
        before = client.hgetall(name)
        store = store_class(key)
        store.update({"user": 2, "notes": LARGE})
        store.save()
        assert client.hgetall(name) == before
        assert stored(store_class, store.session_key) == {"user": 2, "notes": LARGE}


# Commands that a server never carries out.

NEVER: dict[str, Command] = {
    "an expiry that is out of range": ("EXPIRE", "any", str(10**16)),
    "an expiry that is no number": ("EXPIRE", "any", str(10**300)),
    "the same in a script": Script("return redis.call('EXPIRE', KEYS[1], ARGV[1])")(("any",), str(10**16)),
    "an error of Lua": Script("return KEYS[2] .. KEYS[1]")(("any",)),
    "a script that is none": Script("this is no Lua")(("any",)),
}


@pytest.mark.parametrize("command", NEVER.values(), ids=NEVER)
@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_a_wrong_command_is_not_an_outage(command: Command, program: str, request: pytest.FixtureRequest) -> None:
    server: RedisServer = shared() if program == "redis" else request.getfixturevalue("valkey")
    with override_settings(**settings_for(redis_engine.__name__, server.url())), server.client() as client:
        client.set("any", "thing", ex=60)
        ours = RedisClient(CacheEntry.of_sessions())
        with pytest.raises(ResponseError):
            ours.send(Batch(command, ("GET", "any")))
        assert ours.send(Batch(("GET", "any"))) == [b"thing"], "all replies were read"

        async def ask() -> None:
            with pytest.raises(ResponseError):
                await ours.acarry_out(alone(Batch(command, ("GET", "any"))))
            assert await ours.acarry_out(alone(Batch(("GET", "any")))) == [b"thing"]

        asyncio.run(ask())


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with ValkeyServer() as server:
        yield server


def test_a_refusal_for_now_is_an_outage_in_a_script_too() -> None:
    write = Batch(Script("return redis.call('SET', KEYS[1], 'value')")(("any",)))
    for program in (RedisServer, ValkeyServer):
        with (
            program(maxmemory="1", maxmemory_policy="noeviction") as server,
            override_settings(**settings_for(redis_engine.__name__, server.url())),
            pytest.raises(StorageUnavailable, match="maxmemory"),
        ):
            RedisClient(CacheEntry.of_sessions()).send(write)


# Names under our prefix.


@both_engines
def test_ids_skip_keys_that_are_not_sessions(module: ModuleType) -> None:
    with site(module) as (store_class, prefix), shared().client() as client:
        key = new_session(store_class, {"user": 1, "large": LARGE})
        before, after = (prefix, "") if module is redis_engine else (f"{{{prefix}", "}")
        client.rpush(f"{before}a-list-of-another{after}", "a list")
        put: Callable[[Any], Any] = (
            (lambda name: client.set(name, "value"))
            if module is redis_engine
            else (lambda name: client.hset(name, "field", "value"))
        )
        for other in ("short", "with a space", "moved:{abcdefgh}", "abcdefgh}:large", "é" * 8, ""):
            put(f"{before}{other}{after}")
        put(before.encode() + b"\xff\xfe not text" + after.encode())
        put(f"moved:{before}abcdefgh{after}")
        client.set(f"{prefix}a-string-of-another", 1) if module is redis_hash else client.hset(
            f"{prefix}a-hash-of-another", "field", "value"
        )
        assert list(store_class.get_storage().ids()) == [id_of(store_class, key)]


def test_ids_need_no_memory_that_grows_with_the_sessions() -> None:
    many = 20_000
    with site(redis_engine) as (store_class, prefix), shared().client() as client:
        ids = store_class.get_storage().ids()
        pipeline = client.pipeline(transaction=False)
        for number in range(many):
            pipeline.set(f"{prefix}{number:064x}", "{}", ex=600)
        pipeline.execute()
        del pipeline
        tracemalloc.start()
        try:
            assert sum(1 for _ in ids) >= many
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 1_000_000, "a set of these ids takes twice as much"


# Entries of CACHES that cannot be used.

BROKEN = {
    "a parser's name of old": ({"OPTIONS": {"PARSER_CLASS": "redis.connection.HiredisParser"}}, "'PARSER_CLASS'.*Hir"),
    "a pool that is not there": ({"OPTIONS": {"CONNECTION_POOL_CLASS": "no.such.Pool"}}, "'CONNECTION_POOL_CLASS'"),
    "a client that is not there": ({"OPTIONS": {"CLIENT_CLASS": "no.such.Client"}}, "'CLIENT_CLASS'"),
    "host:port:db": ({"LOCATION": "127.0.0.1:6379:1"}, "LOCATION"),
    "host:port:db by name": ({"LOCATION": "localhost:6379:1"}, "LOCATION"),
    "host:port": ({"LOCATION": "localhost:6379"}, "LOCATION"),
    "no password is quoted": ({"LOCATION": "xq7zk3@localhost:6379:1"}, "LOCATION"),
    "# in a password": ({"LOCATION": "redis://:xq7#zk3@localhost:6379/1"}, "LOCATION.*%23"),
    "# after figures": ({"LOCATION": "redis://:12#xq7zk3@localhost:6379/1"}, "LOCATION.*%23"),
    "# after a user": ({"LOCATION": "redis://ada:12#xq7zk3@localhost:6379/1"}, "LOCATION.*%23"),
    "# at a socket": ({"LOCATION": "unix://:xq7#zk3@/run/redis.sock"}, "LOCATION.*%23"),
    "/ in a password": ({"LOCATION": "redis://:12/xq7zk3@localhost:6379/1"}, "LOCATION.*%2F"),
    "? in a password": ({"LOCATION": "redis://:xq7?zk3@localhost:6379/1"}, "LOCATION.*%3F"),
    "[ in a password": ({"LOCATION": "redis://:xq7[zk3@localhost:6379/1"}, "LOCATION.*%5B"),
    "a node of a cluster": (
        {
            "LOCATION": ["redis://localhost:6379", "redis://:xq7#zk3@localhost:6380"],
            "OPTIONS": {"CLIENT_CLASS": "gsession_django.redis.cluster.ClusterClient"},
        },
        "LOCATION.*%23",
    ),
}


@pytest.mark.parametrize(("entry", "match"), BROKEN.values(), ids=BROKEN)
def test_an_entry_that_cannot_be_used_is_reported_without_its_password(entry: dict[str, Any], match: str) -> None:
    with override_settings(**settings_for(redis_engine.__name__, "redis://localhost/1", entry)):
        (message,) = check_settings()
        assert message.id == "gsession_django.E012"
        with pytest.raises(ImproperlyConfigured, match=f"CACHES\\['sessions'\\].*{match}") as raised:
            redis_engine.SessionStore(KEY).load()
    for text in (message.msg, "".join(traceback.format_exception(raised.value))):
        assert "xq7" not in text
        assert "zk3" not in text


@pytest.mark.parametrize(
    "url",
    [
        *("redis://localhost:6379/1#note", "redis://:6379/1", "redis://", "redis://ada:p%23a@localhost/1"),
        *("unix:///run/a@b.sock?db=1", "rediss://[::1]:6379/1?client_name=a@b", "redis://a:p@a@localhost/1"),
    ],
)
def test_a_location_that_works_is_not_refused(url: str) -> None:
    with override_settings(**settings_for(redis_engine.__name__, url)):
        assert check_settings() == []


def test_a_broken_location_of_another_entry_is_not_reported() -> None:
    settings = settings_for(redis_engine.__name__, shared().url(db=1))
    settings["CACHES"]["other"] = {**settings["CACHES"]["sessions"], "LOCATION": "redis://:xq7#zk3@localhost:6379/1"}
    with override_settings(**settings):
        assert check_settings() == []
