"""Events a second, start-up, memory, and where an event's CPU goes: the function beside the least that could be done.

Whatever is compared is measured in one run, alternating, by the same load, with as many workers and threads: absolute
figures are a machine's, ratios are the function's. The load and the upstreams take part of the same CPUs.
"""

import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import click

from tests.bench import parts
from tests.bench.peers import DELAY, DONE, IN_SYNC, Cloud, Load, cloud, latency, midway, missing
from tests.bench.servers import EMPTY, FLOOR, FUNCTION, PLAIN, Server, serving
from tests.support.function import event

WORKERS: Final = 2
THREADS: Final = 8
ROUNDS: Final = 4
#: Seconds of each measurement, and of the same load before it: meanwhile devices become known, and the system gets done
#: with the many connections that the floor has closed.
SECONDS: Final = 2.0
WARM_UP: Final = 1.0
#: What one worker uses of the CPU that another does, at least, and how often that is tried: which of them accepts a
#: connection is luck, under gunicorn, and where one has nearly all of them it is only that one which is measured.
_LEAST_SHARE: Final = 0.25
_TRIES: Final = 5
STARTS: Final = 7
#: Events after which memory is measured.
FIRST_EVENTS: Final = 20
SIZES: Final = {"small": 10 * 1024, "medium": 1024 * 1024, "large": 200 * 1024 * 1024}
DEVICES: Final = (1, 1000, 100_000)
#: So few devices that each worker knows each of them after a second: their events make one request, the command.
FEW: Final = 100

_MIB: Final = 1024 * 1024


@dataclass
class Measured:
    """What came of several measurements."""

    #: Events a second.
    rates: list[float] = field(default_factory=list)
    #: Microseconds of the workers' CPU for an event.
    cpu: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def cost(self) -> float:
        return median(self.cpu)


def run(seed: int) -> list[str]:
    """Prints what was measured."""
    if packages := missing():
        click.echo(f"throughput: not measured, for want of {', '.join(packages)} (apt-get install)")
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx gives up what root may do
        with cloud(folder, SIZES, seed) as peers:
            _rates(peers, folder)
            _latency(peers, folder)
            _sizes_and_devices(peers, folder)
            _starts(peers, folder)
            parts.show(peers, folder)
    return []


def _rates(peers: Cloud, folder: Path) -> None:
    block = Load(folder, "medium", midway(SIZES["medium"]), devices=FEW)
    poll = Load(folder, DONE, IN_SYNC, devices=FEW)
    with ExitStack() as servers:
        function, plain, floor, empty = (
            servers.enter_context(serving(kind, peers, folder, workers=WORKERS, threads=THREADS))
            for kind in (FUNCTION, PLAIN, FLOOR, EMPTY)
        )
        for server in (function, plain):
            _await_firmware(server, block)
        measured = _alternating(
            {
                "floor": (floor, block),
                "empty view": (empty, block),
                "function, a block": (function, block),
                "the same, gthread": (plain, block),
                "function, a poll": (function, poll),
            }
        )
    _title(
        f"events a second, {WORKERS} workers of {THREADS} threads, {os.cpu_count()} CPUs shared with load and upstream"
    )
    click.echo(f"{'':20} {'events/s':>9} {'of floor':>9} {'us of CPU':>10} {'of floor':>9}")
    least = measured["floor"]
    for what, result in measured.items():
        click.echo(
            f"{what:20} {result.rate:>9.0f} {result.rate / least.rate:>8.2f}x"
            f" {result.cost:>10.0f} {result.cost / least.cost:>8.2f}x"
        )


def _latency(peers: Cloud, folder: Path) -> None:
    _title(f"upstream latency of {1000 * DELAY:.0f} ms: workers x threads / {1000 * DELAY:.0f} ms is what could be")
    click.echo(f"{'workers x threads':20} {'events/s':>9} {'could be':>9} {'share':>9} {'CPU':>9}")
    for workers, threads in ((1, 1), (1, 4), (1, 8), (2, 8)):
        load = Load(folder, DONE, IN_SYNC, devices=FEW, connections=4 * workers * threads)
        with serving(FUNCTION, peers, folder, workers=workers, threads=threads, slow=True) as function:
            measured = _alternating({"": (function, load)}, rounds=2)[""]
        most, used = workers * threads / DELAY, measured.rate * measured.cost / 1e6 / workers
        share = measured.rate / most
        click.echo(f"{f'{workers} x {threads}':20} {measured.rate:>9.0f} {most:>9.0f} {share:>9.2f} {used:>9.0%}")
    click.echo(f"the upstream by itself takes {1000 * latency(peers):.2f} ms; CPU: of one, for each worker")


