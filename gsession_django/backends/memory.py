"""Sessions in the memory of one process: for tests, for development, and for a site that is one process.

They end with the process, and no other process sees them.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning

from gsession_django.core.options import AtLeast
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Removed, Storage
from gsession_django.core.store import SessionStore as BaseSessionStore
from gsession_django.core.values import MISSING
from gsession_django.memory.entries import Entries, Entry
from gsession_django.memory.locks import Locks
from gsession_django.memory.values import kept
from gsession_django.recording import System


class MemoryStorage(Storage):
    """Keeps sessions in a dict, and every mutable value as bytes: no two requests share an object.

    Args:
        max_sessions: the largest number of sessions to keep. Beyond it, the least recently used go first.
    """

    reads_settings = False

    def __init__(self, max_sessions: Annotated[int, AtLeast(1)] = 100_000) -> None:
        self._entries = Entries(max_sessions)
        self._locks = Locks()
        self._revisions = itertools.count()
        # Held briefly and never across a wait, so the async twins take it too, without a thread.
        self._lock = threading.Lock()

    def system(self) -> System:
        return System("memory")

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        with self._lock:
            entry = self._entries.live(session_id)
            if entry is None:
                return None
            self._entries.used(session_id)
            return SessionMap(dict(entry.values), entry.revision, entry.expires - time.monotonic())

    def remove_all(self, session_id: str) -> None:
        with self._lock:
            self._entries.drop(session_id)

    def update_ttl(self, session_id: str, ttl: int) -> bool:
        with self._lock:
            entry = self._entries.live(session_id)
            if entry is None:
                return False
            entry.expires = time.monotonic() + ttl
            self._entries.used(session_id)
            return True

    def exists(self, session_id: str) -> bool:
        with self._lock:
            return self._entries.live(session_id) is not None

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        values = kept(session.as_dict(), session.encoding_of)
        with self._lock:
            if self._entries.live(session_id) is not None:
                return False
            session.version = next(self._revisions)
            self._entries.put(session_id, Entry(values, time.monotonic() + ttl, session.version))
            return True

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        # Encoding may be slow, so it happens outside the lock.
        changed, removed = kept(session.changed, session.encoding_of), session.removed
        with self._lock:
            entry = self._entries.live(session_id)
            if entry is None:
                return False
            expires = time.monotonic() + ttl
            user = entry.user
            if session.cleared:
                entry.values = changed
            elif entry.revision == session.version:
                entry.values |= changed
                for key in removed:
                    entry.values.pop(key, None)
            else:
                current = SessionMap(dict(entry.values))
                merged = {key: session.merged_value(key, current.get(key, MISSING)) for key in changed}
                # The values of other requests stay encoded: even one that this process cannot decode is kept.
                values = entry.values | kept(merged)
                entry.values = session.in_order({key: value for key, value in values.items() if key not in removed})
                if not session.renews_ttl(current):
                    expires = entry.expires
            self._entries.list_again(session_id, user)
            entry.expires = expires
            entry.revision = session.version = next(self._revisions)
            self._entries.used(session_id)
            return True

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        with self._lock:
            entry = self._entries.live(session_id)
            taken = self._entries.live(new_id) is not None
            if entry is None or taken:
                return entry is None and taken
            self._entries.drop(session_id)
            self._entries.put(new_id, entry)
            return True

    def sessions_of(self, user_id: str) -> list[str]:
        with self._lock:
            return self._entries.of_user(user_id)

    def lock(self, session_id: str, token: str, seconds: float) -> bool:
        with self._lock:
            return self._locks.take(session_id, token, seconds)

    def unlock(self, session_id: str, token: str) -> None:
        with self._lock:
            self._locks.free(session_id, token)

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        with self._lock:
            ids = self._entries.ids()
        for start in range(0, len(ids), batch_size):
            with self._lock:
                expired = self._entries.expired(ids[start : start + batch_size])
                if not dry_run:
                    for session_id in expired:
                        self._entries.drop(session_id)
            yield len(expired) if dry_run else Removed(expired)

    def ids(self) -> Iterator[str]:
        with self._lock:
            live = self._entries.live_ids()
        yield from live

    async def aget_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        return self.get_session(session_id, ttl, data)

    async def aremove_all(self, session_id: str) -> None:
        self.remove_all(session_id)

    async def aupdate_ttl(self, session_id: str, ttl: int) -> bool:
        return self.update_ttl(session_id, ttl)

    async def aexists(self, session_id: str) -> bool:
        return self.exists(session_id)

    async def acreate(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return self.create(session_id, session, ttl)

    async def aapply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        return self.apply(session_id, session, ttl)

    async def amove(self, session_id: str, new_id: str, ttl: int) -> bool:
        return self.move(session_id, new_id, ttl)

    async def asessions_of(self, user_id: str) -> list[str]:
        return self.sessions_of(user_id)

    async def alock(self, session_id: str, token: str, seconds: float) -> bool:
        return self.lock(session_id, token, seconds)

    async def aunlock(self, session_id: str, token: str) -> None:
        self.unlock(session_id, token)


class SessionStore(BaseSessionStore):
    """The engine ``gsession_django.backends.memory``."""

    storage_class = MemoryStorage

    @classmethod
    def check(cls) -> list[CheckMessage]:
        if settings.DEBUG:
            return []
        return [
            Warning(
                f"The session engine {cls.__module__!r} keeps sessions in the memory of one process; DEBUG is False.",
                hint="Sessions end with the process, and a second worker process does not see them. Set SESSION_ENGINE "
                "to 'gsession_django.backends.file', or silence this check if your site is one process.",
                id="gsession_django.W001",
            )
        ]
