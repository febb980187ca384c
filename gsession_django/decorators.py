"""Decorators for views."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

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
