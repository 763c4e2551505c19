"""gunicorn's threaded worker, with threads that never wait for a sender.

gunicorn gives a thread to each new connection, and reads the request there: a few dozen senders that are slow, or that
send nothing, keep all threads. Here, the main thread polls all connections, collects their bytes, and gives a thread a
request that is whole. Requests that do not become whole in time, and connections beyond the bound, are closed.

Deliverers send one event after the other on a connection, so a thread waits a moment for the next one: that spares two
wake-ups for each event.
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
from typing import Any, Final

from gunicorn.http.unreader import Unreader
from gunicorn.workers import gthread

from fleet_fn.deadline import Deadline
from fleet_fn.web.arrival import DEADLINE, Arrival

#: Milliseconds for which a thread waits for a connection's next bytes, and how often it does for one request.
_STAYS: Final = 1
_MOST_STAYS: Final = 4
#: Seconds within which a body has to come that is larger than any that is wanted.
_LARGE_SECONDS: Final = 1.0
#: Seconds for which a closed connection is kept until its sender closes it too, and bytes that are read meanwhile: else
#: what it still sends would make it lose the answer (RFC 9112, section 9.6).
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 64 * 1024
#: Seconds for which a sender may not read its answer.
_SEND_SECONDS: Final = 4
_SEND_TIMEOUT: Final = struct.pack("@ll", _SEND_SECONDS, 0)
#: Bytes that are read at once.
_READ: Final = 64 * 1024
#: Bytes that all requests together may take that are not whole. The oldest are closed beyond that.
_MAX_HELD: Final = 16 * 1024 * 1024
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_PLAIN: Final = ("http", "off", "off")
_OUT_OF_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NO_CONNECTION: Final = (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK)


class _Received(Unreader):  # type: ignore[misc]
    """The source of gunicorn's parser: the bytes that have been received, and no more."""

    def chunk(self, size_hint: int | None = None) -> bytes:  # noqa: ARG002 - gunicorn's signature
        return b""


