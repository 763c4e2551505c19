"""HTTP requests to one upstream, each within a deadline, over kept connections.

The client follows no redirects. It takes neither proxies nor a `.netrc` from the environment, only the system's trusted
authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from types import MappingProxyType

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.http.authorization import Authorization, Fixed, secrets_of
from fleet_fn.http.download import Download
from fleet_fn.http.failures import TransferError, as_upstream_error, raise_for_status
from fleet_fn.http.handle import Handle
from fleet_fn.http.messages import Answer, Request
from fleet_fn.http.origin import Origin
from fleet_fn.http.pool import MAX_IDLE_CONNECTIONS, Pool
from fleet_fn.http.tls import Trust
from fleet_fn.observability import trace_context, tracing
from fleet_fn.observability.side_effects import Guarded, guard

#: Called after each request: with the status of its answer, None without an answer, and the seconds until then.
Count = Callable[[int | None, float], None]


class HttpClient:
    """HTTP client of one upstream. Safe to use from several threads."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        authorization: Authorization | None = None,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask the upstream at `url`, which reasons call `name`.

        Args:
            name: the upstream's name in reasons.
            url: base URL; paths of requests are appended to it.
            authorization: is asked for credentials before each request; None sends none.
            ca_file: PEM file with the trusted authorities; None trusts the system's.
            clock: seconds; measures idle connections and durations.

        """
        self.name = name
        self.origin = Origin.of(url)
        self._authorization = authorization or Fixed()
        self._trust = Trust.of(ca_file)
        self._clock = clock
        self._count: Guarded | None = None
        self._metrics_name = name
        self._passes_trace = True
        #: IP address that the last answer with a body came from; None before the first one.
        self.address: str | None = None
        self._open_pools(MAX_IDLE_CONNECTIONS, None)

    def with_name(self, name: str) -> "HttpClient":
        """Return a client with the same connections and another name in reasons."""
        other = copy(self)
        other.name = name
        return other

    def with_authorization(self, authorization: Authorization) -> "HttpClient":
        """Return a client with the same connections that sends other credentials."""
        other = copy(self)
        other._authorization = authorization
        return other

    def with_count(self, metrics_name: str, count: Count) -> "HttpClient":
        """Return a client with the same connections that counts and traces its requests.

        Args:
            metrics_name: the upstream's name in traces.
            count: is called after each request.

        """
        other = copy(self)
        other._metrics_name, other._count = metrics_name, guard("count of requests", count)
        return other

    def for_redirect(self, url: str, permits: Callable[[str], bool]) -> "HttpClient":
        """Return a client of an upstream that this one redirects to.

        It has none of this one's credentials. The client also trusts the system's authorities. It connects only to
        addresses that pass `permits`, whatever the host's name resolves to by then.
        """
        other = copy(self)
        other.origin = Origin.of(url)
        other.name = f"{self.name}, sent to {other.origin.host}"
        other._authorization = Fixed()
        other._trust = self._trust.widen()
        other._passes_trace = False  # a stranger may run it
        other._open_pools(0, permits)  # only one request is made
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
            wants_body: False leaves the answer's headers and body empty, and ignores errors in its body.

        Raises:
            TransientError: no answer within the deadline, or no connection, or 5xx.
            RateLimitedError: 429.
            TooLargeError: the answer is larger than `MAX_BODY_BYTES`.
            PermanentError: the answer is not HTTP; the certificate is not trusted; or the host has no address that
                requests may go to.

        """
        if content_type:
            headers = {"Content-Type": content_type, **headers}
        request = self._request(method, path, headers, body, wants_body, deadline)
        answer = self._exchange(request, deadline)
        refused = request.headers.get("Authorization")
        if answer.status in (401, 403) and refused is not None:
            try:
                other = self._authorization.refresh(refused, answer.status, deadline)
            except UpstreamError as error:
                raise error.without_effect()  # noqa: B904 - the same error
            if other is not None:
                request = replace(request, headers={**request.headers, "Authorization": other})
                answer = self._exchange(request, deadline)
        raise_for_status(self.name, answer.status, answer.retry_after)
        return answer

    @contextmanager
    def stream(
        self, path: str, deadline: Deadline, headers: Mapping[str, str] = MappingProxyType({})
    ) -> "Iterator[Stream]":
        """Send a GET and yield its answer, whose body can be read piece by piece.

        The status is neither 429 nor 5xx.

        Args:
            path: as with `request`.
            deadline: ends the wait for the answer's head.
            headers: further headers.

        Raises:
            TransientError, RateLimitedError, PermanentError: as with `request`.

        """
        request = self._request("GET", path, headers, None, True, deadline)
        download = self._downloads.take()
        try:
            answer = self._ask(download.begin, request, deadline)
            raise_for_status(self.name, answer.status, answer.retry_after)
            self.address = download.address
            yield Stream(self.name, download, answer)
        finally:
            self._downloads.give_back(download)

    def reveals(self, text: str, deadline: Deadline) -> bool:
        """Return whether a text contains our credentials.

        Some servers repeat the request in their answer.

        Raises:
            TransientError, PermanentError: the credentials cannot be had.

        """
        return any(secret in text for secret in secrets_of(self._authorization.header(deadline) or ""))

    def close(self) -> None:
        """Close the idle connections, also those for credentials.

        A later request opens new ones.
        """
        self._authorization.close()
        self._handles.close()
        self._downloads.close()

    def _open_pools(self, max_idle: int, permits: Callable[[str], bool] | None) -> None:
        origin, trust = self.origin, self._trust
        self._handles = Pool(lambda: Handle(origin, trust, permits), max_idle, self._clock)
        self._downloads = Pool(lambda: Download(origin, trust, permits), max_idle, self._clock)

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
        try:
            if authorization := self._authorization.header(deadline):  # which may have to be fetched first
                headers["Authorization"] = authorization
            return Request(method, self.origin.path + path, headers, body, wants_body)
        except UpstreamError as error:
            raise error.without_effect()  # noqa: B904 - the same error
        except ValueError as error:
            raise PermanentError(f"{self.name}: request not sent: {error}").without_effect() from error

    def _exchange(self, request: Request, deadline: Deadline) -> Answer:
        handle = self._handles.take()
        try:
            answer = self._ask(handle.exchange, request, deadline)
            if request.wants_body:
                self.address = handle.address
            return answer
        finally:
            self._handles.give_back(handle)

    def _ask(self, ask: Callable[[Request, Deadline], Answer], request: Request, deadline: Deadline) -> Answer:
        """Have a handle send a request; count and trace it if that is wanted."""
        if self._count is None:
            return self._translate(ask, request, deadline)
        began, status = self._clock(), None
        try:
            with tracing.of_request(self._metrics_name, request.method, self.origin.host, self.origin.port) as span:
                if self._passes_trace and (headers := trace_context.headers()):
                    request = replace(request, headers={**request.headers, **headers})
                answer = self._translate(ask, request, deadline)
                status = answer.status
                span.set_attributes(status=status)
            return answer
        finally:
            self._count(status, self._clock() - began)

    def _translate(self, ask: Callable[[Request, Deadline], Answer], request: Request, deadline: Deadline) -> Answer:
        try:
            return ask(request, deadline)
        except TransferError as error:
            raise as_upstream_error(self.name, error) from error


class Stream:
    """Answer whose body is still to be read."""

    def __init__(self, name: str, download: Download, answer: Answer) -> None:
        self._name = name
        self._download = download
        self.status = answer.status
        self.headers = answer.headers
        #: Bytes of the body; None if the head does not tell.
        self.length = download.length

    def read(self, size: int, deadline: Deadline) -> bytes:
        """Return the next bytes of the body: 1 to `size`, or none at its end.

        Raises:
            TransientError: nothing came within the deadline, or the connection broke.
            PermanentError: the body is not HTTP.

        """
        try:
            return self._download.read(size, deadline)
        except TransferError as error:
            raise as_upstream_error(self._name, error) from error
