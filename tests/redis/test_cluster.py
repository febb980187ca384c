"""The Redis engines in a real Redis Cluster: three masters with a replica each."""

import asyncio
import functools
import gc
import logging
import os
import random
import re
import shlex
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.core.cache import caches
from django.test import SimpleTestCase, override_settings
from redis.crc import key_slot
from redis.exceptions import RedisClusterException

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment, check_settings
from gsession_django.redis import nodes as redis_nodes
from gsession_django.redis.client import RedisClient
from gsession_django.redis.commands import Batch
from gsession_django.redis.nodes import Nodes
from gsession_django.redis.settings import CacheEntry
from gsession_django.redis.storage import BaseRedisStorage
from gsession_django.testing import StorageContract
from tests.support.engines import new_session, overlap
from tests.support.processes import Parent, Worker
from tests.support.redis_clusters import Node, RedisCluster, cluster_settings, shared, wait_for
from tests.support.redis_servers import LENT
from tests.support.redis_servers import shared as single

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
LARGE = "x" * 100_000
PAGES = [Path(__file__).resolve().parents[2] / "docs" / name for name in ("redis.md", "redis-cluster.md")]
# The hash tag comes first, so all sessions are in one slot.
ONE_SLOT = {"KEY_PREFIX": "{one slot}"}


class ClusterContract(StorageContract):
    module: ClassVar[ModuleType]
    query: ClassVar[str]

    def setUp(self) -> None:
        settings = cluster_settings(self.module.__name__, shared().url(self.query))
        self.enterContext(override_settings(**settings))
        super().setUp()


class RedisInClusterTests(ClusterContract, SimpleTestCase):
    module: ClassVar[ModuleType] = redis_engine
    store_class = redis_engine.SessionStore
    query = "?protocol=2"


class RedisHashInClusterTests(ClusterContract, SimpleTestCase):
    module: ClassVar[ModuleType] = redis_hash
    store_class = redis_hash.SessionStore
    query = "?protocol=3"


@contextmanager
def site(
    module: ModuleType, cluster: RedisCluster | None = None, entry: Any = None, location: Any = None, **options: Any
) -> Iterator[type[SessionStore]]:
    """Yield the SessionStore of an engine with its own prefix."""
    options.setdefault("prefix", f"{random.getrandbits(64):x}:")
    location = location or (cluster or shared()).url()
    with override_settings(**cluster_settings(module.__name__, location, entry, **options)):
        yield module.SessionStore


def visitor(store_class: type[SessionStore], **data: Any) -> str:
    return new_session(store_class, data)


def stored(store_class: type[SessionStore], key: str | None) -> dict[str, Any]:
    return dict(store_class(key).items())


def storage_of(store_class: type[SessionStore]) -> BaseRedisStorage:
    storage = store_class.get_storage()
    assert isinstance(storage, BaseRedisStorage)
    return storage


def client_of(store_class: type[SessionStore]) -> RedisClient:
    return storage_of(store_class).client


def name_of(store_class: type[SessionStore], key: str | None) -> str:
    """Return the Redis key of a session."""
    return storage_of(store_class)._keys(str(store_class(key).session_id))[0]


class Turns:
    """Counts the batches to all nodes, with redirections and questions about slots."""

    def __init__(self, nodes: Any) -> None:
        self.count = self._seen = 0
        find: Any = Nodes.at
        self._find: Any = functools.partial(find, weakref.proxy(nodes))
        nodes.at = self._at

    def _at(self, node: Any) -> Any:
        self.count += 1
        return self._find(node)

    def since(self) -> int:
        """Return how many there were since the last call."""
        self._seen, before = self.count, self._seen
        return self.count - before


def turns(store_class: type[SessionStore]) -> Turns:
    return Turns(client_of(store_class)._way)


def aturns(store_class: type[SessionStore]) -> Turns:
    return Turns(anodes_of(store_class))


def warm_up(store_class: type[SessionStore]) -> None:
    """Let every node know the scripts, and this process the nodes, by sessions on each."""
    for _ in range(20):
        store = store_class(visitor(store_class, a=1))
        store["b"] = {}
        store.save()
        store.modified = True
        store.save()
        store.cycle_key()


# Round trips.


@both_engines
def test_round_trips_are_as_promised(module: ModuleType) -> None:
    with site(module) as store_class:
        warm_up(store_class)
        since = turns(store_class).since
        key = visitor(store_class, cart={}, user=1)
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
        store.cycle_key()
        store["user"] = 3
        store.save()
        assert since() == 4, "login"
        store.delete()
        assert since() == 1, "delete"
        store = store_class(visitor(store_class, user=1))
        store.get("user")
        store["user"] = 2
        store.save()
        since()
        store.cycle_key()
        assert since() == 2 + (module is redis_hash), "what it wrote itself, redis_hash does not know as a whole"


