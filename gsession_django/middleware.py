"""A SessionMiddleware that awaits the session under ASGI, and answers an outage with 503."""

from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.exceptions import SessionInterrupted
from django.contrib.sessions.middleware import SessionMiddleware as DjangoSessionMiddleware
from django.core.handlers import exception as exception_handling
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from gsession_django import interruptions, outages
from gsession_django.core.conf import django_setting
from gsession_django.core.storage import StorageUnavailable
from gsession_django.core.store import SessionStore
from gsession_django.users import clients


class SessionMiddleware(DjangoSessionMiddleware):
    """Takes the place of Django's in ``MIDDLEWARE``.

    If a session cannot be read or saved, ``gsession_django.outages.answer()`` answers the request, even if a view or
    ``{% if %}`` has swallowed the error. A view with :func:`gsession_django.decorators.answers_outages` answers itself.
    The visitor's cookie stays; if the session already has a new key, the answer sends that. This logs the outage once,
    to ``gsession_django``. Django neither logs the StorageUnavailable of a view, nor sends ``got_request_exception``.

    Under ASGI this awaits the session. If a subclass overrides ``process_request`` or ``process_response``, they run in
    a thread, as Django's do.
    """

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self._awaits = all(
            getattr(type(self), name) is getattr(SessionMiddleware, name)
            for name in ("process_request", "process_response")
        )

    def __call__(self, request: HttpRequest) -> Any:
        if self.async_mode:
            return self.__acall__(request)
        try:
            return super().__call__(request)
        except StorageUnavailable:
            if (failure := _failure_of(request)) is None:
                raise
            return self._unavailable(request, None, failure)
        finally:
            _ask_again(request)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        try:
            return await self._arespond(request)
        finally:
            _ask_again(request)

    async def _arespond(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseBase | None = None
        saving = False
        try:
            if not self._awaits:
                return await super().__acall__(request)
            self.process_request(request)
            response = await cast(Awaitable[HttpResponseBase], self.get_response(request))
            if (failure := _failure_of(request)) is None:
                saving = True
                return await self._aprocess_response(request, response)
        except SessionInterrupted as interruption:
            return await sync_to_async(self._interrupted, thread_sensitive=False)(request, response, interruption)
        except StorageUnavailable:
            if (failure := _failure_of(request)) is None:
                raise
        # In a thread, as Django handles exceptions: a template or a log handler may block.
        return await sync_to_async(self._unavailable, thread_sensitive=False)(request, response, failure, saving)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Take a StorageUnavailable of a view, so that Django neither logs nor signals it, or a SessionInterrupted."""
        if isinstance(exception, SessionInterrupted):
            return cast(HttpResponse | None, interruptions.answer(request, exception))
        return _answer_to_come(request, exception)

    def process_request(self, request: HttpRequest) -> None:
        super().process_request(request)
        if isinstance(request.session, SessionStore):
            request.session.gives_up = True

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:  # type: ignore[override]
        if (failure := _failure_of(request)) is not None:
            return self._unavailable(request, response, failure)
        try:
            if (undone := _undone(request, response)) is not None:
                undone.settle()
            clients.record(request)
            with _closed(request):
                return cast(HttpResponseBase, super().process_response(request, cast(HttpResponse, response)))
        except SessionInterrupted as interruption:
            return self._interrupted(request, response, interruption)
        except StorageUnavailable:
            if (failure := _failure_of(request)) is None:
                raise
        return self._unavailable(request, response, failure, saving=True)

    async def _aprocess_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        """Do what ``process_response`` does, but await the session first."""
        if (undone := _undone(request, response)) is not None:
            await undone.asettle()
        await clients.arecord(request)
        with _closed(request):
            try:
                session = request.session
                answers = _Answers(session.accessed, session.modified, session.is_empty())
            except AttributeError:
                return response
            wanted = answers.modified or django_setting("SESSION_SAVE_EVERY_REQUEST")
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
        """Let Django's ``process_response`` set the cookie and headers for a session that is already saved."""
        view = SimpleNamespace(session=answers, COOKIES=request.COOKIES)
        return cast(HttpResponseBase, super().process_response(cast(HttpRequest, view), cast(HttpResponse, response)))

    def _interrupted(
        self, request: HttpRequest, response: HttpResponseBase | None, interruption: SessionInterrupted
    ) -> HttpResponseBase:
        """Return the answer to a request whose session was ended under it. Without one, raise what Django raises."""
        answer = interruptions.answer(request, interruption)
        if answer is None:
            raise interruption
        _close_with(answer, response)
        patch_vary_headers(answer, ("Cookie",))
        return answer

    def _unavailable(
        self, request: HttpRequest, response: HttpResponseBase | None, failure: str, saving: bool = False
    ) -> HttpResponseBase:
        """Return the answer to a request whose session has failed; with `saving`, in the save after the view."""
        session = request.session
        if response is not None and _is_of_the_view(request, response) and not (saving and session.modified):
            answer = response
        else:
            answer = outages.answer(request, failure)
            _close_with(answer, response)
        moved = isinstance(session, SessionStore) and session.was_moved and not session.undone
        if moved and session.session_key is not None:
            answers = _Answers(accessed=True, modified=True, empty=False)
            answers.at_browser_close = session.get_expire_at_browser_close()
            answers.age, answers.session_key = session.get_expiry_age(), session.session_key
            carrier = HttpResponse()
            self._finished(request, carrier, answers)
            answer.cookies.update(carrier.cookies)
        patch_vary_headers(answer, ("Cookie",))
        outages.log(request, answer, failure)
        return answer


def _close_with(answer: HttpResponseBase, response: HttpResponseBase | None) -> None:
    """Let an answer close what the response would close that it replaces."""
    if response is not None:
        # Closing the response would tell Django that the request is finished.
        cast(Any, answer)._resource_closers.extend(cast(Any, response)._resource_closers)


class _AnswerToCome(HttpResponse):
    """A placeholder. SessionMiddleware replaces it after the middleware inside it has run."""

    status_code = 503


def _answer_to_come(request: HttpRequest, exception: Exception) -> HttpResponse | None:
    session = getattr(request, "session", None)
    failed = isinstance(session, SessionStore) and session.gives_up and session.failure is not None
    return _AnswerToCome() if failed and isinstance(exception, StorageUnavailable) else None


# Django calls process_exception() for views only. It hands an exception of a middleware inside ours, or of its
# process_view(), to this function of its own, which logs and signals.
_djangos = exception_handling.response_for_exception


@wraps(_djangos)
def _response_for_exception(request: HttpRequest, exc: Exception) -> HttpResponse:
    return _answer_to_come(request, exc) or _djangos(request, exc)


exception_handling.response_for_exception = _response_for_exception


def _is_of_the_view(request: HttpRequest, response: HttpResponseBase) -> bool:
    """Whether the view answers outages itself, and has answered this one."""
    view = request.resolver_match and request.resolver_match.func
    return getattr(view, "answers_outages", False) and not isinstance(response, _AnswerToCome)


def _ask_again(request: HttpRequest) -> None:
    """Let a stream, which uses the session after the response, ask the storage again."""
    if isinstance(session := getattr(request, "session", None), SessionStore):
        session.gives_up = False


class _Answers:
    """What Django's ``process_response`` asks of a session, as it was before the save."""

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
    """Return the session if a rollback has undone its save, and the response still wants it saved."""
    session = getattr(request, "session", None)
    wanted = isinstance(session, SessionStore) and session.undone and response.status_code < 500
    return session if wanted else None


def _failure_of(request: HttpRequest) -> str | None:
    return getattr(getattr(request, "session", None), "failure", None)
