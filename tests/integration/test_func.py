"""The function under `func`: installed and served as its scaffolding does it."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import cbor2
import pytest
import requests

from tests.support.drogue import Drogue
from tests.support.files import full_pipe
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Client, Served, event, serving
from tests.support.http import Request, Response
from tests.support.installed import checkout, make_environment, wheels
from tests.support.senders import hostile
from tests.support.timing import DEADLINE, SLACK, Gate

PROJECT = """
[project]
name = "service"
version = "0.1.0"
requires-python = ">=3.10"
dependencies = ["func-python", "function @ {root:uri}/f"]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.hatch.metadata]
allow-direct-references = true
"""

MAIN = """
from func_python.http import serve
from function import new

if __name__ == "__main__":
    serve(new)
"""


@pytest.fixture(scope="module")
def scaffolded(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that serves the function; what it runs lies in an environment that has nothing else."""
    folder = tmp_path_factory.mktemp("func")
    checkout(folder / "f")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "service").mkdir()
    (folder / "service" / "__init__.py").touch()
    (folder / "service" / "main.py").write_text(MAIN)
    python = make_environment(folder / ".venv")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", str(folder)]
    subprocess.run(install, env={**os.environ, **wheels()}, check=True)
    return [str(python), str(folder / "service" / "main.py")]


def served(command: list[str], environment: Mapping[str, str]) -> AbstractContextManager[Served]:
    return serving(command, {"LISTEN_ADDRESS": "127.0.0.1:0", **environment}, "/")


@pytest.fixture(scope="module")
def function(scaffolded: list[str], environment: dict[str, str]) -> Iterator[Served]:
    settings = {"EVENT_DEADLINE_SECONDS": str(DEADLINE), "THREADS": str(THREADS), "EVENTS_TOKEN": "s3cret"}
    with served(scaffolded, environment | settings) as function:
        yield function


THREADS = 4
AUTHORIZED = {"Authorization": "Bearer s3cret"}


def head(device: str) -> bytes:
    """The beginning of a request with an event, all but how long its body is."""
    lines = {f"ce-{name}": value for name, value in event(device).items() if value} | AUTHORIZED
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + b"".join(
        f"{name}: {value}\r\n".encode() for name, value in lines.items()
    )


def status(function: Client, device: str, reported: object, path: str = "/") -> tuple[int, str | None]:
    answer = function.post(
        event(device, datacontenttype="application/cbor"), cbor2.dumps(reported), path=path, headers=AUTHORIZED
    )
    return answer.status, answer.headers.get("fleet-outcome")


def test_an_update_goes_all_the_way(function: Served, drogue: Drogue, firmware: Path, device: str) -> None:
    content = random_bytes(1300)
    publish(firmware, "func", "0.1.1", content)
    drogue.put_image("example", device, "func:0.1.1")
    assert status(function, device, {"version": "0.1.0", "mtu": 1024}) == (
        204,
        'write; version="0.1.1"; offset=0; size=1024',
    )
    progress = {"version": "0.1.1", "offset": 1024}
    assert status(function, device, {"version": "0.1.0", "mtu": 1024, "status": progress})[0] == 204
    progress["offset"] = 1300
    assert status(function, device, {"version": "0.1.0", "status": progress}) == (204, 'swap; version="0.1.1"')
    assert status(function, device, {"version": "0.1.1"}) == (204, "sync")
    first, second, swap, sync = (cbor2.loads(command.payload) for command in drogue.commands_for(device))
    assert first["data"] + second["data"] == content
    assert (swap["op"], sync["op"]) == ("SWAP", "SYNC")


def test_names_that_are_not_ascii_come_through(function: Served, drogue: Drogue) -> None:
    name = f"grüne Lampe/№ 7-{uuid.uuid4()}"
    drogue.put("example", spec={})
    drogue.put("example", name, spec={})
    assert status(function, name, {"version": "1"}) == (204, 'withheld; reason="unmanaged"')
    assert len(drogue.commands_for(name)) == 1


def test_a_header_with_an_underscore_is_none(function: Served, device: str) -> None:
    lines = [(f"ce-{name}", value) for name, value in event(device).items() if value]
    smuggled = [("ce_subject", "other"), ("ce_id", "2"), *lines, *AUTHORIZED.items()]
    assert function.request("POST", "/", smuggled, b'{"version": "1"}').outcome == 'withheld; reason="unmanaged"'
    without = [(name, value) for name, value in lines if name != "ce-subject"]
    answer = function.request("POST", "/", [("ce_subject", "dfu"), *without, *AUTHORIZED.items()], b'{"version": "1"}')
    assert answer.outcome == "ignored"


