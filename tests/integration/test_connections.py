"""Bodies that are too large, too slow or malformed, and more events than threads."""

import contextlib
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.support.drogue import Drogue
from tests.support.function import Function, event, running
from tests.support.http import Request, Response
from tests.support.processes import wake_ups, workers
from tests.support.timing import DEADLINE, SLACK, Gate

STATUS = b'{"version": "1"}'


@pytest.fixture(scope="module")
def function(environment: dict[str, str]) -> Iterator[Function]:
    """A function with two threads and a short deadline."""
    settings = {
        "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        "THREADS": "2",
        "EVENTS_TOKEN": "s3cret",
        "PREVIEW": "false",
    }
    with running(environment | settings) as function:
        yield function


AUTHORIZED = {"Authorization": "Bearer s3cret"}


def headers(device: str, authorized: bool = True) -> dict[str, str]:
    attributes = {f"ce-{name}": value for name, value in event(device).items() if value}
    return {**attributes, **(AUTHORIZED if authorized else {})}


def head(device: str, framing: str, authorized: bool = True) -> bytes:
    """The head of a request with an event; `framing` is the header that tells the length of its body."""
    lines = [*(f"{name}: {value}" for name, value in headers(device, authorized).items()), framing]
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + b"".join(f"{line}\r\n".encode() for line in lines) + b"\r\n"


# --- One connection, several requests


#: What a function is asked, and the end of what it answers.
PROBE, HEALTHY = b"GET /healthz HTTP/1.1\r\nHost: function\r\n\r\n", b"ok\n"


def read_answers(connection: socket.socket, count: int = 1) -> bytes:
    """What has come once there are so many answers to `PROBE`."""
    received = b""
    while received.count(HEALTHY) < count:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received


def test_a_connection_that_asks_on_needs_no_other_thread(function: Function) -> None:
    (worker,) = workers(function)
    asked, fewest = 200, math.inf
    with socket.create_connection(("127.0.0.1", function.port), timeout=20) as connection:
        for _ in range(10):  # where others want the machine, too, a request may not follow at once
            before = wake_ups(worker)
            for _ in range(asked):
                connection.sendall(PROBE)
                read_answers(connection)
            fewest = min(fewest, wake_ups(worker) - before)
            if fewest < asked / 2:
                break
    assert fewest < asked / 2


def test_requests_that_come_at_once_are_answered_in_order(function: Function) -> None:
    unknown = PROBE.replace(b"/healthz", b"/nowhere")
    with socket.create_connection(("127.0.0.1", function.port), timeout=20) as connection:
        connection.sendall(PROBE + unknown + PROBE)
        statuses = re.findall(rb"HTTP/1\.1 (\d+)", read_answers(connection, 2))
    assert statuses == [b"200", b"404", b"200"]


@pytest.mark.parametrize("size", [70_000, 1_000_000])
@pytest.mark.parametrize(
    ("path", "authorized", "status"),
    [("/", True, 413), ("/", False, 401), ("/nowhere", True, 400), ("/preview", True, 404)],
)
def test_a_request_whose_body_is_not_wanted_does_not_cost_the_next_its_connection(
    function: Function, device: str, path: str, authorized: bool, status: int, size: int
) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", function.port, timeout=20)) as connection:
        for _ in range(3):
            connection.request("POST", path, b" " * size, headers(device, authorized))
            response = connection.getresponse()
            assert (response.status, bool(response.read())) == (status, True)
            connection.request("POST", "/", STATUS, headers(device))
            response = connection.getresponse()
            assert (response.status, response.read()) == (204, b"")


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"10\r\nshort", b"3\r\n{}\n\r\nnonsense\r\n", b"3\r\n{}\n", b"-1\r\n\r\n", b""]
)
def test_a_body_that_is_not_chunked_as_it_should_be_is_invalid(function: Function, device: str, body: bytes) -> None:
    answer = function.exchange(head(device, "Transfer-Encoding: chunked") + body, ends=True)
    assert (answer.status, answer.outcome) == (400, "invalid")


