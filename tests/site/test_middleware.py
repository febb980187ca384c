"""SessionMiddleware does what Django's does, without a thread, and answers an outage of the storage with 503."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.cookies import SimpleCookie
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncRequestFactory, Client, override_settings
from django.urls import path, re_path

from gsession_django import SessionStore as BaseSessionStore
from gsession_django import StorageUnavailable
from gsession_django.backends import memory
from gsession_django.backends import redis as redis_engine
from gsession_django.middleware import SessionMiddleware
from gsession_django.outages import RETRY_AFTER
from tests.support import engine_that_fails
from tests.support.engine_that_fails import FailingStorage, SessionStore
from tests.support.redis_servers import RedisServer, settings_for
from tests.support.sites import DJANGOS, ENGINES, OURS, each_engine, either_client, get, is_503
from tests.support.storages import PerKeyStorage, engine

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


class Stream(Iterator[str]):
    """The content of a response, which records that it was closed."""

    def __next__(self) -> str:
        raise AssertionError("never sent")

    def close(self) -> None:
        closed_streams.append(self)


closed_streams: list[Stream] = []


def swallow_and_stream(request: HttpRequest) -> StreamingHttpResponse:
    swallow(request)
    return StreamingHttpResponse(Stream())


urlpatterns = [
    re_path(r"^swallow/a\sb/$", swallow),
    path("swallow_and_stream/", swallow_and_stream),
    *(
        path(f"{view.__name__}/", view)
        for view in (read, write, aread, awrite, swallow, fail_in_save, fail_after_cycling, fail_after_flush, stream)
    ),
]


@contextmanager
def site(engine: str, middleware: str = OURS, more: tuple[str, ...] = (), **values: Any) -> Iterator[None]:
    global server
    with RedisServer(appendonly="yes", appendfsync="always") as server:
        values = {"ROOT_URLCONF": __name__, "MIDDLEWARE": [middleware, *more], **values}
        with override_settings(**settings_for(engine, server.url()), **values):
            yield


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
        assert str(second.value) == str(first.value) == store.failure


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
        for name in ("load", "save"):  # these would block the loop
            monkeypatch.setattr(BaseSessionStore, name, refuse)
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


# On a storage in memory that fails when the test wants it.


@pytest.fixture
def storage() -> Iterator[FailingStorage]:
    with override_settings(SESSION_ENGINE=engine_that_fails.__name__, ROOT_URLCONF=__name__, MIDDLEWARE=[OURS]):
        found = SessionStore.get_storage()
        assert isinstance(found, FailingStorage)
        yield found


@pytest.fixture
def key(storage: FailingStorage) -> str:
    """The session key of a visitor."""
    store = SessionStore()
    store.update({"cart": {"apple": 1}, "count": 1})
    store.save()
    assert store.session_key is not None
    return store.session_key


def visitor(client_class: Any, key: str) -> Any:
    client = client_class(raise_request_exception=False)
    client.cookies[settings.SESSION_COOKIE_NAME] = key
    return client


either_mode = pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])


@either_mode
@pytest.mark.parametrize("failing", ["cycle_key", "flush", "save"])
def test_which_key_is_sent_where_a_later_call_fails(
    storage: FailingStorage, key: str, sync: bool, failing: str
) -> None:
    """After cycle_key() the answer has the new key if that key works, and no key if the session was to end."""
    keys: list[str | None] = []

    def view(request: HttpRequest) -> HttpResponse:
        request.session.cycle_key()
        keys.append(request.session.session_key)
        storage.answers = False
        with suppress(StorageUnavailable):
            getattr(request.session, failing)()
        return HttpResponse()

    response = respond(view, SessionMiddleware, key, sync)
    assert is_503(response)
    sent = [cookie.value for cookie in response.cookies.values()]
    assert sent == ([] if failing == "flush" else keys)


@either_mode
def test_a_session_begun_after_a_flush_is_not_sent_either(storage: FailingStorage, key: str, sync: bool) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        request.session.cycle_key()
        request.session.flush()
        request.session["count"] = 1
        request.session.save()
        storage.answers = False
        request.session["count"] = 2
        return HttpResponse()

    response = respond(view, SessionMiddleware, key, sync)
    assert is_503(response)
    assert not response.cookies


@either_mode
def test_an_outage_costs_a_request_one_call(storage: FailingStorage, key: str, sync: bool) -> None:
    storage.asked, storage.answers = 0, False

    def view(request: HttpRequest) -> HttpResponse:
        for use in (request.session.load, request.session.flush, request.session.cycle_key, request.session.save):
            with pytest.raises(StorageUnavailable):
                use()
        with pytest.raises(StorageUnavailable):
            request.session.exists("another-key")
        with pytest.raises(StorageUnavailable):
            request.session.delete("another-key")
        return HttpResponse()

    assert is_503(respond(view, SessionMiddleware, key, sync))
    assert storage.asked == 1


@either_mode
def test_another_store_that_fails_is_not_the_requests_session(storage: FailingStorage, key: str, sync: bool) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        storage.answers = False
        SessionStore("another-key").load()
        raise AssertionError("never reached")

    with pytest.raises(StorageUnavailable):
        respond(view, SessionMiddleware, key, sync)


@either_client
def test_what_the_view_answered_is_closed_and_the_request_ends_once(
    storage: FailingStorage, key: str, client_class: Any
) -> None:
    """Also with an async receiver, which a signal on the running loop could not await."""
    finished: list[object] = []

    def receiver(sender: object, **kwargs: Any) -> None:
        finished.append(sender)

    async def areceiver(sender: object, **kwargs: Any) -> None:
        finished.append(sender)

    client = visitor(client_class, key)
    storage.answers = False
    closed_streams.clear()
    request_finished.connect(receiver)
    request_finished.connect(areceiver)
    try:
        response = get(client, "/swallow_and_stream/")
    finally:
        request_finished.disconnect(receiver)
        request_finished.disconnect(areceiver)
    assert is_503(response)
    assert len(closed_streams) == 1
    assert len(finished) == 2


@either_client
def test_it_is_logged_in_one_line_and_not_on_the_loop(
    storage: FailingStorage, key: str, client_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the path nor the reason can begin a line, and a slow handler does not delay other requests."""
    looping: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            looping.append(asyncio._get_running_loop() is not None)

    handler = Handler()
    logging.getLogger("gsession_django").addHandler(handler)
    client = visitor(client_class, key)
    storage.answers = False
    try:
        get(client, "/swallow/a%0Ab/")
    finally:
        logging.getLogger("gsession_django").removeHandler(handler)
    assert [record.getMessage() for record in caplog.records if record.name == "gsession_django"] == [
        r"GET /swallow/a\nb/ is answered with 503: it has been told\nnot to answer"
    ]
    assert looping == [False]


