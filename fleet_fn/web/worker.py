"""gunicorn's threaded worker, with threads that never wait for a sender.

gunicorn gives a thread to each new connection, and reads the request there. So a few dozen senders that are slow, or
that send nothing, keep all threads. Here, the main thread polls all connections, collects their bytes, and gives a
thread a whole request. It closes connections whose request is late, and connections beyond the bound.

Deliverers send one event after the other on a connection. So a thread waits a moment for the next one, which saves two
wake-ups per event.
"""

import errno
import math
import select
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http.unreader import Unreader
from gunicorn.workers import gthread

from fleet_fn.deadline import Deadline
from fleet_fn.web.arrival import DEADLINE, Arrival
from fleet_fn.web.usual_request import UsualAnswer, environ_of_connection, is_usual, read_usual

if TYPE_CHECKING:
    from fleet_fn.web.balance import Share
    from fleet_fn.web.processor import Processor
    from fleet_fn.web.subscriber import Subscriber

#: How long a thread waits for a connection's next bytes, and how often it does for one request.
_STAY_MILLISECONDS: Final = 1
_MAX_STAYS: Final = 4
#: How long to read a body that is too large.
_LARGE_SECONDS: Final = 1.0
#: A connection closed on this side stays open for reading, for this time and so many bytes, until the sender closes it
#: too. Else bytes under way would make the sender lose the answer (RFC 9112, section 9.6).
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 * 1024
#: How long a sender may take to read its answer.
_SEND_SECONDS: Final = 4
_SEND_TIMEOUT: Final = struct.pack("@ll", _SEND_SECONDS, 0)
#: Size of one read.
_READ_BYTES: Final = 64 * 1024
#: Memory for all requests that are not whole. Beyond that, the oldest connections are closed.
_MAX_HELD_BYTES: Final = 16 * 1024 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PLAIN: Final = ("http", "off", "off")
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_CONNECTION: Final = (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK)


class _Received(Unreader):  # type: ignore[misc]
    """The source of gunicorn's parser: only bytes that have been received already."""

    def chunk(self, size_hint: int | None = None) -> bytes:  # noqa: ARG002 - gunicorn's signature
        return b""


class Connection(gthread.TConn):  # type: ignore[misc]
    """A connection, and the request on its way in.

    One thread at a time owns it: the main thread, or another.
    """

    def __init__(
        self,
        cfg: Any,
        sock: socket.socket,
        client: object,
        server: object,
        seconds: float,
        common: dict[str, Any] | None = None,
    ) -> None:
        """Expect each request within `seconds` of its first byte.

        With `common`, what the environments of all its requests have in common, read the usual ones without a parser.
        """
        super().__init__(cfg, sock, client, server)
        sock.setblocking(True)  # only answers wait; reads do not
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        #: Polls the connection for bytes.
        self.input = select.poll()
        self.input.register(sock, select.POLLIN)
        self.data_ready = True  # a thread only gets a whole request
        fields = cfg.limit_request_fields * (cfg.limit_request_field_size + 2)
        self.arrival = Arrival(cfg.limit_request_line + 2, cfg.limit_request_line + fields + 4)
        #: WSGI environment of a whole request, if it is the usual one; then `arrival` has nothing of it.
        self.usual: dict[str, Any] | None = None
        self._common = common
        self._seconds = seconds
        #: Time of the connection's acceptance, or of the current request's first byte.
        self.since = time.monotonic()
        #: Begins with the first byte of the request.
        self.deadline: Deadline | None = None
        #: The sender has closed the connection, or cannot be answered.
        self.is_gone = False
        #: The main thread's list that has this connection, and the bytes that it counts for it.
        self.place: _Waiting | None = None
        self.held = 0

    @property
    def is_whole(self) -> bool:
        """Whether a whole request has come, or no more of it will be read."""
        return self.usual is not None or self.arrival.is_whole

    def init(self) -> None:
        """Give the request's bytes to the parser; called in a thread, for each request."""
        super().init()
        if not isinstance(self.parser.unreader, _Received):
            self.parser.unreader = _Received()
        self.parser.unreader.unread(self.arrival.take())

    def receive(self) -> bool:
        """Take bytes that have come, without waiting; return False if there are none."""
        try:
            data = self.sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._feed(data)
        elif self.arrival.has_head:
            self.arrival.end()  # the sender may still read the answer
        else:
            self.is_gone = True
        return True

    def begin_next(self) -> None:
        """Go on with the next request."""
        self.deadline = None
        if self.usual is not None:
            self.usual = None
            return
        self.parser.mesg = None  # else the parser would look for the rest of a dropped body
        self.is_gone = bool(self.parser.unreader.take_buffered())  # parser and Arrival disagree on the request's end
        self.arrival = self.arrival.next()
        if self.arrival.is_begun:
            self._begin()
            self._send_continue()

    def _begin(self) -> None:
        self.since, self.deadline = time.monotonic(), Deadline(self._seconds)

    def _feed(self, data: bytes) -> None:
        if self.deadline is None:
            self._begin()
            self.usual = read_usual(data, self._common) if self._common else None
            if self.usual is not None:
                return
        self.arrival.feed(data)
        self._send_continue()

    def _send_continue(self) -> None:
        """Send `100 Continue` if the sender waits for it."""
        if not self.arrival.awaits_continue:
            return
        self.arrival.awaits_continue = False
        if not self.arrival.is_whole:
            try:
                self.is_gone = self.sock.send(_CONTINUE, socket.MSG_DONTWAIT) < len(_CONTINUE)
            except OSError:
                self.is_gone = True


