"""Requests to an upstream, and their answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from fleet_fn.http.head import Head, Headers

#: Largest body of an answer. No upstream has a reason to send a larger one.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: Methods whose requests may be sent twice (RFC 9110, section 9.2.2).
_IDEMPOTENT: Final = ("GET", "HEAD", "PUT")
#: Methods whose requests need a Content-Length even without a body (RFC 9110, section 8.6).
_WITH_BODY: Final = ("PATCH", "POST", "PUT")
#: Characters that a target cannot contain.
_NOT_IN_TARGET: Final = re.compile(r"[^!-~]")
#: Control characters, which would end a header or hide its rest.
_NOT_IN_HEADER: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Lines of each request: no compressed answers, and no interim answer awaited before the body is sent.
_OWN_LINES: Final = (b"Accept-Encoding: identity", b"Expect:")


@dataclass(slots=True)  # not frozen: it takes a third of the time to make, and each event makes one
class Request:
    """Request to an upstream. Its path is percent-encoded."""

    method: str
    #: Path and query.
    target: str
    #: Not in `repr`: they contain credentials.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    #: False if the answer's status is all that matters.
    wants_body: bool
    #: Whether the request has a body, even an empty one.
    carries_body: bool = field(init=False)

    def __post_init__(self) -> None:
        """Refuse characters that would end the request line or a header.

        Raises:
            ValueError: there is such a character. The message quotes no value.

        """
        if _NOT_IN_TARGET.search(self.target):
            raise ValueError("the path is not percent-encoded")
        if _NOT_IN_HEADER.search("".join(self.headers.values())):
            name = next(name for name, value in self.headers.items() if _NOT_IN_HEADER.search(value))
            raise ValueError(f"header {name!r} contains a control character")
        self.carries_body = self.body is not None or self.method in _WITH_BODY

    @property
    def is_idempotent(self) -> bool:
        """Whether the request may be sent twice."""
        return self.method in _IDEMPOTENT

    def header_lines(self) -> list[bytes]:
        """Return the headers as libcurl takes them.

        A name without a value removes libcurl's own header.
        """
        headers = self.headers
        lines = [(f"{name}: {headers[name]}" if headers[name] else f"{name};").encode("iso-8859-1") for name in headers]
        lines += _OWN_LINES
        if self.carries_body and "Content-Type" not in headers:
            lines.append(b"Content-Type:")
        return lines


@dataclass(slots=True)  # likewise
class Answer:
    """Answer of an upstream, whatever its status."""

    status: int
    #: Empty if the request does not want the body.
    head: Head = field(repr=False)
    #: Not in `repr`: the token endpoint's body is a secret.
    body: bytes = field(repr=False)
    #: Seconds that the upstream asks to wait (`Retry-After`), 6 hours at most; None if it names none.
    retry_after: int | None = None

    @property
    def headers(self) -> Headers:
        """Headers of the head."""
        return self.head.headers()
