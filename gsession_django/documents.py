"""A whole session in one piece, as most engines store it, and its large values found without reading them.

``SESSION_SERIALIZER`` makes the bytes. Behind a large JSON document comes white space, which every JSON reader passes
over (RFC 8259, section 2). It says where the large values are, so a request decodes only those that it uses. It ends in
a stamp, which is another one after each write. A program that writes a session anew, as GoFrame does, drops both.
"""

import os
from collections.abc import Callable, Mapping
from itertools import groupby
from typing import Any, Final

from gsession_django.serializers import DecodeError, KeptJSONSerializer, current, decode
from gsession_django.values import Part

LARGE: Final = 2000
"""Bytes from which on a document has a stamp, and a value a place."""

# The white space: for each large value a place, which is the length of its name and where its bytes begin and end. Then
# the stamp: the size of the document, and what is random. Each digit of a number in base 4 is one of four characters.
_BLANKS: Final = b" \t\n\r"
_DIGITS: Final = bytes(b"0123x"[_BLANKS.find(byte)] for byte in range(256))
_BLANKS_OF: Final = [bytes(_BLANKS[byte >> shift & 3] for shift in (6, 4, 2, 0)) for byte in range(256)]
_RANDOM_BLANKS: Final = bytes(_BLANKS[byte & 3] for byte in range(256))
# The characters of each.
_NAME, _OFFSET, _RANDOM = 8, 20, 32
_PLACE: Final = _NAME + 2 * _OFFSET
_STAMP: Final = _OFFSET + _RANDOM
_LONGEST_NAME: Final = 4**_NAME - 1


# Bytes of an encoding that takes longer to write once more than to put between two others.
_WORTH_KEEPING: Final = 100


def encode_pairs(pairs: Mapping[str, Any], encodings: Mapping[str, bytes]) -> bytes:
    """Return a whole session as bytes: what :func:`gsession_django.serializers.encode` returns, and white space.

    Args:
        pairs: the session. A value may be a :class:`~gsession_django.values.Part`.
        encodings: what ``encode()`` returned for some of the values, by key.
    """
    serializer = current()
    if not isinstance(serializer, KeptJSONSerializer) or not all(type(key) is str for key in pairs):
        whole = {key: decode(bytes(value.view())) if type(value) is Part else value for key, value in pairs.items()}
        return serializer.dumps(whole)
    dumps = serializer.dumps
    apart: dict[str, bytes | memoryview] = {}
    for key, value in pairs.items():
        if type(value) is Part:
            apart[key] = value.view()
        elif key in encodings and len(encodings[key]) > _WORTH_KEEPING:
            apart[key] = encodings[key]
        elif type(value) is str and len(value) >= LARGE:
            apart[key] = dumps(value)
    if not apart:
        data = dumps(pairs)
        if len(data) <= LARGE:
            return data
    for key, value in pairs.items():
        if key not in apart and isinstance(value, dict | list | tuple):
            apart[key] = dumps(value)
    return _joined(pairs, apart, dumps) if apart else data + _stamp(len(data))


def _joined(pairs: Mapping[str, Any], apart: Mapping[str, bytes | memoryview], dumps: Callable[[Any], bytes]) -> bytes:
    """Return a session, some of whose values are encoded already."""
    words: list[bytes | memoryview] = []
    places: list[bytes] = []
    size = 0
    for is_apart, keys in groupby(pairs, apart.__contains__):
        if not is_apart:
            words += b",", dumps({key: pairs[key] for key in keys})[1:-1]
            size += 1 + len(words[-1])
            continue
        for key in keys:
            name, encoding = dumps(key), apart[key]
            words += b",", name, b":", encoding
            start = size + len(name) + 2
            size = start + len(encoding)
            if len(encoding) >= LARGE and len(name) <= _LONGEST_NAME:
                places.append(_blank(len(name), _NAME) + _blank(start, _OFFSET) + _blank(size, _OFFSET))
    words[0] = b"{"
    words.append(b"}")
    size += 1
    if size > LARGE:
        words += *places, _stamp(size)
    return b"".join(words)


def decode_pairs(data: bytes) -> dict[str, Any]:
    """Return a whole session. A large value may be a :class:`~gsession_django.values.Part`.

    Raises :class:`DecodeError` as :func:`gsession_django.serializers.decode` does, and when `data` is not the encoding
    of a dict.
    """
    pairs = _with_parts(data) if len(data) > LARGE else None
    if pairs is None:
        pairs = decode(data)
    if not isinstance(pairs, dict):
        raise DecodeError(f"it holds a {type(pairs).__name__}, and a session is a dict")
    return pairs


def stamp_of(data: bytes) -> bytes | None:
    """Return what no other write of a session has at its end, or ``None`` if this one has nothing of the kind."""
    return data[-_STAMP:] if len(data) > LARGE and _size_of(data) else None


def _stamp(size: int) -> bytes:
    return _blank(size, _OFFSET) + os.urandom(_RANDOM).translate(_RANDOM_BLANKS)


def _blank(number: int, size: int) -> bytes:
    return b"".join([_BLANKS_OF[byte] for byte in number.to_bytes(size // 4)])


def _size_of(data: bytes) -> int:
    """Return the size of the document that begins `data`, if white space of ours is behind it, and 0 if not."""
    digits = data[-_STAMP:].translate(_DIGITS)
    if not digits.isdigit():
        return 0
    size = int(digits[:_OFFSET], 4)
    return size if data[size - 1 : size] == b"}" else 0


def _with_parts(data: bytes) -> dict[str, Any] | None:
    """Return the session of a document that says where its large values are, and ``None`` of any other."""
    if not (size := _size_of(data)):
        return None
    digits = data[size:-_STAMP].translate(_DIGITS)
    pieces: list[bytes] = []
    parts: dict[str, Part] = {}
    at = 0
    try:
        for place in range(0, len(digits), _PLACE):
            name, first, last = (place + length for length in (_NAME, _NAME + _OFFSET, _PLACE))
            start, end = int(digits[name:first], 4), int(digits[first:last], 4)
            key = decode(data[start - 1 - int(digits[place:name], 4) : start - 1])
            pieces += data[at:start], b"0"
            parts[key] = Part(data, start, end)
            at = end
        pieces.append(data[at:size])
        pairs: dict[str, Any] = decode(b"".join(pieces))
        # Somebody else may have changed the document, and left what is behind it.
        return None if any(pairs.get(key) != 0 for key in parts) else pairs | parts
    except (ValueError, TypeError):
        return None
