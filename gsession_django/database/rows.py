"""What is in a row of the table."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from django.contrib.auth import SESSION_KEY

from gsession_django.models import ID_LENGTH

# Every other id is that of no session, and some databases would refuse it.
_ID: Final = re.compile(rf"[!-~]{{1,{ID_LENGTH}}}")


def is_id(session_id: str) -> bool:
    """Return whether a session can have this id."""
    return _ID.fullmatch(session_id) is not None


def check_new_id(session_id: str) -> None:
    """Raise ``ValueError`` if no session can have this id."""
    if not is_id(session_id):
        raise ValueError(
            f"{session_id!r} cannot be the id of a session in the database: with hash_ids off, the database engine "
            f"takes session keys of at most {ID_LENGTH} characters, of those that a cookie can hold."
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
    """Return a number that nobody has seen: not even where a session ended, and another has its id."""
    return secrets.randbits(63)


def next_start(start: int, until: int, removed: int) -> int:
    """Return the expiry from which on a purge looks for its next rows.

    Args:
        start: where it began to look this time.
        until: the last expiry that it saw.
        removed: how many rows it has removed. With none, more rows than it takes at once may have expired at one
            moment, and be locked: it goes on behind them.
    """
    return until if removed or until > start else until + 1