@both_engines
def test_round_trips_are_as_promised_under_async(module: ModuleType) -> None:
    async def use() -> None:
        store = store_class()
        await store.aset("user", 1)
        await store.asave()
        for node in client_of(store_class).servers():  # each has a connection
            await anodes_of(store_class).at(node.nodes[0]).exchange(Batch(("PING",)))
        since = aturns(store_class).since
        store = store_class()
        await store.aset("cart", {})
        await store.asave()
        assert since() == 1, "first save"
        key = store.session_key
        store = store_class(key)
        assert await store.aget("cart") == {}
        assert since() == 1, "load"
        (await store.aget("cart"))["apple"] = 1
        await store.asave()
        assert since() == 1, "save"
        store = store_class(key)
        await store.aget("cart")
        store.modified = True
        await store.asave()
        assert since() == 2, "a touch with its load"
        store = store_class(key)
        await store.aget("cart")
        await store.acycle_key()
        await store.aset("user", 2)
        await store.asave()
        assert since() == 4, "login"
        await store.aflush()
        assert since() == 1, "delete"

    with site(module) as store_class:
        warm_up(store_class)
        asyncio.run(use())


def anodes_of(store_class: type[SessionStore]) -> Nodes:
    nodes, _ = client_of(store_class)._of_loops[asyncio.get_running_loop()]
    assert isinstance(nodes, Nodes)
    return nodes


@pytest.mark.parametrize(("signed_in", "expected"), [({SESSION_KEY: "1"}, 5), ({}, 4)], ids=["", "anonymous"])
def test_large_values_cost_a_move_one_round_trip_more(signed_in: dict[str, str], expected: int) -> None:
    """It costs another one if a faster sign-in makes them be stored again. The index of a user costs two."""
    with site(redis_hash) as store_class:
        warm_up(store_class)
        for _ in range(20):  # let every node know the script that reads large values, too
            store_class(visitor(store_class, large=LARGE)).items()
        store = store_class(visitor(store_class, user=1, large=LARGE, **signed_in))
        store.get("user")
        assert (SESSION_KEY in store) == bool(signed_in)
        since = turns(store_class).since
        store.cycle_key()
        assert since() == expected
        assert stored(store_class, store.session_key) == {"user": 1, "large": LARGE, **signed_in}


# Overlapping requests.


@both_engines
def test_eight_threads_lose_nothing(module: ModuleType) -> None:
    def request(number: int) -> None:
        for turn in range(10):
            store = store_class(key)
            store[f"{number}-{turn}"] = turn
            store["cart"][f"{number}-{turn}"] = turn
            together.wait()
            store.save()

    with site(module) as store_class:
        key, together = visitor(store_class, cart={}), threading.Barrier(8)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(request, range(8)))
        found = stored(store_class, key)
        assert (len(found), len(found["cart"])) == (81, 80)


@both_engines
def test_fifty_tasks_lose_nothing(module: ModuleType) -> None:
    with site(module) as store_class:
        key = visitor(store_class, cart={})
        asyncio.run(overlap(store_class, key, 50))
        found = stored(store_class, key)
        assert (len(found), len(found["cart"])) == (51, 50)


# Moving a session to a new id.


class StepByStep:
    """A move that stops before each batch."""

    def __init__(self, store_class: type[SessionStore], key: str) -> None:
        self._client = client_of(store_class)
        self.new = store_class()
        self.new._session_key = "the-new-key-" + key
        storage, old_id = storage_of(store_class), store_class(key).session_id
        self._operation = storage._move(str(old_id), str(self.new.session_id), 60)
        self._batch = next(self._operation)

    def step(self) -> bool | None:
        """Send the next batch, and return the result of the move if it has ended."""
        try:
            self._batch = self._operation.send(self._client.send(self._batch))
        except StopIteration as stop:
            return bool(stop.value)
        return None

    def lose_reply(self) -> None:
        """Send the next batch, and lose its reply."""
        assert self._batch.repeat
        self._client.send(self._batch)

    def run(self) -> bool:
        while (result := self.step()) is None:
            pass
        return result

    def die(self) -> None:
        self._operation.close()


each_session = pytest.mark.parametrize(
    ("module", "data"),
    [(redis_engine, {"user": 1}), (redis_hash, {"user": 1}), (redis_hash, {"user": 1, "notes": {"a": LARGE}})],
    ids=["redis", "redis_hash", "redis_hash, large"],
)
each_holding = pytest.mark.parametrize("held", [True, False], ids=["held", "not held"])


@contextmanager
def moving(
    module: ModuleType, data: dict[str, Any], held: bool
) -> Iterator[tuple[type[SessionStore], str, StepByStep, SessionStore]]:
    """Yield a move between its copy and its removal of the old session, and a store that holds the session."""
    with site(module) as store_class:
        key = visitor(store_class, **data)
        store = store_class(key)
        if held:
            assert store.get("user") == 1
        move = StepByStep(store_class, key)
        while not store_class().exists(move.new.session_key):
            assert move.step() is None
        yield store_class, key, move, store


@each_holding
@each_session
def test_a_save_during_a_move_is_not_lost(module: ModuleType, data: dict[str, Any], held: bool) -> None:
    with moving(module, data, held) as (store_class, key, move, _):
        for number in range(3):
            other = store_class(key)
            other[f"while moving {number}"] = number
            other.save()
            assert move.step() is None
            assert move.step() is None  # the new copy
        assert move.run()
        assert stored(store_class, key) == {}
        assert stored(store_class, move.new.session_key) == data | {f"while moving {n}": n for n in range(3)}


