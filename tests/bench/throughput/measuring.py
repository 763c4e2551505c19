"""How servers are measured beside each other: by the same loads, in turn, round after round.

Each round opens new connections, and which worker accepts which is luck. So the median says what is common, and the
worst round what a deployment can meet.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Final
from uuid import uuid4

import click

from tests.bench.peers import Cloud, Load
from tests.bench.processes import idle_seconds
from tests.bench.servers import Server
from tests.support.function import event

WORKERS: Final = 2
THREADS: Final = 8
ROUNDS: Final = 7
#: Seconds of each measurement, and of the same load before it: meanwhile devices become known, and the system gets done
#: with the many connections that the floor has closed.
_SECONDS: Final = 1.0
_WARM_UP_SECONDS: Final = 1.0
SIZES: Final = {"small": 10 * 1024, "medium": 1024 * 1024, "large": 200 * 1024 * 1024}
#: So few devices that each worker knows each of them after a second: their events make one request, the command.
FEW: Final = 100
#: How wide tables are.
WIDTH: Final = 80


@dataclass(frozen=True)
class Round:
    """One measurement."""

    #: Events a second.
    rate: float
    #: Microseconds of CPU for an event: of the workers, of the load, and of nginx.
    cost: float
    load_cost: float
    cloud_cost: float
    #: Requests to nginx for an event.
    requests: float
    #: What share of all CPUs was idle, and what share processes used that have no part in this.
    idle: float
    others: float


@dataclass(frozen=True)
class Measured:
    """Rounds of the same, each beside the rounds of others with the same number."""

    rounds: list[Round]

    @property
    def rate(self) -> float:
        """Events a second, of the median round."""
        return self.median(lambda one: one.rate)

    @property
    def worst(self) -> float:
        """Events a second, of the worst round."""
        return min(one.rate for one in self.rounds)

    @property
    def cost(self) -> float:
        """Microseconds of the workers' CPU for an event, of the median round."""
        return self.median(lambda one: one.cost)

    def median(self, figure: Callable[[Round], float]) -> float:
        """Return the median of a figure of the rounds."""
        return median(map(figure, self.rounds))

    def rate_of(self, other: "Measured") -> float:
        """Return how many times as many events a second: the median over pairs of rounds."""
        return median(one.rate / beside.rate for one, beside in zip(self.rounds, other.rounds, strict=True))

    def cost_of(self, other: "Measured") -> float:
        """Return how many times as much CPU an event takes: the median over pairs of rounds."""
        return median(one.cost / beside.cost for one, beside in zip(self.rounds, other.rounds, strict=True))


def alternating(cloud: Cloud, runs: Mapping[str, tuple[Server, Load]], rounds: int = ROUNDS) -> dict[str, Measured]:
    """Measure each in turn, again and again."""
    measured: dict[str, list[Round]] = {what: [] for what in runs}
    for _ in range(rounds):
        for what, (server, load) in runs.items():
            measured[what].append(_measure(cloud, server, load))
    return {what: Measured(of_it) for what, of_it in measured.items()}


def _measure(cloud: Cloud, server: Server, load: Load) -> Round:
    load.run(server.port, _WARM_UP_SECONDS)
    requests, used, by_cloud, idle = cloud.requests, server.cpu, cloud.cpu, idle_seconds()
    answered = load.run(server.port, _SECONDS)
    used, by_cloud, idle = server.cpu - used, cloud.cpu - by_cloud, idle_seconds() - idle
    events = max(answered.events, 1)  # ratios need a number, even if the machine had no time for any
    of_events, of_cpus = 1e6 / events, 1 / answered.seconds / (os.cpu_count() or 1)
    return Round(
        rate=events / answered.seconds,
        cost=used * of_events,
        load_cost=answered.cpu * of_events,
        cloud_cost=by_cloud * of_events,
        requests=(cloud.requests - requests - 1) / events,
        idle=idle * of_cpus,
        others=max(0.0, 1 - (idle + used + answered.cpu + by_cloud) * of_cpus),
    )


def await_firmware(function: Server, load: Load) -> None:
    """Return once each worker has what the load's devices need, which they ask for meanwhile."""
    until = time.monotonic() + 60
    good = 0
    while good < 20 * WORKERS:
        assert time.monotonic() < until, "the firmware does not come"
        outcome = function.ask("POST", "/", event_headers(load), load.status).getheader("Fleet-Outcome") or ""
        good = good + 1 if outcome.startswith("write") else 0


def event_headers(load: Load) -> dict[str, str]:
    """Return those of an event of the load."""
    device = "device-1" if load.devices else f"device-{uuid4()}"
    attributes = event(device, load.application, time=datetime.now(UTC).isoformat())
    return {
        "Content-Type": "application/cbor",
        **{f"ce-{name}": value for name, value in attributes.items() if value is not None},
    }


def title(text: str) -> None:
    """Print the title of a table."""
    click.echo(f"\n{text}\n{'-' * WIDTH}")
