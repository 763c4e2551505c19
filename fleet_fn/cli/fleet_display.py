"""The displays of a fleet for pipes and programs: lines that grep well, and JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import click
from rich.cells import cell_len

from fleet_fn.cli.fleet_view import (
    Selection,
    describe_rollout,
    describe_stop,
    describe_warnings,
)
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.errors import one_line
from fleet_fn.fleet.attention import Attention
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.survey import Summary
from fleet_fn.fleet.totals import Totals
from fleet_fn.fleet.wording import describe_devices, describe_percent

#: Columns between two cells.
_GAP: Final = "  "
#: Reasons of a state in a summary.
_MOST_REASONS: Final = 5


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as wide as the first page needs, within bounds."""

    title: str
    least: int
    most: int


_COLUMNS: Final = (
    _Column("DEVICE", 12, 40),
    _Column("STATE", 11, 11),
    _Column("CURRENT", 8, 20),
    _Column("TARGET", 8, 20),
    _Column("PROGRESS", 8, 8),
    _Column("ATTEMPTS", 8, 8),
    _Column("SINCE", 20, 20),
)
_DETAILS: Final = "DETAILS"


class Lines:
    """A line for each device, and the numbers below.

    Text from devices or upstreams cannot begin a line, or steer a terminal that shows the lines later.
    """

    def __init__(
        self,
        selection: Selection,
        echo: Callable[[str], object] = click.echo,
        above: Callable[[], object] = lambda: None,
    ) -> None:
        """Print lines with `echo`, after one call of `above`."""
        self._selection = selection
        self._echo = echo
        self._above = above
        self._widths: list[int] | None = None
        self._shown = 0

    @property
    def has_begun(self) -> bool:
        """Is true once a line has been printed."""
        return self._widths is not None

    def show(self, rows: Sequence[Row]) -> None:
        """Show a page of devices.

        The first page sets the widths of the columns. A longer cell shifts its row.
        """
        cells = [_cells(row) for row in rows]
        if self._widths is None:
            self._widths = _widths(cells)
            self._above()
            self._echo(_line(self._widths, [*(column.title for column in _COLUMNS), _DETAILS]))
        for each in cells:
            self._echo(_line(self._widths, each))
        self._shown += len(rows)

    def end(self, summary: Summary) -> None:
        """Show the numbers of devices by state and by version, the rollout, and warnings."""
        self._echo("")
        if not self._selection.shows_all:
            self._echo(f"{self._shown} of {describe_devices(summary.totals.devices)} shown")
        for line in _footer(summary):
            self._echo(line)

    def break_off(self, reason: str) -> None:
        """Show nothing: a table without numbers is incomplete.

        The command prints the reason.
        """


class SummaryLines:
    """The numbers of a fleet, a line each."""

    def __init__(
        self,
        selection: Selection,
        echo: Callable[[str], object] = click.echo,
        above: Callable[[], object] = lambda: None,
        *,
        most_rows: int = 0,
    ) -> None:
        """Print lines with `echo`, after one call of `above`.

        Below are up to `most_rows` devices that need attention.
        """
        self._echo = echo
        self._above = above
        self._selection = selection
        self._attention = Attention(most_rows)
        self._most_rows = most_rows
        self.has_begun = False

    def show(self, rows: Sequence[Row]) -> None:
        """Keep the devices that need attention."""
        self._attention.add(row for row in rows if self._selection.shows_in_watch(row))

    def end(self, summary: Summary) -> None:
        """Show the numbers, then devices."""
        self._above()
        self.has_begun = True
        for line in _summary(summary, self._selection):
            self._echo(line)
        if self._most_rows and self._attention.count:
            self._show_devices()

    def _show_devices(self) -> None:
        cells = [_cells(row) for row in self._attention.rows]
        widths = _widths(cells)
        self._echo("")
        for each in ([*(column.title for column in _COLUMNS), _DETAILS], *cells):
            self._echo(_line(widths, each))
        if more := self._attention.count - len(cells):
            self._echo(f"and {more} more")

    def break_off(self, reason: str) -> None:
        """Show nothing; the command prints the reason."""