@each_session
def test_a_change_inside_a_large_or_a_removed_value_is_seen_by_a_move(module: ModuleType, data: dict[str, Any]) -> None:
    with moving(module, data, True) as (store_class, key, move, _):
        other = store_class(key)
        if "notes" in data:
            other["notes"]["b"] = 1
        else:
            other["notes"] = {"b": 1}
        del other["user"]
        other.save()
        assert move.run()
        assert stored(store_class, move.new.session_key) == {"notes": {**data.get("notes", {}), "b": 1}}


@each_holding
@each_session
def test_a_session_that_is_deleted_during_a_move_stays_deleted(
    module: ModuleType, data: dict[str, Any], held: bool
) -> None:
    with moving(module, data, held) as (store_class, key, move, _):
        store_class(key).flush()
        assert not move.run()
        assert list(storage_of(store_class).ids()) == []


@each_session
def test_a_second_move_that_overtakes_ends_the_first(module: ModuleType, data: dict[str, Any]) -> None:
    with moving(module, data, True) as (store_class, _, move, store):
        store.cycle_key()
        assert not move.run()
        assert stored(store_class, store.session_key) == data
        assert list(storage_of(store_class).ids()) == [store.session_id]


@each_holding
@each_session
def test_a_process_that_dies_during_a_move_leaves_the_old_session(
    module: ModuleType, data: dict[str, Any], held: bool
) -> None:
    with moving(module, data, held) as (store_class, key, move, _):
        move.die()
        assert stored(store_class, key) == data
        store = store_class(key)
        store.cycle_key()
        assert stored(store_class, store.session_key) == data


@each_session
def test_a_lost_reply_to_a_move_loses_no_session(module: ModuleType, data: dict[str, Any]) -> None:
    with moving(module, data, True) as (store_class, key, move, _):
        move.lose_reply()
        assert move.run()
        assert stored(store_class, move.new.session_key) == data
        assert stored(store_class, key) == {}
        assert list(storage_of(store_class).ids()) == [move.new.session_id]


@each_session
def test_a_move_keeps_the_ttl(module: ModuleType, data: dict[str, Any]) -> None:
    for held in (True, False):
        with moving(module, data, held) as (store_class, _, move, store):
            store.set_expiry(1000)
            store.save()
            assert move.run()
            for name in storage_of(store_class)._keys(str(move.new.session_id))[:2]:
                with shared().master_of(name).client() as client:
                    assert client.ttl(name) in (-2, *range(980, 1001))
            assert move.new.get("user") == 1
            assert move.new.ttl_left is not None
            assert 980 < move.new.ttl_left <= 1000


@both_engines
def test_one_of_eight_cycle_keys_at_once_wins(module: ModuleType) -> None:
    def request(store: SessionStore) -> str | None:
        together.wait()
        store.cycle_key()
        try:
            store.save()
        except UpdateError:
            return None
        return store.session_key

    together = threading.Barrier(8)
    with site(module) as store_class, ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            key = visitor(store_class, **{SESSION_KEY: "1"})
            stores = [store_class(key) for _ in range(8)]
            for store in stores:
                assert store.get(SESSION_KEY) == "1"
            (winner,) = filter(None, threads.map(request, stores))
            assert stored(store_class, winner) == {SESSION_KEY: "1"}
            store_class(winner).flush()
        assert list(storage_of(store_class).ids()) == []


@both_engines
def test_saves_that_overlap_a_move_are_kept_or_refused(module: ModuleType) -> None:
    """Each acknowledged change is in the session."""

    def write(number: int) -> list[str]:
        kept: list[str] = []
        for turn in range(20):
            store = store_class(key)
            store[f"{number}-{turn}"] = 1
            try:
                store.save()
            except UpdateError:
                break
            if store.session_key != key:  # it was gone when it was loaded
                store.flush()
                break
            kept.append(f"{number}-{turn}")
            if turn == 3:
                begun.release()
        return kept

    with site(module) as store_class, ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            key, begun = visitor(store_class, user=1), threading.Semaphore(0)
            writers = [threads.submit(write, number) for number in range(4)]
            for _ in writers:
                begun.acquire()
            store = store_class(key)
            store.get("user")
            store.cycle_key()
            kept = {name for writer in writers for name in writer.result()}
            assert stored(store_class, store.session_key).keys() == kept | {"user"}


# A slot moves.


