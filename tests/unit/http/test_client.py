"""Requests over real sockets to upstreams that hang, trickle, reset, lie, and sometimes answer."""

import contextlib
import itertools
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pycurl
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TooLargeError, TransientError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.http.messages import MAX_BODY_BYTES
from fleet_fn.http.pool import MAX_IDLE_CONNECTIONS, MAX_IDLE_SECONDS
from tests.support.files import open_descriptors
from tests.support.http import Request, Response, Server, closed_port

#: Seconds that an exchange may take, and after which it is certain that it ignored that.
DEADLINE = 0.3
TOO_LATE = DEADLINE + 0.7

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextmanager
def upstream(url: str, **options: object) -> Iterator[HttpClient]:
    kept = HttpClient("cloud", url, **options)  # type: ignore[arg-type]
    try:
        yield kept
    finally:
        kept.close()


@dataclass
class Peer:
    """A listener whose every connection is served by a function of the test's."""

    url: str
    #: Set when the test is over, for those who hang until then.
    over: threading.Event
    connections: int = 0


@contextmanager
def peer(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[Peer]:
    """A raw TCP server; `serve` gets each connection, which is closed when it returns."""
    threads: list[threading.Thread] = []

    def run(connection: socket.socket) -> None:
        with connection:
            try:
                serve(connection, found.over)
            except OSError:
                pass  # the client has gone, as most of these tests want it

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            found.connections += 1
            threads.append(threading.Thread(target=run, args=(connection,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        found = Peer(f"http://127.0.0.1:{listener.getsockname()[1]}", threading.Event())
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield found
        finally:
            found.over.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join()


def read_request(connection: socket.socket, size: int = 0) -> bytes:
    """Read a request with a body of `size` bytes, and return the body."""
    received = b""
    while (end := received.find(b"\r\n\r\n") + 4) < 4 or len(received) < end + size:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        received += piece
    return received[end:]


def answering(content: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(content)

    return serve


def hanging_after(content: bytes) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(content)
        over.wait()

    return serve


def trickling(quickly: bytes, slowly: bytes, pause: float) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(quickly)
        for byte in slowly:
            if over.wait(pause) if pause else over.is_set():
                return
            connection.sendall(bytes((byte,)))

    return serve


def set_option(monkeypatch: pytest.MonkeyPatch, option: int, value: object) -> None:
    """Set a further option of each handle from now on."""

    class Curl:
        def __new__(cls) -> Any:
            handle = pycurl_curl()
            handle.setopt(option, value)
            return handle

    pycurl_curl = pycurl.Curl
    monkeypatch.setattr(pycurl, "Curl", Curl)


@contextmanager
def in_time() -> Iterator[Deadline]:
    """A deadline, which what is done with it has to keep."""
    deadline = Deadline(DEADLINE)
    yield deadline
    assert deadline.elapsed < TOO_LATE


# --- What is sent and what comes back ---------------------------------------------------------------------------------


def test_method_path_body_and_headers_arrive_as_given() -> None:
    with (
        Server(lambda _: Response(202, b"{}")) as server,
        upstream(f"{server.url}/base/", authorization=Fixed("Bearer s3cret")) as cloud,
    ):
        path = "/apps/a%2Fb?command=port%3A223"
        answer = cloud.request("POST", path, Deadline(5), body=b"\x00\xff", content_type="application/cbor")
    (request,) = server.requests
    assert (answer.status, answer.body) == (202, b"{}")
    assert (request.method, request.path, request.body) == ("POST", "/base/apps/a%2Fb?command=port%3A223", b"\x00\xff")
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.headers["Content-Type"] == "application/cbor"
    assert request.headers["Content-Length"] == "2"
    assert request.headers["Host"] == f"127.0.0.1:{server.port}"


def test_the_default_port_is_left_out_of_the_host_header(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda _: Response()) as server:
        set_option(monkeypatch, pycurl.CONNECT_TO, [f"cloud.example:80:127.0.0.1:{server.port}"])
        with upstream("http://cloud.example") as cloud:
            cloud.request("GET", "/", Deadline(5))
    assert server.requests[0].headers["Host"] == "cloud.example"


def test_without_authorization_and_body_no_such_headers_are_sent() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        cloud.request("GET", "/", Deadline(5))
    assert not {"Authorization", "Content-Type"} & server.requests[0].headers.keys()


class Tokens:
    """Another token for each request; one more where there is to be one after a refusal."""

    def __init__(self, *after_refusal: str) -> None:
        self._numbers = itertools.count(1)
        self._after_refusal = list(after_refusal)
        self.refused: list[tuple[str, int]] = []

    def header(self, _: Deadline) -> str:
        return f"Bearer {next(self._numbers)}"

    def refresh(self, refused: str, status: int, _: Deadline) -> str | None:
        self.refused.append((refused, status))
        return self._after_refusal.pop() if self._after_refusal else None

    def close(self) -> None:
        """Nothing to close."""


def test_authorization_is_asked_anew_for_each_request() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url, authorization=Tokens()) as cloud:
        cloud.request("GET", "/", Deadline(5))
        cloud.request("GET", "/", Deadline(5))
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer 1", "Bearer 2"]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_refused_is_tried_once_more_with_other_credentials_where_there_are_some(
    status: int, method: str
) -> None:
    tokens = Tokens("Bearer third", "Bearer other")
    with Server(lambda _: Response(status)) as server, upstream(server.url, authorization=tokens) as cloud:
        assert cloud.request(method, "/", Deadline(5), body=b"x").status == status
    assert [request.headers["Authorization"] for request in server.requests] == ["Bearer 1", "Bearer other"]
    assert [request.body for request in server.requests] == [b"x", b"x"]
    assert tokens.refused == [("Bearer 1", status)]


@pytest.mark.parametrize(("status", "authorization"), [(404, Tokens("x")), (401, Tokens()), (401, Fixed("Bearer 1"))])
def test_nothing_else_is_tried_twice(status: int, authorization: object) -> None:
    with Server(lambda _: Response(status)) as server, upstream(server.url, authorization=authorization) as cloud:
        assert cloud.request("POST", "/", Deadline(5), body=b"x").status == status
    assert len(server.requests) == 1


def test_credentials_that_never_change_are_not_shown() -> None:
    assert "s3cret" not in repr(Fixed("Bearer s3cret"))


def test_basic_credentials_are_utf_8_in_base64() -> None:
    assert basic("test", "123\u00a3") == "Basic dGVzdDoxMjPCow=="  # the example of RFC 7617, section 2.1


@pytest.mark.parametrize("status", [200, 204, 301, 302, 307, 400, 401, 404, 406, 409, 418])
def test_answers_that_are_neither_429_nor_5xx_are_returned_and_redirects_not_followed(status: int) -> None:
    headers = {"Location": "/elsewhere"} if status // 100 == 3 else {}
    with Server(lambda _: Response(status, headers=headers)) as server, upstream(server.url) as cloud:
        assert cloud.request("GET", "/", Deadline(5)).status == status
    assert [request.path for request in server.requests] == ["/"]


@pytest.mark.parametrize(
    ("status", "retry_after", "seconds"),
    [
        (429, "7", 7),
        (503, "120", 120),
        (500, None, None),
        (502, -60.0, None),
        (503, "0", None),
        (429, 30_000_000.0, 21_600),
        (429, "999999", 21_600),
        (502, "Fri, 99 Dec 2027 23:59:59 GMT", None),
        (504, "-1", None),
        (503, "\u00b2", None),
        (503, "9" * 5000, None),
    ],
)
def test_429_and_5xx_are_to_be_retried_after_the_seconds_that_the_answer_names(
    status: int, retry_after: str | float | None, seconds: int | None
) -> None:
    if isinstance(retry_after, float):  # seconds from now
        retry_after = formatdate(time.time() + retry_after, usegmt=True)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    with (
        Server(lambda _: Response(status, headers=headers)) as server,
        upstream(server.url) as cloud,
        pytest.raises(TransientError, match=rf"^cloud: answered {status}$") as caught,
    ):
        cloud.request("GET", "/", Deadline(5))
    assert caught.value.retry_after == seconds
    assert isinstance(caught.value, RateLimitedError) == (status == 429)


def test_the_moment_until_which_to_wait_is_so_many_seconds_from_now() -> None:
    headers = {"Retry-After": formatdate(time.time() + 60, usegmt=True)}
    with (
        Server(lambda _: Response(429, headers=headers)) as server,
        upstream(server.url) as cloud,
        pytest.raises(RateLimitedError) as caught,
    ):
        cloud.request("GET", "/", Deadline(5))
    assert caught.value.retry_after in range(50, 62)


def test_the_answer_to_a_head_has_no_body_and_its_connection_is_kept() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nX: y\r\n\r\n")

    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(3):
            answer = cloud.request("HEAD", "/", Deadline(5))
            assert (answer.body, answer.headers.get("X")) == (b"", "y")
        cloud.close()
    assert server.connections == 1


@pytest.mark.parametrize("wants_body", [False, True])
def test_head_answer_may_announce_any_length(wants_body: bool) -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * MAX_BODY_BYTES))

    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(2):
            assert cloud.request("HEAD", "/", Deadline(5), wants_body=wants_body).status == 200
        assert server.connections == 1
        with pytest.raises(TooLargeError):
            cloud.request("GET", "/", Deadline(5))
        cloud.close()


def test_an_answer_that_ends_with_its_connection_is_read_to_the_end() -> None:
    with peer(answering(b"HTTP/1.0 200 OK\r\n\r\nall of it")) as server, upstream(server.url) as cloud:
        assert cloud.request("GET", "/", Deadline(5)).body == b"all of it"


def test_a_chunked_answer_is_put_together_and_its_connection_kept() -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n6;x=y\r\n of it\r\n0\r\nTrailer: t\r\n\r\n"
    )

    def serve(connection: socket.socket, over: threading.Event) -> None:
        while not over.is_set():
            read_request(connection)
            connection.sendall(chunked)

    with peer(serve) as server, upstream(server.url) as cloud:
        assert [cloud.request("GET", "/", Deadline(5)).body for _ in range(3)] == [b"all of it"] * 3
        cloud.close()
    assert server.connections == 1


