"""An outage of the storage: the log, the answer to the visitor, and how a site changes that answer."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.cookies import SimpleCookie
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.core.signals import got_request_exception
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.template import engines
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_control
from django.views.decorators.csrf import csrf_exempt

from gsession_django import StorageUnavailable, outages
from gsession_django.decorators import answers_outages
from tests.support import engine_that_fails
from tests.support.databases import connected, sqlite_entry
from tests.support.engine_that_fails import FailingStorage, SessionStore
from tests.support.redis_servers import RedisServer, settings_for
from tests.support.sites import (
    AUTHENTICATION,
    BETWEEN,
    DJANGOS,
    LOGIN_REQUIRED,
    OURS,
    each_engine,
    either_client,
    get,
    is_503,
)

CSRF = "django.middleware.csrf.CsrfViewMiddleware"
CAUSE = "it has been told\\nnot to answer"
HERE = f"{__name__}."


atomic_alias = ""


def failing() -> FailingStorage:
    storage = SessionStore.get_storage()
    assert isinstance(storage, FailingStorage)
    return storage


# Views.


def read(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("count")))


async def aread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await request.session.aget("count")))


def render(request: HttpRequest) -> HttpResponse:
    template = engines["django"].from_string("{{ session.count }}")
    return TemplateResponse(request, template, {"session": request.session})


def write_to_the_database(request: HttpRequest) -> HttpResponse:
    with connections[atomic_alias].cursor() as cursor:
        cursor.execute("INSERT INTO visits VALUES (1)")
    return read(request)


def fail(request: HttpRequest) -> HttpResponse:
    try:
        return read(request)
    except StorageUnavailable:
        raise LookupError("a mistake of the site") from None


def use_another_session(request: HttpRequest) -> HttpResponse:
    SessionStore("another-key").load()
    raise AssertionError("never reached")


def count(request: HttpRequest) -> HttpResponse:
    """Change the session; its save fails."""
    request.session["count"] = request.session.get("count", 0) + 1
    failing().answers = False
    return HttpResponse("counted")


def report(request: HttpRequest) -> HttpResponse:
    """A health page."""
    try:
        request.session.get("count")
    except StorageUnavailable as error:
        return HttpResponse(f"sessions: {error}", status=503)
    return HttpResponse("sessions: well")


async def areport(request: HttpRequest) -> HttpResponse:
    try:
        await request.session.aget("count")
    except StorageUnavailable as error:
        return HttpResponse(f"sessions: {error}", status=503)
    return HttpResponse("sessions: well")


@method_decorator(answers_outages, name="dispatch")
class Report(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return report(request)


@method_decorator(answers_outages, name="dispatch")
class AsyncReport(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await areport(request)


def change_the_key(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    failing().answers = False
    request.session.save()
    raise AssertionError("never reached")


@answers_outages
def report_with_a_new_key(request: HttpRequest) -> HttpResponse:
    try:
        return change_the_key(request)
    except StorageUnavailable as error:
        return later(request, error)


@answers_outages
def report_to_a_load_balancer(request: HttpRequest) -> HttpResponse:
    try:
        request.session.exists("health-check")
    except StorageUnavailable as error:
        return HttpResponse(f"sessions: {error}", status=503)
    return HttpResponse("sessions: well")


@answers_outages
def forbid(request: HttpRequest) -> HttpResponse:
    assert report(request).status_code == 503
    raise PermissionDenied


OUTAGE = (True, False, False, True)
"""Whether the storage answers, for each part of a stream."""


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[str]:
        for failing().answers in OUTAGE:
            request.session["count"] = request.session.get("count", 0) + 1
            try:
                request.session.save()
            except StorageUnavailable:
                yield "failed "
            else:
                yield "saved "

    return StreamingHttpResponse(parts())


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        for failing().answers in OUTAGE:
            await request.session.aset("count", await request.session.aget("count", 0) + 1)
            try:
                await request.session.asave()
            except StorageUnavailable:
                yield "failed "
            else:
                yield "saved "

    return StreamingHttpResponse(parts())


VIEWS: dict[str, Any] = {
    **{view.__name__: view for view in (read, aread, render, write_to_the_database, fail, use_another_session, count)},
    **{view.__name__: view for view in (report, report_to_a_load_balancer, change_the_key, report_with_a_new_key)},
    **{view.__name__: view for view in (forbid, stream, astream)},
    "answers/sync": answers_outages(lambda request: report(request)),
    "answers/async": answers_outages(csrf_exempt(areport)),
    "answers/class": Report.as_view(),
    "answers/async_class": AsyncReport.as_view(),
    "answers/decorated": cache_control(private=True)(answers_outages(lambda request: report(request))),
    "answers/raises": answers_outages(lambda request: read(request)),
    "answers/changes": answers_outages(lambda request: count(request)),
    "answers/without_a_session": answers_outages(lambda request: HttpResponse("well")),
}
urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]


# Middleware, and an authentication backend.


def _use(request: HttpRequest) -> None:
    request.session.get("count")


def use_before(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        _use(request)
        return get_response(request)

    return middleware


def use_after(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        response = get_response(request)
        _use(request)
        return response

    return middleware


class UseForATemplate:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_template_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        _use(request)
        return response


class Reporter:
    """The middleware of an error tracker, which gets the exceptions of views."""

    told: list[Exception]

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        self.told.append(exception)


class Backend:
    def get_user(self, user_id: Any) -> Any:
        return AnonymousUser()


# The site, and a visitor who has a session.


@contextmanager
def site(*more: str, middleware: str = OURS, **values: Any) -> Iterator[FailingStorage]:
    values = {"MIDDLEWARE": [middleware, *more], **values}
    with override_settings(SESSION_ENGINE=engine_that_fails.__name__, ROOT_URLCONF=__name__, **values):
        yield failing()


def visitor(client_class: Any, **options: Any) -> Any:
    """Return the client of a visitor with a session. From then on the storage does not answer."""
    store = SessionStore()
    store["count"] = 1
    store.save()
    client = client_class(**options)
    client.cookies[settings.SESSION_COOKIE_NAME] = store.session_key
    failing().answers = False
    return client


@pytest.fixture
def signals() -> Iterator[list[HttpRequest]]:
    """The requests of Django's ``got_request_exception``."""
    found: list[HttpRequest] = []

    def receive(sender: object, request: HttpRequest, **kwargs: Any) -> None:
        found.append(request)

    got_request_exception.connect(receive)
    yield found
    got_request_exception.disconnect(receive)


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """Return the logger, level and message of each record, and check that none has a traceback."""
    records = [record for record in caplog.records if record.name != "asyncio"]  # it logs slow callbacks
    assert [record for record in records if record.exc_info] == []
    return [(record.name, record.levelname, record.getMessage()) for record in records]