@both_engines
def test_nobody_notices_that_a_slot_moves(module: ModuleType) -> None:
    """The slot of all sessions moves twice while visitors read, write, sign in and out."""
    errors: list[BaseException] = []
    wrong: list[Any] = []
    loads = threading.Semaphore(0)
    ended = threading.Event()

    class Visits:
        """One visitor's sessions, each with its name and the last stored value in it."""

        def __init__(self, number: int) -> None:
            self.number = number
            self.rng = random.Random(number)
            self.keys = {visitor(store_class, **self.data(turn)): 0 for turn in range(5)}

        def data(self, turn: int) -> dict[str, Any]:
            return {"name": self.number, "cart": {"large": LARGE}} if turn == 4 else {"name": self.number, "cart": {}}

        def visit(self) -> None:
            key = self.rng.choice(list(self.keys))
            store = store_class(key)
            self.look(key, store.get("name"), store.get("count", 0))
            match self.rng.randrange(4):
                case 0:
                    store["count"] = self.keys[key] = self.keys[key] + 1
                    store["cart"][f"item {self.keys[key]}"] = 1
                    store.save()
                case 1:
                    store.cycle_key()
                    store.save()
                    self.keys[str(store.session_key)] = self.keys.pop(key)
                case 2 if len(self.keys) > 3:
                    store.flush()
                    del self.keys[key]
                case _ if len(self.keys) < 10:
                    self.keys[visitor(store_class, **self.data(self.rng.randrange(5)))] = 0

        async def avisit(self) -> None:
            key = self.rng.choice(list(self.keys))
            store = store_class(key)
            self.look(key, await store.aget("name"), await store.aget("count", 0))
            match self.rng.randrange(3):
                case 0:
                    self.keys[key] += 1
                    await store.aset("count", self.keys[key])
                    (await store.aget("cart"))[f"item {self.keys[key]}"] = 1
                    await store.asave()
                case 1:
                    await store.acycle_key()
                    await store.asave()
                    self.keys[str(store.session_key)] = self.keys.pop(key)

        def look(self, key: str, name: Any, count: Any) -> None:
            loads.release()
            if (name, count) != (self.number, self.keys[key]):
                wrong.append((self.number, key, name, count, self.keys[key]))

        def go_on(self) -> None:
            try:
                while not ended.is_set():
                    self.visit()
            except BaseException as error:
                errors.append(error)
                raise

        async def ago_on(self) -> None:
            try:
                while not ended.is_set():
                    await self.avisit()
            except BaseException as error:
                errors.append(error)
                raise

    class Readers(Visits):
        def visit(self) -> None:
            for key in self.keys:
                self.look(key, store_class(key).get("name"), 0)

    async def tasks() -> None:
        await asyncio.gather(*(each.ago_on() for each in visits[5:]))

    with site(module, entry=ONE_SLOT) as store_class:
        visits = [Readers(0), *(Visits(number) for number in range(1, 15))]
        name = name_of(store_class, next(iter(visits[1].keys)))
        threads = [threading.Thread(target=each.go_on) for each in visits[:5]]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks())))
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                with shared().moving(name) as slot:
                    while not errors and (keys := slot.some_keys(8)):
                        slot.move(*keys)
                        for _ in range(5):
                            assert loads.acquire(timeout=60)
                assert shared().master_of(name) is slot.target
                for _ in range(100):
                    assert loads.acquire(timeout=60)
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert errors == []
        assert wrong == []
        for each in visits:
            for key, count in each.keys.items():
                found = stored(store_class, key)
                assert (found["name"], found.get("count", 0)) == (each.number, count)
                assert len(found["cart"]) - ("large" in found["cart"]) == count


@both_engines
def test_a_session_is_followed_while_its_slot_moves(module: ModuleType) -> None:
    async def load() -> None:
        assert await store_class(key).aget("user") == 1
        since = aturns(store_class).since
        assert await store_class(key).aget("user") == 1
        assert since() == 2

    with site(module) as store_class:
        warm_up(store_class)
    with site(module, entry=ONE_SLOT) as store_class:
        key = visitor(store_class, user=1)
        with shared().moving(name_of(store_class, key)) as slot:
            assert stored(store_class, key) == {"user": 1}
            slot.move(*slot.some_keys(1000))
            since = turns(store_class).since
            assert stored(store_class, key) == {"user": 1}
            assert since() == 2, "one more, to where the first node says"
            asyncio.run(load())
            if module is redis_engine:  # redis_hash writes nothing meanwhile
                store = store_class(visitor(store_class, user=1))
                assert since() == 2
                assert store["user"] == 1
                assert since() == 2
                store["user"] = 2
                store.save()
                assert since() == 2
                assert stored(store_class, store.session_key) == {"user": 2}
        assert stored(store_class, key) == {"user": 1}


def test_a_script_does_not_stop_half_way_while_its_slot_moves() -> None:
    """Redis refuses to create a key in a slot that moves away, even in the middle of a script."""
    with site(redis_hash, entry=ONE_SLOT) as store_class, ThreadPoolExecutor() as threads:
        key = visitor(store_class, user=1, notes={"large": LARGE})
        store = store_class(key)
        store.clear()
        store["notes"] = {"larger": LARGE * 2}
        with shared().moving(name_of(store_class, key)):
            sent = turns(store_class)
            saving = threads.submit(store.save)
            wait_for("the save has been refused", lambda: sent.count > 3 or saving.done())
        saving.result()
        assert stored(store_class, key) == {"notes": {"larger": LARGE * 2}}