def test_events_in_structured_mode_and_previews_are_taken(function: Served, device: str) -> None:
    structured = b'{"specversion": "1.0", "id": "1", "source": "x", "type": "other"}'
    headers = [("Content-Type", "application/cloudevents+json"), *AUTHORIZED.items()]
    answer = function.request("POST", "/", headers, structured)
    assert (answer.status, answer.headers["fleet-outcome"], answer.body) == (204, "ignored", b"")
    preview = function.post(event(device), b'{"version": "1"}', path="/preview", headers=AUTHORIZED)
    assert (preview.status, preview.json["outcome"]) == (200, "withheld")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health/liveness", "/health/readiness"])
def test_health_is_told_in_the_same_words_as_under_gunicorn(function: Served, path: str) -> None:
    answer = function.request("GET", path)
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert answer.headers["content-type"].startswith("text/plain")


def test_errors_are_told_as_under_gunicorn(function: Served, device: str) -> None:
    assert function.post(event(device), b"{}").status == 401
    assert function.post(event(device), b" " * 70_000, headers=AUTHORIZED).status == 413
    nowhere = function.post(event(device), b"{}", path="/nowhere", headers=AUTHORIZED)
    assert (nowhere.status, nowhere.headers["fleet-outcome"]) == (400, "invalid")
    assert status(function, device, "no status") == (400, "invalid")


def test_as_many_events_as_threads_are_worked_on_at_once_and_health_is_told_meanwhile(
    function: Served, drogue: Drogue, device: str
) -> None:
    together = threading.Barrier(THREADS + 1)

    def answer(_: Request) -> Response:
        together.wait(20)
        return Response(202)

    drogue.command_answers[device] = answer
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(status, function, device, {"version": "1"}) for _ in range(THREADS)]
        try:
            for path in ("/healthz", "/health/liveness"):
                assert function.request("GET", path).status == 200
            together.wait(20)
        except BaseException:
            together.abort()
            raise
        assert [answer.result(20)[0] for answer in answers] == [204] * THREADS


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("pieces", [1, 1000], ids=["stalls", "trickles"])
def test_a_sender_whose_body_does_not_come_is_told_so_at_the_deadline(
    function: Served, device: str, pieces: int, chunked: bool
) -> None:
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 5000"
    piece = b"1\r\n \r\n" if chunked else b" "
    with socket.create_connection(("127.0.0.1", function.port), 20) as connection:
        began = time.monotonic()
        connection.sendall(head(device) + length + b"\r\n\r\n")
        connection.settimeout(0.05)
        received = b""
        for _ in range(pieces):
            connection.sendall(piece)
            try:
                received = connection.recv(65536)
                break
            except TimeoutError:
                continue
        connection.settimeout(20)
        response = received
        while not response.endswith(b"}\n"):
            response += connection.recv(65536)
        assert time.monotonic() - began < DEADLINE + SLACK
        assert response.startswith(b"HTTP/1.1 400")
        assert response.endswith(b'"the body did not come in time", "outcome": "invalid"}\n')


def test_a_body_may_come_in_chunks(function: Served, device: str) -> None:
    lines = [(f"ce-{name}", value) for name, value in event(device).items() if value]
    answer = function.request("POST", "/", [*lines, *AUTHORIZED.items()], [b'{"version"', b': "1"}'])
    assert (answer.status, answer.outcome) == (204, 'withheld; reason="unmanaged"')


def test_a_status_that_is_cut_short_is_not_taken_for_a_whole_one(function: Served, drogue: Drogue, device: str) -> None:
    body = b'{"version": "1"}'
    chunk = b"%x\r\n%s\r\n" % (len(body), body)
    answer = function.exchange(head(device) + b"Transfer-Encoding: chunked\r\n\r\n" + chunk, ends=True)
    assert answer.status == 400
    assert drogue.commands_for(device) == []


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"HOST": "127.0.0.2"}, "127.0.0.2"),
        ({"HOST": "::1"}, "[::1]"),
        ({"HOST": "127.0.0.2", "LISTEN_ADDRESS": "127.0.0.3:0"}, "127.0.0.3"),
    ],
)
def test_its_server_listens_on_the_host_unless_func_says_otherwise(
    scaffolded: list[str], drogue: Drogue, tmp_path: Path, variables: dict[str, str], address: str
) -> None:
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "PORT": "0", **variables}
    with serving(scaffolded, settings, "/") as function:
        assert requests.get(f"http://{address}:{function.port}/readyz", timeout=20).status_code == 200
        function.end()


