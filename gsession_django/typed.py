"""TypedSerializer, for the Python types that JSON does not have.

Import it as ``gsession_django.serializers.TypedSerializer``: that module works without msgspec, and this one does not.
"""

import json
import math
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import Promise

try:
    import msgspec
    from msgspec.msgpack import Ext
except ImportError as error:
    raise ImproperlyConfigured(
        "SESSION_SERIALIZER = 'gsession_django.serializers.TypedSerializer' needs the package msgspec, which is not "
        'installed: pip install "gsession-django[typed]"'
    ) from error

# Marks MessagePack. No value in MessagePack or JSON begins with this byte.
_PACKED: Final = b"\xc1"


class TypedSerializer:
    """A ``SESSION_SERIALIZER`` for types that Django's ``JSONSerializer`` refuses or changes.

    It writes a value of JSON's types as JSON, and reads what ``JSONSerializer`` wrote. It writes any other value as a
    byte 0xC1 and MessagePack with extension types.

    These types come back unchanged, at any depth, and as keys of a dict where Python allows it:

    * ``datetime``, naive or aware (with a ``zoneinfo`` zone or a fixed offset; any other ``tzinfo`` becomes its
      offset), ``date``, ``time``, ``timedelta``;
    * ``Decimal`` digit by digit, ``int`` of any size, ``float`` with NaN and the infinities, ``bool``, ``None``;
    * ``str``, ``bytes``, ``UUID``, ``list``, ``tuple``, ``set``, ``frozenset``, ``dict``.

    A subclass comes back as its base: ``SafeString`` and ``StrEnum`` as ``str``, ``IntEnum`` as ``int``, a named tuple
    as ``tuple``, ``OrderedDict`` as ``dict``. A lazy translation comes back as its text.

    Equal values make equal bytes: it sorts sets, and keeps the order of dicts. One object serves all threads.
    """

    deterministic = True
    writes_text_as_json = True

    def dumps(self, obj: Any) -> bytes:
        """Return `obj` as bytes.

        Raises ``TypeError`` for a value of another type, ``ValueError`` for one that contains itself, and
        ``RecursionError`` for one that is nested deeper than the rest of the interpreter's recursion limit.
        """
        odd: Odd = []
        try:
            plain = _plain(obj, odd)
            return _PACKED + _pack(plain) if odd else _json(plain)
        except RecursionError:
            json.dumps(obj, default=str, skipkeys=True)  # raises ValueError for a circle
            raise

    def loads(self, data: bytes) -> Any:
        """Return the value that :meth:`dumps` or Django's ``JSONSerializer`` wrote as `data`.

        Raises ``ValueError``, ``TypeError`` or msgspec's ``MsgspecError`` for anything else.
        """
        if data[:1] == _PACKED:
            return _unpack(memoryview(data)[1:])
        try:
            return _read_json(data)
        except (msgspec.MsgspecError, UnicodeError):  # NaN and half surrogate pairs, which JSONSerializer writes
            return json.loads(data.decode())


# freezegun replaces the names of these classes with subclasses later, so take the methods now.
_combine, _date_of, _timetz_of = datetime.combine, datetime.date, datetime.timetz
_datetime_text, _date_text, _time_text = datetime.isoformat, date.isoformat, time.isoformat
_datetime_in, _date_in, _time_in = datetime.fromisoformat, date.fromisoformat, time.fromisoformat


# Writing.

Odd = list[type]
"""Collects the types in a value that JSON does not have."""

_write_json: Final = msgspec.json.Encoder().encode
_write: Final = msgspec.msgpack.Encoder().encode

# Values to write as they are. Floats are not among them: JSON has no NaN, and no infinity.
_AS_IS: Final = frozenset({str, int, bool, type(None)})

# The extension types. Stored sessions contain these numbers, so a number never gets another meaning.
_INT, _TEXT, _DECIMAL, _UUID, _DATETIME, _DATE, _TIME, _TIMEDELTA, _TUPLE, _SET, _FROZENSET, _DICT = range(12)


def _json(plain: Any) -> bytes:
    try:
        return _write_json(plain)
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(plain, separators=(",", ":")).encode()


def _pack(plain: Any) -> bytes:
    try:
        return _write(plain)
    except (UnicodeEncodeError, OverflowError):
        return _write(_without_extremes(plain))


