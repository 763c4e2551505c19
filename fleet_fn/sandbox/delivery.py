"""Events on their way to the sink, one at a time for each application, as one of the real deliverers sends them.

A deliverer knows three outcomes: success, and on to the next event; a status that it retries, or no answer; anything
else, and the event is skipped. After its last retry drogue-event-source exits, is started again, and meets the same
event, since it has not committed that event's offset: one event that always gets 5xx stops its application. Knative's
dispatcher gives the event up instead.
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

#: Seconds that a process takes to be started again.
RESTART_DELAY: Final = 2.0
#: Bytes that no deliverer's HTTP library writes into a header.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Sink:
    """Where events go."""

    url: str
    secure: bool
    host: str
    port: int
    #: As the header `Host` has it: without a scheme's own port.
    authority: str
    target: str

    @classmethod
    def of(cls, url: str) -> "Sink":
        """The sink at an http or https URL.

        Raises:
            ValueError: not such a URL; credentials in it are refused too, since it is logged.

        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("want a sink like http[s]://HOST[:PORT][/PATH], without credentials")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("a sink's URL is printable ASCII without spaces")
        parts.hostname.encode("idna")  # which looking it up would fail on
        secure = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        usual = 443 if secure else 80
        port = parts.port or usual
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(url, secure, parts.hostname, port, host if port == usual else f"{host}:{port}", target)


def authorization(user: str | None, password: str | None, token: str | None) -> str | None:
    """The `Authorization` header for a sink that wants credentials: Basic, else Bearer; else None.

    Raises:
        ValueError: a token that no header can carry, or half a pair of user and password.

    """
    if (user is None) != (password is None):
        raise ValueError("a sink's user and password go together")
    if user is not None:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if token is not None and not (token.isascii() and token.isprintable()):
        raise ValueError("a sink's token is printable ASCII")
    return None if token is None else f"Bearer {token}"


class Delivery:
    """Delivers events to a sink, which may be exchanged at any time. Safe to use from several threads."""

    def __init__(
        self,
        sink: Sink | None,
        authorization: str | None,
        speed: float,
        log: Callable[[str], None],
        deliverer: Deliverer = EVENT_SOURCE,
    ) -> None:
        """Deliver to `sink`, or drop everything, with all pauses and timeouts divided by `speed`.

        Args:
            sink: where events go.
            authorization: the header for a sink that wants credentials.
            speed: how many times faster than the original.
            log: takes one line for each thing that happens.
            deliverer: whose requests and retries these are.

        Raises:
            ValueError: the deliverer cannot show such credentials.

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
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._told_of_no_sink = False

    def put(self, event: Event) -> None:
        """Take an event to deliver after all others of its application."""
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

    def stop(self) -> None:
        """End all delivery, attempts under way included, and waits for the threads."""
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
                self._pause(RESTART_DELAY)

    def _is_done(self, record: "_Record") -> bool:
        """Return whether the deliverer is through with an event, successfully or not."""
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
                self._tell_of_no_sink()
                return True
            try:
                status, told = self._answer(sink, headers, event.data)
            except (OSError, http.client.HTTPException) as error:
                if self._stopping.is_set():
                    return False
                told = _told(error)
            else:
                if not self._deliverer.is_retried(status):
                    self._log(f"{event}: {told}" if 200 <= status < 300 else f"{event}: {told}, skipped")
                    return True
            self._log(f"{event}: {told}, attempt {attempt + 1} of {1 + policy.retries}")
        if not self._deliverer.restarts:
            self._log(f"{event}: given up, as without a dead-letter sink")
        return not self._deliverer.restarts

    def _answer(self, sink: Sink, headers: Headers, data: bytes | None) -> tuple[int, str]:
        """Return the sink's status, and a word on it.

        Raises:
            OSError: no answer.
            HTTPException: an answer that is not HTTP.

        """
        deadline = Deadline(self._deliverer.policy.timeout_seconds / self._speed)
        sock = self._connected(sink, deadline)
        try:
            lines = [f"POST {sink.target} HTTP/1.1".encode(), b"host: " + sink.authority.encode("ascii")]
            lines += [name.encode() + b": " + value for name, value in headers]
            sock.sendall(b"\r\n".join((*lines, b"", data or b"")))
            with closing(http.client.HTTPResponse(sock, method="POST")) as response:
                response.begin()  # the body does not matter: the status says it all
            # What the function says about an event, and the only thing here that knows it.
            outcome = response.getheader("Fleet-Outcome")
            return response.status, f"{response.status}, {outcome}" if outcome else str(response.status)
        finally:
            self._close(sock)

    def _connected(self, sink: Sink, deadline: Deadline) -> socket.socket:
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
        """A socket that ends at the deadline, or when delivery does."""
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

    def _tell_of_no_sink(self) -> None:
        with self._lock:
            told, self._told_of_no_sink = self._told_of_no_sink, True
        if not told:
            self._log("there is no sink: events are dropped")

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds / self._speed)


@dataclass(frozen=True, slots=True)
class _Record:
    """An event, with its place in the topic of its application."""

    event: Event
    offset: int


class _Timed:
    """A socket whose every read ends at the deadline of the attempt, however slowly bytes trickle in."""

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
    """A time-out for a socket, for which 0 would mean not to wait at all."""
    return max(seconds, 0.001)


def _shut(sock: socket.socket) -> None:
    """End whatever another thread is doing with a socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return f"no answer ({str(error).strip() or type(error).__name__})"
