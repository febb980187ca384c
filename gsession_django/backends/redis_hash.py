"""Sessions in Redis, each as one hash: a request writes only what it changed, and large values stay on the server until
they are asked for.
"""

from collections.abc import Callable, Mapping
from typing import Any

from gsession_django.core.pairs import EXPIRY_KEY
from gsession_django.core.session_map import SessionMap
from gsession_django.core.values import MISSING, Encoded
from gsession_django.redis.commands import Batch, Command, Operation, Word, digest, seconds
from gsession_django.redis.fields import (
    MARK,
    digest_of,
    field_of,
    flat,
    key_of,
    pairs,
    stored_as,
    stored_of,
    value_of,
    values_of,
)
from gsession_django.redis.move import REMEMBERED, beside
from gsession_django.redis.scripts import APPLY_HASH, CREATE_HASH, LEAVE_HASH, MOVE_HASH, READ_HASH, TOUCH_HASH
from gsession_django.redis.storage import BaseRedisSessionStore, BaseRedisStorage, both
from gsession_django.serializers import DecodeError, keeps_text, logger


class RedisHashStorage(BaseRedisStorage):
    """Keeps a hash ``KEY_PREFIX + "{" + prefix + id + "}"``, a field a key, and large values in a second one beside it.

    The second hash has ``:large`` at the end of its name. Every operation treats the two as one session.
    """

    redis_type = "hash"
    around = ("{", "}")

    def _keys(self, session_id: str) -> tuple[str, ...]:
        key = self._key(session_id)
        large = f"{key}:large"
        # While a slot is on its way to another node of a cluster, a script there fails half way where it makes a key
        # that it has removed. It is not begun if one of its keys is not there, and with a session the third never is.
        return (key, large) if self._held is None else (key, large, beside(key))

    def _left(self, session_id: str) -> str:
        """Return the key of the large values that a session has left behind when it was moved.

        They serve a request that read the session before the move, and not these values. They stay as they were then: a
        session key that has ended opens nothing that is stored later.
        """
        return f"{beside(self._key(session_id))}:large"

    # Reading.

    def _get_session(self, session_id: str, ttl: int, data: Any = None) -> Operation[SessionMap | None]:
        key = self._key(session_id)
        fields, left = yield Batch(("HGETALL", key), ("PTTL", key))
        if not fields or left == -2:  # it expired between the two
            return None
        stored = fields if isinstance(fields, dict) else dict(pairs(fields))
        values, tokens = values_of(stored)
        session = SessionMap(values, None, None if left < 0 else left / 1000)
        if tokens:
            session.tokens = tokens
        if self._held is not None:
            self._held[key] = session
            session.version = None if session.lacks(None) else stored  # for a move that copies it
        return session

    def _get(self, session_id: str, key: str) -> Operation[Any]:
        small, large = self._keys(session_id)[:2]
        field = field_of(key)
        reads = (("HGET", name, field) for name in (large, small, self._left(session_id)))
        *stored, left, there = yield Batch(*reads, ("EXISTS", small))
        found = next((value for value in stored if value is not None), None if there else left)
        if found is None or (value := value_of(key, found)) is MISSING:
            return None
        return self.decode(value) if type(value) is Encoded else value

    def _get_map(self, session_id: str) -> Operation[dict[str, Any]]:
        ((small, large, left),) = yield Batch(READ_HASH((*self._keys(session_id)[:2], self._left(session_id))))
        if not small:
            large = left
        fields = {field: value for part in (small, large) for field, value in pairs(part) if field[:1] != MARK}
        found = {key: self._decoded(key, value) for key, value in values_of(fields)[0].items()}
        return {key: value for key, value in found.items() if value is not MISSING}

    # Writing.

    def _create(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        if ttl <= 0:
            return not (yield from self._exists(session_id))
        keys = self._keys(session_id)
        command = CREATE_HASH(
            keys, seconds(ttl), MARK, b"", *flat(self._fields(session.as_dict(), session.encoding_of))
        )
        return bool(self._changed((yield self._change(command))))

    def _apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        keys = self._keys(session_id)
        changed, removed = session.changed, set() if session.cleared else session.removed
        others, merged = self._fields(changed, session.encoding_of), {}
        if not session.cleared:
            for key, value in changed.items():
                if isinstance(value, dict) and (known := self._known(session, key)) is not None:
                    field = field_of(key)
                    merged[field] = known, others.pop(field)
        renews = session.cleared or EXPIRY_KEY in changed or EXPIRY_KEY in removed
        expiry = "*" if renews else digest_of(stored_as(session.read_as(EXPIRY_KEY)))
        start = seconds(ttl), expiry, "1" if session.cleared else "0"
        rest: Command = (str(len(others)), *flat(others), *map(field_of, removed))
        while True:
            triples: list[Word] = [part for field, (known, value) in merged.items() for part in (field, known, value)]
            command = APPLY_HASH(keys, *start, str(len(merged)), *triples, *rest)
            reply = self._changed((yield self._change(command)))
            if not isinstance(reply, list):
                session.version = None
                return bool(reply)
            for field, stored in pairs(reply):
                key = key_of(field)
                current = MISSING if stored is None else self._decoded(key, value_of(key, stored))
                value = session.merged_value(key, current)
                merged[field] = digest_of(stored), MARK + self.encode(value)

    def _known(self, session: SessionMap, key: str) -> bytes | str | None:
        """Return what the script compares with a value, to see whether it is the one that was read.

        That is a digest, or the token of a large value that was not fetched; ``None`` where nobody knows.
        """
        was = session.read_as(key)
        return session.tokens.get(key) if was is None else digest_of(stored_as(was))

    def _update_ttl(self, session_id: str, ttl: int) -> Operation[bool]:
        keys = self._keys(session_id)
        (renewed,) = yield Batch(TOUCH_HASH(keys, seconds(ttl)))
        return bool(renewed)

    def _rename(self, session_id: str, new_id: str) -> Command:
        old, new = self._keys(session_id), self._keys(new_id)
        return MOVE_HASH((*old, *new, self._left(session_id)), REMEMBERED)

    # Moving in a cluster: what is kept in both hashes, the bookkeeping too.

    def _leave(self, session_id: str, new_id: str, copied: Mapping[bytes, bytes] | None = None) -> Command:
        known = (part for field, value in (copied or {}).items() for part in (field, digest(value)))
        return LEAVE_HASH((*self._keys(session_id), self._left(session_id)), new_id, REMEMBERED, *known)

    def _read(self, reply: list[Any]) -> dict[bytes, bytes]:
        return {field: value for fields in reply for field, value in pairs(fields)}

    def _copy(self, new_id: str, session: Mapping[bytes, bytes], ttl: int) -> Command:
        values = {field: value for field, value in session.items() if field[:1] != MARK}
        return CREATE_HASH(self._keys(new_id), seconds(ttl), MARK, b"", *flat(values))

    # Fields and values.

    def _fields(self, pairs: Mapping[str, Any], encoding_of: Callable[[str, Any], bytes]) -> dict[bytes, bytes]:
        as_text = keeps_text()  # asked once, and text is not given to a function for each field
        try:
            return {
                key.encode(): value.encode("utf-8", "surrogatepass")
                if as_text and type(value) is str
                else stored_of(key, value, encoding_of)
                for key, value in pairs.items()
            }
        except (AttributeError, UnicodeError):  # the serializer knows what becomes of keys that are not strings
            found: dict[str, Any] = self.decode(self.encode(dict(pairs)))
            return {
                field_of(key): stored_of(key, value, lambda key, value: self.encode(value))
                for key, value in found.items()
            }

    def _decoded(self, key: str, value: Any) -> Any:
        try:
            return self.decode(value) if type(value) is Encoded else value
        except DecodeError as error:
            logger.warning("The session value %r is dropped: %s", key, error)
            return MISSING

    get_session, aget_session = both(_get_session)
    get, aget = both(_get)
    get_map, aget_map = both(_get_map)
    update_ttl, aupdate_ttl = both(_update_ttl)
    create, acreate = both(_create)
    apply, aapply = both(_apply)


class SessionStore(BaseRedisSessionStore):
    """The engine ``gsession_django.backends.redis_hash``."""

    storage_class = RedisHashStorage
