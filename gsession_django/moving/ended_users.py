"""Users whose sessions were all ended while some were still at the old engine, where nobody can look for them.

A record at the target says so, and a session of such a user is removed at the source in place of being moved. No
process may give these users new sessions at the old engine by then.
"""

from collections.abc import Mapping
from functools import partial
from typing import Final

from django.contrib.auth import SESSION_KEY
from django.utils.crypto import salted_hmac

from gsession_django.core.driving import Operation
from gsession_django.core.engine import Engine
from gsession_django.core.reading import Lifetimes
from gsession_django.core.reserved import RESERVED_PREFIX, UNFINISHED
from gsession_django.core.session_map import SessionMap
from gsession_django.moving.source import Found, Source

_KEY: Final = RESERVED_PREFIX + "ended"
_TTL: Final = 400 * 24 * 60 * 60
"""Seconds that a record is kept: as long as a browser keeps a cookie at most (RFC 6265bis, section 5.5)."""
_ANYBODY: Final = ""


def record(engine: Engine, user_id: str) -> Operation:
    """Note that the sessions of a user were ended."""
    for name in (_ANYBODY, user_id):
        # A session that counts as missing, as one whose move has only begun.
        yield from engine.create(_id_of(name), SessionMap({_KEY: UNFINISHED}), _TTL)


def take_out(
    engine: Engine, source: Source, batch: Mapping[str, tuple[str, Found]], lifetimes: Lifetimes, keep: bool
) -> Operation:
    """Remove the sessions of such users at the source, unless `keep`. Return their refs.

    It costs one call for a batch, and if there is any record one more for each session with a user.
    """
    users = {ref: found.data.get(SESSION_KEY) for ref, (_, found) in batch.items()}
    ended: set[str] = set()
    if any(user is not None for user in users.values()) and (yield from _is_recorded(engine, _ANYBODY, lifetimes)):
        for ref, user in users.items():
            if user is not None and (yield from _is_recorded(engine, str(user), lifetimes)):
                ended.add(ref)
    if ended and not keep:
        yield partial(source.remove, list(ended))
    return ended


def _is_recorded(engine: Engine, user_id: str, lifetimes: Lifetimes) -> Operation:
    return (yield from engine.load(_id_of(user_id), lifetimes, reserved=True)) is not None


def _id_of(user_id: str) -> str:
    """Return the id of a record: one that nobody can guess, for storages whose ids are session keys."""
    return salted_hmac("gsession_django.moving.ended", user_id, algorithm="sha256").hexdigest()
