"""Finds the values that ``SESSION_SERIALIZER`` cannot take. The old engine may have used another serializer."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from gsession_django.serializers import decode, encode

TYPED: Final = "gsession_django.serializers.TypedSerializer"


def refused_types(data: Mapping[str, Any]) -> list[str]:
    """Return the types in a session that the serializer cannot take, sorted, each with its module.

    The list is empty if it takes the session. If it takes each value but not the session, the list has its error.
    """
    error = _error_of(data)
    if error is None:
        return []
    try:
        found = sorted(set(_refused(data)))
    except RecursionError:  # it is nested too deep, or contains itself
        found = []
    return found or [f"{type(error).__name__}: {error}"]


def cure(types: Iterable[str]) -> str:
    """Return a sentence that says what to do about these types."""
    if settings.SESSION_SERIALIZER == TYPED:
        return f"Store something else in place of {', '.join(types)}, or write a SESSION_SERIALIZER that takes it."
    return (
        f"Set SESSION_SERIALIZER = {TYPED!r}, which takes dates, times, Decimals, UUIDs, bytes, sets and tuples, or "
        "write one that takes these types."
    )


def _error_of(value: Any) -> Exception | None:
    try:
        decode(encode(value))  # it also has to read what it wrote
    except ImproperlyConfigured:
        raise
    except Exception as error:  # each serializer raises its own
        return error
    return None


def _refused(value: Any) -> Iterator[str]:
    if _error_of(value) is None:
        return
    found = [name for item in _inner(value) for name in _refused(item)]
    if isinstance(value, Mapping):
        keys = [key for key in value if _error_of(key) is None and _error_of({key: None}) is not None]
        found += [f"{_name_of(type(key))} as a key of a dict" for key in keys]
    yield from found
    # The container itself is to blame if nothing in it is, or if the serializer also refuses an empty one.
    if not found or (type(value) not in (dict, list) and _empty_is_refused(value)):
        yield _name_of(type(value))


def _inner(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value


def _empty_is_refused(value: Any) -> bool:
    with suppress(Exception):
        return _error_of(type(value)()) is not None
    return False


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
