"""Values of a session: what stands for one, when two are the same, which part can be stored, and how they merge."""

import copy
from typing import Any, Final

from gsession_django.serializers import decode, encode, is_deterministic


class Sentinel:
    """A module constant that copies and pickles as itself.

    Args:
        name: the constant's name in the module that defines it, here.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name


UNFETCHED: Final = Sentinel("UNFETCHED")
"""A value that is in the session but still in the storage: it is fetched when first asked for."""
MISSING: Final = Sentinel("MISSING")
"""No value: the key is not in the session."""
UNKNOWN: Final = Sentinel("UNKNOWN")
"""A value that may be there or not: nobody has looked."""


class Encoded(bytes):
    """A value as it is stored: a SessionMap decodes it when it is first used."""

    __slots__ = ()


class Canonical(Encoded):
    """One that :func:`gsession_django.serializers.encode` made in this process, rather than another program."""

    __slots__ = ()


class Part:
    """A value that was read as a part of a whole session: where it is among the session's bytes.

    Args:
        whole: the bytes of the session.
        first: where the name of its pair begins.
        start, end: where its encoding begins, and ends.
    """

    __slots__ = ("place",)

    def __init__(self, whole: bytes, first: int, start: int, end: int) -> None:
        self.place = whole, first, start, end

    def encoded(self) -> Encoded:
        whole, _, start, end = self.place
        return Encoded(memoryview(whole)[start:end])


def encoded(value: Any) -> Encoded | None:
    """Return the encoding of a value that is not decoded yet; ``None`` of any other."""
    if type(value) is Part:
        return value.encoded()
    return value if isinstance(value, Encoded) else None


SCALARS: Final = frozenset({str, int, float, bool, bytes, type(None)})
"""Values of these types cannot be changed in place, so handing one out needs no watching."""
PLAIN: Final = SCALARS - {float}
"""Of these, two values are the same if they are equal and of one type. (Not so floats: 0.0 == -0.0.)"""
NEVER_ENCODED: Final = (SCALARS - {bytes}) | {Sentinel}
"""Every serializer takes these, and what a sentinel stands for is not encoded. (JSON takes no bytes.)"""
PENDING: Final = frozenset({Encoded, Canonical, Part, Sentinel})
"""The request never sees a value of these types."""


def same_encoding(one: bytes, other: bytes, trusting: bool) -> bool:
    """Return whether two encodings stand for the same value.

    A deterministic serializer gives equal values equal bytes. Any other (one that encrypts, or signs with a timestamp,
    or pickles) is asked what the bytes decode to.

    Args:
        one, other: what :func:`gsession_django.serializers.encode` returned.
        trusting: as for :func:`alike`.
    """
    if one == other:
        return True
    if is_deterministic():
        return False
    return alike(decode(one), decode(other), trusting)


def same(one: Any, other: Any) -> bool:
    """Return whether two values are the same once they are stored."""
    if is_deterministic():
        return encode(one) == encode(other)
    return alike(one, other)


def alike(one: Any, other: Any, trusting: bool = False) -> bool:
    """Return whether two values have the same types and the same content, at any depth.

    Args:
        trusting: whether an object's own ``__eq__`` may say that it is the same. It does not see everything (Django's
            models compare primary keys), but it also ignores what reading an object changes, such as cached relations.
    """
    try:
        return _alike(one, other, trusting)
    except RecursionError:
        return False


def _alike(one: Any, other: Any, trusting: bool) -> bool:
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind in PLAIN:
        return bool(one == other)
    if kind is float:
        return repr(one) == repr(other)  # 0.0 is not -0.0, and nan is nan
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            key in other and _alike(value, other[key], trusting) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(_alike(*pair, trusting) for pair in zip(one, other, strict=True))
    if isinstance(one, set | frozenset):
        return bool(one == other)
    return (trusting and _equal(one, other)) or _alike_objects(one, other, trusting)


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array, for one, compares to an array
        return False


def _alike_objects(one: Any, other: Any, trusting: bool) -> bool:
    """Compare what pickle would store of two objects of one type."""
    try:
        parts = [value.__reduce_ex__(4) for value in (one, other)]
    except Exception:
        return False
    if isinstance(parts[0], str):
        return bool(parts[0] == parts[1])
    # Items of a list or dict subclass come as iterators.
    first, second = (tuple(list(part) if hasattr(part, "__next__") else part for part in whole) for whole in parts)
    return _alike(first, second, trusting)


def storable(value: Any, base: Any, above: frozenset[int] = frozenset()) -> Any:
    """Return `value` with every part that cannot be encoded as it is in `base`; ``MISSING`` if it is not there either.

    A dict is taken apart by its keys. Anything else that cannot be encoded is replaced as a whole, as parts of a list
    have no name by which to find what they were.

    Args:
        value: what the request has.
        base: what is stored, or ``MISSING``.
        above: the ids of the dicts that `value` is in: one that contains itself has no end.
    """
    if id(value) in above:
        return base
    if is_encodable(value):
        return value
    if not isinstance(value, dict):
        return base
    known, above = base if isinstance(base, dict) else {}, above | {id(value)}
    parts = {key: storable(part, known.get(key, MISSING), above) for key, part in value.copy().items()}
    result = {key: part for key, part in parts.items() if part is not MISSING}
    return result if is_encodable(result) else base


def is_encodable(value: Any) -> bool:
    """Return whether ``SESSION_SERIALIZER`` takes a value."""
    try:
        encode(value)
    except Exception:  # a serializer may raise anything at all
        return False
    return True


def merge(base: Any, mine: Any, current: Any) -> Any:
    """Return the value that results when `mine`, made from `base`, meets `current`.

    Dicts merge key by key, at any depth. The result is of the type of `mine`, keeps its order, and has the keys that
    others added after it. Of anything else `mine` wins.
    """
    if not isinstance(mine, dict) or base is UNKNOWN or base is UNFETCHED:
        return mine
    if current is MISSING:
        current = {}
    elif not isinstance(current, dict):
        return mine
    if not isinstance(base, dict):
        base = {}
    result = copy.copy(mine)  # a subclass may need more than its items
    result.clear()
    for key, value in mine.items():
        before = base.get(key, MISSING)
        if before is MISSING or not same(value, before):
            result[key] = merge(before, value, current.get(key, MISSING))
        elif key in current:
            result[key] = current[key]
    for key, value in current.items():
        if key not in mine and key not in base:
            result[key] = value
    return result