@given(
    st.from_regex(r"/[!-~]{0,20}", fullmatch=True),
    st.dictionaries(
        st.sampled_from(["Accept", "User-Agent", "Content-Type", "X-Any"]),
        st.from_regex(r"(?:[!-~\xa0-\xff][\t -~\xa0-\xff]{0,20}[!-~\xa0-\xff])?", fullmatch=True),
    ),
    st.sampled_from(["POST", "PUT"]),
    st.one_of(st.none(), st.binary(max_size=20), st.binary(min_size=70_000, max_size=70_000)),
)
@settings(deadline=None)
def test_a_request_arrives_as_it_was_given(
    target: str, headers: dict[str, str], method: str, body: bytes | None
) -> None:
    with Server(lambda _: Response()) as server, upstream(f"{server.url}/x/../y") as cloud:
        cloud.request(method, target, Deadline(5), headers=headers, body=body)
    (request,) = server.requests
    assert (request.method, request.path, request.body) == (method, f"/x/../y{target}", body or b"")
    expected = {"Accept": "application/json", "User-Agent": "fleet-fn", **headers}
    of_connection = {
        "Host": f"127.0.0.1:{server.port}",
        "Accept-Encoding": "identity",
        "Content-Length": str(len(body or b"")),
    }
    assert dict(request.headers) == expected | of_connection


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["GET", "HEAD", "POST", "PUT"]),
            st.sampled_from([None, b"", b"body", bytes(70_000)]),
            st.booleans(),
        ),
        min_size=2,
        max_size=6,
    )
)
@settings(deadline=None)
def test_no_request_leaves_anything_to_the_next_one(asked: list[tuple[str, bytes | None, bool]]) -> None:
    with Server(lambda _: Response(201, b"answer", {"X": "y"})) as server, upstream(server.url) as cloud:
        for method, body, wants_body in asked:
            body = body if method in ("POST", "PUT") else None
            answer = cloud.request(method, "/", Deadline(5), body=body, wants_body=wants_body)
            expected = b"answer" if wants_body and method != "HEAD" else b""
            assert (answer.status, answer.body, answer.headers.get("X")) == (201, expected, "y" if wants_body else None)
            sent = server.requests[-1]
            assert (sent.method, sent.body) == (method, body or b"")
            assert ("Content-Length" in sent.headers) == (method in ("POST", "PUT"))
        assert len(server.requests) == len(asked)


# --- Connections that are kept ----------------------------------------------------------------------------------------


def test_one_connection_serves_request_after_request() -> None:
    statuses = iter((200, 404, 503, 200))
    with Server(lambda _: Response(next(statuses), b"x")) as server, upstream(server.url) as cloud:
        for _ in range(4):
            with contextlib.suppress(TransientError):  # of the 503
                cloud.request("GET", "/", Deadline(5))
    assert server.connections == 1


def test_a_connection_that_the_server_closed_while_idle_costs_no_error() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        cloud.request("GET", "/", Deadline(5))
        server.drop_connections()
        assert cloud.request("GET", "/", Deadline(5)).status == 200
    assert server.connections == 2


@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("abruptly", [False, True])
def test_a_connection_that_the_server_closes_just_as_it_is_used_again_costs_no_error(
    abruptly: bool, method: str
) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)
        if abruptly:  # a reset instead of an end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with peer(serve) as server, upstream(server.url) as cloud:
        assert cloud.request(method, "/", Deadline(5)).body == b"ok"
        assert cloud.request(method, "/", Deadline(5)).body == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("size", [1, 1000, 65536, 1_000_000])
