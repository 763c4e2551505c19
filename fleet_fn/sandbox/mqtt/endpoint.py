"""The MQTT integration's server, for this machine only."""

import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from fleet_fn.sandbox.mqtt.cloud import Cloud
from fleet_fn.sandbox.mqtt.connection import HANDSHAKE_SECONDS, Connection
from fleet_fn.sandbox.mqtt.session import Session

_LOOPBACK: Final = "127.0.0.1"
#: How long connections may take to end when the server stops.
_GRACE_SECONDS: Final = 1.0


class MqttPortError(OSError):
    """Nothing can listen on the integration's port."""


@dataclass(frozen=True, slots=True)
class MqttOptions:
    """How the integration listens, and how many partitions topics have."""

    #: 0 takes a free port.
    port: int = 0
    #: Bounds how many members of a group get events. Drogue Cloud's own default is 1.
    partitions: int = 1
    #: The server's certificate and key; None speaks without TLS.
    tls: ssl.SSLContext | None = None


class Endpoint:
    """Drogue Cloud's MQTT integration on a loopback port."""

    def __init__(self, options: MqttOptions, cloud: Cloud) -> None:
        """Listen.

        Raises:
            MqttPortError: the port is in use.

        """
        self._tls = options.tls
        #: Faults that tests switch on and off.
        self.faults: Final = cloud.faults
        self._cloud = cloud
        try:
            self._server: Final = _Server(options.port, self._serve, cloud.log)
        except OSError as error:
            raise MqttPortError(error.errno, error.strerror) from error
        self._serving = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="mqtt", daemon=True
        )

    @property
    def url(self) -> str:
        """URL for clients: `mqtt://127.0.0.1:PORT`, or `mqtts://…` with TLS."""
        scheme = "mqtt" if self._tls is None else "mqtts"
        return f"{scheme}://{_LOOPBACK}:{self._server.server_address[1]}"

    @property
    def clients(self) -> int:
        """Number of connections."""
        return len(self._server.connections())

    def has_subscriber(self, application: str) -> bool:
        """Return whether a client has subscribed to the events of an application."""
        return self._cloud.topics.has_member(application)

    def start(self) -> None:
        """Serve clients."""
        self._serving.start()

    def drop_connections(self) -> None:
        """End all connections without a word; clients may come again."""
        for sock in self._server.connections():
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop listening, and end all connections."""
        self._server.shutdown()
        self._serving.join()
        self._server.server_close()
        self.drop_connections()
        self._server.wait_until_idle(_GRACE_SECONDS)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(HANDSHAKE_SECONDS)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_side=True)
        with Connection(sock, self.faults) as connection:
            Session(connection, self._cloud).run()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128
    #: Threads end with their connections; waiting for them would hold up `server_close`.
    block_on_close = False

    def __init__(self, port: int, serve: Callable[[socket.socket], None], log: Callable[[str], None]) -> None:
        self._serve = serve
        self._log = log
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__((_LOOPBACK, port), socketserver.BaseRequestHandler)

    def connections(self) -> list[socket.socket]:
        """Return the sockets of all connections."""
        with self._changed:
            return list(self._connections)

    def wait_until_idle(self, seconds: float) -> None:
        """Wait until all connections have ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, seconds)

    def finish_request(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the base class has it
        """Serve a connection until it ends."""
        # A copy of the descriptor: TLS takes over the socket itself.
        with request.dup() as handle:
            handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._connections.add(handle)
            try:
                self._serve(request)
            finally:
                with self._changed:
                    self._connections.discard(handle)
                    self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - as the base class has it
        """Log the error that ended a connection."""
        self._log(f"MQTT: a connection broke off: {sys.exception()!r}")
