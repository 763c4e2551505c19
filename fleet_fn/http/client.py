"""One HTTP request to an upstream, within a deadline, over connections that are kept.

Every event makes at least one such request, and `requests` is the dearest thing in a function that does nothing else;
nor does it know of a deadline for a whole exchange, only of one for each wait. So this is `http.client` with a pool.
Redirects are not followed, and nothing is read from the environment (proxies, `.netrc`).
"""

import base64
import contextlib
import errno
import http.client
import math
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TooLargeError, TransientError, UpstreamError
from fleet_fn.http.connection import (
    MAX_BODY,
    MAX_EXCHANGE,
    Connection,
    Request,
    Response,
    TimedSocket,
    TimedTLSSocket,
    left,
)
from fleet_fn.observability import trace_context, tracing
from fleet_fn.observability.side_effects import Guarded

#: Connections that are kept while nobody uses them, and seconds for which they are: less than servers wait before they
#: close idle ones (5 s with Actix and Node), because a command that meets a closing connection cannot be sent again.
MAX_IDLE = 64
MAX_IDLE_SECONDS = 4.0
#: Seconds that an upstream may want to be left alone: eleven days are as good as for ever.
_LONGEST = 999_999
#: Methods of which a second request changes nothing that the first has not (RFC 9110, section 9.2.2).
_IDEMPOTENT: Final = ("GET", "HEAD", "PUT")
#: Seconds that the rest of an answer is waited for whose status was all that mattered.
_PATIENCE = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer, whatever its status."""

    status: int
    headers: http.client.HTTPMessage
    #: Not in `repr`: a token's is one.
    body: bytes = field(repr=False)


class Origin(NamedTuple):
    """Scheme, host and port (RFC 6454), and the path below which an upstream's interface lies."""

    secure: bool
    host: str
    port: int
    path: str

    @classmethod
    def of(cls, url: str) -> "Origin":
        """The origin of an http or https URL that the settings have checked."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname or "", parts.port or (443 if secure else 80), parts.path.rstrip("/"))

    @property
    def url(self) -> str:
        """The URL again, without anything that is secret."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port as the header `Host` names them (RFC 9110, section 7.2): without the port of the scheme."""
        name = self.host if self.host.isascii() else self.host.encode("idna").decode("ascii")
        if ":" in name:
            name = f"[{name}]"
        return name if self.port == (443 if self.secure else 80) else f"{name}:{self.port}"


#: Told of each request: the status of its answer, None where none came, and after how many seconds it was known.
Count = Callable[[int | None, float], None]


