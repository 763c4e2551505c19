"""What the function's processes take, each second, and whether that stays as it was."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import click

from tests.support.function import Served
from tests.support.processes import descriptors, resident, threads, workers

#: By how much the mean of the last third of a run may lie above that of the middle third. What fills up does so in the
#: first: each worker remembers 10,000 events that it has answered, and all devices and firmwares that there are.
TOLERANCE: Final = 0.05
#: Looks that a third has to have.
_LOOKS: Final = 3
_MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """One look at the worker processes; the figures are their sums."""

    #: Since the first.
    seconds: float
    #: Answers so far.
    events: int
    resident: int
    descriptors: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.seconds:5.0f} s  {self.events:8,} answers  {self.resident / _MIB:6.1f} MiB"
            f"  {self.descriptors:4} files  {self.threads:4} threads"
        )


class Samples:
    """All looks, and what they come to."""

    def __init__(self, function: Served, events: Callable[[], int]) -> None:
        self._function, self._events = function, events
        self._began = time.monotonic()
        self._workers = workers(function)
        self.taken: list[Sample] = []

    def take(self) -> Sample:
        function = self._function
        sample = Sample(
            time.monotonic() - self._began, self._events(), resident(function), descriptors(function), threads(function)
        )
        self.taken.append(sample)
        return sample

    def _third(self, sample: Sample) -> int:
        """By answers, so that as much has been done in each."""
        return min(2, 3 * sample.events // max(1, self.taken[-1].events))

    def compare(self) -> list[str]:
        """Prints the thirds of the run; returns what does not hold of them."""
        wrong = [] if workers(self._function) == self._workers else ["worker processes ended, and others took over"]
        thirds = [[sample for sample in self.taken if self._third(sample) == number] for number in range(3)]
        if min(map(len, thirds)) < _LOOKS:
            return [*wrong, "too short a run to tell whether memory is flat"]
        click.echo(f"\n{'':<22}{'first third':>12} {'middle':>12} {'last':>12}")
        rates = [(third[-1].events - third[0].events) / (third[-1].seconds - third[0].seconds) for third in thirds]
        click.echo(f"{'answers per second':<22}" + " ".join(f"{rate:>12.0f}" for rate in rates))
        for name, look in _FIGURES.items():
            figures = [[look(sample) for sample in third] for third in thirds]
            means = [fmean(third) for third in figures]
            click.echo(f"{name + ', mean':<22}" + " ".join(f"{mean:>12.1f}" for mean in means))
            click.echo(f"{name + ', at most':<22}" + " ".join(f"{max(third):>12.1f}" for third in figures))
            if means[2] > means[1] * (1 + TOLERANCE):
                wrong.append(f"{name}: {means[2]:.1f} in the last third of the run, {means[1]:.1f} in the middle third")
        return wrong


_FIGURES: Final[dict[str, Callable[[Sample], float]]] = {
    "resident, MiB": lambda sample: sample.resident / _MIB,
    "open files": lambda sample: sample.descriptors,
    "threads": lambda sample: sample.threads,
}
