"""What a view may say of itself."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

_View = TypeVar("_View", bound=Callable[..., Any])


def answers_outages(view: _View) -> _View:
    """Let a view answer where its session is unavailable: what it returns is sent, and no 503 in its place.

    It is for a view that catches :class:`gsession_django.StorageUnavailable`, as a health page does. It goes above
    other decorators, and on a class-based view with ``method_decorator(answers_outages, name="dispatch")``.

    After a failure nothing is saved any more. If the view raises StorageUnavailable, or if the save at the end of the
    request fails and loses a change, the answer is a 503 as for any other view.

    Args:
        view: a sync or async view.

    Returns:
        The same view.
    """
    cast(Any, view).answers_outages = True
    return view
