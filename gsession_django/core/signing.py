"""Tags by which a storage knows what this site has stored: whoever lacks ``SECRET_KEY`` cannot make one.

A tag is a keyed BLAKE2b (RFC 7693). It is made with ``SECRET_KEY``, and those made with one of ``SECRET_KEY_FALLBACKS``
are known too, as with Django's own engines. It says what was stored under a name, and not that it was stored last:
somebody who can write to the storage can bring back what was there before.
"""

import functools
import hashlib
import hmac
from typing import Any, Final

from django.conf import settings
from django.core.signals import setting_changed
from django.utils.crypto import salted_hmac

TAG_SIZE: Final = 16
"""Bytes of a tag. Nobody guesses one of 128 bits."""

NOT_OURS: Final = (
    "it was not signed with SECRET_KEY, nor with one of SECRET_KEY_FALLBACKS. If the site's key was changed, add the "
    "former one to SECRET_KEY_FALLBACKS. If not, something other than this site has written or damaged it"
)
"""Why something cannot be read, for the message of a ``DecodeError``."""


def tag_of(purpose: str, name: str, data: bytes) -> bytes:
    """Return the tag of what is stored under a name.

    Args:
        purpose: names the storage. A tag for one purpose is not valid for another.
        name: where `data` is stored, with all that must not be changed beside it; without a NUL character.
        data: what is stored.
    """
    return _tag(_keys(purpose)[0], name, data)


def has_tag(purpose: str, name: str, data: bytes, *tags: bytes) -> bool:
    """Return whether this site has made one of `tags`, as :func:`tag_of` does, with any of its secret keys."""
    for key in _keys(purpose):
        expected = _tag(key, name, data)
        for tag in tags:
            if hmac.compare_digest(expected, tag):
                return True
    return False


def _tag(key: "hashlib._Hash", name: str, data: bytes) -> bytes:
    digest = key.copy()
    digest.update(b"%b\0" % name.encode())
    digest.update(data)
    return digest.digest()


@functools.cache
def _keys(purpose: str) -> list[Any]:
    """Return a hash that has taken in the key, for each secret key of the site, the current one first."""
    return [
        hashlib.blake2b(
            digest_size=TAG_SIZE,
            key=salted_hmac("gsession_django.core.signing", purpose, secret, algorithm="sha256").digest(),
            person=b"gsession_django",
        )
        for secret in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    ]


def _forget(*, setting: str, **kwargs: Any) -> None:
    if setting in ("SECRET_KEY", "SECRET_KEY_FALLBACKS"):
        _keys.cache_clear()


setting_changed.connect(_forget)
