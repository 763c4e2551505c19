"""Simulated devices at a real HTTP endpoint, with a server that follows the decision table."""

import base64
import hashlib
import json
import os
import pty
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

import cbor2
import pytest
import requests
import trustme
from click.testing import CliRunner, Result

from fleet_fn.cli.device import command
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.device_run import DeviceOptions, DeviceReport, run_device
from tests.support.http import Request, Response, Server

E = TypeVar("E", bound="Endpoint")

VERSION = b"0.1.1"
NEXT_VERSION = b"0.1.2"
CONTENT = bytes(range(256)) * 16
CHECKSUM = hashlib.sha256(CONTENT)


class Endpoint:
    """A Drogue HTTP endpoint with an update server right behind it."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        #: Answers every request with this code and no command, if set.
        self.code: int | None = None
        #: Which requests, counted from 0, get a 503.
        self.failing: set[int] = set()
        self.command_name = "dfu"
        self.checksum = CHECKSUM.digest()
        self.target = VERSION
        self.sync_version: bytes | None = None
        #: Devices that run this version get the next one, without a SYNC for the one that they run.
        self.skipped: bytes | None = None
        #: So many statuses are answered with WAIT first.
        self.waits = 0
        #: Seconds that such a WAIT names.
        self.poll: int | None = 300
        #: Cleared to leave devices waiting.
        self.answering = threading.Event()
        self.answering.set()
        self.asked = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.serve(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = False  # so that closing waits for them
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        url = urlsplit(request.path)
        user, _, password = base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).partition(b":")
        self.requests.append(
            {
                "path": url.path,
                "query": {name: values[0] for name, values in parse_qs(url.query).items()},
                "user": unquote(user.decode()),
                "password": password.decode(),
                "type": request.headers["Content-Type"],
                "body": body,
            }
        )
        self.asked.set()
        self.answering.wait(60)
        code = 503 if len(self.requests) - 1 in self.failing else self.code or 200
        payload = self.answer(body) if code == 200 else b""
        try:
            request.send_response(code)
            request.send_header("Content-Length", str(len(payload)))
            request.send_header("command", self.command_name)
            request.send_header("Location", "/elsewhere")
            request.end_headers()
            request.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the device was ended meanwhile

    def answer(self, body: bytes) -> bytes:
        is_json = body.startswith(b"{")
        status = json.loads(body) if is_json else cbor2.loads(body)
        packed = 0 in status
        if packed:
            status = dict(zip(("version", "mtu", "correlation_id", "update"), status.values(), strict=True))
            if status["update"]:
                status["update"] = dict(zip(("version", "offset"), status["update"].values(), strict=True))
        documented = "update" not in status
        variant, fields = self.decide(
            raw(status["version"]), status["mtu"], status.get("status" if documented else "update")
        )
        size = {"size": len(fields["data"])} if variant == "Write" else {}
        if documented or is_json:
            shown = {
                "version": fields["version"].decode(),
                "checksum": fields.get("checksum", b"").hex(),
                "data": base64.b64encode(fields.get("data", b"")).decode() if is_json else fields.get("data"),
            }
            fields |= {name: shown[name] for name in shown if name in fields}
        if documented:
            answer: dict[Any, Any] = {"op": variant.upper()} | fields | size
        else:
            names = {
                "Wait": ("correlation_id", "poll"),
                "Sync": ("version", "correlation_id", "poll"),
                "Write": ("version", "correlation_id", "offset", "data"),
                "Swap": ("version", "correlation_id", "checksum"),
            }[variant]
            fields["correlation_id"] = status["correlation_id"]
            values = [fields[name] for name in names]
            if packed:
                answer = {["Wait", "Sync", "Write", "Swap"].index(variant): dict(enumerate(values))}
            else:
                name = variant.lower() if is_json else variant
                answer = {name: dict(zip(names, values, strict=True))}
        return json.dumps(answer).encode() if is_json else cbor2.dumps(answer)

    def decide(self, version: bytes, mtu: int, progress: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
        if self.waits:
            self.waits -= 1
            return "Wait", {"poll": self.poll}
        if (version == self.target and version != self.skipped) or self.sync_version:
            return "Sync", {"version": self.sync_version or self.target, "poll": 300}
        target = NEXT_VERSION if version == self.skipped else self.target
        offset = progress["offset"] if progress and raw(progress["version"]) == target else 0
        if offset >= len(CONTENT):
            return "Swap", {"version": target, "checksum": self.checksum}
        return "Write", {"version": target, "offset": offset, "data": CONTENT[offset : offset + mtu]}


class LateEndpoint(Endpoint):
    """An endpoint that, like Drogue's, gives a command to the request that waits when the command comes.

    The server behind it takes its time, and too long once.
    """

    #: Seconds from a status to its command.
    usual = 0.05

    def __init__(self) -> None:
        super().__init__()
        self._waiting: queue.Queue[bytes] | None = None
        self._lock = threading.Lock()
        #: Which status, counted from 0, is answered so many seconds after its wait ran out.
        self.late: tuple[int, float] = (3, 0.5)

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        number, late = self.late
        seconds = int(parse_qs(urlsplit(request.path).query)["ct"][0])
        delay = seconds + late if len(self.requests) == number else self.usual
        self.requests.append({"body": body})
        waiting: queue.Queue[bytes] = queue.Queue()
        with self._lock:
            self._waiting = waiting
        timer = threading.Timer(delay, self._deliver, [self.answer(body)])
        timer.daemon = True
        timer.start()
        try:
            payload = waiting.get(timeout=seconds)
        except queue.Empty:
            payload = b""
        request.send_response(200)
        request.send_header("Content-Length", str(len(payload)))
        request.end_headers()
        request.wfile.write(payload)

    def _deliver(self, payload: bytes) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.put(payload)


def raw(version: bytes | str) -> bytes:
    return version.encode() if isinstance(version, str) else version


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint()) as endpoint:
        yield endpoint


@contextmanager
def serving(endpoint: E) -> Iterator[E]:
    thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield endpoint
    endpoint.answering.set()
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


def run(
    endpoint: Endpoint,
    lines: list[str] | None = None,
    bootable: Callable[[bytes, bytes], bool] | None = None,
    **more: Any,
) -> DeviceReport:
    """A device that ends when it is in sync, and does not dawdle."""
    defaults: dict[str, Any] = {"url": endpoint.url, "application": "app", "device": "device1", "password": "secret"}
    options = DeviceOptions(**(defaults | {"once": True, "speed": 1e9, "size": len(CONTENT)} | more))
    said: list[str] = [] if lines is None else lines
    return run_device(options, on_line=said.append, stop=threading.Event(), bootable=bootable)


@pytest.mark.parametrize("character", ["careful", "firmware-manager", "crate"])
@pytest.mark.parametrize(
    ("dialect", "encoding", "content_type"),
    [
        ("documented", "cbor", "application/cbor"),
        ("documented", "json", "application/json"),
        ("named", "cbor", None),
        ("named", "json", "application/json"),
        ("packed", "cbor", "application/cbor"),
    ],
)
def test_every_device_in_every_dialect_ends_on_the_right_bytes(
    endpoint: Endpoint, character: str, dialect: str, encoding: str, content_type: str | None
) -> None:
    report = run(endpoint, character=character, dialect=dialect, encoding=encoding)
    assert report == DeviceReport(
        device="device1",
        started=b"0.1.0",
        version=VERSION,
        sha256=CHECKSUM.hexdigest(),
        announced=CHECKSUM.hexdigest(),
        size=4096,
        blocks=8,
        power_losses=0,
        rollbacks=0,
        lost=0,
        in_sync=True,
        violations=(),
        reason="",
    )
    assert {request["type"] for request in endpoint.requests} == {content_type}


def test_a_status_is_published_on_dfu_with_the_devices_own_credentials(endpoint: Endpoint) -> None:
    run(endpoint, device="Gerät/7", speed=1.0, version=VERSION)
    [request] = endpoint.requests
    assert request["path"] == "/v1/dfu"
    assert request["query"] == {"ct": "30"}
    assert (request["user"], request["password"]) == ("Gerät/7@app", "secret")


@pytest.mark.parametrize("name", ["ev@example", "x:y", "%41", "a%2Fb", "a/b", "tür 1", "装置", "a+b", "a&b?c#d"])
def test_a_device_of_any_name_gets_its_own_commands(name: str) -> None:
    """Names that would mean another device, or none, if they were not encoded."""
    others = {"a/b", "A", "ev", "x", "a b"} - {name}
    devices = [
        {
            "metadata": {"application": "app", "name": each},
            "spec": {"authentication": {"credentials": [{"pass": f"secret of {each}"}]}},
        }
        for each in (name, *others)
    ]
    sync = {"op": "SYNC", "version": "0.1.0", "poll": 300}

    def answer(event: Request) -> Response:
        path = f"/api/command/v1alpha1/apps/app/devices/{quote(name, safe='')}?command=dfu"
        requests.post(sandbox.url + path, json=sync, auth=("sandbox", "sandbox"), timeout=10).raise_for_status()
        sources.append(event.headers["ce-source"])
        return Response(204)

    sources: list[str] = []
    with Server(answer) as sink, Sandbox([{"metadata": {"name": "app"}}, *devices], sink=sink.url) as sandbox:
        options = DeviceOptions(sandbox.url, "app", name, f"secret of {name}", dialect="documented", once=True)
        report = run_device(options, on_line=lambda _: None, stop=threading.Event())
    assert (report.in_sync, report.reason) == (True, "")
    assert sources == [f"drogue://app/{quote(name, safe='')}"]


def test_a_gateway_speaks_for_the_device_with_its_own_credentials(endpoint: Endpoint) -> None:
    run(endpoint, device="sensor & co", gateway="gateway", version=VERSION)
    [request] = endpoint.requests
    assert request["user"] == "gateway@app"
    assert request["query"]["as"] == "sensor & co"


def test_the_way_is_told_in_lines(endpoint: Endpoint) -> None:
    lines: list[str] = []
    run(endpoint, lines, mtu=1024)
    assert lines == [
        "device1: runs 0.1.0, speaks packed cbor",
        "device1: writes 0.1.1 from byte 0",
        "device1: 20 %, 1024 bytes",
        "device1: 50 %, 2048 bytes",
        "device1: 70 %, 3072 bytes",
        "device1: 100 %, 4096 bytes",
        f"device1: booted 0.1.1: 4096 bytes, sha256 {CHECKSUM.hexdigest()}",
        "device1: in sync with 0.1.1",
    ]


def test_a_device_that_never_updates_does_not_claim_to_be_in_sync(endpoint: Endpoint) -> None:
    """SYNC says only that it may stay: it may be held back, or its attempts may be used up."""
    endpoint.sync_version = b"0.1.0"
    lines: list[str] = []
    report = run(endpoint, lines)
    assert lines[-1] == "device1: told to stay with 0.1.0"
    assert str(report) == "device1: 0.1.0, told to stay with it"
    assert report.in_sync


def test_a_careful_device_that_loses_power_writes_no_block_twice(endpoint: Endpoint) -> None:
    lines: list[str] = []
    report = run(endpoint, lines, crash_at=2048)
    assert (report.power_losses, report.blocks, report.in_sync) == (1, 8, True)
    assert "device1: lost power at byte 2048" in lines
    assert "device1: writes 0.1.1 from byte 2048" in lines


def test_a_firmware_manager_that_loses_power_starts_again(endpoint: Endpoint) -> None:
    report = run(endpoint, crash_at=2048, character="firmware-manager")
    assert (report.power_losses, report.blocks, report.in_sync) == (1, 12, True)
    assert report.sha256 == CHECKSUM.hexdigest()


def test_lost_answers_cost_statuses_and_nothing_else(endpoint: Endpoint) -> None:
    reports = [run(endpoint, drop=0.4, seed=5) for _ in range(2)]
    assert reports[0] == reports[1], "the same seed loses the same answers"
    assert reports[0].lost > 0
    assert (reports[0].sha256, reports[0].blocks, reports[0].in_sync) == (CHECKSUM.hexdigest(), 8, True)


@pytest.mark.parametrize(
    ("character", "dialect"),
    [("careful", "packed"), ("careful", "documented"), ("firmware-manager", "packed"), ("crate", "packed")],
)
def test_a_command_that_comes_too_late_costs_a_device_few_statuses(
    monkeypatch: pytest.MonkeyPatch, character: str, dialect: str
) -> None:
    monkeypatch.setattr("fleet_fn.sandbox.device_run.MIN_COMMAND_TIMEOUT_SECONDS", 1)
    monkeypatch.setattr("fleet_fn.sandbox.device_run.LATE_PAUSE_SECONDS", 2.0)
    with serving(LateEndpoint()) as endpoint:
        report = run(endpoint, character=character, dialect=dialect, mtu=128)
    assert (report.sha256, report.in_sync, report.violations) == (CHECKSUM.hexdigest(), True, ())
    assert len(endpoint.requests) <= 32 + 2 + 4


def test_the_command_keeps_step_after_a_command_that_comes_too_late() -> None:
    with serving(LateEndpoint()) as endpoint:
        arguments = arguments_of_a_process(endpoint, "--once", "--speed", "1e9", "--mtu", "512", "--character", "crate")
        process = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert f"sha256 {CHECKSUM.hexdigest()}" in process.stdout.splitlines()[-1]
    assert len(endpoint.requests) <= 8 + 2 + 4


def test_a_device_that_rejects_its_first_image_takes_the_second(endpoint: Endpoint) -> None:
    lines: list[str] = []
    report = run(endpoint, lines, reject=1)
    assert (report.rollbacks, report.blocks, report.in_sync) == (1, 16, True)
    assert "device1: 0.1.1 does not come up, rolled back to 0.1.0" in lines
    assert str(report) == (
        f"device1: 0.1.0 -> 0.1.1, 4096 bytes, sha256 {CHECKSUM.hexdigest()}, 16 blocks, 1 rollback, in sync"
    )


@pytest.mark.parametrize("character", ["careful", "firmware-manager", "crate"])
def test_a_device_rejects_a_version_whenever_it_boots_it(endpoint: Endpoint, character: str) -> None:
    report = run(endpoint, reject_versions=frozenset({VERSION}), patience=3, character=character)
    assert (report.rollbacks, report.version, report.in_sync) == (3, b"0.1.0", False)


def test_a_device_that_rejects_a_version_takes_the_fix(endpoint: Endpoint) -> None:
    lines: list[str] = []
    rolled_back = "device1: 0.1.1 does not come up, rolled back to 0.1.0"

    def listen(line: str) -> None:
        lines.append(line)
        if lines.count(rolled_back) == 2:
            endpoint.target = NEXT_VERSION

    options = DeviceOptions(
        endpoint.url, "app", "device1", "secret", once=True, speed=1e9, reject_versions=frozenset({VERSION})
    )
    report = run_device(options, on_line=listen, stop=threading.Event())
    assert (report.rollbacks, report.version, report.in_sync) == (2, NEXT_VERSION, True)
    assert lines[-1] == "device1: in sync with 0.1.2"


def test_a_rejected_version_does_not_use_up_the_number(endpoint: Endpoint) -> None:
    lines: list[str] = []

    def listen(line: str) -> None:
        lines.append(line)
        if "0.1.1 does not come up" in line:
            endpoint.target = NEXT_VERSION

    options = DeviceOptions(
        endpoint.url, "app", "device1", "secret", once=True, speed=1e9, reject=1, reject_versions=frozenset({VERSION})
    )
    report = run_device(options, on_line=listen, stop=threading.Event())
    assert (report.rollbacks, report.version) == (2, NEXT_VERSION)
    assert "device1: 0.1.2 does not come up, rolled back to 0.1.0" in lines


def test_a_device_that_no_image_boots_on_gives_up(endpoint: Endpoint) -> None:
    report = run(endpoint, bootable=lambda _image, _version: False, patience=2)
    assert (report.rollbacks, report.version, report.in_sync) == (2, b"0.1.0", False)
    assert report.reason == "gave up, no progress in 2 tries: 0.1.1 does not come up, rolled back to 0.1.0"


def test_a_device_that_boots_other_bytes_than_announced_says_so(endpoint: Endpoint) -> None:
    endpoint.checksum = bytes(32)
    report = run(endpoint, character="firmware-manager")
    assert (report.sha256, report.announced) == (CHECKSUM.hexdigest(), "00" * 32)
    assert f"NOT the announced {'00' * 32}" in str(report)


def test_a_careful_device_never_boots_other_bytes_than_announced(endpoint: Endpoint) -> None:
    endpoint.checksum = bytes(32)
    stop, lines = threading.Event(), list[str]()

    def listen(line: str) -> None:
        lines.append(line)
        if line == "device1: the written bytes have another checksum":
            stop.set()

    options = DeviceOptions(endpoint.url, "app", "device1", "secret", speed=1e9)
    report = run_device(options, on_line=listen, stop=stop)
    assert (report.version, report.sha256, report.reason) == (b"0.1.0", None, "stopped")


@pytest.mark.parametrize("character", ["firmware-manager", "crate"])
def test_a_device_that_skips_the_sync_is_bricked_and_says_so(endpoint: Endpoint, character: str) -> None:
    endpoint.skipped = VERSION
    report = run(endpoint, character=character)
    assert (report.version, report.sha256, report.in_sync) == (b"", None, False)
    assert "0.1.0 -> nothing, 16 blocks, not in sync: bricked: an update began before" in str(report)


def test_a_server_that_syncs_what_does_not_run_is_told_on(endpoint: Endpoint) -> None:
    endpoint.sync_version = b"9.9.9"
    report = run(endpoint, patience=1)
    assert report.violations == ("SYNC for b'9.9.9' to a device that runs b'0.1.0'",)
    assert not report.in_sync


def test_an_answer_that_makes_no_sense_is_told_on(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "answer", lambda _: b"\xa1")
    report = run(endpoint, patience=1)
    assert report.violations[0].startswith("unreadable answer: the answer is not CBOR")


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (401, "check --device, --application, --password"),
        (403, "check --device, --application, --password"),
        (404, "is --url a Drogue HTTP endpoint?"),
        (302, "is --url a Drogue HTTP endpoint?"),
        (406, "check --encoding"),
    ],
)
def test_a_refusal_ends_the_device_with_advice(endpoint: Endpoint, code: int, advice: str) -> None:
    endpoint.code = code
    report = run(endpoint, once=False)
    assert advice in report.reason
    assert str(code) in report.reason
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(("code", "complaint"), [(202, "no command within 5 s"), (503, "answered 503")])
def test_a_device_without_answers_gives_up_after_some_statuses(endpoint: Endpoint, code: int, complaint: str) -> None:
    endpoint.code = code
    report = run(endpoint, patience=3)
    assert complaint in report.reason
    assert len(endpoint.requests) == 3


def test_setbacks_between_steps_forward_do_not_add_up(endpoint: Endpoint) -> None:
    endpoint.failing = {1, 3, 5, 7}
    assert run(endpoint, patience=2).in_sync


def test_a_device_that_is_told_to_wait_waits_a_real_second_at_any_speed(endpoint: Endpoint) -> None:
    endpoint.waits = 1
    before = time.monotonic()
    report = run(endpoint)
    assert time.monotonic() - before >= 1
    assert report.in_sync


def test_a_device_that_is_told_to_wait_for_ever_gives_up(endpoint: Endpoint) -> None:
    endpoint.waits = 1000
    assert run(endpoint, patience=1).reason == "gave up, no progress in 1 tries: waiting"


def test_a_command_of_another_name_is_no_answer(endpoint: Endpoint) -> None:
    endpoint.command_name = "reboot"
    assert "named 'reboot', not dfu" in run(endpoint, patience=1).reason


def test_a_refused_connection_asks_for_the_sandbox(endpoint: Endpoint) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        report = run(endpoint, url=url, once=False)
    assert report.reason == f"cannot reach {url}: is the sandbox, or the cloud, running there?"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://"])
def test_a_url_that_is_none_is_told(endpoint: Endpoint, url: str) -> None:
    assert run(endpoint, url=url).reason.startswith("check --url")


def test_an_untrusted_certificate_is_told_and_can_be_trusted(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    sync = b'{"op": "SYNC", "version": "0.1.0", "poll": 300}'
    with Server(lambda _: Response(200, sync), context) as server:
        options = DeviceOptions(server.url, "app", "device1", "secret", dialect="documented", once=True)
        refused, trusted = (
            run_device(each, on_line=lambda _: None, stop=threading.Event())
            for each in (options, replace(options, ca_file=str(tmp_path / "ca.pem")))
        )
    assert refused.reason == (
        f"{server.url}: certificate not trusted: unable to get local issuer certificate; name the trust anchors with "
        "--ca-file"
    )
    assert (trusted.in_sync, trusted.reason) == (True, "")


def test_an_endpoint_without_tls_is_told(endpoint: Endpoint) -> None:
    url = endpoint.url.replace("http:", "https:")
    assert run(endpoint, url=url).reason == f"{url} does not speak TLS: use http://"


# The command line


def invoke(endpoint: Endpoint, *arguments: str, **environment: str) -> Result:
    fixed = ["--url", endpoint.url, "--application", "app", "--device", "device", "--once", "--speed", "1e9"]
    return CliRunner().invoke(command, [*fixed, *arguments], env={"DEVICE_PASSWORD": "secret"} | environment)


def test_the_command_ends_with_a_line_about_the_device(endpoint: Endpoint) -> None:
    result = invoke(endpoint, "--size", "4096", "--crash-at", "50%", "--dialect", "documented", "--encoding", "json")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == (
        f"device: 0.1.0 -> 0.1.1, 4096 bytes, sha256 {CHECKSUM.hexdigest()}, 8 blocks, 1 power loss, in sync"
    )
    assert {request["password"] for request in endpoint.requests} == {"secret"}


def test_several_devices_are_numbered_and_each_has_its_line(endpoint: Endpoint) -> None:
    result = invoke(endpoint, "--count", "3", "--character", "firmware-manager")
    assert result.exit_code == 0, result.output
    ends = [line for line in result.stdout.splitlines() if "->" in line]
    assert [line.partition(":")[0] for line in ends] == ["device1", "device2", "device3"]
    assert {request["user"] for request in endpoint.requests} == {"device1@app", "device2@app", "device3@app"}


@pytest.mark.parametrize(
    ("arguments", "rollbacks"),
    [
        (["--reject"], 1),
        (["--reject", "2"], 2),
        (["--reject", "0"], 0),
        (["--reject", "0.1.1"], 10),
        (["--reject", "9.9.9, 0.1.1"], 10),
        (["--reject", "9.9.9", "--reject", "0.1.1"], 10),
        (["--reject", "version:0.1.1"], 10),
        (["--reject", "0.1", "--reject", "2"], 2),
    ],
)
def test_the_command_rejects_a_number_of_images_or_versions(
    endpoint: Endpoint, arguments: list[str], rollbacks: int
) -> None:
    result = invoke(endpoint, *arguments)
    told = {0: "", 1: ", 1 rollback"}.get(rollbacks, f", {rollbacks} rollbacks")
    last = result.stdout.splitlines()[-1]
    assert result.exit_code == (rollbacks == 10), result.output
    assert f"blocks{told}," in last


FLEET = "fleet-fn fleet --application app"


def hints(result: Result) -> list[str]:
    return [line.removeprefix("hint: ") for line in result.stdout.splitlines() if line.startswith("hint: ")]


@pytest.mark.parametrize(
    ("poll", "waits", "expected"),
    [
        (300, 1, ["the function seems to have failed, for instance because no such image or tag exists. "]),
        (10, 2, []),
        (None, 2, []),
        (10, 3, ["the function still gets the firmware, or failed. "]),
    ],
)
def test_a_device_that_has_to_wait_gets_a_hint_at_the_cause(
    endpoint: Endpoint, poll: int | None, waits: int, expected: list[str]
) -> None:
    endpoint.waits, endpoint.poll = waits, poll
    result = invoke(endpoint)
    assert result.exit_code == 0, result.output
    given = hints(result)
    assert [hint[: len(start)] for hint, start in zip(given, expected, strict=True)] == expected
    assert all(hint.endswith(f"and so does: {FLEET}") for hint in given)


@pytest.mark.parametrize("arguments", [["--dialect", "documented"], ["--dialect", "packed"]])
def test_a_device_without_a_command_gets_a_hint(endpoint: Endpoint, arguments: list[str]) -> None:
    """Drogue Cloud's 202 without a body; a documented device gets no WAIT if the function failed."""
    endpoint.code = 202
    [hint] = hints(invoke(endpoint, *arguments))
    assert hint.startswith("no command came. Does the function run, and does it get the events?")
    assert hint.endswith(FLEET) is ("documented" in arguments)


