"""Counting, logging and tracing that fail: events are answered all the same, and each command is sent once."""

import errno
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.support.drogue import Drogue
from tests.support.files import full_pipe
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT, Function, event, serving
from tests.support.processes import workers
from tests.support.statuses import STATUS, blocks, post

EVENTS: Final = 5


@pytest.fixture
def settings(drogue: Drogue, device: str, tmp_path: Path) -> dict[str, str]:
    publish(tmp_path / "images", device, "1", random_bytes(1300, device))
    drogue.put_image("example", device, f"{device}:1")
    return {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path / 'images'}"}


@pytest.fixture
def answers(drogue: Drogue, device: str) -> Callable[[Function], None]:
    """What sees that events are answered, each with one command."""

    mtus = itertools.count(64)  # equal statuses within a second count as one

    def see(function: Function) -> None:
        sent = len(blocks(drogue, device))
        for number in range(1, EVENTS + 1):
            assert post(function, device, STATUS | {1: next(mtus)}).outcome.startswith("write")
            assert len(blocks(drogue, device)) == sent + number
        assert function.request("GET", "/readyz").status == 200

    return see


def restart_worker(function: Function) -> None:
    """Have the server start another worker, which finds things as they are now."""
    (worker,) = workers(function)
    os.kill(worker, signal.SIGKILL)
    limit = time.monotonic() + 20
    while workers(function) in ([worker], []):
        assert time.monotonic() < limit
        time.sleep(0.02)


