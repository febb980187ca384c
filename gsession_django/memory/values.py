"""What is kept of the values of a session, so that no two requests share what can be changed in place."""

from collections.abc import Callable
from typing import Any, Final

from gsession_django.core.values import Canonical
from gsession_django.serializers import decode, encode

# Every serializer gives these back as they were, and nothing can change them.
_IMMUTABLE: Final = frozenset({str, int, float, bool, type(None)})


def _encoding_of(key: str, value: Any) -> bytes:
    return encode(value)


def kept(pairs: dict[str, Any], encoding_of: Callable[[str, Any], bytes] = _encoding_of) -> dict[str, Any]:
    """Return what is kept of pairs: values that nothing can change, and the encodings of the others."""
    if not all(type(key) is str for key in pairs):  # the serializer knows what becomes of other keys
        pairs, encoding_of = decode(encode(pairs)), _encoding_of
    return {
        key: value if type(value) in _IMMUTABLE else Canonical(encoding_of(key, value)) for key, value in pairs.items()
    }
