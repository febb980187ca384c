"""Expiries that no clock reaches, on every engine: such a session lives on, or the engine stores nothing of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gsession_django import SessionStore
from gsession_django.redis.commands import LONGEST
from tests.support.engines import EACH_ENGINE, engine, id_of, new_session, stored
from tests.support.redis_servers import shared

pytestmark = pytest.mark.once

LARGE = "x" * 20_000
FAR = [10**10, 10**16, 10**17, 10**300]
each_expiry = pytest.mark.parametrize("expiry", FAR, ids=lambda expiry: f"{float(expiry):.0e}")


def renewed(store_class: type[SessionStore], key: str, expiry: int) -> str:
    """Give a session this expiry, change, touch and move it, and return its key."""
    store = store_class(key)
    store.set_expiry(expiry)
    store["cart"]["plum"] = 1
    store.save()
    store.modified = True
    store.save()
    store.cycle_key()
    store.save()
    return str(store.session_key)


async def arenewed(store_class: type[SessionStore], key: str, expiry: int) -> str:
    store = store_class(key)
    await store.aset_expiry(expiry)
    (await store.aget("cart"))["plum"] = 1
    await store.asave()
    await store.acycle_key()
    await store.asave()
    return str(store.session_key)


@each_expiry
@pytest.mark.parametrize("name", ["memory", "file", "redis", "redis_hash"])
def test_a_session_with_an_expiry_beyond_any_clock_lives_on(name: str, expiry: int, tmp_path: Path) -> None:
    expected = {"cart": {"apple": 1, "plum": 1}, "large": LARGE, "_session_expiry": expiry}
    with engine(name, tmp_path) as store_class:
        for use in (renewed, lambda *arguments: asyncio.run(arenewed(*arguments))):
            key = use(store_class, new_session(store_class, {"cart": {"apple": 1}, "large": LARGE}), expiry)
            assert stored(store_class, key) == expected
        store = store_class()
        store.set_expiry(expiry)
        store["new"] = 1
        store.save()
        assert stored(store_class, store.session_key) == {"new": 1, "_session_expiry": expiry}


@pytest.mark.parametrize("expiry", [*FAR[1:], -(10**16)], ids=lambda expiry: f"{float(expiry):.0e}")
def test_a_database_refuses_an_expiry_that_is_too_large_for_it_as_djangos_engine_does(
    expiry: int, tmp_path: Path
) -> None:
    with engine("sqlite", tmp_path) as store_class:
        key = new_session(store_class, {"cart": {}})
        with pytest.raises(OverflowError):
            renewed(store_class, key, expiry)
        assert stored(store_class, key) == {"cart": {}}


@pytest.mark.parametrize(
    ("name", "expiry"),
    [
        *((name, -1) for name in EACH_ENGINE),
        *((name, -(10**power)) for name in ("memory", "file", "redis", "redis_hash") for power in (16, 300)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{float(value):.0e}",
)
def test_an_expiry_long_ago_ends_the_session(name: str, expiry: int, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class:
        key = new_session(store_class, {"user": 1})
        store = store_class(key)
        store.set_expiry(expiry)
        store.save()
        assert stored(store_class, key) is None
        store = store_class()
        store.set_expiry(expiry)
        store["new"] = 1
        store.save()
        assert stored(store_class, store.session_key) is None
        assert list(store_class.get_storage().ids()) == []


@each_expiry
@pytest.mark.parametrize("name", ["redis", "redis_hash"])
def test_redis_keeps_no_part_of_a_session_without_a_ttl(name: str, expiry: int, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class, shared().client() as client:
        changed = renewed(store_class, new_session(store_class, {"cart": {}, "large": LARGE}), expiry)
        created = new_session(store_class, {"large": LARGE, "_session_expiry": expiry})
        for key in (changed, created):
            names: list[Any] = client.keys(f"*{id_of(store_class, key)}*")
            assert len(names) == (2 if name == "redis_hash" else 1)
            for ttl in map(client.ttl, names):
                assert 0 <= min(expiry, LONGEST) - ttl < 60


@pytest.mark.parametrize("name", ["redis", "redis_hash"])
def test_the_storage_touches_a_session_with_any_ttl(name: str, tmp_path: Path) -> None:
    with engine(name, tmp_path) as store_class, shared().client() as client:
        storage: Any = store_class.get_storage()
        session_id = id_of(store_class, new_session(store_class, {"large": LARGE}))
        for expiry in FAR:
            assert storage.update_ttl(session_id, expiry)
            assert asyncio.run(storage.aupdate_ttl(session_id, expiry))
            assert all(ttl > 10**9 for ttl in map(client.ttl, client.keys(f"*{session_id}*")))
        storage.update_ttl(session_id, -(10**300))
        assert not storage.exists(session_id)
