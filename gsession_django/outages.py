"""What the visitor and the log get if a session could not be read or saved."""

import logging
import math
import time
from typing import Final, cast

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.template import TemplateDoesNotExist, loader
from django.utils.cache import patch_vary_headers
from django.utils.log import log_response

from gsession_django.answers import of_the_site, prefers_json
from gsession_django.core.conf import conf
from gsession_django.core.storage import StorageUnavailable

logger = logging.getLogger("gsession_django")

RETRY_AFTER: Final = 5
"""Seconds after which a client may try again (RFC 9110, section 10.2.3)."""
_TEXT: Final = "Your session cannot be read or saved at the moment. Please try again in a few seconds."
_TEMPLATE: Final = "503.html"

_next_cause = -math.inf  # when log() may name a cause again, by time.monotonic()


def answer(request: HttpRequest, failure: str) -> HttpResponseBase:
    """Return the answer to a request that met an outage. This may block, so call it in a thread under ASGI.

    Args:
        request: its session raises StorageUnavailable at each use.
        failure: why the storage could not answer.

    Returns:
        The response of the view in ``GSESSION["UNAVAILABLE"]``. If there is none, or it fails: a 503 with JSON if the
        client prefers that, else with the template ``503.html``, else with plain text. Sets ``Retry-After`` and
        ``Cache-Control``, unless the view has.
    """
    name = conf().unavailable
    response = None if name is None else of_the_site("UNAVAILABLE", name, request, StorageUnavailable(failure))
    if response is None:
        response = _json(failure) if prefers_json(request) else _page(failure)
        patch_vary_headers(response, ("Accept",))
    response.setdefault("Retry-After", str(RETRY_AFTER))
    response.setdefault("Cache-Control", "no-store")
    return response


def log(request: HttpRequest, response: HttpResponseBase, failure: str) -> None:
    """Log in one line how a request that met an outage was answered.

    The line is a warning. At most once a second in a process, it is an error and names the cause.
    """
    global _next_cause
    # CPython runs no other thread between the comparison and the assignment.
    if due := (now := time.monotonic()) >= _next_cause:
        _next_cause = now + 1
    log_response(
        "%s %s is answered with %s: %s",
        request.method,
        request.path,
        response.status_code,
        failure if due else "its session is unavailable",
        response=cast(HttpResponse, response),
        request=request,
        logger=logger,
        level="error" if due else "warning",
    )


def _json(failure: str) -> HttpResponse:
    return JsonResponse({"detail": _TEXT} | ({"cause": failure} if settings.DEBUG else {}), status=503)


def _page(failure: str) -> HttpResponse:
    content, content_type = f"{_TEXT}\n\n{failure}\n" if settings.DEBUG else f"{_TEXT}\n", "text/plain; charset=utf-8"
    if not settings.DEBUG:
        try:
            # Without the request: its context processors would ask for the user, and so for the session.
            content, content_type = loader.render_to_string(_TEMPLATE), "text/html; charset=utf-8"
        except Exception as error:
            if not (isinstance(error, TemplateDoesNotExist) and str(error) == _TEMPLATE):
                logger.exception("The template %s failed. The visitor gets plain text.", _TEMPLATE)
    return HttpResponse(content, status=503, content_type=content_type)
