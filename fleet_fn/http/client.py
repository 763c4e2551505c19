"""HTTP requests to one upstream, each within a deadline, over a pool of kept connections.

Every event makes at least one such request, and the library requests would take most of the event's CPU time. Nor does
it bound a whole exchange: its time-outs bound single waits. So this is a pool over `http.client`. It follows no
redirects, and reads nothing from the environment (proxies, `.netrc`).
"""

import contextlib
import http.client
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TooLargeError, UpstreamError
from fleet_fn.http.authorization import Authorization, Fixed, secrets_of
from fleet_fn.http.connection import (
    MAX_BODY_BYTES,
    MAX_EXCHANGE_BYTES,
    Connection,
    Request,
    Response,
    TimedSocket,
    TimedTLSSocket,
    seconds_left,
)
from fleet_fn.http.failures import raise_for_status, translate_errors
from fleet_fn.http.origin import Origin
from fleet_fn.http.tls import make_tls_context, make_wider_tls_context
from fleet_fn.observability import trace_context, tracing
from fleet_fn.observability.side_effects import Guarded

#: Idle connections that are kept, and for how long. Servers close idle connections after 5 s or more (Actix, Node). A
#: command that meets a closing connection cannot be sent again, so the pool closes its connections earlier.
MAX_IDLE_CONNECTIONS = 64
MAX_IDLE_SECONDS = 4.0
#: Methods whose requests may be sent twice (RFC 9110, section 9.2.2).
_IDEMPOTENT: Final = ("GET", "HEAD", "PUT")
#: How long to read the rest of an answer if only its status matters, to keep the connection.
_DISCARD_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """An upstream's answer, whatever its status."""

    status: int
    headers: http.client.HTTPMessage
    #: Not in `repr`: the token endpoint's body is a secret.
    body: bytes = field(repr=False)


#: Called after each request: with the status of its answer, None without an answer, and the seconds until then.
Count = Callable[[int | None, float], None]