# One line in the log.


@either_client
@each_engine
@pytest.mark.parametrize("view", ["read", "aread", "render"])
def test_an_outage_is_one_line_without_a_traceback_or_a_signal(
    client_class: Any, engine: str, view: str, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    with RedisServer() as server:
        values = {"ROOT_URLCONF": __name__, "MIDDLEWARE": [OURS], "TEMPLATES": DJANGOS_TEMPLATES}
        with override_settings(**settings_for(engine, server.url()), **values):
            client = client_class()
            client.cookies[settings.SESSION_COOKIE_NAME] = "a" * 32
            server.kill()
            assert is_503(get(client, f"/{view}/"))
    ((name, level, message),) = logged(caplog)
    assert (name, level) == ("gsession_django", "ERROR")
    assert message.startswith(f"GET /{view}/ is answered with 503: CACHES['sessions']")
    assert signals == []


DJANGOS_TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]


@either_client
def test_the_cause_is_logged_once_a_second(
    client_class: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: now))
    with site():
        client = visitor(client_class)
        for now in (0, 0.5, 0.99, 1, 1.99):  # noqa: B007 - the clock reads it
            get(client, "/read/")
    known = ("gsession_django", "ERROR", f"GET /read/ is answered with 503: {CAUSE}")
    again = ("gsession_django", "WARNING", "GET /read/ is answered with 503: its session is unavailable")
    assert logged(caplog) == [known, again, again, known, again]


def test_threads_log_one_cause_between_them(caplog: pytest.LogCaptureFixture) -> None:
    barrier = threading.Barrier(8, timeout=60)

    def log() -> None:
        barrier.wait()
        outages.log(HttpRequest(), HttpResponse(status=503), "no answer")

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(log) for _ in range(8)]:
            future.result(60)
    assert sorted(level for _, level, _ in logged(caplog)) == ["ERROR", *["WARNING"] * 7]