def test_a_large_value_is_found_while_its_slot_moves() -> None:
    with site(redis_hash, entry=ONE_SLOT) as store_class, ThreadPoolExecutor() as threads:
        key = visitor(store_class, user=1, notes=LARGE)
        store = store_class(key)
        assert store["user"] == 1
        with shared().moving(name_of(store_class, key)) as slot:
            slot.move(*(name for name in slot.some_keys() if not name.endswith(":large")))
            sent = turns(store_class)
            fetching = threads.submit(store.get, "notes")
            wait_for("the answers were not of one node", lambda: sent.count > 3 or fetching.done())
        assert fetching.result() == LARGE


@both_engines
def test_a_move_that_never_ends_is_an_outage(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_nodes, "PATIENCE", 0.5)
    with site(module, entry=ONE_SLOT) as store_class:
        key = visitor(store_class, user=1)
        held = store_class(key)
        assert held["user"] == 1
        with shared().moving(name_of(store_class, key)):
            assert store_class(key)["user"] == 1
            start = time.monotonic()
            # The source says ASK, the target TRYAGAIN. The time may be over after either.
            with pytest.raises(StorageUnavailable, match=r"TryAgainError|AskError"):
                held.cycle_key()
            assert time.monotonic() - start < 20
        assert stored(store_class, key) == {"user": 1}


# A node fails.


class Confirmed(logging.Handler):
    """Sees by the warning whether no replica has acknowledged a write."""

    def __init__(self) -> None:
        super().__init__()
        self.missing = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.missing += "acknowledged a change" in record.getMessage()


@contextmanager
def confirmations() -> Iterator[Confirmed]:
    logger, handler = logging.getLogger("gsession_django"), Confirmed()
    logger.addHandler(handler)
    try:
        yield handler
    finally:
        logger.removeHandler(handler)


def test_a_failover_signs_nobody_out() -> None:
    """After a master is killed under load, every change that a replica has acknowledged is there."""
    strangers: list[Any] = []
    lost: list[Any] = []
    done = refused = 0
    ended = threading.Event()

    class Visits:
        def __init__(self, number: int) -> None:
            self.number = number
            self.store_class = stores[number % 2]
            self.key = visitor(self.store_class, name=number)
            self.written = self.confirmed = 0
            self.after = 0

        def look(self, name: Any, count: Any) -> None:
            if name != self.number:
                strangers.append((self.number, name))
            if not self.confirmed <= count <= self.written:
                lost.append((self.number, self.confirmed, count, self.written))

        def visit(self) -> None:
            store = self.store_class(self.key)
            self.look(store.get("name"), store.get("count", 0))
            self.written += 1
            store["count"] = self.written
            missing = confirmed.missing
            store.save()
            if confirmed.missing == missing:
                self.confirmed = self.written

        async def avisit(self) -> None:
            store = self.store_class(self.key)
            self.look(await store.aget("name"), await store.aget("count", 0))
            self.written += 1
            await store.aset("count", self.written)
            missing = confirmed.missing
            await store.asave()
            if confirmed.missing == missing:
                self.confirmed = self.written

    def count(each: Visits, error: StorageUnavailable | None) -> None:
        nonlocal done, refused
        done += error is None
        refused += error is not None
        each.after += error is None and failed_over.is_set()

    def go_on(those: list[Visits]) -> None:
        while not ended.is_set():
            for each in those:
                try:
                    each.visit()
                except StorageUnavailable as error:
                    count(each, error)
                else:
                    count(each, None)

    async def ago_on(each: Visits) -> None:
        while not ended.is_set():
            try:
                await each.avisit()
            except StorageUnavailable as error:
                count(each, error)
            else:
                count(each, None)

    async def tasks(those: list[Visits]) -> None:
        await asyncio.gather(*(ago_on(each) for each in those))

    failed_over = threading.Event()
    stores = [module.SessionStore for module in MODULES.values()]
    engines = {module.__name__: {"wait_replicas": 1, "wait_timeout": 0.2} for module in MODULES.values()}
    with (
        RedisCluster(2000) as cluster,
        site(redis_engine, cluster),
        override_settings(GSESSION={"ENGINES": engines}),
        confirmations() as confirmed,
    ):
        visits = [Visits(number) for number in range(40)]
        threads = [threading.Thread(target=go_on, args=(visits[start:20:4],)) for start in range(4)]
        threads.append(threading.Thread(target=lambda: asyncio.run(tasks(visits[20:]))))
        for thread in threads:
            thread.start()
        try:
            wait_for("all have written", lambda: all(each.confirmed > 2 for each in visits))
            killed = cluster.master_of(name_of(stores[0], visits[0].key))
            slots = killed.slots()
            killed.kill()
            replica = cluster.nodes[cluster.nodes.index(killed) + 3]
            wait_for("the replica has taken over", lambda: replica.is_master() and slots <= replica.slots())
            wait_for("the cluster is well again", cluster.is_well)
            failed_over.set()
            wait_for("all go on", lambda: all(each.after for each in visits))
        finally:
            ended.set()
            for thread in threads:
                thread.join()
        assert strangers == []
        assert lost == []
        for each in visits:
            found = stored(each.store_class, each.key)
            assert found["name"] == each.number
            assert each.confirmed <= found["count"] <= each.written
        assert done > 200


