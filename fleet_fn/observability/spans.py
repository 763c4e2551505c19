"""Spans of events and of requests to upstreams, told to a collector by OpenTelemetry's SDK, as its variables say."""

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

#: What the function is called where nobody says how; Knative names the service.
_SERVICE: Final = "fleet-function"
_SERVER_ERRORS: Final = 500

_propagator: Final = TraceContextTextMapPropagator()


class Spans:
    """Whoever tells of spans."""

    def __init__(self) -> None:
        """With a thread that sends them, and sends what is left when the process ends."""
        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        attributes = {} if named else {"service.name": os.environ.get("K_SERVICE", _SERVICE)}
        provider = TracerProvider(resource=Resource.create(attributes))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer("fleet_fn")
        # What goes wrong with it is logged as everything is.
        theirs = logging.getLogger("opentelemetry")
        theirs.handlers[:] = logger.handlers
        theirs.propagate = False

    def of_event(self, trace: Trace | None, attributes: Mapping[str, str]) -> "_Span":
        """Return the span of answering an event, a child of `trace`."""
        parent = _propagator.extract(trace.headers) if trace else Context()
        return _Span(self._tracer.start_span("event", parent, api.SpanKind.CONSUMER, dict(attributes)))

    def of_request(self, upstream: str, method: str, host: str, port: int) -> "_Span":
        """The span of a request, a child of what is being done."""
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

    def tell(self, **what: Any) -> None:
        """What is to be known of it; None is nothing."""
        for name, value in what.items():
            if value is not None:
                self._span.set_attribute(_NAMES[name], value)
        if what.get("outcome") in ("failed", "retry") or (what.get("status") or 0) >= _SERVER_ERRORS:
            self._span.set_status(api.StatusCode.ERROR, what.get("reason"))


_NAMES: Final = {
    "outcome": "fleet.outcome",
    "reason": "fleet.reason",
    "version": "fleet.version",
    "offset": "fleet.offset",
    "status": "http.response.status_code",
}
