"""One connection to an HTTP/1.1 server: requests out, answers in, each within a deadline.

What an event costs is for the most part what its exchange with the command API does. `http.client` takes two writes for
a request with a body, and has each answer's head read by a parser of mail. So a request is one write here, and the head
of an answer is read by one regular expression where it is one as most are; all others are `http.client`'s.
"""

import http.client
import math
import re
import select
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from fleet_fn.deadline import Deadline

#: Bytes of an answer's body that are read; what is larger makes no sense to us.
MAX_BODY: Final = 4 * 1024 * 1024
#: Bytes that are received for one answer at most, its head included.
MAX_EXCHANGE: Final = 2 * MAX_BODY
#: A head without anything unusual: printable ASCII, no folded lines, not an interim answer's, not too many headers.
_PLAIN_HEAD: Final = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2})(?: [\t -~]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n){0,99})\r\n"
)
#: What a method, or the path that follows it, cannot have in it.
_NOT_IN_TARGET: Final = re.compile(r"[^!-~]")
#: What ends a header, or hides what follows.
_NOT_IN_HEADER: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Methods of which a server expects a body, unless it is told that there is none (RFC 9110, section 8.6).
_WITH_BODY: Final = ("PATCH", "POST", "PUT")


#: The share of the time that is left for which an answer is waited for at least.
_NEARLY: Final = 0.98
#: `struct timeval`.
_TIMEVAL: Final = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class Request:
    """A request, of which the path is percent-encoded."""

    method: str
    #: Path and query.
    target: str
    #: Not in `repr`, as credentials are among them.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    wants_body: bool

    def encoded(self, authority: str) -> bytes:
        """The request as it goes out, to the host and port of `authority`.

        Raises:
            http.client.InvalidURL: the target has something in it that none may have.
            ValueError: a header has.

        """
        if _NOT_IN_TARGET.search(self.target):
            raise http.client.InvalidURL("a path that is not percent-encoded")
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {authority}", "Accept-Encoding: identity"]
        if self.body is not None or self.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(self.body or b'')}")
        for name, value in self.headers.items():
            if _NOT_IN_HEADER.search(value):
                raise ValueError(f"header {name!r} has a control character in it")
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (self.body or b"")


class _Timed:
    """A socket whose reads end at the deadline of the exchange, however slowly or ceaselessly bytes come in."""

    deadline: Deadline
    #: Bytes that the exchange may still bring: `http.client` bounds neither interim answers nor trailers.
    budget: int
    #: Nothing more comes.
    is_at_end = False

    def recv_into(self, *args: Any) -> int:
        self._expect()
        count: int = super().recv_into(*args)  # type: ignore[misc]
        self.is_at_end = not count
        self.budget -= count
        if self.budget < 0:
            raise http.client.HTTPException("an answer without end")
        return count

    def _expect(self) -> None:
        """Has the next read end in time."""
        self.settimeout(left(self.deadline))  # type: ignore[attr-defined]


class TimedTLSSocket(_Timed, ssl.SSLSocket):
    """A TLS connection, with the deadline and the bound of an exchange."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all of it; of each piece that the other end takes it is the time-out that ends at the deadline.

        Raises:
            TimeoutError: the deadline has passed.

        """
        self.settimeout(left(self.deadline))
        super().sendall(data, flags)


