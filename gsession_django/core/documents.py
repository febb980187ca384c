"""A whole session in one piece, as most engines store it, and its large values found without reading them.

``SESSION_SERIALIZER`` makes the bytes. Behind a large JSON document comes white space, which every JSON reader passes
over (RFC 8259, section 2). It says where the large values are, so a request decodes only those that it uses. It ends in
a stamp, which is another one after each write. A program that writes a session anew, as GoFrame does, drops both.
"""

import os
import struct
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gsession_django.core.values import Part
from gsession_django.serializers import DecodeError, KeptJSONSerializer, current, decode

LARGE: Final = 2000
"""Bytes from which on a document has a stamp, and a value a place."""

# The white space: for each large value a place, which is the size of its name and where its bytes begin and end. Then
# the stamp: the size of the document, and what is random. Each byte is four digits in base 4, and each digit one of the
# four characters that are white space.
_PLACE: Final = "HII"
_STAMP: Final = "I8s"
_PLACE_SIZE, _STAMP_SIZE = (4 * struct.calcsize(f">{fields}") for fields in (_PLACE, _STAMP))
_LONGEST_NAME: Final = 2**16 - 1
_LARGEST: Final = 2**32 - 1
_BLANKS: Final = b" \t\n\r"
_DIGITS: Final = bytes(b"0123x"[_BLANKS.find(byte)] for byte in range(256))
# The first and the second character for a digit in hexadecimal.
_FIRST, _SECOND = (
    bytes.maketrans(b"0123456789abcdef", bytes(_BLANKS[digit >> shift & 3] for digit in range(16))) for shift in (2, 0)
)
_CONTAINERS: Final = (dict, list, tuple)


def encode_pairs(pairs: Mapping[str, Any], encodings: Mapping[str, bytes]) -> bytes:
    """Return a whole session as bytes: what :func:`gsession_django.serializers.encode` returns, and white space.

    Args:
        pairs: the session. A value may be a :class:`~gsession_django.core.values.Part`.
        encodings: what ``encode()`` returned for some of the values, by key.
    """
    serializer = current()
    dumps = serializer.dumps
    if not isinstance(serializer, KeptJSONSerializer) or not _are_text(pairs):
        decoded = {key: decode(value.encoded()) if type(value) is Part else value for key, value in pairs.items()}
        return dumps(decoded)
    if sum(map(len, encodings.values())) < LARGE and not _has_large(pairs.values()):
        data = dumps(pairs)
        if len(data) <= LARGE:
            return data
        if not any(isinstance(value, _CONTAINERS) for value in pairs.values()):
            return data + _blanks([], len(data))
    words: list[bytes | memoryview] = []
    places: list[int] = []
    size = 0
    run: dict[str, Any] = {}
    for key, value in pairs.items():
        if type(value) is Part:
            pair, name_size = value.pair()
        elif key in encodings or isinstance(value, _CONTAINERS) or (type(value) is str and len(value) >= LARGE):
            name = dumps(key)
            name_size = len(name)
            pair = memoryview(b"%b:%b" % (name, encodings[key] if key in encodings else dumps(value)))
        else:
            run[key] = value
            continue
        if run:
            words += (b",", dumps(run)[1:-1])
            size += 1 + len(words[-1])
            run = {}
        words += (b",", pair)
        start = size + name_size + 2
        size += 1 + len(pair)
        if size - start >= LARGE and name_size <= _LONGEST_NAME:
            places += (name_size, start, size)
    if run:
        words += (b",", dumps(run)[1:-1])
        size += 1 + len(words[-1])
    words[0] = b"{"
    words.append(b"}")
    size += 1
    if size > LARGE:
        words.append(_blanks(places, size))
    return b"".join(words)


def _has_large(values: Iterable[Any]) -> bool:
    for value in values:  # which takes half the time of any()
        kind = type(value)
        if kind is Part or (kind is str and len(value) >= LARGE):
            return True
    return False


def _are_text(keys: Iterable[Any]) -> bool:
    try:
        "".join(keys)
    except TypeError:
        return False
    return True


def _blanks(places: list[int], size: int) -> bytes:
    """Return what comes behind a document of this size: nothing if it is too large to say where anything is."""
    if size > _LARGEST:
        return b""
    digits = struct.pack(f">{_PLACE * (len(places) // 3)}{_STAMP}", *places, size, os.urandom(8)).hex().encode()
    blanks = bytearray(2 * len(digits))
    blanks[::2], blanks[1::2] = digits.translate(_FIRST), digits.translate(_SECOND)
    return bytes(blanks)


def decode_pairs(data: bytes) -> dict[str, Any]:
    """Return a whole session. A large value may be a :class:`~gsession_django.core.values.Part`.

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
    return data[-_STAMP_SIZE:] if len(data) > LARGE and _size_of(data) else None


def _size_of(data: bytes) -> int:
    """Return the size of the document that begins `data`, if white space of ours is behind it, and 0 if not."""
    digits = data[-_STAMP_SIZE:].translate(_DIGITS)
    if not digits.isdigit():
        return 0
    size = int(digits[:16], 4)
    return size if data[size - 1 : size] == b"}" else 0


def _with_parts(data: bytes) -> dict[str, Any] | None:
    """Return the session of a document that says where its large values are, and ``None`` of any other."""
    if not (size := _size_of(data)):
        return None
    digits = data[size:-_STAMP_SIZE].translate(_DIGITS)
    parts: dict[str, Part] = {}
    pieces: list[bytes] = []
    at = 0
    try:
        places = int(digits or b"0", 4).to_bytes(len(digits) // 4)
        for name_size, start, end in struct.iter_unpack(f">{_PLACE}", places):
            first = start - 1 - name_size
            name = data[first + 1 : start - 2]
            key = decode(b'"%b"' % name) if b"\\" in name else name.decode()
            parts[key] = Part(data, first, start, end)
            pieces += (data[at:start], b"0")
            at = end
        pieces.append(data[at:size])
        pairs: dict[str, Any] = decode(b"".join(pieces))
    except (ValueError, OverflowError, struct.error):
        return None
    # Somebody else may have changed the document, and left what is behind it.
    return pairs | parts if {*map(pairs.get, parts)} <= {0} else None