def test_a_device_that_was_not_updated_gets_a_hint_where_to_look(endpoint: Endpoint) -> None:
    endpoint.sync_version = b"0.1.0"
    assert hints(invoke(endpoint)) == [
        "a device is told to stay if it runs its target, is held back, or has no target. Which of these it is, says: "
        f"{FLEET}"
    ]


def test_devices_that_fare_alike_share_a_hint(endpoint: Endpoint) -> None:
    endpoint.code = 403
    result = invoke(endpoint, "--count", "5")
    assert hints(result) == [
        "there is no such application or device, or the password is wrong. The sandbox's log says which"
    ]
    assert sum("refused as" in line for line in result.stdout.splitlines()) == 10


def test_a_hint_quotes_the_application_for_a_shell(endpoint: Endpoint) -> None:
    endpoint.waits = 1
    [hint] = hints(invoke(endpoint, "--application", "a b"))
    assert hint.endswith("--application 'a b'")


def test_a_device_that_gets_on_gets_no_hint(endpoint: Endpoint) -> None:
    endpoint.failing = {1}
    assert hints(invoke(endpoint, "--reject", "--drop", "0.2")) == []


@pytest.mark.parametrize(("text", "rollbacks"), [("2", 2), ("version:2", 10)])
def test_a_version_that_looks_like_a_number_is_marked(endpoint: Endpoint, text: str, rollbacks: int) -> None:
    endpoint.target = b"2"
    result = invoke(endpoint, "--reject", text)
    assert f"{rollbacks} rollbacks" in result.stdout.splitlines()[-1]


