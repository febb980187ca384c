"""System checks of the settings about users' sessions."""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured
from django.shortcuts import resolve_url
from django.utils.module_loading import import_string

from gsession_django.core.engine import engine_module
from gsession_django.interruptions import is_view
from gsession_django.users.listing import can_list

_WHOLE_NUMBERS = {
    "ANONYMOUS_AGE": ("seconds", "SESSION_COOKIE_AGE"),
    "MAX_SESSIONS_PER_USER": ("sessions", "any number"),
}
_SWITCHES = ("REFUSE_SIGN_IN", "RECORD_CLIENT")


@register("gsession_django")
def check_settings(app_configs: Sequence[AppConfig] | None = None, **kwargs: Any) -> list[CheckMessage]:
    """Check what ``GSESSION`` says about users' sessions."""
    given = getattr(settings, "GSESSION", {})
    if not isinstance(given, dict):  # another check says so
        return []
    return [*_check_values(given), *_check_engine(given), *_check_interrupted(given.get("INTERRUPTED"))]


def _check_values(given: dict[str, Any]) -> Iterator[CheckMessage]:
    for key, (unit, default) in _WHOLE_NUMBERS.items():
        value = given.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            yield Error(
                f"GSESSION[{key!r}] = {value!r} is not a whole number of {unit}, 1 or more.",
                hint=f"Give it such a number, or leave it out for {default}.",
                id="gsession_django.E029",
            )
    for key in _SWITCHES:
        if not isinstance(value := given.get(key, False), bool):
            yield Error(
                f"GSESSION[{key!r}] = {value!r} is neither True nor False.",
                hint="Give it one of the two, or leave it out for False.",
                id="gsession_django.E030",
            )
    if given.get("REFUSE_SIGN_IN") is True and given.get("MAX_SESSIONS_PER_USER") is None:
        yield Error(
            'GSESSION["REFUSE_SIGN_IN"] is True, and there is no GSESSION["MAX_SESSIONS_PER_USER"] to refuse one for.',
            hint="Set how many sessions a user may have, or leave both out.",
            id="gsession_django.E031",
        )


def _check_engine(given: dict[str, Any]) -> Iterator[CheckMessage]:
    if given.get("MAX_SESSIONS_PER_USER") is None:
        return
    try:
        able = can_list(engine_module(settings.SESSION_ENGINE))
    except ImproperlyConfigured:  # another check says so
        return
    if not able:
        yield Error(
            f'GSESSION["MAX_SESSIONS_PER_USER"] needs an engine that can list the sessions of a user, and '
            f"SESSION_ENGINE = {settings.SESSION_ENGINE!r} cannot.",
            hint="Name an engine of gsession_django, or write sessions_of() for the storage of this one.",
            id="gsession_django.E032",
        )


def _check_interrupted(target: Any) -> Iterator[CheckMessage]:
    if target is None:
        return
    try:
        if not isinstance(target, str):
            raise TypeError("it is not text")
        if is_view(target):
            if not callable(import_string(target)):
                raise TypeError("it cannot be called")
        else:
            resolve_url(target)
    except Exception as error:  # a site's module may raise anything
        yield Error(
            f'GSESSION["INTERRUPTED"] = {target!r} does not lead anywhere: {type(error).__name__}: {error}.',
            hint="Give it a URL with a slash, the name of a URL pattern, or the dotted path of a view.",
            id="gsession_django.E033",
        )
