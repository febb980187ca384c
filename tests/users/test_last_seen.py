"""When a session was last seen: at most ``TOUCH_INTERVAL`` behind, and without a call of its own."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.core.engine import observe, stop_observing
from gsession_django.recording import StorageCall
from gsession_django.users import sessions_of
from tests.support.sites import AUTHENTICATION, OURS, Visitor, settings_of_the_site

INTERVAL = 100
AGE = settings.SESSION_COOKIE_AGE


@pytest.fixture
def every_request() -> bool:
    """Whether ``SESSION_SAVE_EVERY_REQUEST`` is on. A change in the midst of a test would leave connections open."""
    return True


@pytest.fixture(params=["sync", "async"])
def visitor(request: pytest.FixtureRequest, store_class: type[SessionStore], every_request: bool) -> Iterator[Visitor]:
    site = settings_of_the_site([OURS, AUTHENTICATION])
    given = {**settings.GSESSION, "TOUCH_INTERVAL": INTERVAL}
    with override_settings(**site, GSESSION=given, SESSION_SAVE_EVERY_REQUEST=every_request):
        if request.param == "sync":
            yield Visitor()
            return
        with asyncio.Runner() as runner:
            yield Visitor(runner)


def let_pass(visitor: Visitor, store_class: type[SessionStore], seconds: int) -> None:
    """Let the session have been seen so many seconds ago."""
    session_id = store_class(visitor.key).session_id
    assert session_id is not None
    assert store_class.get_storage().update_ttl(session_id, AGE - seconds) is not False


def behind() -> float:
    """Return for how long ada has not been seen, in seconds."""
    (session,) = sessions_of("1")
    assert session.last_seen is not None
    return (datetime.now(UTC) - session.last_seen) / timedelta(seconds=1)


@contextmanager
def calls() -> Iterator[list[str]]:
    """Collect the operations of the storage."""
    made: list[str] = []

    def note(call: StorageCall) -> Any:
        made.append(call.operation)
        return lambda: None

    observe(note)
    try:
        yield made
    finally:
        stop_observing(note)


def test_it_is_at_most_the_interval_behind(store_class: type[SessionStore], visitor: Visitor) -> None:
    visitor.signed_in()
    assert behind() < 5
    for passed, seen in ((INTERVAL - 20, INTERVAL - 20), (INTERVAL + 20, 0)):
        let_pass(visitor, store_class, passed)
        assert passed <= behind() < passed + 5
        visitor.sees("read")
        assert seen <= behind() < seen + 5


def test_it_costs_no_call(store_class: type[SessionStore], visitor: Visitor) -> None:
    visitor.signed_in()
    for passed, wanted in ((INTERVAL - 20, ["get_session"]), (INTERVAL + 20, ["get_session", "update_ttl"])):
        let_pass(visitor, store_class, passed)
        with calls() as made:
            visitor.sees("read")
        assert made == wanted


def test_a_save_of_a_signed_in_user_calls_what_any_save_does(store_class: type[SessionStore], visitor: Visitor) -> None:
    anonymous = Visitor(visitor.runner)
    anonymous.does("modify")
    visitor.signed_in()
    with calls() as made:
        anonymous.does("modify")
    any_save = list(made)
    assert any_save
    with calls() as made:
        visitor.does("modify")
    assert made == any_save


@pytest.mark.parametrize("every_request", [False])
def test_a_read_that_is_not_saved_is_not_a_visit(store_class: type[SessionStore], visitor: Visitor) -> None:
    visitor.signed_in()
    let_pass(visitor, store_class, 1000)
    visitor.sees("read")
    assert 1000 <= behind() < 1005


def test_after_an_expiry_of_its_own_it_counts_from_that(store_class: type[SessionStore], visitor: Visitor) -> None:
    visitor.signed_in()
    store = store_class(visitor.key)
    assert store[SESSION_KEY] == "1"
    store.set_expiry(300)
    store.save()
    assert behind() < 5
