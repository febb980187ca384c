"""Giving a session a new id in Redis Cluster, where the old one and the new one are on different nodes as a rule.

It is copied to the new id, and then removed at the old one if it is still what was copied. So a process that is killed
in between leaves the old session, of several that move it at once only one succeeds, and nothing is lost that others
write meanwhile.
"""

import math
import weakref
from typing import Any, Final, Protocol, TypeVar

from gsession_django.core.session_map import SessionMap
from gsession_django.redis.commands import Batch, Command, Operation

S = TypeVar("S")

REMEMBERED: Final = "60"
"""Seconds for which it is remembered where a session went: a second try of the same move, and no other, is told so."""

# What requests of this process hold, by key: what was read need not be read again to be copied.
Held = weakref.WeakValueDictionary[str, SessionMap]


class Movable(Protocol[S]):
    """A storage, as far as it takes part. `S` is what it keeps of a session, as it reads and writes it."""

    def _leave(self, session_id: str, new_id: str, copied: S | None = None) -> Command:
        """Return the command that removes a session which is what was copied.

        Its reply is 1 if it has done so, now or in an earlier try; 0 if the session is gone; and otherwise a list of
        what there is and the milliseconds that are left.
        """

    def _read(self, reply: Any) -> S:
        """Return what there is, from the reply of :meth:`_leave`."""

    def _copy(self, new_id: str, session: S, ttl: int) -> Command:
        """Return the command that stores a session if the id is not taken. Its reply is true if it has."""

    def _keys(self, session_id: str) -> tuple[str, ...]: ...

    def _change(self, *commands: Command, repeat: bool = True) -> Batch: ...

    def _changed(self, replies: list[Any]) -> Any: ...


def move_between_nodes(
    storage: Movable[S], session_id: str, new_id: str, ttl: int, held: SessionMap | None
) -> Operation[bool]:
    """Do what ``Storage.move`` says.

    A round trip to the new id and one to the old, one before them if nothing is held, and two more each time that
    somebody else has written meanwhile.

    Args:
        storage: the storage.
        session_id, new_id, ttl: as in ``Storage.move``; `ttl` is for a session whose own is not known.
        held: what was read of this session; it need not be what is stored now.
    """
    session: S
    if held is not None and held.version is not None:
        session, left = held.version, held.ttl_left
    else:
        (reply,) = yield Batch(storage._leave(session_id, new_id))
        if not isinstance(reply, list):
            return bool(reply)
        session, left = storage._read(reply[0]), _seconds(reply[1])
    copy = storage._copy(new_id, session, _whole(left, ttl))
    if not storage._changed((yield storage._change(copy, repeat=False))):
        (reply,) = yield Batch(storage._leave(session_id, new_id))
        return not isinstance(reply, list) and bool(reply)
    while True:
        reply = storage._changed((yield storage._change(storage._leave(session_id, new_id, session))))
        if not isinstance(reply, list):
            break
        session = storage._read(reply[0])
        # Nobody else knows the new id yet.
        copy = storage._copy(new_id, session, _whole(_seconds(reply[1]), ttl))
        storage._changed((yield storage._change(_removing(storage, new_id), copy)))
    if not reply:
        storage._changed((yield storage._change(_removing(storage, new_id))))
    return bool(reply)


def _removing(storage: Movable[S], session_id: str) -> Command:
    return "UNLINK", *storage._keys(session_id)


def _seconds(left: int) -> float | None:
    return None if left < 0 else left / 1000


def _whole(left: float | None, ttl: int) -> int:
    return max(1, math.ceil(ttl if left is None else left))


def beside(key: str) -> str:
    """Return the key, in the same slot, under which it is remembered where the session went that was under `key`."""
    start = key.find("{")
    has_tag = start >= 0 and key.find("}", start) > start + 1
    return f"moved:{key}" if has_tag else f"moved:{{{key}}}"