@contextmanager
def mounted(settings: dict[str, str], disk: Path, options: str) -> Iterator[tuple[Function, Path]]:
    """A function that counts in a file system of its own, and where that is seen from outside."""
    disk.mkdir()
    mounting = ["unshare", "--mount", "sh", "-ec", f'mount -t tmpfs -o {options} none "$0"; exec "$@"', str(disk)]
    if not shutil.which("unshare") or subprocess.run([*mounting, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    with Function({**settings, "PROMETHEUS_MULTIPROC_DIR": str(disk)}, within=mounting) as function:
        yield function, Path(f"/proc/{function.process.pid}/root{disk}")


def fill(disk: Path) -> None:
    """Write to a file system until it is full."""
    filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
    finally:
        os.close(filler)


def is_sensible(function: Function) -> bool:
    """Whether a scrape is told something, or that there is nothing to be told."""
    answer = function.request("GET", "/metrics")
    return answer.status == 200 or (answer.status == 503 and answer.json["status"] == 503)


@pytest.mark.parametrize("loaded", [True, False])
def test_folder_of_metrics_that_is_removed(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path, loaded: bool
) -> None:
    folder = tmp_path / "metrics"
    with Function({**settings, "PROMETHEUS_MULTIPROC_DIR": str(folder)}) as function:
        if loaded:
            assert function.request("GET", "/metrics").status == 200
        shutil.rmtree(folder)
        if not loaded:
            restart_worker(function)
        answers(function)
        assert function.request("GET", "/metrics").status == 503
        answers(function)
        assert len(function.logged("a side effect failed", "metrics")) < EVENTS
        restart_worker(function)  # the server itself goes on, too
        answers(function)


def test_folder_of_metrics_that_becomes_read_only(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path
) -> None:
    with mounted(settings, tmp_path / "disk", "size=1m") as (function, _):
        within = ["nsenter", "--target", str(function.process.pid), "--mount"]
        subprocess.run([*within, "mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path / "disk")], check=True)
        answers(function)
        restart_worker(function)
        answers(function)
        assert is_sensible(function)
        answers(function)


def test_disk_of_metrics_that_is_full(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path
) -> None:
    with mounted(settings, tmp_path / "disk", "size=200k") as (function, disk):
        fill(disk)
        before = workers(function)
        answers(function)
        assert is_sensible(function)
        assert workers(function) == before  # writing to a mapping that has no space ends a process
        restart_worker(function)
        answers(function)
        assert is_sensible(function)


def run_in_worker(tmp_path: Path, code: str) -> dict[str, str]:
    """The environment of a function in whose processes `code` runs at the start."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(tmp_path / "hook"), "PYTHONWARNINGS": "default"}


COUNTERS: Final = """
from prometheus_client import Counter, Histogram
def fail(*_):
    raise RuntimeError("no counter")
Counter.inc = Histogram.observe = fail
"""
LOG: Final = """
import sys
class Broken:
    def __getattr__(self, name): return getattr(sys.__stdout__, name)
    def write(self, *_): raise {error}
    flush = write
sys.stdout = Broken()
"""
HANDLER: Final = """
import logging
def fail(*_):
    raise RuntimeError("no handler")
handle = logging.StreamHandler.emit
logging.StreamHandler.emit = lambda self, record: (fail if record.name == "fleet_fn" else handle)(self, record)
"""
TRACER: Final = """
import os
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:1"
import opentelemetry.sdk.trace as trace
def fail(*_, **__):
    raise RuntimeError("no tracer")
trace.Tracer.start_span = fail
"""
SPAN: Final = TRACER.replace(
    "trace.Tracer.start_span", "trace.Span.set_attribute = trace.Span.set_status = trace.Span.end"
)


@pytest.mark.parametrize(
    "code",
    [
        COUNTERS,
        LOG.format(error="BrokenPipeError"),
        LOG.format(error="ValueError('I/O operation on closed file')"),
        LOG.format(error="OSError(28, 'No space left on device')"),
        HANDLER,
        TRACER,
        SPAN,
    ],
    ids=["counter", "log-pipe", "log-closed", "log-full", "handler", "tracer", "span"],
)
def test_side_effect_that_raises(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path, code: str
) -> None:
    with Function({**settings, **run_in_worker(tmp_path, code)}) as function:
        answers(function)
        assert function.post(event(subject="other"), b"").outcome == "ignored"
        assert function.post(event(), b"nonsense").outcome == "invalid"
        lines = function.logged("a side effect failed", lines=0 if "sys.stdout" in code or code is HANDLER else 1)
        assert len(lines) == len(set(lines)) < 8  # once for each of them


@pytest.mark.parametrize("closed", ["1", "2", "1 2"])
def test_log_that_is_closed(settings: dict[str, str], answers: Callable[[Function], None], closed: str) -> None:
    redirections = " ".join(f"{number}>&-" for number in closed.split())
    with Function(settings, within=["sh", "-c", f'exec "$@" {redirections}', "sh"]) as function:
        answers(function)
        restart_worker(function)
        answers(function)


def test_log_whose_reader_is_gone(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path
) -> None:
    code = "import os, sys\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 1)\nos.dup2(write, 2)\n"
    with Function({**settings, **run_in_worker(tmp_path, code)}) as function:
        answers(function)
        restart_worker(function)
        answers(function)


@pytest.mark.parametrize("stalled", [1, 2])
def test_log_whose_reader_stalls(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path, stalled: int
) -> None:
    code = f"import os\nread, write = os.pipe()\nos.dup2(write, {stalled})\n"  # nothing ever reads from it
    with Function({**settings, **run_in_worker(tmp_path, code), "LOG_LEVEL": "DEBUG"}) as function:
        pipe = os.open(f"/proc/{function.process.pid}/fd/{stalled}", os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, bytes(4096))
        os.close(pipe)
        started = time.monotonic()
        answers(function)
        with socket.create_connection(("127.0.0.1", function.port), 20) as nonsense:
            nonsense.sendall(b"nonsense\r\n\r\n")  # of which gunicorn logs a line
            assert nonsense.recv(4096).startswith(b"HTTP/1.1 400 ")
        assert time.monotonic() - started < EVENTS


def test_stalled_log_of_gunicorn_without_our_configuration(
    settings: dict[str, str], device: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "fleet_fn.app:create_app()"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOG_LEVEL": "DEBUG", **settings}
    with full_pipe() as pipe, serving(command, environment, tmp_path, pipe) as function:
        started = time.monotonic()
        for number in range(EVENTS):
            assert post(function, device, STATUS | {1: 64 + number}).outcome.startswith("write")
        assert time.monotonic() - started < EVENTS


def test_status_is_answered_when_nothing_can_be_counted_logged_or_traced(
    settings: dict[str, str], answers: Callable[[Function], None], tmp_path: Path
) -> None:
    code = COUNTERS + HANDLER + TRACER
    with Function({**settings, **run_in_worker(tmp_path, code)}) as function:
        answers(function)
