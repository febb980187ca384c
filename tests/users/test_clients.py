"""Address and user agent of the sign-in and of the last visit, with ``GSESSION["RECORD_CLIENT"]``."""

import asyncio
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

from gsession_django.users import Client, UserSession, sessions_of
from gsession_django.users.clients import address_of, user_agent_of
from tests.support.engines import empty, stored
from tests.support.sites import AUTHENTICATION, OURS, Visitor

ENGINE = "gsession_django.backends.memory"
HOME, WORK = Client("192.0.2.1", "Firefox at home"), Client("2001:db8::7", "Firefox at work")


@sync_and_async_middleware
def behind_a_proxy(get_response: Any) -> Any:
    """Take the address from a header, as a site does whose proxy sets it."""
    if iscoroutinefunction(get_response):

        async def amiddleware(request: HttpRequest) -> Any:
            request.META["REMOTE_ADDR"] = request.headers["x-real-ip"]
            return await get_response(request)

        return amiddleware

    def middleware(request: HttpRequest) -> Any:
        request.META["REMOTE_ADDR"] = request.headers["x-real-ip"]
        return get_response(request)

    return middleware


# Pages that the site of tests.support does not have.


def idle(request: HttpRequest) -> HttpResponse:
    return HttpResponse("idle")


def show(request: HttpRequest) -> HttpResponse:
    assert request.user.is_authenticated
    request.session["cart"]["for display"] = object()
    return HttpResponse("shown")


async def aidle(request: HttpRequest) -> HttpResponse:
    return idle(request)


async def ashow(request: HttpRequest) -> HttpResponse:
    await request.auser()
    cart: dict[str, Any] = await request.session.aget("cart", {})
    cart["for display"] = object()
    return HttpResponse("shown")


urlpatterns = [path(f"{view.__name__}/", view) for view in (idle, show, aidle, ashow)]


@pytest.fixture(autouse=True)
def _site() -> Iterator[None]:
    with override_settings(
        SESSION_ENGINE=ENGINE,
        GSESSION={"RECORD_CLIENT": True},
        ROOT_URLCONF="tests.support.sites",
        MIDDLEWARE=[f"{__name__}.behind_a_proxy", OURS, AUTHENTICATION],
        AUTHENTICATION_BACKENDS=["tests.support.sites.Backend"],
    ):
        empty(import_module(ENGINE).SessionStore)
        yield


@pytest.fixture(params=["sync", "async"])
def visitor(request: pytest.FixtureRequest) -> Iterator[Visitor]:
    if request.param == "sync":
        yield Visitor()
        return
    with asyncio.Runner() as runner:
        yield Visitor(runner)


def visit(visitor: Visitor, what: str, place: Client) -> None:
    headers = {"user-agent": place.user_agent, "x-real-ip": place.address}
    assert visitor.does(what, headers=headers).status_code == 200


def listed() -> UserSession:
    (session,) = sessions_of("1")
    return session


def writes_during(monkeypatch: pytest.MonkeyPatch, visitor: Visitor, what: str, place: Client) -> int:
    """Return how often the storage was written to during a visit."""
    storage = import_module(ENGINE).SessionStore.get_storage()
    writes: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("apply", "create", "update_ttl", "move"):
            method = getattr(storage, name)

            def call(*args: Any, method: Any = method) -> Any:
                writes.append(method.__name__)
                return method(*args)

            patch.setattr(storage, name, call)
        visit(visitor, what, place)
    return len(writes)


def test_the_sign_in_and_the_last_visit_are_noted(visitor: Visitor) -> None:
    visit(visitor, "sign_in", HOME)
    assert (listed().signed_in_from, listed().last_seen_from) == (HOME, HOME)
    visit(visitor, "read", WORK)
    assert (listed().signed_in_from, listed().last_seen_from) == (HOME, WORK)