class HttpClient:
    """A client of one upstream. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        authorization: Authorization | None = None,
        ca_file: str | None = None,
        single_flight: SingleFlight | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask the upstream at `url`, which reasons call `name`.

        Args:
            name: the upstream's name in reasons.
            url: base URL; paths of requests are appended to it.
            authorization: is asked for credentials before each request; None sends none.
            ca_file: PEM file with the trusted authorities; None trusts the system's.
            single_flight: runs name resolutions.
            clock: seconds; measures idle connections and durations.

        """
        self.name = name
        self.origin = Origin.of(url)
        self._authorization = authorization or Fixed()
        self._ca_file = ca_file
        self._single_flight = single_flight or SingleFlight()
        self._tls = make_tls_context(ca_file) if self.origin.secure else None
        self._permits: Callable[[str], bool] | None = None
        self._idle: deque[Connection] = deque()
        self._max_idle = MAX_IDLE_CONNECTIONS
        self._clock = clock
        self._count: Guarded | None = None
        self._metrics_name = name
        self._passes_trace = True

    def with_name(self, name: str) -> "HttpClient":
        """Return a client with the same connections and another name in reasons."""
        other = copy(self)
        other.name = name
        return other

    def with_count(self, metrics_name: str, count: Count) -> "HttpClient":
        """Return a client with the same connections that counts and traces its requests.

        Args:
            metrics_name: the upstream's name in traces.
            count: is called after each request.

        """
        other = copy(self)
        other._metrics_name, other._count = metrics_name, Guarded("count of requests", count)
        return other

    def for_redirect(self, url: str, permits: Callable[[str], bool]) -> "HttpClient":
        """Return a client of another upstream, which this one redirects to, without this one's credentials.

        The client also trusts the system's authorities. It connects only to addresses that pass `permits`, whatever
        the host's name resolves to by then.
        """
        other = copy(self)
        other.origin = Origin.of(url)
        other.name = f"{self.name}, sent to {other.origin.host}"
        other._authorization = Fixed()
        other._tls = make_wider_tls_context(self._ca_file) if other.origin.secure else None
        other._permits = permits
        other._idle = deque()
        other._max_idle = 0  # only one request is made
        other._passes_trace = False  # a stranger may run it
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
        """Send a request and return its answer, which has any status but 429 and 5xx.

        If the server closes a kept connection without an answer, it may have acted on the request. Only an idempotent
        request is then sent again (RFC 9110, section 9.2.2); a POST never is. A request that the server refused for
        its credentials had no effect: it is sent once more if there are others.

        Args:
            method: an HTTP method.
            path: follows the upstream's base URL; percent-encoded, query included.
            deadline: ends the whole exchange.
            headers: further headers.
            body: the request's body; None sends none.
            content_type: media type of the body.
            wants_body: False leaves the answer's body empty, and ignores errors in it.

        Raises:
            TransientError: no answer within the deadline, or no connection, or 5xx.
            RateLimitedError: 429.
            TooLargeError: the answer is larger than `MAX_BODY_BYTES`.
            PermanentError: the answer is not HTTP; the certificate is not trusted; or the host has no address that
                requests may go to.

        """
        if content_type:
            headers = {**headers, "Content-Type": content_type}
        with self._mark_unsent():  # the credentials may have to be fetched first
            request = self._request(method, path, headers, body, wants_body, deadline)
        with translate_errors(self.name):
            answer = self._exchange(request, deadline)
        refused = request.headers.get("Authorization")
        if answer.status in (401, 403) and refused is not None:
            other = self._authorization.refresh(refused, answer.status, deadline)
            if other is not None:
                request = replace(request, headers={**request.headers, "Authorization": other})
                with translate_errors(self.name):
                    answer = self._exchange(request, deadline)
        raise_for_status(self.name, answer.status, answer.headers)
        return answer

    @contextmanager
    def stream(
        self, path: str, deadline: Deadline, headers: Mapping[str, str] = MappingProxyType({})
    ) -> "Iterator[Stream]":
        """Send a GET and yield its answer, whose body can be read piece by piece; its status is not 429 or 5xx.

        Args:
            path: as with `request`.
            deadline: ends the wait for the answer's head.
            headers: further headers.

        Raises:
            TransientError, RateLimitedError, PermanentError: as with `request`.

        """
        request = self._request("GET", path, headers, None, False, deadline)
        with translate_errors(self.name):
            connection, response = self._begin(request, deadline)
        try:
            raise_for_status(self.name, response.status, response.headers)
            with translate_errors(self.name):
                connection.check_head()
            yield Stream(self, connection, response)
        finally:
            self._end(connection, response)

    def addresses(self, deadline: Deadline) -> list[str]:
        """Return the IP addresses that the host's name resolves to.

        Raises:
            TransientError: the name has no address, or the resolver takes longer than the deadline.

        """
        with translate_errors(self.name):
            return [str(address[0]) for *_, address in self._resolve(deadline)]

    def reveals(self, text: str, deadline: Deadline) -> bool:
        """Return whether a text contains our credentials: some servers repeat the request in their answer.

        Raises:
            TransientError, PermanentError: the credentials cannot be had.

        """
        return any(secret in text for secret in secrets_of(self._authorization.header(deadline) or ""))

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
    def _mark_unsent(self) -> Iterator[None]:
        """Mark errors as those of a request that was never sent."""
        try:
            with translate_errors(self.name):
                yield
        except UpstreamError as error:
            raise error.without_effect()  # noqa: B904 - the same error

    def close(self) -> None:
        """Close the idle connections; a later request opens a new one."""
        while self._idle:
            self._idle.pop().close()

    def _exchange(self, request: Request, deadline: Deadline) -> Answer:
        connection, response = self._begin(request, deadline)
        try:
            if not request.wants_body:
                return Answer(response.status, response.headers, _discard(connection, response))
            connection.check_head()
            return Answer(response.status, response.headers, self._read_body(response))
        finally:
            self._end(connection, response)

    def _begin(self, request: Request, deadline: Deadline) -> tuple[Connection, Response]:
        """Send a request and receive the head of its answer; count and trace it if that is wanted."""
        if self._count is None:
            return self._ask(request, deadline)
        began, status = self._clock(), None
        try:
            with tracing.of_request(self._metrics_name, request.method, self.origin.host, self.origin.port) as span:
                if self._passes_trace and (headers := trace_context.headers()):
                    request = replace(request, headers={**request.headers, **headers})
                connection, response = self._ask(request, deadline)
                status = response.status
                span.set_attributes(status=status)
            return connection, response
        finally:
            self._count(status, self._clock() - began)

    def _ask(self, request: Request, deadline: Deadline) -> tuple[Connection, Response]:
        connection = self._take()
        if connection is not None:
            try:
                return connection, connection.ask(request, deadline)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
                # The server seems to have closed the idle connection: try a new one.
                if connection.answered or request.method not in _IDEMPOTENT:
                    raise
        with self._mark_unsent():
            connection = self._connect(deadline)
        return connection, connection.ask(request, deadline)

    def _end(self, connection: Connection, response: Response) -> None:
        """Keep the connection if the answer was read to its end; else close it."""
        is_over = response.isclosed() and not _announces_impossible_body(response)
        if not response.will_close and is_over and len(self._idle) < self._max_idle:
            connection.idle_since = self._clock()
            self._idle.append(connection)
        else:
            connection.close()
            response.close()  # an answer that ends the connection owns the socket

    def _read_body(self, response: Response) -> bytes:
        body = _read_bounded(response)
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError(f"{self.name}: answer larger than {MAX_BODY_BYTES} bytes")
        if response.length:  # the body is shorter than announced, for which read(n) raises no error
            raise http.client.IncompleteRead(body, response.length)
        return body

    def _take(self) -> "Connection | None":
        """Return the most recently used idle connection that still seems open; None without one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return None
            if self._clock() - connection.idle_since < MAX_IDLE_SECONDS and not connection.is_readable():
                return connection
            connection.close()

    def _connect(self, deadline: Deadline) -> Connection:
        """Open a connection; each address of the host gets its share of the time.

        Raises:
            OSError: no address could be connected to.
            PermanentError: requests may go to none of the host's addresses.

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
                sock.settimeout(seconds_left(deadline) / (len(addresses) - index))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return Connection(self.origin.authority, self._wrap(sock, deadline))
            except OSError as error:
                if sock is not None:
                    sock.close()
                failure = error
        raise failure

    def _resolve(self, deadline: Deadline) -> list[Any]:
        """Return the result of `getaddrinfo`.

        Raises:
            OSError: the host is not found, or not in time.

        """
        host, port = self.origin.host, self.origin.port
        # The resolver takes no time-out, so it runs in a thread of its own.
        return self._single_flight.result(
            ("resolve", host, port), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline
        )

    def _wrap(self, sock: TimedSocket, deadline: Deadline) -> TimedSocket | TimedTLSSocket:
        if self._tls is None:
            return sock.mark_connected()
        sock.settimeout(seconds_left(deadline))
        wrapped = self._tls.wrap_socket(sock, server_hostname=self.origin.host)
        assert isinstance(wrapped, TimedTLSSocket)  # noqa: S101 - the context's sslsocket_class
        return wrapped