def test_a_hung_node_is_asked_once() -> None:
    with site(redis_engine, entry={"OPTIONS": {"SOCKET_TIMEOUT": 0.2}}) as store_class:
        key = visitor(store_class, user=1)
        hung = shared().master_of(name_of(store_class, key))
        since = turns(store_class).since
        hung.pause()
        try:
            with pytest.raises(StorageUnavailable):
                store_class(key).load()
            assert since() == 2, "the load, and another node that says that nothing has changed"
            with pytest.raises(StorageUnavailable):
                asyncio.run(store_class(key).aload())
        finally:
            hung.resume()
        assert stored(store_class, key) == {"user": 1}


@both_engines
def test_a_node_that_is_gone_is_noticed(module: ModuleType) -> None:
    """The process knows the old slots, and nobody listens at the node's old place."""

    async def use_async() -> None:
        assert await store_class(key).aget("user") == 1
        nodes = anodes_of(store_class)
        nodes._owners = dict.fromkeys(nodes._owners, (str(gone.hostname), int(gone.port or 0)))
        await store_class().asave()

    gone = urlsplit(RedisCluster.nobody())
    with site(module) as store_class:
        key = visitor(store_class, user=1)
        for use in (lambda: visitor(store_class), lambda: stored(store_class, key)):
            send_to(store_class, (str(gone.hostname), int(gone.port or 0)))
            use()
        assert stored(store_class, key) == {"user": 1}
        asyncio.run(use_async())


def send_to(store_class: type[SessionStore], node: tuple[str, int]) -> None:
    """Let the process think that a node has all slots."""
    nodes = client_of(store_class)._way
    assert isinstance(nodes, Nodes)
    nodes._owners = dict.fromkeys(range(16384), node)


@both_engines
def test_a_node_that_went_silent_is_noticed(module: ModuleType) -> None:
    """The node's machine takes connections and answers nothing."""
    entry = {"OPTIONS": {"SOCKET_TIMEOUT": 0.2}}
    with socket.create_server(("127.0.0.1", 0)) as silent, site(module, entry=entry) as store_class:
        key = visitor(store_class, user=1)
        send_to(store_class, silent.getsockname())
        assert stored(store_class, key) == {"user": 1}
        send_to(store_class, silent.getsockname())
        assert visitor(store_class)
        store = store_class(key)
        assert store["user"] == 1
        send_to(store_class, silent.getsockname())
        with pytest.raises(StorageUnavailable):  # the copy may be stored, but not twice
            store.cycle_key()
        assert stored(store_class, key) == {"user": 1}


def test_an_error_leaves_nothing_to_the_garbage_collector() -> None:
    """A remembered error would hold its frames, and these all connections."""
    gc.disable()
    try:
        entry = {"OPTIONS": {"SOCKET_TIMEOUT": 0.2}}
        with socket.create_server(("127.0.0.1", 0)) as silent, site(redis_engine, entry=entry) as store_class:
            for node in shared().nodes:
                send_to(store_class, ("127.0.0.1", node.port))
                assert visitor(store_class)
            gone = urlsplit(RedisCluster.nobody())
            send_to(store_class, (str(gone.hostname), int(gone.port or 0)))
            assert visitor(store_class)
            send_to(store_class, silent.getsockname())
            assert stored(store_class, "abcdefgh") == {}
            key = visitor(store_class, user=1)
            hung = shared().master_of(name_of(store_class, key))
            hung.pause()
            try:
                with pytest.raises(StorageUnavailable):
                    stored(store_class, key)
            finally:
                hung.resume()
            nodes = weakref.ref(client_of(store_class)._way)
        assert nodes() is None
    finally:
        gc.enable()


def test_a_cluster_may_have_one_node() -> None:
    """It does not know its own address."""
    with Node(cluster_enabled="yes") as node:
        node.cluster("ADDSLOTS", *range(16384))
        wait_for("the cluster is ready", lambda: node.state()["cluster_state"] == "ok")
        with node.client() as client:
            client.config_set("requirepass", "right")
        for password, url in (("right", node.url()), (None, node.url().replace("//", "//:right@"))):
            with site(redis_hash, location=url, entry={"OPTIONS": {"PASSWORD": password}}) as store_class:
                store = store_class(visitor(store_class, user=1))
                store.cycle_key()
                assert stored(store_class, store.session_key) == {"user": 1}
                assert [server.nodes for server in client_of(store_class).servers()] == [[("127.0.0.1", node.port)]]
                assert asyncio.run(store_class(store.session_key).aget("user")) == 1
        with site(redis_hash, location=node.url(), entry={"OPTIONS": {"PASSWORD": "wrong"}}) as store_class:
            store = store_class("abcdefgh")
            with pytest.raises(StorageUnavailable, match="Authentication"):
                store.load()


