"""``GSESSION["INTERRUPTED"]``: the answer to a request whose session was ended while it ran."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.http import urlencode

from gsession_django import SessionStore
from tests.support.engines import engine
from tests.support.sites import AUTHENTICATION, DJANGOS, OURS, either_client, get


def change(request: HttpRequest) -> HttpResponse:
    """Change a session that is ended before it is saved."""
    request.session["count"] = request.session.get("count", 0) + 1
    type(request.session)().delete(request.session.session_key)
    return HttpResponse("done")


def raise_it(request: HttpRequest) -> HttpResponse:
    raise SessionInterrupted("as session_lock does")


def ours(request: HttpRequest, exception: Exception) -> HttpResponse:
    return HttpResponse(f"{type(exception).__name__} at {request.path}", status=409)


async def our_async(request: HttpRequest, exception: Exception) -> HttpResponse:
    return ours(request, exception)


def fails(request: HttpRequest, exception: Exception) -> HttpResponse:
    raise ValueError("a mistake of the site")


def sign_in_page(request: HttpRequest) -> HttpResponse:
    return HttpResponse("sign in")


urlpatterns = [path("change/", change), path("raise/", raise_it), path("sign-in/", sign_in_page, name="sign-in")]


@pytest.fixture(autouse=True)
def store_class(tmp_path: Path) -> Iterator[type[SessionStore]]:
    with (
        engine("memory", tmp_path) as store_class,
        override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[OURS, AUTHENTICATION]),
    ):
        yield store_class


def interrupted(target: Any) -> Any:
    return override_settings(GSESSION={**settings.GSESSION, "INTERRUPTED": target})


def visitor(client_class: type[Client] | type[AsyncClient], store_class: type[SessionStore]) -> Any:
    store = store_class()
    store["count"] = 1
    store.save()
    client: Any = client_class()
    client.cookies[settings.SESSION_COOKIE_NAME] = store.session_key
    return client


@either_client
@pytest.mark.parametrize("url", ["/change/?page=2", "/raise/?page=2"])
@pytest.mark.parametrize("target", ["/sign-in/", "sign-in"])
def test_a_page_is_answered_with_the_sign_in_page(
    client_class: Any, store_class: type[SessionStore], url: str, target: str
) -> None:
    with interrupted(target):
        response = get(visitor(client_class, store_class), url)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/sign-in/?{urlencode({'next': url})}"
    assert "no-store" in response.headers["Cache-Control"]


def test_a_post_leads_to_the_sign_in_page_without_a_way_back(store_class: type[SessionStore]) -> None:
    with interrupted("sign-in"):
        response = visitor(Client, store_class).post("/change/")
    assert (response.status_code, response.headers["Location"]) == (302, "/sign-in/")


@either_client
def test_a_client_that_prefers_json_gets_json(client_class: Any, store_class: type[SessionStore]) -> None:
    client = visitor(client_class, store_class)
    with interrupted("sign-in"):
        answer = client.get("/change/", headers={"accept": "application/json"})
        response = asyncio.run(answer) if client_class is AsyncClient else answer
    assert response.status_code == 400
    assert json.loads(response.content)["sign_in"] == "/sign-in/"


@either_client
@pytest.mark.parametrize("view", ["ours", "our_async"])
def test_the_site_has_a_view_of_its_own(client_class: Any, store_class: type[SessionStore], view: str) -> None:
    with interrupted(f"{__name__}.{view}"):
        response = get(visitor(client_class, store_class), "/change/")
    assert (response.status_code, response.content) == (409, b"SessionInterrupted at /change/")


@either_client
def test_a_view_that_fails_leaves_djangos_answer_and_a_log(
    client_class: Any, store_class: type[SessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    with interrupted(f"{__name__}.fails"):
        response = get(visitor(client_class, store_class), "/change/")
    assert response.status_code == 400
    assert "INTERRUPTED" in caplog.text
    assert "a mistake of the site" in caplog.text


@either_client
@pytest.mark.parametrize("middleware", [OURS, DJANGOS])
def test_without_the_setting_it_is_djangos_400(
    client_class: Any, store_class: type[SessionStore], middleware: str
) -> None:
    with override_settings(MIDDLEWARE=[middleware, AUTHENTICATION]):
        response = get(visitor(client_class, store_class), "/change/")
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("nowhere", "NoReverseMatch"),
        (f"{__name__}.nothing", "ImportError"),
        (f"{__name__}.urlpatterns", "cannot be called"),
        (7, "not text"),
    ],
)
def test_a_target_that_leads_nowhere_is_found_by_the_checks(target: Any, problem: str) -> None:
    with interrupted(target):
        (message,) = (each for each in run_checks() if each.id == "gsession_django.E033")
    assert problem in message.msg


@pytest.mark.parametrize("target", [None, "/sign-in/", "sign-in", f"{__name__}.ours", "https://example.org/"])
def test_a_target_that_is_right_passes_the_checks(target: Any) -> None:
    with interrupted(target):
        assert [each for each in run_checks() if each.id == "gsession_django.E033"] == []
