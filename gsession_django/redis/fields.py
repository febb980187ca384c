"""A session as a Redis hash: what its fields are called, and what they hold."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from gsession_django.core.values import MISSING, UNFETCHED, Encoded
from gsession_django.redis.commands import digest
from gsession_django.serializers import DecodeError, decode, keeps_text, logger

MARK: Final = b"\xff"
"""No user's key begins with this byte, as UTF-8 does not use it. It is the greatest byte, so anything that begins with
it is greater than any key or text. Alone, it names the field that keeps a session without keys alive. Before a key, it
names the field that tells when a large value was written. Before a value, it says that the value is not text.
"""


def field_of(key: str) -> bytes:
    """Return the field that a key's value is in; ``TypeError`` for a key that is not text."""
    if not isinstance(key, str):
        raise TypeError(
            f"The session key {key!r} is not text. The engine 'gsession_django.backends.redis_hash' names a field of "
            "its hash by each key. Use text, or the engine 'gsession_django.backends.redis'."
        )
    return _bytes_of(key)


def key_of(field: bytes) -> str:
    """Return the key whose value is in a field."""
    return _text_of(field)


def stored_of(key: str, value: Any, encoding_of: Callable[[str, Any], bytes]) -> bytes:
    """Return what a field holds for a value: the text itself, or MARK and the encoding of anything else.

    Args:
        key: the key of the value.
        value: the value.
        encoding_of: returns the encoding of the value, given both.

    Redis keeps a small hash in one piece, in half of the memory, if no field holds more than 64 bytes
    (``hash-max-listpack-value``). Django's ``_auth_user_hash`` is a text of 64, which JSON makes 66 of.
    A serializer other than Django's own is given text too.
    """
    return _bytes_of(value) if isinstance(value, str) and keeps_text() else MARK + encoding_of(key, value)


def stored_as(encoded: bytes | None) -> bytes | None:
    """Return the same for the value that has this encoding; ``None`` where there is none, or ``b""``."""
    if not encoded:
        return None
    if encoded[:1] == b'"' and keeps_text():
        with suppress(DecodeError):
            return _bytes_of(decode(encoded))
    return MARK + encoded


def _bytes_of(text: str) -> bytes:
    return str.encode(text, "utf-8", "surrogatepass")  # JSON can hold half a surrogate pair


def _text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def pairs(reply: Any) -> Iterable[tuple[bytes, Any]]:
    """Return the pairs of a reply: RESP3 has a type for them, RESP2 and scripts send them in a row."""
    return reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)


def flat(fields: Mapping[bytes, bytes]) -> Iterator[bytes]:
    """Return fields and values in a row, as commands take them."""
    return chain.from_iterable(fields.items())


def values_of(stored: Mapping[bytes, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what a SessionMap is made of, from the first hash: its values, and tokens of those in the second.

    A field whose name is not a key is logged, and left out.
    """
    tokens: dict[str, bytes] = {}
    try:
        values: dict[str, Any] = {
            field.decode(): value.decode() if value < MARK else Encoded(value[1:])
            for field, value in stored.items()
            if field < MARK
        }
    except UnicodeDecodeError:  # a key or a text is odd
        values = {}
        for field, value in stored.items():
            if field < MARK and (key := _key_or_none(field)) is not None:
                values[key] = value_of(key, value)
        values = {key: value for key, value in values.items() if value is not MISSING}
    if len(values) + (MARK in stored) < len(stored):
        for field in stored:
            if field > MARK and (key := _key_or_none(field)) is not None:
                values[key] = UNFETCHED
                tokens[key] = MARK + stored[field]
    return values, tokens


def value_of(key: str, stored: bytes) -> Any:
    """Return the value that a field holds, or :class:`Encoded` for one that is no text.

    Anything else is logged, and ``MISSING``.
    """
    try:
        return _text_of(stored) if stored < MARK else Encoded(stored[1:])
    except UnicodeDecodeError:
        logger.warning("The session value %r is dropped: it is neither text nor encoded.", key)
        return MISSING


def _key_or_none(field: bytes) -> str | None:
    try:
        return key_of(field.removeprefix(MARK))
    except UnicodeDecodeError:
        logger.warning("The session field %r is dropped: it is no key.", field)
        return None


def digest_of(stored: bytes | None) -> str:
    """Return what ``digest()`` in the script makes of the same."""
    return "" if stored is None else digest(stored)
