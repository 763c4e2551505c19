"""Delivery of events to the sink, one at a time per application.

It acts like one of the real deliverers. After a success, a deliverer goes on to the next event. It retries some
statuses, and a missing answer. After any other status it skips the event. After its last retry, drogue-event-source
exits, and its restart meets the same event, whose offset it has not committed. So one event that always gets 5xx stops
its application. Knative's dispatcher gives the event up instead.
"""

import base64
import http.client
import queue
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fleet_fn.deadline import Deadline
from fleet_fn.sandbox.deliverers import EVENT_SOURCE, Deliverer, Headers
from fleet_fn.sandbox.events import Event

#: How long the deliverer's process takes to restart.
RESTART_DELAY_SECONDS: Final = 2.0
#: Bytes that no deliverer's HTTP library writes into a header.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Sink:
    """The server that events go to."""

    url: str
    secure: bool
    host: str
    port: int
    #: Host and port in the form of the header `Host`: without the scheme's own port.
    authority: str
    target: str

    @classmethod
    def of(cls, url: str) -> "Sink":
        """Return the sink at an http or https URL.

        Raises:
            ValueError: the URL is malformed, or has credentials: they would be logged.

        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("the sink's URL must be http[s]://HOST[:PORT][/PATH], without credentials")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("the sink's URL must be printable ASCII without spaces")
        parts.hostname.encode("idna")  # raises the error that a look-up would raise
        secure = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        default_port = 443 if secure else 80
        port = parts.port or default_port
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(url, secure, parts.hostname, port, host if port == default_port else f"{host}:{port}", target)


def authorization(user: str | None, password: str | None, token: str | None) -> str | None:
    """Return the header `Authorization` for the sink: Basic, else Bearer; else None.

    Raises:
        ValueError: no header can carry the token; or there is a user without a password, or the reverse.

    """
    if (user is None) != (password is None):
        raise ValueError("the sink's user and password must be given together")
    if user is not None:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ValueError("the sink's token must be printable ASCII")
    return None if token is None else f"Bearer {token}"


class Delivery:
    """Delivers events to a sink, which may change at any time.

    It is safe to use from several threads.
    """

    def __init__(
        self,
        sink: Sink | None,
        authorization: str | None,
        speed: float,
        log: Callable[[str], None],
        deliverer: Deliverer = EVENT_SOURCE,
    ) -> None:
        """Deliver to a sink.

        Args:
            sink: the server that events go to; None drops them.
            authorization: header with the sink's credentials.
            speed: divides all pauses and time-outs.
            log: takes one line for each attempt.
            deliverer: the deliverer to imitate.

        Raises:
            ValueError: the deliverer cannot send such credentials.

        """
        if authorization is not None and authorization.startswith("Basic ") and not deliverer.takes_basic:
            raise ValueError("a KafkaSource cannot send Basic credentials: use a sink token, or none")
        self.sink = sink
        self._authorization = authorization
        self._speed = speed
        self._log = log
        self._deliverer = deliverer
        self._queues: dict[str, queue.SimpleQueue[_Record | None]] = {}
        self._offsets: Counter[str] = Counter()
        #: Events that are over, by application.
        self._over: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._has_progress = threading.Condition(self._lock)
        self._stopping = threading.Event()
        self._has_logged_missing_sink = False

    def put(self, event: Event) -> None:
        """Deliver an event after all earlier ones of its application."""
        application = event.attributes["application"]
        with self._lock:
            if self._stopping.is_set():
                return
            if application not in self._queues:
                self._queues[application] = queue.SimpleQueue()
                thread = threading.Thread(
                    target=self._run, args=(application, self._queues[application]), name=f"deliver {application}"
                )
                thread.daemon = True
                thread.start()
                self._threads.append(thread)
            self._queues[application].put(_Record(event, self._offsets[application]))
            self._offsets[application] += 1

    def wait(self, application: str, seconds: float) -> bool:
        """Wait until all events of an application are over; return whether they are.

        An event is over once it was answered, skipped or given up.
        """
        with self._has_progress:
            return self._has_progress.wait_for(lambda: self._over[application] == self._offsets[application], seconds)

    def stop(self) -> None:
        """End all delivery, attempts under way included, and wait for the threads."""
        self._stopping.set()
        with self._lock:
            for waiting in self._queues.values():
                waiting.put(None)
            for sock in self._sockets:
                _shut(sock)
        for thread in self._threads:
            thread.join()

    def _run(self, application: str, records: "queue.SimpleQueue[_Record | None]") -> None:
        while (record := records.get()) is not None and not self._stopping.is_set():
            while not self._is_done(record) and not self._stopping.is_set():
                self._log(f"delivery of {application}'s events stops, and starts again at {record.event}")
                self._pause(RESTART_DELAY_SECONDS)
            with self._has_progress:
                self._over[application] += 1
                self._has_progress.notify_all()

    def _is_done(self, record: "_Record") -> bool:
        """Try to deliver an event; return whether the deliverer goes on to the next one."""
        event, policy = record.event, self._deliverer.policy
        headers = self._deliverer.write(event, self._authorization, record.offset)
        if any(_CONTROL.search(value) for _, value in headers):
            self._log(f"{event}: skipped, control characters don't fit into HTTP headers")
            return True
        for attempt in range(1 + policy.retries):
            if attempt:
                self._pause(policy.pause(attempt))
            if self._stopping.is_set():
                return False
            if (sink := self.sink) is None:
                self._log_missing_sink()
                return True
            try:
                status, answer = self._post(sink, headers, event.data)
            except (OSError, http.client.HTTPException) as error:
                if self._stopping.is_set():
                    return False
                answer = _describe(error)
            else:
                if not self._deliverer.is_retried(status):
                    self._log(f"{event}: {answer}" if 200 <= status < 300 else f"{event}: {answer}, skipped")
                    return True
            self._log(f"{event}: {answer}, attempt {attempt + 1} of {1 + policy.retries}")
        if not self._deliverer.restarts:
            self._log(f"{event}: given up, as without a dead-letter sink")
        return not self._deliverer.restarts

    def _post(self, sink: Sink, headers: Headers, data: bytes | None) -> tuple[int, str]:
        """Send an event; return the answer's status, and the answer in words.

        Raises:
            OSError: no answer came.
            HTTPException: the answer is not HTTP.

        """
        deadline = Deadline(self._deliverer.policy.timeout_seconds / self._speed)
        sock = self._connect(sink, deadline)
        try:
            lines = [f"POST {sink.target} HTTP/1.1".encode(), b"host: " + sink.authority.encode("ascii")]
            lines += [name.encode() + b": " + value for name, value in headers]
            sock.sendall(b"\r\n".join((*lines, b"", data or b"")))
            with closing(http.client.HTTPResponse(sock, method="POST")) as response:
                response.begin()  # deliverers ignore the body
            # The only place where the sandbox knows of the function: users want to see the outcome.
            outcome = response.getheader("Fleet-Outcome")
            return response.status, f"{response.status}, {outcome}" if outcome else str(response.status)
        finally:
            self._close(sock)

    def _connect(self, sink: Sink, deadline: Deadline) -> socket.socket:
        failure = OSError("host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(sink.host, sink.port, type=socket.SOCK_STREAM):
            sock: socket.socket = self._within(deadline, _Socket(family, kind, protocol))
            try:
                sock.connect(address)
                if sink.secure:
                    context = ssl.create_default_context()
                    context.sslsocket_class = _TLSSocket
                    sock = self._within(deadline, context.wrap_socket(sock, server_hostname=sink.host))
            except OSError as error:
                self._close(sock)
                failure = error
            else:
                return sock
        raise failure

    def _within(self, deadline: Deadline, sock: Any) -> Any:
        """Make a socket end at the deadline, or when delivery does; return the socket."""
        sock.deadline = deadline
        sock.settimeout(_positive(deadline.remaining))
        with self._lock:
            self._sockets.add(sock)
            if self._stopping.is_set():  # too late for stop() to see it
                _shut(sock)
        return sock

    def _close(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(sock)
        sock.close()

    def _log_missing_sink(self) -> None:
        """Log once that there is no sink."""
        with self._lock:
            was_logged, self._has_logged_missing_sink = self._has_logged_missing_sink, True
        if not was_logged:
            self._log("there is no sink: events are dropped")

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds / self._speed)


@dataclass(frozen=True, slots=True)
class _Record:
    """An event, with its place in the topic of its application."""

    event: Event
    offset: int


class _Timed:
    """A socket whose reads end at the attempt's deadline, even if bytes trickle in."""

    deadline: Deadline

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_positive(self.deadline.remaining))  # type: ignore[attr-defined]
        count: int = super().recv_into(*args)  # type: ignore[misc]
        return count


class _Socket(_Timed, socket.socket):
    pass


class _TLSSocket(_Timed, ssl.SSLSocket):
    pass


def _positive(seconds: float) -> float:
    """Return a time-out for a socket; 0 would make the socket non-blocking."""
    return max(seconds, 0.001)


def _shut(sock: socket.socket) -> None:
    """End another thread's call on a socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return f"no answer ({str(error).strip() or type(error).__name__})"