@either_mode
def test_a_failed_request_leaves_nothing_to_the_garbage_collector(
    storage: FailingStorage, key: str, sync: bool
) -> None:
    """In an outage every request fails."""
    stores: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        request.session["count"] = 2
        storage.answers = False
        stores.append(weakref.ref(request.session))
        return HttpResponse()

    logging.disable()  # a captured record would keep the request alive
    gc.disable()
    try:
        assert is_503(respond(view, SessionMiddleware, key, sync))
        assert [store() for store in stores] == [None]
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)


@either_client
def test_a_503_html_whose_parent_is_missing_is_logged(
    storage: FailingStorage, key: str, client_class: Any, caplog: pytest.LogCaptureFixture
) -> None:
    loaders = [("django.template.loaders.locmem.Loader", {"503.html": "{% extends 'gone.html' %}"})]
    templates = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"loaders": loaders}}]
    client = visitor(client_class, key)
    storage.answers = False
    with override_settings(TEMPLATES=templates):
        assert b"try again" in get(client, "/read/").content
    assert [record.exc_info is not None for record in caplog.records if "503.html" in record.getMessage()] == [True]


def test_the_servers_own_handlers_answer_503(storage: FailingStorage, key: str) -> None:
    """Those of the test client treat exceptions differently."""
    storage.answers = False
    cookie = f"{settings.SESSION_COOKIE_NAME}={key}"
    heads: list[Any] = []
    environ: dict[str, Any] = {"PATH_INFO": "/read/", "HTTP_COOKIE": cookie}
    setup_testing_defaults(environ)
    wsgi: Any = WSGIHandler()
    answer = wsgi(environ, lambda *head: heads.append(head))
    assert b"try again" in b"".join(answer)
    answer.close()

    async def visit() -> list[Any]:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/aread/", "query_string": b""}
        scope["headers"] = [(b"host", b"127.0.0.1"), (b"cookie", cookie.encode())]
        events: list[Any] = []
        bodies = [{"type": "http.request", "body": b""}]
        ended = asyncio.Event()  # the client waits for its answer

        async def receive() -> Any:
            if bodies:
                return bodies.pop()
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            events.append(event)

        asgi: Any = ASGIHandler()
        await asgi(scope, receive, send)
        return events

    start, body = asyncio.run(visit())
    assert (heads[0][0], start["status"]) == ("503 Service Unavailable", 503)
    for headers in (heads[0][1], [(name.decode(), value.decode()) for name, value in start["headers"]]):
        assert dict(headers)["Retry-After"] == str(RETRY_AFTER)
        assert "Set-Cookie" not in dict(headers)
    assert b"try again" in body["body"]


