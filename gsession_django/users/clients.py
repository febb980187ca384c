"""Where a user signs in and was last seen: address and user agent, if ``GSESSION["RECORD_CLIENT"]`` is on.

The middleware calls :func:`record` or :func:`arecord` when the view is done with the session, before it is saved. So
does whoever saves the session at the sign-in.
"""

import ipaddress
from typing import Any, Final

from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest

from gsession_django.core.conf import conf
from gsession_django.core.engine import engine_of
from gsession_django.core.session_map import SessionMap
from gsession_django.core.store import SessionStore
from gsession_django.users.about import CLIENT, SINCE

USER_AGENT_LENGTH: Final = 512
"""Characters that are kept of a user agent."""


def record(request: HttpRequest) -> None:
    """Note where the visit came from in the session, if this request has loaded it and a user is signed in.

    The session counts as changed only if that is another address or user agent than last time.
    """
    if (session := _session_of(request)) is not None:
        _note(session, request)


async def arecord(request: HttpRequest) -> None:
    """Do what :func:`record` does, awaited."""
    if (session := _session_of(request)) is not None:
        await session.afetch(CLIENT)
        _note(session, request)


def _session_of(request: HttpRequest) -> SessionMap | None:
    store = getattr(request, "session", None) if conf().record_client else None
    # A storage that cannot list sessions has no use for this, and may count the pair as one of the user's.
    if not isinstance(store, SessionStore) or "sessions_of" not in engine_of(type(store)).able:
        return None
    session: SessionMap | None = vars(store).get("_session_cache")  # asked for otherwise, it would be loaded
    if session is None or session.lacks(SESSION_KEY) or session.get(SESSION_KEY) is None:
        return None
    return session


def _note(session: SessionMap, request: HttpRequest) -> None:
    here = [address_of(request), user_agent_of(request)]
    noted: list[Any] | None = session.get(CLIENT)
    # A sign-in by the same user again counts where that gives it a new time.
    signs_in = any(not session.lacks(key) and session.base(key) != session.get(key) for key in (SESSION_KEY, SINCE))
    if noted is None:
        # As if it were stored, and changed in place: a pair that is set would let a value that cannot be stored fail
        # the save, which a view may have made for display.
        session.learn({CLIENT: []})
        noted = session[CLIENT]
    # Where a user signed in before anything was recorded, nobody knows.
    first = here if signs_in else next(iter(noted), None)
    noted[:] = [first, here]  # the same as before is not a change


def address_of(request: HttpRequest) -> str:
    """Return ``REMOTE_ADDR`` if it is an IP address, and ``""`` if not. No header is asked, as visitors write those."""
    try:
        # Without the zone, which may be any text.
        address = ipaddress.ip_address(str(request.META.get("REMOTE_ADDR", "")).partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(address, "ipv4_mapped", None) or address)


def user_agent_of(request: HttpRequest) -> str:
    """Return the header ``User-Agent``, cut, without what cannot be printed."""
    text = str(request.META.get("HTTP_USER_AGENT", ""))[:USER_AGENT_LENGTH]
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