def test_a_setting_that_is_missing_stops_the_start_with_one_line(scaffolded: list[str]) -> None:
    process = subprocess.run(scaffolded, env={}, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("fleet_fn: DROGUE_API_URL is not set. Set it to ")


def test_a_stalled_reader_of_the_log_holds_up_no_event(
    scaffolded: list[str], environment: dict[str, str], device: str
) -> None:
    variables = {"LISTEN_ADDRESS": "127.0.0.1:0", **environment}
    with full_pipe() as pipe, serving(scaffolded, variables, "/", pipe) as function:
        started = time.monotonic()
        for number in range(1, 4):
            assert function.post(event(device), b'{"version": "%d"}' % number).status == 204
        assert time.monotonic() - started < DEADLINE


# --- What its server would leave behind


def test_bodies_that_nobody_reads_leave_nothing_open(function: Served, device: str) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{function.process.pid}/fd").iterdir()))

    before = descriptors()
    lines = [(f"ce-{name}", value) for name, value in event(device).items() if value]
    for _ in range(5):
        assert function.request("GET", "/healthz", body=b" " * 2_000_000).status == 200
        assert function.request("POST", "/", lines, b" " * 2_000_000).status == 401
        with closing(socket.create_connection(("127.0.0.1", function.port), 20)) as connection:
            # More than is taken before the answer.
            connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" " * 40_000_000)
    limit = time.monotonic() + 20
    while descriptors() > before and time.monotonic() < limit:
        time.sleep(0.01)
    assert descriptors() <= before


@contextmanager
def working_on(
    scaffolded: list[str], drogue: Drogue, environment: dict[str, str], device: str
) -> Iterator[tuple[Served, Gate, "Future[Answer]"]]:
    """A function of its own while it works on a status, the gate before Drogue Cloud, and the answer to come."""
    gate = Gate(Response(202))
    drogue.command_answers[device] = gate
    with ThreadPoolExecutor(1) as pool, served(scaffolded, environment) as function:
        answer = pool.submit(function.post, event(device), b'{"version": "1"}')
        assert gate.reached.wait(20)
        try:
            yield function, gate, answer
        finally:
            gate.opened.set()


def test_it_ends_when_it_is_told_to_and_answers_before_what_it_works_on(
    scaffolded: list[str], drogue: Drogue, environment: dict[str, str], device: str
) -> None:
    with working_on(scaffolded, drogue, environment, device) as (function, gate, answer):
        function.process.terminate()
        time.sleep(0.2)
        gate.opened.set()
        assert answer.result(20).status == 204
        assert function.process.wait(20) == 0


def test_it_answers_what_takes_longer_than_its_server_waits_and_ends_whatever_is_still_to_come(
    scaffolded: list[str], drogue: Drogue, environment: dict[str, str], device: str
) -> None:
    with working_on(scaffolded, drogue, environment, device) as (function, _, answer), ExitStack() as stack:
        for _ in range(6):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", function.port), 20))
            connection.sendall(head(device) + b"Content-Length: 50\r\n\r\n{")
        assert function.request("GET", "/healthz").status == 200
        function.process.terminate()
        assert answer.result(20).outcome == 'retry; reason="command API: no answer in time"'
        assert function.process.wait(20) == 0


@pytest.mark.parametrize("kind", ["silent", "half a head", "a body that trickles"])
def test_hostile_connections_keep_nobody_from_being_answered(function: Served, device: str, kind: str) -> None:
    with hostile(function, kind):
        for _ in range(3):
            started = time.monotonic()
            assert function.request("GET", "/health/readiness").status == 200
            assert status(function, device, {"version": "1"}) == (204, 'withheld; reason="unmanaged"')
            assert time.monotonic() - started < 2.0
            time.sleep(0.2)  # the attack goes on meanwhile
