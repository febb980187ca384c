"""The options in ``GSESSION["ENGINES"]``, and what a storage's annotations say about them."""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Union

from django.conf import settings

_WORDS: Final[Mapping[Any, str]] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "None",
    Callable: "a function",
}


@dataclass(frozen=True, slots=True)
class AtLeast:
    """The smallest number that an option may be: ``Annotated[int, AtLeast(1)]``."""

    least: float


def given_options(engine: str) -> dict[str, Any]:
    """Return the options of an engine. ``{}`` if the setting is malformed: other checks report that."""
    found = getattr(settings, "GSESSION", {})
    for key in ("ENGINES", engine):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def annotations_of(storage_class: type) -> dict[str, Any]:
    """Return the annotations of the parameters of a storage's ``__init__``. ``{}`` if they cannot be resolved."""
    try:
        return typing.get_type_hints(storage_class.__init__, include_extras=True)  # type: ignore[misc]
    except Exception:  # a name is imported for type checkers only, or it is not a function
        return {}


def fits(value: object, annotation: Any) -> bool:
    """Return whether `value` fits `annotation`. Every value fits an annotation that cannot be checked at run time."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner, *limits = arguments
        return fits(value, inner) and not any(
            value < limit.least for limit in limits if isinstance(limit, AtLeast) and isinstance(value, int | float)
        )
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if annotation is int or annotation is float:
        number = int if annotation is int else int | float
        return isinstance(value, number) and not isinstance(value, bool) and value == value
    kind = type(None) if annotation is None else origin or annotation
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol, for one
        return True


def in_words(annotation: Any) -> str:
    """Return in words the values that an option with this annotation may have."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        limits = [f" of at least {limit.least:g}" for limit in arguments[1:] if isinstance(limit, AtLeast)]
        return in_words(arguments[0]) + "".join(limits)
    if origin in (Union, types.UnionType):
        return " or ".join(map(in_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    kind = type(None) if annotation is None else origin or annotation
    return _WORDS.get(kind) or f"a {getattr(kind, '__qualname__', kind)}"
