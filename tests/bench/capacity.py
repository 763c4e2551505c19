"""What fleets need of each part between devices and Drogue Cloud, and how long their devices wait: docs/scale.md.

The bounds of the deliverers were measured with the real ones; so was the CPU, by `make bench`, on a core of this kind.
"""

import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import click

from tests.bench.deliverers import (
    IMPATIENCE_SECONDS,
    PARTITION_RATE,
    PATIENCE_SECONDS,
    POD_EVENTS,
    Course,
    Plant,
    Simulation,
)

#: Below the repository's folder.
PAGE: Final = Path("docs", "scale.md")
FLEETS: Final = (10_000, 1_000_000, 10_000_000)
#: `POLL_SECONDS`.
POLL_SECONDS: Final = 300
#: Bytes of firmware that a device takes each day, and sizes of blocks; None: it only polls.
DAILY_BYTES: Final = 1024 * 1024
BLOCKS: Final = (None, 4096, 1024)
#: Events a second of a KafkaSource: as it comes, and with `max.poll.records=500`.
SOURCE_RATE, SOURCE_RATE_500 = 250, 2108
#: The share of what a partition and a KafkaSource pass that a fleet may need: above it, its devices wait for seconds.
HEADROOM: Final = 0.8
#: Knative adds a pod above this share of `containerConcurrency`.
POD_SHARE: Final = 0.7
POD_RATE: Final = POD_EVENTS * PARTITION_RATE * POD_SHARE
#: Seconds of CPU: of a poll of a device that the process does not know, and of a block.
POLL_CPU, BLOCK_CPU = 0.0008, 0.0007
#: Reads of devices' objects for each poll and for each block, at most: without `IN_SYNC_TTL_SECONDS`.
READS: Final = 1.0

