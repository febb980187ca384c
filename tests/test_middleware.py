"""SessionMiddleware: what Django's does, without a thread, and 503 where the sessions' storage does not answer."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.cookies import SimpleCookie
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, override_settings
from django.urls import path

from gsession_django import SessionStore, StorageUnavailable
from gsession_django.backends import memory
from gsession_django.backends import redis as redis_engine
from gsession_django.middleware import RETRY_AFTER, SessionMiddleware
from tests.redis_servers import RedisServer, settings_for

ENGINES = ["gsession_django.backends.redis", "gsession_django.backends.redis_hash"]
OURS = "gsession_django.middleware.SessionMiddleware"
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"

server: RedisServer


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("count", "none")))


def write(request: HttpRequest) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse(str(request.session["count"]))


async def aread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.session.aget("count", "none")))


async def awrite(request: HttpRequest) -> HttpResponse:
    await request.session.aset("count", await request.session.aget("count", 0) + 1)
    return HttpResponse(str(await request.session.aget("count")))


def swallow(request: HttpRequest) -> HttpResponse:
    try:
        return HttpResponse(str(request.session.get("count")))
    except StorageUnavailable:
        return HttpResponse("as if nobody were signed in")


def fail_in_save(request: HttpRequest) -> HttpResponse:
    request.session["count"] = request.session.get("count", 0) + 1
    server.kill()
    return HttpResponse("done")


def fail_after_cycling(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    request.session["count"] = 100
    server.kill()
    return HttpResponse("done")


def fail_after_flush(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    request.session["count"] = 1
    server.kill()
    return HttpResponse("done")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    request.session.get("count")
    return StreamingHttpResponse(iter(["never sent"]))


urlpatterns = [
    path(f"{view.__name__}/", view)
    for view in (read, write, aread, awrite, swallow, fail_in_save, fail_after_cycling, fail_after_flush, stream)
]

either_client = pytest.mark.parametrize("client_class", [Client, AsyncClient], ids=["sync", "async"])
each_engine = pytest.mark.parametrize("engine", ENGINES)


def get(client: Any, url: str) -> Any:
    answer = client.get(url)
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


@contextmanager
def site(engine: str, middleware: str = OURS, more: tuple[str, ...] = (), **values: Any) -> Iterator[None]:
    global server
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        values = {"ROOT_URLCONF": __name__, "MIDDLEWARE": [middleware, *more], **values}
        with override_settings(**settings_for(engine, server.url()), **values):
            yield


def is_503(response: Any) -> bool:
    return bool(response.status_code == 503 and response.headers["Retry-After"] == str(RETRY_AFTER))


# An outage.


@either_client
@each_engine
@pytest.mark.parametrize("url", ["/read/", "/aread/", "/write/", "/awrite/", "/swallow/", "/stream/"])
def test_an_outage_is_a_503_and_nobody_is_signed_out(
    client_class: Any, engine: str, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with site(engine):
        client = client_class(raise_request_exception=False)
        assert get(client, "/write/").content == b"1"
        server.kill()
        response = get(client, url)
        assert is_503(response)
        assert response.cookies == SimpleCookie()
        assert "Cookie" in response.headers["Vary"]
        records = [record for record in caplog.records if record.name == "gsession_django"]
        assert [(record.levelno, url in record.getMessage()) for record in records] == [(logging.ERROR, True)]
        assert "CACHES['sessions']" in records[0].getMessage()
        server.restart()
        assert get(client, "/read/").content == b"1"


@either_client
@each_engine
def test_a_save_that_fails_is_a_503(client_class: Any, engine: str) -> None:
    with site(engine):
        client = client_class(raise_request_exception=False)
        get(client, "/write/")
        response = get(client, "/fail_in_save/")
        assert is_503(response)
        assert response.cookies == SimpleCookie()
        server.restart()
        assert get(client, "/read/").content == b"1"


@either_client
@each_engine
def test_a_key_that_was_cycled_before_is_sent(client_class: Any, engine: str) -> None:
    with site(engine):
        client = client_class(raise_request_exception=False)
        get(client, "/write/")
        before = client.cookies[settings.SESSION_COOKIE_NAME].value
        response = get(client, "/fail_after_cycling/")
        assert is_503(response)
        assert response.cookies[settings.SESSION_COOKIE_NAME].value != before
        assert response.cookies[settings.SESSION_COOKIE_NAME]["httponly"]
        server.restart()
        assert get(client, "/read/").content == b"1"


@either_client
def test_nothing_is_sent_after_a_flush(client_class: Any) -> None:
    with site(ENGINES[0]):
        client = client_class(raise_request_exception=False)
        get(client, "/write/")
        response = get(client, "/fail_after_flush/")
        assert is_503(response)
        assert response.cookies == SimpleCookie()


@either_client
def test_login_required_middleware_meets_the_outage_first(client_class: Any) -> None:
    more = (
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    )
    with site(ENGINES[1], more=more):
        client = client_class(raise_request_exception=False)
        client.cookies[settings.SESSION_COOKIE_NAME] = "a" * 32
        server.kill()
        response = get(client, "/read/")
        assert is_503(response)
        assert response.cookies == SimpleCookie()


@either_client
def test_with_djangos_middleware_it_is_a_500_and_the_cookie_stays(client_class: Any) -> None:
    with site(ENGINES[0], DJANGOS):
        client = client_class(raise_request_exception=False)
        get(client, "/write/")
        server.kill()
        for url in ("/read/", "/write/"):
            response = get(client, url)
            assert response.status_code == 500
            assert response.cookies == SimpleCookie()


def test_a_hung_server_is_waited_for_once() -> None:
    with site(ENGINES[0]):
        request = HttpRequest()
        request.COOKIES[settings.SESSION_COOKIE_NAME] = "a" * 32
        SessionMiddleware(read).process_request(request)
        store = request.session
        assert isinstance(store, redis_engine.SessionStore)
        server.kill()
        with pytest.raises(StorageUnavailable) as first:
            store.get("count")
        server.restart()
        with pytest.raises(StorageUnavailable) as second:
            store.save()
        assert second.value.__cause__ is first.value is store.failure


TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"503.html": "<h1>Later</h1>"})]},
    }
]
BROKEN = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"loaders": [("django.template.loaders.locmem.Loader", {"503.html": "{% broken %}"})]},
    }
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, b"try again"),
        ({"TEMPLATES": TEMPLATES}, b"<h1>Later</h1>"),
        ({"TEMPLATES": BROKEN}, b"try again"),
        ({"DEBUG": True}, b"CACHES['sessions']"),
    ],
    ids=["plain text", "503.html", "a broken 503.html", "DEBUG"],
)
def test_the_page(values: dict[str, Any], expected: bytes) -> None:
    with site(ENGINES[0], **values):
        client = Client(raise_request_exception=False)
        client.cookies[settings.SESSION_COOKIE_NAME] = "a" * 32
        server.kill()
        assert expected in get(client, "/read/").content


# Under ASGI.


@pytest.mark.parametrize("engine", [*ENGINES, "gsession_django.backends.memory"])
def test_no_thread_is_entered(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("a thread is entered")

    async def visit(middleware: type[DjangoSessionMiddleware]) -> list[bytes]:
        handle: Any = middleware(awrite)
        request = AsyncRequestFactory().get("/")
        first = await handle(request)
        again = AsyncRequestFactory().get("/")
        again.COOKIES[settings.SESSION_COOKIE_NAME] = first.cookies[settings.SESSION_COOKIE_NAME].value
        return [first.content, (await handle(again)).content]

    with site(engine):
        monkeypatch.setattr(SyncToAsync, "__call__", refuse)
        for name in ("load", "save"):  # which would block the loop
            monkeypatch.setattr(SessionStore, name, refuse)
        assert asyncio.run(visit(SessionMiddleware)) == [b"1", b"2"]
        with pytest.raises(AssertionError, match="a thread"):
            asyncio.run(visit(DjangoSessionMiddleware))


def respond(view: Callable[[HttpRequest], HttpResponse], middleware: Any, cookie: str | None, sync: bool) -> Any:
    async def aview(request: HttpRequest) -> HttpResponse:
        return view(request)

    request = AsyncRequestFactory().get("/")
    if cookie is not None:
        request.COOKIES[settings.SESSION_COOKIE_NAME] = cookie
    if sync:
        return middleware(view)(request)

    async def call() -> Any:
        return await middleware(aview)(request)

    return asyncio.run(call())


def _set(request: HttpRequest) -> HttpResponse:
    request.session["key"] = 1
    return HttpResponse()


def _expire(request: HttpRequest) -> HttpResponse:
    request.session["key"] = 1
    request.session.set_expiry(0)
    return HttpResponse()


def _touch(request: HttpRequest) -> HttpResponse:
    request.session.get("key")
    return HttpResponse()


def _leave(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def _fail(request: HttpRequest) -> HttpResponse:
    request.session["key"] = 1
    return HttpResponse(status=500)


def _end(request: HttpRequest) -> HttpResponse:
    request.session.flush()
    return HttpResponse()


@pytest.mark.parametrize("every_request", [False, True], ids=["", "every request"])
@pytest.mark.parametrize("known", [False, True], ids=["a new visitor", "a known one"])
@pytest.mark.parametrize("view", [_set, _expire, _touch, _leave, _fail, _end])
def test_an_answer_is_djangos(view: Any, known: bool, every_request: bool) -> None:
    with override_settings(SESSION_ENGINE=memory.__name__, SESSION_SAVE_EVERY_REQUEST=every_request):
        found = []
        for middleware, sync in (
            (DjangoSessionMiddleware, True),
            (SessionMiddleware, True),
            (SessionMiddleware, False),
        ):
            store = memory.SessionStore()
            store["old"] = 1
            store.save()
            response = respond(view, middleware, store.session_key if known else None, sync)
            cookie = response.cookies.get(settings.SESSION_COOKIE_NAME)
            attributes = {name: value for name, value in (cookie or {}).items() if name != "expires"}
            kept = cookie is not None and cookie.value == store.session_key
            found.append((response.status_code, response.headers.get("Vary"), attributes, kept, cookie is None))
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
def test_a_session_that_was_deleted_meanwhile_interrupts(sync: bool) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        request.session["key"] = 1
        memory.SessionStore().delete(request.session.session_key)
        return HttpResponse()

    with override_settings(SESSION_ENGINE=memory.__name__):
        store = memory.SessionStore()
        store["old"] = 1
        store.save()
        with pytest.raises(SessionInterrupted):
            respond(view, SessionMiddleware, store.session_key, sync)
