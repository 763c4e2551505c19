"""Spans of events and upstream requests, sent to a collector by OpenTelemetry."""

import logging
import os
from collections.abc import Mapping
from typing import Any, Final, Self

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fleet_fn.observability.log import logger
from fleet_fn.observability.trace_context import Trace, current

#: Service name if neither OpenTelemetry's variables nor Knative name the service.
_SERVICE: Final = "fleet-function"
#: From this status on, a request's span is an error.
_SERVER_ERROR: Final = 500

_propagator: Final = TraceContextTextMapPropagator()


class Spans:
    """Makes spans, and sends them to the collector."""

    def __init__(self) -> None:
        """Start the thread that sends spans; when the process ends, it sends the rest."""
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        attributes = {} if named else {"service.name": os.environ.get("K_SERVICE", _SERVICE)}
        provider = TracerProvider(resource=Resource.create(attributes))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer("fleet_fn")
        # Log OpenTelemetry's own problems in our format.
        theirs = logging.getLogger("opentelemetry")
        theirs.handlers[:] = logger.handlers
        theirs.propagate = False

    def of_event(self, trace: Trace | None, attributes: Mapping[str, str]) -> "_Span":
        """Return the span of answering an event, a child of `trace`."""
        parent = _propagator.extract(trace.headers) if trace else Context()
        return _Span(self._tracer.start_span("event", parent, api.SpanKind.CONSUMER, dict(attributes)))

    def of_request(self, upstream: str, method: str, host: str, port: int) -> "_Span":
        """Return the span of a request, a child of the current trace."""
        trace = current.get()
        parent = _propagator.extract(trace.headers) if trace else Context()
        attributes: dict[str, str | int] = {
            "fleet.upstream": upstream,
            "http.request.method": method,
            "server.address": host,
            "server.port": port,
        }
        return _Span(self._tracer.start_span(f"{method} {upstream}", parent, api.SpanKind.CLIENT, attributes))


class _Span:
    """A span that is the current trace until it ends."""

    def __init__(self, span: api.Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, api.set_span_in_context(self._span, Context()))
        self._before = current.set(Trace.read(carrier.get("traceparent"), carrier.get("tracestate")))
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        current.reset(self._before)
        if error is not None:
            self._span.set_status(api.StatusCode.ERROR, str(error))
            self._span.set_attribute("error.type", type(error).__name__)
        self._span.end()

    def set_attributes(self, **attributes: Any) -> None:
        """Set attributes, by the keys of `_NAMES`; skip those that are None."""
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(_NAMES[name], value)
        if attributes.get("outcome") in ("failed", "retry") or (attributes.get("status") or 0) >= _SERVER_ERROR:
            self._span.set_status(api.StatusCode.ERROR, attributes.get("reason"))


_NAMES: Final = {
    "outcome": "fleet.outcome",
    "reason": "fleet.reason",
    "version": "fleet.version",
    "offset": "fleet.offset",
    "status": "http.response.status_code",
}
