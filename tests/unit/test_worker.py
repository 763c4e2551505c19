"""How long a thread stays with a connection."""

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from gunicorn.workers.gthread import TConn

from fleet_fn import worker
from fleet_fn.worker import ThreadWorker

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

THREADS = 3
REQUEST = b"GET / HTTP/1.1\r\nHost: function\r\n\r\n"
HEAD_ENDS = b"\r\n\r\n"


def application(_: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
    start_response("204 NO CONTENT", [])
    return []


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A worker that has no connection yet, and more patience than a test needs."""
    monkeypatch.setattr(worker, "_STAYS", 60_000)
    config = Config()
    config.set("threads", THREADS)
    one = ThreadWorker(1, os.getppid(), [], None, 30, config, Logger(config))
    one.wsgi = application
    yield one
    one.tmp.close()


@pytest.fixture
def handle(threaded: Any) -> Iterator[tuple[socket.socket, Callable[[], Any]]]:
    """A client's end of a connection, and what has a thread of the worker take the other."""
    client, server = socket.socketpair()
    address = ("127.0.0.1", 1)
    with client, closing(TConn(threaded.cfg, server, address, address)) as connection, ThreadPoolExecutor(1) as pool:
        client.settimeout(20)
        yield client, lambda: pool.submit(threaded.handle, connection)
        client.close()  # so that a thread that waits ends


def have(threaded: Any, connections: int, kept: int, pending: int) -> None:
    """Has a worker think that it has so many connections, some of which have nothing to be answered."""
    threaded.nr_conns = connections
    threaded.keepalived_conns.extend([None] * kept)
    threaded.pending_conns.extend([None] * pending)


def ask(client: socket.socket) -> bytes:
    client.sendall(REQUEST)
    answer = b""
    while not answer.endswith(HEAD_ENDS):
        piece = client.recv(4096)
        assert piece, answer
        answer += piece
    return answer


@pytest.mark.parametrize(("connections", "kept", "pending"), [(1, 0, 0), (THREADS, 0, 0), (1000, 996, 1)])
def test_a_thread_stays_with_a_connection_that_asks_on(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]], connections: int, kept: int, pending: int
) -> None:
    client, start = handle
    have(threaded, connections, kept, pending)
    handled = start()
    for _ in range(5):
        assert ask(client).startswith(b"HTTP/1.1 204")
    assert not handled.done()
    client.close()
    assert handled.result(20) is False


@pytest.mark.parametrize(("connections", "kept", "pending"), [(THREADS + 1, 0, 0), (1000, 995, 1)])
def test_a_thread_that_somebody_waits_for_leaves_the_connection_to_the_main_thread(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]], connections: int, kept: int, pending: int
) -> None:
    client, start = handle
    have(threaded, connections, kept, pending)
    handled = start()
    assert ask(client).startswith(b"HTTP/1.1 204")
    assert handled.result(20) is True


def test_a_worker_that_is_to_end_does_not_wait_for_another_request(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]]
) -> None:
    client, start = handle
    have(threaded, 1, 0, 0)
    threaded.alive = False
    handled = start()
    assert b"Connection: close" in ask(client)
    assert handled.result(20) is False


def test_a_connection_that_goes_quiet_is_kept_by_the_main_thread(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_STAYS", 1)
    client, start = handle
    have(threaded, 1, 0, 0)
    handled = start()
    assert ask(client).startswith(b"HTTP/1.1 204")
    assert handled.result(20) is True
