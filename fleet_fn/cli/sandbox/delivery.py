"""Events on their way to the sink, one at a time for each application, as drogue-event-source delivers them.

It knows three outcomes: 2xx, and on to the next event; 5xx or no answer, and again a second later, up to five times;
anything else, and the event is skipped. After the last time it exits, is started again, and meets the same event,
because it has not told Kafka that it is done with it. So one event that always gets 5xx stops its application.
"""

import base64
import http.client
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from fleet_fn.cli.sandbox.events import Event
from fleet_fn.deadline import Deadline

#: Seconds for one attempt, from connecting to the answer's headers.
TIMEOUT: Final = 5.0
#: Attempts after the first, and the seconds before each.
RETRIES: Final = 5
RETRY_DELAY: Final = 1.0
#: Seconds that a process takes to be started again.
RESTART_DELAY: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sink:
    """Where events go."""

    url: str
    secure: bool
    host: str
    port: int
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
        return cls(url, secure, parts.hostname, parts.port or (443 if secure else 80), target)


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

    def __init__(self, sink: Sink | None, authorization: str | None, speed: float, log: Callable[[str], None]) -> None:
        """Delivers to `sink`, or drops everything, with all pauses and time-outs divided by `speed`.

        Args:
            sink: where events go.
            authorization: the header for a sink that wants credentials.
            speed: how many times faster than the original.
            log: takes one line for each thing that happens.

        """
        self.sink = sink
        self._authorization = authorization
        self._speed = speed
        self._log = log
        self._queues: dict[str, queue.SimpleQueue[Event | None]] = {}
        self._threads: list[threading.Thread] = []
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._told_of_no_sink = False

    def put(self, event: Event) -> None:
        """Takes an event to deliver after all others of its application."""
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
            self._queues[application].put(event)

    def stop(self) -> None:
        """Ends all delivery, attempts under way included, and waits for the threads."""
        self._stopping.set()
        with self._lock:
            for waiting in self._queues.values():
                waiting.put(None)
            for sock in self._sockets:
                _shut(sock)
        for thread in self._threads:
            thread.join()

    def _run(self, application: str, events: "queue.SimpleQueue[Event | None]") -> None:
        while (event := events.get()) is not None and not self._stopping.is_set():
            while not self._delivered(event) and not self._stopping.is_set():
                self._log(f"delivery of {application}'s events stops, and starts again at {event}")
                self._pause(RESTART_DELAY)

    def _delivered(self, event: Event) -> bool:
        """Whether we are done with an event, successfully or not."""
        if any(byte < 0x20 or byte == 0x7F for value in event.headers().values() for byte in value):
            self._log(f"{event}: skipped, control characters don't fit into HTTP headers")
            return True
        for attempt in range(1 + RETRIES):
            if attempt:
                self._pause(RETRY_DELAY)
            if self._stopping.is_set():
                return False
            if (sink := self.sink) is None:
                self._tell_of_no_sink()
                return True
            try:
                status, told = self._answer(sink, event)
            except (OSError, http.client.HTTPException) as error:
                if self._stopping.is_set():
                    return False
                told = _told(error)
            else:
                if 200 <= status < 300:
                    self._log(f"{event}: {told}")
                    return True
                if status < 500:
                    self._log(f"{event}: {told}, skipped")
                    return True
            self._log(f"{event}: {told}, attempt {attempt + 1} of {1 + RETRIES}")
        return False

    def _answer(self, sink: Sink, event: Event) -> tuple[int, str]:
        """The sink's status, and a word on it.

        Raises:
            OSError: no answer.
            HTTPException: an answer that is not HTTP.

        """
        deadline = Deadline(TIMEOUT / self._speed)
        sock = self._connected(sink, deadline)
        try:
            connection = http.client.HTTPConnection(sink.host, sink.port)
            connection.sock = sock
            connection.putrequest("POST", sink.target, skip_accept_encoding=True)
            for name, value in event.headers().items():
                connection.putheader(name, value)
            if self._authorization is not None:
                connection.putheader("Authorization", self._authorization)
            connection.putheader("Content-Length", str(len(event.data)))
            connection.putheader("Connection", "close")
            connection.endheaders(event.data)
            response = connection.getresponse()
            response.close()  # nobody reads the body: the status says it all
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
    """Ends whatever another thread is doing with a socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return f"no answer ({str(error).strip() or type(error).__name__})"