def test_a_post_is_not_sent_again_even_over_a_connection_that_was_kept(abruptly: bool, size: int) -> None:
    requests = 0

    def serve(connection: socket.socket, _: threading.Event) -> None:
        nonlocal requests
        for answer in (OK, b""):
            read_request(connection, size)
            requests += 1
            connection.sendall(answer)
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with peer(serve) as server, upstream(server.url) as cloud:
        cloud.request("POST", "/", Deadline(5), body=bytes(size))
        with pytest.raises(TransientError, match=r"^cloud: connection closed without an answer$") as caught:
            cloud.request("POST", "/", Deadline(5), body=bytes(size), wants_body=False)
        assert caught.value.may_have_acted
        assert (requests, server.connections) == (2, 1)


@pytest.mark.parametrize("body", [None, b""])
def test_a_post_without_a_body_goes_over_a_new_connection(body: bytes | None) -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        for _ in range(3):
            cloud.request("POST", "/", Deadline(5), body=body)
    assert [request.body for request in server.requests] == [b"", b"", b""]
    assert server.connections == 3


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_put_is_sent_again_with_all_of_its_body(size: int) -> None:
    bodies: list[bytes] = []
    sent = random.Random(size).randbytes(size)

    def serve(connection: socket.socket, _: threading.Event) -> None:
        bodies.append(read_request(connection, size))
        connection.sendall(OK)
        read_request(connection, size)

    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(2):
            assert cloud.request("PUT", "/", Deadline(5), body=sent).status == 200
        assert server.connections == 2
    assert bodies == [sent, sent]


@pytest.mark.parametrize(
    ("rest", "connections"),
    [
        (b"Content-Length: 0\r\n\r\n", 1),
        (b"Content-Length: 5\r\n\r\nhello", 1),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 1),
        (b"Content-Length: 100000000\r\n\r\n" + b"x" * 1000, 2),
        (b"Transfer-Encoding: chunked\r\n\r\nnonsense", 2),
    ],
)
def test_where_the_status_is_all_that_matters_nothing_wrong_with_the_body_does(rest: bytes, connections: int) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        while read_request(connection, 1):
            connection.sendall(b"HTTP/1.1 202 Accepted\r\n" + rest)

    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(2):
            deadline = Deadline(5)
            answer = cloud.request("POST", "/", deadline, body=b"x", wants_body=False)
            assert (answer.status, answer.body) == (202, b"")
            assert deadline.elapsed < 1
        assert server.connections == connections


def test_an_unwanted_body_that_does_not_come_costs_no_more_than_the_deadline() -> None:
    head = b"HTTP/1.1 202 Accepted\r\nContent-Length: 5\r\n\r\n"
    with peer(hanging_after(head)) as server, upstream(server.url) as cloud, in_time() as deadline:
        assert cloud.request("POST", "/", deadline, wants_body=False).status == 202


def test_a_connection_that_ends_with_the_answer_does_no_harm_where_the_status_is_all_that_matters() -> None:
    with (
        peer(answering(b"HTTP/1.1 202 Accepted\r\nConnection: close\r\n\r\nwhatever")) as server,
        upstream(server.url) as cloud,
    ):
        assert cloud.request("POST", "/", Deadline(5), body=b"", wants_body=False).status == 202


def test_a_new_connection_that_is_closed_without_an_answer_is_not_tried_twice() -> None:
    with (
        Server(lambda _: None) as server,
        upstream(server.url) as cloud,
        pytest.raises(TransientError, match=r"^cloud: connection closed without an answer$"),
    ):
        cloud.request("POST", "/", Deadline(5), body=b"x")
    assert len(server.requests) == 1


def test_a_request_whose_answer_had_begun_is_not_sent_again() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")

    with peer(serve) as server, upstream(server.url) as cloud:
        cloud.request("GET", "/", Deadline(5))
        with pytest.raises(TransientError, match=r"^cloud: answer cut short$"):
            cloud.request("GET", "/", Deadline(5))
        assert server.connections == 1


def test_a_connection_on_which_more_came_than_was_asked_for_is_not_used_again() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)
        answered.wait()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
        said.set()
        over.wait()

    answered, said = threading.Event(), threading.Event()
    with peer(serve) as server, upstream(server.url) as cloud:
        assert cloud.request("GET", "/", Deadline(5)).body == b"ok"
        answered.set()
        assert said.wait(5)
        assert cloud.request("GET", "/", Deadline(5)).body == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("status", [100, 102, 103, 199])
@pytest.mark.parametrize("wants_body", [False, True])
def test_interim_answers_are_skipped(status: int, wants_body: bool) -> None:
    interim = f"HTTP/1.1 {status} Wait\r\nLink: x\r\nContent-Length: 3\r\n\r\n".encode()
    numbers = itertools.count(201)

    def serve(connection: socket.socket, _: threading.Event) -> None:
        while True:
            read_request(connection, 1)
            final = f"HTTP/1.1 {next(numbers)} Fine\r\nContent-Length: 2\r\n\r\nok".encode()
            connection.sendall(interim * 3 + final)

    with peer(serve) as server, upstream(server.url) as cloud:
        for number in (201, 202, 203):
            answer = cloud.request("POST", "/", Deadline(5), body=b"x", wants_body=wants_body)
            assert (answer.status, answer.body) == (number, b"ok" if wants_body else b"")
            assert answer.headers.get("Link") is None
        cloud.close()
    assert server.connections == 1


