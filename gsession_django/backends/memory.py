"""Sessions in the memory of one process: for tests, for development, and for a site that is one process.

They end with the process, and no other process sees them.
"""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.checks import CheckMessage, Warning

from gsession_django.core.options import AtLeast
from gsession_django.core.session_map import SessionMap
from gsession_django.core.storage import Storage
from gsession_django.core.store import SessionStore as BaseSessionStore
from gsession_django.core.values import MISSING, Canonical
from gsession_django.recording import System

# Every serializer returns these unchanged, and no code can change them in place.
_IMMUTABLE = frozenset({str, int, float, bool, type(None)})


@dataclass(slots=True)
class _Entry:
    values: dict[str, Any]
    expires: float  # on the monotonic clock: setting the system's clock must not end a session
    revision: int


class MemoryStorage(Storage):
    """Keeps sessions in a dict, and every mutable value as bytes: no two requests share an object.

    Args:
        max_sessions: the largest number of sessions to keep. Beyond it, the least recently used go first.
    """

    reads_settings = False

    def __init__(self, max_sessions: Annotated[int, AtLeast(1)] = 100_000) -> None:
        self._max_sessions = max_sessions
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # The ids of the sessions in which a user is signed in.
        self._of_users: dict[str, set[str]] = {}
        self._revisions = itertools.count()
        # Held briefly and never across a wait, so the async twins take it too, without a thread.
        self._lock = threading.Lock()

    def system(self) -> System:
        return System("memory")

    def _live(self, session_id: str) -> _Entry | None:
        entry = self._entries.get(session_id)
        if entry is None:
            return None
        if entry.expires <= time.monotonic():
            self._drop(session_id)
            return None
        return entry

    def _drop(self, session_id: str) -> None:
        if (entry := self._entries.pop(session_id, None)) is not None:
            self._unlist(session_id, entry.values.get(SESSION_KEY))

    def _list(self, session_id: str, entry: _Entry) -> None:
        if (user := entry.values.get(SESSION_KEY)) is not None:
            self._of_users.setdefault(str(user), set()).add(session_id)

    def _unlist(self, session_id: str, user: Any) -> None:
        if (ids := self._of_users.get(str(user))) is not None:
            ids.discard(session_id)
            if not ids:
                del self._of_users[str(user)]

    def _kept(self, pairs: dict[str, Any], encoding_of: Callable[[str, Any], bytes]) -> dict[str, Any]:
        """Return the pairs as the dict keeps them: immutable values, and the encodings of the others."""
        if not all(type(key) is str for key in pairs):  # the serializer decides how other keys come back
            pairs = self.decode(self.encode(pairs))
            encoding_of = self._encoding_of
        return {
            key: value if type(value) in _IMMUTABLE else Canonical(encoding_of(key, value))
            for key, value in pairs.items()
        }

    def _encoding_of(self, key: str, value: Any) -> bytes:
        return self.encode(value)

    def _put(self, session_id: str, entry: _Entry) -> None:
        self._entries[session_id] = entry
        self._entries.move_to_end(session_id)
        self._list(session_id, entry)
        # The least recently used session is the likeliest to have expired. So no thread has to look for expired ones.
        oldest_id, oldest = next(iter(self._entries.items()))
        if len(self._entries) > self._max_sessions or oldest.expires <= time.monotonic():
            self._drop(oldest_id)

    def get_session(self, session_id: str, ttl: int, data: Any = None) -> SessionMap | None:
        with self._lock:
            entry = self._live(session_id)
            if entry is None:
                return None
            self._entries.move_to_end(session_id)
            return SessionMap(dict(entry.values), entry.revision, entry.expires - time.monotonic())

    def remove_all(self, session_id: str) -> None:
        with self._lock:
            self._drop(session_id)

    def update_ttl(self, session_id: str, ttl: int) -> bool:
        with self._lock:
            entry = self._live(session_id)
            if entry is None:
                return False
            entry.expires = time.monotonic() + ttl
            self._entries.move_to_end(session_id)
            return True

    def exists(self, session_id: str) -> bool:
        with self._lock:
            return self._live(session_id) is not None

    def create(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        values = self._kept(session.as_dict(), session.encoding_of)
        with self._lock:
            if self._live(session_id) is not None:
                return False
            session.version = next(self._revisions)
            self._put(session_id, _Entry(values, time.monotonic() + ttl, session.version))
            return True

    def apply(self, session_id: str, session: SessionMap, ttl: int) -> bool:
        # Encoding may be slow, so it happens outside the lock.
        changed, removed = self._kept(session.changed, session.encoding_of), session.removed
        with self._lock:
            entry = self._live(session_id)
            if entry is None:
                return False
            expires = time.monotonic() + ttl
            user = entry.values.get(SESSION_KEY)
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
                values = entry.values | self._kept(merged, self._encoding_of)
                entry.values = session.in_order({key: value for key, value in values.items() if key not in removed})
                if not session.renews_ttl(current):
                    expires = entry.expires
            if entry.values.get(SESSION_KEY) != user:
                self._unlist(session_id, user)
                self._list(session_id, entry)
            entry.expires = expires
            entry.revision = session.version = next(self._revisions)
            self._entries.move_to_end(session_id)
            return True

    def move(self, session_id: str, new_id: str, ttl: int) -> bool:
        with self._lock:
            entry = self._live(session_id)
            taken = self._live(new_id) is not None
            if entry is None or taken:
                return entry is None and taken
            self._drop(session_id)
            self._put(new_id, entry)
            return True

    def purge(self, batch_size: int, dry_run: bool = False) -> Iterator[int]:
        with self._lock:
            ids = list(self._entries)
        for start in range(0, len(ids), batch_size):
            with self._lock:
                now = time.monotonic()
                batch = [session_id for session_id in ids[start : start + batch_size] if session_id in self._entries]
                expired = [session_id for session_id in batch if self._entries[session_id].expires <= now]
                if not dry_run:
                    for session_id in expired:
                        self._drop(session_id)
            yield len(expired)

    def ids(self) -> Iterator[str]:
        with self._lock:
            now = time.monotonic()
            live = [session_id for session_id, entry in self._entries.items() if entry.expires > now]
        yield from live

    def sessions_of(self, user_id: str) -> list[str]:
        with self._lock:
            return [each for each in tuple(self._of_users.get(user_id, ())) if self._live(each) is not None]

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

    async def asessions_of(self, user_id: str) -> list[str]:
        return self.sessions_of(user_id)

    async def amove(self, session_id: str, new_id: str, ttl: int) -> bool:
        return self.move(session_id, new_id, ttl)


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
