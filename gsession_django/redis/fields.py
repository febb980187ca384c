"""A session as a Redis hash: what its fields are called, and what they hold."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Final

from gsession_django.redis.commands import digest
from gsession_django.serializers import logger
from gsession_django.session_map import UNFETCHED, Encoded

MARK: Final = b"\xff"
"""No user's key begins with this byte: it is in no UTF-8. As no byte is greater, what begins with it is greater than
any key. Alone it names the field that keeps a session without keys alive; before a key, one that says that the value
is among the large ones.
"""


def field_of(key: str) -> bytes:
    """Return the field that a key's value is in."""
    return key.encode("utf-8", "surrogatepass")  # JSON can hold half a surrogate pair


def key_of(field: bytes) -> str:
    """Return the key whose value is in a field."""
    return field.decode("utf-8", "surrogatepass")


def pairs(reply: Any) -> Iterable[tuple[bytes, Any]]:
    """Return the pairs of a reply: RESP3 has a type for them, RESP2 and scripts send them in a row."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Return fields and values in a row, as commands take them."""
    return chain.from_iterable(fields.items())


def values_of(stored: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return what a SessionMap is made of, from the first hash: its values, and which are in the second.

    A field that no key of ours has is left out, and logged.
    """
    try:
        values: dict[str, Any] = {field.decode(): Encoded(value) for field, value in stored.items() if field < MARK}
    except UnicodeDecodeError:  # a key is odd
        values = {}
        for field, value in stored.items():
            if field < MARK and (key := _key_or_none(field)) is not None:
                values[key] = Encoded(value)
    if len(values) + (MARK in stored) < len(stored):
        for field in stored:
            if field > MARK and (key := _key_or_none(field)) is not None:
                values[key] = UNFETCHED
    return values


def _key_or_none(field: bytes) -> str | None:
    try:
        return key_of(field.removeprefix(MARK))
    except UnicodeDecodeError:
        logger.warning("The session field %r is dropped: it is no key.", field)
        return None


def digest_of(stored: bytes | None) -> str:
    """Return what ``digest()`` in the script makes of the same; nothing is stored where it is ``b""`` or ``None``."""
    return digest(stored) if stored else ""
