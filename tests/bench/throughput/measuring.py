"""How servers are measured beside each other: by the same load, alternating, several times."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Final

import click

from tests.bench.peers import Load
from tests.bench.servers import Server
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
SIZES: Final = {"small": 10 * 1024, "medium": 1024 * 1024, "large": 200 * 1024 * 1024}
#: So few devices that each worker knows each of them after a second: their events make one request, the command.
FEW: Final = 100


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


def alternating(runs: Mapping[str, tuple[Server, Load]], rounds: int = ROUNDS) -> dict[str, Measured]:
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


def await_firmware(function: Server, load: Load) -> None:
    """Returns once each worker has what the load's devices need, which they ask for meanwhile."""
    until = time.monotonic() + 60
    good = 0
    while good < 20 * WORKERS:
        assert time.monotonic() < until, "the firmware does not come"
        outcome = function.ask("POST", "/", event_headers(load), load.status).getheader("Fleet-Outcome") or ""
        good = good + 1 if outcome.startswith("write") else 0


def event_headers(load: Load) -> dict[str, str]:
    attributes = event("device-1", load.application, time=datetime.now(UTC).isoformat())
    return {
        "Content-Type": "application/cbor",
        **{f"ce-{name}": value for name, value in attributes.items() if value is not None},
    }


def title(text: str) -> None:
    click.echo(f"\n{text}\n{'-' * 72}")
