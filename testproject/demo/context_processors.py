from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpRequest


def site(request: HttpRequest) -> dict[str, Any]:
    # cart_items is a callable: only a page that shows it loads the session.
    return {
        "engine": settings.SESSION_ENGINE,
        "cart_items": partial(count_items, request),
    }


def count_items(request: HttpRequest) -> int:
    return sum(request.session.get("cart", {}).values())
