"""Whose sessions: list the sessions of a user, and end them. ``docs/users.md`` shows how."""

from gsession_django.users.listing import (
    Client,
    UserSession,
    aend_session,
    aend_sessions,
    asessions_of,
    end_session,
    end_sessions,
    sessions_of,
)

__all__ = [
    "Client",
    "UserSession",
    "aend_session",
    "aend_sessions",
    "asessions_of",
    "end_session",
    "end_sessions",
    "sessions_of",
]
