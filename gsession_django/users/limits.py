"""``GSESSION["MAX_SESSIONS_PER_USER"]``: how many sessions a user may have at once."""

from typing import Any

from django.contrib.auth import SESSION_KEY, logout
from django.contrib.auth.signals import user_logged_in
from django.contrib.sessions.backends.base import UpdateError
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest

from gsession_django.core.conf import conf
from gsession_django.core.store import SessionStore
from gsession_django.signals import Ended
from gsession_django.users import clients
from gsession_django.users.about import SINCE, now
from gsession_django.users.listing import UserSession, end_session, id_of, sessions_of


class TooManySessions(PermissionDenied):
    """Refuses a sign-in: the user has as many sessions as ``GSESSION["MAX_SESSIONS_PER_USER"]`` allows.

    Nobody is signed in then. Django answers with 403, unless the site catches it.
    """


def watch() -> None:
    """Let each sign-in be counted from now on."""
    user_logged_in.connect(_count, dispatch_uid="gsession_django.users.limits")


def _count(sender: Any, request: HttpRequest, user: Any, **kwargs: Any) -> None:
    limit = conf().max_sessions_per_user
    session = getattr(request, "session", None)
    if limit is None or not isinstance(session, SessionStore) or session.get(SESSION_KEY) != id_of(user):
        return  # the last one: a sign-in without a session, as by a token
    session[SINCE] = now()  # again, if the session was this user's before
    clients.record(request)
    try:
        session.save()  # or two sign-ins at once would not see each other
    except UpdateError:  # the save at the end of the request says so
        return
    sessions = sessions_of(user, session)
    if len(sessions) <= limit:
        return
    if conf().refuses_sign_in:
        _sign_out(request)
        raise TooManySessions(
            f"The user has {len(sessions) - 1} other sessions, and GSESSION['MAX_SESSIONS_PER_USER'] is {limit}."
        )
    # Of sign-ins at once each sees the same order, so that the newest stays, whoever is the last to look.
    for surplus in sorted(sessions, key=_age)[:-limit]:
        if surplus.is_current:
            _sign_out(request)
        else:
            end_session(surplus, Ended.REPLACED)


def _sign_out(request: HttpRequest) -> None:
    logout(request)
    nobody: Any = getattr(request, "user", None)

    async def auser() -> Any:
        return nobody

    if hasattr(request, "auser"):
        request.auser = auser


def _age(session: UserSession) -> tuple[float, str]:
    return 0 if session.created is None else session.created.timestamp(), session.handle
