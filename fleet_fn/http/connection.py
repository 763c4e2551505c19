"""One connection to an HTTP/1.1 server: requests out, answers in, each within a deadline.

The exchange with the command API is most of an event's cost. `http.client` writes a request with a body in two system
calls, and reads each head with the mail parser. Here, a request is one write, and one regular expression reads an
ordinary head. `http.client` reads all other heads.
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

#: Largest body of an answer. No upstream has a reason to send a larger one.
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
#: Most bytes received for one answer, its head included.
MAX_EXCHANGE_BYTES: Final = 2 * MAX_BODY_BYTES
#: An ordinary head: printable ASCII, a final status, no folded lines, at most 99 headers.
_PLAIN_HEAD: Final = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2})(?: [\t -~]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*\r\n){0,99})\r\n"
)
#: Characters that a method or a path cannot contain.
_NOT_IN_TARGET: Final = re.compile(r"[^!-~]")
#: Control characters, which would end a header or hide its rest.
_NOT_IN_HEADER: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Methods whose requests need a Content-Length even without a body (RFC 9110, section 8.6).
_WITH_BODY: Final = ("PATCH", "POST", "PUT")


#: A socket's time-out stays as it is if it is at least this share of the time left. That saves a system call.
_NEARLY: Final = 0.98
#: `struct timeval`.
_TIMEVAL: Final = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Its path is percent-encoded."""

    method: str
    #: Path and query.
    target: str
    #: Not in `repr`: they contain credentials.
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | None = field(repr=False)
    wants_body: bool

    def encode(self, authority: str) -> bytes:
        """Return the request's bytes, for the host and port of `authority`.

        Raises:
            http.client.InvalidURL: the target contains a character that is not allowed.
            ValueError: a header does.

        """
        if _NOT_IN_TARGET.search(self.target):
            raise http.client.InvalidURL("the path is not percent-encoded")
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {authority}", "Accept-Encoding: identity"]
        if self.body is not None or self.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(self.body or b'')}")
        for name, value in self.headers.items():
            if _NOT_IN_HEADER.search(value):
                raise ValueError(f"header {name!r} contains a control character")
            lines.append(f"{name}: {value}")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + (self.body or b"")


class _Timed:
    """A socket whose reads end at the exchange's deadline, even if bytes trickle in or never stop."""

    deadline: Deadline
    #: Bytes that the exchange may still receive: `http.client` bounds neither interim answers nor trailers.
    budget: int
    #: The other end has closed its side.
    is_at_end = False

    def recv_into(self, *args: Any) -> int:
        self._expect()
        count: int = super().recv_into(*args)  # type: ignore[misc]
        self.is_at_end = not count
        self.budget -= count
        if self.budget < 0:
            raise http.client.HTTPException("the answer does not end")
        return count

    def _expect(self) -> None:
        """Let the next read end at the deadline."""
        self.settimeout(seconds_left(self.deadline))  # type: ignore[attr-defined]


class TimedTLSSocket(_Timed, ssl.SSLSocket):
    """A TLS connection, with the deadline and the bound of an exchange."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all bytes; the time-out of each piece ends at the deadline.

        Raises:
            TimeoutError: the deadline has passed.

        """
        self.settimeout(seconds_left(self.deadline))
        super().sendall(data, flags)


class TimedSocket(_Timed, socket.socket):
    """A TCP connection, with the deadline and the bound of an exchange.

    With Python's own time-out, each call is three system calls, and the thread waits for the interpreter lock after
    each. So the kernel's time-out, `SO_RCVTIMEO`, bounds the waits.
    """

    #: Seconds that the kernel waits for bytes; unlimited at first.
    _wait = math.inf

    def mark_connected(self) -> Self:
        """Switch Python's time-out off once the socket is connected; return the socket."""
        self.settimeout(None)
        return self

    def recv_into(self, *args: Any) -> int:
        """Receive bytes as soon as there are some.

        Raises:
            TimeoutError: the deadline has passed.
            http.client.HTTPException: the answer has more bytes than an answer may have.

        """
        try:
            return super().recv_into(*args)
        except BlockingIOError as error:
            raise TimeoutError from error

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send all bytes.

        Raises:
            TimeoutError: the deadline has passed.

        """
        rest = memoryview(data)
        while rest:
            seconds_left(self.deadline)
            try:
                rest = rest[self.send(rest, flags | socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self, select.POLLOUT)
                poll.poll(math.ceil(1000 * seconds_left(self.deadline)))

    def _expect(self) -> None:
        remaining = seconds_left(self.deadline)
        if _NEARLY * remaining <= self._wait <= remaining:
            return  # the time-out of the exchange before will do: most exchanges have as much time
        seconds, fraction = divmod(remaining, 1)
        # A time-out of zero would be none at all.
        wait = _TIMEVAL.pack(int(seconds), max(1, int(1_000_000 * fraction)))
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        self._wait = remaining


class Response(http.client.HTTPResponse):
    """An answer. An ordinary head is read here, with the same result as `http.client` has; others by `http.client`."""

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
            if self.status == http.HTTPStatus.SWITCHING_PROTOCOLS:  # the request asked for no other protocol
                raise http.client.HTTPException("another protocol")
            found.headers = found.msg = None  # makes `http.client` read another head
            super().begin()

    def _begin_plainly(self) -> bool:
        """Read the head if it is an ordinary one; return whether it is. Any other head stays in the buffer."""
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
    """An open connection, which knows whether an answer has begun."""

    def __init__(self, authority: str, sock: TimedSocket | TimedTLSSocket) -> None:
        """Use an open socket to the host and port of `authority`, in the form of the header `Host`."""
        self._authority = authority
        self.socket: Final = sock
        self.answered = False
        self._head_is_cut = False
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        #: Time of the last use, on the client's clock.
        self.idle_since = 0.0

    def ask(self, request: Request, deadline: Deadline) -> Response:
        """Send a request and receive the head of its answer. After an error the connection is closed.

        Raises:
            http.client.HTTPException: the answer is not HTTP, or the target contains a character that is not allowed.
            OSError: the request cannot be sent, or no answer comes within the deadline.

        """
        self.answered = False
        self.grant(deadline, MAX_EXCHANGE_BYTES)
        try:
            encoded = request.encode(self._authority)
            self.socket.sendall(encoded)
            return self._receive(request.method)
        except BaseException:
            self.close()
            raise

    def grant(self, deadline: Deadline, budget: int) -> None:
        """Set the deadline and the bound, in bytes, for the next reads."""
        self.socket.deadline = deadline
        self.socket.budget = budget

    def check_head(self) -> None:
        """Raise IncompleteRead if the head is cut short: `http.client` takes the connection's end for the head's."""
        if self._head_is_cut:
            raise http.client.IncompleteRead(b"")

    def is_readable(self) -> bool:
        """Return whether there are bytes to read, or the end, although no request is under way."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Close the connection. The socket closes once its answer is closed too."""
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


def seconds_left(deadline: Deadline) -> float:
    """Return the seconds left, as a time-out for a socket.

    Raises:
        TimeoutError: the deadline has passed. A socket with bytes to read would not notice.

    """
    remaining = deadline.remaining
    if not remaining:
        raise TimeoutError
    return remaining


def _may_begin_a_status_line(line: str) -> bool:
    protocol = "HTTP/"
    return not line.endswith("\n") and line[: len(protocol)] == protocol[: len(line)]
