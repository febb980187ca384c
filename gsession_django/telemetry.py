"""Spans and metrics for a site that has set up OpenTelemetry (extra ``otel``), named by its conventions for databases
(https://opentelemetry.io/docs/specs/semconv/db/).
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final

from django.core.signals import request_started
from opentelemetry import context, metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from gsession_django.core.engine import observe
from gsession_django.recording import StorageCall, System

_NAME: Final = "gsession_django"
# The first version in which these names are stable.
_SCHEMA: Final = "https://opentelemetry.io/schemas/1.33.0"
# In seconds, as the conventions require.
_BOUNDS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)

Attributes = dict[str, str | int]


class Telemetry:
    """An observer that records a span and metrics for each call of a storage.

    Args:
        tracer_provider, meter_provider: the site's, if they are not OpenTelemetry's global ones.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider, schema_url=_SCHEMA)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider, schema_url=_SCHEMA)
        self._duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "Duration of database client operations.",
            explicit_bucket_boundaries_advisory=_BOUNDS,
        )
        self._conflicts = meter.create_counter(
            "gsession.conflicts", "{conflict}", "Saves that were merged with the changes of another request."
        )
        self._retries = meter.create_counter("gsession.retries", "{retry}", "Times that a storage tried again.")
        self._outages = meter.create_counter("gsession.outages", "{call}", "Calls that a storage could not answer.")

    def __call__(self, call: StorageCall) -> Callable[[], None]:
        system = call.system
        name = call.operation if system.collection is None else f"{call.operation} {system.collection}"
        kind = SpanKind.CLIENT if system.is_server else SpanKind.INTERNAL
        span = self._tracer.start_span(name, kind=kind, attributes=_attributes(system, call.operation))
        token = context.attach(trace.set_span_in_context(span))
        return partial(self._end, call, span, token)

    def _end(self, call: StorageCall, span: trace.Span, token: Any) -> None:
        context.detach(token)
        attributes = _attributes(call.system, call.operation)
        if call.merged:
            span.set_attribute("gsession.merged", True)
            self._conflicts.add(1, attributes)
        if call.retries:
            span.set_attribute("gsession.retries", call.retries)
            self._retries.add(call.retries, attributes)
        if call.error is not None:
            # Without message and traceback: they may quote the session.
            span.set_attribute("error.type", call.error)
            span.set_status(Status(StatusCode.ERROR))
            attributes = {**attributes, "error.type": call.error}
        if call.unavailable:
            self._outages.add(1, attributes)
        self._duration.record(call.seconds, attributes)
        span.end()


@lru_cache
def _attributes(system: System, operation: str) -> Attributes:
    values = {
        "db.system.name": system.name,
        "db.operation.name": operation,
        "db.collection.name": system.collection,
        "db.namespace": system.namespace,
        "server.address": system.address,
        "server.port": system.port,
    }
    return {name: value for name, value in values.items() if value is not None}


def start(**kwargs: Any) -> None:
    """Observe calls from now on. If the site has not set OpenTelemetry up yet, look again when a request begins.

    Until then calls cost nothing more. A second call of this function does nothing.
    """
    global _telemetry
    if _telemetry is None and _is_set_up():
        _telemetry = Telemetry()
        observe(_telemetry)
    if _telemetry is None:
        request_started.connect(start)
    else:
        request_started.disconnect(start)


_telemetry: Telemetry | None = None


def _is_set_up() -> bool:
    """Whether the site has set a provider. The API's own ones do nothing."""
    providers = trace.get_tracer_provider(), metrics.get_meter_provider()
    return not all(
        type(provider).__module__.startswith(("opentelemetry.trace", "opentelemetry.metrics")) for provider in providers
    )