class Authorization(Protocol):
    """What requests carry as credentials. Safe to use from several threads."""

    def header(self, deadline: Deadline) -> str | None:
        """The value of `Authorization`; None sends none.

        Raises:
            TransientError, PermanentError: there is none to be had.

        """

    def instead_of(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """Another value, worth one more try after a 401 or 403 to the one `refused`; None if there is none.

        Raises:
            TransientError, PermanentError: as with `header`.

        """


@dataclass(frozen=True, slots=True)
class Fixed:
    """Credentials that never change."""

    value: str | None = field(default=None, repr=False)

    def header(self, _: Deadline) -> str | None:
        """The value."""
        return self.value

    def instead_of(self, _refused: str, _status: int, _deadline: Deadline) -> None:
        """There is no other."""


def basic(user: str, password: str) -> str:
    """The value of an `Authorization` header (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


class HttpClient:
    """An HTTP server that events need. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        authorization: Authorization = Fixed(),
        ca_file: str | None = None,
        background: SingleFlight | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """An upstream at `url`, called `name` in reasons; `authorization` is asked before each request."""
        self.name = name
        self.origin = Origin.of(url)
        self._authorization = authorization
        self._ca_file = ca_file
        self._background = background or SingleFlight()
        self._tls = _tls_context(ca_file) if self.origin.secure else None
        self._permits: Callable[[str], bool] | None = None
        self._idle: deque[Connection] = deque()
        self._max_idle = MAX_IDLE
        self._clock = clock
        self._count: Guarded | None = None
        self._called = name
        self._passes_trace = True

    def named(self, name: str) -> "HttpClient":
        """Return the same upstream, with the same connections, under another name in reasons."""
        other = copy(self)
        other.name = name
        return other

    def counted(self, called: str, count: Count) -> "HttpClient":
        """The same upstream, with the same connections, for what events need of it.

        `count` is told of each request that is made by this one, as are traces, which know it by what it is `called`.
        """
        other = copy(self)
        other._called, other._count = called, Guarded("count of requests", count)
        return other

    def elsewhere(self, url: str, permits: Callable[[str], bool]) -> "HttpClient":
        """An upstream at another `url`, where this one sent us, without the authorization of this one.

        The system's trust anchors count there, too. Only addresses that `permits` says yes to are connected to,
        whatever the host's name resolves to by then.
        """
        other = copy(self)
        other.origin = Origin.of(url)
        other.name = f"{self.name}, sent to {other.origin.host}"
        other._authorization = Fixed()
        other._tls = _wider_tls_context(self._ca_file) if other.origin.secure else None
        other._permits = permits
        other._idle = deque()
        other._max_idle = 0  # it is asked once
        other._passes_trace = False  # it may be anybody's
        return other

    def request(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        body: bytes | None = None,
        content_type: str | None = None,
        wants_body: bool = True,
    ) -> Answer:
        """The answer to one request, of any status but 429 and 5xx.

        What a server may have acted on before it closed the connection is sent again only where that makes no
        difference (RFC 9110, section 9.2.2): a POST never is. What it refused for its credentials it has not acted on;
        that is tried once more where there are others.

        Args:
            method: an HTTP method.
            path: what follows the upstream's base URL, percent-encoded, query included.
            deadline: when the whole exchange has to have ended.
            headers: what to send besides.
            body: what to send; None sends none.
            content_type: its media type.
            wants_body: whether the answer's body matters; if not it is left empty, and nothing wrong with it does.

        Raises:
            TransientError: no answer within the deadline, or no connection, or 5xx.
            RateLimitedError: 429.
            TooLargeError: an answer larger than `MAX_BODY`.
            PermanentError: an answer that is not HTTP; a certificate that is not trusted; a host
                without an address that may be connected to.

        """
        if content_type:
            headers = {**headers, "Content-Type": content_type}
        with self._unsent():  # credentials may have to be fetched first
            request = self._request(method, path, headers, body, wants_body, deadline)
        with self._reasons():
            answer = self._exchange(request, deadline)
        refused = request.headers.get("Authorization")
        if answer.status in (401, 403) and refused is not None:
            other = self._authorization.instead_of(refused, answer.status, deadline)
            if other is not None:
                request = replace(request, headers={**request.headers, "Authorization": other})
                with self._reasons():
                    answer = self._exchange(request, deadline)
        self._raise_for_status(answer.status, answer.headers)
        return answer

    @contextmanager
    def stream(
        self, path: str, deadline: Deadline, headers: Mapping[str, str] = MappingProxyType({})
    ) -> "Iterator[Stream]":
        """The answer to a GET whose body is read piece by piece; its status is any but 429 and 5xx.

        Args:
            path: as with `request`.
            deadline: when the answer's head has to have come.
            headers: what to send besides.

        Raises:
            TransientError, RateLimitedError, PermanentError: as with `request`.

        """
        request = self._request("GET", path, headers, None, False, deadline)
        with self._reasons():
            connection, response = self._begin(request, deadline)
        try:
            self._raise_for_status(response.status, response.headers)
            with self._reasons():
                connection.check_head()
            yield Stream(self, connection, response)
        finally:
            self._end(connection, response)

    def addresses(self, deadline: Deadline) -> list[str]:
        """The IP addresses that the host's name resolves to.

        Raises:
            TransientError: there are none, or the resolver takes longer than the deadline.

        """
        with self._reasons():
            return [str(address[0]) for *_, address in self._resolve(deadline)]

    def reveals(self, text: str, deadline: Deadline) -> bool:
        """Whether what somebody said has our credentials in it: some servers repeat what they were asked.

        Raises:
            TransientError, PermanentError: as with `request`, where there are none to be had.

        """
        scheme, _, value = (self._authorization.header(deadline) or "").partition(" ")
        secrets = [value]
        if scheme == "Basic":
            secrets.append(base64.b64decode(value).decode().partition(":")[2])
        return any(secret in text for secret in secrets if secret)

    def _request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        wants_body: bool,
        deadline: Deadline,
    ) -> Request:
        headers = {"Accept": "application/json", "User-Agent": "fleet-fn", **headers}
        if authorization := self._authorization.header(deadline):
            headers["Authorization"] = authorization
        return Request(method, self.origin.path + path, headers, body, wants_body)

    @contextmanager
    def _unsent(self) -> Iterator[None]:
        """Mark what is raised as an error of a request that was never sent."""
        try:
            with self._reasons():
                yield
        except UpstreamError as error:
            raise error.without_effect()  # noqa: B904 - the same error

    @contextmanager
    def _reasons(self) -> Iterator[None]:
        """Turns what sockets, TLS and HTTP raise into our two errors."""
        try:
            yield
        except TimeoutError as error:
            raise TransientError(f"{self.name}: no answer in time") from error
        except ssl.SSLCertVerificationError as error:
            raise PermanentError(f"{self.name}: certificate not trusted: {error.verify_message}") from error
        except ssl.SSLError as error:
            if error.reason == "WRONG_VERSION_NUMBER":  # which is what TLS makes of "HTTP/1.1 400"
                raise PermanentError(f"{self.name}: does not speak TLS") from error
            raise TransientError(f"{self.name}: {_told(error)}") from error
        except http.client.IncompleteRead as error:
            raise TransientError(f"{self.name}: answer cut short") from error
        except OSError as error:
            raise TransientError(f"{self.name}: {_told(error)}") from error
        except http.client.HTTPException as error:
            raise PermanentError(f"{self.name}: answer is not HTTP ({type(error).__name__})") from error

    def _raise_for_status(self, status: int, headers: http.client.HTTPMessage) -> None:
        if status == 429:
            raise RateLimitedError(f"{self.name}: answered {status}", _retry_after(headers)).without_effect()
        if status >= 500:
            raise TransientError(f"{self.name}: answered {status}", _retry_after(headers))

    def close(self) -> None:
        """Closes the connections that are kept; a later request makes a new one."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, request: Request, deadline: Deadline) -> Answer:
        connection, response = self._begin(request, deadline)
        try:
            if not request.wants_body:
                return Answer(response.status, response.headers, _discard(connection, response))
            connection.check_head()
            return Answer(response.status, response.headers, self._whole_body(response))
        finally:
            self._end(connection, response)

    def _begin(self, request: Request, deadline: Deadline) -> tuple[Connection, Response]:
        """Sends a request, and receives the head of its answer."""
        if self._count is None:
            return self._ask(request, deadline)
        began, status = self._clock(), None
        try:
            with tracing.of_request(self._called, request.method, self.origin.host, self.origin.port) as span:
                if self._passes_trace and (headers := trace_context.headers()):
                    request = replace(request, headers={**request.headers, **headers})
                connection, response = self._ask(request, deadline)
                status = response.status
                span.tell(status=status)
            return connection, response
        finally:
            self._count(status, self._clock() - began)

    def _ask(self, request: Request, deadline: Deadline) -> tuple[Connection, Response]:
        connection = self._take()
        if connection is not None:
            try:
                return connection, connection.ask(request, deadline)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # Closed by the server while nobody used it, it seems: a new connection will do.
                if connection.answered or request.method not in _IDEMPOTENT:
                    raise
        with self._unsent():
            connection = self._connect(deadline)
        return connection, connection.ask(request, deadline)

    def _end(self, connection: Connection, response: Response) -> None:
        """Keeps the connection where the answer has been read to its end."""
        is_over = response.isclosed() and not _announces_what_cannot_be(response)
        if not response.will_close and is_over and len(self._idle) < self._max_idle:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()
            response.close()  # which has the socket to itself where no other answer can follow

    def _whole_body(self, response: Response) -> bytes:
        body = _body(response)
        if len(body) > MAX_BODY:
            raise TooLargeError(f"{self.name}: answer larger than {MAX_BODY} bytes")
        if response.length:  # what read(n) does not tell: the body is shorter than announced
            raise http.client.IncompleteRead(body, response.length)
        return body

    def _take(self) -> "Connection | None":
        """The most recently used idle connection that nobody has closed, as far as can be told."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if self._clock() - connection.idle_since < MAX_IDLE_SECONDS and not connection.readable():
                return connection
            connection.close()

    def _connect(self, deadline: Deadline) -> Connection:
        """A new connection; each address of the host gets its share of the time.

        Raises:
            OSError: none could be made.

        """
        addresses = self._resolve(deadline)
        if self._permits is not None:
            addresses = [known for known in addresses if self._permits(str(known[-1][0]))]
            if not addresses:
                raise PermanentError(f"{self.name}: no address that requests may go to")
        failure: OSError = TimeoutError()
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = None
            try:
                sock = TimedSocket(family, kind, protocol)
                sock.settimeout(left(deadline) / (len(addresses) - index))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Connection(self.origin.authority, self._secured(sock, deadline))
            except OSError as error:
                if sock is not None:
                    sock.close()
                failure = error
        raise failure

    def _resolve(self, deadline: Deadline) -> list[Any]:
        """What `getaddrinfo` returns.

        Raises:
            OSError: the host is not found, or not in time.

        """
        host, port = self.origin.host, self.origin.port
        # The resolver has no time-out that could be set from here.
        return self._background.result(
            ("resolve", host, port), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline
        )

    def _secured(self, sock: TimedSocket, deadline: Deadline) -> TimedSocket | TimedTLSSocket:
        if self._tls is None:
            return sock.is_made()
        sock.settimeout(left(deadline))
        secured = self._tls.wrap_socket(sock, server_hostname=self.origin.host)
        assert isinstance(secured, TimedTLSSocket)  # noqa: S101 - the context's sslsocket_class
        return secured


