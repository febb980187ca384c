"""The one place that knows both the core and what stands on it: which class an engine is of, and who observes it."""

from typing import TYPE_CHECKING

from django.conf import settings

from gsession_django.core.conf import conf
from gsession_django.core.engine import Engine, engine_module
from gsession_django.users.engine import IndexedEngine

if TYPE_CHECKING:
    from gsession_django.core.store_base import StoreBase


def engine_class(store: "type[StoreBase]") -> type[Engine]:
    """Return the class of the Engine of `store`: another one where ``GSESSION["FALLBACK_ENGINE"]`` is set for it."""
    _look_for_opentelemetry()
    if conf().fallback_engine is None or (
        getattr(engine_module(settings.SESSION_ENGINE), "SessionStore", None) is not store
    ):
        return IndexedEngine
    # Here, as it imports models, and this package is imported before Django can load any.
    from gsession_django.moving.fallback import FallbackEngine

    return FallbackEngine


def _look_for_opentelemetry() -> None:
    """Let OpenTelemetry observe, where its API is installed and the site has set it up."""
    try:
        from gsession_django import telemetry
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
    else:
        telemetry.start()
