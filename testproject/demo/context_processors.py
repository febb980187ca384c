from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from gsession_django.core.engine import engine_module
from gsession_django.users.listing import can_list


def site(request: HttpRequest) -> dict[str, Any]:
    # cart_items is a callable: only a page that shows it loads the session.
    return {
        "engine": settings.SESSION_ENGINE,
        "cart_items": partial(count_items, request),
        "lists_sessions": can_list(engine_module(settings.SESSION_ENGINE)),
    }


def count_items(request: HttpRequest) -> int:
    return sum(request.session.get("cart", {}).values())
