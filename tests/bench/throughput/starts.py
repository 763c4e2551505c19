"""From the start to the first answers, and memory: the function beside an empty view, each as its users start it.

The empty view runs under gunicorn as it is: one worker, one thread, no configuration, so none that makes it slower.

A server's processes share pages, since workers are forks. The memory that counts has each page once, as a pod's limit
has, and no pages of files: the system drops these when memory is short, and pods of one image share them. The rest is
printed beside it: pages of files, mostly of libcurl and what it needs; and the sum that `ps` shows, which has shared
pages several times.
"""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

import click

from tests.bench.peers import DONE, IN_SYNC, Cloud, Load, free_port
from tests.bench.processes import resident
from tests.bench.throughput.measuring import event_headers, title
from tests.support.function import ROOT, Client
from tests.support.processes import children

STARTS: Final = 9
#: Events after which memory is measured, and seconds without any before that: meanwhile the function loads its metrics.
EVENTS: Final = 20
IDLE: Final = 1.5
#: What may not be exceeded, as a multiple of the empty view's.
MOST_TIME: Final = 1.2
MOST_MEMORY: Final = 1.1

EMPTY, SERVE, GUNICORN = "empty view", "fleet-fn serve", "gunicorn"
_COMMANDS: Final = {
    EMPTY: ("gunicorn", "tests.bench.floor:empty()"),
    SERVE: ("fleet-fn", "serve"),
    GUNICORN: ("gunicorn", "fleet_fn.app:create_app()"),
}
_MIB: Final = 1024 * 1024
_CONNECT_PAUSE: Final = 0.0005
_HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass
class _Measured:
    """What came of several starts of one kind."""

    #: Milliseconds until the first 200, of CPU until then, and of the first event's answer.
    ready: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    #: MiB of memory: without files, of files, and what `ps` shows.
    anonymous: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)


def show(peers: Cloud, folder: Path) -> list[str]:
    """Print how long starts take, and memory; return what exceeds its bound."""
    measured = {kind: _Measured() for kind in _COMMANDS}
    for kind in _COMMANDS:
        _measure(kind, peers, folder, _Measured())  # reads files, and writes bytecode
    for _ in range(STARTS):
        for kind, result in measured.items():
            _measure(kind, peers, folder, result)
    _show_starts(measured)
    _show_memory(measured)
    serve, empty = measured[SERVE], measured[EMPTY]
    wrong = []
    if (time_share := median(serve.ready) / median(empty.ready)) > MOST_TIME:
        wrong.append(f"a start takes {time_share:.2f} times an empty view's, more than {MOST_TIME}")
    if (memory_share := median(serve.anonymous) / median(empty.anonymous)) > MOST_MEMORY:
        wrong.append(f"memory is {memory_share:.2f} times an empty view's, more than {MOST_MEMORY}")
    return wrong


def _show_starts(measured: dict[str, _Measured]) -> None:
    title(f"from the start to the first 200 of GET /healthz, one worker, {STARTS} starts")
    click.echo(f"{'':16} {'ms':>6} {'of empty':>9} {'CPU ms':>7} {'of empty':>9} {'then an event, ms':>18}")
    empty = measured[EMPTY]
    for kind, result in measured.items():
        click.echo(
            f"{kind:16} {median(result.ready):>6.0f} {median(result.ready) / median(empty.ready):>8.2f}x"
            f" {median(result.cpu):>7.0f} {median(result.cpu) / median(empty.cpu):>8.2f}x {median(result.first):>18.1f}"
        )


def _show_memory(measured: dict[str, _Measured]) -> None:
    title(f"MiB of memory after {EVENTS} events and {IDLE} s, one worker and its master")
    click.echo(
        f"{'':16} {'memory':>6} {'of empty':>9} {'files':>6} {'of empty':>9} {'both':>6} {'of empty':>9} {'RSS':>6}"
    )
    empty = measured[EMPTY]
    least, mapped = median(empty.anonymous), median(empty.files)
    for kind, result in measured.items():
        memory, files = median(result.anonymous), median(result.files)
        click.echo(
            f"{kind:16} {memory:>6.1f} {memory / least:>8.2f}x {files:>6.1f} {files / mapped:>8.2f}x"
            f" {memory + files:>6.1f} {(memory + files) / (least + mapped):>8.2f}x {median(result.resident):>6.1f}"
        )


def _measure(kind: str, peers: Cloud, folder: Path, result: _Measured) -> None:
    began = time.perf_counter()
    with _started(kind, peers, folder) as (pid, client):
        _await_health(client.port)
        result.ready.append(1000 * (time.perf_counter() - began))
        result.cpu.append(sum(map(_cpu_milliseconds, _processes(pid))))
        load = Load(folder, DONE, IN_SYNC)
        for number in range(EVENTS):
            began = time.perf_counter()
            assert client.request("POST", "/", event_headers(load).items(), load.status).status == 204
            if not number:
                result.first.append(1000 * (time.perf_counter() - began))
        time.sleep(IDLE)
        result.anonymous.append(sum(map(_anonymous, _processes(pid))) / _MIB)
        result.files.append(_files(_processes(pid)) / _MIB)
        result.resident.append(sum(map(resident, _processes(pid))) / _MIB)


@contextmanager
def _started(kind: str, peers: Cloud, folder: Path) -> Iterator[tuple[int, Client]]:
    """The process id of a server's master, and a client of the server."""
    client = Client()
    client.port = free_port()
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ},
        "PYTHONPATH": str(ROOT),
    }
    program, *arguments = _COMMANDS[kind]
    if kind == EMPTY:
        arguments = [f"--bind=127.0.0.1:{client.port}", *arguments]
    else:
        cache = str(folder / "cache")
        environment |= {
            **peers.environment(),
            "HOST": "127.0.0.1",
            "PORT": str(client.port),
            "FIRMWARE_CACHE_DIR": cache,
        }
    process = subprocess.Popen(
        [Path(sys.executable).with_name(program), *arguments],
        cwd=ROOT if kind == GUNICORN else folder,  # gunicorn reads its configuration from there
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid, client
    finally:
        process.terminate()
        process.wait()


def _await_health(port: int) -> None:
    """Return once the server has answered with 200."""
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(_HEALTH)
                assert connection.recv(64).startswith(b"HTTP/1.1 200 ")
                return
        except ConnectionError:
            time.sleep(_CONNECT_PAUSE)


def _processes(pid: int) -> list[int]:
    """A server's processes: its master and the workers."""
    return [pid, *children(pid)]


def _cpu_milliseconds(pid: int) -> float:
    """Milliseconds that a process has run: proc(5) has ticks of 10 ms, the scheduler nanoseconds."""
    return (
        sum(int(task.joinpath("schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())
        / 1e6
    )


def _anonymous(pid: int) -> int:
    """Bytes of a process's memory that no file has; its share of pages that other processes have, too."""
    found = re.search(r"^Pss_Anon: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def _files(pids: list[int]) -> int:
    """Bytes of files in the memory of processes, as if no other process of the machine had them."""
    found = dict[tuple[str, str], int]()
    for pid in pids:
        mapping, kilobytes = ("", ""), 0
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, *values = line.split()
            if not name.endswith(":"):
                mapping = (values[1], values[3])  # offset and inode
            elif name == "Rss:":
                kilobytes = int(values[0])
            elif name == "Anonymous:":
                found[mapping] = max(found.get(mapping, 0), kilobytes - int(values[0]))
    return 1024 * sum(found.values())