@both_engines
def test_the_user_of_the_docs_has_all_rights_that_sessions_need(module: ModuleType) -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES).replace("\\\n", "")
    rules = re.findall(r"^redis-cli ACL SETUSER sessions (.*)$", text, re.MULTILINE)
    rights = [*shlex.split(" ".join(rules)), *re.findall(r"`([~+][a-z]+[:|*a-z]*)`", text), "~site:*"]
    entry = {"KEY_PREFIX": "site:", "OPTIONS": {"USERNAME": "visitors", "PASSWORD": "secret"}}
    try:
        for node in shared().nodes:
            with node.client() as client:
                client.execute_command("ACL", "SETUSER", "visitors", *rights)
        with site(module, entry=entry) as store_class:
            for _ in range(5):
                store = store_class(visitor(store_class, user=1, large=LARGE))
                store["user"] = 2
                store.save()
                store.cycle_key()
                assert stored(store_class, store.session_key) == {"user": 2, "large": LARGE}
                store.flush()
            key = visitor(store_class, user=1)
            with shared().moving(name_of(store_class, key)) as slot:
                slot.move(*slot.some_keys())
                assert stored(store_class, key) == {"user": 1}
    finally:
        for node in shared().nodes:
            with node.client() as client:
                client.execute_command("ACL", "DELUSER", "visitors")


def test_nodes_are_connected_to_as_the_entry_says() -> None:
    with site(redis_engine, location="rediss://user:pass@localhost:7000?protocol=3"):
        entry = CacheEntry.of_sessions()
    assert entry.at(("redis.example", 7001)).url == "rediss://user:pass@redis.example:7001?protocol=3"
    assert entry.at(("2001:db8::1", 7001)).url == "rediss://user:pass@[2001:db8::1]:7001?protocol=3"


def test_a_cluster_that_is_not_there_is_an_outage_at_once() -> None:
    with RedisCluster() as cluster:
        location = [node.url() for node in cluster.nodes]
        with site(redis_hash, location=location) as store_class:
            key = visitor(store_class, user=1)
            for node in cluster.nodes:
                node.kill()
            for use in (store_class(key).load, store_class().save):
                with pytest.raises(StorageUnavailable, match=r"CACHES\['sessions'\]"):
                    use()
            with pytest.raises(StorageUnavailable):
                asyncio.run(store_class(key).aload())
        with site(redis_hash, location=location) as store_class, pytest.raises(StorageUnavailable):
            store_class(key).load()


@both_engines
def test_a_cluster_that_is_down_for_a_moment_is_waited_for(module: ModuleType) -> None:
    with site(module, entry=ONE_SLOT) as store_class, ThreadPoolExecutor() as threads:
        store = store_class(visitor(store_class, user=1))
        store["user"] = 2
        name = name_of(store_class, store.session_key)
        node, slot = shared().master_of(name), key_slot(name.encode())
        node.cluster("DELSLOTS", slot)
        try:
            sent = turns(store_class)
            uses: list[Future[Any]] = [threads.submit(store.save), threads.submit(visitor, store_class, user=3)]
            wait_for("it is tried again", lambda: sent.count > 8 or any(use.done() for use in uses))
        finally:
            node.cluster("ADDSLOTS", slot)
        for use in uses:
            use.result()
        assert stored(store_class, store.session_key) == {"user": 2}


def test_any_node_is_enough_to_begin_with() -> None:
    nobody = RedisCluster.nobody()
    location = [nobody, shared().nodes[4].url()]
    for given in (location, ",".join(location)):
        with site(redis_hash, location=given) as store_class:
            assert stored(store_class, visitor(store_class, user=1)) == {"user": 1}


def test_a_server_that_is_in_no_cluster_is_an_outage() -> None:
    with site(redis_engine, location=single().url()) as store_class:
        store = store_class("abcdefgh")
        with pytest.raises(StorageUnavailable, match="cluster support disabled"):
            store.load()


