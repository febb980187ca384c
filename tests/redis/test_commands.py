"""The bytes that the Redis engines send."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import hiredis
import pytest
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.redis import commands
from gsession_django.redis.commands import Batch, Command, Script, _pack_in_python
from gsession_django.redis.settings import CacheEntry
from tests.support import redis_clusters
from tests.support.engines import new_session
from tests.support.redis_servers import settings_for, shared

COMMANDS: list[Command] = [
    ("GET", "prefix:0123"),
    ("SET", "é", b"\xff\x00\r\n", "EX", "1209600", "NX"),
    ("EVALSHA", "0" * 40, "2", "{a}", "{a}:large", "-1", b""),
]


def test_commands_are_arrays_of_bulk_strings() -> None:
    assert Batch(("GET", "é"), ("EXPIRE", "k", "-1")).packed() == (
        b"*2\r\n$3\r\nGET\r\n$2\r\n\xc3\xa9\r\n*3\r\n$6\r\nEXPIRE\r\n$1\r\nk\r\n$2\r\n-1\r\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_hiredis_packs_as_python_does(command: Command) -> None:
    assert Batch(command).packed() == _pack_in_python(command)


def test_a_script_is_sent_by_its_digest_and_in_full_if_the_server_does_not_know_it() -> None:
    script = Script("return ARGV[1]")
    batch = Batch(script(("key",), "value"), ("GET", "key"), repeat=False)
    (name, sha, *rest), get = batch.commands
    assert (name, rest, get) == ("EVALSHA", ["1", "key", "value"], ("GET", "key"))
    in_full = batch.in_full()
    assert in_full.commands == (("EVAL", "return ARGV[1]", "1", "key", "value"), ("GET", "key"))
    assert not in_full.repeat
    assert len(sha) == 40


# hiredis 3.5.0 crashes the process if a signal handler raises while it converts an int.


@contextmanager
def packing() -> Iterator[list[Any]]:
    """Yield the names of the commands that hiredis packs meanwhile. Each must be text and bytes only."""
    names: list[Any] = []
    pack: Callable[[Any], bytes] = hiredis.pack_command

    def recorded(command: tuple[Any, ...]) -> bytes:
        assert {*map(type, command)} <= {str, bytes}, f"hiredis is given {command!r}"
        names.append(command[0])
        return pack(command)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(commands, "_pack", recorded)
        monkeypatch.setattr(hiredis, "pack_command", recorded)
        yield names


def use_all(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"user": 1, "cart": {}, "notes": "x" * 20_000})
    store, other = store_class(key), store_class(key)
    store["cart"]["apple"] = other["cart"]["pear"] = 1
    other.save()
    store.save()
    store.modified = True
    store.save()
    store.cycle_key()
    store.set_expiry(10**16)
    store.save()
    assert store_class().exists(store.session_key)
    assert store.session_id in list(store_class.get_storage().ids())
    asyncio.run(ause_all(store_class, str(store.session_key)))


async def ause_all(store_class: type[SessionStore], key: str) -> None:
    store = store_class(key)
    assert len(await store.aget("notes")) == 20_000
    await store.aset("user", 2)
    await store.asave()
    await store.acycle_key()
    await store.asave()
    store.clear()
    await store.aset("user", 3)
    await store.asave()
    await store.aflush()


@pytest.mark.once
@pytest.mark.parametrize("where", ["one server", "cluster", "ordinary client"])
@pytest.mark.parametrize("module", [redis_engine, redis_hash], ids=["redis", "redis_hash"])
def test_hiredis_is_never_given_a_number(module: ModuleType, where: str) -> None:
    pool = {"OPTIONS": {"CONNECTION_POOL_CLASS": "redis.connection.BlockingConnectionPool"}}
    settings = {
        "one server": lambda: settings_for(module.__name__, shared().url("?protocol=3", db=2), wait_replicas=1),
        "ordinary client": lambda: settings_for(module.__name__, shared().url("?health_check_interval=1", db=2), pool),
        "cluster": lambda: redis_clusters.cluster_settings(module.__name__, redis_clusters.shared().url()),
    }[where]()
    settings["GSESSION"]["ENGINES"][module.__name__]["wait_timeout"] = 0.001
    with override_settings(**settings), packing() as packed:
        use_all(module.SessionStore)
    assert {"EVALSHA", "SCAN", "UNLINK"} <= {*packed}
    assert ("WAIT" in packed) is (where == "one server")


@pytest.mark.once
@pytest.mark.parametrize("master", ["redis://localhost/2", "redis://mymaster/2"])
def test_hiredis_does_not_pack_redis_pys_own_commands(master: str) -> None:
    sentinel = {
        "CLIENT_CLASS": "django_redis.client.SentinelClient",
        "CONNECTION_FACTORY": "django_redis.pool.SentinelConnectionFactory",
        "SENTINELS": [("localhost", 26379)],
    }
    entry = {"OPTIONS": sentinel if "mymaster" in master else {}}
    with override_settings(**settings_for(redis_engine.__name__, master, entry)):
        pool = CacheEntry.of_sessions().make_pool()
    manager = getattr(pool, "sentinel_manager", None)
    pools = [pool, *(each.connection_pool for each in manager.sentinels)] if manager else [pool]
    with packing() as packed:
        for each in pools:
            connection = each.connection_class(**each.connection_kwargs)
            assert b"".join(connection.pack_command("SELECT", 2)) == b"*2\r\n$6\r\nSELECT\r\n$1\r\n2\r\n"
            assert b"".join(connection.pack_command("HELLO", 3, "AUTH", "é", b"\xff")) == (
                b"*5\r\n$5\r\nHELLO\r\n$1\r\n3\r\n$4\r\nAUTH\r\n$2\r\n\xc3\xa9\r\n$1\r\n\xff\r\n"
            )
    assert packed == []
