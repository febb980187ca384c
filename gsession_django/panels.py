"""A panel for django-debug-toolbar that shows the storage calls of a request. Name it in ``DEBUG_TOOLBAR_PANELS``."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from debug_toolbar.panels import Panel
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from gsession_django.core.engine import observe, stop_observing
from gsession_django.recording import StorageCall


class SessionStoragePanel(Panel):
    """Shows the operation, time and bytes of each storage call, and whether it merged, tried again or failed."""

    is_async = True
    title = nav_title = "Session storage"
    template = "gsession_django/panel.html"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calls: list[StorageCall] = []

    @property
    def nav_subtitle(self) -> str:
        calls = self.get_stats().get("calls", [])  # type: ignore[no-untyped-call]
        return f"{len(calls)} call{'' if len(calls) == 1 else 's'} in {sum(call['ms'] for call in calls):.2f} ms"

    def enable_instrumentation(self) -> None:
        _PANEL.set(self)
        observe(self._observe)

    def disable_instrumentation(self) -> None:
        stop_observing(self._observe)
        _PANEL.set(None)

    def _observe(self, call: StorageCall) -> Callable[[], None]:
        return partial(self._calls.append, call) if _PANEL.get() is self else _nothing

    def generate_stats(self, request: HttpRequest, response: HttpResponseBase) -> None:
        calls = [{**asdict(call), "ms": call.seconds * 1000} for call in self._calls]
        self.record_stats({"calls": calls})  # type: ignore[no-untyped-call]


_PANEL: Final[ContextVar[SessionStoragePanel | None]] = ContextVar("gsession_django.panel", default=None)
"""The panel of the request that this thread or task serves."""


def _nothing() -> None:
    pass
