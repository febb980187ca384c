"""A site whose visitors sign in, for the tests of outages, and the helpers of those tests."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import isawaitable
from typing import Any, Self

import pytest
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.contrib.auth import alogin, alogout, login, logout
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

from gsession_django import SessionStore
from gsession_django.outages import RETRY_AFTER
from tests.support.redis_servers import settings_for

ENGINES = ["gsession_django.backends.redis", "gsession_django.backends.redis_hash"]
OURS = "gsession_django.middleware.SessionMiddleware"
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"
AUTHENTICATION = "django.contrib.auth.middleware.AuthenticationMiddleware"
LOGIN_REQUIRED = "django.contrib.auth.middleware.LoginRequiredMiddleware"
MESSAGES = "django.contrib.messages.middleware.MessageMiddleware"
BETWEEN = f"{__name__}.call_between"

either_client = pytest.mark.parametrize("client_class", [Client, AsyncClient], ids=["sync", "async"])
each_engine = pytest.mark.parametrize("engine", ENGINES)


def get(client: Any, url: str) -> Any:
    answer = client.get(url)
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


def is_503(response: Any) -> bool:
    return bool(response.status_code == 503 and response.headers["Retry-After"] == str(RETRY_AFTER))


# The users. They are not in a database, because that has its own outages.


class InMemoryUser(User):
    """A Django user outside a database. Its password hash is checked as usual."""

    class Meta:
        app_label = "auth"
        proxy = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Keep ``last_login``, which a sign-in sets."""


ada = InMemoryUser(pk=1, username="ada", password="a hash")


class Backend(BaseBackend):
    def get_user(self, user_id: int) -> User | None:
        return ada if user_id == ada.pk else None

    async def aget_user(self, user_id: int) -> User | None:
        return self.get_user(user_id)


BACKEND = f"{__name__}.Backend"


# The views. Each reply names the visitor and the session's data: a number that a view counts up, and as many things in
# the cart.


def _saw(request: HttpRequest, user: Any) -> HttpResponse:
    """Return the reply. The session is loaded by now, and its values are small."""
    session = request.session
    return HttpResponse(f"{user.username or 'nobody'} {session.get('count', 0)} {len(session.get('cart', {}))}")


def _count(request: HttpRequest) -> None:
    session = request.session
    session["count"] = session.get("count", 0) + 1
    session.setdefault("cart", {})[f"thing {session['count']}"] = 1


@login_not_required
def peek(request: HttpRequest) -> HttpResponse:
    return _saw(request, request.user)


def read(request: HttpRequest) -> HttpResponse:
    return _saw(request, request.user)


@login_not_required
def modify(request: HttpRequest) -> HttpResponse:
    _count(request)
    return _saw(request, request.user)


@login_not_required
def sign_in(request: HttpRequest) -> HttpResponse:
    login(request, ada, BACKEND)
    return _saw(request, request.user)


def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return _saw(request, request.user)


