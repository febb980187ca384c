"""What is in a row of the table."""

import re
import secrets
from typing import Final

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
