"""Whether `percent` draws the share of a large fleet that it says, and more percent the same devices and others."""

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from math import sqrt
from random import Random
from typing import Final
from uuid import UUID

import click

from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.update.policy import Candidate, hold_start

DEVICES: Final = 100_000
PERCENTS: Final = (0.5, 1.0, 10.0, 50.0)
VERSIONS: Final = ("0.1.0", "0.1.1", "0.2.0", "1.0.0", "2026.11.23")
#: Percent of the canaries whose overlap between versions is measured.
CANARIES: Final = 10.0
#: Standard deviations that chance may take.
TOLERANCE: Final = 3.0
#: How often chance takes more than these.
_BY_CHANCE: Final = 0.0027

_NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)  # no window is asked
_RULE: Final = "-" * 72


@dataclass(frozen=True, slots=True)
class Share:
    """How many of some devices were drawn."""

    found: int
    of: int
    #: From 0 to 1.
    expected: float

    @property
    def deviations(self) -> float:
        """Standard deviations (of a binomial distribution) by which it is more than expected."""
        spread = sqrt(self.of * self.expected * (1 - self.expected))
        return (self.found - self.of * self.expected) / spread

    @property
    def is_off(self) -> bool:
        """Whether it is further off than chance may take it."""
        return abs(self.deviations) > TOLERANCE

    def __str__(self) -> str:
        return f"{self.found / self.of:9.4%} {self.expected:9.4%} {self.deviations:+10.2f}"


def run(seed: int) -> list[str]:
    """Prints the shares that are drawn of `DEVICES` devices, and returns what is wrong with them."""
    uids = make_uids(DEVICES, seed)
    drawn = {version: [draw(uids, percent, version) for percent in PERCENTS] for version in VERSIONS}
    canaries = {version: sets[PERCENTS.index(CANARIES)] for version, sets in drawn.items()}
    wrong = _shares(drawn, seed) + _overlaps(canaries)
    pairs = len(list(combinations(VERSIONS, 2)))
    shares, containments = len(VERSIONS) * len(PERCENTS), len(VERSIONS) * (len(PERCENTS) - 1)
    click.echo(
        f"\n{shares} shares, {containments} containments and {pairs} overlaps were checked; {len(wrong)} do not hold."
        f"\nOf {shares + pairs} numbers that are drawn evenly, {(shares + pairs) * _BY_CHANCE:.2f} lie"
        f" more than {TOLERANCE:g} standard deviations off, on average over many seeds."
    )
    return wrong


def make_uids(devices: int, seed: int) -> list[str]:
    """Return the UIDs of devices: random UUIDs (RFC 9562, version 4), the same for the same seed."""
    random = Random(seed)
    return [str(UUID(int=random.getrandbits(128), version=4)) for _ in range(devices)]


def draw(uids: list[str], percent: float, version: str) -> set[str]:
    """Those who may start their update."""
    policy = Policy(percent=percent)
    return {uid for uid in uids if hold_start(policy, Candidate(uid, {}), version, _NOW) is None}


def _shares(drawn: dict[str, list[set[str]]], seed: int) -> list[str]:
    click.echo(f"rollout.percent: {DEVICES:,} devices, seed {seed}\n")
    click.echo(
        f"{'version':<12} {'percent':>7} {'drawn':>9} {'expected':>9} {'deviations':>10}  contains the smaller\n{_RULE}"
    )
    wrong = []
    for version, sets in drawn.items():
        smaller: set[str] = set()
        for percent, found in zip(PERCENTS, sets, strict=True):
            share = Share(len(found), DEVICES, percent / 100)
            contains = smaller <= found
            answer = ("yes" if contains else "NO") if smaller else "-"
            click.echo(f"{version:<12} {percent:>7g} {share}  {answer}{'  OFF' if share.is_off else ''}")
            if share.is_off:
                wrong.append(f"{version}: {percent:g} % drew {len(found)} of {DEVICES}")
            if not contains:
                wrong.append(f"{version}: {percent:g} % lacks devices that fewer percent drew")
            smaller = found
    return wrong


def _overlaps(canaries: dict[str, set[str]]) -> list[str]:
    click.echo(f"\ndevices that are among the {CANARIES:g} % of both of two versions, drawn independently\n")
    click.echo(f"{'versions':<24} {'drawn':>9} {'expected':>9} {'deviations':>10}\n{_RULE}")
    wrong = []
    for (one, of_one), (other, of_other) in combinations(canaries.items(), 2):
        share = Share(len(of_one & of_other), DEVICES, (CANARIES / 100) ** 2)
        click.echo(f"{f'{one}, {other}':<24} {share}{'  OFF' if share.is_off else ''}")
        if share.is_off:
            wrong.append(f"{one} and {other}: {share.found} of {DEVICES} are among the canaries of both")
    return wrong
