"""The trace of an event, which is passed on to upstreams.

An event has it in the attributes of CloudEvents' distributed tracing extension. A request has it in the headers of
W3C's Trace Context.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final, NamedTuple, Self

#: Version, trace id, span id and flags (Trace Context, 3.2); a later version may have more fields.
_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-[!-~]{0,100})?"
)
#: Members of vendors (3.3); every implementation has to pass on at least 512 characters.
_STATE: Final = re.compile(r"[ -~]{1,512}")


class Trace(NamedTuple):
    """A place in a trace."""

    #: `traceparent`
    parent: str
    #: `tracestate`; empty if there is none.
    state: str = ""

    @classmethod
    def read(cls, parent: object, state: object) -> Self | None:
        """Return the trace in two attributes; None if the first is missing or malformed."""
        if not isinstance(parent, str) or not (found := _PARENT.fullmatch(parent)):
            return None
        if found["more"] and parent.startswith("00"):
            return None
        return cls(parent, state if isinstance(state, str) and _STATE.fullmatch(state) else "")

    @property
    def id(self) -> str:
        """Trace id: 32 hexadecimal digits."""
        return self.parent[3:35]

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that pass the trace on to an upstream."""
        if self.state:
            return {"traceparent": self.parent, "tracestate": self.state}
        return {"traceparent": self.parent}


#: The trace of the current event, or of the current request to an upstream.
current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def headers() -> Mapping[str, str]:
    """Return headers that pass the trace on to an upstream; none without a trace."""
    trace = current.get()
    return trace.headers if trace else _NOTHING