def cycle(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    _count(request)
    return _saw(request, request.user)


@login_not_required
async def apeek(request: HttpRequest) -> HttpResponse:
    return _saw(request, await request.auser())


async def aread(request: HttpRequest) -> HttpResponse:
    return _saw(request, await request.auser())


@login_not_required
async def amodify(request: HttpRequest) -> HttpResponse:
    user = await request.auser()  # loads the session
    _count(request)
    return _saw(request, user)


@login_not_required
async def asign_in(request: HttpRequest) -> HttpResponse:
    await alogin(request, ada, BACKEND)
    return _saw(request, await request.auser())


async def asign_out(request: HttpRequest) -> HttpResponse:
    await alogout(request)
    return _saw(request, request.user)


async def acycle(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    await request.session.acycle_key()
    _count(request)
    return _saw(request, user)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    _count(request)
    return StreamingHttpResponse(iter(["never sent"]))


async def astream(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[str]:
        yield "never sent"

    await request.auser()
    _count(request)
    return StreamingHttpResponse(parts())


def count(request: HttpRequest, name: str) -> HttpResponse:
    """Count up the number of this name."""
    request.session[name] = request.session.get(name, 0) + 1
    return HttpResponse(f"{request.user.username} {request.session[name]}")


async def acount(request: HttpRequest, name: str) -> HttpResponse:
    user = await request.auser()
    request.session[name] = request.session.get(name, 0) + 1
    return HttpResponse(f"{user.username} {request.session[name]}")


urlpatterns = [
    path("count/<name>/", count),
    path("acount/<name>/", acount),
    *(
        path(f"{view.__name__}/", view)
        for view in (
            *(peek, read, modify, sign_in, sign_out, cycle, stream),
            *(apeek, aread, amodify, asign_in, asign_out, acycle, astream),
        )
    ),
]

between: Callable[[], Any] = lambda: None  # noqa: E731
"""``call_between`` calls it. Under ASGI the middleware awaits an awaitable result."""


@sync_and_async_middleware
def call_between(get_response: Any) -> Any:
    """A middleware that loads the session, and calls ``between`` before the view."""
    if not iscoroutinefunction(get_response):

        def middleware(request: HttpRequest) -> Any:
            request.session.get("count")
            between()
            return get_response(request)

        return middleware

    async def amiddleware(request: HttpRequest) -> Any:
        await request.session.aget("count")
        if isawaitable(awaited := between()):
            await awaited
        return await get_response(request)

    return amiddleware


class Visitor:
    """A visitor whose requests go through Django's full handler: WSGI's, or with a runner ASGI's."""

    def __init__(self, runner: asyncio.Runner | None = None, key: str | None = None) -> None:
        self.runner = runner
        client_class: Any = Client if runner is None else AsyncClient
        self.client = client_class(raise_request_exception=False)
        if key is not None:
            self.client.cookies[settings.SESSION_COOKIE_NAME] = key

    def does(self, what: str, **more: Any) -> Any:
        """Request one of the views above, and return the reply."""
        if self.runner is None:
            return self.client.get(f"/{what}/", **more)
        return self.runner.run(self.client.get(f"/a{what}/", **more))

    def sees(self, what: str = "peek") -> str:
        response = self.does(what)
        assert response.status_code == 200, response.status_code
        text: str = response.content.decode()
        return text

    @property
    def key(self) -> str:
        """The session key in the browser's cookie; empty if it has none, or had to delete it."""
        cookie = self.client.cookies.get(settings.SESSION_COOKIE_NAME)
        return "" if cookie is None else str(cookie.value)

    def signed_in(self, count: int = 1) -> Self:
        """Sign in, and put so many things into the cart."""
        for _ in range(count):
            self.does("modify")
        assert self.sees("sign_in") == f"ada {count} {count}"
        return self


@contextmanager
def site(
    engine: str, url: str, *, entry: Any = None, middleware: str = OURS, more: Any = (), **values: Any
) -> Iterator[None]:
    """Use the settings of the site above, with its sessions on the server at `url`.

    Args:
        engine: the session engine.
        url: the ``LOCATION``.
        entry: other values of the entry in ``CACHES``.
        middleware: the session middleware.
        more: the middleware after it and ``AuthenticationMiddleware``.
        values: other settings.
    """
    found = settings_for(engine, url, entry)
    found["GSESSION"]["TOUCH_INTERVAL"] = 0
    with override_settings(**{**settings_of_the_site([middleware, AUTHENTICATION, *more]), **found, **values}):
        yield


def settings_of_the_site(middleware: list[str]) -> dict[str, Any]:
    """Return the settings of the site above, except for the medium of its sessions."""
    return {
        "ROOT_URLCONF": __name__,
        "AUTHENTICATION_BACKENDS": [BACKEND],
        "LOGIN_URL": "/sign_in/",
        "MIDDLEWARE": middleware,
    }


def store_class() -> type[SessionStore]:
    """Return the SessionStore of the site."""
    found: type[SessionStore] = import_module(settings.SESSION_ENGINE).SessionStore
    return found
