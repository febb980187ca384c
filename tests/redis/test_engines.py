"""The Redis engines, on a real server."""

import asyncio
import functools
import json
import logging
import random
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.test import SimpleTestCase, override_settings

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment, check_settings
from gsession_django.redis.client import RedisClient
from gsession_django.redis.commands import Batch
from gsession_django.redis.fields import MARK
from gsession_django.redis.steps import Steps
from gsession_django.redis.storage import BaseRedisStorage
from gsession_django.testing import StorageContract
from tests.support.engines import new_session, overlap
from tests.support.processes import Parent, let_them_meet, workers
from tests.support.proxies import Passed, Proxy, everything
from tests.support.redis_servers import LENT, RedisServer, connection_of, settings_for, shared

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
POOL_LENDS = {"OPTIONS": LENT}
# Tests that are not about time must not fail on a busy machine.
PATIENT = {"OPTIONS": {"SOCKET_CONNECT_TIMEOUT": 30, "SOCKET_TIMEOUT": 30}}
LARGE = "x" * 1_000_000


class RedisContract(StorageContract):
    module: ClassVar[ModuleType]
    query = "?protocol=3"
    entry: ClassVar[dict[str, Any] | None] = None

    def setUp(self) -> None:
        self.proxy = self.enterContext(Proxy(shared().port))
        settings = settings_for(self.module.__name__, self.proxy.url(self.query), self.entry)
        self.enterContext(override_settings(**settings))
        super().setUp()

    @contextmanager
    def outage(self) -> Iterator[None]:
        self.proxy.on_request = cut
        try:
            yield
        finally:
            self.proxy.on_request = everything


def cut(connection: int, data: bytes) -> Passed:
    return b"", True


class RedisTests(RedisContract, SimpleTestCase):
    module: ClassVar[ModuleType] = redis_engine
    store_class = redis_engine.SessionStore


class RedisHashTests(RedisContract, SimpleTestCase):
    module: ClassVar[ModuleType] = redis_hash
    store_class = redis_hash.SessionStore


class RedisHashOnLentConnectionsTests(RedisContract, SimpleTestCase):
    module: ClassVar[ModuleType] = redis_hash
    store_class = redis_hash.SessionStore
    query = "?protocol=2"
    entry = POOL_LENDS


@contextmanager
def site(
    module: ModuleType, server: RedisServer | None = None, entry: Any = None, **options: Any
) -> Iterator[type[SessionStore]]:
    """Yield the SessionStore of an engine with its own prefix."""
    entry = PATIENT if entry is None else entry
    options.setdefault("prefix", f"{random.getrandbits(64):x}:")
    with override_settings(**settings_for(module.__name__, (server or shared()).url(), entry, **options)):
        yield module.SessionStore


def visitor(store_class: type[SessionStore], **data: Any) -> str:
    return new_session(store_class, data)


def stored(store_class: type[SessionStore], key: str | None) -> dict[str, Any]:
    return dict(store_class(key).items())


def turns(store_class: type[SessionStore]) -> Callable[[], int]:
    """Count the batches from now on: each is one write and its replies."""
    connections, count = client_of(store_class)._way, 0
    # The object itself would make a cycle, and wait for the garbage collector.
    exchange = functools.partial(type(connections).exchange, weakref.proxy(connections))

    def counted(batch: Batch) -> Steps[list[Any]]:
        nonlocal count
        count += 1
        return exchange(batch)

    connections.exchange = counted  # type: ignore[method-assign]
    return lambda: count


def client_of(store_class: type[SessionStore]) -> RedisClient:
    storage = store_class.get_storage()
    assert isinstance(storage, BaseRedisStorage)
    return storage.client


# The stored session.


