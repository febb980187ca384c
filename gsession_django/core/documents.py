"""A whole session in one piece, as most engines store it. Its large values are found without reading them.

``SESSION_SERIALIZER`` makes the bytes. White space follows a large JSON document; every JSON reader passes over
it (RFC 8259, section 2). It says where the large values are, so a request decodes only those that it uses. It ends in a
stamp, which is new after each write. A program that writes a session anew, as GoFrame does, drops both.
"""

import os
import struct
from collections.abc import Callable, Iterable, Mapping
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
    has_large = _has_large(pairs.values()) or (bool(pairs) and sum(map(len, encodings.values())) >= LARGE)
    if not has_large and len(data := dumps(pairs)) <= LARGE:
        return data
    document = _Document(dumps)
    if not has_large:
        document.add_run(pairs, data)
        return document.finished()
    run: dict[str, Any] = {}
    for key, value in pairs.items():
        kind = type(value)
        if kind is not Part and (kind is not str or len(value) < LARGE) and len(encodings.get(key, b"")) < LARGE:
            run[key] = value
            continue
        if run:
            document.add_run(run, dumps(run))
            run = {}
        if kind is Part:
            document.add_part(value)
        else:
            document.add_pair(key, encodings[key] if key in encodings else dumps(value))
    if run:
        document.add_run(run, dumps(run))
    return document.finished()


def _has_large(values: Iterable[Any]) -> bool:
    for value in values:  # which takes half the time of any()
        kind = type(value)
        if kind is Part or (kind is str and len(value) >= LARGE):
            return True
    return False


class _Document:
    """A large document under way.

    Args:
        dumps: encodes a value.
    """

    __slots__ = ("_begin", "_dumps", "_end", "_places", "_size", "_whole", "_words")

    def __init__(self, dumps: Callable[[Any], bytes]) -> None:
        self._dumps = dumps
        # Pairs, and what stands before each.
        self._words: list[bytes | memoryview] = []
        self._places: list[int] = []
        self._size = 0
        # Where the last word is in the session that was read, if it is a part of that.
        self._whole, self._begin, self._end = b"", 0, 0

    def add_part(self, part: Part) -> None:
        """Add a pair as it was read. Those that stood side by side are one word, which is copied at once."""
        whole, first, start, end = part.place
        if whole is not self._whole or first != self._end + 1:
            self._words += (b",", b"")
            self._whole, self._begin = whole, first
        self._words[-1] = memoryview(whole)[self._begin : end]
        self._end = end
        self._size += 1 + end - first
        self._places += (start - 1 - first, self._size - end + start, self._size)

    def add_run(self, pairs: Mapping[str, Any], data: bytes) -> None:
        """Add pairs that are encoded as `data` together, but one by one if there may be a large value among them."""
        if len(data) >= LARGE and any(isinstance(value, _CONTAINERS) for value in pairs.values()):
            for key, value in pairs.items():
                self.add_pair(key, self._dumps(value))
            return
        self._words += (b",", data[1:-1])
        self._size += len(data) - 1
        self._whole = b""

    def add_pair(self, key: str, encoding: bytes) -> None:
        """Add one pair."""
        name = self._dumps(key)
        self._words += (b",", b"%b:%b" % (name, encoding))
        self._size += 2 + len(name) + len(encoding)
        self._whole = b""
        if len(encoding) >= LARGE and len(name) <= _LONGEST_NAME:
            self._places += (len(name), self._size - len(encoding), self._size)

    def finished(self) -> bytes:
        """Return the document, and the white space behind it."""
        self._words[0] = b"{"
        size = self._size + 1
        return b"".join((*self._words, b"}", _blanks(self._places, size) if size > LARGE else b""))


def _are_text(keys: Iterable[Any]) -> bool:
    try:
        "".join(keys)
    except TypeError:
        return False
    return True


def _blanks(places: list[int], size: int) -> bytes:
    """Return the white space for a document of this size: none for one too large to have places."""
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
    """Return the stamp of a session, which no other write of it has; ``None`` if there is none."""
    return data[-_STAMP_SIZE:] if len(data) > LARGE and _size_of(data) else None


def _size_of(data: bytes) -> int:
    """Return the size of the document that begins `data`, if white space of ours is behind it, and 0 if not."""
    digits = data[-_STAMP_SIZE:].translate(_DIGITS)
    if not digits.isdigit():
        return 0
    size = int(digits[:16], 4)
    return size if data[size - 1 : size] == b"}" else 0


def _with_parts(data: bytes) -> dict[str, Any] | None:
    """Return the session of a document that says where its large values are; ``None`` for any other."""
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
    # Another program may have changed the document and left the white space.
    return pairs | parts if {*map(pairs.get, parts)} <= {0} else None
