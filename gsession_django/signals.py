"""Signals about sessions. A receiver gets the engine's SessionStore class as `sender`.

They are sent after the storage has done it, in the process that did it, on every engine. If several end a session at
the same moment, each of them may send `session_ended`. An exception in a receiver is logged and goes no further. For an
async request, Django calls receivers in a thread. A save in a database transaction that is rolled back later has been
signalled all the same.

Arguments of all three: ``session_id``, the id that the storage knows the session by, and ``user_id``, the text under
which Django keeps the signed-in user in the session, or ``None`` where nobody is signed in or nobody knows.
"""

from enum import StrEnum

from django.dispatch import Signal

session_created = Signal()
"""A new session is stored. Django stores one when a visitor's first value is saved."""
session_moved = Signal()
"""A session has got a new key, as at each sign-in. ``new_id`` is its id from now on."""
session_ended = Signal()
"""A session has ended. ``reason`` is an :class:`Ended`."""


class Ended(StrEnum):
    """Why a session has ended."""

    SIGNED_OUT = "signed out"
    """One of its own requests ended it, by a sign-out, ``flush()`` or ``delete()``."""
    BY_ANOTHER = "ended by another session"
    """Another session of the user, an administrator or a command ended it."""
    REPLACED = "replaced"
    """A newer session took its place, as ``GSESSION["MAX_SESSIONS_PER_USER"]`` says."""
    EXPIRED = "expired"
    """A purge removed it, on the engines memory and file. The others do not know which sessions have expired."""