def test_a_session_is_the_json_object_that_goframe_stores() -> None:
    with site(redis_engine, prefix="go:", hash_ids=False) as store_class, shared().client() as client:
        key = visitor(store_class, user=1, name="Ada")
        assert client.get(f"go:{key}") == b'{"user":1,"name":"Ada"}'
        assert 0 < client.ttl(f"go:{key}") <= 14 * 24 * 3600
        client.set("go:written-by-go", '{"user":7,"price":1.0,"name":"José"}', ex=60)
        store = store_class("written-by-go")
        assert store["user"] == 7
        store["seen"] = True
        store.save()
        assert client.get("go:written-by-go") == b'{"user":7,"price":1.0,"name":"Jos\\u00e9","seen":true}'


@pytest.mark.parametrize("foreign", [b"[1, 2]", b"\x00garbage"], ids=["a list", "garbage"])
def test_data_that_is_not_a_session_is_unknown_and_logged(foreign: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with site(redis_engine, prefix="foreign:", hash_ids=False) as store_class, shared().client() as client:
        client.set("foreign:abcdefgh", foreign)
        assert stored(store_class, "abcdefgh") == {}
    assert [record.name for record in caplog.records] == ["django.security.SuspiciousSession"]


def test_key_prefix_comes_first() -> None:
    for module, expected in ((redis_engine, "site:one:{}"), (redis_hash, "site:{{one:{}}}")):
        with site(module, entry={"KEY_PREFIX": "site:"}, prefix="one:") as store_class, shared().client() as client:
            store = store_class(visitor(store_class, key=1))
            assert client.exists(expected.format(store.session_id))


def test_a_hash_writes_only_what_changed() -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        store = store_class(visitor(store_class, one=1, two=2))
        name = client.keys(f"*{store.session_id}*")[0]
        store["one"] = 10
        client.hset(name, "two", MARK + b"20")
        store.save()
        assert stored(store_class, store.session_key) == {"one": 10, "two": 20}


@pytest.mark.parametrize("key", ["", "ÿ", "\ud800", "_gsession", "_gsession_note", "a:large"])
def test_no_key_collides_with_the_bookkeeping(key: str) -> None:
    with site(redis_hash) as store_class:
        session_key = visitor(store_class, **{key: [1]})
        assert stored(store_class, session_key) == {} if key == "_gsession" else {key: [1]}


def test_a_session_may_have_thousands_of_keys() -> None:
    with site(redis_hash) as store_class:
        data = {f"key {number}": number for number in range(20_000)}
        store = store_class(visitor(store_class, **data))
        for name in list(data)[:15_000]:
            del store[name]
        store.update({f"new {number}": number for number in range(10_000)})
        store.save()
        assert len(stored(store_class, store.session_key)) == 15_000


# Large values.


def test_a_large_value_stays_on_the_server_until_it_is_asked_for() -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        key = visitor(store_class, user=1, large=LARGE)

        def sent() -> int:
            return int(client.info("stats")["total_net_output_bytes"])

        before = sent()
        store = store_class(key)
        assert store["user"] == 1
        store["user"] = 2
        store.save()
        assert sent() - before < 50_000
        assert store["large"] == LARGE
        assert stored(store_class, key) == {"user": 2, "large": LARGE}


def test_a_large_value_that_vanished_is_a_key_error() -> None:
    with site(redis_hash) as store_class:
        key = visitor(store_class, user=1, large=LARGE)
        store, other = store_class(key), store_class(key)
        assert store["user"] == 1
        del other["large"]
        other.save()
        with pytest.raises(KeyError):
            store["large"]


def test_values_grow_large_and_small_again() -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        key = visitor(store_class, cart={"apple": 1})
        for value in (LARGE, "small", {"notes": LARGE}, [1]):
            store = store_class(key)
            store["cart"] = value
            store.save()
            assert stored(store_class, key) == {"cart": value}
        assert len(client.keys(f"*{store.session_id}*")) == 1


def test_a_large_dict_merges() -> None:
    with site(redis_hash) as store_class:
        key = visitor(store_class, cart={"notes": LARGE})
        one, two = store_class(key), store_class(key)
        one["cart"]["one"], two["cart"]["two"] = 1, 2
        one.save()
        two.save()
        assert stored(store_class, key) == {"cart": {"notes": LARGE, "one": 1, "two": 2}}


def test_a_large_value_is_never_fetched_by_blocking_the_loop() -> None:
    async def use(key: str) -> None:
        store = store_class(key)
        assert await store.aget("user") == 1
        with pytest.raises(SynchronousOnlyOperation):
            store["large"]
        assert await store.aget("large") == LARGE

    with site(redis_hash) as store_class:
        asyncio.run(use(visitor(store_class, user=1, large=LARGE)))


def test_both_hashes_live_equally_long_and_move_together() -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        store = store_class(visitor(store_class, user=1, large=LARGE))
        changes: list[Callable[[], None]] = [
            lambda: store.set_expiry(50),
            lambda: store.update({"large": LARGE + "y"}),
            lambda: store.cycle_key(),
        ]
        for change in changes:
            change()
            store.save()
            ttls = [client.ttl(name) for name in client.keys(f"*{store.session_id}*")]
            assert len(ttls) == 2
            assert all(48 <= ttl <= 50 for ttl in ttls)
        session_id = store.session_id
        store.flush()
        assert not client.keys(f"*{session_id}*")


# Round trips.


def test_a_large_session_is_compared_by_its_stamp_and_stays_where_it_is() -> None:
    with site(redis_engine) as store_class, shared().client() as client:
        store = store_class(visitor(store_class, text="x" * 10_000))
        store["a"] = 1
        client.config_resetstat()
        store.save()
        calls = client.info("commandstats")
        assert calls["cmdstat_getrange"]["calls"] == 1
        assert "cmdstat_get" not in calls


@pytest.mark.parametrize("size", [10, 10_000])  # a large session is compared by its stamp
@both_engines
def test_round_trips_are_as_promised(module: ModuleType, size: int) -> None:
    with site(module) as store_class:
        visitor(store_class)  # connections and scripts are warm
        warm = store_class(visitor(store_class, text="x" * size))
        warm["b"] = {}
        warm.save()
        warm.modified = True
        warm.save()
        warm.cycle_key()
        count, last = turns(store_class), 0

        def since() -> int:
            nonlocal last
            last, before = count(), last
            return last - before

        key = visitor(store_class, cart={}, user=1, text="x" * size)
        assert since() == 1, "first save"
        store = store_class(key)
        store.get("user")
        assert since() == 1, "load"
        store["cart"]["apple"] = 1
        store["user"] = 2
        store.save()
        assert since() == 1, "save"
        store.modified = True
        store.save()
        assert since() == 1, "touch"
        other = store_class(key)
        other["cart"]["pear"] = 1
        store["cart"]["plum"] = 1
        store.save()
        since()
        other.save()
        assert since() == 2, "a conflict costs one more"
        store = store_class(key)
        store.get("user")
        since()
        store.cycle_key()
        store["user"] = 3
        store.save()
        assert since() == 2, "login, but for its load"
        store.delete()
        assert since() == 1, "delete"


# Overlapping requests.


def _write(parent: Parent, number: int, engine: str, url: str, prefix: str, key: str) -> None:
    with override_settings(**settings_for(engine, url, prefix=prefix)):
        store_class = {m.__name__: m for m in MODULES.values()}[engine].SessionStore
        for turn in range(10):
            store = store_class(key)
            store[f"{number}-{turn}"] = turn
            store["cart"][f"{number}-{turn}"] = turn
            parent.meet()
            store.save()
            parent.meet()


@both_engines
def test_eight_processes_lose_nothing(module: ModuleType, tmp_path: Any) -> None:
    with site(module, prefix="processes:") as store_class:
        key = visitor(store_class, cart={})
        arguments = (module.__name__, shared().url(), "processes:", key)
        with workers(tmp_path, 8, _write, *arguments) as those:
            for _ in range(20):
                let_them_meet(those)
            for worker in those:
                worker.wait()
        found = stored(store_class, key)
        assert (len(found), len(found["cart"])) == (81, 80)


@both_engines
def test_fifty_tasks_lose_nothing(module: ModuleType) -> None:
    with site(module) as store_class:
        key = visitor(store_class, cart={})
        asyncio.run(overlap(store_class, key, 50))
        found = stored(store_class, key)
        assert (len(found), len(found["cart"])) == (51, 50)


# Failures.


@both_engines
def test_lost_scripts_and_dropped_connections_are_not_noticed(module: ModuleType) -> None:
    async def use(store: SessionStore, number: int) -> None:
        await store.aset("count", number)
        await store.asave()
        spoil()
        await store.aset("count", number + 1)
        await store.asave()
        spoil()
        await store.acycle_key()

    def spoil() -> None:
        with shared().client() as client:
            client.script_flush()
            client.client_kill_filter(_type="normal", skipme=True)

    with site(module) as store_class:
        store = store_class(visitor(store_class, count=0))
        for number in range(3):
            spoil()
            store["count"] = number
            store.save()
            spoil()
            store.cycle_key()
        asyncio.run(use(store, 5))
        assert stored(store_class, store.session_key) == {"count": 6}


@both_engines
def test_an_outage_is_never_an_empty_session(module: ModuleType) -> None:
    config = {"appendonly": "yes", "appendfsync": "always"}
    with RedisServer(**config) as server, site(module, server) as store_class:
        key = visitor(store_class, user=1)
        held = store_class(key)
        held["user"] = 2
        server.kill()
        for use in (store_class(key).load, held.save, store_class().save, lambda: store_class().exists(key)):
            with pytest.raises(StorageUnavailable, match=r"CACHES\['sessions'\]"):
                use()
        with pytest.raises(StorageUnavailable):
            asyncio.run(store_class(key).aload())
        server.restart()
        assert stored(store_class, key) == {"user": 1}
        held.save()
        assert stored(store_class, key) == {"user": 2}


@both_engines
def test_a_hung_server_costs_a_bounded_time(module: ModuleType) -> None:
    with RedisServer() as server, site(module, server, {"OPTIONS": {"SOCKET_TIMEOUT": 0.2}}) as store_class:
        key = visitor(store_class, user=1)
        server.pause()
        try:
            start = time.monotonic()
            with pytest.raises(StorageUnavailable):
                store_class(key).load()
            with pytest.raises(StorageUnavailable):
                asyncio.run(store_class(key).aload())
            assert time.monotonic() - start < 5
        finally:
            server.resume()
        assert stored(store_class, key) == {"user": 1}


@both_engines
def test_a_full_server_refuses_and_keeps_what_it_has(module: ModuleType) -> None:
    with RedisServer(maxmemory_policy="noeviction") as server, site(module, server) as store_class:
        store = store_class(visitor(store_class, user=1))
        store["user"] = 2
        with server.client() as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(StorageUnavailable, match="command not allowed when used memory"):
                store.save()
            client.config_set("maxmemory", "0")
        assert stored(store_class, store.session_key) == {"user": 1}


def test_a_replica_refuses_writes_as_an_outage() -> None:
    with RedisServer() as server, site(redis_hash, server) as store_class:
        store = store_class(visitor(store_class, user=1))
        store["user"] = 2
        with server.client() as client:
            client.replicaof("127.0.0.1", shared().port)
            with pytest.raises(StorageUnavailable):
                store.save()


def test_a_wrong_password_is_an_outage() -> None:
    with RedisServer() as server:
        with server.client() as client:
            client.config_set("requirepass", "right")
        wrong = site(redis_engine, server, {"OPTIONS": {"PASSWORD": "wrong"}})
        with wrong as store_class, pytest.raises(StorageUnavailable):
            store_class("abcdefgh").load()
        with site(redis_engine, server, {"OPTIONS": {"PASSWORD": "right"}}) as store_class:
            assert stored(store_class, visitor(store_class, user=1)) == {"user": 1}


def test_too_few_replicas_are_a_warning_and_the_change_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    for module in MODULES.values():
        with site(module, wait_replicas=1, wait_timeout=0.01) as store_class, caplog.at_level(logging.WARNING):
            assert stored(store_class, visitor(store_class, user=1)) == {"user": 1}
    assert [record.name for record in caplog.records] == ["gsession_django"] * 2


@both_engines
def test_nobody_reads_a_reply_that_was_meant_for_another(module: ModuleType) -> None:
    """Threads and cancelled tasks read sessions with their own names, while the server stops and goes on."""
    wrong: list[Any] = []
    failed = cancelled = done = 0

    def read(keys: list[str], end: float, seed: int) -> None:
        nonlocal failed, done
        rng = random.Random(seed)
        while time.monotonic() < end:
            key = rng.choice(keys)
            try:
                name = store_class(key).get("name")
            except StorageUnavailable:
                failed += 1
                continue
            done += 1
            if name != names[key]:
                wrong.append((name, names[key]))

    async def task(keys: list[str], end: float, seed: int) -> None:
        nonlocal failed, cancelled, done
        rng = random.Random(seed)
        while time.monotonic() < end:
            key = rng.choice(keys)
            try:
                async with asyncio.timeout(rng.choice([0.0002, 0.001, 1])):
                    name = await store_class(key).aget("name")
            except StorageUnavailable:
                failed += 1
            except TimeoutError:
                cancelled += 1
            else:
                done += 1
                if name != names[key]:
                    wrong.append((name, names[key]))

    async def tasks(keys: list[str], end: float) -> None:
        await asyncio.gather(*(task(keys, end, seed) for seed in range(10)))

    options = {"OPTIONS": {"SOCKET_TIMEOUT": 0.02}}
    with RedisServer() as server, site(module, server, options, fail_fast_after=0) as store_class:
        names = {visitor(store_class, name=str(number)): str(number) for number in range(200)}
        keys, end = list(names), time.monotonic() + 4
        threads = [threading.Thread(target=read, args=(keys, end, seed)) for seed in range(4)]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks(keys, end))))
        for thread in threads:
            thread.start()
        while time.monotonic() < end - 0.2:
            server.pause()
            time.sleep(0.03)
            server.resume()
            time.sleep(0.05)
        for thread in threads:
            thread.join()
    assert not wrong
    assert failed > 10
    assert cancelled > 10
    assert done > 1000


