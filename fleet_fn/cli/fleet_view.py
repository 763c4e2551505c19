"""The selection of devices to show, and words for their numbers and times."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from fleet_fn.errors import one_line
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.fleet.rows import STALLED_AFTER, Row
from fleet_fn.fleet.states import ATTENTION, State
from fleet_fn.fleet.survey import Summary
from fleet_fn.fleet.wording import describe_devices, describe_percent


@dataclass(frozen=True, slots=True)
class Selection:
    """The devices that a command reads, and those of them that it shows."""

    application: str
    #: Label selector; other devices are not read.
    labels: str | None = None
    #: Only devices in one of these states, or with one of these versions, are shown; no entry shows all.
    states: frozenset[State] = frozenset()
    versions: tuple[str, ...] = ()
    #: Silence after which an update counts as stalled.
    stalled_after: timedelta = STALLED_AFTER

    @property
    def shows_all(self) -> bool:
        """Is true if each device that is read is shown."""
        return not self.states and not self.versions

    def shows(self, row: Row) -> bool:
        """Return whether a device is shown."""
        if self.states and row.state not in self.states:
            return False
        return not self.versions or row.current in self.versions or row.target in self.versions

    def shows_in_watch(self, row: Row) -> bool:
        """Return whether --watch shows a device.

        Without --state, these are the devices that need attention.
        """
        return self.shows(row) and (bool(self.states) or row.state in ATTENTION)


class Display(Protocol):
    """Takes a fleet page by page, and shows each page at once."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show the devices of a page that the selection shows; there may be none."""

    def end(self, summary: Summary) -> None:
        """Show the numbers of all devices that were read."""

    def break_off(self, reason: str) -> None:
        """End before all devices have been read."""


def describe_age(since: datetime | None, now: datetime) -> str:
    """Return the time since then, in one unit; empty if it is unknown."""
    if since is None:
        return ""
    seconds = max((now - since).total_seconds(), 0)
    for unit, size, most in (("s", 1, 120), ("m", 60, 120), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds // 86400:.0f}d"


def describe_rollout(rollout: RolloutNumbers) -> str:
    """Return the numbers of a rollout as a sentence."""
    stage = "" if rollout.stage is None else f", stage {rollout.stage + 1} of {rollout.stages}"
    success = "" if rollout.success is None else f", success {describe_percent(rollout.success)}"
    return (
        f"rollout of {one_line(rollout.version)} to {describe_percent(rollout.percent)}{stage}: "
        f"{rollout.drawn} of {describe_devices(rollout.devices)} drawn; of these {rollout.in_sync} in-sync, "
        f"{rollout.rolled_back} rolled-back, {rollout.failed} failed{success}"
    )


def describe_stop(rollout: RolloutNumbers | None) -> str:
    """Return why a rollout has stopped, and what to do; empty if it has not."""
    return one_line(f"rollout {rollout.stop.describe()}") if rollout and rollout.stop else ""


def describe_warnings(summary: Summary) -> list[str]:
    """Return what is wrong with the fleet as a whole, a line each."""
    problem = [f"no numbers of the rollout: {summary.rollout_problem}"] if summary.rollout_problem else []
    conflicts = [conflict.describe() for conflict in summary.totals.gateways.conflicts()]
    return [one_line(f"warning: {warning}") for warning in (*problem, *conflicts)]