def test_a_device_that_is_not_in_sync_makes_the_command_fail(endpoint: Endpoint) -> None:
    endpoint.code = 403
    result = invoke(endpoint)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("device: 0.1.0, not in sync: refused as device@app (403)")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--dialect", "packed", "--encoding", "json"], "which JSON cannot express"),
        (["--crash-at", "50%"], "needs --size"),
        (["--crash-at", "half"], "takes bytes or a percentage"),
        (["--drop", "1"], "--drop"),
        (["--reject", "1", "--reject", "2"], "--reject takes one number, not 1 and 2: write version:2 for a version"),
        (["--reject", "1.1.0,,"], "--reject takes a number and versions; one is empty"),
        (["--reject", "version:"], "one is empty"),
        (["--speed", "0"], "--speed"),
        (["--url", "nonsense"], "--url': expected a URL such as http://127.0.0.1:8081"),
        (["--url", "localhost:8080"], "--url': expected a URL such as http://127.0.0.1:8081"),
        (["--url", "http://"], "--url': expected a URL such as http://127.0.0.1:8081"),
        (["--url", "http://x:y"], "--url': expected a URL such as http://127.0.0.1:8081"),
        (["--ca-file", "/nowhere"], "--ca-file"),
        (["--ca-file", __file__], "no certificates (PEM) in it"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(endpoint: Endpoint, arguments: list[str], complaint: str) -> None:
    result = invoke(endpoint, *arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert endpoint.requests == []


def arguments_of_a_process(endpoint: Endpoint, *arguments: str) -> list[str]:
    program = "from fleet_fn.cli.device import command; command()"
    fixed = ["--url", endpoint.url, "--application", "app", "--device", "device", "--password", "secret"]
    return [sys.executable, "-c", program, *fixed, *arguments]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_while_it_waits_for_an_answer(endpoint: Endpoint, number: signal.Signals) -> None:
    endpoint.answering.clear()
    with subprocess.Popen(
        arguments_of_a_process(endpoint), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert endpoint.asked.wait(30)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 1
    assert stdout.splitlines()[-1] == "device: 0.1.0, not in sync: stopped"
    assert stderr == ""


def test_a_burst_of_signals_ends_the_command_like_one(endpoint: Endpoint) -> None:
    count = 60  # so that ending them all takes long enough for the next signal to come meanwhile
    with subprocess.Popen(
        arguments_of_a_process(endpoint, "--version", VERSION.decode(), "--count", str(count)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                count -= "told to stay with" in line
                if not count:
                    break
            for _ in range(1000):
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
            stdout, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.splitlines()[-1] == "device60: 0.1.1, told to stay with it"


@pytest.mark.parametrize(("size", "sign"), [(["--size", "4096"], "100%"), ([], "4096")])
def test_in_a_terminal_a_bar_moves(endpoint: Endpoint, size: list[str], sign: str) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        arguments_of_a_process(endpoint, "--once", "--speed", "1e9", *size), stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # how Linux says that the other end of a terminal is closed
        os.close(ours)
        assert process.stderr is not None
        assert process.stderr.read() == b""
    bars = [part for part in shown.decode().split("\r") if "device  [" in part]
    assert len(bars) > 5
    assert sign in bars[-1]
    assert b"device: in sync with 0.1.1" in shown
    assert b"bytes\r\n" not in shown, "the bar takes the place of the lines for each tenth"
    assert process.returncode == 0