class Stream:
    """An answer whose body is still to be read."""

    def __init__(self, client: HttpClient, connection: Connection, response: Response) -> None:
        self._client = client
        self._connection = connection
        self._response = response
        self.status = response.status
        self.headers = response.headers

    def read(self, size: int, deadline: Deadline) -> bytes:
        """Return the next bytes of the body: at least 1 and at most `size`, or none at its end.

        Raises:
            TransientError: nothing came within the deadline, or the connection broke.
            PermanentError: the body is not HTTP.

        """
        # A chunk of one byte takes six bytes on the wire.
        self._connection.grant(deadline, 8 * size + MAX_EXCHANGE_BYTES)
        with translate_errors(self._client.name):
            try:
                piece = self._response.read1(size)
            except ValueError as error:  # a chunk of a negative size
                raise http.client.HTTPException("malformed body") from error
            if len(piece) > size:  # again a chunk of a negative size
                raise http.client.HTTPException("malformed body")
            if not piece and self._response.length:  # shorter than announced, for which read1 raises no error
                raise http.client.IncompleteRead(piece, self._response.length)
            if self._response.length == 0:  # read1 does not notice the end either
                self._response.close()
            return piece


def _read_bounded(response: Response) -> bytes:
    """Read the body, or its beginning if it is larger than `MAX_BODY_BYTES`."""
    try:
        return response.read(MAX_BODY_BYTES + 1)
    except ValueError as error:  # a chunk of a negative size
        raise http.client.HTTPException("malformed body") from error


def _announces_impossible_body(response: Response) -> bool:
    """Return whether a 204 announces a body (RFC 9110, section 8.6). The next bytes may then be anything."""
    if response.status != http.HTTPStatus.NO_CONTENT:
        return False
    return response.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in response.headers


def _discard(connection: Connection, response: Response) -> bytes:
    """Read the rest of the answer if it comes at once, so that the connection can be kept; return no bytes."""
    connection.socket.deadline = Deadline(min(_DISCARD_SECONDS, connection.socket.deadline.remaining))
    with contextlib.suppress(OSError, http.client.HTTPException):
        _read_bounded(response)
    return b""
