"""Sessions in Redis, each as one string: the simplest, and what GoFrame's ``StorageRedis`` reads and writes too."""

from typing import Any

from gsession_django.redis_commands import Batch, Operation, digest
from gsession_django.redis_scripts import MOVE_STRING, REPLACE_STRING
from gsession_django.redis_storage import BaseRedisSessionStore, BaseRedisStorage, both
from gsession_django.serializers import DecodeError
from gsession_django.session_map import SessionMap


class RedisStorage(BaseRedisStorage):
    """Keeps the bytes that ``SESSION_SERIALIZER`` makes of the whole session, under ``KEY_PREFIX + prefix + id``."""

    move_script = MOVE_STRING

    def _get_session(self, session_id: str, ttl: int, data: Any = None) -> Operation[SessionMap | None]:
        (key,) = self._keys(session_id)
        stored, left = yield Batch(("GET", key), ("PTTL", key))
        if stored is None or left == -2:  # it expired between the two
            return None
        return SessionMap(self._decoded(stored), stored, None if left < 0 else left / 1000)

    def _decoded(self, stored: bytes) -> dict[str, Any]:
        data = self.decode(stored)
        if not isinstance(data, dict):
            raise DecodeError(f"a {type(data).__name__} is no session")
        return data

    def _update_ttl(self, session_id: str, ttl: int) -> Operation[bool]:
        (key,) = self._keys(session_id)
        (renewed,) = yield Batch(("EXPIRE", key, ttl))
        return bool(renewed)

    def _create(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        stored = session.version = self.encode(session.as_dict())
        if ttl <= 0:
            return not (yield from self._exists(session_id))
        (key,) = self._keys(session_id)
        return (yield from self._write(("SET", key, stored, "EX", ttl, "NX"))) is not None

    def _apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        (key,) = self._keys(session_id)
        if session.cleared:
            known, stored = "*", self.encode(session.as_dict())
        elif session.version is None:
            known, stored = "", b""
        else:
            known, stored = digest(session.version), self.encode(session.as_dict())
        expiry: int | str = ttl
        while True:
            reply = yield from self._write(REPLACE_STRING((key,), known, stored, expiry))
            if not isinstance(reply, bytes):
                session.version = stored
                return bool(reply)
            try:
                current = self._decoded(reply)
            except DecodeError:  # nobody can load it: it is gone
                return False
            expiry = ttl if session.renews_ttl(current) else ""
            known, stored = digest(reply), self.encode(session.merged_onto(current))

    get_session, aget_session = both(_get_session)
    update_ttl, aupdate_ttl = both(_update_ttl)
    create, acreate = both(_create)
    apply, aapply = both(_apply)


class SessionStore(BaseRedisSessionStore):
    """The engine ``gsession_django.backends.redis``."""

    storage_class = RedisStorage
