"""Senders that mean no good: slow, silent, or talking nonsense."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tests.support.function import Client

#: More than a worker has threads, or an event loop accepts in one go.
MANY: Final = 300
PROBE: Final = b"GET /healthz HTTP/1.1\r\nHost: function\r\n\r\n"
POST: Final = b"POST / HTTP/1.1\r\nHost: function\r\n"
#: What each kind of sender sends at once, and what it sends a byte of every now and then.
SENDERS: Final[dict[str, tuple[bytes, bytes]]] = {
    "silent": (b"", b""),
    "half a head": (POST, b""),
    "a head that trickles": (b"P", POST[1:] + b"X: " + b"x" * 9000),
    "an empty line": (b"\r\n", b""),
    "TLS": (bytes.fromhex("16030100f5010000f10303") + bytes(234), b""),
    "idle after a request": (PROBE, b""),
    "half a head after a request": (PROBE + POST, b""),
    "no body": (POST + b"Content-Length: 5\r\n\r\n", b""),
    "a body that trickles": (POST + b"Content-Length: 60000\r\n\r\n", b" " * 9000),
    "a body in chunks that trickles": (POST + b"Transfer-Encoding: chunked\r\n\r\nffff\r\n", b" " * 9000),
    "a large body that trickles": (POST + b"Content-Length: 1000000\r\n\r\n", b" " * 9000),
    "waiting to be told to go on": (POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", b""),
    "open after the last answer": (PROBE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), b""),
}
#: Kinds that may stay as long as they like, while there is room.
WELCOME: Final = {"silent", "idle after a request"}


@contextmanager
def hostile(function: Client, kind: str, count: int = MANY) -> Iterator[list[socket.socket]]:
    """So many connections of one kind of sender."""
    at_once, trickle = SENDERS[kind]
    over = threading.Event()
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.settimeout(20)
            connection.connect(("127.0.0.1", function.port))
            connection.setblocking(False)
            connections.append(connection)
            with contextlib.suppress(BlockingIOError):
                connection.send(at_once)

        def go_on() -> None:
            for number in range(len(trickle)):
                if over.wait(0.5):
                    return
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.send(trickle[number : number + 1])

        trickling = threading.Thread(target=go_on)
        trickling.start()
        try:
            yield connections
        finally:
            over.set()
            trickling.join()


def open_connections(connections: list[socket.socket], seconds: float) -> int:
    """How many of them the function has not closed within so many seconds."""
    limit = time.monotonic() + seconds
    still = {connection.fileno(): connection for connection in connections}
    poll = select.poll()
    for number in still:
        poll.register(number, select.POLLIN)
    while still and (left := limit - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            try:
                ended = not still[number].recv(65536)
            except OSError:
                ended = True
            if ended:
                poll.unregister(number)
                del still[number]
    return len(still)
