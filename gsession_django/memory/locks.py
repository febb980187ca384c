"""Locks that one holder has at a time, each until a moment."""

import time
from itertools import islice


class Locks:
    """The locks of one process. Whoever calls a method holds the storage's lock."""

    def __init__(self) -> None:
        # By session id: the holder's token, and until when on the monotonic clock. Those taken last are at the end.
        self._holders: dict[str, tuple[str, float]] = {}

    def take(self, session_id: str, token: str, seconds: float) -> bool:
        """Do what ``Storage.lock`` says."""
        now = time.monotonic()
        self._drop_expired(now)
        holder, until = self._holders.get(session_id, (token, now))
        if holder != token and until > now:
            return False
        self._holders.pop(session_id, None)
        self._holders[session_id] = token, now + seconds
        return True

    def free(self, session_id: str, token: str) -> None:
        """Do what ``Storage.unlock`` says."""
        if self._holders.get(session_id, ("", 0))[0] == token:
            del self._holders[session_id]

    def _drop_expired(self, now: float) -> None:
        """Drop the locks at the front that have expired, so that there are never more than were taken of late."""
        for session_id, (_, until) in list(islice(self._holders.items(), 2)):
            if until <= now:
                del self._holders[session_id]