class TimedSocket(_Timed, socket.socket):
    """A TCP connection, with the same.

    It has no time-out of Python's: with that, each call is three of the system's, and other threads, which may go on
    meanwhile, have to be waited for after each. What bounds a wait is the system's own.
    """

    #: Seconds that the system waits for something to receive; for ever at first.
    _wait = math.inf

    def is_made(self) -> Self:
        """The same, once it is connected."""
        self.settimeout(None)
        return self

    def recv_into(self, *args: Any) -> int:
        """Receives what there is, once there is something.

        Raises:
            TimeoutError: the deadline has passed.
            http.client.HTTPException: more has come than an answer may have.

        """
        try:
            return super().recv_into(*args)
        except BlockingIOError as error:
            raise TimeoutError from error

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Sends all of it.

        Raises:
            TimeoutError: the deadline has passed.

        """
        rest = memoryview(data)
        while rest:
            left(self.deadline)
            try:
                rest = rest[self.send(rest, flags | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self, select.POLLOUT)
                poll.poll(math.ceil(1000 * left(self.deadline)))

    def _expect(self) -> None:
        remaining = left(self.deadline)
        if _NEARLY * remaining <= self._wait <= remaining:
            return  # as the exchange before had it: most have as much time
        seconds, fraction = divmod(remaining, 1)
        # Of zero it would wait for ever.
        wait = _TIMEVAL.pack(int(seconds), max(1, int(1_000_000 * fraction)))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        self._wait = remaining


class Response(http.client.HTTPResponse):
    """An answer. Where its head is one as most are, what is known of it is what `http.client` would have found."""

    def begin(self) -> None:
        """Read the head of the final response; interim responses before it are skipped (RFC 9110, section 15.2).

        `http.client` skips 100 only. Another one taken for the final response would make each later response on the
        connection the answer to the request before.

        Raises:
            http.client.HTTPException, OSError: as with `http.client`.

        """
        if self._begin_plainly():
            return
        found: Any = self
        super().begin()
        while 100 < self.status < 200:
            if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:  # to one that nobody asked for
                raise http.client.HTTPException("another protocol")
            found.headers = found.msg = None  # for `http.client`, the head has not been read then
            super().begin()

    def _begin_plainly(self) -> bool:
        """Whether there was a plain head, which then has been read. Otherwise nothing has been, but into the buffer."""
        found: Any = self
        plain = _PLAIN_HEAD.match(found.fp.peek())
        if plain is None:
            return False
        lines = plain[2].decode("ascii").split("\r\n")[:-1]
        fields = [(name, value.lstrip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
        first: dict[str, str] = {}
        for name, value in fields:
            first.setdefault(name.lower(), value)
        length, encoding = first.get("content-length"), first.get("transfer-encoding", "")
        chunked = encoding.lower() == "chunked"
        if (length is not None and not length.isdigit()) or (encoding and not chunked):
            return False
        found.fp.read(plain.end())
        self.status = found.code = int(plain[1])
        self.reason, self.version = "", 11
        self.headers = found.msg = http.client.HTTPMessage()
        for name, value in fields:
            found.headers.set_raw(name, value)
        found.chunked, found.chunk_left = chunked, None
        self.length = int(length) if length is not None and not chunked else None
        if found._method == "HEAD" or self.status in (http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_MODIFIED):
            self.length = 0
        ends = self.length is None and not chunked
        self.will_close = ends or "close" in first.get("connection", "").lower()
        return True


class Connection:
    """A connection made already, which tells whether an answer has begun."""

    def __init__(self, authority: str, sock: TimedSocket | TimedTLSSocket) -> None:
        """One to the host and port of `authority`, as the header `Host` names them."""
        self._authority = authority
        self.socket: Final = sock
        self.answered = False
        self._head_is_cut = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        #: The moment of the last use, on the upstream's clock.
        self.idle_since = 0.0

    def ask(self, request: Request, deadline: Deadline) -> Response:
        """Sends a request, and receives the head of its answer; after an error the connection is closed.

        Raises:
            http.client.HTTPException: what comes is not HTTP, or the target cannot be asked for.
            OSError: it cannot be sent, or nothing comes within the deadline.

        """
        self.answered = False
        self.grant(deadline, MAX_EXCHANGE)
        try:
            encoded = request.encoded(self._authority)
            self.socket.sendall(encoded)
            return self._receive(request.method)
        except BaseException:
            self.close()
            raise

    def grant(self, deadline: Deadline, budget: int) -> None:
        """Sets until when, and how many bytes, may be received."""
        self.socket.deadline = deadline
        self.socket.budget = budget

    def check_head(self) -> None:
        """Raises what a body raises that is cut short: `http.client` takes the end of the connection for the head's."""
        if self._head_is_cut:
            raise http.client.IncompleteRead(b"")

    def readable(self) -> bool:
        """Whether there is something to read where nothing was asked: the end, or what must not be taken for ours."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Ends the connection, once its answer is closed, too."""
        self.socket.close()

    def _receive(self, method: str) -> Response:
        response = Response(self.socket, method=method)
        try:
            response.begin()
        except http.client.RemoteDisconnected:
            response.close()
            raise
        except http.client.BadStatusLine as error:
            response.close()
            if self.socket.is_at_end and _may_begin_a_status_line(str(error)):
                raise http.client.IncompleteRead(b"") from error
            raise
        except BaseException:
            response.close()
            raise
        self.answered = True
        self._head_is_cut = self.socket.is_at_end
        return response


def left(deadline: Deadline) -> float:
    """A time-out for a socket.

    Raises:
        TimeoutError: the deadline has passed, which a socket with bytes to read would not notice.

    """
    remaining = deadline.remaining
    if not remaining:
        raise TimeoutError
    return remaining


def _may_begin_a_status_line(line: str) -> bool:
    protocol = "HTTP/"
    return not line.endswith("\n") and line[: len(protocol)] == protocol[: len(line)]
