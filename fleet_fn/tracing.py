"""The trace that an event is part of: passed on to upstreams, and told in spans where OpenTelemetry is to hear of it.

Events carry it as CloudEvents' distributed tracing extension has it, requests as W3C's Trace Context. Nothing of
OpenTelemetry is loaded unless a collector is named.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar, Token
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from fleet_fn.log import logger
from fleet_fn.side_effects import Guard

if TYPE_CHECKING:
    from fleet_fn.drogue.events import Event
    from fleet_fn.spans import Spans

#: Variables that name a collector, of all that is told, or of traces.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
#: Version, trace id, span id and flags (Trace Context, 3.2); later versions may go on.
_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-[!-~]{0,100})?"
)
#: Vendors' members (3.3), as many characters as all have to pass on.
_STATE: Final = re.compile(r"[ -~]{1,512}")


class Trace(NamedTuple):
    """A place in a trace."""

    #: `traceparent`
    parent: str
    #: `tracestate`, empty where there is none.
    state: str = ""

    @classmethod
    def read(cls, parent: object, state: object) -> Self | None:
        """The trace of these two attributes; None where the first is missing or malformed, as it is ignored then."""
        if not isinstance(parent, str) or not (found := _PARENT.fullmatch(parent)):
            return None
        if found["more"] and parent.startswith("00"):
            return None
        return cls(parent, state if isinstance(state, str) and _STATE.fullmatch(state) else "")

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self.parent[3:35]

    @property
    def headers(self) -> Mapping[str, str]:
        """What tells an upstream of it."""
        if self.state:
            return {"traceparent": self.parent, "tracestate": self.state}
        return {"traceparent": self.parent}


class Span(Protocol):
    """Something that takes time, and what comes of it."""

    def __enter__(self) -> Self:
        """Begins."""

    def __exit__(self, *error: Any) -> None:
        """Ends, with the error if there is one."""

    def tell(self, **what: str | int | None) -> None:
        """What is to be known of it; None is nothing."""


class _Untold:
    """A span that nobody hears of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def tell(self, **what: str | int | None) -> None:
        pass


class _Passed(_Untold):
    """An event of which nobody hears but the upstreams."""

    __slots__ = ("_before", "_trace")

    def __init__(self, trace: Trace | None) -> None:
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
        except Exception as error:  # noqa: BLE001 - no answer may depend on it
            _guard.report(error)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._span.__exit__(*error)
        except Exception as other:  # noqa: BLE001
            _guard.report(other)

    def tell(self, **what: str | int | None) -> None:
        try:
            self._span.tell(**what)
        except Exception as error:  # noqa: BLE001
            _guard.report(error)


_guard: Final = Guard("tracing")
#: The trace of what is being done here.
current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
_untold: Final = _Untold()
_spans: "Spans | None" = None


def configure() -> None:
    """Has spans told to the collector that the environment names, if it names one."""
    global _spans
    if _spans or not any(os.environ.get(name) for name in _ENDPOINTS):
        return
    try:
        from fleet_fn.spans import Spans
    except ImportError as error:
        fields = {"reason": f"the requirements 'tracing' are not installed: {error}"}
        logger.warning("no spans are told", extra={"fields": fields})
        return
    try:
        _spans = Spans()
    except Exception as error:  # noqa: BLE001 - events are answered without
        _guard.report(error)


def of_event(event: "Event") -> Span:
    """Return the span of answering `event`, whose trace upstreams are told of meanwhile; it never raises."""
    if _spans:
        try:
            return _Guarded(_spans.of_event(event))
        except Exception as error:  # noqa: BLE001 - no answer may depend on it
            _guard.report(error)
    return _Passed(event.trace)


def of_request(upstream: str, method: str, host: str, port: int) -> Span:
    """Return the span of a request to an upstream; it never raises."""
    if _spans:
        try:
            return _Guarded(_spans.of_request(upstream, method, host, port))
        except Exception as error:  # noqa: BLE001 - no answer may depend on it
            _guard.report(error)
    return _untold


def headers() -> Mapping[str, str]:
    """The headers that tell an upstream of the current trace, if there is one."""
    trace = current.get()
    return trace.headers if trace else _NOTHING
