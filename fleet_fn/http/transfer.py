"""Bodies of the current exchange, as libcurl takes and hands them over."""

from typing import Final

import pycurl

from fleet_fn.http.head import Head
from fleet_fn.http.messages import Request

#: `CURL_SEEKFUNC_FAIL`, for which pycurl has no name.
_SEEK_FAILED: Final = 1


class Transfer:
    """State of the current exchange, for libcurl's callbacks."""

    __slots__ = ("_is_repeatable", "_keeps_body", "_limit", "_received", "_sent", "_upload", "body", "head")

    def __init__(self) -> None:
        self.body = bytearray()
        self.head = Head()
        self._keeps_body = False
        self.end()

    def begin(self, request: Request, limit: int) -> None:
        """Begin the exchange of a request, whose answer may have `limit` bytes."""
        self._upload = request.body or b""
        self._is_repeatable = request.is_idempotent
        self._keeps_body = request.wants_body
        self._limit = limit

    def end(self) -> None:
        """Forget the exchange."""
        self._upload = b""
        self._sent = self._received = self._limit = 0
        if self._keeps_body:
            self.head = Head()
            self.body.clear()
        self._is_repeatable = self._keeps_body = False

    def read(self, size: int) -> bytes:
        """Return the next bytes of the request's body."""
        piece = self._upload[self._sent : self._sent + size]
        self._sent += len(piece)
        return piece

    def seek(self, offset: int, _origin: int) -> int:
        """Go back in the request's body, unless the request may not be sent twice."""
        if not self._is_repeatable:
            return _SEEK_FAILED
        self._sent = offset
        return int(pycurl.SEEKFUNC_OK)

    def write(self, piece: bytes) -> int | None:
        """Take bytes of the answer's body; return 0, which ends the exchange, if too many."""
        self._received += len(piece)
        if self._received > self._limit:
            return 0
        if self._keeps_body:
            self.body += piece
        return None
