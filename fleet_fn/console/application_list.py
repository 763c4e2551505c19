"""The list of applications, those with trouble first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import Final

from fleet_fn.console.board import STANDINGS, attention_parts
from fleet_fn.console.charts import Part
from fleet_fn.console.rollout_view import is_paused
from fleet_fn.console.snapshot import Snapshot
from fleet_fn.fleet.rollout.progress import TROUBLED, Standing
from fleet_fn.fleet.totals import Totals

#: The order by name; the other one is by trouble.
BY_NAME: Final = "name"


class Trouble(IntEnum):
    """What an operator should look at, the worst first."""

    #: The rollout has stopped or fails, or the application cannot be read.
    ROLLOUT = 0
    #: Devices failed, rolled back or stalled.
    DEVICES = 1
    #: The application names a firmware that is not known: it is malformed, or not there.
    FIRMWARE = 2
    #: The rollout waits for an operator.
    WAITS = 3
    NONE = 4


@dataclass(frozen=True, slots=True)
class Listed:
    """An application in the list."""

    name: str
    snapshot: Snapshot
    trouble: Trouble
    #: Standing of the rollout in words, and its badge; empty if it is not known.
    standing: tuple[str, str]
    version: str
    #: Why something is not known; empty if all is.
    problem: str
    #: Devices by state, of those that an operator should look at.
    attention: Sequence[Part]

    @classmethod
    def of(cls, snapshot: Snapshot, outage: "Outage | None" = None) -> "Listed":
        """Return the row of an application, without what is true of all."""
        if outage:
            snapshot = replace(snapshot, problem="")
        overview, devices = snapshot.overview, snapshot.devices
        progress = overview.progress if overview else None
        return cls(
            snapshot.application,
            snapshot,
            _trouble(snapshot),
            STANDINGS[progress.standing] if progress else ("", ""),
            (overview.version or "") if overview else "",
            snapshot.problem or (overview.problem if overview else ""),
            attention_parts(snapshot.application, devices.totals) if devices else (),
        )


def _trouble(snapshot: Snapshot) -> Trouble:
    overview, devices = snapshot.overview, snapshot.devices
    progress = overview.progress if overview else None
    if snapshot.problem or (progress and progress.standing in TROUBLED):
        return Trouble.ROLLOUT
    if devices and devices.totals.needs_attention:
        return Trouble.DEVICES
    if overview and overview.problem and overview.application.spec.source is not None:
        return Trouble.FIRMWARE
    waits = progress and (
        progress.standing in (Standing.READY, Standing.PAUSED)
        or (progress.position and progress.position.waits_for_approval)
    )
    return Trouble.WAITS if waits or (overview and is_paused(overview)) else Trouble.NONE


@dataclass(frozen=True, slots=True)
class Outage:
    """Why no application can be read, which is one reason for all of them."""

    problem: str
    since: datetime | None

    @classmethod
    def of(cls, snapshots: Sequence[Snapshot]) -> "Outage | None":
        """Return the outage; None if there is none."""
        problems = {snapshot.problem for snapshot in snapshots}
        if len(problems) != 1 or "" in problems:
            return None
        since = [snapshot.problem_at for snapshot in snapshots if snapshot.problem_at]
        return cls(problems.pop(), min(since, default=None))


def arrange(listed: Iterable[Listed], sought: str, sort: str) -> list[Listed]:
    """Return the applications with a text in their name, by trouble or by name."""
    found = [each for each in listed if sought.casefold() in each.name.casefold()]
    if sort == BY_NAME:
        return sorted(found, key=lambda each: each.name)
    return sorted(found, key=lambda each: (each.trouble, each.name))


def total_of(snapshots: Iterable[Snapshot]) -> Totals:
    """Return the numbers of devices by state of all applications together."""
    totals = Totals()
    for snapshot in snapshots:
        if snapshot.devices:
            totals.states.update(snapshot.devices.totals.states)
    return totals