def _without_extremes(plain: Any) -> Any:
    """Replace text and integers that MessagePack cannot hold."""
    if type(plain) is str and not plain.isascii():
        data = plain.encode("utf-8", "surrogatepass")
        return plain if data.decode("utf-8", "replace") == plain else Ext(_TEXT, data)
    if type(plain) is int and not -(2**63) <= plain < 2**64:
        return Ext(_INT, str(plain).encode())
    if type(plain) is list:
        return [_without_extremes(item) for item in plain]
    if type(plain) is dict:
        keys, items = map(_without_extremes, plain), map(_without_extremes, plain.values())
        return _dict_of(list(zip(keys, items, strict=True)))
    return plain


def _plain(value: Any, odd: Odd) -> Any:
    """Return a value that msgspec can write: `value` itself, if it can."""
    kind = type(value)
    return value if kind in _AS_IS else (_WRITERS.get(kind) or _writer_of(value))(value, odd)


# These two call the next writer themselves, to use one call a level. They read a copy, as another thread may change the
# original.


def _list(value: list[Any], odd: Odd) -> Any:
    items, same = value.copy(), True
    for index, item in enumerate(items):
        if type(item) not in _AS_IS:
            plain = (_WRITERS.get(type(item)) or _writer_of(item))(item, odd)
            if plain is not item:
                items[index], same = plain, False
    return value if same else items


def _dict(value: dict[Any, Any], odd: Odd) -> Any:
    items, same = value.copy(), True
    for key, item in items.items():
        if type(key) is not str:
            return _dict_of_odd_keys(value.copy(), odd)
        if type(item) not in _AS_IS:
            plain = (_WRITERS.get(type(item)) or _writer_of(item))(item, odd)
            if plain is not item:
                items[key], same = plain, False
    return value if same else items


def _dict_of_odd_keys(value: dict[Any, Any], odd: Odd) -> Any:
    pairs = [(_plain(key, odd), _plain(item, odd)) for key, item in value.items()]
    odd += [type(key) for key, _ in pairs if type(key) is not str]
    return _dict_of(pairs)


def _dict_of(pairs: list[tuple[Any, Any]]) -> Any:
    try:
        return dict(pairs)
    except TypeError:  # an extension type cannot be a key
        return Ext(_DICT, _pack([list(pair) for pair in pairs]))


def _float(value: float, odd: Odd) -> Any:
    if not math.isfinite(value):
        odd.append(float)
    return value


def _bytes(value: bytes, odd: Odd) -> Any:
    odd.append(bytes)
    return value


def _decimal(value: Decimal, odd: Odd) -> Any:
    odd.append(Decimal)
    return Ext(_DECIMAL, Decimal.__str__(value).encode())


def _uuid(value: UUID, odd: Odd) -> Any:
    odd.append(UUID)
    return Ext(_UUID, value.bytes)


def _datetime(value: datetime, odd: Odd) -> Any:
    odd.append(datetime)
    if value.tzinfo is UTC and not value.fold:
        return value  # MessagePack has these
    return Ext(_DATETIME, (_datetime_text(value) + _details(value)).encode())


def _date(value: date, odd: Odd) -> Any:
    odd.append(date)
    return Ext(_DATE, _date_text(value).encode())


def _time(value: time, odd: Odd) -> Any:
    odd.append(time)
    return Ext(_TIME, (_time_text(value) + _details(value)).encode())


def _details(value: datetime | time) -> str:
    """Return the zone, as in RFC 9557, and the fold: ISO 8601 has no place for them."""
    zone, fold = value.tzinfo, "[fold=1]" if value.fold else ""
    if zone is None or type(zone) is timezone:
        return fold
    if isinstance(zone, ZoneInfo) and zone.key is not None:
        return f"[{zone.key}]{fold}"
    if value.utcoffset() is None:
        raise _unencodable(zone)
    return fold


def _timedelta(value: timedelta, odd: Odd) -> Any:
    odd.append(timedelta)
    return Ext(_TIMEDELTA, _write([value.days, value.seconds, value.microseconds]))


def _tuple(value: Iterable[Any], odd: Odd) -> Any:
    odd.append(tuple)
    return Ext(_TUPLE, _pack([_plain(item, odd) for item in value]))


def _set(value: Iterable[Any], odd: Odd) -> Any:
    odd.append(set)
    return Ext(_SET, _sorted(value, odd))


def _frozenset(value: Iterable[Any], odd: Odd) -> Any:
    odd.append(frozenset)
    return Ext(_FROZENSET, _sorted(value, odd))


def _sorted(items: Iterable[Any], odd: Odd) -> bytes:
    packed = {_pack(_plain(item, odd)) for item in items}
    return _write([msgspec.Raw(item) for item in sorted(packed)])


