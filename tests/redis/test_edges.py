"""The Redis engines at the edges: TTLs that are over, odd keys, rare settings."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from redis.crc import key_slot

from gsession_django import SessionMap, SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_settings
from gsession_django.core.engine import engine_of
from gsession_django.redis.client import RedisClient, alone
from gsession_django.redis.commands import Batch, Script
from gsession_django.redis.fields import MARK
from gsession_django.redis.move import beside
from gsession_django.redis.scripts import APPLY_HASH
from gsession_django.redis.settings import CacheEntry
from tests.support.engines import saved
from tests.support.proxies import Proxy
from tests.support.redis_servers import RedisServer, settings_for, shared

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
LARGE = "x" * 20_000


@contextmanager
def site(module: ModuleType, entry: Any = None, **options: Any) -> Iterator[type[SessionStore]]:
    with override_settings(**settings_for(module.__name__, shared().url(), entry, **options)):
        yield module.SessionStore


@both_engines
def test_an_expiry_that_is_over_ends_nothing_that_another_request_has_prolonged(module: ModuleType) -> None:
    with site(module) as store_class:
        key = saved(store_class(), {"a": 1})
        mine, theirs = store_class(key), store_class(key)
        mine["mine"] = 1
        theirs.set_expiry(3600)
        saved(theirs, {"theirs": 1})
        session_id = theirs.session_id
        assert session_id is not None
        session = mine._session
        assert isinstance(session, SessionMap)
        assert store_class.get_storage().apply(session_id, session, 0)
        left = store_class(key)
        assert dict(left.items()) == {"a": 1, "_session_expiry": 3600, "theirs": 1, "mine": 1}
        assert left.ttl_left is not None
        assert 3500 < left.ttl_left <= 3600


def test_a_large_value_whose_key_is_empty_does_not_take_the_place_of_the_bookkeeping() -> None:
    with site(redis_hash) as store_class:
        key = saved(store_class(), {"": LARGE, "a": 1})
        assert dict(store_class(key).items()) == {"": LARGE, "a": 1}
        saved(store_class(key), {"": "small"})
        saved(store_class(key), {"b": 2})
        assert dict(store_class(key).items()) == {"": "small", "a": 1, "b": 2}


def test_large_values_do_not_outlive_a_session_that_ends_while_it_is_saved() -> None:
    # As if the script took longer than the session has to live.
    ends = "redis.call('PEXPIRE', KEYS[1], 5) for _ = 1, 4000000 do end"
    with site(redis_hash) as store_class, shared().client() as client:
        store = store_class(saved(store_class(), {"large": LARGE}))
        storage = store_class.get_storage()
        assert isinstance(storage, redis_hash.RedisHashStorage)
        assert store.session_id is not None
        keys = storage._keys(store.session_id)
        text = str(Script.in_full(APPLY_HASH(keys))[1]).replace("local known", f"{ends}\nlocal known", 1)
        assert client.eval(text, len(keys), *keys, 60, "of another expiry", 0, 0, 0) == 1
        assert client.pttl(keys[1]) != -1


def test_a_session_that_moves_takes_no_large_values_over_that_were_left_under_its_new_id() -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        storage = store_class.get_storage()
        assert isinstance(storage, redis_hash.RedisHashStorage)
        session_id = store_class(saved(store_class(), {"notes": "mine"})).session_id
        assert session_id is not None
        new_id = f"{random.getrandbits(256):064x}"
        small, large = storage._keys(new_id)
        client.hset(large, "notes", MARK + b'"of a session that ended"')
        assert storage.move(session_id, new_id, 60)
        assert client.exists(small, large) == 1
        assert storage.get(new_id, "notes") == "mine"
        assert storage.get_map(new_id) == {"notes": "mine"}


@pytest.mark.parametrize("timeout", [None, 0])
@pytest.mark.parametrize(("wait", "expected"), [(1, []), (100, ["gsession_django.E014"])])
def test_an_entry_without_a_timeout_waits_for_replicas_as_long_as_redis_py_does(
    timeout: int | None, wait: int, expected: list[str]
) -> None:
    entry = {"OPTIONS": {"SOCKET_TIMEOUT": timeout}}
    with site(redis_engine, entry, wait_replicas=1, wait_timeout=wait):
        assert [message.id for message in check_settings()] == expected


def test_no_report_of_an_error_shows_the_password_of_an_entry() -> None:
    with override_settings(**settings_for(redis_engine.__name__, "redis://ada:sesame@127.0.0.1:1/0")):
        entry = CacheEntry.of_sessions()
    assert "sesame" not in repr(entry)
    assert "sesame" not in str(entry)


@pytest.mark.parametrize("pool", ["ConnectionPool", "BlockingConnectionPool"])
def test_a_batch_that_must_not_be_repeated_is_not_repeated_after_a_forgotten_script(pool: str) -> None:
    name = f"{random.getrandbits(64):x}"
    batch = Batch(Script("return redis.call('INCR', KEYS[1]) -- once")((name,)), repeat=False)
    with Proxy(shared().port) as proxy, shared().client() as client:
        entry = {"OPTIONS": {"CONNECTION_POOL_CLASS": f"redis.connection.{pool}"}}
        with override_settings(**settings_for(redis_engine.__name__, proxy.url(), entry)):
            redis_client = RedisClient(CacheEntry.of_sessions())
            proxy.on_reply = lambda connection, data: (b"", True) if data == b":1\r\n" else (data, False)
            with pytest.raises(StorageUnavailable):
                redis_client.send(batch)
            assert client.getdel(name) == b"1"
            client.script_flush()
            with pytest.raises(StorageUnavailable):
                asyncio.run(redis_client.acarry_out(alone(batch)))
            assert client.getdel(name) == b"1"


@both_engines
def test_a_touch_whose_expiry_is_over_ends_nothing_that_another_request_has_prolonged(module: ModuleType) -> None:
    with site(module) as store_class:
        key = saved(store_class(), {"a": 1})
        session_id = store_class(key).session_id
        assert session_id is not None
        engine, held = engine_of(store_class), store_class(key)._session
        assert engine.run(engine.touch(session_id, held.saving(), 0, store_class()))
        assert dict(store_class(key).items()) == {"a": 1}
        store_class(key).delete()
        assert not engine.run(engine.touch(session_id, held.saving(), 0, store_class()))


def test_the_reason_of_an_outage_is_a_sentence_of_its_own() -> None:
    with RedisServer(maxmemory="1", maxmemory_policy="noeviction") as server:
        full = {"LOCATION": server.url()}
        match = r"not allowed when used memory > 'maxmemory'\. Look at the server"
        with site(redis_engine, full) as store_class, pytest.raises(StorageUnavailable, match=match):
            saved(store_class(), {"a": 1})
    with (
        site(redis_engine, entry={"LOCATION": "redis://127.0.0.1:1"}) as store_class,
        pytest.raises(StorageUnavailable, match=r"Connection refused\. Look at the server"),
    ):
        store_class("abcdefgh").load()


@both_engines
def test_a_change_of_another_task_during_a_save_is_saved_by_the_next_save(module: ModuleType) -> None:
    async def view(store: SessionStore) -> None:
        await store.aset("a", 2)
        (await store.aget("cart"))["pear"] = 1
        saving = asyncio.create_task(store.asave())
        while not saving.done():
            await asyncio.sleep(0)
            if (await store.aget("b")) is None:
                await store.aset("b", 3)
                (await store.aget("cart"))["plum"] = 1
        await saving
        await store.asave()

    with site(module) as store_class:
        key = saved(store_class(), {"a": 1, "cart": {}})
        asyncio.run(view(store_class(key)))
        assert dict(store_class(key).items()) == {"a": 2, "b": 3, "cart": {"pear": 1, "plum": 1}}


def test_a_field_that_is_not_a_key_of_ours_is_absent(caplog: pytest.LogCaptureFixture) -> None:
    with site(redis_hash) as store_class, shared().client() as client:
        store = store_class(saved(store_class(), {"a": 1}))
        name = store_class.get_storage()._keys(store.session_id)[0]  # type: ignore[attr-defined]
        client.hset(name, b"\x80", b"1")
        assert dict(store_class(store.session_key).items()) == {"a": 1}
        assert [record.name for record in caplog.records] == ["django.security.SuspiciousSession"]
        store["a"] = 2
        store.save()
        assert dict(store_class(store.session_key).items()) == {"a": 2}


@pytest.mark.parametrize("key", ["plain", "{tag}rest", "a{b", "}{tag}"])
def test_the_new_place_of_a_session_is_remembered_beside_it(key: str) -> None:
    assert key_slot(beside(key).encode()) == key_slot(key.encode())


@pytest.mark.parametrize("prefix", ["x}y:", "{}:", "a{}b:"])
def test_braces_that_are_not_a_hash_tag_are_refused_in_a_cluster(prefix: str) -> None:
    client = {"OPTIONS": {"CLIENT_CLASS": "gsession_django.redis.cluster.ClusterClient"}}
    with (
        override_settings(**settings_for(redis_engine.__name__, "redis://127.0.0.1:1", client, prefix=prefix)),
        pytest.raises(ImproperlyConfigured, match="braces"),
    ):
        redis_engine.SessionStore.get_storage()


@pytest.mark.parametrize("replicas", ["1", -1, 1.5, True])
def test_a_wrong_number_of_replicas_is_reported(replicas: Any) -> None:
    with site(redis_engine, wait_replicas=replicas):
        assert [message.id for message in check_settings()] == ["gsession_django.E023"]
