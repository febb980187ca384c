"""Sessions in Redis, each as one hash: a request writes only what it changed, and large values stay on the server until
they are asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from gsession_django.redis_commands import Batch, Operation, digest
from gsession_django.redis_scripts import APPLY_HASH, CREATE_HASH, MOVE_HASH, READ_HASH, TOUCH_HASH
from gsession_django.redis_storage import BaseRedisSessionStore, BaseRedisStorage, both
from gsession_django.serializers import DecodeError, logger
from gsession_django.session_map import EXPIRY_KEY, MISSING, UNFETCHED, Encoded, SessionMap

# No user's key begins with this byte, as it is in no UTF-8. Alone it names the field that keeps a session without keys
# alive; before a key, one that says that the value is among the large ones.
_MARK: Final = b"\xff"


class RedisHashStorage(BaseRedisStorage):
    """Keeps a hash ``KEY_PREFIX + "{" + prefix + id + "}"``, a field a key, and large values in a second one beside it.

    The second hash has ``:large`` at the end of its name. Every operation treats the two as one session.
    """

    around = ("{", "}")
    move_script = MOVE_HASH

    def _keys(self, session_id: str) -> tuple[str, str]:
        (key,) = super()._keys(session_id)
        return key, f"{key}:large"

    # Reading.

    def _get_session(self, session_id: str, ttl: int, data: Any = None) -> Operation[SessionMap | None]:
        key, _ = self._keys(session_id)
        fields, left = yield Batch(("HGETALL", key), ("PTTL", key))
        if not fields or left == -2:  # it expired between the two
            return None
        values: dict[str, Any] = {}
        for field, value in _pairs(fields):
            if field[:1] != _MARK:
                values[_key_of(field)] = Encoded(value)
            elif len(field) > 1:
                values[_key_of(field[1:])] = UNFETCHED
        return SessionMap(values, None, None if left < 0 else left / 1000)

    def _get(self, session_id: str, key: str) -> Operation[Any]:
        small, large = self._keys(session_id)
        field = _field_of(key)
        stored = yield Batch(("HGET", large, field), ("HGET", small, field))
        found = stored[1] if stored[0] is None else stored[0]
        return None if found is None else self.decode(found)

    def _get_map(self, session_id: str) -> Operation[dict[str, Any]]:
        keys = self._keys(session_id)
        ((small, large),) = yield Batch(READ_HASH(keys))
        found = {
            _key_of(field): self._value(field, stored)
            for fields in (small, large)
            for field, stored in _pairs(fields)
            if field[:1] != _MARK
        }
        return {key: value for key, value in found.items() if value is not MISSING}

    # Writing.

    def _create(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        if ttl <= 0:
            return not (yield from self._exists(session_id))
        keys = self._keys(session_id)
        return bool((yield from self._write(CREATE_HASH(keys, ttl, *_flat(self._fields(session.as_dict()))))))

    def _apply(self, session_id: str, session: SessionMap, ttl: int) -> Operation[bool]:
        keys = self._keys(session_id)
        changed, removed = session.changed, set() if session.cleared else session.removed
        others, merged = self._fields(changed), {}
        if not session.cleared:
            for key, value in changed.items():
                if isinstance(value, dict) and type(key) is str and (was := session.read_as(key)) is not None:
                    field = _field_of(key)
                    merged[field] = _digest(was), others.pop(field)
        renews = session.cleared or EXPIRY_KEY in changed or EXPIRY_KEY in removed
        expiry = "*" if renews else _digest(session.read_as(EXPIRY_KEY))
        rest = (len(others), *_flat(others), *self._fields(dict.fromkeys(removed)))
        while True:
            triples = [part for field, (known, value) in merged.items() for part in (field, known, value)]
            command = APPLY_HASH(keys, ttl, expiry, int(session.cleared), len(merged), *triples, *rest)
            reply = yield from self._write(command)
            if not isinstance(reply, list):
                return bool(reply)
            for field, stored in _pairs(reply):
                current = MISSING if stored is None else self._value(field, stored)
                merged[field] = _digest(stored), self.encode(session.merged_value(_key_of(field), current))

    def _update_ttl(self, session_id: str, ttl: int) -> Operation[bool]:
        keys = self._keys(session_id)
        (renewed,) = yield Batch(TOUCH_HASH(keys, ttl))
        return bool(renewed)

    # Fields and values.

    def _fields(self, data: Mapping[str, Any]) -> dict[bytes, bytes]:
        if not all(type(key) is str for key in data):  # the serializer knows what becomes of other keys
            data = self.decode(self.encode(dict(data)))
        return {_field_of(key): self.encode(value) for key, value in data.items()}

    def _value(self, field: bytes, stored: bytes) -> Any:
        try:
            return self.decode(stored)
        except DecodeError as error:
            logger.warning("The session value %r is dropped: %s", _key_of(field), error)
            return MISSING

    get_session, aget_session = both(_get_session)
    get, aget = both(_get)
    get_map, aget_map = both(_get_map)
    update_ttl, aupdate_ttl = both(_update_ttl)
    create, acreate = both(_create)
    apply, aapply = both(_apply)


def _field_of(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")  # JSON can hold half a surrogate pair


def _key_of(field: bytes) -> str:
    return field.decode("utf-8", "surrogatepass")


def _pairs(reply: Any) -> Iterable[tuple[bytes, Any]]:
    """Return the pairs of a reply: RESP3 has a type for them, RESP2 and scripts send them in a row."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def _flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    return (part for pair in fields.items() for part in pair)


def _digest(stored: bytes | None) -> str:
    """Return what ``digest()`` in the script makes of the same; nothing is stored where it is ``b""`` or ``None``."""
    return digest(stored) if stored else ""


class SessionStore(BaseRedisSessionStore):
    """The engine ``gsession_django.backends.redis_hash``."""

    storage_class = RedisHashStorage
