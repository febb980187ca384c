"""Sessions over TLS, a Unix socket, and as a user with no more rights than sessions need."""

import asyncio
import gc
import random
import shlex
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trustme
from django.contrib.auth import SESSION_KEY
from django.test import override_settings

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_deployment, check_settings
from gsession_django.redis.commands import Batch
from gsession_django.redis.storage import BaseRedisStorage
from tests.support.engines import new_session as visitor
from tests.support.redis_sentinels import wait_until
from tests.support.redis_servers import RedisServer, settings_for, shared
from tests.support.tls import TlsProxy

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
LARGE = "x" * 100_000
PAGE = Path(__file__).resolve().parents[2] / "docs" / "redis.md"


def storage_of(store_class: type[SessionStore]) -> BaseRedisStorage:
    storage = store_class.get_storage()
    assert isinstance(storage, BaseRedisStorage)
    return storage


@contextmanager
def site(module: ModuleType, url: str, entry: Any = None, **options: Any) -> Iterator[type[SessionStore]]:
    with override_settings(**settings_for(module.__name__, url, entry, **options)):
        yield module.SessionStore


def use_all(store_class: type[SessionStore]) -> None:
    """Let sessions go through all operations of the engines, over kept connections."""
    store = store_class(visitor(store_class, {"name": "ada", "cart": {"plum": 1}, "notes": LARGE}))
    other = store_class(store.session_key)
    other["cart"]["pear"] = 2
    store["cart"]["apple"] = 3
    other.save()
    store.save()
    store.modified = True
    store.save()
    del store["notes"]
    store["letter"] = LARGE + "y"
    store.cycle_key()
    store.save()
    assert store_class().exists(store.session_key)
    found = dict(store_class(store.session_key).items())
    assert found == {"name": "ada", "cart": {"plum": 1, "pear": 2, "apple": 3}, "letter": LARGE + "y"}
    assert store.session_id in list(store_class.get_storage().ids())
    store = store_class(store.session_key)
    store.clear()
    store["name"] = "bob"
    store.save()
    assert dict(store_class(store.session_key).items()) == {"name": "bob"}
    store.set_expiry(-1)
    store.save()
    assert not store_class().exists(store.session_key)
    store = store_class(visitor(store_class, {"name": "eve"}))
    store.flush()
    use_the_index_and_the_lock(store_class)
    assert not storage_of(store_class).client._way._lends  # type: ignore[union-attr]


def use_the_index_and_the_lock(store_class: type[SessionStore]) -> None:
    storage = storage_of(store_class)
    user = f"{random.getrandbits(64):x}"
    store = store_class(visitor(store_class, {SESSION_KEY: user}))
    storage.add_to_user(user, "expired-session", 60)
    name = storage._key(f"user/{user}")
    storage.client.send(Batch(("ZADD", name, "1", "expired-session")))
    assert list(storage.sessions_of(user)) == [store.session_id]
    assert storage.lock(str(store.session_id), "token", 60)
    storage.unlock(str(store.session_id), "token")
    assert store[SESSION_KEY] == user
    store.flush()
    assert list(storage.sessions_of(user)) == []


async def ause_all(store_class: type[SessionStore]) -> None:
    store = store_class()
    await store.aset("name", "ada")
    await store.aset("notes", LARGE)
    await store.asave()
    await store.acycle_key()
    await store.aset("name", "bob")
    await store.asave()
    again = store_class(store.session_key)
    assert await again.aget("name") == "bob"
    assert await again.aget("notes") == LARGE
    await again.aflush()
    connections, _ = storage_of(store_class).client._of_loops[asyncio.get_running_loop()]
    assert not connections._lends  # type: ignore[union-attr]


