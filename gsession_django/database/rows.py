"""The columns of a row: the id, the version and the expiry."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.contrib.auth import SESSION_KEY

from gsession_django.models import ID_LENGTH

# No session has any other id, and some databases would refuse it.
_ID: Final = re.compile(rf"[!-~]{{1,{ID_LENGTH}}}")


def is_id(session_id: str) -> bool:
    """Return whether a session can have this id."""
    return _ID.fullmatch(session_id) is not None


def check_new_id(session_id: str) -> None:
    """Raise ``ValueError`` if no session can have this id."""
    if not is_id(session_id):
        raise ValueError(
            f"{session_id!r} cannot be the id of a session in the database. With hash_ids off, the database engine "
            f"takes session keys of at most {ID_LENGTH} characters, and only characters that a cookie can hold."
        )


def column_of(text: str) -> str:
    """Return what stands in a column for a text of any length and kind, such as a user's id.

    That is the text itself where a session id could be it, and else its SHA-256 behind "sha256 ": databases compare it
    byte by byte then, and the blank keeps the two kinds apart.
    """
    if is_id(text):
        return text
    return f"sha256 {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def user_of(session: Mapping[str, Any]) -> str | None:
    """Return what stands in the column for the user who is signed in; ``None`` where nobody is."""
    user = session.get(SESSION_KEY)
    return None if user is None else column_of(str(user))


class Version(NamedTuple):
    """What a session's row was when it was read or written.

    Attributes:
        number: the row's version.
        user: its user.
    """

    number: int
    user: str | None


def new_version() -> int:
    """Return a random number: no two sessions share a version, not even under the same id."""
    return secrets.randbits(63)


def next_start(start: int, until: int, removed: int) -> int:
    """Return the expiry at which a purge starts its next look-up.

    Args:
        start: the expiry at which it started this one.
        until: the last expiry that it saw.
        removed: how many rows it removed. If it removed none and `until` equals `start`, a whole batch of rows with
            this expiry may be locked, and the purge skips them.
    """
    return until if removed or until > start else until + 1
