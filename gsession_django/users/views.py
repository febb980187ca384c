"""The pages "Your sessions". ``docs/users.md`` tells how to include them and how to make them yours."""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.db.models import Model
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render, resolve_url
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_http_methods, require_safe

from gsession_django.core.storage import StorageUnavailable
from gsession_django.core.store import SessionStore
from gsession_django.users.listing import UserSession, end_session, end_sessions, sessions_of
from gsession_django.users.words import Described

_View = Callable[..., HttpResponseBase]


def answering_outages(view: _View) -> _View:
    """Let the middleware answer if the storage cannot, as if it had failed for the session of the request."""

    @wraps(view)
    def wrapper(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except StorageUnavailable as error:
            if isinstance(request.session, SessionStore) and request.session.failure is None:
                request.session._remember(error)
            raise

    return wrapper


def _page(view: _View) -> _View:
    return never_cache(login_required(csrf_protect(answering_outages(view))))


@_page
@require_safe
def sessions(request: HttpRequest) -> HttpResponse:
    """Show the user's sessions: this one first."""
    found = [Described(each) for each in sessions_of(_user(request), request.session)]
    context = {
        "current": next((each for each in found if each.is_current), None),
        "others": [each for each in found if not each.is_current],
    }
    return render(request, "gsession_django/users/sessions.html", context)


@_page
@require_http_methods(["GET", "HEAD", "POST"])
def end(request: HttpRequest, handle: str) -> HttpResponse:
    """Ask whether to end one session, and with POST end it. For this very session that is a sign-out."""
    session = _by_handle(request, handle)
    if session is None:
        messages.info(request, _("That session has already ended."), fail_silently=True)
        return redirect("gsession_django:sessions")
    if request.method != "POST":
        return render(request, "gsession_django/users/end.html", {"session": Described(session)})
    if session.is_current:
        logout(request)
        return redirect(resolve_url(settings.LOGOUT_REDIRECT_URL or settings.LOGIN_URL))
    end_session(session)
    messages.success(request, _("The session has ended. Whoever used it is signed out."), fail_silently=True)
    return redirect("gsession_django:sessions")


@_page
@require_http_methods(["GET", "HEAD", "POST"])
def end_others(request: HttpRequest) -> HttpResponse:
    """Ask whether to end all sessions but this one, and with POST end them."""
    if request.method != "POST":
        return render(request, "gsession_django/users/end_others.html")
    count = end_sessions(_user(request), keep=request.session)
    told = ngettext("%(count)d other session has ended.", "%(count)d other sessions have ended.", count)
    messages.success(request, told % {"count": count}, fail_silently=True)
    return redirect("gsession_django:sessions")


def _user(request: HttpRequest) -> Model:
    return cast(Model, request.user)  # who is signed in


def _by_handle(request: HttpRequest, handle: str) -> UserSession | None:
    """Return the session that a handle names, among those of the user who asks: no other is ever looked at."""
    found = sessions_of(_user(request), request.session)
    return next((each for each in found if each.handle == handle), None)
