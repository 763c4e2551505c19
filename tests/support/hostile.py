"""Answers that no client wants: cut short, without end, of another protocol, or never there."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat

from tests.support.http import Answer, Request, Response


def always(response: Response) -> Answer:
    return lambda _: response


def hang_up(_: Request) -> None:
    """Closes the connection without an answer."""


def reset(request: Request) -> None:
    """Has the kernel tell the client that there is no such connection."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(request.connection.detach())


def raw(*pieces: bytes) -> Answer:
    """Sends these bytes, whatever they are, and hangs up."""

    def answer(request: Request) -> None:
        _send(request, pieces)

    return answer


def cut(response: Response, length: int) -> Answer:
    """Announces the whole body, sends so many bytes of it, and hangs up."""
    return raw(
        head(response.status, {"Content-Length": str(len(response.body)), **response.headers}), response.body[:length]
    )


def head(status: int, headers: dict[str, str]) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Whatever\r\n{fields}\r\n".encode("latin-1")


def chunked(*pieces: bytes, ends: bool = True) -> Answer:
    """A body in chunks; one that does not end as it should is cut off after the last."""
    chunks = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces]
    return raw(head(200, {"Transfer-Encoding": "chunked"}), *chunks, b"0\r\n\r\n" if ends else b"")


def endless(piece: bytes, begin: bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n") -> Answer:
    """Sends the same chunk again and again, until the client has had enough."""
    return flooding(b"%x\r\n%b\r\n" % (len(piece), piece), begin)


def flooding(piece: bytes, begin: bytes = b"") -> Answer:
    """Sends the same bytes again and again, until the client has had enough."""

    def answer(request: Request) -> None:
        _send(request, chain([begin], repeat(piece)))

    return answer


def trickling(response: Response, pause: float = 0.05) -> Answer:
    """Sends the answer byte by byte."""

    def pieces() -> Iterator[bytes]:
        whole = head(response.status, {"Content-Length": str(len(response.body)), **response.headers}) + response.body
        for byte in whole:
            yield bytes([byte])
            time.sleep(pause)

    def answer(request: Request) -> None:
        _send(request, pieces())

    return answer


def pausing(content: bytes, gate: Callable[[Request], object]) -> Answer:
    """Sends a third of the content, and the rest when the gate opens."""

    def answer(request: Request) -> None:
        third = len(content) // 3
        _send(request, [head(200, {"Content-Length": str(len(content))}), content[:third]])
        gate(request)
        _send(request, [content[third:]])

    return answer


def redirect(location: str, status: int = 307) -> Response:
    return Response(status, headers={"Location": location})


@contextmanager
def black_hole() -> Iterator[int]:
    """A port of loopback at which connections are neither accepted nor refused."""
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # more than may wait to be accepted
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def _send(request: Request, pieces: Iterable[bytes]) -> None:
    try:
        for piece in pieces:
            request.connection.sendall(piece)
    except OSError:
        pass  # the client has given up
