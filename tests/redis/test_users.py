"""The index from users to sessions in the Redis engines: a sorted set a user, on one server and in a cluster."""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth import SESSION_KEY
from django.core.management import CommandError, call_command
from django.test import override_settings
from redis.crc import key_slot

from gsession_django import SessionMap, SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.redis.commands import Batch
from gsession_django.redis.connections import Connections
from gsession_django.redis.storage import BaseRedisStorage
from gsession_django.users import (
    aend_session,
    aend_sessions,
    asessions_of,
    end_session,
    end_sessions,
    sessions_of,
)
from tests.support import redis_clusters
from tests.support.redis_servers import RedisServer, settings_for, shared
from tests.support.sign_ins import ids_of, sign_in
from tests.support.tenants import TENANT, tenant

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
both_modes = pytest.mark.parametrize("mode", ["sync", "async"])
MINUTE = 60_000
RUN = f"{random.getrandbits(64):x}"


def prefix_of_tenant() -> str:
    return f"{RUN}:{TENANT.get()}:"


@pytest.fixture(params=["one server", "cluster"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextmanager
def site(module: ModuleType, place: str = "one server", **options: Any) -> Iterator[BaseRedisStorage]:
    options.setdefault("prefix", f"{random.getrandbits(64):x}:")
    if place == "cluster":
        settings = redis_clusters.cluster_settings(module.__name__, redis_clusters.shared().url(), **options)
    else:
        settings = settings_for(module.__name__, shared().url(), **options)
    with override_settings(**settings):
        storage = module.SessionStore.get_storage()
        assert isinstance(storage, BaseRedisStorage)
        yield storage


def send(storage: BaseRedisStorage, *command: str) -> Any:
    (reply,) = storage.client.send(Batch(command))
    return reply


def index_of(storage: BaseRedisStorage, user: str = "7") -> str:
    return storage._now()._key(f"user/{user}")


def listed(storage: BaseRedisStorage, user: str = "7") -> list[str]:
    """Return the ids that the index has, whatever their sessions are."""
    return [each.decode() for each in send(storage, "ZRANGE", index_of(storage, user), "0", "-1")]


def added_at(storage: BaseRedisStorage, session_id: str) -> int:
    return int(float(send(storage, "ZSCORE", index_of(storage), session_id)))


def age(storage: BaseRedisStorage, session_id: str, milliseconds: int = MINUTE + 1000) -> None:
    """Let an id have been added so much earlier."""
    send(storage, "ZINCRBY", index_of(storage), str(-milliseconds), session_id)


def new_id() -> str:
    return secrets.token_hex(32)


def add(storage: BaseRedisStorage, live: bool = True, user: str = "7") -> str:
    """List a session that exists, or one that does not."""
    session_id = new_id()
    storage.add_to_user(user, session_id, 120)
    if live:
        assert storage.create(session_id, SessionMap({SESSION_KEY: user}), 60)
    return session_id


# The set of a user.


@both_engines
def test_ids_are_listed_in_the_order_in_which_they_were_added(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        ids = [add(storage) for _ in range(5)]
        for number, session_id in enumerate(ids):
            age(storage, session_id, 10 * (5 - number))
        assert storage.sessions_of("7") == ids
        assert storage.sessions_of("8") == []


@both_engines
def test_the_set_lives_as_long_as_its_longest_entry_is_to_be_listed(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        for ttl, expected in ((100, 100), (50, 100), (200, 200), (10**15, 10**12)):
            storage.add_to_user("7", new_id(), ttl)
            assert expected - 5 <= send(storage, "TTL", index_of(storage)) <= expected


@both_engines
def test_the_time_of_the_entry_is_the_servers(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        session_id = add(storage)
        seconds, microseconds = map(int, send_to_node_of(storage, index_of(storage), "TIME"))
        now = seconds * 1000 + microseconds / 1000
        assert now - 10_000 < added_at(storage, session_id) <= now


def send_to_node_of(storage: BaseRedisStorage, key: str, command: str) -> Any:
    server = redis_clusters.shared().master_of(key) if storage.client.entry.is_cluster else shared()
    with server.client() as client:
        return client.execute_command(command)


@pytest.mark.parametrize("user", ["", "ada@example.com", "a/b", "{7}", "}7{", "*", "\ud800\n", "7" * 1000, "é"])
@both_engines
def test_any_text_is_a_user_and_no_other_one(module: ModuleType, place: str, user: str) -> None:
    with site(module, place) as storage:
        session_id = add(storage, user=user)
        assert storage.sessions_of(user) == [session_id]
        assert storage.sessions_of("7") == storage.sessions_of("a") == storage.sessions_of("%2A") == []
        storage.remove_from_user(user, session_id, True)
        assert storage.sessions_of(user) == []


@both_engines
def test_the_set_and_the_lock_are_no_sessions(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        session_id = add(storage)
        assert storage.lock(session_id, "token", 60)
        assert storage.lock("12345678", "token", 60)
        assert list(storage.ids()) == [session_id]
        for name in ("user/7", f"lock/{session_id}"):
            assert not module.SessionStore().exists(name), "no cookie leads there"


def test_the_two_engines_keep_sets_of_their_own() -> None:
    """As where sessions move from one to the other: each would drop what it does not find."""
    with site(redis_engine, prefix=f"{RUN}:move:") as one:
        first = add(one)
        age(one, first)
        with site(redis_hash, prefix=f"{RUN}:move:") as other:
            second = add(other)
            assert other.sessions_of("7") == [second]
        assert one.sessions_of("7") == [first]


# Ids without a session.


@both_engines
def test_an_id_whose_session_has_ended_is_removed_as_it_is_found(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        live, dead = [add(storage) for _ in range(6)], [add(storage, live=False) for _ in range(6)]
        for session_id in live + dead:
            age(storage, session_id)
        assert set(storage.sessions_of("7")) == set(live) == set(listed(storage))


@both_engines
def test_an_id_may_be_there_a_minute_before_its_session(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        young, old = add(storage, live=False), add(storage, live=False)
        age(storage, young, MINUTE - 30_000)
        age(storage, old, MINUTE + 1)
        assert storage.sessions_of("7") == [young] == listed(storage)


@both_engines
def test_an_id_that_is_added_again_is_young_again(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        session_id = add(storage, live=False)
        age(storage, session_id)
        storage.add_to_user("7", session_id, 120)
        assert storage.sessions_of("7") == [session_id]


@both_engines
def test_an_id_that_is_added_while_the_dead_are_looked_for_stays(
    module: ModuleType, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site(module, place) as storage:
        session_id, dead = add(storage, live=False), add(storage, live=False)
        age(storage, session_id)
        age(storage, dead)
        exchange: Any = type(storage.client._way).exchange

        def meanwhile(way: Any, batch: Batch) -> Any:
            if dead in batch.commands[0] and batch.commands[0][0] == "EVALSHA":
                monkeypatch.undo()
                storage.add_to_user("7", session_id, 120)
            return exchange(way, batch)

        monkeypatch.setattr(type(storage.client._way), "exchange", meanwhile)
        storage.sessions_of("7")
        assert listed(storage) == [session_id]


@both_engines
def test_a_set_of_many_is_cleaned_without_being_asked_for(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        live, dead = add(storage), [add(storage, live=False) for _ in range(98)]
        for session_id in dead:
            age(storage, session_id)
        assert len(listed(storage)) == 99
        last = add(storage)
        assert listed(storage) == [live, last]


@both_engines
def test_many_live_sessions_are_all_listed(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        ids = {add(storage) for _ in range(250)}
        assert set(storage.sessions_of("7")) == ids == set(listed(storage))


# The end of a session.


@both_engines
def test_a_session_that_ends_takes_its_entry_along(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        one, other = add(storage), add(storage)
        storage.remove_from_user("7", one, True)
        assert not storage.exists(one)
        assert listed(storage) == [other]
        storage.remove_from_user("7", one, True)
        storage.remove_from_user("8", other, False)
        assert storage.sessions_of("7") == [other]


@both_engines
def test_a_session_that_goes_on_keeps_all_but_its_entry(module: ModuleType, place: str) -> None:
    with site(module, place) as storage:
        session_id = add(storage)
        storage.remove_from_user("7", session_id, False)
        assert storage.exists(session_id)
        assert not send(storage, "EXISTS", index_of(storage))


def test_all_of_a_hash_ends(place: str) -> None:
    with site(redis_hash, place) as storage:
        session_id = new_id()
        storage.add_to_user("7", session_id, 120)
        assert storage.create(session_id, SessionMap({SESSION_KEY: "7", "large": "x" * 100_000}), 60)
        storage.remove_from_user("7", session_id, True)
        assert not any(send(storage, "EXISTS", key) for key in storage._keys(session_id))


@both_engines
def test_in_a_cluster_the_session_ends_first(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry without a session is found and removed; a session without an entry could not be ended."""
    with site(module, "cluster") as storage:
        session_id = add(storage)
        sent: list[Any] = []
        exchange: Any = type(storage.client._way).exchange

        def noted(way: Any, batch: Batch) -> Any:
            sent.extend(batch.commands)
            return exchange(way, batch)

        monkeypatch.setattr(type(storage.client._way), "exchange", noted)
        storage.remove_from_user("7", session_id, True)
        assert [(command[0], command[1]) for command in sent] == [
            ("UNLINK", storage._key(session_id)),
            ("ZREM", index_of(storage)),
        ]


@both_engines
def test_the_replicas_have_what_is_added_and_what_ends(
    module: ModuleType, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of these changes waits for more replicas than there are, and so is told in the log."""
    with site(module, place, wait_replicas=2, wait_timeout=0.001) as storage:
        session_id = new_id()
        changes: list[Callable[[], object]] = [
            lambda: storage.add_to_user("7", session_id, 60),
            lambda: storage.remove_from_user("7", session_id, False),
            lambda: storage.remove_from_user("7", session_id, True),
            lambda: storage.lock(session_id, "token", 60),
            lambda: storage.unlock(session_id, "token"),
        ]
        for change in changes:
            caplog.clear()
            change()
            assert "wait_replicas" in caplog.text
        assert storage.sessions_of("7") == []


# Tenants.


@both_engines
def test_the_same_user_id_is_another_user_at_each_tenant(module: ModuleType, place: str) -> None:
    with site(module, place, prefix=prefix_of_tenant) as storage:
        ids = {}
        for name in (f"{place} ada", f"{place} bob"):
            with tenant(name):
                ids[name] = add(storage)
                age(storage, ids[name])
        for name, session_id in ids.items():
            with tenant(name):
                assert storage.sessions_of("7") == [session_id]
                assert storage.lock("the same session", name, 60)
        with tenant(f"{place} ada"):
            assert end_sessions("7") == 1
            assert storage.sessions_of("7") == []
        with tenant(f"{place} bob"):
            assert storage.sessions_of("7") == [ids[f"{place} bob"]]


# Async.


@both_engines
def test_the_async_twins_do_the_same(module: ModuleType, place: str) -> None:
    async def use() -> None:
        one, other, dead = new_id(), new_id(), new_id()
        for session_id in (one, other, dead):
            await storage.aadd_to_user("7", session_id, 120)
            age(storage, session_id, MINUTE + 10)
        for session_id in (one, other):
            assert storage.create(session_id, SessionMap({SESSION_KEY: "7"}), 60)
        assert set(await storage.asessions_of("7")) == {one, other}
        await storage.aremove_from_user("7", one, True)
        assert not storage.exists(one)
        await storage.aremove_from_user("7", other, False)
        assert storage.exists(other)
        assert await storage.asessions_of("7") == []

    with site(module, place) as storage:
        asyncio.run(use())


@both_engines
def test_an_async_request_is_listed_and_ended(module: ModuleType, place: str) -> None:
    async def use() -> None:
        store, other = module.SessionStore(), module.SessionStore()
        for each in (store, other):
            await each.aset(SESSION_KEY, "7")
            await each.asave()
        (found, _) = await asessions_of("7", store)
        assert found.session_id == store.session_id
        await other.aflush()
        assert [each.session_id for each in await asessions_of("7")] == [store.session_id]

    with site(module, place):
        asyncio.run(use())


# Outages.


@both_modes
@both_engines
def test_in_an_outage_the_sessions_of_a_user_are_neither_listed_nor_lost(module: ModuleType, mode: str) -> None:
    with (
        RedisServer(appendonly="yes", appendfsync="always") as server,
        override_settings(**settings_for(module.__name__, server.url())),
    ):
        store = sign_in(module.SessionStore())
        (listed,) = sessions_of("7")
        server.kill()
        asks: list[Callable[[], Any]] = [
            lambda: sessions_of("7") if mode == "sync" else asyncio.run(asessions_of("7")),
            lambda: end_session(listed) if mode == "sync" else asyncio.run(aend_session(listed)),
            lambda: end_sessions("7") if mode == "sync" else asyncio.run(aend_sessions("7")),
        ]
        for ask in asks:
            with pytest.raises(StorageUnavailable, match=r"CACHES\['sessions'\]"):
                ask()
        session_id = str(store.session_id)
        for arguments in (("list",), ("show", session_id), ("end", session_id), ("stats",)):
            with pytest.raises(CommandError, match=r"CACHES\['sessions'\]"):
                call_command("sessions", *arguments)
        server.restart()
        assert ids_of() == {store.session_id}


# Round trips.


@pytest.fixture
def round_trips(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count what is written to any server; the result returns how often that was since it was last asked."""
    sent = 0
    exchange: Any = Connections.exchange

    def counted(connections: Connections, batch: Batch) -> Any:
        nonlocal sent
        # A script is sent again to a node that has none yet, and a new process asks once who has which slot.
        sent += batch.commands[0][0] not in ("EVAL", "CLUSTER")
        return exchange(connections, batch)

    def since() -> int:
        nonlocal sent
        found, sent = sent, 0
        return found

    monkeypatch.setattr(Connections, "exchange", counted)
    return since


async def call(mode: str, store: SessionStore, method: str, *arguments: Any) -> Any:
    if mode == "sync":
        return getattr(store, method)(*arguments)
    return await getattr(store, f"a{method}")(*arguments)


def run(mode: str, use: Callable[[], Awaitable[None]]) -> None:
    """Carry out what a thread, or a task, does."""
    if mode == "async":
        asyncio.run(use())  # type: ignore[arg-type]
        return
    with pytest.raises(StopIteration):
        use().send(None)  # type: ignore[attr-defined]


@both_modes
@both_engines
def test_a_sign_in_costs_one_round_trip_more(
    module: ModuleType, mode: str, place: str, round_trips: Callable[[], int]
) -> None:
    async def use() -> None:
        for user in (None, "7"):
            store = module.SessionStore()
            store["cart"] = 1
            await call(mode, store, "save")
            round_trips()
            store = module.SessionStore(store.session_key)
            await call(mode, store, "get", SESSION_KEY)
            assert round_trips() == 1, "load"
            await call(mode, store, "cycle_key")
            moved = round_trips()
            assert moved == (2 if place == "cluster" else 1)
            store[SESSION_KEY if user else "not a user"] = "7"
            await call(mode, store, "save")
            assert round_trips() == (2 if user else 1), "save"
        store = module.SessionStore(store.session_key)
        await call(mode, store, "get", SESSION_KEY)
        store["cart"] = 2
        await call(mode, store, "save")
        assert round_trips() == 2, "what a request of a user does who is signed in"
        store.modified = True
        await call(mode, store, "save")
        assert round_trips() == 1, "touch"
        store = module.SessionStore(store.session_key)
        await call(mode, store, "get", SESSION_KEY)
        round_trips()
        await call(mode, store, "flush")
        assert round_trips() == (2 if place == "cluster" else 1), "sign-out"

    with site(module, place):
        run(mode, use)


@both_engines
def test_a_look_at_the_sessions_of_a_user_costs_few_round_trips(
    module: ModuleType, place: str, round_trips: Callable[[], int]
) -> None:
    with site(module, place) as storage:
        storage.sessions_of("7")
        assert round_trips() == 1
        for _ in range(50):
            add(storage)
        dead = add(storage, live=False)
        round_trips()
        storage.sessions_of("7")
        nodes = 3 if place == "cluster" else 1
        assert round_trips() == 1 + nodes
        age(storage, dead)
        round_trips()
        storage.sessions_of("7")
        assert round_trips() == 1 + nodes + 1


@both_engines
def test_to_add_an_id_again_costs_one_round_trip(
    module: ModuleType, place: str, round_trips: Callable[[], int]
) -> None:
    with site(module, place) as storage:
        ids = [add(storage, live=False) for _ in range(100)]
        round_trips()
        storage.add_to_user("7", ids[0], 60)
        assert round_trips() == 1


# A cluster whose slots move.


@both_engines
def test_sessions_are_found_while_a_slot_of_the_cluster_moves(module: ModuleType) -> None:
    cluster = redis_clusters.shared()
    with site(module, "cluster") as storage:
        ids = [add(storage) for _ in range(20)]
        for session_id in ids:
            age(storage, session_id)
        for key in (storage._key(ids[0]), index_of(storage)):
            with cluster.moving(key) as moving:
                moving.move(key)
                assert set(storage.sessions_of("7")) == set(ids), "it is on its way"
                storage.add_to_user("7", ids[0], 60)
                age(storage, ids[0])
            assert set(storage.sessions_of("7")) == set(ids), "it is elsewhere"


@both_engines
def test_sessions_are_found_where_a_node_of_the_cluster_was_replaced(module: ModuleType) -> None:
    with site(module, "cluster") as storage:
        ids = [add(storage) for _ in range(20)]
        for session_id in ids:
            age(storage, session_id)
        nodes: Any = storage.client._way
        gone = "127.0.0.1", urlsplit(redis_clusters.shared().nobody()).port
        slot = key_slot(index_of(storage).encode())
        nodes._owners = {**dict.fromkeys(range(16384), gone), slot: nodes._owners[slot]}
        assert set(storage.sessions_of("7")) == set(ids)