class Stream:
    """An answer whose body is still to be read."""

    def __init__(self, upstream: HttpClient, connection: Connection, response: Response) -> None:
        self._upstream = upstream
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def read(self, size: int, deadline: Deadline) -> bytes:
        """What comes next of the body: at least 1 byte and at most `size`, or none at its end.

        Raises:
            TransientError: nothing came within the deadline, or the connection broke.
            PermanentError: what comes is not HTTP.

        """
        # A chunk of one byte takes six.
        self._connection.grant(deadline, 8 * size + MAX_EXCHANGE)
        with self._upstream._reasons():
            try:
                piece = self._response.read1(size)
            except ValueError as error:  # a chunk of a negative size
                raise http.client.HTTPException("malformed body") from error
            if len(piece) > size:  # another one
                raise http.client.HTTPException("malformed body")
            if not piece and self._response.length:  # what read1 does not tell: the body is shorter than announced
                raise http.client.IncompleteRead(piece, self._response.length)
            if self._response.length == 0:  # nor does it see that this was all
                self._response.close()
            return piece


def _body(response: Response) -> bytes:
    try:
        return response.read(MAX_BODY + 1)
    except ValueError as error:  # a chunk of a negative size
        raise http.client.HTTPException("malformed body") from error


def _announces_what_cannot_be(response: Response) -> bool:
    """Whether a body is announced where there is none (RFC 9110, section 8.6): who knows what comes next then."""
    if response.status != http.HTTPStatus.NO_CONTENT:
        return False
    return response.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in response.headers


def _discard(connection: Connection, response: Response) -> bytes:
    """Reads what is left of the answer, so that the connection can be kept, if that is there at once."""
    connection.socket.deadline = Deadline(min(_PATIENCE, connection.socket.deadline.remaining))
    with contextlib.suppress(OSError, http.client.HTTPException):
        _body(response)
    return b""


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.sslsocket_class = TimedTLSSocket
    return context


@cache
def _wider_tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Trusts the system's authorities besides those in `ca_file`: a private registry may lead to a public host."""
    context = _tls_context(None)
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _told(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "host not found"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return "connection closed without an answer"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _retry_after(headers: http.client.HTTPMessage) -> int | None:
    """Seconds until what the header says, in either of its forms (RFC 9110, section 10.2.3)."""
    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return int(value) if len(value) < 7 else _LONGEST
    try:
        moment = parsedate_to_datetime(value)
        seconds = (moment - datetime.now(moment.tzinfo)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0, math.ceil(seconds)), _LONGEST)
