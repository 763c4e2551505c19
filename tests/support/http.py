"""Small HTTP servers on loopback, for upstreams that behave, and for upstreams that do not."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


@dataclass(frozen=True)
class Request:
    """What a server was asked."""

    method: str
    #: Undecoded, with the query.
    path: str
    headers: Mapping[str, str]
    body: bytes
    #: The raw socket, for answers that are no HTTP.
    connection: socket.socket


@dataclass(frozen=True)
class Response:
    """What it answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


#: Returns None when it dealt with the raw socket itself; the connection is closed then.
Answer = Callable[[Request], Response | None]


class Server:
    """An HTTP/1.1 server that keeps connections alive and answers as it is told; with a `tls` context, by https."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None, *, remembers: bool = True) -> None:
        """A server that `remembers` its requests, unless these are too many."""
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with server._lock:
                    server.connections += 1
                    server._open.add(self.connection)

            def finish(self) -> None:
                with server._lock:
                    server._open.discard(self.connection)
                try:
                    super().finish()
                except OSError:
                    pass  # the client has gone, as some tests want it

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, dict(self.headers.items()), body, self.connection)
                if remembers:
                    server.requests.append(request)
                response = server.answer(request)
                if response is None:
                    self.close_connection = True
                    return
                self.send_response(response.status)
                for name, value in response.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in response.headers:
                    self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(response.body)

            do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_PATCH = _serve

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._listen: Callable[[int], ThreadingHTTPServer] = lambda port: Listener(("127.0.0.1", port), Handler)
        self._listener: ThreadingHTTPServer = self._listen(0)
        self._scheme = "https" if tls else "http"
        if tls:
            # Hands are shaken by a connection's own thread, when it first reads.
            self._listener.socket = tls.wrap_socket(
                self._listener.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = self._serving()

    def _serving(self) -> threading.Thread:
        return threading.Thread(target=self._listener.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return self._listener.server_address[1]

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def drop_connections(self) -> None:
        """Closes what clients keep alive, as a server does that is restarted or tired of waiting."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def stop_listening(self) -> None:
        """Refuse connections from now on; those that are open stay. Not for servers with TLS."""
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    def listen_again(self) -> None:
        """Take connections at the same port again."""
        self._listener = self._listen(self.port)
        self._thread = self._serving()
        self._thread.start()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._thread.join()
        self.drop_connections()
        self._listener.server_close()


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of loopback on which nobody listens, and which nobody else gets meanwhile."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield reserved.getsockname()[1]