@either_client
@pytest.mark.parametrize(
    ("more", "view"),
    [
        ((AUTHENTICATION, LOGIN_REQUIRED), "read"),
        ((CSRF,), "read"),
        ((BETWEEN,), "read"),
        ((HERE + "use_before",), "read"),
        ((HERE + "UseForATemplate",), "render"),
        ((HERE + "use_after",), "answers/without_a_session"),
    ],
    ids=["process_view", "process_request", "before the view", "a function", "of a template", "after the view"],
)
def test_middleware_that_meets_an_outage_is_no_other_case(
    client_class: Any, more: Any, view: str, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    with site(*more, CSRF_USE_SESSIONS=True, TEMPLATES=DJANGOS_TEMPLATES):
        response = get(visitor(client_class), f"/{view}/")
    assert is_503(response)
    assert b"try again" in response.content
    assert [name for name, _, _ in logged(caplog)] == ["gsession_django"]
    assert signals == []


@either_client
@pytest.mark.parametrize("values", [{"DEBUG": True}, {"DEBUG_PROPAGATE_EXCEPTIONS": True}])
@pytest.mark.parametrize("more", [(), (BETWEEN,)], ids=["view", "middleware"])
def test_a_debugging_site_is_told_no_more(
    client_class: Any, values: Any, more: Any, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    with site(*more, **values):
        assert is_503(get(visitor(client_class), "/read/"))
    assert [name for name, _, _ in logged(caplog)] == ["gsession_django"]
    assert signals == []


@either_client
def test_a_reporter_before_ours_is_not_told(client_class: Any) -> None:
    Reporter.told = []
    with site(MIDDLEWARE=[HERE + "Reporter", OURS]):
        assert is_503(get(visitor(client_class), "/read/"))
    assert Reporter.told == []


@either_client
@pytest.mark.parametrize("view", ["fail", "use_another_session"])
def test_any_other_exception_is_reported_as_ever(
    client_class: Any, view: str, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    """A mistake of the site that shows in an outage, and a session other than the request's."""
    with site():
        response = get(visitor(client_class, raise_request_exception=False), f"/{view}/")
    assert response.status_code == (503 if view == "fail" else 500)
    assert [record.name for record in caplog.records if record.exc_info] == ["django.request"]
    assert len(signals) == 1


@either_client
@pytest.mark.parametrize("values", [{"middleware": DJANGOS}, {"MIDDLEWARE": [HERE + "use_after", OURS]}])
def test_what_stands_outside_ours_is_reported_as_ever(
    client_class: Any, values: Any, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    """Django's own middleware, and a middleware above ours that uses the session afterwards."""
    with site(**values):
        response = get(visitor(client_class, raise_request_exception=False), "/read/")
    assert response.status_code == 500
    assert [record.name for record in caplog.records if record.exc_info] == ["django.request"]
    assert len(signals) == 1


@either_client
def test_a_transaction_is_rolled_back(client_class: Any, tmp_path: Any, signals: list[HttpRequest]) -> None:
    global atomic_alias
    with connected(sqlite_entry(tmp_path, ATOMIC_REQUESTS=True)) as atomic_alias:
        with connections[atomic_alias].cursor() as cursor:
            cursor.execute("CREATE TABLE visits (number integer)")
        with site():
            assert is_503(get(visitor(client_class), "/write_to_the_database/"))
        with connections[atomic_alias].cursor() as cursor:
            cursor.execute("SELECT count(*) FROM visits")
            assert cursor.fetchone() == (0,)
    assert signals == []


# The answer is the site's.


def later(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    response = HttpResponse(f"later: {exception}", status=503)
    response.set_cookie("theme", "grey")
    return response


async def alater(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    await asyncio.sleep(0)
    return later(request, exception)


def own_headers(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    return JsonResponse({"path": request.path}, status=529, headers={"Retry-After": "60", "Cache-Control": "private"})


def rendered(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    return SimpleTemplateResponse(engines["django"].from_string("later: {{ cause }}"), {"cause": exception}, status=503)


def raises(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    raise LookupError


async def araises(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    raise LookupError


def returns_nothing(request: HttpRequest, exception: StorageUnavailable) -> None:
    """Return no response, by mistake."""


def uses_the_session(request: HttpRequest, exception: StorageUnavailable) -> HttpResponse:
    return read(request)


def by(view: str) -> dict[str, Any]:
    return {"GSESSION": {"UNAVAILABLE": HERE + view}, "TEMPLATES": DJANGOS_TEMPLATES}


@either_client
@pytest.mark.parametrize("view", ["later", "alater", "rendered"])
def test_a_view_of_the_site_answers(client_class: Any, view: str, caplog: pytest.LogCaptureFixture) -> None:
    with site(**by(view)):
        response = get(visitor(client_class), "/read/")
    assert is_503(response)
    assert response.content == b"later: it has been told\nnot to answer"
    assert response.headers["Cache-Control"] == "no-store"
    assert "theme" in response.cookies or view == "rendered"
    assert logged(caplog) == [("gsession_django", "ERROR", f"GET /read/ is answered with 503: {CAUSE}")]


@either_client
def test_what_the_view_of_the_site_has_set_is_kept(client_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    with site(**by("own_headers")):
        response = get(visitor(client_class), "/read/")
    assert response.status_code == 529
    assert response.json() == {"path": "/read/"}
    assert (response.headers["Retry-After"], response.headers["Cache-Control"]) == ("60", "private")
    assert logged(caplog) == [("gsession_django", "ERROR", f"GET /read/ is answered with 529: {CAUSE}")]


@either_client
def test_the_save_that_fails_is_answered_by_the_view_of_the_site(client_class: Any) -> None:
    with site(**by("later")) as storage:
        client = visitor(client_class)
        storage.answers = True
        response = get(client, "/count/")
    assert response.content == b"later: it has been told\nnot to answer"


@either_client
@pytest.mark.parametrize("view", ["raises", "araises", "returns_nothing", "uses_the_session", "is_not_there"])
def test_a_view_of_the_site_that_fails_is_logged_and_the_default_page_is_sent(
    client_class: Any, view: str, caplog: pytest.LogCaptureFixture, signals: list[HttpRequest]
) -> None:
    with site(**by(view)) as storage:
        client = visitor(client_class)
        storage.asked = 0
        response = get(client, "/read/")
        assert storage.asked == 1
    assert is_503(response)
    assert b"try again" in response.content
    failed, line = [record for record in caplog.records if record.name == "gsession_django"]
    setting = f"GSESSION[\"UNAVAILABLE\"] = '{HERE}{view}'"
    assert failed.getMessage() == f"{setting} failed. The visitor gets the default page."
    assert failed.exc_info is not None
    assert line.exc_info is None
    assert signals == []


# JSON.


@either_client
@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", False),
        ("text/html, application/json", False),
        ("application/json;q=0.8, text/html", False),
        ("application/json;q=0, */*", False),
        ("image/*, */*;q=0.1", False),
        ("text/html;a*=unknown''x, application/json", False),
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("application/json, text/plain, */*", True),
        ("application/json, text/javascript, */*; q=0.01", True),
        ("text/html;q=0.5, application/json", True),
        ("application/vnd.api+json", True),
        ("application/problem+json, */*", True),
        ("application/*", True),
    ],
)
def test_json_is_for_clients_that_prefer_it_to_html(client_class: Any, accept: str | None, is_json: bool) -> None:
    with site():
        answer = visitor(client_class).get("/read/", headers={} if accept is None else {"accept": accept})
        response = asyncio.run(answer) if asyncio.iscoroutine(answer) else answer
    assert is_503(response)
    assert {name.strip() for name in response.headers["Vary"].split(",")} == {"Accept", "Cookie"}
    if is_json:
        assert response.headers["Content-Type"] == "application/json"
        assert list(response.json()) == ["detail"]
        assert "try again" in response.json()["detail"]
    else:
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_json_names_the_cause_while_debug_is_on() -> None:
    with site(DEBUG=True):
        response = visitor(Client, headers={"accept": "application/json"}).get("/read/")
    assert response.json()["cause"] == "it has been told\nnot to answer"


# A view that answers itself.


@either_client
@pytest.mark.parametrize("view", ["sync", "async", "class", "async_class", "decorated"])
def test_a_view_may_answer_itself(client_class: Any, view: str, caplog: pytest.LogCaptureFixture) -> None:
    with site(SESSION_SAVE_EVERY_REQUEST=True, **by("later")) as storage:
        client = visitor(client_class)
        response = get(client, f"/answers/{view}/")
        assert (response.status_code, response.content) == (503, b"sessions: it has been told\nnot to answer")
        assert response.cookies == SimpleCookie()
        assert "Retry-After" not in response.headers
        assert "Cookie" in response.headers["Vary"]
        assert logged(caplog) == [("gsession_django", "ERROR", f"GET /answers/{view}/ is answered with 503: {CAUSE}")]
        storage.answers = True
        assert get(client, f"/answers/{view}/").content == b"sessions: well"


@either_client
def test_a_health_page_needs_no_session_cookie(client_class: Any) -> None:
    with site() as storage:
        client = client_class()
        assert get(client, "/report_to_a_load_balancer/").content == b"sessions: well"
        storage.answers = False
        response = get(client, "/report_to_a_load_balancer/")
    assert (response.status_code, response.content) == (503, b"sessions: it has been told\nnot to answer")


@either_client
def test_without_the_decorator_it_does_not(client_class: Any) -> None:
    with site():
        assert b"sessions:" not in get(visitor(client_class), "/report/").content


@either_client
@pytest.mark.parametrize("more", [(), (AUTHENTICATION, LOGIN_REQUIRED)], ids=["it raises", "it is not reached"])
def test_a_view_that_did_not_answer_is_a_503(client_class: Any, more: Any, signals: list[HttpRequest]) -> None:
    with site(*more):
        response = get(visitor(client_class), "/answers/sync/" if more else "/answers/raises/")
    assert is_503(response)
    assert b"try again" in response.content
    assert signals == []


@either_client
def test_a_view_that_raises_another_exception_has_answered(client_class: Any) -> None:
    with site():
        assert get(visitor(client_class), "/forbid/").status_code == 403


@either_client
def test_a_change_that_is_lost_at_the_end_is_a_503_all_the_same(client_class: Any) -> None:
    with site() as storage:
        client = visitor(client_class)
        storage.answers = True
        response = get(client, "/answers/changes/")
    assert is_503(response)
    assert b"try again" in response.content


@either_client
def test_a_touch_that_fails_does_not_undo_the_answer(client_class: Any, caplog: pytest.LogCaptureFixture) -> None:
    with site(SESSION_SAVE_EVERY_REQUEST=True):
        response = get(visitor(client_class), "/answers/without_a_session/")
    assert (response.status_code, response.content) == (200, b"well")
    assert [name for name, _, _ in logged(caplog)] == ["gsession_django"]


@either_client
@pytest.mark.parametrize("view", ["change_the_key", "report_with_a_new_key"])
def test_the_answer_of_a_view_has_the_new_key_too(client_class: Any, view: str) -> None:
    """The site's view for outages, and a view that answers itself."""
    with site(**by("later")) as storage:
        client = visitor(client_class)
        key = client.cookies[settings.SESSION_COOKIE_NAME].value
        storage.answers = True
        response = get(client, f"/{view}/")
        assert response.content.startswith(b"later")
        assert set(response.cookies) == {settings.SESSION_COOKIE_NAME, "theme"}
        storage.answers = True
        assert response.cookies[settings.SESSION_COOKIE_NAME].value != key
        assert get(client, "/read/").content == b"1"


# While the answer is sent.


@pytest.mark.parametrize(("client_class", "view"), [(Client, "stream"), (AsyncClient, "astream")])
def test_a_stream_asks_again_after_a_failure(client_class: Any, view: str) -> None:
    async def body_of(response: Any) -> bytes:
        return b"".join([part async for part in response.streaming_content])

    with site() as storage:
        client = visitor(client_class)
        storage.answers = True
        response = get(client, f"/{view}/")
        body = asyncio.run(body_of(response)) if response.is_async else b"".join(response.streaming_content)
    assert body == b"saved failed failed saved "


@either_client
def test_after_a_503_the_session_asks_again(client_class: Any) -> None:
    sessions: list[Any] = []

    def keep(request: HttpRequest, exception: StorageUnavailable) -> HttpResponseBase:
        sessions.append(request.session)
        return HttpResponse(status=503)

    with site(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "keep", keep)
        with override_settings(**by("keep")):
            client = visitor(client_class)
            get(client, "/read/")
            failing().answers = True
            assert sessions[0].load().as_dict() == {"count": 1}