@both_engines
def test_a_connection_that_is_not_needed_any_more_is_closed_at_once(module: ModuleType) -> None:
    """The garbage collector would close it late, and perhaps with a warning."""
    gc.disable()
    try:
        with RedisServer() as server, server.client() as client:
            with site(module, server.url()) as store_class:
                use_all(store_class)  # the server knows no script yet, so some answers are errors
                check_deployment()
                there = weakref.ref(storage_of(store_class).client)
            assert there() is None
            wait_until(lambda: len(client.client_list()) == 1, "no connection is left but this")
    finally:
        gc.enable()


def is_outage(store_class: type[SessionStore], match: str) -> None:
    async def load() -> None:
        with pytest.raises(StorageUnavailable, match=match):
            await store_class("abcdefgh").aload()

    with pytest.raises(StorageUnavailable, match=match):
        store_class("abcdefgh").load()
    asyncio.run(load())


# TLS.


@contextmanager
def tls_site(
    module: ModuleType, folder: Path, query: str = "", **pool: Any
) -> Iterator[tuple[TlsProxy, type[SessionStore]]]:
    with TlsProxy(shared().port, folder) as proxy:
        entry = {"OPTIONS": {"CONNECTION_POOL_KWARGS": {"ssl_ca_certs": proxy.authority, **pool}}}
        with site(module, f"rediss://127.0.0.1:{proxy.port}/0{query}", entry) as store_class:
            yield proxy, store_class


@both_engines
def test_tls_works_on_kept_connections_and_after_a_cut(module: ModuleType, tmp_path: Path) -> None:
    async def use() -> None:
        await ause_all(store_class)
        before = proxy.connections
        await ause_all(store_class)
        assert proxy.connections == before
        proxy.cut_all()
        await ause_all(store_class)
        assert proxy.connections == before + 1

    with tls_site(module, tmp_path) as (proxy, store_class):
        assert check_settings() == []
        use_all(store_class)
        use_all(store_class)
        assert proxy.connections == 1
        proxy.cut_all()
        use_all(store_class)
        assert proxy.connections == 2
        asyncio.run(use())


def test_an_untrusted_certificate_is_an_outage(tmp_path: Path) -> None:
    other = str(tmp_path / "other.pem")
    trustme.CA().cert_pem.write_to_path(other)
    with tls_site(redis_engine, tmp_path, ssl_ca_certs=other) as (_, store_class):
        is_outage(store_class, "certificate verify failed")
    with tls_site(redis_engine, tmp_path, ssl_ca_certs=str(tmp_path / "missing.pem")) as (_, store_class):
        is_outage(store_class, "No such file")


def reply_to_load(module: ModuleType, store_class: type[SessionStore], key: str) -> bytes:
    """Return the server's answer to a load."""
    name = storage_of(store_class)._keys(str(store_class(key).session_id))[0]
    with socket.create_connection(("127.0.0.1", shared().port)) as plain:
        plain.sendall(Batch(("GET" if module is redis_engine else "HGETALL", name), ("PTTL", name)).packed())
        reply = b""
        while b"\r\n:" not in reply or not reply.endswith(b"\r\n"):
            reply += plain.recv(65536)
    return reply


@pytest.mark.parametrize("pool", [{}, {"socket_read_size": 1}], ids=["", "left in the TLS layer"])
@both_engines
def test_nobody_gets_a_surplus_reply_under_tls(module: ModuleType, pool: dict[str, Any], tmp_path: Path) -> None:
    """It comes in one TLS record with the answer to another load, so none of it is left on the socket."""

    def add(surplus: bytes) -> Callable[[bytes], bytes]:
        def added(data: bytes) -> bytes:
            proxy.on_reply = bytes
            return data + surplus

        return added

    async def use() -> None:
        assert await store_class(bob).aget("name") == "bob"
        proxy.on_reply = add(surplus)
        assert await store_class(bob).aget("name") == "bob"
        assert await store_class(bob).aget("name") == "bob"

    with tls_site(module, tmp_path, "?protocol=2", **pool) as (proxy, store_class):
        ada, bob = visitor(store_class, {"name": "ada"}), visitor(store_class, {"name": "bob"})
        surplus = reply_to_load(module, store_class, ada)
        proxy.on_reply = add(surplus)
        assert store_class(bob)["name"] == "bob"
        assert store_class(bob)["name"] == "bob"
        asyncio.run(use())
        assert proxy.connections == 4, "both connections were given up"