@either_mode
def test_a_value_changed_in_place_renews_the_cookie(key: str, sync: bool) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        request.session["cart"]["pear"] = 1
        return HttpResponse()

    response = respond(view, SessionMiddleware, key, sync)
    assert response.cookies[settings.SESSION_COOKIE_NAME].value == key
    assert SessionStore(key)["cart"] == {"apple": 1, "pear": 1}


@either_mode
def test_a_5xx_saves_nothing(key: str, sync: bool) -> None:
    assert not respond(_fail, SessionMiddleware, key, sync).cookies
    assert "key" not in SessionStore(key)


@either_mode
@pytest.mark.usefixtures("storage")
def test_a_visitor_without_a_session_costs_the_storage_nothing(sync: bool) -> None:
    with override_settings(SESSION_SAVE_EVERY_REQUEST=True):
        assert not respond(_touch, SessionMiddleware, None, sync).cookies
        storage = SessionStore.get_storage()
        assert isinstance(storage, FailingStorage)
        assert storage.asked == 0


@either_mode
def test_what_is_no_session_is_left_alone(key: str, sync: bool) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        request.session = {}  # type: ignore[assignment]
        return HttpResponse("done")

    assert respond(view, SessionMiddleware, key, sync).content == b"done"


@either_mode
def test_what_a_subclass_overrides_is_called(storage: FailingStorage, key: str, sync: bool) -> None:
    class Secured(SessionMiddleware):
        def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:  # type: ignore[override]
            response = super().process_response(request, response)
            for cookie in response.cookies.values():
                cookie["domain"] = "example.com"
            return response

    def view(request: HttpRequest) -> HttpResponse:
        request.session["count"] = 2
        return HttpResponse()

    def fail(request: HttpRequest) -> HttpResponse:
        storage.answers = False
        return view(request)

    response = respond(view, Secured, key, sync)
    assert response.cookies[settings.SESSION_COOKIE_NAME]["domain"] == "example.com"
    assert is_503(respond(fail, Secured, key, sync))


@pytest.mark.parametrize("method", ["load", "keys"])
def test_a_session_still_in_the_storage_outlives_its_store(method: str) -> None:
    """The result of load() or keys() asks the store for values, and may hold its last reference."""
    store = engine(PerKeyStorage)()
    store["n"] = 1
    store.save()

    def found() -> Any:
        return getattr(type(store)(store.session_key), method)()

    assert list(found()) == ["n"]


def test_a_session_that_was_fetched_leaves_nothing_to_the_garbage_collector() -> None:
    store = engine(PerKeyStorage)()
    store["n"] = 1
    store.save()
    read = type(store)(store.session_key)
    assert dict(read.items()) == {"n": 1}
    gone = weakref.ref(read)
    gc.disable()
    try:
        del read
        assert gone() is None
    finally:
        gc.enable()