class Document:
    """One JSON document, one device a line.

    It is well-formed even if the reading breaks off.
    """

    def __init__(
        self,
        selection: Selection,
        write: Callable[[str], object] = lambda text: click.echo(text, nl=False),
        *,
        has_devices: bool = True,
    ) -> None:
        self._selection = selection
        self._write = write
        self._has_devices = has_devices
        self._has_begun = False
        self._separator = "\n"
        self._shown = 0

    def show(self, rows: Sequence[Row]) -> None:
        """Show a page of devices."""
        if not self._has_begun:
            self._has_begun = True
            devices = ', "devices": [' if self._has_devices else ""
            self._write(f'{{"application": {json.dumps(self._selection.application)}{devices}')
        if not self._has_devices:
            return
        self._shown += len(rows)
        for row in rows:
            separator, self._separator = self._separator, ",\n"
            self._write(separator + json.dumps(_members(row)))

    def end(self, summary: Summary) -> None:
        """Show the numbers, and conflicting gateways."""
        selection, totals = self._selection, summary.totals
        conflicts = [
            {"gateway": conflict.gateway, "devices": conflict.devices, "count": conflict.total}
            for conflict in totals.gateways.conflicts()
        ]
        self._close(
            selection={
                "labels": selection.labels,
                "states": sorted(selection.states),
                "versions": list(selection.versions),
                "stalledAfterSeconds": selection.stalled_after.total_seconds(),
                "shown": self._shown,
            },
            totals=_totals(totals),
            rollout=summary.rollout.to_json() if summary.rollout else None,
            rolloutProblem=summary.rollout_problem or None,
            gatewayConflicts=conflicts,
        )

    def break_off(self, reason: str) -> None:
        """Show the error instead of the totals, if the document has begun."""
        if self._has_begun:
            self._close(error=reason)

    def _close(self, **members: object) -> None:
        end = "\n]" if self._has_devices else ""
        self._write(end + "".join(f', "{name}": {json.dumps(value)}' for name, value in members.items()) + "}\n")


# --- JSON -------------------------------------------------------------------------------------------------------------


def _members(row: Row) -> dict[str, Any]:
    return {
        "device": row.device,
        "state": row.state,
        "reason": row.reason,
        "message": row.message,
        "since": _time(row.since),
        "current": row.current,
        "target": row.target,
        "inSync": row.in_sync,
        "progress": row.progress,
        "held": row.held,
        "heldUntil": _time(row.held_until),
        "attempts": row.attempts,
        "failedVersions": [failed.to_json() for failed in row.failed],
        "lastChange": _time(row.last_change),
        "lastError": row.last_error,
        "reported": _time(row.reported),
        "seen": _time(row.seen),
        "gateways": list(row.gateways),
    }


def _totals(totals: Totals) -> dict[str, Any]:
    reasons = {state.value: dict(found) for state in State if (found := totals.reasons_of(state))}
    versions = {
        version: {"current": totals.current[version], "target": totals.target[version]} for version in totals.versions
    }
    states = {state.value: totals.states[state] for state in State}
    return {"devices": totals.devices, **states, "reasons": reasons, "versions": versions}


def _time(time: datetime | None) -> str | None:
    return timestamp(time) if time else None


# --- Lines ------------------------------------------------------------------------------------------------------------


def _footer(summary: Summary) -> list[str]:
    totals = summary.totals
    states = ", ".join(f"{totals.states[state]} {state}" for state in State)
    lines = [f"{describe_devices(totals.devices)}: {states}"]
    for version in totals.versions:
        targeted = totals.target[version]
        target = f" (target of {targeted})" if targeted else ""
        lines.append(f"{one_line(version) or '-'}: {describe_devices(totals.current[version])}{target}")
    return [*lines, *_rollout_lines(summary.rollout), *describe_warnings(summary)]


def _summary(summary: Summary, selection: Selection) -> list[str]:
    totals = summary.totals
    of = f" with the labels {one_line(selection.labels)}" if selection.labels else ""
    lines = [f"{describe_devices(totals.devices)} of {one_line(selection.application)}{of}"]
    for state in State:
        reasons = totals.reasons_of(state)
        more = ["…"] if len(reasons) > _MOST_REASONS else []
        listed = ", ".join([*(f"{one_line(reason)} {count}" for reason, count in reasons[:_MOST_REASONS]), *more])
        share = describe_percent(100 * totals.states[state] / totals.devices) if totals.devices else "-"
        lines.append(f"{state:<11}  {totals.states[state]:>7}  {share:>7}  {listed}".rstrip())
    for version in totals.versions:
        current, target = totals.current[version], totals.target[version]
        lines.append(f"version {one_line(version) or '-'}: current of {current}, target of {target}")
    return [*lines, *_rollout_lines(summary.rollout), *describe_warnings(summary)]


def _rollout_lines(rollout: RolloutNumbers | None) -> list[str]:
    return [line for line in (describe_stop(rollout), describe_rollout(rollout) if rollout else "") if line]


def _cells(row: Row) -> list[str]:
    cells = (
        row.device,
        row.state,
        row.current or "-",
        row.target or "-",
        "-" if row.progress is None else f"{row.progress:.2f}%",
        str(row.attempts),
        _time(row.since) or "-",
        row.detail or "-",
    )
    return [one_line(cell) for cell in cells]


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        min(max([column.least, *(cell_len(cells[index]) for cells in rows)]), column.most)
        for index, column in enumerate(_COLUMNS)
    ]


def _line(widths: Sequence[int], cells: Sequence[str]) -> str:
    *cells, details = cells
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return _GAP.join((*padded, details))