@given(
    st.sampled_from([b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"]),
    st.sampled_from([200, 202, 204, 304, 404]),
    st.lists(
        st.sampled_from(
            [
                "Content-Length: 0",
                "Content-Length: 2",
                "content-length: 40",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: gzip, chunked",
                "Connection: keep-alive",
                "X: y",
                " folded",
            ]
        ),
        max_size=4,
    ),
    st.sampled_from([b"", b"ok", b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 299 Stale\r\nContent-Length: 0\r\n\r\n"]),
    st.sampled_from(["GET", "HEAD", "PUT", "POST"]),
    st.booleans(),
)
@settings(deadline=None)
def test_whatever_a_server_sends_no_answer_is_taken_for_the_next_one(
    interim: bytes, status: int, lines: list[str], rest: bytes, method: str, wants_body: bool
) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        body = 1 if method in ("PUT", "POST") else 0
        read_request(connection, body)
        first = server.connections == 1
        head = "".join(f"{line}\r\n" for line in lines)
        connection.sendall(interim + f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + rest if first else mine)
        read_request(connection, body)
        connection.sendall(mine)

    mine = b"HTTP/1.1 207 Mine\r\nContent-Length: 0\r\n\r\n"
    with peer(serve) as server, upstream(server.url) as cloud:
        sent = b"x" if method in ("PUT", "POST") else None
        with contextlib.suppress(TransientError, PermanentError):
            assert cloud.request(method, "/", Deadline(0.05), body=sent, wants_body=wants_body).status == status
        assert cloud.request(method, "/", Deadline(5), body=sent, wants_body=wants_body).status == 207
        cloud.close()


@pytest.mark.parametrize("announced", ["Content-Length: 36", "Transfer-Encoding: chunked"])
def test_a_connection_on_which_a_body_is_announced_that_there_cannot_be_is_not_used_again(announced: str) -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(f"HTTP/1.1 204 No Content\r\n{announced}\r\n\r\n".encode())
        read_request(connection)
        connection.sendall(b"HTTP/1.1 202 Accepted\r\n\r\n")  # that body, which looks like an answer

    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(2):
            assert cloud.request("POST", "/", Deadline(5), wants_body=False).status == 204
        assert server.connections == 2


def test_a_connection_that_was_idle_for_long_is_not_trusted_to_be_there_still() -> None:
    now = [1000.0]
    with Server(lambda _: Response()) as server, upstream(server.url, clock=lambda: now[0]) as cloud:
        cloud.request("GET", "/", Deadline(5))
        now[0] += MAX_IDLE_SECONDS - 1
        cloud.request("GET", "/", Deadline(5))
        assert server.connections == 1
        now[0] += MAX_IDLE_SECONDS + 1
        cloud.request("GET", "/", Deadline(5))
        assert server.connections == 2


def test_idle_connections_are_closed_while_another_one_is_busy() -> None:
    now = [1000.0]
    together, closed = threading.Barrier(4), threading.Semaphore(0)

    def serve(connection: socket.socket, _: threading.Event) -> None:
        try:
            read_request(connection)
            together.wait(20)
            while True:
                connection.sendall(OK)
                read_request(connection)
        finally:
            closed.release()

    with peer(serve) as server, upstream(server.url, clock=lambda: now[0]) as cloud:
        with ThreadPoolExecutor(4) as threads:
            for answer in [threads.submit(cloud.request, "GET", "/", Deadline(20)) for _ in range(4)]:
                answer.result()
        for _ in range(4):
            now[0] += MAX_IDLE_SECONDS / 3
            cloud.request("GET", "/", Deadline(5))
        for _ in range(3):
            assert closed.acquire(timeout=5)
        assert not closed.acquire(blocking=False)
        assert server.connections == 4


def test_a_server_that_announces_the_end_of_its_connection_is_believed() -> None:
    with Server(lambda _: Response(headers={"Connection": "close"})) as server, upstream(server.url) as cloud:
        cloud.request("GET", "/", Deadline(5))
        cloud.request("GET", "/", Deadline(5))
    assert server.connections == 2


# --- One deadline for all of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "serve",
    [
        pytest.param(hanging_after(b""), id="before the answer"),
        pytest.param(hanging_after(b"HTTP/1.1 20"), id="in the status line"),
        pytest.param(hanging_after(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n"), id="in the head"),
        pytest.param(hanging_after(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), id="before the body"),
        pytest.param(hanging_after(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody"), id="in the body"),
        pytest.param(hanging_after(b"HTTP/1.0 200 OK\r\n\r\nbody"), id="in a body without a length"),
        pytest.param(hanging_after(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxx"), id="in a chunk"),
        pytest.param(hanging_after(b"HTTP/1.1 100 Continue\r\n\r\n"), id="after an interim answer"),
    ],
)
def test_a_server_that_falls_silent_costs_no_more_than_the_deadline(
    serve: Callable[[socket.socket, threading.Event], None],
) -> None:
    with (
        peer(serve) as server,
        upstream(server.url) as cloud,
        in_time() as deadline,
        pytest.raises(TransientError, match=r"^cloud: no answer in time$"),
    ):
        cloud.request("GET", "/", deadline)


def test_what_is_given_up_is_closed_there_and_then() -> None:
    closed = threading.Event()

    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        # With http.client an answer without a length has the socket to itself.
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nbody")
        connection.settimeout(5)
        if connection.recv(1) == b"":
            closed.set()

    with peer(serve) as server, upstream(server.url) as cloud:
        with pytest.raises(TransientError) as caught:
            cloud.request("GET", "/", Deadline(0.2))
        assert closed.wait(5), f"{caught.value!r} still holds it"


@pytest.mark.parametrize("pause", [0.05, 0.0], ids=["slowly", "ceaselessly"])
@pytest.mark.parametrize(
    ("quickly", "slowly"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", b"x" * MAX_BODY_BYTES, id="head"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MAX_BODY_BYTES, b"x" * MAX_BODY_BYTES, id="body"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 10**6, id="chunks"),
    ],
)
def test_bytes_that_trickle_in_do_not_prolong_the_deadline(quickly: bytes, slowly: bytes, pause: float) -> None:
    # A head that comes ceaselessly may hit the bound of a header line first.
    with (
        peer(trickling(quickly, slowly, pause)) as server,
        upstream(server.url) as cloud,
        in_time() as deadline,
        pytest.raises((TransientError, PermanentError)),
    ):
        cloud.request("GET", "/", deadline)


def test_a_trickle_over_a_connection_that_was_kept_does_not_prolong_the_deadline_either() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)
        trickling(b"", b"HTTP/1.1 200 OK\r\n" * 1000, 0.05)(connection, over)

    with peer(serve) as server, upstream(server.url) as cloud:
        cloud.request("GET", "/", Deadline(5))
        with in_time() as deadline, pytest.raises(TransientError, match=r"^cloud: no answer in time$"):
            cloud.request("GET", "/", deadline)


def test_interim_answers_without_end_are_an_end() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        while not over.is_set():
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    with (
        peer(serve) as server,
        upstream(server.url) as cloud,
        in_time() as deadline,
        pytest.raises((TransientError, PermanentError)),
    ):
        cloud.request("GET", "/", deadline)


def test_a_server_that_accepts_no_connection_costs_no_more_than_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(4):  # fills the backlog, after which the system drops what would begin a connection
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(address)
        with (
            upstream(f"http://127.0.0.1:{address[1]}") as cloud,
            in_time() as deadline,
            pytest.raises(TransientError, match=r"^cloud: no answer in time$"),
        ):
            cloud.request("GET", "/", deadline)
        for connection in waiting:
            connection.close()


def test_a_server_that_does_not_read_costs_no_more_than_the_deadline() -> None:
    def serve(_: socket.socket, over: threading.Event) -> None:
        over.wait()

    with (
        peer(serve) as server,
        upstream(server.url) as cloud,
        in_time() as deadline,
        pytest.raises(TransientError, match=r"^cloud: no answer in time$"),
    ):
        cloud.request("POST", "/", deadline, body=bytes(64 * 1024 * 1024))


def test_a_deadline_that_has_passed_already_sends_nothing() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        for _ in range(2):
            with pytest.raises(TransientError, match=r"^cloud: no answer in time$"):
                cloud.request("GET", "/", Deadline(0))
            cloud.request("GET", "/kept", Deadline(5))
    assert {request.path for request in server.requests} == {"/kept"}


def test_longest_deadline_of_the_settings_is_taken() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        assert cloud.request("GET", "/", Deadline(86_400)).status == 200
        with cloud.stream("/", Deadline(86_400)) as stream:
            assert stream.status == 200


# --- No connection, and answers that are none -------------------------------------------------------------------------


def test_a_refused_connection_is_to_be_retried() -> None:
    with (
        closed_port() as port,
        upstream(f"http://127.0.0.1:{port}") as cloud,
        pytest.raises(TransientError, match=r"^cloud: connection refused$"),
    ):
        cloud.request("GET", "/", Deadline(5))


def test_unreachable_network_is_transient() -> None:
    with (
        upstream("http://255.255.255.255") as cloud,  # no host, so there is no route for a connection
        pytest.raises(TransientError, match=r"^cloud: network is unreachable$"),
    ):
        cloud.request("GET", "/", Deadline(5))


def test_an_error_tells_whether_the_upstream_may_have_acted() -> None:
    with closed_port() as port, upstream(f"http://127.0.0.1:{port}") as cloud, pytest.raises(TransientError) as refused:
        cloud.request("POST", "/", Deadline(5), body=b"x")
    assert not refused.value.may_have_acted
    for response, may_have_acted in (
        (Response(429), False),
        (Response(500), True),
        (Response(503), True),
        (None, True),
    ):
        with (
            Server(lambda _, response=response: response) as server,  # type: ignore[misc]
            upstream(server.url) as cloud,
            pytest.raises(TransientError) as error,
        ):
            cloud.request("POST", "/", Deadline(5), body=b"x")
        assert error.value.may_have_acted is may_have_acted


def test_a_host_that_is_not_found_is_to_be_retried() -> None:
    # libcurl asks no resolver for a host of this domain (RFC 7686).
    with upstream("http://cloud.onion") as cloud, pytest.raises(TransientError, match=r"^cloud: host not found$") as e:
        cloud.request("POST", "/", Deadline(5), body=b"x")
    assert not e.value.may_have_acted


def test_where_one_address_does_not_work_the_next_one_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(lambda _: Response()) as server:
        set_option(monkeypatch, pycurl.RESOLVE, [f"cloud.example:{server.port}:127.0.0.2,127.0.0.1"])
        with upstream(f"http://cloud.example:{server.port}") as cloud:
            assert cloud.request("GET", "/", Deadline(5)).status == 200
            assert cloud.address == "127.0.0.1"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", id="short"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", id="no body at all"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho", id="in a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", id="no last chunk"),
    ],
)
def test_a_body_that_is_cut_short_is_to_be_retried(content: bytes) -> None:
    with (
        peer(answering(content)) as server,
        upstream(server.url) as cloud,
        pytest.raises(TransientError, match=r"^cloud: answer cut short$"),
    ):
        cloud.request("GET", "/", Deadline(5))


#: Heads without their end: what follows may have said anything, such as how long the body is.
CUT_HEADS = [
    pytest.param(b"HTTP/1.1 200 OK\r\n", id="after it"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Ty", id="in a header's name"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0", id="in its value"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", id="before the empty line"),
]


@pytest.mark.parametrize("content", CUT_HEADS)
def test_a_head_that_is_cut_short_is_to_be_retried_and_not_taken_for_an_empty_answer(content: bytes) -> None:
    with peer(answering(content)) as server, upstream(server.url) as cloud:
        with pytest.raises(TransientError, match=r"^cloud: answer cut short$"):
            cloud.request("GET", "/", Deadline(5))
        with pytest.raises(TransientError, match=r"^cloud: answer cut short$"), cloud.stream("/", Deadline(5)):
            pass


@pytest.mark.parametrize("content", [b"H", b"HTTP/1.", b"HTTP/1.1", b"HTTP/1.1 20", b"HTTP/1.1 200"])
@pytest.mark.parametrize("wants_body", [False, True])
def test_a_head_that_is_cut_short_before_its_status_is_to_be_retried(content: bytes, wants_body: bool) -> None:
    with (
        peer(answering(content)) as server,
        upstream(server.url) as cloud,
        pytest.raises(TransientError, match=r"^cloud: connection closed without an answer$") as caught,
    ):
        cloud.request("POST", "/", Deadline(5), wants_body=wants_body)
    assert caught.value.may_have_acted


@pytest.mark.parametrize("content", CUT_HEADS)
def test_a_head_that_is_cut_short_does_not_matter_where_its_status_is_all_that_does(content: bytes) -> None:
    with peer(answering(content)) as server, upstream(server.url) as cloud:
        assert cloud.request("POST", "/", Deadline(5), wants_body=False).status == 200


def test_a_reset_in_the_body_is_to_be_retried() -> None:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    with peer(serve) as server, upstream(server.url) as cloud, pytest.raises(TransientError, match=r"^cloud: "):
        cloud.request("GET", "/", Deadline(5))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
        pytest.param(b"SSH", id="SSH, cut short"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="status"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", id="ten thousand headers"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * 400_000 + b"\r\n", id="a long line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="no size of a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx", id="a length that is no number"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", id="two lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 1\r\n\r\nx", id="no header"),
        pytest.param(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + OK, id="another protocol"),
        pytest.param(b"HTTP/2 200 OK\r\nContent-Length: 1\r\n\r\nx", id="HTTP/2"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nx\r\n", id="a negative chunk"),
        pytest.param(b"\0" * 100 + b"\r\n", id="zeros"),
    ],
)
def test_what_is_not_http_fails(content: bytes) -> None:
    with (
        peer(answering(content)) as server,
        upstream(server.url) as cloud,
        pytest.raises(PermanentError, match=r"^cloud: answer is not HTTP$"),
    ):
        cloud.request("GET", "/", Deadline(5))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"Content-Length: 100000000\r\n\r\n", id="announced"),
        pytest.param(b"Connection: close\r\n\r\n", id="until the end"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5f5e100\r\n", id="chunk"),
        pytest.param(b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", id="chunk of unknown size"),
    ],
)
def test_of_a_huge_answer_no_more_than_the_bound_is_read(head: bytes) -> None:
    sent = 0

    def serve(connection: socket.socket, _: threading.Event) -> None:
        nonlocal sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + head)
        while sent < 100_000_000:
            connection.sendall(bytes(100_000))
            sent += 100_000

    with (
        peer(serve) as server,
        upstream(server.url) as cloud,
        pytest.raises(PermanentError, match=rf"^cloud: answer (larger than {MAX_BODY_BYTES} bytes|is not HTTP)"),
    ):
        cloud.request("GET", "/", Deadline(10))
    assert sent < 5 * MAX_BODY_BYTES  # the system's own buffers take some megabytes


def test_an_answer_of_just_the_bound_is_taken() -> None:
    with Server(lambda _: Response(body=bytes(MAX_BODY_BYTES))) as server, upstream(server.url) as cloud:
        assert len(cloud.request("GET", "/", Deadline(10)).body) == MAX_BODY_BYTES


# --- Piece by piece ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall of it", id="announced"),
        pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it", id="until the end"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n6\r\n of it\r\n0\r\n\r\n", id="chunks"
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_streamed_answer_is_read_in_pieces_of_at_most_the_size_that_is_asked_for(content: bytes, size: int) -> None:
    with (
        peer(answering(content)) as server,
        upstream(server.url) as cloud,
        cloud.stream("/", Deadline(5), {"Accept": "*/*"}) as stream,
    ):
        assert stream.status == 200
        pieces = list(iter(lambda: stream.read(size, Deadline(5)), b""))
        assert stream.read(size, Deadline(5)) == b""
    assert b"".join(pieces) == b"all of it"
    assert max(map(len, pieces)) <= size


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", id="short"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nsho", id="in a chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", id="no last chunk"),
    ],
)
def test_a_stream_that_is_cut_short_is_to_be_retried_and_not_taken_for_its_end(content: bytes) -> None:
    with (
        peer(answering(content)) as server,
        upstream(server.url) as cloud,
        cloud.stream("/", Deadline(5)) as stream,
        pytest.raises(TransientError, match=r"^cloud: answer cut short$"),
    ):
        list(iter(lambda: stream.read(100, Deadline(5)), b""))


def test_each_piece_of_a_stream_has_a_deadline_of_its_own() -> None:
    content = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall"
    with (
        peer(trickling(content, b" of it", DEADLINE / 2)) as server,
        upstream(server.url) as cloud,
        cloud.stream("/", Deadline(5)) as stream,
    ):
        received = b"".join(iter(lambda: stream.read(100, Deadline(5)), b""))
    assert received == b"all of it"
    with (
        peer(hanging_after(content)) as server,
        upstream(server.url) as cloud,
        cloud.stream("/", Deadline(5)) as stream,
    ):
        assert stream.read(100, Deadline(5)) == b"all"
        with in_time() as deadline, pytest.raises(TransientError, match=r"^cloud: no answer in time$"):
            stream.read(100, deadline)


def test_a_stream_may_bring_more_than_other_answers() -> None:
    with (
        Server(lambda _: Response(body=bytes(3 * MAX_BODY_BYTES))) as server,
        upstream(server.url) as cloud,
        cloud.stream("/", Deadline(5)) as stream,
    ):
        assert sum(map(len, iter(lambda: stream.read(65536, Deadline(10)), b""))) == 3 * MAX_BODY_BYTES


def test_the_connection_of_a_stream_is_kept_if_it_was_read_to_its_end() -> None:
    with Server(lambda _: Response(body=bytes(10_000_000))) as server, upstream(server.url) as cloud:
        for _ in range(3):
            with cloud.stream("/", Deadline(5)) as stream:
                while stream.read(1_000_000, Deadline(5)):
                    pass
        assert server.connections == 1
        for _ in range(3):
            with cloud.stream("/", Deadline(5)) as stream:
                assert stream.read(4, Deadline(5)) == bytes(4)
        assert server.connections == 3


def test_a_connection_on_which_more_came_than_a_stream_is_not_used_again() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        read_request(connection)
        connection.sendall(OK)
        answered.wait()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
        said.set()
        over.wait()

    answered, said = threading.Event(), threading.Event()
    with peer(serve) as server, upstream(server.url) as cloud:
        for _ in range(2):
            with cloud.stream("/", Deadline(5)) as stream:
                assert b"".join(iter(lambda: stream.read(9, Deadline(5)), b"")) == b"ok"
            answered.set()
            assert said.wait(5)
        assert server.connections == 2


@pytest.mark.parametrize(("status", "error"), [(429, RateLimitedError), (503, TransientError)])
def test_an_answer_that_is_to_be_retried_is_no_stream(status: int, error: type[TransientError]) -> None:
    with (
        Server(lambda _: Response(status)) as server,
        upstream(server.url) as cloud,
        pytest.raises(error, match=rf"^cloud: answered {status}$"),
        cloud.stream("/", Deadline(5)),
    ):
        pass


# --- Elsewhere --------------------------------------------------------------------------------------------------------


def test_elsewhere_goes_only_what_is_meant_for_there() -> None:
    with (
        Server(lambda _: Response(body=b"home")) as home,
        Server(lambda _: Response(body=b"elsewhere")) as server,
        upstream(f"{home.url}/base", authorization=Fixed("Bearer secret")) as cloud,
    ):
        other = cloud.for_redirect(server.url, lambda _: True)
        assert other.request("GET", "/x", Deadline(5)).body == b"elsewhere"
        assert cloud.request("GET", "/x", Deadline(5)).body == b"home"
        other.close()
    assert [request.path for request in server.requests] == ["/x"]
    assert "Authorization" not in server.requests[0].headers
    assert [request.path for request in home.requests] == ["/base/x"]


def test_elsewhere_only_addresses_are_connected_to_that_are_permitted() -> None:
    asked = []

    def permits(address: str) -> bool:
        asked.append(address)
        return False

    with (
        Server(lambda _: Response()) as server,
        upstream("http://cloud.example") as cloud,
        pytest.raises(PermanentError, match=r"^cloud, sent to 127\.0\.0\.1: no address that requests may go to$"),
    ):
        cloud.for_redirect(server.url, permits).request("GET", "/", Deadline(5))
    assert asked == ["127.0.0.1"]
    assert not server.connections


def test_elsewhere_the_next_address_is_tried_if_one_is_not_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def permits(address: str) -> bool:
        asked.append(address)
        return address == "127.0.0.1"

    with Server(lambda _: Response()) as server, upstream("http://cloud.example") as cloud:
        set_option(monkeypatch, pycurl.RESOLVE, [f"other.example:{server.port}:127.0.0.2,127.0.0.1"])
        other = cloud.for_redirect(f"http://other.example:{server.port}", permits)
        assert other.request("GET", "/", Deadline(5)).status == 200
    assert asked == ["127.0.0.2", "127.0.0.1"]


def test_the_address_that_answered_is_known() -> None:
    with Server(lambda _: Response()) as server, upstream(server.url) as cloud:
        assert cloud.address is None
        cloud.request("GET", "/", Deadline(5))
        assert cloud.address == "127.0.0.1"


# --- Many at once -----------------------------------------------------------------------------------------------------


def test_many_threads_get_each_their_own_answer() -> None:
    def echo(request: Request) -> Response:
        return Response(body=request.path.encode())

    with Server(echo) as server, upstream(server.url) as cloud, ThreadPoolExecutor(16) as threads:
        paths = [f"/{number}" for number in range(600)]
        answers = threads.map(lambda path: cloud.request("GET", path, Deadline(20)).body.decode(), paths)
        assert list(answers) == paths
    assert server.connections <= 16


def test_no_more_connections_are_kept_than_is_allowed() -> None:
    together = threading.Barrier(MAX_IDLE_CONNECTIONS + 8)

    def all_at_once(_: Request) -> Response:
        together.wait(20)
        return Response()

    with Server(all_at_once) as server, upstream(server.url) as cloud:
        with ThreadPoolExecutor(MAX_IDLE_CONNECTIONS + 8) as threads:
            for answer in [
                threads.submit(cloud.request, "GET", "/", Deadline(20)) for _ in range(MAX_IDLE_CONNECTIONS + 8)
            ]:
                answer.result()
        before = open_descriptors()
        cloud.close()
        assert before - open_descriptors() >= MAX_IDLE_CONNECTIONS


def test_failures_leave_no_socket_open() -> None:
    contents = [
        b"",
        b"nonsense\r\n",
        b"HTTP/1.1 503 Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + bytes(MAX_BODY_BYTES + 1),
    ]
    turn = iter(contents * 40)

    def serve(connection: socket.socket, over: threading.Event) -> None:
        answering(next(turn))(connection, over)

    with peer(serve) as server, upstream(server.url) as cloud, closed_port() as port:
        before = open_descriptors()
        for _ in range(200):
            with pytest.raises((TransientError, PermanentError)):
                cloud.request("GET", "/", Deadline(5))
        with upstream(f"http://127.0.0.1:{port}") as refused:
            for _ in range(50):
                with pytest.raises(TransientError):
                    refused.request("GET", "/", Deadline(5))
        limit = time.monotonic() + 10
        while open_descriptors() > before and time.monotonic() < limit:
            time.sleep(0.01)  # the server's side of the last one
        assert open_descriptors() <= before


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, `ca.pem`, and certificates of it with their keys."""
    folder = tmp_path_factory.mktemp("authority")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, identity in (("server", "127.0.0.1"), ("other", "other.example")):
        certificate = authority.issue_cert(identity)
        certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
    return folder


@contextmanager
def tls_peer(folder: Path, serve: Callable[[ssl.SSLSocket], None], certificate: str = "server") -> Iterator[Peer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{certificate}.pem")

    def serve_secured(connection: socket.socket, _: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            serve(secured)

    with peer(serve_secured) as server:
        server.url = server.url.replace("http:", "https:")
        yield server


def answer_requests(connection: ssl.SSLSocket) -> None:
    while True:
        read_request(connection)
        connection.sendall(OK)


def test_a_server_whose_authority_is_trusted_is_talked_to_over_one_connection(authority: Path) -> None:
    with (
        tls_peer(authority, answer_requests) as server,
        upstream(server.url, ca_file=str(authority / "ca.pem")) as cloud,
    ):
        assert [cloud.request("GET", "/", Deadline(5)).body for _ in range(5)] == [b"ok"] * 5
    assert server.connections == 1


def test_elsewhere_the_same_authority_is_trusted_besides_the_systems(authority: Path) -> None:
    with (
        tls_peer(authority, answer_requests) as server,
        upstream("http://127.0.0.1", ca_file=str(authority / "ca.pem")) as cloud,
    ):
        other = cloud.for_redirect(server.url, lambda _: True)
        assert other.request("GET", "/", Deadline(5)).body == b"ok"
        other.close()


class Rotating:
    """A server for one request a connection, whose certificate gets another authority."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = folder / "ca.pem"
        self.rotate()

    def rotate(self) -> None:
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        written = self.ca_file.with_suffix(".new")
        authority.cert_pem.write_to_path(str(written))
        written.replace(self.ca_file)

    def serve(self, connection: socket.socket, _: threading.Event) -> None:
        with self._context.wrap_socket(connection, server_side=True) as secured:
            read_request(secured)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_redirect_follows_rotated_authority(tmp_path: Path) -> None:
    rotating = Rotating(tmp_path)
    with peer(rotating.serve) as server, upstream("http://127.0.0.1", ca_file=str(rotating.ca_file)) as cloud:
        for _ in range(2):
            other = cloud.for_redirect(server.url.replace("http:", "https:"), lambda _: True)
            assert other.request("GET", "/", Deadline(5)).status == 200
            rotating.rotate()


def test_busy_handle_follows_rotated_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_fn.http.tls.CA_CACHE_SECONDS", 1)
    rotating = Rotating(tmp_path)
    with (
        peer(rotating.serve) as server,
        upstream(server.url.replace("http:", "https:"), ca_file=str(rotating.ca_file), clock=lambda: 0.0) as cloud,
    ):
        for _ in range(3):
            assert cloud.request("GET", "/", Deadline(5)).status == 200
            rotating.rotate()
            time.sleep(1.1)


@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_authorities_that_cannot_be_read_fail(authority: Path, tmp_path: Path, content: str | None) -> None:
    ca_file = tmp_path / "ca.pem"
    if content is not None:
        ca_file.write_text(content)
    reason = "the file of trusted authorities cannot be read"
    with tls_peer(authority, answer_requests) as server, upstream(server.url, ca_file=str(ca_file)) as cloud:
        with pytest.raises(PermanentError, match=rf"^cloud: {reason}$") as caught:
            cloud.request("POST", "/", Deadline(5), body=b"x")
        assert not caught.value.may_have_acted
        if content is None:  # else the system's authorities are left
            other = cloud.for_redirect(server.url, lambda _: True)
            with pytest.raises(PermanentError, match=rf"^cloud, sent to 127\.0\.0\.1: {reason}$") as caught:
                other.request("POST", "/", Deadline(5), body=b"x")
            assert not caught.value.may_have_acted
            with pytest.raises(PermanentError, match=rf"{reason}$"), other.stream("/", Deadline(5)):
                pass


@pytest.mark.parametrize(
    ("trusted", "certificate", "reason"),
    [
        (None, "server", "unable to get local issuer certificate"),
        ("ca.pem", "other", "no alternative certificate subject name"),
    ],
)
def test_a_certificate_that_is_not_trusted_fails_before_anything_is_sent(
    authority: Path, trusted: str | None, certificate: str, reason: str
) -> None:
    heads = []

    def serve(connection: ssl.SSLSocket) -> None:
        heads.append(read_request(connection))

    with (
        tls_peer(authority, serve, certificate) as server,
        upstream(server.url, ca_file=trusted and str(authority / trusted)) as cloud,
        pytest.raises(PermanentError, match=rf"^cloud: certificate not trusted: .*{reason}"),
    ):
        cloud.request("GET", "/", Deadline(5))
    assert not heads


@pytest.mark.parametrize("farewell", [False, True])
def test_a_tls_connection_that_ends_just_as_it_is_used_again_costs_no_error(authority: Path, farewell: bool) -> None:
    def serve(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        connection.sendall(OK)
        read_request(connection)
        if farewell:
            connection.unwrap().close()  # with TLS's own end, close_notify

    with tls_peer(authority, serve) as server, upstream(server.url, ca_file=str(authority / "ca.pem")) as cloud:
        assert cloud.request("GET", "/", Deadline(5)).body == b"ok"
        assert cloud.request("GET", "/", Deadline(5)).body == b"ok"
        assert server.connections == 2


@pytest.mark.parametrize("from_the_start", [True, False], ids=["handshake", "answer"])
def test_tls_bytes_that_trickle_in_do_not_prolong_the_deadline(authority: Path, from_the_start: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem")

    def serve(connection: socket.socket, over: threading.Event) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        secured = context.wrap_bio(incoming, outgoing, server_side=True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send(slowly: bool) -> None:
            content = outgoing.read()
            if not slowly:
                connection.sendall(content)
                return
            for byte in content:
                if over.wait(0.02):
                    raise ConnectionError
                connection.sendall(bytes((byte,)))

        def exchange(step: Callable[[], object]) -> None:
            while True:
                try:
                    step()
                except ssl.SSLWantReadError:
                    send(from_the_start)
                    incoming.write(connection.recv(65536))
                else:
                    return send(from_the_start)

        exchange(secured.do_handshake)
        exchange(lambda: secured.read(65536))
        secured.write(OK * 100)
        send(slowly=True)

    with peer(serve) as server:
        url = server.url.replace("http:", "https:")
        with (
            upstream(url, ca_file=str(authority / "ca.pem")) as cloud,
            in_time() as deadline,
            pytest.raises(TransientError, match=r"^cloud: no answer in time$"),
        ):
            cloud.request("GET", "/", deadline)


def test_a_tls_handshake_that_hangs_costs_no_more_than_the_deadline(authority: Path) -> None:
    def serve(_: socket.socket, over: threading.Event) -> None:
        over.wait()

    with peer(serve) as server:
        url = server.url.replace("http:", "https:")
        with (
            upstream(url, ca_file=str(authority / "ca.pem")) as cloud,
            in_time() as deadline,
            pytest.raises(TransientError, match=r"^cloud: no answer in time$"),
        ):
            cloud.request("GET", "/", deadline)


def test_failed_handshakes_leave_no_socket_open(authority: Path) -> None:
    with (
        tls_peer(authority, answer_requests, "other") as server,
        upstream(server.url, ca_file=str(authority / "ca.pem")) as cloud,
    ):
        before = open_descriptors()
        for _ in range(50):
            with pytest.raises(PermanentError):
                cloud.request("GET", "/", Deadline(5))
        limit = time.monotonic() + 10
        while open_descriptors() > before and time.monotonic() < limit:
            time.sleep(0.01)  # the server's side of the last one
        assert open_descriptors() <= before


def test_neither_proxies_nor_netrc_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login user password secret\n")
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path))
    with closed_port() as nowhere, Server(lambda _: Response()) as server:
        monkeypatch.setitem(os.environ, "http_proxy", f"http://127.0.0.1:{nowhere}")
        with upstream(server.url) as cloud:
            assert cloud.request("GET", "/", Deadline(5)).status == 200
    assert "Authorization" not in server.requests[0].headers


def alert(number: int) -> bytes:
    """A fatal alert of TLS (RFC 8446, section 6)."""
    return bytes((21, 3, 3, 0, 2, 2, number))


def refusing_tls(content: bytes, *, abruptly: bool = False) -> Callable[[socket.socket, threading.Event], None]:
    def serve(connection: socket.socket, _: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(content)
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")

    return serve


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (40, r"the server accepts none of our versions and ciphers, or requires .* \(handshake_failure\)"),
        (42, r"the server rejects the client's certificate \(bad_certificate\)"),
        (48, r"the server rejects the client's certificate \(unknown_ca\)"),
        (70, r"the server speaks neither TLS 1\.2 nor TLS 1\.3 \(protocol_version\)"),
        (112, r"the server does not know the host's name \(unrecognized_name\)"),
        (116, r"the server requires a client certificate, and .* has none \(certificate_required\)"),
        (47, r"the server sends alert 47"),
        (255, r"the server sends alert 255"),
    ],
)
def test_tls_alert_is_permanent(number: int, reason: str) -> None:
    with (
        peer(refusing_tls(alert(number))) as server,
        upstream(server.url.replace("http:", "https:")) as cloud,
        pytest.raises(PermanentError, match=rf"^cloud: TLS refused: {reason}$") as caught,
    ):
        cloud.request("POST", "/", Deadline(5), body=b"x")
    assert not caught.value.may_have_acted


@pytest.mark.parametrize(("number", "name"), [(20, "bad_record_mac"), (50, "decode_error"), (80, "internal_error")])
def test_tls_alert_of_trouble_is_transient(number: int, name: str) -> None:
    with (
        peer(refusing_tls(alert(number))) as server,
        upstream(server.url.replace("http:", "https:")) as cloud,
        pytest.raises(TransientError, match=rf"^cloud: TLS refused for now \({name}\)$"),
    ):
        cloud.request("GET", "/", Deadline(5))


@pytest.mark.parametrize(
    ("content", "abruptly", "reason"),
    [
        pytest.param(b"", False, "connection closed during the TLS handshake", id="end"),
        pytest.param(b"\x16\x03\x03\0\xff\x02", False, "connection closed during the TLS handshake", id="later end"),
        pytest.param(b"", True, "connection closed during the TLS handshake", id="reset"),
    ],
)
def test_broken_tls_handshake_is_transient(content: bytes, abruptly: bool, reason: str) -> None:
    with (
        peer(refusing_tls(content, abruptly=abruptly)) as server,
        upstream(server.url.replace("http:", "https:")) as cloud,
        pytest.raises(TransientError, match=rf"^cloud: {reason}$"),
    ):
        cloud.request("GET", "/", Deadline(5))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_server_that_requires_client_certificate_fails(authority: Path, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version

    def serve(connection: socket.socket, over: threading.Event) -> None:
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secured:
            with contextlib.suppress(ssl.SSLError):
                secured.do_handshake()
            over.wait()  # else a reset may reach the client before the alert

    with (
        peer(serve) as server,
        upstream(server.url.replace("http:", "https:"), ca_file=str(authority / "ca.pem")) as cloud,
        pytest.raises(PermanentError, match=r"^cloud: TLS refused: .* requires a client certificate"),
    ):
        cloud.request("GET", "/", Deadline(5))


def test_server_with_old_tls_fails() -> None:
    hello = b"\x03\x01" + bytes(32) + b"\0\0\x2f\0"  # ServerHello of TLS 1.0
    content = b"\x16\x03\x01\0\x2a\x02\0\0\x26" + hello
    with (
        peer(refusing_tls(content)) as server,
        upstream(server.url.replace("http:", "https:")) as cloud,
        pytest.raises(PermanentError, match=r"^cloud: TLS refused: the server speaks neither TLS 1\.2 nor TLS 1\.3 "),
    ):
        cloud.request("GET", "/", Deadline(5))


def test_a_server_that_does_not_speak_tls_fails_because_no_retry_will_teach_it() -> None:
    def serve(connection: socket.socket, over: threading.Event) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        over.wait(10)

    with (
        peer(serve) as server,
        upstream(server.url.replace("http:", "https:")) as cloud,
        pytest.raises(PermanentError, match=r"^cloud: does not speak TLS$"),
    ):
        cloud.request("GET", "/", Deadline(5))