@pytest.mark.parametrize("query", ["?protocol=2", "?protocol=3"])
@both_engines
def test_nobody_gets_a_surplus_reply(module: ModuleType, query: str) -> None:
    """The answer to another session's load lies unread on the kept connection."""

    def another_reply(store_class: type[SessionStore], key: str) -> bytes:
        name = store_class.get_storage()._keys(store_class(key).session_id)[0]  # type: ignore[attr-defined]
        return Batch(("GET" if module is redis_engine else "HGETALL", name), ("PTTL", name)).packed()

    def wait_for(sock: Any) -> None:
        assert select.select([sock], [], [], 10)[0], "the server has not answered"

    async def use(ada: str, bob: str) -> None:
        assert await store_class(bob).aget("name") == "bob"
        exchange, _ = client_of(store_class)._of_loops[asyncio.get_running_loop()]
        connection = connection_of(exchange)
        connection._writer.write(another_reply(store_class, ada))
        wait_for(connection._writer.get_extra_info("socket"))  # the loop stands still
        assert await store_class(bob).aget("name") == "bob"

    settings = settings_for(module.__name__, shared().url(query), prefix=f"{random.getrandbits(64):x}:")
    with override_settings(**settings):
        store_class = module.SessionStore
        ada, bob = visitor(store_class, name="ada"), visitor(store_class, name="bob")
        assert store_class(bob)["name"] == "bob"
        connection = connection_of(client_of(store_class)._way)
        connection._sock.sendall(another_reply(store_class, ada))
        wait_for(connection._sock)
        assert store_class(bob)["name"] == "bob"
        asyncio.run(use(ada, bob))