@both_engines
def test_replicas_are_waited_for_at_the_node_that_was_written_to(
    module: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    for replicas, timeout, warnings in ((1, 30, 0), (2, 0.01, 1)):
        caplog.clear()
        with site(module, wait_replicas=replicas, wait_timeout=timeout) as s:
            for _ in range(5):
                store = s(visitor(s, user=1))
                store.cycle_key()
                store["user"] = 2
                store.save()
                assert stored(s, store.session_key) == {"user": 2}
        assert bool(caplog.records) == bool(warnings)


# Connections.


def test_connections_end_with_their_event_loop() -> None:
    async def use() -> None:
        await asyncio.gather(*(store_class(key).aget("user") for key in keys for _ in range(3)))

    def connections() -> int:
        count = 0
        for node in shared().nodes:
            with node.client() as client:
                count += sum(each["flags"] == "N" for each in client.client_list())
        return count

    with site(redis_engine) as store_class:
        keys = [visitor(store_class, user=1) for _ in range(10)]
        before = connections()
        for _ in range(5):
            asyncio.run(use())
        wait_for("the servers have noticed", lambda: connections() <= before)


def _read_forked(parent: Parent, location: str, prefix: str, keys: dict[str, int]) -> None:
    settings = cluster_settings("gsession_django.backends.redis_hash", location, prefix=prefix)
    with override_settings(**settings):
        store_class = redis_hash.SessionStore
        for key, user in keys.items():
            assert store_class(key)["user"] == user
        children = []
        for _ in range(4):
            child = os.fork()
            if not child:
                wrong = 1
                try:
                    wrong = sum(store_class(key)["user"] != user for _ in range(20) for key, user in keys.items())
                finally:
                    os._exit(bool(wrong))
            children.append(child)
        for _ in range(20):
            for key, user in keys.items():
                assert store_class(key)["user"] == user
        parent.say([os.waitpid(child, 0)[1] for child in children])


def test_no_connection_crosses_a_fork(tmp_path: Any) -> None:
    with site(redis_hash, prefix="forked:") as store_class:
        keys = {visitor(store_class, user=user): user for user in range(20)}
        with Worker(tmp_path, _read_forked, shared().url(), "forked:", keys) as worker:
            assert worker.hear() == [0] * 4


def test_max_connections_is_a_limit_of_each_node_and_is_waited_for() -> None:
    entry = {"OPTIONS": {"CONNECTION_POOL_KWARGS": {"max_connections": 1}}}

    async def use(key: str) -> list[Any]:
        await store_class(key).aget("user")
        found = await asyncio.gather(*(store_class(key).aget("user") for _ in range(2)))
        assert {len(each._links) for each in anodes_of(store_class)._nodes.values()} == {1}
        return found

    with site(redis_engine, entry=entry) as store_class:
        assert all(stored(store_class, visitor(store_class, user=1)) for _ in range(10))
        assert asyncio.run(use(visitor(store_class, user=1))) == [1, 1]


def test_pools_may_lend_connections() -> None:
    with site(redis_hash, entry={"OPTIONS": LENT, **ONE_SLOT}) as store_class:
        store = store_class(visitor(store_class, user=1))
        store.cycle_key()
        with shared().moving(name_of(store_class, store.session_key)):
            pass
        store["user"] = 2
        store.save()
        assert asyncio.run(store_class(store.session_key).aget("user")) == 2


def test_ids_are_those_of_all_nodes() -> None:
    for module in MODULES.values():
        with site(module) as store_class:
            keys = [visitor(store_class, user=1, large=LARGE) for _ in range(20)]
            assert len({shared().master_of(name_of(store_class, key)) for key in keys}) == 3
            assert sorted(storage_of(store_class).ids()) == sorted(str(store_class(key).session_id) for key in keys)


# Checks, and the entry as a cache.


def ids_of(messages: list[Any]) -> list[str]:
    return [message.id.removeprefix("gsession_django.") for message in messages]


def test_the_checks_report_wrong_entries() -> None:
    url = shared().url()
    with site(redis_engine, location=url.removesuffix("/0")):
        assert ids_of(check_settings()) == []
    for wrong in (shared().nodes[0].url(db=1), shared().url("?db=2"), "unix:///redis.sock"):
        with site(redis_engine, location=wrong):
            assert ids_of(check_settings()) == ["E012"]
    good = cluster_settings("gsession_django.backends.redis", [node.url() for node in shared().nodes])
    for other in (url, shared().nodes[2].url()):
        entries = {**good["CACHES"], "default": {**good["CACHES"]["sessions"], "LOCATION": other}}
        with override_settings(**{**good, "CACHES": entries}):
            assert ids_of(check_settings()) == ["W003"]


def test_checks_of_the_servers_ask_each_primary() -> None:
    with site(redis_hash):
        assert ids_of(check_deployment()) == []
        node = shared().nodes[2]
        with node.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            try:
                (warning,) = check_deployment()
            finally:
                client.config_set("maxmemory-policy", "noeviction")
        assert (warning.id, str(node.port) in warning.msg) == ("gsession_django.W005", True)
    with site(redis_hash, location=RedisCluster.nobody()):
        assert ids_of(check_deployment()) == ["W004"]


def test_the_entry_is_an_ordinary_cache() -> None:
    with RedisCluster() as cluster, site(redis_engine, location=[node.url() for node in cluster.nodes]):
        cache = caches["sessions"]
        keys = [f"key {number}" for number in range(50)]
        cache.set_many({key: [key] for key in keys})
        assert cache.get_many([*keys, "missing"]) == {key: [key] for key in keys}
        assert cache.get("key 1") == ["key 1"]
        assert cache.get("missing", 1) == 1
        assert cache.add("key 1", 2) is False
        assert cache.add("new", 2) is True
        assert cache.touch("new", 100)
        assert 0 < cache.ttl("new") <= 100  # type: ignore[attr-defined]
        assert cache.incr("new", 3) == 5
        assert cache.has_key("new")
        assert sorted(cache.keys("key *")) == sorted(keys)  # type: ignore[attr-defined]
        assert cache.delete("new") is True
        assert cache.delete_many(keys[:20]) == 20  # type: ignore[func-returns-value]
        assert cache.delete_pattern("key 2*") == 10  # type: ignore[attr-defined]
        with cache.lock("a lock"):  # type: ignore[attr-defined]
            assert cache.incr_version("key 30") == 2
        with pytest.raises(RedisClusterException, match="slot"):
            cache.sunion("one", "two")  # type: ignore[attr-defined]
        cache.clear()
        assert cache.get_many(keys) == {}
        cache._client.connect().close()  # type: ignore[attr-defined]