def _has_connection(listener: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


class _Waiting(dict[Connection, float]):
    """Connections with the end of each one's wait; the longest waiting comes first."""

    @property
    def first(self) -> tuple[Connection, float] | None:
        """Longest-waiting connection, and the time at which its wait ends."""
        return next(iter(self.items()), None)

    @property
    def seconds(self) -> float:
        """Seconds until the wait for the first connection ends."""
        return max(0.0, next(iter(self.values())) - time.monotonic()) if self else math.inf


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """A gthread worker whose threads get whole requests.

    gunicorn's own code handles connections with TLS, PROXY protocol or HTTP/2; the function's settings use none.
    """

    #: Seconds within which a request has to arrive; the server's configuration sets them.
    request_seconds: float = 4.0
    #: False once the worker is to end.
    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.cfg
        self._is_plain = not cfg.is_ssl and (cfg.protocol, cfg.proxy_protocol, cfg.http2_cleartext) == _PLAIN
        self._reads_usual = self._is_plain and is_usual(cfg, self.log)
        # gunicorn looks a setting up in 1 us.
        self._keeps_connections, self._threads = bool(cfg.keepalive), int(cfg.threads)
        #: Takes events from the MQTT integration; None if the settings name no applications.
        self.subscriber: Subscriber | None = None
        #: Share of the server's connections, and the worker's CPU; None if the server's configuration sets none.
        self.share: Share | None = None
        self.processor: Processor | None = None
        #: Number of connections that have a thread or wait for one.
        self.busy = 0
        #: Connections: without a byte yet; with a part of a request; with too large a body; closed on this side.
        self._silent = _Waiting()
        self._arriving = _Waiting()
        self._large = _Waiting()
        self._closing = _Waiting()
        #: Bytes of all requests that are not whole.
        self._held = 0
        self._request = threading.local()

    def load_wsgi(self) -> None:
        """Put the deadline into the environment of each request.

        The deadline begins with the request's first byte.
        """
        super().load_wsgi()
        application, request = self.wsgi, self._request

        def with_deadline(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
            if deadline := getattr(request, "deadline", None):
                environ[DEADLINE] = deadline
            answer: Iterable[bytes] = application(environ, start_response)
            return answer

        self.wsgi: Any = with_deadline

    def handle_exit(self, sig: int, frame: object) -> None:
        """Stop taking connections and, if there is a subscription, its events."""
        if self.alive and self.subscriber:
            self.subscriber.begin_stop()
        super().handle_exit(sig, frame)

    # --- In threads

    def handle(self, conn: Any) -> Any:
        """Answer the request of `conn`, and those that follow at once.

        Return whether to keep the connection.
        """
        if not isinstance(conn, Connection):
            return super().handle(conn)
        while self._answer(conn, conn.usual) if conn.usual is not None else super().handle(conn):
            conn.begin_next()
            if not self._stay(conn):
                return not conn.is_gone
        return False

    def _answer(self, conn: Connection, environ: dict[str, Any]) -> bool:
        """Let the application answer a usual request.

        Return whether to keep the connection.
        """
        self._request.deadline = conn.deadline
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
        answer = UsualAnswer()
        try:
            answer.take(self.wsgi(environ, answer.start))
            keeps = self.alive and self._keeps_connections and len(self.keepalived_conns) < self.max_keepalived
            keeps = keeps and not self._must_close()
            data = answer.to_bytes(keeps=keeps)
        except Exception as error:  # noqa: BLE001 - as gunicorn does, whatever the application raises
            self.handle_error(None, conn.sock, conn.client, error)
            return False
        try:
            conn.sock.sendall(data)
        except OSError as error:
            self.log.debug("Closing a connection whose sender does not read the answer: %s", error)
            return False
        return keeps

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Let the application answer a whole request.

        Return whether to keep the connection.
        """
        if not isinstance(conn, Connection):
            return bool(super().handle_request(req, conn))
        self._request.deadline = conn.deadline
        req._expected_100_continue = False  # it has been sent already, or is not needed
        if conn.arrival.is_cut or self._must_close():
            req.force_close()
        try:
            return bool(super().handle_request(req, conn))
        except BlockingIOError:
            self.log.debug("Closing a connection whose sender does not read the answer.")
            return False

    def _must_close(self) -> bool:
        """Return whether to close a connection so that another worker gets it."""
        return self.share is not None and self.share.must_close()

    def _stay(self, conn: Connection) -> bool:
        """Wait a moment for the next request; return whether it is whole.

        If other connections need the thread, do not wait.
        """
        for _ in range(_MAX_STAYS):
            if conn.is_gone or not self._has_spare_thread():
                return False
            if conn.is_whole:
                return True
            if not conn.input.poll(_STAY_MILLISECONDS):
                return False
            conn.receive()
        return conn.is_whole and not conn.is_gone

    def _has_spare_thread(self) -> bool:
        """Return whether each connection with a request has a thread."""
        return self.busy <= self._threads

    # --- In the main thread

    def notify(self) -> None:
        """Tell the master that this worker lives; called at least once a second."""
        super().notify()
        if self.processor:
            self.processor.look()

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection to a thread."""
        self.busy += 1
        super().enqueue_req(conn)

    def finish_request(self, conn: Any, fs: "Future[Any]") -> None:
        """Take a connection back from a thread."""
        self.busy -= 1
        if not isinstance(conn, Connection):
            super().finish_request(conn, fs)
            return
        kept = not fs.cancelled() and fs.exception() is None and fs.result()
        if conn.is_gone or conn.sock.fileno() < 0:
            self._forget(conn)
            return
        if not kept:
            self._close(conn)
        elif conn.is_whole:
            self.enqueue_req(conn)
        elif self._poll(conn):
            if conn.arrival.is_begun:
                self._await_rest(conn)
            else:
                conn.set_timeout()
                if not self.alive:
                    conn.timeout = min(conn.timeout, time.monotonic() + gthread.STOP_KEEPALIVE_LINGER)
                self.keepalived_conns.append(conn)

    def accept(self, listener: socket.socket) -> None:
        """Take a new connection; at the bound, close the longest-waiting one."""
        if not self._is_plain:
            super().accept(listener)
            return
        if self.share:
            self.share.yield_connection(partial(_has_connection, listener))
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS and self._make_room():
                return
            if error.errno not in _NO_CONNECTION:
                raise
            return
        server = listener.getsockname()
        common = environ_of_connection(self.cfg, sock, address, server) if self._reads_usual else None
        conn = Connection(self.cfg, sock, address, server, self.request_seconds, common)
        self._count(1)
        conn.receive()  # usually, the request comes with the connection
        if conn.is_gone:
            self._forget(conn)
        elif conn.is_whole:
            self.enqueue_req(conn)
        elif self._poll(conn):
            self._wait(conn, self._silent, time.monotonic() + self.cfg.keepalive)
            if conn.arrival.is_begun:
                self._await_rest(conn)
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but not longer than for the first connection whose wait ends."""
        soonest = min(self._arriving.seconds, self._large.seconds, self._closing.seconds)
        super().wait_for_and_dispatch_events(min(timeout, soonest))

    def set_accept_enabled(self, enabled: bool) -> None:
        """Begin or end to take connections, and tell the other workers."""
        super().set_accept_enabled(enabled)
        self._tell()

    def murder_keepalived(self, force: bool = False) -> None:
        """Close connections that were idle for long, and tell the other workers."""
        super().murder_keepalived(force)
        self._tell()

    def murder_pending(self) -> None:
        """End the waits that have lasted long enough."""
        super().murder_pending()
        now = time.monotonic()
        if not self.alive:
            for conn, until in self._silent.items():
                self._silent[conn] = min(until, now + gthread.STOP_KEEPALIVE_LINGER)
        for place in (self._silent, self._arriving, self._large, self._closing):
            while (first := place.first) and first[1] <= now:
                self._end_wait(first[0])

    def _on_readable(self, conn: Connection, sock: socket.socket) -> None:
        """Take the bytes that a connection has sent."""
        if conn.sock.fileno() < 0:
            return  # closed to make room, after the poller had reported it
        if conn.place is self._closing:
            self._drain(conn)
            return
        if not conn.receive():
            return
        if conn.place is None:
            self.keepalived_conns.remove(conn)
        if conn.is_gone:
            self._drop(conn)
        elif conn.is_whole:
            self._leave(conn)
            self.poller.unregister(sock)
            self.enqueue_req(conn)
        else:
            self._await_rest(conn)

    def _await_rest(self, conn: Connection) -> None:
        """Wait for the rest of a request."""
        left = conn.deadline.remaining if conn.deadline else 0.0
        if conn.place is None or conn.place is self._silent:
            self._wait(conn, self._arriving, time.monotonic() + left)
        if conn.arrival.is_large and conn.place is not self._large:
            self._wait(conn, self._large, time.monotonic() + min(_LARGE_SECONDS, left))
        self._held += conn.arrival.size - conn.held
        conn.held = conn.arrival.size
        while self._held > _MAX_HELD_BYTES and (first := self._arriving.first or self._large.first):
            self._drop(first[0])

    def _end_wait(self, conn: Connection) -> None:
        """Let the application refuse a request whose body has not come.

        Close any other connection.
        """
        if not conn.arrival.has_head or conn.place is self._closing:
            self._drop(conn)
            return
        conn.arrival.end()
        self._leave(conn)
        self.poller.unregister(conn.sock)
        self.enqueue_req(conn)

    def _make_room(self) -> bool:
        """Close the least valuable connection; return False if all are being answered."""
        waiting = [place.first for place in (self._silent, self._arriving, self._large) if place.first]
        if self._closing.first:
            self._drop(self._closing.first[0])
        elif waiting:
            self._drop(min(waiting, key=lambda one: one[0].since)[0])
        elif self.keepalived_conns:
            self._drop(self.keepalived_conns.popleft())
        else:
            return False
        return True

    def _close(self, conn: Connection) -> None:
        """Close this side of a connection, and wait until the sender closes the other."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(conn)
            return
        if self._poll(conn):
            self._wait(conn, self._closing, time.monotonic() + _LINGER_SECONDS)
            self._tell()

    def _drain(self, conn: Connection) -> None:
        """Drop bytes that still come on a closed connection, up to `_LINGER_BYTES`."""
        try:
            data = conn.sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        conn.held += len(data)
        if not data or conn.held > _LINGER_BYTES:
            self._drop(conn)

    def _wait(self, conn: Connection, place: _Waiting, until: float) -> None:
        self._leave(conn)
        conn.place, place[conn] = place, until

    def _leave(self, conn: Connection) -> None:
        if conn.place is not None:
            del conn.place[conn]
            if conn.place is not self._closing:
                self._held -= conn.held
                conn.held = 0
            conn.place = None

    def _drop(self, conn: Connection) -> None:
        """Close a connection at once."""
        self._leave(conn)
        self.poller.unregister(conn.sock)
        self._forget(conn)

    def _forget(self, conn: Connection) -> None:
        self._count(-1)
        conn.close()

    def _count(self, change: int) -> None:
        self.nr_conns += change
        self._tell()

    def _tell(self) -> None:
        """Tell the other workers how many open connections this one has.

        Those closed on this side do not count. Tell them if it takes none.
        """
        if not self.share:
            return
        if self._accepting:
            self.share.tell(self.nr_conns - len(self._closing))
        else:
            self.share.leave()

    def _poll(self, conn: Connection) -> bool:
        """Poll a connection for bytes; if that is impossible, close it and return False."""
        try:
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))
        except OSError:
            self._forget(conn)
            return False
        return True
