"""What the visitor gets if the session was ended under the request."""

from typing import Final

from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.sessions.exceptions import SessionInterrupted
from django.http import HttpRequest, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.utils.cache import patch_vary_headers
from django.utils.http import urlencode

from gsession_django.answers import of_the_site, prefers_json
from gsession_django.core.conf import conf

_TEXT: Final = "Your session has ended. Please sign in again."


def answer(request: HttpRequest, interruption: SessionInterrupted) -> HttpResponseBase | None:
    """Return the answer that ``GSESSION["INTERRUPTED"]`` asks for; ``None`` for Django's bare 400.

    This may block, so call it in a thread under ASGI. A redirect has ``?next=`` if the request was a GET.
    """
    target = conf().interrupted
    if target is None:
        return None
    if is_view(target):
        return of_the_site("INTERRUPTED", target, request, interruption)
    url = resolve_url(target)
    if prefers_json(request):
        response: HttpResponseBase = JsonResponse({"detail": _TEXT, "sign_in": url}, status=400)
    else:
        query = urlencode({REDIRECT_FIELD_NAME: request.get_full_path()})
        back = f"{'&' if '?' in url else '?'}{query}" if request.method == "GET" else ""
        response = HttpResponseRedirect(url + back)
    response["Cache-Control"] = "no-store"
    patch_vary_headers(response, ("Accept",))
    return response


def is_view(target: str) -> bool:
    """Return whether a target is the dotted path of a view, rather than a URL or the name of a URL pattern."""
    return "." in target and "/" not in target