def test_a_body_that_ends_early_is_invalid(function: Function, device: str) -> None:
    answer = function.exchange(head(device, "Content-Length: 17") + STATUS, ends=True)
    assert (answer.status, answer.reason) == (400, "the body ended early")


@pytest.mark.parametrize("authorized", [True, False])
@pytest.mark.parametrize("pause", [60, 0.1], ids=["stalls", "trickles"])
def test_a_sender_whose_body_does_not_come_is_told_so_at_the_deadline(
    function: Function, device: str, pause: float, authorized: bool
) -> None:
    over = threading.Event()

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not over.wait(pause):
                connection.sendall(b" ")

    with socket.create_connection(("127.0.0.1", function.port), 20) as connection, ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        connection.sendall(head(device, "Content-Length: 60000", authorized) + b"{")
        pool.submit(send, connection)
        response = http.client.HTTPResponse(connection)
        response.begin()
        elapsed = time.monotonic() - started
        over.set()
        assert response.status == (400 if authorized else 401)
        if authorized:
            assert json.loads(response.read())["detail"] == "the body did not come in time"
        assert elapsed < DEADLINE + SLACK


# --- More events than threads


def test_events_beyond_the_threads_are_turned_away_in_time_and_health_is_told_meanwhile(
    function: Function, drogue: Drogue, device: str
) -> None:
    gate = Gate(Response(202))
    drogue.command_answers[device] = gate

    def post() -> tuple[int, float]:
        started = time.monotonic()
        answer = function.post(event(device), STATUS, headers=AUTHORIZED)
        return answer.status, time.monotonic() - started

    with ThreadPoolExecutor(90) as pool:  # more than the function has threads
        answers = [pool.submit(post) for _ in range(90)]
        assert gate.reached.wait(10)
        started = time.monotonic()
        assert function.request("GET", "/healthz").status == 200
        other = function.post(event(device, subject="temperature"), b"21.5", headers=AUTHORIZED)
        assert other.outcome == "ignored"
        assert time.monotonic() - started < DEADLINE
        for answer in answers:
            status, elapsed = answer.result()
            assert status == 503
            assert elapsed < DEADLINE + SLACK
        gate.opened.set()
    assert function.post(event(device), STATUS, headers=AUTHORIZED).status == 204


def test_a_burst_of_more_events_than_threads_is_answered(function: Function, drogue: Drogue, device: str) -> None:
    def take_a_moment(_: Request) -> Response:
        time.sleep(0.02)
        return Response(202)

    drogue.command_answers[device] = take_a_moment
    with ThreadPoolExecutor(30) as pool:
        answers = [pool.submit(function.post, event(device), STATUS, headers=AUTHORIZED) for _ in range(30)]
        assert {answer.result().status for answer in answers} == {204}


# --- Commands whose acceptance is certain, and what comes with it is not


@pytest.mark.parametrize("rest", [b"Content-Length: 5\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nnonsense"])
def test_a_command_is_accepted_by_its_status_whatever_follows(
    function: Function, drogue: Drogue, device: str, rest: bytes
) -> None:
    gate = Gate(Response(202))

    def accept(request: Request) -> Response | None:
        request.connection.sendall(b"HTTP/1.1 202 Accepted\r\n" + rest)
        gate(request)
        return None

    drogue.command_answers[device] = accept
    assert function.post(event(device), STATUS, headers=AUTHORIZED).status == 204
    gate.opened.set()


def test_a_command_is_not_sent_again_when_its_answer_is_lost(function: Function, drogue: Drogue, device: str) -> None:
    posts = []

    def lose(request: Request) -> Response | None:
        posts.append(request.body)
        return None if len(posts) == 2 else Response(202)

    drogue.command_answers[device] = lose
    answers = [function.post(event(device), STATUS, headers=AUTHORIZED).status for _ in range(3)]
    assert answers == [204, 503, 204]
    assert len(posts) == 3
