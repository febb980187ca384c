"""Sessions in Redis, each as one string: the simplest, and what GoFrame's ``StorageRedis`` reads and writes too."""

from typing import Any, Final

from gsession_django.core.documents import LARGE, decode_pairs, encode_pairs, stamp_of
from gsession_django.core.session_map import SessionMap
from gsession_django.redis.commands import Batch, Command, Operation, digest, seconds
from gsession_django.redis.move import REMEMBERED, beside
from gsession_django.redis.scripts import LEAVE_STRING, MOVE_STRING, REPLACE_STAMPED, REPLACE_STRING
from gsession_django.redis.storage import BaseRedisSessionStore, BaseRedisStorage, both

# Stands in for a session that was not read. It equals no session, so the script returns the stored one.
_UNREAD: Final = b"(unread)"


class RedisStorage(BaseRedisStorage):
    """Keeps the bytes that ``SESSION_SERIALIZER`` makes of the whole session, under ``KEY_PREFIX + prefix + id``."""

    redis_type = "string"

    def _get_session(self, session_id: str, ttl: int, data: Any = None) -> Operation[SessionMap | None]:
        key = self._key(session_id)
        stored, left = yield Batch(("GET", key), ("PTTL", key))
        if stored is None or left == -2:  # it expired between the two
            return None
        session = SessionMap(decode_pairs(stored), stored, None if left < 0 else left / 1000)
        if self._held is not None:
            self._held[key] = session
        return session

    def _update_ttl(self, session_id: str, ttl: int) -> Operation[bool]:
        key = self._key(session_id)
        (renewed,) = yield Batch(("EXPIRE", key, seconds(ttl)))
        return bool(renewed)

    def _create(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        stored = session.version = session.encoded()
        if ttl <= 0:
            return not (yield from self._exists(session_id))
        key = self._key(session_id)
        return self._changed((yield self._change(("SET", key, stored, "EX", seconds(ttl), "NX")))) is not None

    def _apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        expiry = full = seconds(ttl)
        known = b"*" if session.cleared else _UNREAD if session.version is None else session.version
        stored = b"" if known is _UNREAD else session.encoded()
        while True:
            reply = self._changed((yield self._change(self._replace(session_id, known, stored, expiry))))
            if not isinstance(reply, bytes):
                session.version = stored
                return bool(reply)
            known, current = reply, SessionMap(decode_pairs(reply))
            expiry = full if session.renews_ttl(current) else ""
            stored = encode_pairs(session.merged_onto(current), {})

    def _replace(self, session_id: str, known: bytes, stored: bytes, expiry: str) -> Command:
        """Return the command that stores a session if the stored one is `known`."""
        keys = (self._key(session_id),)
        if (stamp := stamp_of(known)) is not None:
            return REPLACE_STAMPED(keys, stamp, stored, expiry)
        # For a short session, a digest costs both sides more time than the session itself.
        return REPLACE_STRING(keys, known if len(known) <= LARGE else digest(known), stored, expiry)

    def _rename(self, session_id: str, new_id: str) -> Command:
        return MOVE_STRING((self._key(session_id), self._key(new_id)))

    # Moving in a cluster.

    def _leave(self, session_id: str, new_id: str, copied: bytes | None = None) -> Command:
        key = self._key(session_id)
        return LEAVE_STRING((key, beside(key)), new_id, REMEMBERED, "" if copied is None else digest(copied))

    def _read(self, reply: bytes) -> bytes:
        return reply

    def _copy(self, new_id: str, session: bytes, ttl: int) -> Command:
        key = self._key(new_id)
        return "SET", key, session, "EX", seconds(ttl), "NX"

    get_session, aget_session = both(_get_session)
    update_ttl, aupdate_ttl = both(_update_ttl)
    create, acreate = both(_create)
    apply, aapply = both(_apply)


class SessionStore(BaseRedisSessionStore):
    """The engine ``gsession_django.backends.redis``."""

    storage_class = RedisStorage
