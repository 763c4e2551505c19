"""How long a thread stays with a connection, and which connections make room for others."""

import os
import selectors
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger

from fleet_fn.web import worker
from fleet_fn.web.balance import Board, Share
from fleet_fn.web.usual_request import environ_of_connection
from fleet_fn.web.worker import Connection, ThreadWorker

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
    monkeypatch.setattr(worker, "_STAY_MILLISECONDS", 60_000)
    config = Config()
    config.set("threads", THREADS)
    one = ThreadWorker(1, os.getppid(), [], None, 30, config, Logger(config))
    one.wsgi = application
    yield one
    one.tmp.close()


@pytest.fixture
def handle(threaded: Any) -> Iterator[tuple[socket.socket, Callable[[], Any]]]:
    """A client's end of a connection, and what has a thread of the worker take the other, with a first request."""
    client, server = socket.socketpair()
    address = ("127.0.0.1", 1)
    connection = Connection(threaded.cfg, server, address, address, 4.0)

    def start() -> Any:
        client.sendall(REQUEST)
        assert connection.receive()
        return pool.submit(threaded.handle, connection)

    with client, closing(connection), ThreadPoolExecutor(1) as pool:
        client.settimeout(20)
        yield client, start
        client.close()  # so that a thread that waits ends


def ask(client: socket.socket) -> bytes:
    client.sendall(REQUEST)
    return answer(client)


def answer(client: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(HEAD_ENDS):
        piece = client.recv(4096)
        assert piece, answer
        answer += piece
    return answer


@pytest.mark.parametrize("busy", [1, THREADS])
def test_a_thread_stays_with_a_connection_that_asks_on(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]], busy: int
) -> None:
    client, start = handle
    threaded.busy = busy
    handled = start()
    assert answer(client).startswith(b"HTTP/1.1 204")
    for _ in range(5):
        assert ask(client).startswith(b"HTTP/1.1 204")
    assert not handled.done()
    client.close()
    assert handled.result(20) is False


def test_a_thread_that_somebody_waits_for_leaves_the_connection_to_the_main_thread(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]]
) -> None:
    client, start = handle
    threaded.busy = THREADS + 1
    handled = start()
    assert answer(client).startswith(b"HTTP/1.1 204")
    assert handled.result(20) is True


def test_a_worker_that_is_to_end_does_not_wait_for_another_request(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]]
) -> None:
    client, start = handle
    threaded.alive = False
    handled = start()
    assert b"Connection: close" in answer(client)
    assert handled.result(20) is False