def test_a_visit_from_the_same_place_writes_nothing(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(visitor, "sign_in", HOME)
    assert writes_during(monkeypatch, visitor, "read", HOME) == 0
    assert writes_during(monkeypatch, visitor, "read", WORK) == 1
    assert writes_during(monkeypatch, visitor, "read", WORK) == 0


def test_a_new_sign_in_is_noted_anew(visitor: Visitor) -> None:
    visit(visitor, "sign_in", HOME)
    visit(visitor, "sign_out", HOME)
    visit(visitor, "sign_in", WORK)
    assert (listed().signed_in_from, listed().last_seen_from) == (WORK, WORK)


def test_a_sign_in_that_is_saved_at_once_is_noted(visitor: Visitor) -> None:
    with override_settings(GSESSION={"RECORD_CLIENT": True, "MAX_SESSIONS_PER_USER": 3}):
        for place in (HOME, WORK):  # the second time, the session is the user's already
            visit(visitor, "sign_in", place)
            assert (listed().signed_in_from, listed().last_seen_from) == (place, place)


def test_a_new_key_does_not_change_where_the_user_signed_in(visitor: Visitor) -> None:
    visit(visitor, "sign_in", HOME)
    visit(visitor, "cycle", WORK)
    assert (listed().signed_in_from, listed().last_seen_from) == (HOME, WORK)


def test_where_a_user_signed_in_before_it_was_on_nobody_knows(visitor: Visitor) -> None:
    with override_settings(GSESSION={}):
        visit(visitor, "sign_in", HOME)
        assert (listed().signed_in_from, listed().last_seen_from) == (None, None)
    for place in (HOME, WORK):
        visit(visitor, "read", place)
        assert (listed().signed_in_from, listed().last_seen_from) == (None, place)


def test_nothing_is_noted_of_visitors_who_are_not_signed_in(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    visit(visitor, "modify", HOME)
    assert writes_during(monkeypatch, visitor, "peek", WORK) == 0
    storage = import_module(ENGINE).SessionStore.get_storage()
    (session_id,) = storage.ids()
    assert set(storage.get_session(session_id, 60)) == {"count", "cart"}


def test_a_page_that_does_not_use_the_session_does_not_load_it(visitor: Visitor) -> None:
    visit(visitor, "sign_in", HOME)
    with override_settings(ROOT_URLCONF=__name__):
        visit(visitor, "idle", WORK)
    assert listed().last_seen_from == HOME


def test_the_application_does_not_see_it(visitor: Visitor) -> None:
    visit(visitor, "sign_in", HOME)
    pairs = stored(import_module(ENGINE).SessionStore, visitor.key)
    assert pairs is not None
    assert set(pairs) == {SESSION_KEY, "_auth_user_backend", "_auth_user_hash"}


def test_a_value_made_for_display_does_not_fail_the_page(visitor: Visitor) -> None:
    with override_settings(GSESSION={}):
        visit(visitor, "sign_in", HOME)
        visit(visitor, "modify", HOME)
    for place in (HOME, WORK):  # the first note, and a change of it
        with override_settings(ROOT_URLCONF=__name__):
            visit(visitor, "show", place)
        assert listed().last_seen_from == place


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%<script>", "fe80::1"),
        ("", ""),
        ("unix:", ""),
        ("192.0.2.1, 192.0.2.2", ""),
        ("<script>", ""),
    ],
)
def test_only_an_ip_address_is_noted(given: str, noted: str) -> None:
    assert address_of(RequestFactory().get("/", REMOTE_ADDR=given)) == noted


def test_headers_that_a_visitor_writes_are_not_asked() -> None:
    headers = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9", "x-real-ip": "203.0.113.9"}
    assert address_of(RequestFactory().get("/", REMOTE_ADDR="192.0.2.1", headers=headers)) == "192.0.2.1"
    del (request := RequestFactory().get("/")).META["REMOTE_ADDR"]
    assert address_of(request) == ""


def test_a_user_agent_is_cut_and_can_be_printed() -> None:
    def noted(text: str) -> str:
        return user_agent_of(RequestFactory().get("/", headers={"user-agent": text}))

    assert noted("x" * 5000) == "x" * 512
    assert noted("a\x1b[31m\x00b\udc80\u202ec") == "a[31mbc"
    assert noted("") == user_agent_of(RequestFactory().get("/")) == ""
