"""Observers of a storage hear of each call and its effects."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gsession_django import SessionStore, Storage, recording
from gsession_django.core.documents import encode_pairs
from gsession_django.core.engine import observe, stop_observing
from gsession_django.recording import StorageCall
from gsession_django.serializers import encode
from tests.support.engines import EACH_ENGINE, engine, new_session

LARGE = "x" * 20_000


@pytest.fixture
def calls() -> Iterator[list[StorageCall]]:
    """Collect the calls as they end."""
    found: list[StorageCall] = []

    def observer(call: StorageCall) -> Callable[[], None]:
        return lambda: found.append(call)

    observe(observer)
    try:
        yield found
    finally:
        stop_observing(observer)


@pytest.fixture(params=EACH_ENGINE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store_class(name: str, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(name, tmp_path) as found:
        yield found


def test_bytes_count_the_stored_session_and_on_redis_the_commands(
    store_class: type[SessionStore], name: str, calls: list[StorageCall]
) -> None:
    data = {"a": 1, "large": LARGE}
    store = store_class(new_session(store_class, data))
    store["a"] = 2
    store.save()
    create, load, save = calls
    stored = len(encode(data) if name == "redis_hash" else encode_pairs(data, {}))
    sizes = [(call.bytes_read, call.bytes_written) for call in (create, load, save)]
    if name == "memory":
        assert sizes == [(None, None)] * 3
    elif name in ("file", "sqlite"):
        assert sizes == [(None, stored), (stored, None), (None, stored)]
    else:
        part = 0 if name == "redis_hash" else stored  # it fetches what is asked for, and sends what has changed
        for size, wanted in zip(sizes, [(0, stored), (part, 0), (0, part)], strict=True):
            # The rest: names of commands, scripts and keys.
            assert all(least <= (number or 0) < least + 500 for number, least in zip(size, wanted, strict=True))


def test_a_call_is_merged_only_if_another_request_has_written(
    store_class: type[SessionStore], calls: list[StorageCall]
) -> None:
    key = new_session(store_class, {"cart": {}})
    one, other = store_class(key), store_class(key)
    one["cart"]["milk"] = other["cart"]["tea"] = 1
    one.save()
    other.save()
    assert [call.operation for call in calls if call.merged] == ["apply"]
    assert calls[-1].merged


def test_two_observers_begin_in_order_and_end_in_reverse(store_class: type[SessionStore]) -> None:
    said: list[str] = []

    def named(name: str) -> Callable[[StorageCall], Callable[[], None]]:
        def observer(call: StorageCall) -> Callable[[], None]:
            said.append(f"{name} begins {call.operation}")
            return lambda: said.append(f"{name} ends {call.seconds > 0}")

        return observer

    first, second = named("first"), named("second")
    observe(first)
    observe(second)
    observe(second)  # counts once
    try:
        store_class("a" * 32).load()
    finally:
        stop_observing(first)
        stop_observing(second)
    store_class("a" * 32).load()
    assert said == ["first begins get_session", "second begins get_session", "second ends True", "first ends True"]


class Wrapping(Storage):
    """Uses another engine's session in its calls, as for an audit log."""

    inner: type[SessionStore]

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> dict[str, Any]:
        recording.read(1)
        self.inner("a" * 32).load()
        recording.read(1)
        return {}

    def set_session(self, session_id: str, data: Any, ttl: int) -> None: ...

    def remove_all(self, session_id: str) -> None: ...


class WrappingStore(SessionStore):
    storage_class = Wrapping


def test_a_call_within_a_call_has_a_record_of_its_own(
    store_class: type[SessionStore], name: str, calls: list[StorageCall], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrapping, "inner", store_class, raising=False)
    WrappingStore("b" * 32).load()
    inner, outer = calls
    assert (inner.system.name, outer.system.name) == (name.removesuffix("_hash"), f"{__name__}.wrapping")
    assert outer.bytes_read == 2
    assert recording.CALL.get() is None


def test_tasks_at_the_same_time_have_each_their_own_record(
    store_class: type[SessionStore], name: str, calls: list[StorageCall]
) -> None:
    keys = [new_session(store_class, {"a": "x" * 10**power}) for power in (1, 2, 3, 4)]
    calls.clear()

    async def load_all() -> None:
        await asyncio.gather(*(store_class(key).aload() for key in keys))

    asyncio.run(load_all())
    sizes = sorted(call.bytes_read or 0 for call in calls)
    assert len(sizes) == 4
    if name != "memory":
        assert all(10**power < size < 10**power + 200 for power, size in zip((1, 2, 3, 4), sizes, strict=True))
