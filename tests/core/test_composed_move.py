"""cycle_key() on a storage without move keeps the changes of others, and a logout stays a logout."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.test.utils import override_settings

from gsession_django import SessionStore
from gsession_django.core.locks import IdLocks
from tests.support.engines import new_session, stored
from tests.support.processes import TIMEOUT, promised
from tests.support.storages import AsyncVersionedStorage, VersionedStorage, engine

CALLS = pytest.mark.parametrize("call", ["get_session", "create"])


class Site:
    """Two processes that share a medium; the first calls cycle_key()."""

    def __init__(self, storage_class: type[VersionedStorage] = VersionedStorage) -> None:
        self.here, self.elsewhere = engine(storage_class), engine(storage_class)
        storage, other = self.here.get_storage(), self.elsewhere.get_storage()
        assert isinstance(storage, VersionedStorage)
        assert isinstance(other, VersionedStorage)
        other.medium = storage.medium
        self.storage, self.medium = storage, storage.medium
        self.key = new_session(self.here, {"cart": {"apple": 1}, "language": "fr"})

    def request(self) -> SessionStore:
        """Return the session of a request that has read it."""
        request = self.here(self.key)
        assert request["language"] == "fr"
        return request

    def meanwhile(self, call: str, *changes: Callable[[SessionStore], object]) -> None:
        """Let another process make one change after each of the next calls of `call`."""

        def save(change: Callable[[SessionStore], object]) -> None:
            other = self.elsewhere(self.key)
            change(other)
            other.save()

        self.storage.after[call] = [lambda change=change: save(change) for change in changes]  # type: ignore[misc]


@pytest.fixture(params=["sync", "async"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(VersionedStorage if request.param == "sync" else AsyncVersionedStorage)


def cycle(site: Site, request: SessionStore) -> None:
    if isinstance(site.storage, AsyncVersionedStorage):
        asyncio.run(request.acycle_key())
    else:
        request.cycle_key()


def add_pear(other: SessionStore) -> None:
    other["cart"]["pear"] = 1


@CALLS
def test_a_change_that_another_process_saves_meanwhile_is_under_the_new_key(site: Site, call: str) -> None:
    request = site.request()
    request["user"] = 1
    site.meanwhile(call, add_pear)
    cycle(site, request)
    request.save()
    assert stored(site.here, request.session_key) == {"cart": {"apple": 1, "pear": 1}, "language": "fr", "user": 1}
    assert stored(site.here, site.key) is None


def test_a_key_that_another_process_removes_meanwhile_is_gone_under_the_new_key(site: Site) -> None:
    request = site.request()
    site.meanwhile("create", lambda other: other.pop("language"))
    cycle(site, request)
    assert stored(site.here, request.session_key) == {"cart": {"apple": 1}}


def test_the_session_is_copied_until_nobody_saves_it_any_more(site: Site) -> None:
    request = site.request()
    site.meanwhile("get_session", *(lambda other, n=n: other.update({f"key {n}": n}) for n in range(5)))
    cycle(site, request)
    found = stored(site.here, request.session_key)
    assert found is not None
    assert {f"key {n}": n for n in range(5)}.items() <= found.items()
    assert len(site.medium.rows) == 1


def test_an_expiry_that_another_process_sets_meanwhile_is_kept(site: Site) -> None:
    request = site.request()
    site.meanwhile("create", lambda other: other.set_expiry(77))
    cycle(site, request)
    request["user"] = 1
    request.save()
    fresh = site.here(request.session_key)
    assert fresh.get_expiry_age() == 77
    (row,) = site.medium.rows.values()
    assert row.expires <= time.time() + 77


@CALLS
def test_a_logout_in_another_process_meanwhile_stays_a_logout(site: Site, call: str) -> None:
    signed_in = site.request()
    signed_in[SESSION_KEY] = "1"
    signed_in.save()
    request = site.request()
    request["user"] = 1
    site.storage.after[call] = [lambda: site.elsewhere(site.key).flush()]
    cycle(site, request)
    assert site.medium.rows == {}
    with pytest.raises(UpdateError):
        request.save()
    assert site.medium.rows == {}


def test_bytes_that_differ_each_time_do_not_count_as_a_change(site: Site) -> None:
    with override_settings(SESSION_SERIALIZER="tests.core.test_any_serializer.Encrypting"):
        key = new_session(site.here, {"cart": {"apple": 1}})
        request = site.here(key)
        site.medium.calls.clear()
        cycle(site, request)
        assert site.medium.names().count("apply") == 0
        assert stored(site.here, request.session_key) == {"cart": {"apple": 1}}


# In one process.


@pytest.mark.parametrize("nth", [1, 2])
def test_a_thread_that_saves_meanwhile_loses_nothing_without_knowing(nth: int) -> None:
    """The save waits for the move, and then raises UpdateError."""
    site = Site()
    request, other = site.request(), site.request()
    other["cart"]["pear"] = 1
    at_the_lock_or_done = threading.Event()
    wait = IdLocks.wait

    def note(turn: Any) -> None:
        at_the_lock_or_done.set()
        wait(turn)

    def save() -> None:
        try:
            other.save()
        finally:
            at_the_lock_or_done.set()

    def come_between() -> None:
        saves.append(promised(save))
        assert at_the_lock_or_done.wait(TIMEOUT)

    saves: list[Any] = []
    site.storage.after["get_session"] = [*[lambda: None] * (nth - 1), come_between]
    with mock.patch.object(IdLocks, "wait", staticmethod(note)):
        request.cycle_key()
        with pytest.raises(UpdateError):
            saves[0].result(TIMEOUT)
    assert stored(site.here, request.session_key) == {"cart": {"apple": 1}, "language": "fr"}
    assert len(site.medium.rows) == 1


def test_a_task_that_saves_meanwhile_loses_nothing_without_knowing() -> None:
    site = Site(AsyncVersionedStorage)

    async def main() -> None:
        request, other = site.request(), site.request()
        other["cart"]["pear"] = 1
        saves: list[asyncio.Task[None]] = []
        # The save gets its turn between the last look at the session and its removal.
        site.storage.after["get_session"] = [
            lambda: None,
            lambda: saves.append(asyncio.create_task(other.asave())),
        ]
        await request.acycle_key()
        with pytest.raises(UpdateError):
            await saves[0]
        assert await site.here(request.session_key).aget("cart") == {"apple": 1}

    asyncio.run(main())
    assert len(site.medium.rows) == 1


def test_earlier_saves_are_moved_too() -> None:
    site = Site()
    request, other = site.request(), site.request()
    add_pear(other)
    other.save()
    request.cycle_key()
    assert stored(site.here, request.session_key) == {"cart": {"apple": 1, "pear": 1}, "language": "fr"}
