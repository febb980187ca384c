"""The sessions of one process, in the order in which they were used, and an index from users to them."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import SESSION_KEY


@dataclass(slots=True)
class Entry:
    """One session.

    Attributes:
        values: its pairs, as the storage keeps them.
        expires: when it expires, on the monotonic clock: setting the system's clock ends no session.
        revision: another number after each change; a touch is none.
    """

    values: dict[str, Any]
    expires: float
    revision: int

    @property
    def user(self) -> str | None:
        """The id of the user who is signed in; ``None`` where nobody is."""
        user = self.values.get(SESSION_KEY)
        return None if user is None else str(user)


class Entries:
    """All sessions. Whoever calls a method holds the storage's lock.

    Args:
        most: how many are kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._of_users: dict[str, dict[str, None]] = {}

    def live(self, session_id: str) -> Entry | None:
        """Return a session; ``None`` when there is none. One that has expired is dropped."""
        entry = self._entries.get(session_id)
        if entry is None:
            return None
        if entry.expires <= time.monotonic():
            self.drop(session_id)
            return None
        return entry

    def put(self, session_id: str, entry: Entry) -> None:
        """Keep a session, as the last one that was used."""
        self._entries[session_id] = entry
        self._entries.move_to_end(session_id)
        self._list(session_id, entry.user)
        # The one that was used the longest ago is the likeliest to have expired: no thread has to look for those.
        oldest_id, oldest = next(iter(self._entries.items()))
        if len(self._entries) > self._most or oldest.expires <= time.monotonic():
            self.drop(oldest_id)

    def used(self, session_id: str) -> None:
        """Note that a session was used just now."""
        self._entries.move_to_end(session_id)

    def drop(self, session_id: str) -> None:
        """Drop a session, if it is there."""
        if (entry := self._entries.pop(session_id, None)) is not None:
            self._unlist(session_id, entry.user)

    def ids(self) -> list[str]:
        """Return the ids of all sessions, of those that have expired too."""
        return list(self._entries)

    def live_ids(self) -> list[str]:
        """Return the ids of the sessions that have not expired."""
        now = time.monotonic()
        return [session_id for session_id, entry in self._entries.items() if entry.expires > now]

    def expired(self, ids: list[str]) -> list[str]:
        """Return those of `ids` whose sessions have expired."""
        now = time.monotonic()
        found = ((session_id, self._entries.get(session_id)) for session_id in ids)
        return [session_id for session_id, entry in found if entry is not None and entry.expires <= now]

    def of_user(self, user: str) -> list[str]:
        """Return the ids of the sessions in which a user is signed in, the one that was listed last at the end."""
        return [session_id for session_id in tuple(self._of_users.get(user, ())) if self.live(session_id) is not None]

    def list_again(self, session_id: str, user_before: str | None) -> None:
        """Bring the index up to date after the values of a session have changed."""
        user = self._entries[session_id].user
        if user != user_before:
            self._unlist(session_id, user_before)
            self._list(session_id, user)

    def _list(self, session_id: str, user: str | None) -> None:
        if user is not None:
            self._of_users.setdefault(user, {})[session_id] = None

    def _unlist(self, session_id: str, user: str | None) -> None:
        if user is not None and (ids := self._of_users.get(user)) is not None:
            ids.pop(session_id, None)
            if not ids:
                del self._of_users[user]