class Connection(gthread.TConn):  # type: ignore[misc]
    """A connection, and the request that is on its way in. Either the main thread has it, or one other."""

    def __init__(self, cfg: Any, sock: socket.socket, client: object, server: object, seconds: float) -> None:
        """A connection of which each request has to come within so many seconds after its first byte."""
        super().__init__(cfg, sock, client, server)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self.data_ready = True  # when a thread gets it
        fields = cfg.limit_request_fields * (cfg.limit_request_field_size + 2)
        self.arrival = Arrival(cfg.limit_request_line + 2, cfg.limit_request_line + fields + 4)
        self._seconds = seconds
        #: When it was accepted, or a request began.
        self.since = time.monotonic()
        #: Began with the first byte of the request.
        self.deadline: Deadline | None = None
        #: The sender is gone, or cannot be told anything.
        self.is_gone = False
        #: Where the main thread has it, and bytes that count there.
        self.place: _Waiting | None = None
        self.held = 0

    def init(self) -> None:
        """Have the parser read the request that is there; called in a thread, for each request."""
        super().init()
        if not isinstance(self.parser.unreader, _Received):
            self.parser.unreader = _Received()
        self.parser.unreader.unread(self.arrival.take())

    def receive(self) -> bool:
        """Take bytes that have come, without waiting; False if there are none."""
        try:
            data = self.sock.recv(_READ, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._feed(data)
        elif self.arrival.has_head:
            self.arrival.end()  # it may still listen
        else:
            self.is_gone = True
        return True

    def begin_next(self) -> None:
        """Go on with the request after the one that was answered."""
        self.parser.mesg = None  # or it would look for the rest of a body that was dropped
        self.is_gone = bool(self.parser.unreader.take_buffered())  # two opinions on where a request ends
        self.arrival = self.arrival.next()
        self.deadline = None
        if self.arrival.is_begun:
            self._begin()
            self._tell_to_go_on()

    def _begin(self) -> None:
        self.since, self.deadline = time.monotonic(), Deadline(self._seconds)

    def _feed(self, data: bytes) -> None:
        if self.deadline is None:
            self._begin()
        self.arrival.feed(data)
        self._tell_to_go_on()

    def _tell_to_go_on(self) -> None:
        if not self.arrival.awaits_continue:
            return
        self.arrival.awaits_continue = False
        if not self.arrival.is_whole:
            try:
                self.is_gone = self.sock.send(_CONTINUE, socket.MSG_DONTWAIT) < len(_CONTINUE)
            except OSError:
                self.is_gone = True


class _Waiting(dict[Connection, float]):
    """Connections with the moment until which they are waited for; the one that has been here longest comes first."""

    @property
    def first(self) -> tuple[Connection, float] | None:
        """The connection that has been here longest."""
        return next(iter(self.items()), None)

    @property
    def seconds(self) -> float:
        """Seconds until the first one has been waited for long enough."""
        return max(0.0, next(iter(self.values())) - time.monotonic()) if self else math.inf


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """A gthread worker whose threads get whole requests.

    Connections with TLS, a proxy's preamble or HTTP/2, of which the function's settings know nothing, are gunicorn's.
    """

    #: Seconds within which a request has to come; the server's configuration sets them.
    request_seconds: float = 4.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.cfg
        self._is_plain = not cfg.is_ssl and (cfg.protocol, cfg.proxy_protocol, cfg.http2_cleartext) == _PLAIN
        #: Connections in threads, or in line for one.
        self.busy = 0
        #: Connections that have sent nothing yet; with half a request; with too large a body; and closed ones.
        self._silent = _Waiting()
        self._arriving = _Waiting()
        self._large = _Waiting()
        self._closing = _Waiting()
        #: Bytes of requests that are not whole.
        self._held = 0
        self._request = threading.local()

    def load_wsgi(self) -> None:
        """Have the application told of the deadline that began with a request's first byte."""
        super().load_wsgi()
        application, request = self.wsgi, self._request

        def with_deadline(environ: dict[str, Any], start_response: object) -> Iterable[bytes]:
            if deadline := getattr(request, "deadline", None):
                environ[DEADLINE] = deadline
            answer: Iterable[bytes] = application(environ, start_response)
            return answer

        self.wsgi: Any = with_deadline

    # --- In threads

    def handle(self, conn: Any) -> Any:
        """Answer the request that `conn` has, and those that follow at once; return whether it can be kept."""
        if not isinstance(conn, Connection):
            return super().handle(conn)
        while super().handle(conn):
            conn.begin_next()
            if not self._stay(conn):
                return not conn.is_gone
        return False

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Have the application answer a request that is there."""
        if not isinstance(conn, Connection):
            return bool(super().handle_request(req, conn))
        self._request.deadline = conn.deadline
        req._expected_100_continue = False  # its sender has been told, or need not be
        if conn.arrival.is_cut:
            req.force_close()
        try:
            return bool(super().handle_request(req, conn))
        except BlockingIOError:
            self.log.debug("Closing a connection whose sender does not read the answer.")
            return False

    def _stay(self, conn: Connection) -> bool:
        """Wait a moment for the next request; whether it is there, and no connection waits for a thread."""
        poll = None
        for _ in range(_MOST_STAYS):
            if conn.is_gone or not self._has_time():
                return False
            if conn.arrival.is_whole:
                return True
            if poll is None:
                poll = select.poll()
                poll.register(conn.sock, select.POLLIN)
            if not poll.poll(_STAYS):
                return False
            conn.receive()
        return conn.arrival.is_whole and not conn.is_gone

    def _has_time(self) -> bool:
        """Whether there is a thread for each of the connections with a request."""
        return bool(self.busy <= self.cfg.threads)

    # --- In the main thread

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
        conn.sock.setblocking(False)
        if not kept:
            self._close(conn)
        elif conn.arrival.is_whole:
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
        """Take a new connection; the one that has been waited for longest makes room if need be."""
        if not self._is_plain:
            super().accept(listener)
            return
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno in _OUT_OF_DESCRIPTORS and self._make_room():
                return
            if error.errno not in _NO_CONNECTION:
                raise
            return
        conn = Connection(self.cfg, sock, address, listener.getsockname(), self.request_seconds)
        self.nr_conns += 1
        conn.receive()  # mostly, the request comes with the connection
        if conn.is_gone:
            self._forget(conn)
        elif conn.arrival.is_whole:
            self.enqueue_req(conn)
        elif self._poll(conn):
            self._wait(conn, self._silent, time.monotonic() + self.cfg.keepalive)
            if conn.arrival.is_begun:
                self._await_rest(conn)
        if self.nr_conns >= self.worker_connections:
            self._make_room()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events, but not beyond the moment at which a connection has been waited for long enough."""
        soonest = min(self._arriving.seconds, self._large.seconds, self._closing.seconds)
        super().wait_for_and_dispatch_events(min(timeout, soonest))

    def murder_pending(self) -> None:
        """End the wait for connections that have been waited for long enough."""
        super().murder_pending()
        now = time.monotonic()
        if not self.alive:
            for conn, until in self._silent.items():
                self._silent[conn] = min(until, now + gthread.STOP_KEEPALIVE_LINGER)
        for place in (self._silent, self._arriving, self._large, self._closing):
            while (first := place.first) and first[1] <= now:
                self._end_wait(first[0])

    def _on_readable(self, conn: Connection, sock: socket.socket) -> None:
        """Take what a connection has sent."""
        if conn.sock.fileno() < 0:
            return  # closed to make room, after the poller had told of it
        if conn.place is self._closing:
            self._drain(conn)
            return
        if not conn.receive():
            return
        if conn.place is None:
            self.keepalived_conns.remove(conn)
        if conn.is_gone:
            self._drop(conn)
        elif conn.arrival.is_whole:
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
        while self._held > _MAX_HELD and (first := self._arriving.first or self._large.first):
            self._drop(first[0])

    def _end_wait(self, conn: Connection) -> None:
        """Answer a request whose body has not come; close any other connection."""
        if not conn.arrival.has_head or conn.place is self._closing:
            self._drop(conn)
            return
        conn.arrival.end()
        self._leave(conn)
        self.poller.unregister(conn.sock)
        self.enqueue_req(conn)

    def _make_room(self) -> bool:
        """Close the connection that is missed least; False if all of them are being answered."""
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
        """Close our side of a connection, and wait until its sender has done so too."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._forget(conn)
            return
        if self._poll(conn):
            self._wait(conn, self._closing, time.monotonic() + _LINGER_SECONDS)

    def _drain(self, conn: Connection) -> None:
        """Drop what a sender still sends on a closed connection, up to a point."""
        try:
            data = conn.sock.recv(_READ)
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
        self.nr_conns -= 1
        conn.close()

    def _poll(self, conn: Connection) -> bool:
        """Have the poller tell of what a connection sends; False if it cannot, and the connection is closed."""
        try:
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_readable, conn))
        except OSError:
            self._forget(conn)
            return False
        return True
