"""How values become bytes: one pair of functions for every engine.

They follow Django's ``SESSION_SERIALIZER``
(https://docs.djangoproject.com/en/stable/ref/settings/#session-serializer). Whatever is put under every engine later
goes here and nowhere else.
"""

import json
import logging
from typing import TYPE_CHECKING, Any, Protocol

from django.conf import settings
from django.contrib.sessions.serializers import JSONSerializer
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

if TYPE_CHECKING:
    from gsession_django.typed import TypedSerializer as TypedSerializer
else:

    def __getattr__(name: str) -> Any:
        """Import TypedSerializer when it is asked for: it needs msgspec, which not every site has."""
        if name != "TypedSerializer":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from gsession_django.typed import TypedSerializer

        return TypedSerializer


logger = logging.getLogger("django.security.SuspiciousSession")
"""Where Django logs what it drops of sessions that it cannot read."""


class Serializer(Protocol):
    """What ``SESSION_SERIALIZER`` has to name: a class with these two methods.

    An attribute ``deterministic = True`` says that equal values give equal bytes, which saves decoding them to compare.
    """

    def dumps(self, obj: Any) -> bytes: ...

    def loads(self, data: bytes) -> Any: ...


class KeptJSONSerializer(JSONSerializer):
    """Django's JSONSerializer, byte for byte, with an encoder that is kept. Django's makes new encoders at each call,
    which is half of its time for a session of five keys. Reading does not look for blanks around the value first, which
    takes as long as reading a short one.
    """

    deterministic = True
    writes_text_as_json = True
    _encoder = json.JSONEncoder(separators=(",", ":"))
    _decode = staticmethod(json.JSONDecoder().decode)
    _scan = staticmethod(json.JSONDecoder().scan_once)  # type: ignore[attr-defined]
    # It does not remember what it is inside of, as threads would share that. A circle ends in RecursionError.
    _pieces = staticmethod(
        json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            None, _encoder.default, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True
        )
    )

    _text = staticmethod(json.encoder.encode_basestring_ascii)

    def dumps(self, obj: Any) -> bytes:
        if type(obj) is str:
            return self._text(obj).encode("latin-1")
        try:
            return "".join(self._pieces(obj, 0)).encode("latin-1")
        except RecursionError:
            return self._encoder.encode(obj).encode("latin-1")  # it says what is wrong with a circle

    def loads(self, data: bytes) -> Any:
        text = data.decode()  # JSON is UTF-8 (RFC 8259), and other programs make use of it, as Go's do
        try:
            value, end = self._scan(text, 0)
        except StopIteration:
            end = -1
        return value if end == len(text) else self._decode(text)


class DecodeError(ValueError):
    """Something is stored, and it cannot be read: not the same as nothing being stored.

    ``SESSION_SERIALIZER`` cannot turn the bytes back into a value, or the value is not a session. Nobody is signed out
    because of it, and the stored session is neither overwritten nor removed.
    """


_serializer: Serializer | None = None


def serializer_class() -> type[Serializer]:
    """Return the class that ``SESSION_SERIALIZER`` names; ``ImproperlyConfigured`` if it cannot be imported."""
    name = settings.SESSION_SERIALIZER
    try:
        found: type[Serializer] = import_string(name)
    except ImproperlyConfigured:  # it says itself what is missing
        raise
    except Exception as error:  # the module is the site's own, and may raise anything
        raise _unusable("imported", error) from error
    return found


def _load() -> Serializer:
    global _serializer
    found = serializer_class()
    try:
        serializer: Serializer = KeptJSONSerializer() if found is JSONSerializer else found()
    except Exception as error:
        raise _unusable("constructed", error) from error
    for method in ("dumps", "loads"):
        if not callable(getattr(serializer, method, None)):
            raise _unusable("used", f"it has no {method}()")
    _serializer = serializer
    return serializer


def current() -> Serializer:
    """Return the serializer that ``SESSION_SERIALIZER`` names."""
    return _serializer or _load()


def _unusable(what: str, reason: object) -> ImproperlyConfigured:
    return ImproperlyConfigured(
        f"SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot be {what}: {reason}. Name a class with the "
        "methods dumps() and loads(), such as 'django.contrib.sessions.serializers.JSONSerializer'."
    )


def encode(value: Any) -> bytes:
    """Return `value`, a whole session or a single value of one, as bytes.

    Raises whatever the serializer raises for a value that it cannot take (``TypeError`` for JSON): that is a mistake
    in the site's code, and Django's own engines let it through too.
    """
    return (_serializer or _load()).dumps(value)


def decode(data: bytes) -> Any:
    """Return the value that :func:`encode` made `data` from.

    Raises :exc:`.DecodeError` when the serializer fails, for whatever reason: the bytes may be another serializer's,
    or its own code may be wrong.
    """
    serializer = _serializer or _load()
    try:
        return serializer.loads(data)
    except Exception as error:  # pickle, for one, may raise anything at all
        reason = f"{type(error).__name__}: {error}"
        raise DecodeError(f"SESSION_SERIALIZER = {settings.SESSION_SERIALIZER!r} cannot read it: {reason}") from error


def is_deterministic() -> bool:
    """Return whether the serializer is known to give equal values equal bytes: its attribute ``deterministic`` says so.

    Of a serializer without it nothing is known. It may encrypt, or sign with a timestamp.
    """
    return getattr(current(), "deterministic", False)


def keeps_text() -> bool:
    """Return whether everybody may read what the serializer makes of text, so that a storage may keep text itself.

    That is known of Django's ``JSONSerializer`` and TypedSerializer. What another one makes of it may be a secret.
    """
    return getattr(current(), "writes_text_as_json", False)


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _serializer
    if setting == "SESSION_SERIALIZER":
        _serializer = None


setting_changed.connect(_forget)
