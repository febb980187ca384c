"""How a request is answered by a view that a setting names, and what kind of answer a client wants."""

import logging
from typing import Any, Final

from asgiref.sync import async_to_sync, iscoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.module_loading import import_string

logger = logging.getLogger("gsession_django")

_HTML: Final = ("text/html", "application/xhtml+xml", "text/*", "*/*")
_JSON: Final = ("application/json", "application/*")


def of_the_site(setting: str, path: str, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
    """Return the response of the site's view. If it fails, log that and return ``None``.

    This may block, so call it in a thread under ASGI.

    Args:
        setting: the key of ``GSESSION`` that names the view.
        path: the dotted path of the view, sync or async.
        request, exception: its arguments.
    """
    try:
        view: Any = import_string(path)
        response = (async_to_sync(view) if iscoroutinefunction(view) else view)(request, exception)
        if not getattr(response, "is_rendered", True):  # as Django does for its handler500
            response = response.render()
        if not isinstance(response, HttpResponseBase):
            raise TypeError(f"{path} returned {response!r}, which is not a response.")
    except Exception:
        logger.exception('GSESSION["%s"] = %r failed. The visitor gets the default page.', setting, path)
        return None
    return response


def prefers_json(request: HttpRequest) -> bool:
    """Return whether the header ``Accept`` ranks JSON, such as ``application/problem+json``, before HTML."""
    try:
        ranked = request.accepted_types
    except (LookupError, ValueError):  # a parameter has an unknown encoding
        return False
    for accepted in ranked:
        name = f"{accepted.main_type}/{accepted.sub_type}"
        if name in _HTML:
            return False
        if name in _JSON or name.endswith("+json"):
            return True
    return False
