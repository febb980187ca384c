"""The ``GSESSION`` setting. It is read once, and again when a test overrides it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from django.conf import settings
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True)
class Conf:
    """The settings that Django does not have.

    Attributes:
        engines: keyword arguments of an engine's Storage, by the engine's module (``GSESSION["ENGINES"]``).
        touch_interval: the most seconds that a touch may wait if only ``SESSION_SAVE_EVERY_REQUEST`` asked for it. It
            never waits longer than a tenth of the TTL (``GSESSION["TOUCH_INTERVAL"]``).
        fallback_engine: the module of the engine that a session is moved from on first touch, if the engine that
            ``SESSION_ENGINE`` names does not have it (``GSESSION["FALLBACK_ENGINE"]``).
        unavailable: the dotted path of the site's view for a request whose session could not be read or saved. The
            middleware calls it with the request and the StorageUnavailable (``GSESSION["UNAVAILABLE"]``).
        anonymous_age: seconds that a session lives in which nobody is signed in, if that is less than
            ``SESSION_COOKIE_AGE``; ``None`` for that (``GSESSION["ANONYMOUS_AGE"]``).
        max_sessions_per_user: how many sessions a user may have at once; ``None`` for any number
            (``GSESSION["MAX_SESSIONS_PER_USER"]``).
        refuses_sign_in: whether a sign-in beyond that is refused; otherwise the user's oldest session ends
            (``GSESSION["REFUSE_SIGN_IN"]``).
        record_client: whether the middleware notes the address and the user agent of signed-in visitors
            (``GSESSION["RECORD_CLIENT"]``).
        interrupted: where the middleware sends a visitor whose session was ended under the request: a URL, the name of
            a URL pattern, or the dotted path of a view; ``None`` for Django's 400 (``GSESSION["INTERRUPTED"]``).
    """

    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    touch_interval: float = 10
    fallback_engine: str | None = None
    unavailable: str | None = None
    anonymous_age: int | None = None
    max_sessions_per_user: int | None = None
    refuses_sign_in: bool = False
    record_client: bool = False
    interrupted: str | None = None


KEYS = {
    "ENGINES": "engines",
    "TOUCH_INTERVAL": "touch_interval",
    "FALLBACK_ENGINE": "fallback_engine",
    "UNAVAILABLE": "unavailable",
    "ANONYMOUS_AGE": "anonymous_age",
    "MAX_SESSIONS_PER_USER": "max_sessions_per_user",
    "REFUSE_SIGN_IN": "refuses_sign_in",
    "RECORD_CLIENT": "record_client",
    "INTERRUPTED": "interrupted",
}

_conf: Conf | None = None
# Django keeps each setting here once somebody has asked for it, as long as it is valid.
_kept: Final = vars(settings)


def conf() -> Conf:
    """Return the current setting. The system checks report what is wrong in it. Unknown keys have no effect."""
    global _conf
    if _conf is None:
        given = getattr(settings, "GSESSION", {})
        _conf = Conf(**{KEYS[key]: value for key, value in given.items() if key in KEYS})
    return _conf


def django_setting(name: str) -> Any:
    """Return a setting of Django's, as ``settings`` does: that looks in the same place, but takes a microsecond."""
    try:
        return _kept[name]
    except KeyError:
        return getattr(settings, name)


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _conf
    if setting == "GSESSION":
        _conf = None


setting_changed.connect(_forget)