# A Unix socket.


@both_engines
def test_sessions_work_over_a_unix_socket(module: ModuleType, tmp_path: Path) -> None:
    path = str(tmp_path / "redis.sock")
    with RedisServer(unixsocket=path) as server, site(module, f"unix://{path}?db=1") as store_class:
        assert check_settings() == []
        use_all(store_class)
        asyncio.run(ause_all(store_class))
        key = visitor(store_class, {"name": "ada"})
        with server.client() as client:
            assert set(client.info("keyspace")) == {"db1"}
        server.kill()
        is_outage(store_class, "redis.sock")
        server.restart()
        use_all(store_class)
        assert dict(store_class(key).items()) == {}, "it keeps nothing on disk"


# A user with no more rights than sessions need.


@contextmanager
def acl_server() -> Iterator[RedisServer]:
    """Yield a server whose only user is the one that the documentation creates."""
    text = PAGE.read_text("utf-8").replace("\\\n", "")
    rules = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("redis-cli ACL SETUSER")]
    assert rules
    with RedisServer() as server:
        with server.client() as client:
            for rule in rules:
                client.execute_command(*rule)
            client.execute_command("ACL", "SETUSER", "default", "nocommands")
        yield server


@pytest.mark.parametrize("way", ["in the URL", "in OPTIONS"])
@both_engines
def test_the_user_of_the_docs_has_all_rights_that_sessions_need(module: ModuleType, way: str) -> None:
    with acl_server() as server:
        if way == "in the URL":
            url, entry = f"redis://sessions:secret@127.0.0.1:{server.port}/0", {}
        else:
            url, entry = server.url(), {"OPTIONS": {"USERNAME": "sessions", "PASSWORD": "secret"}}
        with site(module, url, entry) as store_class:
            use_all(store_class)
            asyncio.run(ause_all(store_class))
            assert [message.id for message in check_deployment()] == ["gsession_django.W006"]
        with site(module, url, entry, wait_replicas=1, wait_timeout=0.001) as store_class:
            visitor(store_class, {"name": "ada"})
        with site(module, url, entry, prefix="pages:") as store_class:
            is_outage(store_class, "permissions")


def test_a_wrong_password_is_an_outage_and_is_not_shown() -> None:
    with (
        acl_server() as server,
        site(redis_engine, f"redis://sessions:sesame@127.0.0.1:{server.port}/0") as store_class,
    ):
        is_outage(store_class, "invalid username-password pair")
        with pytest.raises(StorageUnavailable) as error:
            store_class("abcdefgh").load()
        assert "sesame" not in str(error.value)


# Waiting for replicas.


@pytest.mark.parametrize(
    ("options", "query", "expected"),
    [
        ({"wait_replicas": 1, "wait_timeout": 1.95}, "", ["gsession_django.E014"]),
        ({"wait_replicas": 1, "wait_timeout": "1"}, "", ["gsession_django.E023"]),
        ({"wait_replicas": 1}, "?socket_timeout=0.15", ["gsession_django.E014"]),
        ({"wait_replicas": 1, "wait_timeout": 1.8}, "", []),
        ({"wait_replicas": 1}, "", []),
        ({"wait_timeout": 2}, "", []),
    ],
)
@both_engines
def test_waiting_for_replicas_takes_less_than_an_answer_may(
    module: ModuleType, options: dict[str, Any], query: str, expected: list[str]
) -> None:
    with site(module, shared().url(query, db=1), **options):
        assert [message.id for message in check_settings()] == expected
