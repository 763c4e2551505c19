"""Spans of events and upstream requests, if the environment names a collector.

OpenTelemetry is loaded only then. A span never raises.
"""

import os
from collections.abc import Callable, Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from fleet_fn.observability.log import logger
from fleet_fn.observability.side_effects import Guard
from fleet_fn.observability.trace_context import Trace, current

if TYPE_CHECKING:
    from fleet_fn.observability.spans import Spans

#: Variables that name a collector, for all signals or for traces.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Span(Protocol):
    """An operation with a beginning, an end and attributes."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *error: Any) -> None:
        """End, with the error if there is one."""

    def set_attributes(self, **attributes: str | int | None) -> None:
        """Set attributes; skip those that are None."""


class _NoSpan:
    """A span without a collector."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def set_attributes(self, **attributes: str | int | None) -> None:
        pass


class _PassedTrace(_NoSpan):
    """An event's span without a collector: upstreams still get the event's trace."""

    __slots__ = ("_before", "_trace")

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def __enter__(self) -> Self:
        self._before: Token[Trace | None] = current.set(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        current.reset(self._before)


class _Guarded:
    """A span that never raises."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Self:
        try:
            self._span.__enter__()
        except Exception as error:  # noqa: BLE001 - no answer may depend on a span
            _guard.report(error)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._span.__exit__(*error)
        except Exception as other:  # noqa: BLE001
            _guard.report(other)

    def set_attributes(self, **attributes: str | int | None) -> None:
        try:
            self._span.set_attributes(**attributes)
        except Exception as error:  # noqa: BLE001
            _guard.report(error)


_guard: Final = Guard("tracing")
_no_span: Final = _NoSpan()
_spans: "Spans | None" = None


def configure() -> None:
    """Send spans to the collector that the environment names, if it names one."""
    global _spans
    if _spans or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from fleet_fn.observability.spans import Spans
    except ImportError as error:
        fields = {"reason": f"the extra 'tracing' (pyproject.toml) is not installed: {error}"}
        logger.warning("tracing is off", extra={"fields": fields})
        return
    try:
        _spans = Spans()
    except Exception as error:  # noqa: BLE001 - events are answered without spans
        _guard.report(error)


def of_event(trace: Trace | None, attributes: Callable[[], Mapping[str, str]]) -> Span:
    """Return the span of an event; the event's trace is the current one inside it.

    This never raises.

    Args:
        trace: the event's trace.
        attributes: returns attributes of the span, by OpenTelemetry's names; called only if there is a collector.

    """
    if _spans:
        try:
            return _Guarded(_spans.of_event(trace, attributes()))
        except Exception as error:  # noqa: BLE001 - no answer may depend on a span
            _guard.report(error)
    return _PassedTrace(trace) if trace else _no_span


def of_request(upstream: str, method: str, host: str, port: int) -> Span:
    """Return the span of a request to an upstream; it never raises."""
    if _spans:
        try:
            return _Guarded(_spans.of_request(upstream, method, host, port))
        except Exception as error:  # noqa: BLE001 - no answer may depend on a span
            _guard.report(error)
    return _no_span
