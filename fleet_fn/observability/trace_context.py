"""The trace that an event is part of, which upstreams are told of.

Events carry it as CloudEvents' distributed tracing extension has it, requests as W3C's Trace Context.
"""

import re
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final, NamedTuple, Self

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


#: The trace of what is being done here.
current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def headers() -> Mapping[str, str]:
    """Return the headers that tell an upstream of the current trace, if there is one."""
    trace = current.get()
    return trace.headers if trace else _NOTHING