SEED: Final = 1
#: How long devices of a steady fleet ask; after a power cut all of them wake within the time below.
STEADY_SECONDS: Final = 200.0
WAKE_SECONDS: Final = 10.0
#: When devices without a command never have one.
END_SECONDS: Final = 300.0
#: How far a simulated bound may be from a measured one.
_TOLERANCE: Final = 0.1
_NEEDS_HEAD: Final = (
    "| devices | | events/s | partitions | KafkaSources | with 500 records a poll | pods | CPUs | registry reads/s |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)
_WAITS_HEAD: Final = (
    "| devices | half have their command within | 99 % within | events too old |",
    "| --- | --- | --- | --- |",
)


@dataclass(frozen=True, slots=True)
class Need:
    """What a fleet needs."""

    devices: int
    #: Bytes of a block; None: devices only poll.
    block: int | None

    @property
    def load(self) -> str:
        """What the fleet does, in words."""
        return f"and 1 MiB a day in blocks of {self.block // 1024} KiB" if self.block else "polls"

    @property
    def polls(self) -> float:
        """Polls a second."""
        return self.devices / POLL_SECONDS

    @property
    def blocks(self) -> float:
        """Blocks a second."""
        return self.devices * DAILY_BYTES / self.block / 86400 if self.block else 0.0

    @property
    def events(self) -> float:
        """Events a second."""
        return self.polls + self.blocks

    @property
    def partitions(self) -> int:
        """Partitions of the topic; or applications, if drogue-event-source delivers."""
        return math.ceil(self.events / (PARTITION_RATE * HEADROOM))

    @property
    def sources(self) -> int:
        """KafkaSources, as they come."""
        return math.ceil(self.events / (SOURCE_RATE * HEADROOM))

    @property
    def sources_500(self) -> int:
        """KafkaSources with `max.poll.records=500`."""
        return math.ceil(self.events / (SOURCE_RATE_500 * HEADROOM))

    @property
    def pods(self) -> int:
        """Pods of eight events at a time."""
        return math.ceil(self.events / POD_RATE)

    @property
    def cpus(self) -> float:
        """CPUs that all pods together keep busy."""
        return self.polls * POLL_CPU + self.blocks * BLOCK_CPU

    @property
    def reads(self) -> float:
        """Reads of devices' objects a second, at most."""
        return self.events * READS

    @property
    def row(self) -> str:
        """The row of the table."""
        counts = (round(self.events), self.partitions, self.sources, self.sources_500, self.pods)
        cells = [f"{self.devices:,}", self.load, *(f"{count:,}" for count in counts)]
        return f"| {' | '.join(cells)} | {_figure(self.cpus)} | {self.reads:,.0f} |"


NEEDS: Final = tuple(Need(devices, block) for devices in FLEETS for block in BLOCKS)
#: The load of the plot and of the simulations.
USUAL_BLOCK: Final = 4096


def table() -> str:
    """Return the table of what fleets need."""
    return "\n".join((*_NEEDS_HEAD, *(need.row for need in NEEDS)))


# --- The simulation ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trial:
    """Devices, what their events pass through, and when they ask."""

    name: str
    plant: Plant
    devices: int
    #: None: they wake at once.
    events: float | None = None
    patience: float = PATIENCE_SECONDS

    def run(self) -> Course:
        """Return how it went."""
        random, asks, at = Random(SEED), [], 0.0
        if self.events is None:
            asks = [(random.uniform(0, WAKE_SECONDS), device) for device in range(self.devices)]
        else:
            while (at := at + random.expovariate(self.events)) < STEADY_SECONDS:
                asks.append((at, random.randrange(self.devices)))
        return Simulation(self.plant, asks, SEED, self.patience).run(END_SECONDS)


def planned(need: Need) -> Plant:
    """Return what the table says that a fleet needs, with KafkaSources as they come."""
    return Plant(need.partitions, need.sources, records=50, pods=need.pods)


def trials() -> list[Trial]:
    """Return what is simulated. KafkaSources are independent: of a million devices, those of one are enough."""
    small, large = (Need(devices, USUAL_BLOCK) for devices in FLEETS[:2])
    part = Plant(round(large.partitions / large.sources), 1, 50, math.ceil(large.pods / large.sources))
    share, woken = large.devices // large.sources, small.devices
    bound = float(part.partitions * PARTITION_RATE)
    better = Plant(16, 1, 500, 2)
    return [
        Trial(f"{small.devices:,}", planned(small), small.devices, small.events),
        Trial(f"{large.devices:,}", part, share, large.events / large.sources),
        Trial("the same, with no fifth to spare", part, share, bound),
        Trial(f"{woken:,} wake within {WAKE_SECONDS:.0f} s, and ask each 40 s", planned(small), woken),
        Trial("the same, and ask each 15 s", planned(small), woken, patience=IMPATIENCE_SECONDS),
        Trial("the same, 16 partitions, 500 records a poll, 2 pods", better, woken, patience=IMPATIENCE_SECONDS),
    ]


def waits() -> str:
    """Return the table of how long devices wait."""
    rows = []
    for trial in trials():
        course = trial.run()
        rows.append(
            f"| {trial.name} | {_seconds(course.wait(0.5))} | {_seconds(course.wait(0.99))} | {course.stale:,} |"
        )
    return "\n".join((*_WAITS_HEAD, *rows))


def rate(plant: Plant) -> float:
    """Return how many events a second pass if there are more, and none is too old."""
    seconds = 20
    offered = ((number / 1000, number) for number in range(1000 * seconds))
    return len(Simulation(plant, offered, SEED).run(seconds).waits) / seconds


def bounds() -> dict[str, tuple[float, float]]:
    """Return the bounds of parts by themselves: simulated, and measured with the real deliverers."""
    return {
        "a partition": (rate(Plant(1, 1, 50, 1)), PARTITION_RATE),
        "a KafkaSource": (rate(Plant(32, 1, 50, 6)), SOURCE_RATE),
        "a pod": (rate(Plant(32, 8, 50, 1)), POD_EVENTS * PARTITION_RATE),
    }


def _seconds(seconds: float) -> str:
    if math.isinf(seconds):
        return "never"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _figure(number: float) -> str:
    """Return a number with two digits, or all of those before the point."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def run(_: int) -> list[str]:
    """Print what fleets need and how long devices wait; return bounds that the simulation does not have."""
    click.echo(f"{table()}\n\n{waits()}\n")
    wrong = []
    for what, (simulated, measured) in bounds().items():
        click.echo(f"{what} passes {simulated:.0f} events/s in the simulation, {measured} as measured")
        if abs(simulated / measured - 1) > _TOLERANCE:
            wrong.append(f"{what} passes {simulated:.0f} events/s in the simulation, not {measured}")
    return wrong


def renew(page: str) -> str:
    """Return docs/scale.md with the tables as they are now."""
    for now in (table(), waits()):
        head = re.escape("\n".join(now.splitlines()[:2]))
        page = re.sub(rf"{head}\n(\|.*\n)*", f"{now}\n", page)
    return page


if __name__ == "__main__":
    to_renew = Path(sys.argv[1])
    to_renew.write_text(renew(to_renew.read_text(encoding="utf-8")), encoding="utf-8")
