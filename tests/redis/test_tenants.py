"""Tenants in the Redis engines: each operation calls the function in the option `prefix`."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.core.cache.backends.base import default_key_func
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import override_settings

from gsession_django import SessionMap, SessionStore, locking
from gsession_django.backends import redis as redis_engine
from gsession_django.backends import redis_hash
from gsession_django.checks import check_settings
from gsession_django.redis.commands import Batch
from tests.support import redis_clusters
from tests.support.engines import id_of, new_session, stored
from tests.support.old_sites import old_site
from tests.support.redis_servers import settings_for, shared
from tests.support.tenants import TENANT, tenant

pytestmark = pytest.mark.once

MODULES = {"redis": redis_engine, "redis_hash": redis_hash}
both_engines = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
LARGE = "x" * 20_000
# Of this run, because tests share the server.
RUN = f"{random.getrandbits(64):x}"


def prefix_of_tenant() -> str:
    return f"{RUN}:{TENANT.get()}:"


def key_of_tenant(key: str, key_prefix: str, version: int) -> str:
    return f"{key_prefix}:{TENANT.get()}:{version}:{key}"


NOT_TEXT: Any = None


def no_text() -> Any:
    return NOT_TEXT


@contextmanager
def site(module: ModuleType, prefix: Any = prefix_of_tenant, **entry: Any) -> Iterator[type[SessionStore]]:
    with override_settings(**settings_for(module.__name__, shared().url(), entry, prefix=prefix)):
        yield module.SessionStore


def problems() -> list[str]:
    return [str(message.id).removeprefix("gsession_django.") for message in check_settings()]


@pytest.mark.parametrize("prefix", [prefix_of_tenant, f"{__name__}.prefix_of_tenant()"], ids=["function", "path"])
@both_engines
def test_a_session_of_one_tenant_is_unknown_to_another(module: ModuleType, prefix: Any) -> None:
    with site(module, prefix) as store_class, shared().client() as client:
        assert problems() == []
        with tenant("ada"):
            key = new_session(store_class, {"user": 1, "large": LARGE})
            held = store_class(key)
            assert held["user"] == 1
        with tenant("bob"):
            assert stored(store_class, key) is None
            assert not store_class().exists(key)
            held["user"] = 2
            with pytest.raises(UpdateError):
                held.save()
            store_class(key).delete()
        with tenant("ada"):
            assert stored(store_class, key) == {"user": 1, "large": LARGE}
        names = {name.decode() for name in client.scan_iter(f"*{id_of(store_class, key)}*")}
        before, after = ("", "") if module is redis_engine else ("{", "}")
        name = f"{before}{RUN}:ada:{id_of(store_class, key)}{after}"
        assert names == ({name} if module is redis_engine else {name, f"{name}:large"})


@both_engines
def test_the_same_id_is_a_session_of_each_tenant(module: ModuleType) -> None:
    with site(module) as store_class:
        key = "the-same-cookie-everywhere"
        for name in ("ada", "bob"):
            with tenant(name):
                assert store_class.get_storage().create(id_of(store_class, key), SessionMap({"name": name}), 60)
        with tenant("ada"):
            store = store_class(key)
            store["count"] = 1
            store.save()
            store.cycle_key()
            store.save()
        with tenant("bob"):
            assert stored(store_class, key) == {"name": "bob"}
            assert stored(store_class, store.session_key) is None
            store_class(key).flush()
        with tenant("ada"):
            assert stored(store_class, store.session_key) == {"name": "ada", "count": 1}


@both_engines
def test_tasks_of_different_tenants_do_not_meet(module: ModuleType) -> None:
    key = "the-same-cookie-everywhere"

    async def visit(name: str) -> None:
        TENANT.set(name)
        storage: Any = store_class.get_storage()
        assert await storage.acreate(id_of(store_class, key), SessionMap({"name": name}), 60)
        for turn in range(5):
            store = store_class(key)
            assert await store.aget("name") == name
            await store.aset(f"{name} {turn}", turn)
            await store.asave()
        store = store_class(key)
        await store.acycle_key()
        await store.asave()
        expected = {"name": name, **{f"{name} {turn}": turn for turn in range(5)}}
        assert {pair async for pair in _pairs(store_class(store.session_key))} == set(expected.items())
        await store.aflush()

    async def overlap() -> None:
        await asyncio.gather(*(visit(f"task {number}") for number in range(20)))

    with site(module) as store_class:
        asyncio.run(overlap())


async def _pairs(store: SessionStore) -> Any:
    for pair in await store.aitems():
        yield pair


@both_engines
def test_an_operation_asks_once_however_many_batches_it_takes(module: ModuleType) -> None:
    asked: list[int] = []

    def prefix() -> str:
        asked.append(len(asked))
        return f"{RUN}:once:"

    with site(module, prefix) as store_class:
        key = new_session(store_class, {"cart": {}})
        store, other = store_class(key), store_class(key)
        store["cart"]["apple"] = other["cart"]["pear"] = 1
        other.save()
        asked.clear()
        store.save()  # it meets the other: two batches
        assert len(asked) == 1
        store.cycle_key()
        assert len(asked) == 2
        assert stored(store_class, store.session_key) == {"cart": {"apple": 1, "pear": 1}}


@both_engines
def test_ids_lists_the_sessions_of_the_tenant_at_the_call(module: ModuleType) -> None:
    with site(module) as store_class:
        expected = {}
        for name in ("list of ada", "list of bob"):
            with tenant(name):
                keys = [new_session(store_class, {"user": user, "large": LARGE}) for user in range(3)]
                expected[name] = {id_of(store_class, key) for key in keys}
        with tenant("list of ada"):
            found = store_class.get_storage().ids()
        with tenant("list of bob"):
            assert set(found) == expected["list of ada"]
            assert set(store_class.get_storage().ids()) == expected["list of bob"]


def test_sessions_are_moved_tenant_by_tenant() -> None:
    settings = settings_for(redis_hash.__name__, shared().url())
    settings["GSESSION"]["ENGINES"] = {module.__name__: {"prefix": prefix_of_tenant} for module in MODULES.values()}
    with override_settings(**settings):
        keys = {}
        for name in ("move ada", "move bob"):
            with tenant(name):
                keys[name] = new_session(redis_engine.SessionStore, {"name": name})
        with tenant("move ada"):
            call_command("migrate_sessions", "--from", redis_engine.__name__, verbosity=0)
        for name, moved in (("move ada", True), ("move bob", False)):
            with tenant(name):
                assert stored(redis_hash.SessionStore, keys[name]) == ({"name": name} if moved else None)
                assert stored(redis_engine.SessionStore, keys[name]) == (None if moved else {"name": name})


@both_engines
def test_a_cache_with_a_key_function_is_followed_on_first_touch(module: ModuleType, tmp_path: Path) -> None:
    old = "django.contrib.sessions.backends.cache"
    with old_site(tmp_path):
        from django.conf import settings
        from django.contrib.sessions.backends.cache import SessionStore as CacheStore

        entry = {**settings.CACHES["sessions"], "KEY_FUNCTION": key_of_tenant}
        options = {"ENGINES": {module.__name__: {"prefix": prefix_of_tenant}}, "FALLBACK_ENGINE": old}
        caches = {**settings.CACHES, "sessions": entry}
        with override_settings(CACHES=caches, GSESSION=options, SESSION_ENGINE=module.__name__):
            with tenant("ada"):
                before = CacheStore()
                before["user"] = 1
                before.save()
            key = before.session_key
            with tenant("bob"):
                assert stored(module.SessionStore, str(key)) is None
            with tenant("ada"):
                assert stored(module.SessionStore, str(key)) == {"user": 1}


# Paths and text.


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "gsession:",
        "site.sessions",
        "site.sessions:",
        "os.path",
        "no.such.module",
        "a()",
        "()",
        "json.loads:",
        "a b.",
    ],
)
def test_text_that_is_not_the_path_of_a_function_is_a_prefix(prefix: str) -> None:
    with site(redis_engine, prefix, KEY_PREFIX=f"{RUN}-") as store_class, shared().client() as client:
        key = new_session(store_class, {"user": 1})
        assert problems() == []
        assert client.exists(f"{RUN}-{prefix}{id_of(store_class, key)}")


@pytest.mark.parametrize(
    ("prefix", "match"),
    [
        (f"{__name__}.prefix_of_tenant", r"Write '.*prefix_of_tenant\(\)'"),
        (f"{__name__}.nothing()", "names no function.*nothing"),
        ("no.such.module()", "names no function.*no"),
        (f"{__name__}.RUN()", "names no function: it cannot be called"),
    ],
)
def test_a_wrong_path_is_reported(prefix: str, match: str) -> None:
    with site(redis_engine, prefix) as store_class:
        assert problems() == ["E015"]
        with pytest.raises(ImproperlyConfigured, match=match):
            store_class("abcdefgh").load()


@pytest.mark.parametrize("prefix", [5, None, b"bytes:"])
def test_a_prefix_that_is_neither_text_nor_a_function_is_reported(prefix: Any) -> None:
    with site(redis_engine, prefix):
        (message,) = check_settings()
        assert message.id == "gsession_django.E023"
        assert "not text or a function" in message.msg


@pytest.mark.parametrize("found", [None, b"bytes:", 5])
@both_engines
def test_a_function_that_returns_no_text_is_reported(
    module: ModuleType, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.NOT_TEXT", found)
    uses: list[Callable[[SessionStore], Any]] = [
        lambda store: store.load(),
        lambda store: asyncio.run(store.aload()),
        lambda store: list(store.get_storage().ids()),
    ]
    with site(module, no_text) as store_class:
        for use in uses:
            with pytest.raises(ImproperlyConfigured, match=f"option prefix is .*no_text.*{found!r}"):
                use(store_class("abcdefgh"))


@both_engines
def test_the_exception_of_a_function_comes_through_with_its_origin(module: ModuleType) -> None:
    uses: list[Callable[[SessionStore], Any]] = [
        lambda store: store.load(),
        lambda store: asyncio.run(store.aload()),
        lambda store: store.save(),
        lambda store: store.get_storage().ids(),
    ]
    with site(module) as store_class:
        for use in uses:
            with pytest.raises(LookupError) as raised:  # the ContextVar has no value
                use(store_class("abcdefgh"))
            assert any("option prefix" in note for note in raised.value.__notes__)


# KEY_FUNCTION, which separates tenants in Django's `cache` engine.


@pytest.mark.parametrize("function", [key_of_tenant, f"{__name__}.key_of_tenant"], ids=["function", "path"])
@both_engines
def test_a_key_function_is_refused_where_the_prefix_is_text(module: ModuleType, function: Any) -> None:
    for prefix in ("gsession:", f"{RUN}:"):
        with site(module, prefix, KEY_FUNCTION=function) as store_class:
            assert problems() == ["E015"]
            with pytest.raises(ImproperlyConfigured, match=r"KEY_FUNCTION .*key_of_tenant.* prefix"):
                store_class("abcdefgh").load()
    with site(module, KEY_FUNCTION=function) as store_class, tenant("ada"):
        assert problems() == []
        assert stored(store_class, new_session(store_class, {"user": 1})) == {"user": 1}


def test_a_key_function_is_refused_where_there_is_no_option_at_all() -> None:
    settings = settings_for(redis_engine.__name__, shared().url(), {"KEY_FUNCTION": key_of_tenant})
    with override_settings(**{**settings, "GSESSION": {}}):
        assert problems() == ["E015"]
        with pytest.raises(ImproperlyConfigured, match="KEY_FUNCTION"):
            redis_engine.SessionStore("abcdefgh").load()


@pytest.mark.parametrize("function", [None, default_key_func, "django.core.cache.backends.base.default_key_func"])
def test_djangos_own_key_function_is_accepted(function: Any) -> None:
    with site(redis_engine, f"{RUN}:", KEY_FUNCTION=function) as store_class:
        assert problems() == []
        assert stored(store_class, new_session(store_class, {"user": 1})) == {"user": 1}


# Redis Cluster.


@contextmanager
def cluster_site(module: ModuleType, prefix: Any = prefix_of_tenant) -> Iterator[type[SessionStore]]:
    settings = redis_clusters.cluster_settings(module.__name__, redis_clusters.shared().url(), prefix=prefix)
    with override_settings(**settings):
        yield module.SessionStore


@both_engines
def test_in_a_cluster_a_move_takes_nothing_of_another_tenant_along(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move copies the session of its tenant, and not another tenant's of the same id."""
    sent: list[Batch] = []

    def counted(batch: Batch) -> Any:
        if all(command[0] != "EVAL" for command in batch.commands):  # sent again, for a node that has no script yet
            sent.append(batch)
        return exchange(batch)

    key = "the-same-cookie-everywhere"
    with cluster_site(module) as store_class:
        for name in ("ada", "bob"):
            with tenant(name):
                assert store_class.get_storage().create(id_of(store_class, key), SessionMap({"name": name}), 60)
        with tenant("ada"):
            ada = store_class(key)
            assert ada["name"] == "ada"
        with tenant("bob"):
            bob = store_class(key)
            assert bob["name"] == "bob"
        way = store_class.get_storage().client._way  # type: ignore[attr-defined]
        exchange = way.exchange
        monkeypatch.setattr(way, "exchange", counted)
        with tenant("ada"):
            ada.cycle_key()
            assert b"bob" not in b"".join(batch.packed() for batch in sent)
            assert len(sent) == 2, "it is copied and removed, and was what had been read"
            ada.save()
            assert stored(store_class, ada.session_key) == {"name": "ada"}
            assert list(store_class.get_storage().ids()) == [ada.session_id]
        with tenant("bob"):
            assert stored(store_class, key) == {"name": "bob"}
            assert stored(store_class, ada.session_key) is None
            bob.flush()
        with tenant("ada"):
            ada.flush()


def test_in_a_cluster_braces_in_the_prefix_are_reported() -> None:
    with cluster_site(redis_engine, partial(str, "a{}b:")) as store_class:
        with pytest.raises(ImproperlyConfigured, match="braces"):
            store_class("abcdefgh").load()
        with pytest.raises(ImproperlyConfigured, match="braces"):
            asyncio.run(store_class("abcdefgh").aload())


@both_engines
def test_the_lock_of_a_session_is_renewed_for_its_tenant(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locking, "LEASE", 0.3)
    renewals: list[str] = []
    renewed = threading.Event()
    with site(module) as store_class, tenant("ada"):
        storage: Any = store_class.get_storage()
        lock = storage.lock

        def noted(session_id: str, token: str, seconds: float) -> bool:
            taken: bool = lock(session_id, token, seconds)
            renewals.append(TENANT.get())
            if len(renewals) > 1:
                renewed.set()
            return taken

        monkeypatch.setattr(storage, "lock", noted)
        with locking.alone(store_class(new_session(store_class, {})), 0):
            assert renewed.wait(60)
    assert set(renewals) == {"ada"}
    assert caplog.text == ""