# Connections.


def test_connections_end_with_their_event_loop() -> None:
    async def use(key: str) -> None:
        await asyncio.gather(*(store_class(key).aget("user") for _ in range(5)))

    with RedisServer() as server, site(redis_engine, server) as store_class, server.client() as client:
        key = visitor(store_class, user=1)
        for _ in range(20):
            asyncio.run(use(key))
        assert len(client.client_list()) <= 3


def test_a_pool_that_connections_need_lends_them() -> None:
    with site(redis_engine) as store_class:
        assert not client_of(store_class)._way._lends  # type: ignore[union-attr]
    with site(redis_engine, entry=POOL_LENDS) as store_class:
        assert client_of(store_class)._way._lends  # type: ignore[union-attr]
        store = store_class(visitor(store_class, user=1))
        store["user"] = 2
        store.save()
        assert asyncio.run(store_class(store.session_key).aget("user")) == 2


def test_a_session_that_ended_stays_ended() -> None:
    for module in MODULES.values():
        with site(module) as store_class:
            key = visitor(store_class, user=1)
            held = store_class(key)
            held["user"] = 2
            store_class(key).flush()
            with pytest.raises(UpdateError):
                held.save()
            assert list(store_class.get_storage().ids()) == []


# Checks.


def ids_of(messages: list[Any]) -> list[str]:
    return [message.id.removeprefix("gsession_django.") for message in messages]


