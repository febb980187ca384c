"""A change of the password: Django's behaviour stays, and the index reflects it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth import aget_user, aupdate_session_auth_hash, get_user, update_session_auth_hash
from django.test import override_settings

from gsession_django import SessionStore
from gsession_django.users import sessions_of
from tests.support.engines import stored
from tests.support.sign_ins import ids_of, log_in, request_of
from tests.support.sites import BACKEND, ada

ADA = str(ada.pk)


@pytest.fixture(autouse=True)
def _users(store_class: type[SessionStore]) -> Iterator[None]:
    with override_settings(AUTHENTICATION_BACKENDS=[BACKEND]):
        yield


@pytest.fixture(params=["sync", "async"])
def change(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that changes ada's password in a request with a session, and saves the session."""

    def change(store: SessionStore) -> None:
        visit: Any = request_of(store)
        visit.user = ada
        monkeypatch.setattr(ada, "password", "the hash of another password")
        if request.param == "sync":
            update_session_auth_hash(visit, ada)
            store.save()
            return

        async def change_it() -> None:
            async def auser() -> Any:
                return ada

            visit.auser = auser
            await aupdate_session_auth_hash(visit, ada)
            await store.asave()

        asyncio.run(change_it())

    return change


def user_of(store: SessionStore) -> str:
    return get_user(request_of(store)).get_username()


async def auser_of(store: SessionStore) -> str:
    return (await aget_user(request_of(store))).get_username()


def test_the_session_that_changed_it_goes_on_and_is_listed_by_its_new_id(
    store_class: type[SessionStore], change: Any
) -> None:
    mine = log_in(store_class(), ADA)
    old_key, old_id = mine.session_key, mine.session_id
    change(request := store_class(mine.session_key))
    assert request.session_id != old_id
    assert stored(store_class, old_key) is None
    assert ids_of(ADA) == {request.session_id}
    (listed,) = sessions_of(ADA, request)
    assert listed.is_current
    assert user_of(store_class(request.session_key)) == "ada"


def test_the_others_open_no_page_and_leave_the_list_at_their_next_visit(
    store_class: type[SessionStore], change: Any
) -> None:
    mine, one, other = (log_in(store_class(), ADA) for _ in range(3))
    change(request := store_class(mine.session_key))
    assert ids_of(ADA) == {request.session_id, one.session_id, other.session_id}
    assert user_of(store_class(one.session_key)) == ""
    assert ids_of(ADA) == {request.session_id, other.session_id}
    assert asyncio.run(auser_of(store_class(other.session_key))) == ""
    assert ids_of(ADA) == {request.session_id}
    assert user_of(store_class(request.session_key)) == "ada"


def test_the_time_of_the_sign_in_stays(store_class: type[SessionStore], change: Any) -> None:
    mine = log_in(store_class(), ADA)
    (before,) = sessions_of(ADA)
    change(store_class(mine.session_key))
    (after,) = sessions_of(ADA)
    assert after.created == before.created
