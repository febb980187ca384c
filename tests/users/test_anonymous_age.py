"""``GSESSION["ANONYMOUS_AGE"]``: how long a session lives in which nobody is signed in."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.test import Client, override_settings

from gsession_django import SessionStore
from gsession_django.core.engine import engine_of
from gsession_django.users.listing import Sessions
from tests.support.sign_ins import log_in, sign_in
from tests.support.sites import AUTHENTICATION, OURS, settings_of_the_site


@pytest.fixture(autouse=True)
def _anonymous_age(store_class: type[SessionStore]) -> Iterator[None]:
    with override_settings(GSESSION={**settings.GSESSION, "ANONYMOUS_AGE": 600}):
        yield


def left_of(store: SessionStore) -> float:
    left = type(store)(store.session_key).ttl_left
    assert left is not None
    return left


def test_a_session_without_a_user_lives_shorter(store_class: type[SessionStore]) -> None:
    store = store_class()
    store["cart"] = 1
    store.save()
    assert 590 < left_of(store) <= 600
    assert store.get_expiry_age() == 600


def test_a_sign_in_gives_it_the_full_age(store_class: type[SessionStore]) -> None:
    store = store_class()
    store["cart"] = 1
    store.save()
    store = log_in(store_class(store.session_key))
    assert left_of(store) > settings.SESSION_COOKIE_AGE - 10
    assert store.get_expiry_age() == settings.SESSION_COOKIE_AGE


def test_an_expiry_that_the_site_has_set_stands(store_class: type[SessionStore]) -> None:
    store = store_class()
    store["cart"] = 1
    store.set_expiry(3600)
    store.save()
    assert 3590 < left_of(store) <= 3600


def test_a_signed_in_session_that_is_saved_keeps_the_full_age(store_class: type[SessionStore]) -> None:
    store = store_class(sign_in(store_class()).session_key)
    store["cart"] = 1
    store.save()
    assert left_of(store) > settings.SESSION_COOKIE_AGE - 10


def test_the_cookie_lives_as_long_as_the_session(store_class: type[SessionStore]) -> None:
    with override_settings(**settings_of_the_site([OURS, AUTHENTICATION])):
        client = Client()
        client.get("/modify/")
        assert client.cookies[settings.SESSION_COOKIE_NAME]["max-age"] == 600
        client.get("/sign_in/")
        assert client.cookies[settings.SESSION_COOKIE_NAME]["max-age"] == settings.SESSION_COOKIE_AGE


def test_a_session_without_a_user_was_seen_when_it_was_saved(store_class: type[SessionStore]) -> None:
    store = store_class()
    store["cart"] = 1
    store.save()
    session_id = str(store.session_id)
    sessions = Sessions(store_class)
    seen = sessions.describe(session_id, engine_of(store_class).run(sessions.look(session_id))).last_seen
    assert seen is not None
    assert datetime.now(UTC) - seen < timedelta(minutes=1)