def test_the_checks_report_wrong_entries() -> None:
    good = settings_for("gsession_django.backends.redis", shared().url(db=1))
    with override_settings(**good):
        assert ids_of(check_settings()) == []
    for alias in ("missing", "default"):
        with override_settings(**{**good, "SESSION_CACHE_ALIAS": alias}):
            assert ids_of(check_settings()) == ["E012"]
            with pytest.raises(ImproperlyConfigured, match="SESSION_CACHE_ALIAS"):
                redis_engine.SessionStore("abcdefgh").load()
    with override_settings(**settings_for(good["SESSION_ENGINE"], shared().url("?decode_responses=True"))):
        assert ids_of(check_settings()) == ["E012"]
    shared_database = {**good["CACHES"], "default": good["CACHES"]["sessions"]}
    with override_settings(**{**good, "CACHES": shared_database}):
        assert ids_of(check_settings()) == ["W003"]
    with override_settings(**{**good, "CACHES": shared_database, "SESSION_CACHE_ALIAS": "default"}):
        assert ids_of(check_settings()) == ["W003"]


def test_the_checks_report_a_wrong_server() -> None:
    with RedisServer(maxmemory_policy="allkeys-lru") as server, site(redis_hash, server):
        assert ids_of(check_deployment()) == ["W005", "W006"]
        with server.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
        assert ids_of(check_deployment()) == []
        server.kill()
        assert ids_of(check_deployment()) == ["W004"]


def test_json_is_written_as_python_writes_it() -> None:
    with site(redis_engine, hash_ids=False, prefix="json:") as store_class, shared().client() as client:
        key = visitor(store_class, big=2**70, float=1.0, text="é")
        one, two = store_class(key), store_class(key)
        one["one"], two["two"] = 1, 2
        one.save()
        two.save()
        raw = client.get(f"json:{key}")
        assert isinstance(raw, bytes)
        assert json.loads(raw) == {"big": 2**70, "float": 1.0, "text": "é", "one": 1, "two": 2}
        assert b'"float":1.0' in raw
