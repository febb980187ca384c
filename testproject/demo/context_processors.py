from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from gsession_django import SessionStore
from gsession_django.core.engine import engine_of


def site(request: HttpRequest) -> dict[str, Any]:
    # cart_items is a callable, so that a page which does not show it does not load the session.
    return {
        "engine": settings.SESSION_ENGINE,
        "cart_items": partial(count_items, request),
        "lists_sessions": isinstance(request.session, SessionStore)
        and "sessions_of" in engine_of(type(request.session)).able,
    }


def count_items(request: HttpRequest) -> int:
    return sum(request.session.get("cart", {}).values())
