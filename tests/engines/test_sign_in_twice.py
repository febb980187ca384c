"""Two sign-ins at once, as by a double click on "Log in": both succeed, and a logout still ends the session."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import SESSION_KEY, login, logout
from django.contrib.sessions.backends.base import UpdateError
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.urls import path

from gsession_django import SessionStore
from tests.support.engines import EACH_ENGINE, engine, new_session, stored
from tests.support.processes import TIMEOUT
from tests.support.sites import AUTHENTICATION, DJANGOS, OURS, Backend, ada

LARGE = {"cart": {"apple": 1}, "large": {"text": "x" * 20_000}}
both_have_read = threading.Barrier(2, timeout=TIMEOUT)


def sign_in(request: HttpRequest) -> HttpResponse:
    request.session.get("cart")
    both_have_read.wait()
    login(request, ada, f"{Backend.__module__}.Backend")
    return HttpResponse("in")


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return HttpResponse("out")


def who(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.user.get_username() or 'nobody'} {request.session.get('cart')}")


urlpatterns = [path(view.__name__, view) for view in (sign_in, sign_out, who)]


@pytest.fixture(params=[DJANGOS, OURS], ids=["Django's middleware", "ours"])
def site(request: pytest.FixtureRequest) -> Iterator[None]:
    with override_settings(
        ROOT_URLCONF=__name__,
        MIDDLEWARE=[request.param, AUTHENTICATION],
        AUTHENTICATION_BACKENDS=[f"{Backend.__module__}.Backend"],
        ALLOWED_HOSTS=["*"],
    ):
        yield


@pytest.fixture(params=EACH_ENGINE)
def store_class(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[type[SessionStore]]:
    with engine(request.param, tmp_path) as found:
        yield found


def visitor(key: str) -> Client:
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = key
    return client


@pytest.mark.usefixtures("site")
def test_both_succeed_and_keep_the_cart(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {"apple": 1}})
    visitors = [visitor(key), visitor(key)]
    answers: list[int] = []

    def click(client: Client) -> None:
        answers.append(client.post("/sign_in").status_code)

    threads = [threading.Thread(target=click, args=[client]) for client in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert answers == [200, 200]
    for client in visitors:
        assert client.get("/who").content == b"ada {'apple': 1}"
    assert not store_class().exists(key)
    # Each visitor has a separate session, so signing out ends only one.
    visitors[0].post("/sign_out")
    assert [client.get("/who").content.split()[0] for client in visitors] == [b"nobody", b"ada"]


def test_the_later_sign_in_keeps_everything_that_it_read(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, LARGE)
    one, other = store_class(key), store_class(key)
    for request in (one, other):
        assert SESSION_KEY not in request
    one.cycle_key()
    other.cycle_key()
    other[SESSION_KEY] = "1"
    other.save()
    found = stored(store_class, other.session_key) or {}
    assert found == {**LARGE, SESSION_KEY: "1"}
    assert stored(store_class, one.session_key) == LARGE


def test_the_later_sign_in_may_read_the_cart_after_the_first(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, LARGE)
    one, other = store_class(key), store_class(key)
    for request in (one, other):
        assert SESSION_KEY not in request
    one.cycle_key()
    assert other["large"] == LARGE["large"]
    other.cycle_key()
    other.save()
    assert stored(store_class, other.session_key) == LARGE


@pytest.mark.parametrize("large", [LARGE["large"], {"text": "small"}], ids=["large values", "no large values"])
def test_a_request_with_the_old_key_gets_nothing_of_the_signed_in_user(
    store_class: type[SessionStore], large: dict[str, str]
) -> None:
    key = new_session(store_class, {"large": large})
    signed_in, *others = (store_class(key) for _ in range(4))
    for request in (signed_in, *others):
        assert SESSION_KEY not in request
    signed_in.cycle_key()
    signed_in.update({SESSION_KEY: "1", "iban": "DE00", "large": {"text": "y" * 20_000}})
    signed_in.save()
    assert dict(others[0].items()) == {"large": large}
    others[1].cycle_key()
    others[1].save()
    assert stored(store_class, others[1].session_key) == {"large": large}
    signed_in.flush()
    others[2].cycle_key()
    others[2].save()
    assert stored(store_class, others[2].session_key) == {"large": large}
    assert stored(store_class, key) is None


def test_a_session_created_again_under_an_old_key_has_no_old_data(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, LARGE)
    store_class(key).cycle_key()
    again = store_class(key)
    again._session_cache = {"new": 1}
    again.save(must_create=True)
    found = store_class(key)
    assert found.get("large") is None
    assert dict(found.items()) == {"new": 1}


def test_a_session_with_a_signed_in_user_does_not_come_back(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {SESSION_KEY: "1"})
    request = store_class(key)
    assert request[SESSION_KEY] == "1"
    store_class(key).flush()
    request.cycle_key()
    with pytest.raises(UpdateError):
        request.save()
    assert list(store_class.get_storage().ids()) == []


@pytest.mark.parametrize("prepare", [lambda s: s.pop(SESSION_KEY), lambda s: s.clear(), lambda s: s.update({"a": 1})])
def test_a_session_does_not_come_back_after_the_request_itself_signed_the_user_out(
    store_class: type[SessionStore], prepare: Any
) -> None:
    key = new_session(store_class, {SESSION_KEY: "1"})
    request = store_class(key)
    assert request[SESSION_KEY] == "1"
    prepare(request)
    store_class(key).flush()
    request.cycle_key()
    with pytest.raises(UpdateError):
        request.save()


def test_a_logout_of_the_new_session_ends_it(store_class: type[SessionStore]) -> None:
    key = new_session(store_class, {"cart": {}})
    request = store_class(key)
    assert SESSION_KEY not in request
    request.cycle_key()
    request[SESSION_KEY] = "1"
    store_class(request.session_key).flush()
    with pytest.raises(UpdateError):
        request.save()
