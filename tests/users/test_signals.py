"""``session_created``, ``session_moved`` and ``session_ended``."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY

from gsession_django import SessionStore
from gsession_django.core.engine import engine_of
from gsession_django.signals import Ended, session_created, session_ended, session_moved
from gsession_django.users import aend_sessions, end_session, end_sessions, sessions_of
from tests.support.engines import engine, stored
from tests.support.sign_ins import asign_in, ids_of, sign_in

Told = list[tuple[str, dict[str, Any]]]
SIGNALS = {"created": session_created, "moved": session_moved, "ended": session_ended}


@pytest.fixture
def told() -> Iterator[Told]:
    """Collect the name and the arguments of each signal, and fail in each receiver."""
    told: Told = []

    def receive(name: str) -> Any:
        def receiver(signal: Any, sender: Any, **arguments: Any) -> None:
            told.append((name, arguments))
            raise ZeroDivisionError("a mistake of the site")

        return receiver

    receivers = {name: receive(name) for name in SIGNALS}
    for name, signal in SIGNALS.items():
        signal.connect(receivers[name])
    yield told
    for name, signal in SIGNALS.items():
        signal.disconnect(receivers[name])


def test_creation_move_and_end_are_told(store_class: type[SessionStore], told: Told) -> None:
    store = store_class()
    store["cart"] = 1
    store.save()
    first_id = store.session_id
    sign_in(store)
    second_id = store.session_id
    assert end_sessions("7") == 1
    assert told == [
        ("created", {"session_id": first_id, "user_id": None}),
        ("moved", {"session_id": first_id, "user_id": None, "new_id": second_id}),
        ("ended", {"session_id": second_id, "user_id": "7", "reason": Ended.BY_ANOTHER}),
    ]


def test_so_they_are_for_async_requests(store_class: type[SessionStore], told: Told) -> None:
    async def visit() -> tuple[str | None, ...]:
        store = store_class()
        await store.aset("cart", 1)
        await store.asave()
        ids = [store.session_id]
        await asign_in(store)
        ids.append(store.session_id)
        await store.acycle_key()
        await store.asave()
        ids.append(store.session_id)
        assert await aend_sessions("7") == 1
        store = await asign_in(store_class())
        ids.append(store.session_id)
        await store.aflush()
        return tuple(ids)

    first, second, third, fourth = asyncio.run(visit())
    assert told == [
        ("created", {"session_id": first, "user_id": None}),
        ("moved", {"session_id": first, "user_id": None, "new_id": second}),
        ("moved", {"session_id": second, "user_id": "7", "new_id": third}),
        ("ended", {"session_id": third, "user_id": "7", "reason": Ended.BY_ANOTHER}),
        ("created", {"session_id": fourth, "user_id": None}),
        ("ended", {"session_id": fourth, "user_id": "7", "reason": Ended.SIGNED_OUT}),
    ]


def test_a_receiver_that_fails_is_logged_and_fails_nothing(
    store_class: type[SessionStore], told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "django.dispatch"):
        store = sign_in(store_class())
        assert stored(store_class, store.session_key) is not None
        assert ids_of() == {store.session_id}
        store.flush()
    assert ids_of() == set()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * len(told)


def test_it_is_done_when_it_is_told(store_class: type[SessionStore]) -> None:
    seen: list[tuple[bool, ...]] = []

    def receive(session_id: str, new_id: str | None = None, **arguments: Any) -> None:
        exists = store_class.get_storage().exists
        seen.append(tuple(exists(each) for each in (session_id, new_id) if each is not None))

    for signal in SIGNALS.values():
        signal.connect(receive)
    try:
        store = store_class()
        store["cart"] = 1
        store.save()
        sign_in(store).flush()
    finally:
        for signal in SIGNALS.values():
            signal.disconnect(receive)
    assert seen == [(True,), (False, True), (False,)]


def test_the_sender_is_the_session_store(store_class: type[SessionStore]) -> None:
    told: list[str] = []

    def receive(session_id: str, **arguments: Any) -> None:
        told.append(session_id)

    session_created.connect(receive, sender=store_class)
    store = sign_in(store_class())
    session_created.disconnect(receive, sender=store_class)
    sign_in(store_class())
    assert told == [store.session_id]


def test_a_sign_out_names_the_user(store_class: type[SessionStore], told: Told) -> None:
    store = sign_in(store_class())
    session_id = store.session_id
    told.clear()
    store.flush()
    assert told == [("ended", {"session_id": session_id, "user_id": "7", "reason": Ended.SIGNED_OUT})]


def test_a_session_that_is_ended_twice_is_told_once(store_class: type[SessionStore], told: Told) -> None:
    sign_in(store_class())
    (session,) = sessions_of("7")
    told.clear()
    end_session(session)
    end_session(session)
    assert [name for name, _ in told] == ["ended"]


def test_a_sign_out_from_a_session_that_was_ended_is_not_told(store_class: type[SessionStore], told: Told) -> None:
    request = store_class(sign_in(store_class()).session_key)
    assert request[SESSION_KEY] == "7"
    end_sessions("7")
    told.clear()
    request.flush()
    assert told == []


def test_a_session_that_was_not_there_does_not_end(store_class: type[SessionStore], told: Told) -> None:
    store_class("a" * 32).flush()  # the cookie of a session that expired long ago
    assert told == []


@pytest.mark.parametrize("name", ["memory", "file"])
def test_a_purge_tells_of_the_sessions_that_it_removes(name: str, tmp_path: Path, told: Told) -> None:
    with engine(name, tmp_path) as store_class:
        store = sign_in(store_class())
        store_class.get_storage().update_ttl(str(store.session_id), 0)
        told.clear()
        assert sum(engine_of(store_class).purge(1000, dry_run=True)) == 1
        assert told == []
        store_class.clear_expired()
    assert told == [("ended", {"session_id": store.session_id, "user_id": None, "reason": Ended.EXPIRED})]
