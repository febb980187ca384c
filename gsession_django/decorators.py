"""Decorators for views."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse

from gsession_django.locking import Held, aalone, alone, asave, has_its_turn, save

_View = TypeVar("_View", bound=Callable[..., Any])


def answers_outages(view: _View) -> _View:
    """Let a view answer outages of its session itself: its response replaces the 503.

    Use it for a view that catches :class:`gsession_django.StorageUnavailable`, such as a health page. Put it above
    other decorators, and on a class-based view as ``method_decorator(answers_outages, name="dispatch")``.

    After a failure the request saves nothing more. The answer is still a 503 if the view raises StorageUnavailable, or
    if the save after the view fails and loses a change.

    Args:
        view: a sync or async view.

    Returns:
        The same view.
    """
    cast(Any, view).answers_outages = True
    return view


def session_lock(wait: float = 10) -> Callable[[_View], _View]:
    """Let a view see its session alone: other views of the same session that ask for this wait, or are refused.

    A view without it is not held up, and neither is another session. The view finds the session as the one before has
    left it. What it changes is saved when it returns, before the next one begins. A view that raises an exception or
    answers with a status of 500 or more saves nothing. Streamed content, and a template that is rendered after the view
    has returned, come after the lock. If the process dies, others get the session after 15 seconds at most; a view may
    take longer than that.

    A request without a session does not wait. A view that calls another one with ``session_lock`` has the session
    already. On a class-based view, sync or async, it is ``method_decorator(session_lock(), name="dispatch")``.

    A transaction has to begin and end within the lock, so that the next one sees what it has stored. For
    ``ATOMIC_REQUESTS`` the decorator sees to that, if it decorates the view that the URL names. Put it above
    ``transaction.atomic``. Inside a transaction the view raises ``RuntimeError``.

    If the session is ended meanwhile, the view raises ``SessionInterrupted``, as Django's middleware does. If the
    storage cannot tell who has the lock, it raises ``StorageUnavailable``.

    Args:
        wait: seconds to wait at most for others; then the answer is 409 (Conflict). 0 does not wait. Those who wait get
            the session in no particular order.

    Returns:
        A decorator for a sync or async view.
    """

    def decorate(view: _View) -> _View:
        if _is_async(view):

            @wraps(view)
            async def alocked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                session: Any = request.session
                if has_its_turn(session):
                    return await view(request, *args, **kwargs)
                if _transactions_of(request):
                    raise RuntimeError("You cannot use ATOMIC_REQUESTS with async views.")  # as Django says
                try:
                    async with aalone(session, wait):
                        response = await view(request, *args, **kwargs)
                        if _is_success(response):
                            await asave(session)
                        return response
                except Held:
                    return _conflict()

            return cast(_View, alocked)

        @wraps(view)
        def locked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            session: Any = request.session
            if has_its_turn(session):
                return view(request, *args, **kwargs)
            try:
                with alone(session, wait):
                    with _in_transactions(request):
                        response = view(request, *args, **kwargs)
                    if _is_success(response):
                        save(session)
                    return response
            except Held:
                return _conflict()

        cast(Any, locked)._non_atomic_requests = _LeftToTheLock(getattr(view, "_non_atomic_requests", ()))
        return cast(_View, locked)

    return decorate


def _is_async(view: Any) -> bool:
    """Return whether a view has to be awaited. ``dispatch()`` of an async class-based view does not say so itself."""
    while view is not None:
        if iscoroutinefunction(view) or getattr(getattr(view, "__self__", None), "view_is_async", False):
            return True
        # method_decorator() makes a partial() of the bound method.
        view = view.func if isinstance(view, partial) else getattr(view, "__wrapped__", None)
    return False


def _is_success(response: Any) -> bool:
    """Return whether Django's middleware would save the session."""
    return getattr(response, "status_code", 500) < 500


class _LeftToTheLock(set[str]):
    """What Django finds in a view's ``_non_atomic_requests``: every database, so it opens no transaction around the
    lock.

    Iterated, it has the databases that ``transaction.non_atomic_requests`` has named.
    """

    def __contains__(self, alias: object) -> bool:
        return True


def _transactions_of(request: HttpRequest) -> list[str]:
    """Return the databases on which ``ATOMIC_REQUESTS`` wants a transaction that Django has not opened."""
    match = request.resolver_match
    left = None if match is None else getattr(match.func, "_non_atomic_requests", None)
    if not isinstance(left, _LeftToTheLock):
        return []
    named = list(left)
    return [alias for alias, values in connections.settings.items() if values["ATOMIC_REQUESTS"] and alias not in named]


@contextmanager
def _in_transactions(request: HttpRequest) -> Iterator[None]:
    with ExitStack() as stack:
        for alias in _transactions_of(request):
            stack.enter_context(transaction.atomic(using=alias))
        yield


def _conflict() -> HttpResponse:
    text = "Another request of yours is under way. Please wait until it is done, and try again."
    return HttpResponse(f"{text}\n", status=409, content_type="text/plain; charset=utf-8")
