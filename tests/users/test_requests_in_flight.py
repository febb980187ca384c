"""After ``end_sessions()`` has returned, no other session of the user opens any page, whatever was under way."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import UpdateError
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.testing.threads import TIMEOUT, in_threads
from gsession_django.users import aend_sessions, end_sessions, sessions_of
from tests.support import sites
from tests.support.engines import stored
from tests.support.sign_ins import ids_of, sign_in
from tests.support.sites import AUTHENTICATION, BETWEEN, OURS, Visitor, settings_of_the_site

VISITORS = 6


def keys_of(store_class: type[SessionStore]) -> list[str]:
    return [str(sign_in(store_class()).session_key) for _ in range(VISITORS)]


def test_threads(store_class: type[SessionStore]) -> None:
    """Each visitor has one request under way that saves after the end, and others that save all the time."""
    mine, keys = sign_in(store_class()), keys_of(store_class)
    under_way = threading.Barrier(VISITORS + 1)
    returned = threading.Event()

    def work(number: int) -> None:
        if number == VISITORS:
            under_way.wait(TIMEOUT)
            try:
                end_sessions("7", keep=mine)
            finally:
                returned.set()
            return
        key: str | None = keys[number]
        held = store_class(key)
        held["held"] = number
        assert held[SESSION_KEY] == "7"
        under_way.wait(TIMEOUT)
        while not returned.is_set():
            request = store_class(key)
            if request.get(SESSION_KEY) is None:
                break
            request["page"] = request.get("page", 0) + 1
            try:
                if number % 2:
                    request.cycle_key()
                request.save()
            except UpdateError:
                break
            key = request.session_key
        assert returned.wait(TIMEOUT)
        assert stored(store_class, key) is None
        with pytest.raises(UpdateError):
            held.save()
        assert stored(store_class, keys[number]) is None

    in_threads(VISITORS + 1, work, under_way)
    assert ids_of() == {mine.session_id}


def test_tasks(store_class: type[SessionStore]) -> None:
    async def visit(number: int, key: str | None, under_way: asyncio.Barrier, returned: asyncio.Event) -> None:
        held = store_class(key)
        await held.aset("held", number)
        assert await held.aget(SESSION_KEY) == "7"
        await under_way.wait()
        while not returned.is_set():
            request = store_class(key)
            if await request.aget(SESSION_KEY) is None:
                break
            await request.aset("page", await request.aget("page", 0) + 1)
            try:
                if number % 2:
                    await request.acycle_key()
                await request.asave()
            except UpdateError:
                break
            key = request.session_key
            await asyncio.sleep(0)
        await returned.wait()
        assert await store_class(key).aget(SESSION_KEY) is None
        with pytest.raises(UpdateError):
            await held.asave()

    async def end(mine: SessionStore, under_way: asyncio.Barrier, returned: asyncio.Event) -> None:
        await under_way.wait()
        try:
            await aend_sessions("7", keep=mine)
        finally:
            returned.set()

    async def all_at_once() -> None:
        under_way, returned = asyncio.Barrier(VISITORS + 1), asyncio.Event()
        visits = [visit(number, key, under_way, returned) for number, key in enumerate(keys)]
        await asyncio.wait_for(asyncio.gather(*visits, end(mine, under_way, returned)), TIMEOUT)

    mine, keys = sign_in(store_class()), keys_of(store_class)
    asyncio.run(all_at_once())
    assert ids_of() == {mine.session_id}
    assert all(stored(store_class, key) is None for key in keys)


# The same, seen from a browser.


@pytest.fixture(params=["sync", "async"])
def runner(request: pytest.FixtureRequest, store_class: type[SessionStore]) -> Iterator[asyncio.Runner | None]:
    with override_settings(**settings_of_the_site([OURS, AUTHENTICATION, BETWEEN])):
        if request.param == "sync":
            yield None
            return
        with asyncio.Runner() as found:
            yield found


@pytest.mark.parametrize("what", ["modify", "cycle", "sign_in"])
def test_the_page_under_way_fails_and_the_next_one_knows_nobody(
    runner: asyncio.Runner | None, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    visitor, mine = Visitor(runner).signed_in(), Visitor(runner).signed_in()
    kept = sites.store_class()(mine.key)

    def end() -> Any:
        monkeypatch.undo()  # only the request under way meets it
        return end_sessions("1", keep=kept) if runner is None else aend_sessions("1", keep=kept)

    monkeypatch.setattr(sites, "between", end)
    assert visitor.does(what).status_code == 400
    assert visitor.sees("peek") == "nobody 0 0"
    assert mine.sees("read") == "ada 1 1"
    assert [session.session_id for session in sessions_of("1")] == [kept.session_id]
