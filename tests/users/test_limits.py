"""``GSESSION["MAX_SESSIONS_PER_USER"]``."""

import asyncio
import threading
from contextlib import suppress
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import SESSION_KEY, alogin, get_user, login
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import UpdateError
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.signals import Ended, session_ended
from gsession_django.testing.threads import in_threads
from gsession_django.users.limits import TooManySessions
from tests.support.engines import stored
from tests.support.sign_ins import ids_of, log_in, request_of
from tests.support.sites import BACKEND, InMemoryUser

_ADA = InMemoryUser(pk="7", username="ada", password="a hash")


def limited(number: int, **more: Any) -> Any:
    return override_settings(GSESSION={**settings.GSESSION, "MAX_SESSIONS_PER_USER": number, **more})


def test_the_oldest_session_ends_at_a_sign_in_beyond_the_limit(store_class: type[SessionStore]) -> None:
    reasons: list[Any] = []

    def receive(reason: Any, **arguments: Any) -> None:
        reasons.append(reason)

    session_ended.connect(receive)
    with limited(2):
        first, second, third = (log_in(store_class()) for _ in range(3))
    session_ended.disconnect(receive)
    assert ids_of() == {second.session_id, third.session_id}
    assert stored(store_class, first.session_key) is None
    assert reasons == [Ended.REPLACED]


def test_another_user_has_a_limit_of_their_own(store_class: type[SessionStore]) -> None:
    with limited(1):
        one, other = log_in(store_class(), "7"), log_in(store_class(), "8")
    assert ids_of("7") == {one.session_id}
    assert ids_of("8") == {other.session_id}


def test_a_second_sign_in_of_the_same_session_counts_once(store_class: type[SessionStore]) -> None:
    with limited(1):
        one = log_in(store_class())
        again = log_in(store_class(one.session_key))
    assert ids_of() == {again.session_id}


def test_a_sign_in_is_not_undone_by_itself(store_class: type[SessionStore]) -> None:
    """The limit was lowered, and the user signs in again in the session that is the oldest."""
    first, *_ = (log_in(store_class()) for _ in range(3))
    with limited(1):
        again = log_in(store_class(first.session_key))
    assert again.get(SESSION_KEY) == "7", "login() has returned, so the view believes it"
    assert ids_of() == {again.session_id}


def test_a_sign_in_without_a_session_makes_none(store_class: type[SessionStore]) -> None:
    """Packages that hand out tokens send ``user_logged_in`` with a request whose session is nobody's."""
    with limited(5):
        user_logged_in.send(sender=User, request=request_of(store_class()), user=_ADA)
        assert list(store_class.get_storage().ids()) == []


def test_a_sign_in_can_be_refused(store_class: type[SessionStore]) -> None:
    with limited(1, REFUSE_SIGN_IN=True):
        first = log_in(store_class())
        request = request_of(store_class())
        with pytest.raises(TooManySessions, match="MAX_SESSIONS_PER_USER"):
            login(request, _ADA, BACKEND)
    assert ids_of() == {first.session_id}
    assert not request.user.is_authenticated
    assert not get_user(request).is_authenticated
    assert request.session.is_empty()


def test_a_refused_async_sign_in_leaves_nobody_signed_in(store_class: type[SessionStore]) -> None:
    request: Any = request_of(store_class())

    async def nobody() -> Any:
        return request.user

    async def visit() -> bool:
        request.auser = nobody
        with pytest.raises(TooManySessions):
            await alogin(request, _ADA, BACKEND)
        return bool((await request.auser()).is_authenticated)

    with limited(1, REFUSE_SIGN_IN=True):
        log_in(store_class())
        assert not asyncio.run(visit())


def test_of_sign_ins_at_once_one_stays(store_class: type[SessionStore]) -> None:
    barrier = threading.Barrier(6)
    with limited(1):

        def visit(number: int) -> None:
            store = store_class()
            barrier.wait(30)
            with suppress(UpdateError):  # another sign-in has ended this one
                log_in(store)

        in_threads(6, visit, barrier)
    assert len(ids_of()) == 1


def test_of_sign_ins_at_once_that_can_be_refused_no_more_stay_than_the_limit(store_class: type[SessionStore]) -> None:
    barrier = threading.Barrier(6)
    with limited(2, REFUSE_SIGN_IN=True):

        def visit(number: int) -> None:
            store = store_class()
            barrier.wait(30)
            with suppress(TooManySessions):
                log_in(store)

        in_threads(6, visit, barrier)
    assert len(ids_of()) <= 2