_WRITERS: Final[dict[type, Callable[[Any, Odd], Any]]] = {
    dict: _dict,
    list: _list,
    float: _float,
    bytes: _bytes,
    Decimal: _decimal,
    UUID: _uuid,
    datetime: _datetime,
    date: _date,
    time: _time,
    timedelta: _timedelta,
    tuple: _tuple,
    set: _set,
    frozenset: _frozenset,
}
# Converters from a subclass to its base, for writers that need the base.
_BASES: Final[dict[type, Callable[[Any], Any]]] = {
    Promise: str,
    str: str.__str__,
    int: int.__index__,
    float: float.__float__,
    bytes: bytes,
    datetime: lambda value: _combine(_date_of(value), _timetz_of(value)),
    dict: lambda value: dict(value.items()),
    list: list,
}


def _writer_of(value: Any) -> Callable[[Any, Odd], Any]:
    """Return a writer for a value of a subclass: that of its first base with a writer."""
    for base in type(value).__mro__:
        if base in _BASES:
            make = _BASES[base]
            return lambda value, odd: _plain(make(value), odd)
        if base in _WRITERS:
            return _WRITERS[base]
    raise _unencodable(value)


def _unencodable(value: object) -> TypeError:
    kind = type(value)
    return TypeError(
        f"TypedSerializer cannot store a {kind.__module__}.{kind.__qualname__}. Store a value to make it from: the "
        "primary key of a model object, or the value of an enum member."
    )


# Reading. Bytes that the writers above cannot have written raise an error.


def _read_text(data: memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


def _read_int(data: memoryview) -> int:
    return int(str(data, "ascii"))


def _read_decimal(data: memoryview) -> Decimal:
    text = str(data, "ascii")
    value = Decimal(text)
    if value.is_nan() and str(value) != text:  # a context may make a NaN of anything
        raise ValueError(f"{text!r} is not a Decimal")
    return value


def _read_uuid(data: memoryview) -> UUID:
    return msgspec.convert(data, UUID)


def _read_datetime(data: memoryview) -> datetime:
    text, details = _split(str(data, "ascii"))
    return _datetime_in(text).replace(**details)


def _read_date(data: memoryview) -> date:
    return _date_in(str(data, "ascii"))


def _read_time(data: memoryview) -> time:
    text, details = _split(str(data, "ascii"))
    return _time_in(text).replace(**details)


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return the part in ISO 8601, and the details behind it as arguments of ``replace()``."""
    details: dict[str, Any] = {}
    while text[-1:] == "]":
        text, _, detail = text[:-1].rpartition("[")
        details |= {"fold": 1} if detail == "fold=1" else {"tzinfo": ZoneInfo(detail)}
    return text, details


def _read_timedelta(data: memoryview) -> timedelta:
    return timedelta(*msgspec.msgpack.decode(data, type=tuple[int, int, int]))


def _read_items(data: memoryview) -> list[Any]:
    items = _unpack(data)
    if type(items) is not list:
        raise TypeError(f"a {type(items).__name__} stands where a list should")
    return items


def _read_tuple(data: memoryview) -> tuple[Any, ...]:
    return tuple(_read_items(data))


def _read_set(data: memoryview) -> set[Any]:
    items = _read_items(data)
    value = set(items)
    if len(value) != len(items):
        raise ValueError("a set has an item twice")
    return value


def _read_frozenset(data: memoryview) -> frozenset[Any]:
    return frozenset(_read_set(data))


def _read_dict(data: memoryview) -> dict[Any, Any]:
    return dict(msgspec.convert(_read_items(data), list[tuple[Any, Any]]))


_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    _INT: _read_int,
    _TEXT: _read_text,
    _DECIMAL: _read_decimal,
    _UUID: _read_uuid,
    _DATETIME: _read_datetime,
    _DATE: _read_date,
    _TIME: _read_time,
    _TIMEDELTA: _read_timedelta,
    _TUPLE: _read_tuple,
    _SET: _read_set,
    _FROZENSET: _read_frozenset,
    _DICT: _read_dict,
}


def _read_extension(code: int, data: memoryview) -> Any:
    if code not in _READERS:
        raise ValueError(f"TypedSerializer does not write the extension type {code}")
    return _READERS[code](data)


_read_json: Final = msgspec.json.Decoder().decode
_unpack: Final = msgspec.msgpack.Decoder(ext_hook=_read_extension).decode
