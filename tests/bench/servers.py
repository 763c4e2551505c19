"""The servers that are compared, each of them gunicorn with threads: the function, the floor, and an empty view."""

import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.floor import COMMAND_URL
from tests.bench.peers import Cloud, await_port, free_port
from tests.bench.processes import cpu_of_children
from tests.support.function import ROOT

#: What is said of each in tables.
FUNCTION, FLOOR, EMPTY = "function", "floor", "empty view"
#: The function under gunicorn's own worker.
PLAIN = "function, gthread"
_APPLICATIONS: Final = {FLOOR: "tests.bench.floor:floor()", EMPTY: "tests.bench.floor:empty()"}


@dataclass(frozen=True)
class Server:
    """One that runs."""

    process: "subprocess.Popen[bytes]"
    port: int

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        """The answer to one request on a connection of its own, which has been read."""
        return _ask(self.port, method, path, headers, body)

    @property
    def cpu(self) -> float:
        """Seconds of CPU that its workers have used."""
        return sum(cpu_of_children(self.process.pid))


@contextmanager
def serving(
    kind: str, cloud: Cloud, folder: Path, *, workers: int, threads: int, slow: bool = False
) -> Iterator[Server]:
    """The server of that `kind`."""
    port = free_port()
    api = cloud.slow_url if slow else cloud.url
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        **cloud.environment(slow=slow),
        "PYTHONPATH": str(ROOT),
        "PORT": str(port),
        "WEB_CONCURRENCY": str(workers),
        "THREADS": str(threads),
        "FIRMWARE_CACHE_DIR": str(folder / "cache"),
        COMMAND_URL: f"{api}/api/command/v1alpha1/apps/medium/devices/device?command=dfu",
    }
    command = [sys.executable, "-m", "fleet_fn", "serve"]
    if kind == PLAIN:
        environment["GUNICORN_CMD_ARGS"] = "--worker-class=gthread"
    if kind in _APPLICATIONS:
        options = {"worker-class": "gthread", "workers": workers, "threads": threads, "bind": f"127.0.0.1:{port}"}
        command = [sys.executable, "-m", "gunicorn", "--keep-alive", "120"]
        command += [f"--{name}={value}" for name, value in options.items()] + [_APPLICATIONS[kind]]
    # Where a log goes is no affair of whoever writes it.
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=nowhere, stderr=nowhere)
    try:
        await_port(port, process)
        ready = _ask(port, "GET", "/" if kind in _APPLICATIONS else "/readyz").status
        assert ready == 200, f"it is not ready: {ready}"
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


def _ask(
    port: int, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        response.read()
        return response
    finally:
        connection.close()
