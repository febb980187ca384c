"""One holder at a time: a lock is a string, the holder's token, which expires.

The lock of a session is at the key that a session with the id ``lock/ID`` would have. No session has an id with a
slash.
"""

import math
from typing import TYPE_CHECKING

from gsession_django.redis.commands import Operation
from gsession_django.redis.scripts import LOCK, UNLOCK

if TYPE_CHECKING:
    from gsession_django.redis.storage import BaseRedisStorage


def lock_session(storage: "BaseRedisStorage", session_id: str, token: str, seconds: float) -> Operation[bool]:
    """Do what ``Storage.lock`` says."""
    milliseconds = str(max(1, math.ceil(seconds * 1000)))
    return bool(storage._changed((yield storage._change(LOCK((_key_of(storage, session_id),), token, milliseconds)))))


def unlock_session(storage: "BaseRedisStorage", session_id: str, token: str) -> Operation[None]:
    """Do what ``Storage.unlock`` says."""
    storage._changed((yield storage._change(UNLOCK((_key_of(storage, session_id),), token))))


def _key_of(storage: "BaseRedisStorage", session_id: str) -> str:
    return storage._key(f"lock/{session_id}")
