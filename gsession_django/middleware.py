"""Django's SessionMiddleware, that awaits where Django enters a thread, and answers an outage with 503."""

import logging
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any, Final, cast

from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template import TemplateDoesNotExist, loader
from django.utils.cache import patch_vary_headers

from gsession_django.storage import StorageUnavailable
from gsession_django.store import SessionStore

logger = logging.getLogger("gsession_django")

RETRY_AFTER: Final = 5
"""Seconds after which a client may try again (RFC 9110, section 10.2.3)."""
_TEXT: Final = "Your session cannot be read or saved at the moment. Please try again in a few seconds."


class SessionMiddleware(DjangoSessionMiddleware):
    """Stands in ``MIDDLEWARE`` where Django's would.

    A request whose session could not be read or saved is answered with 503 and ``Retry-After``, wherever in the request
    that was found out, and even if the error was swallowed (as ``{% if %}`` does). The page is the template
    ``503.html``, rendered without a request, or else plain text. No cookie is touched, except that the new key is sent
    where this request had already given the session one. It is logged once, to ``gsession_django``.
    """

    def __call__(self, request: HttpRequest) -> Any:
        try:
            return super().__call__(request)
        except StorageUnavailable as error:
            return self._unavailable(request, None, error)

    def process_request(self, request: HttpRequest) -> None:
        super().process_request(request)
        if isinstance(request.session, SessionStore):
            request.session.gives_up = True

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        self.process_request(request)
        try:
            response = await cast(Awaitable[HttpResponseBase], self.get_response(request))
        except StorageUnavailable as error:
            return self._unavailable(request, None, error)
        if (failure := _failure_of(request)) is not None:
            return self._unavailable(request, response, failure)
        try:
            session = await _saved(request, response)
        except StorageUnavailable as error:
            return self._unavailable(request, response, error)
        return self._finished(request, response, session)

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:  # type: ignore[override]
        if (failure := _failure_of(request)) is not None:
            return self._unavailable(request, response, failure)
        try:
            return cast(HttpResponseBase, super().process_response(request, cast(HttpResponse, response)))
        except StorageUnavailable as error:
            return self._unavailable(request, response, error)

    def _finished(self, request: HttpRequest, response: HttpResponseBase, session: Any) -> HttpResponseBase:
        """Let Django do to a response what it does, with a session that needs no saving any more."""
        view = SimpleNamespace(session=session, COOKIES=request.COOKIES)
        return cast(HttpResponseBase, super().process_response(cast(HttpRequest, view), cast(HttpResponse, response)))

    def _unavailable(
        self, request: HttpRequest, response: HttpResponseBase | None, error: StorageUnavailable
    ) -> HttpResponseBase:
        logger.error("%s %s is answered with 503: %s", request.method, request.path, error, extra={"request": request})
        if response is not None:
            response.close()
        answer = _page(error)
        session = getattr(request, "session", None)
        if isinstance(session, SessionStore) and session.was_moved and session.session_key is not None:
            carrier = HttpResponse()
            self._finished(request, carrier, _Saved(session))
            answer.cookies = carrier.cookies
        patch_vary_headers(answer, ("Cookie",))
        return answer


class _Saved:
    """A session whose saving is over, for Django's code that would save it."""

    def __init__(self, session: Any, gone: UpdateError | None = None, sends_cookie: bool = True) -> None:
        self._session = session
        self._gone = gone
        self._sends_cookie = sends_cookie

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_expire_at_browser_close(self) -> bool:
        # Asked for before it is known that no cookie will be sent; then it is not worth a load.
        return not self._sends_cookie or self._session.get_expire_at_browser_close()

    def save(self) -> None:
        if self._gone is not None:
            raise self._gone


async def _saved(request: HttpRequest, response: HttpResponseBase) -> Any:
    """Save the session if Django would."""
    session = getattr(request, "session", None)
    if session is None or session.is_empty() or not (session.modified or settings.SESSION_SAVE_EVERY_REQUEST):
        return session
    if response.status_code >= 500:
        return _Saved(session, sends_cookie=False)
    try:
        await session.asave()
    except UpdateError as error:
        return _Saved(session, error)
    return _Saved(session)


def _failure_of(request: HttpRequest) -> StorageUnavailable | None:
    return getattr(getattr(request, "session", None), "failure", None)


def _page(error: StorageUnavailable) -> HttpResponse:
    headers = {"Retry-After": str(RETRY_AFTER), "Cache-Control": "no-store"}
    content, content_type = f"{_TEXT}\n\n{error}\n" if settings.DEBUG else f"{_TEXT}\n", "text/plain; charset=utf-8"
    if not settings.DEBUG:
        try:
            # Without the request, as context processors would ask for its user, and so for the session.
            content, content_type = loader.render_to_string("503.html"), "text/html; charset=utf-8"
        except TemplateDoesNotExist:
            pass
        except Exception:
            logger.exception("The template 503.html could not be rendered; the answer is plain text.")
    return HttpResponse(content, status=503, headers=headers, content_type=content_type)
