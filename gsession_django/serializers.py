"""How values become bytes: one pair of functions for every engine.

They follow Django's ``SESSION_SERIALIZER``
(https://docs.djangoproject.com/en/stable/ref/settings/#session-serializer). Whatever is put under every engine later
goes here and nowhere else.
"""

from typing import Any, Protocol

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.module_loading import import_string


class Serializer(Protocol):
    """What ``SESSION_SERIALIZER`` has to name: a class with these two methods."""

    def dumps(self, obj: Any) -> bytes: ...

    def loads(self, data: bytes) -> Any: ...


class DecodeError(ValueError):
    """Bytes that ``SESSION_SERIALIZER`` cannot turn back into a value."""


_serializer: Serializer | None = None


def _load() -> Serializer:
    global _serializer
    serializer: Serializer = import_string(settings.SESSION_SERIALIZER)()
    _serializer = serializer
    return serializer


def encode(value: Any) -> bytes:
    """Return `value`, a whole session or a single value of one, as bytes.

    Raises whatever the serializer raises for a value that it cannot take (``TypeError`` for JSON): that is a mistake
    in the site's code, and Django's own engines let it through too.
    """
    return (_serializer or _load()).dumps(value)


def decode(data: bytes) -> Any:
    """Return the value that :func:`encode` made `data` from.

    Raises :class:`DecodeError` when the serializer cannot read it.
    """
    try:
        return (_serializer or _load()).loads(data)
    except Exception as error:  # pickle, for one, may raise anything at all
        raise DecodeError(f"SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot read it: {error}") from error


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _serializer
    if setting == "SESSION_SERIALIZER":
        _serializer = None


setting_changed.connect(_forget)