def _sizes_and_devices(peers: Cloud, folder: Path) -> None:
    with serving(FUNCTION, peers, folder, workers=WORKERS, threads=THREADS) as function:
        loads = {f"{size / 1024:,.0f} KiB": Load(folder, name, midway(size)) for name, size in SIZES.items()}
        for load in loads.values():
            _await_firmware(function, load)
        sizes = _alternating({what: (function, load) for what, load in loads.items()}, rounds=2)
        devices = _alternating(
            {f"{count:,}": (function, Load(folder, DONE, IN_SYNC, devices=count)) for count in DEVICES}, rounds=2
        )
    for title, measured in (("a block of a firmware of", sizes), ("polls of so many devices", devices)):
        _title(title)
        click.echo(f"{'':20} {'events/s':>9} {'us of CPU':>10} {'of first':>9}")
        first = next(iter(measured.values()))
        for what, result in measured.items():
            click.echo(f"{what:20} {result.rate:>9.0f} {result.cost:>10.0f} {result.cost / first.cost:>8.2f}x")
    click.echo("more devices than are remembered are read again with each poll")


def _starts(peers: Cloud, folder: Path) -> None:
    started: dict[str, list[float]] = {FUNCTION: [], EMPTY: []}
    resident: dict[str, list[float]] = {FUNCTION: [], EMPTY: []}
    done = Load(folder, DONE, IN_SYNC)
    for _ in range(STARTS):
        for kind in started:
            with serving(kind, peers, folder, workers=1, threads=THREADS) as server:
                started[kind].append(server.started)
                for _ in range(FIRST_EVENTS):
                    assert server.ask("POST", "/", _headers(done), done.status).status == 204
                resident[kind].append(server.resident)
    _title(f"from the start to the first 200, and memory after {FIRST_EVENTS} events, 1 worker of {THREADS} threads")
    click.echo(f"{'':20} {'ms':>9} {'of empty':>9} {'MiB':>9} {'of empty':>9}")
    for kind in started:
        click.echo(
            f"{kind:20} {1000 * median(started[kind]):>9.0f} {median(started[kind]) / median(started[EMPTY]):>8.2f}x"
            f" {median(resident[kind]) / _MIB:>9.1f} {median(resident[kind]) / median(resident[EMPTY]):>8.2f}x"
        )


def _alternating(runs: Mapping[str, tuple[Server, Load]], rounds: int = ROUNDS) -> dict[str, Measured]:
    """Measures each in turn, again and again."""
    measured = {what: Measured() for what in runs}
    for _ in range(rounds):
        for what, (server, load) in runs.items():
            rate, used = _measure(server, load)
            measured[what].rates.append(rate)
            measured[what].cpu.append(used / (rate * SECONDS) * 1e6)
    return measured


def _measure(server: Server, load: Load) -> tuple[float, float]:
    """Events a second, and the workers' seconds of CPU for those of `SECONDS`."""
    for _ in range(_TRIES):
        load.rate(server.port, WARM_UP)
        before = server.cpu
        rate = load.rate(server.port, SECONDS)
        used = [after - then for then, after in zip(before, server.cpu, strict=True)]
        if min(used) >= _LEAST_SHARE * max(used):
            break
    return rate, sum(used)


def _await_firmware(function: Server, load: Load) -> None:
    """Returns once each worker has what the load's devices need, which they ask for meanwhile."""
    until = time.monotonic() + 60
    good = 0
    while good < 20 * WORKERS:
        assert time.monotonic() < until, "the firmware does not come"
        outcome = function.ask("POST", "/", _headers(load), load.status).getheader("Fleet-Outcome") or ""
        good = good + 1 if outcome.startswith("write") else 0


def _headers(load: Load) -> dict[str, str]:
    attributes = event("device-1", load.application, time=datetime.now(UTC).isoformat())
    return {
        "Content-Type": "application/cbor",
        **{f"ce-{name}": value for name, value in attributes.items() if value is not None},
    }


def _title(text: str) -> None:
    click.echo(f"\n{text}\n{'-' * 72}")
