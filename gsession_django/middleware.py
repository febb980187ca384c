"""Django's SessionMiddleware, that awaits where Django enters a thread, and answers an outage with 503."""

import logging
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, Final, cast

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template import TemplateDoesNotExist, loader
from django.utils.cache import patch_vary_headers
from django.utils.log import log_response

from gsession_django.storage import StorageUnavailable
from gsession_django.store import SessionStore

logger = logging.getLogger("gsession_django")

RETRY_AFTER: Final = 5
"""Seconds after which a client may try again (RFC 9110, section 10.2.3)."""
_TEXT: Final = "Your session cannot be read or saved at the moment. Please try again in a few seconds."
_TEMPLATE: Final = "503.html"


class SessionMiddleware(DjangoSessionMiddleware):
    """Stands in ``MIDDLEWARE`` where Django's would.

    A request whose session could not be read or saved is answered with 503 and ``Retry-After``, wherever in the request
    that was found out, and even if the error was swallowed (as ``{% if %}`` does). The page is the template
    ``503.html``, rendered without a request, or else plain text. No cookie is touched, except that the new key is sent
    where this request had already given the session one. It is logged once, to ``gsession_django``.

    Under ASGI the session is awaited. A subclass that overrides ``process_request`` or ``process_response`` has them
    called in a thread, as with Django's.
    """

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self._awaits = all(
            getattr(type(self), name) is getattr(SessionMiddleware, name)
            for name in ("process_request", "process_response")
        )

    def __call__(self, request: HttpRequest) -> Any:
        try:
            return super().__call__(request)
        except StorageUnavailable:
            if (failure := _failure_of(request)) is None:
                raise
        return self._unavailable(request, None, failure)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase | None = None
        try:
            if not self._awaits:
                return await super().__acall__(request)
            self.process_request(request)
            response = await cast(Awaitable[HttpResponseBase], self.get_response(request))
            if (failure := _failure_of(request)) is None:
                return await self._aprocess_response(request, response)
        except StorageUnavailable:
            if (failure := _failure_of(request)) is None:
                raise
        # In a thread, as Django's handling of exceptions: a template and a log handler may take their time.
        return await sync_to_async(self._unavailable, thread_sensitive=False)(request, response, failure)

    def process_request(self, request: HttpRequest) -> None:
        super().process_request(request)
        if isinstance(request.session, SessionStore):
            request.session.gives_up = True

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:  # type: ignore[override]
        if (failure := _failure_of(request)) is None:
            try:
                if (undone := _undone(request, response)) is not None:
                    undone.settle()
                with _closed(request):
                    return cast(HttpResponseBase, super().process_response(request, cast(HttpResponse, response)))
            except StorageUnavailable:
                if (failure := _failure_of(request)) is None:
                    raise
        return self._unavailable(request, response, failure)

    async def _aprocess_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Do what ``process_response`` does, awaiting the session first, as Django's code cannot."""
        if (undone := _undone(request, response)) is not None:
            await undone.asettle()
        with _closed(request):
            try:
                session = request.session
                answers = _Answers(session.accessed, session.modified, session.is_empty())
            except AttributeError:
                return response
            wanted = answers.modified or settings.SESSION_SAVE_EVERY_REQUEST
            if wanted and not answers.empty and response.status_code < 500:
                answers.at_browser_close = await session.aget_expire_at_browser_close()
                answers.age = await session.aget_expiry_age()
                try:
                    await session.asave()
                except UpdateError:
                    answers.gone = True
                answers.session_key = session.session_key
        return self._finished(request, response, answers)

    def _finished(self, request: HttpRequest, response: HttpResponseBase, answers: "_Answers") -> HttpResponseBase:
        """Let Django do to a response what it does, with a session that needs no saving any more."""
        view = SimpleNamespace(session=answers, COOKIES=request.COOKIES)
        return cast(HttpResponseBase, super().process_response(cast(HttpRequest, view), cast(HttpResponse, response)))

    def _unavailable(self, request: HttpRequest, response: HttpResponseBase | None, failure: str) -> HttpResponseBase:
        answer = _page(failure)
        if response is not None:
            # They are closed with the answer. To close the response would tell Django that the request has finished.
            cast(Any, answer)._resource_closers.extend(cast(Any, response)._resource_closers)
        session = request.session
        moved = isinstance(session, SessionStore) and session.was_moved and not session.undone
        if moved and session.session_key is not None:
            answers = _Answers(accessed=True, modified=True, empty=False)
            answers.at_browser_close = session.get_expire_at_browser_close()
            answers.age, answers.session_key = session.get_expiry_age(), session.session_key
            carrier = HttpResponse()
            self._finished(request, carrier, answers)
            answer.cookies = carrier.cookies
        patch_vary_headers(answer, ("Cookie",))
        log_response(
            "%s %s is answered with 503: %s",
            request.method,
            request.path,
            failure,
            response=answer,
            request=request,
            logger=logger,
        )
        return answer


class _Answers:
    """What Django's ``process_response`` asks a session, as it was before it was saved."""

    def __init__(self, accessed: bool, modified: bool, empty: bool) -> None:
        self.accessed = accessed
        self.modified = modified
        self.empty = empty
        self.at_browser_close = True
        self.age = 0
        self.session_key: str | None = None
        self.gone = False

    def is_empty(self) -> bool:
        return self.empty

    def get_expire_at_browser_close(self) -> bool:
        return self.at_browser_close

    def get_expiry_age(self) -> int:
        return self.age

    def save(self) -> None:
        if self.gone:
            raise UpdateError


def _closed(request: HttpRequest) -> AbstractContextManager[None]:
    session = getattr(request, "session", None)
    return session.closed() if isinstance(session, SessionStore) else nullcontext()


def _undone(request: HttpRequest, response: HttpResponseBase) -> SessionStore | None:
    """Return the session if a rollback has undone what the request wrote, and that is to be written after all."""
    session = getattr(request, "session", None)
    wanted = isinstance(session, SessionStore) and session.undone and response.status_code < 500
    return session if wanted else None


def _failure_of(request: HttpRequest) -> str | None:
    return getattr(getattr(request, "session", None), "failure", None)


def _page(failure: str) -> HttpResponse:
    headers = {"Retry-After": str(RETRY_AFTER), "Cache-Control": "no-store"}
    content, content_type = f"{_TEXT}\n\n{failure}\n" if settings.DEBUG else f"{_TEXT}\n", "text/plain; charset=utf-8"
    if not settings.DEBUG:
        try:
            # Without the request, as context processors would ask for its user, and so for the session.
            content, content_type = loader.render_to_string(_TEMPLATE), "text/html; charset=utf-8"
        except Exception as error:
            if not (isinstance(error, TemplateDoesNotExist) and str(error) == _TEMPLATE):
                logger.exception("The template %s could not be rendered; the answer is plain text.", _TEMPLATE)
    return HttpResponse(content, status=503, headers=headers, content_type=content_type)
