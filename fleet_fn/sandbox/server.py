"""The sandbox's HTTP server, at which thousands of devices can wait.

Requests and answers are values.
"""

import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote_to_bytes

from fleet_fn.sandbox.refusal import RefusedError

#: Largest body of a request, for each API.
MAX_BODY_BYTES: Final = 65_536
#: How long an idle connection is kept.
_IDLE_SECONDS: Final = 75
#: How long handlers may take to finish when the server closes.
_GRACE_SECONDS: Final = 1.0
_MAX_DIGITS: Final = 18
#: Size of one read of a body that is too large.
_DRAINED_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request, decoded."""

    method: str
    #: The path's segments, each percent-decoded by itself: a name may contain an encoded slash.
    segments: tuple[str, ...]
    query: Mapping[str, str]
    authorization: str | None
    content_type: str | None
    #: None if the body is too large. A request is only refused for that when its body is needed.
    content: bytes | None

    @property
    def body(self) -> bytes:
        """Body of the request.

        Raises:
            RefusedError: the body is too large.

        """
        if self.content is None:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None, "Payload reached size limit.")
        return self.content


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Self:
        """Return an answer with a value as JSON."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


class Server(ThreadingHTTPServer):
    """A server on a loopback port, for this machine only."""

    daemon_threads = True
    request_queue_size = 4096

    def __init__(self, port: int, answer: Callable[[Request], Answer], log: Callable[[str], None]) -> None:
        """Listen on `port`, or on a free one for 0, and answer requests with `answer`.

        Raises:
            OSError: the port is in use.

        """
        self.answer = answer
        self._log = log
        self._connections: dict[threading.Thread, socket.socket] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_bind(self) -> None:
        """Bind the port.

        Unlike the base class, do not look up the host's name, which may take seconds.
        """
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a connection."""
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        with self._lock:
            thread.start()
            self._connections[thread] = request

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._connections.pop(threading.current_thread(), None)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the base class has it
        """Log the error that ended a connection, unless the client has closed it."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self._log(f"a connection broke off: {error!r}")

    def close(self) -> None:
        """Stop listening, end all connections and wait for their threads."""
        self.shutdown()
        self.server_close()
        # Close for reading first, so that answers under way still arrive; then close for writing too.
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            with self._lock:
                connections = dict(self._connections)
            for connection in connections.values():
                with suppress(OSError):
                    connection.shutdown(how)
            end = time.monotonic() + _GRACE_SECONDS
            for thread in connections:
                thread.join(max(0.0, end - time.monotonic()))


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "drogue-sandbox"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body of an answer in one packet
    timeout = _IDLE_SECONDS
    _is_too_large = False

    def handle_method(self) -> None:
        answer = self._answer()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            # Write UTF-8; the base class would write ISO 8859-1.
            self.send_header(name, value.encode().decode("latin-1"))
        if answer.status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()
        if self._is_too_large:
            self._drain()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = handle_method  # noqa: N815

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, *args: object) -> None:
        """Log nothing: endpoints and delivery log their own lines."""

    def _answer(self) -> Answer:
        try:
            return self.server.answer(self._request())
        except RefusedError as refusal:
            return _refusal(refusal)

    def _request(self) -> Request:
        content = self._body()  # first, so that a refusal leaves no bytes unread
        path, _, query = self.path.encode("latin-1").partition(b"?")
        if not path.startswith(b"/"):
            raise RefusedError.bad_request("The target is no path")
        content_type = self.headers.get("Content-Type")
        try:
            return Request(
                method=self.command,
                segments=tuple(unquote_to_bytes(segment).decode() for segment in path[1:].split(b"/")),
                query=dict(parse_qsl(query.decode(), keep_blank_values=True, errors="strict")),
                authorization=self.headers.get("Authorization"),
                content_type=None if content_type is None else " ".join(content_type.split()),
                content=content,
            )
        except UnicodeDecodeError as error:
            raise RefusedError.bad_request("The target is not UTF-8") from error

    def _body(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, None, "Send a Content-Length")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise RefusedError.bad_request("Content-Length is no number")
        if len(length) > _MAX_DIGITS or int(length) > MAX_BODY_BYTES:
            self.close_connection = self._is_too_large = True
            return None
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionResetError("the request ended early")
        return body

    def _drain(self) -> None:
        """Read some of a too large body.

        Closing with unread bytes would lose the answer (RFC 9112, 9.6).
        """
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_GRACE_SECONDS)
        with suppress(OSError):
            for _ in range(64):
                if not self.rfile.read1(_DRAINED_BYTES):
                    return


def _refusal(refusal: RefusedError) -> Answer:
    if refusal.error is None:
        shown = str(refusal).encode() if refusal.has_body else b""
        kind = {"Content-Type": "text/plain; charset=utf-8"} if shown else {}
        return Answer(refusal.status, shown, {**kind, **refusal.headers})
    code = {"code": refusal.status} if refusal.has_code else {}
    return Answer.json({**code, "error": refusal.error, "message": str(refusal)}, refusal.status, refusal.headers)