def test_a_connection_that_goes_quiet_is_kept_by_the_main_thread(
    handle: tuple[socket.socket, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_STAY_MILLISECONDS", 1)
    client, start = handle
    handled = start()
    assert answer(client).startswith(b"HTTP/1.1 204")
    assert handled.result(20) is True


def test_a_request_that_trickles_does_not_keep_a_thread(handle: tuple[socket.socket, Callable[[], Any]]) -> None:
    client, start = handle
    handled = start()
    assert answer(client).startswith(b"HTTP/1.1 204")
    for byte in REQUEST[:-1]:
        if handled.done():
            break
        client.sendall(bytes([byte]))
        with suppress(TimeoutError):
            handled.result(0.05)
    assert handled.result(20) is True


def test_a_sender_that_does_not_read_does_not_keep_a_thread(
    threaded: Any, handle: tuple[socket.socket, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(_: "WSGIEnvironment", start_response: "StartResponse") -> Iterator[bytes]:
        start_response("200 OK", [])
        while True:
            yield bytes(1 << 20)

    monkeypatch.setattr(threaded, "wsgi", endless)
    _, start = handle
    assert start().result(20) is False


# --- The usual request, which needs no parser -------------------------------------------------------------------------

EVENT = b"POST / HTTP/1.1\r\nHost: function\r\nContent-Length: 3\r\n\r\nabc"


@pytest.fixture
def plain(threaded: Any) -> Iterator[tuple[socket.socket, Callable[[], Any]]]:
    """As `handle`, of a connection that reads usual requests without a parser."""
    client, server = socket.socketpair()
    address = ("127.0.0.1", 1)
    common = environ_of_connection(threaded.cfg, server, address, address)
    connection = Connection(threaded.cfg, server, address, address, 4.0, common)

    def start() -> Any:
        client.sendall(EVENT)
        assert connection.receive()
        assert connection.usual
        return pool.submit(threaded.handle, connection)

    with client, closing(connection), ThreadPoolExecutor(1) as pool:
        client.settimeout(20)
        yield client, start
        client.close()


def test_usual_requests_and_others_follow_each_other(
    threaded: Any, plain: tuple[socket.socket, Callable[[], Any]]
) -> None:
    asked = []

    def note(environ: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        asked.append((environ["REQUEST_METHOD"], environ["wsgi.input"].read()))
        start_response("204 NO CONTENT", [("Fleet-Outcome", "ignored")])
        return []

    threaded.wsgi = note
    client, start = plain
    start()
    answers, due = answer(client), 1
    for data in (EVENT, REQUEST, EVENT, EVENT[:30], EVENT[30:], EVENT + EVENT + REQUEST, EVENT):
        client.sendall(data)
        due += data.count(HEAD_ENDS)
        while answers.count(HEAD_ENDS) < due:
            answers += answer(client)
    assert answers.count(b"HTTP/1.1 204 ") == answers.count(b"Connection: keep-alive\r\n") == due
    event, other = ("POST", b"abc"), ("GET", b"")
    assert asked == [event, event, other, event, event, event, event, other, event]


def test_a_usual_request_tells_the_worker_to_end_after_enough_of_them(
    threaded: Any, plain: tuple[socket.socket, Callable[[], Any]]
) -> None:
    threaded.max_requests = 2
    client, start = plain
    handled = start()
    assert b"Connection: keep-alive" in answer(client)
    client.sendall(EVENT)
    assert b"Connection: close" in answer(client)
    assert handled.result(20) is False
    assert not threaded.alive


def test_an_application_that_raises_answers_500(threaded: Any, plain: tuple[socket.socket, Callable[[], Any]]) -> None:
    def fail(_: "WSGIEnvironment", __: "StartResponse") -> list[bytes]:
        raise RuntimeError("a bug")

    threaded.wsgi = fail
    client, start = plain
    handled = start()
    assert client.recv(4096).startswith(b"HTTP/1.1 500 ")
    assert handled.result(20) is False


def test_an_answer_that_is_not_read_does_not_keep_a_thread(
    threaded: Any, plain: tuple[socket.socket, Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def large(_: "WSGIEnvironment", start_response: "StartResponse") -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(1 << 26)]

    monkeypatch.setattr(threaded, "wsgi", large)
    _, start = plain
    assert start().result(20) is False


# --- Shares of the connections


@pytest.fixture
def shared(threaded: Any) -> Iterator[Board]:
    """The numbers that the worker, the first one, tells others."""
    board = Board()
    board.enter(0)
    board.enter(1)
    threaded.share = Share(board, 0)
    threaded.poller = selectors.DefaultSelector()
    with threaded.poller:
        yield board


@pytest.mark.parametrize("kind", ["handle", "plain"])
def test_a_connection_is_closed_for_the_sake_of_balance_whatever_its_requests_are(
    threaded: Any, shared: Board, kind: str, request: pytest.FixtureRequest
) -> None:
    client, start = request.getfixturevalue(kind)
    threaded.share.tell(9)
    shared.write(1, 0)
    handled = start()
    assert b"\r\nConnection: close\r\n" in answer(client)
    assert handled.result(20) is False


def test_others_learn_that_idle_connections_have_been_closed(threaded: Any, shared: Board) -> None:
    client, server = socket.socketpair()
    connection = Connection(threaded.cfg, server, None, None, 4.0)
    with client:
        threaded.set_accept_enabled(True)
        threaded._count(1)
        assert shared.least(1) == 1
        connection.timeout = 0
        threaded.keepalived_conns.append(connection)
        threaded.murder_keepalived()
        assert shared.least(1) == 0


def test_others_learn_that_a_worker_ends_after_enough_requests(threaded: Any, shared: Board) -> None:
    assert shared.least(1) is None, "it has only started"
    threaded.set_accept_enabled(True)
    assert shared.least(1) == 0
    threaded.set_accept_enabled(False)
    threaded._count(1)
    assert shared.least(1) is None


def test_a_connection_closed_on_this_side_counts_no_more(threaded: Any, shared: Board) -> None:
    client, server = socket.socketpair()
    with client, server:
        threaded.set_accept_enabled(True)
        threaded._count(2)
        threaded._close(Connection(threaded.cfg, server, None, None, 4.0))
        assert shared.least(1) == 1
