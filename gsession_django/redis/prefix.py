"""The option ``prefix``: what comes before the session ids in the keys, as text, or as a function that is asked."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from gsession_django.redis.settings import CacheEntry

Prefix = str | Callable[[], str]

# Any text is a prefix, also with dots in it. Only the parentheses make it a path.
_PATH: Final = re.compile(r"(\w+(?:\.\w+)+)(\(\))?")


def function_of(prefix: Prefix, entry: CacheEntry) -> Callable[[], str] | None:
    """Return the function that the option is, or names by a dotted path with ``()`` after it; ``None`` for other text.

    Raises ``ImproperlyConfigured`` if there is no such function; if a text is the path of a function, but without the
    ``()``; and for other text if the `entry` has a ``KEY_FUNCTION``, as that tells tenants apart, and a text does not.
    """
    if callable(prefix):
        return prefix
    path = _PATH.fullmatch(prefix)
    if path and path[2]:
        return _imported(path[1])
    if path and _is_function(path[1]):
        raise ImproperlyConfigured(
            f"The option prefix = {prefix!r} is the dotted path of a function, and would stand in the keys as text. "
            f"Write '{prefix}()' to have the function asked."
        )
    if entry.key_function is not None:
        raise ImproperlyConfigured(
            f"{entry} has the KEY_FUNCTION {entry.key_function!r}, which the session engines do not ask. If it tells "
            "tenants apart, a session of one would be valid at all of them. Let the engine's option prefix be a "
            "function without arguments, or its dotted path with '()' after it, that returns what begins the keys of "
            "the current tenant; or take KEY_FUNCTION out of this entry."
        )
    return None


def text_of(function: Callable[[], str]) -> str:
    """Return what the function says now. What it raises comes through, with a note that names the option."""
    try:
        text = function()
    except Exception as error:
        error.add_note(f"Raised by {function!r}, which is the option prefix of the session engine.")
        raise
    if not isinstance(text, str):
        raise ImproperlyConfigured(
            f"The option prefix is {function!r}, which returned {text!r}. Let it return text, and raise an exception "
            "where there is no tenant."
        )
    return text


def _imported(path: str) -> Callable[[], str]:
    problem = "it cannot be called"
    try:
        function: Callable[[], str] = import_string(path)
        if callable(function):
            return function
    except ImportError as error:
        problem = str(error)
    raise ImproperlyConfigured(f"The option prefix = '{path}()' names no function: {problem}. Correct the dotted path.")


def _is_function(path: str) -> bool:
    with suppress(Exception):  # it is some text, and a module that it happens to name may raise anything
        return callable(import_string(path))
    return False
