"""Decorators for views."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse

from gsession_django.locking import Held, aalone, alone

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
    left it. What it changes is saved when it returns, before the next one begins. A view that fails saves nothing here.
    If the process dies, others get the session after 15 seconds at most; a view may take longer than that. A request
    without a session does not wait. On a class-based view it is ``method_decorator(session_lock(), name="dispatch")``.

    If the session is ended meanwhile, the view raises ``SessionInterrupted``, as Django's middleware does.

    Args:
        wait: seconds to wait at most for others; then the answer is 409 (Conflict). 0 does not wait.

    Returns:
        A decorator for a sync or async view.
    """

    def decorate(view: _View) -> _View:
        if iscoroutinefunction(view):

            @wraps(view)
            async def alocked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
                try:
                    async with aalone(cast(Any, request.session), wait):
                        return await view(request, *args, **kwargs)
                except Held:
                    return _conflict()

            return cast(_View, alocked)

        @wraps(view)
        def locked(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            try:
                with alone(cast(Any, request.session), wait):
                    return view(request, *args, **kwargs)
            except Held:
                return _conflict()

        return cast(_View, locked)

    return decorate


def _conflict() -> HttpResponse:
    text = "Another request of yours is under way. Please wait until it is done, and try again."
    return HttpResponse(f"{text}\n", status=409, content_type="text/plain; charset=utf-8")
