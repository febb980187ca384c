"""Joins the core with what builds on it: it chooses the class of an engine, and starts OpenTelemetry."""

from typing import TYPE_CHECKING

from django.conf import settings

from gsession_django.core.conf import conf
from gsession_django.core.engine import Engine, engine_module
from gsession_django.users.engine import IndexedEngine

if TYPE_CHECKING:
    from gsession_django.core.store_base import StoreBase


def engine_class(store: "type[StoreBase]") -> type[Engine]:
    """Return the class for the Engine of `store`: FallbackEngine if ``GSESSION["FALLBACK_ENGINE"]`` is set for it."""
    _look_for_opentelemetry()
    if conf().fallback_engine is None or (
        getattr(engine_module(settings.SESSION_ENGINE), "SessionStore", None) is not store
    ):
        return IndexedEngine
    # Imported here, as it imports models, and Django imports this package before it can load any.
    from gsession_django.moving.fallback import FallbackEngine

    return FallbackEngine


def _look_for_opentelemetry() -> None:
    """Let OpenTelemetry observe the engines, if its API is installed."""
    try:
        from gsession_django import telemetry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
    else:
        telemetry.start()
