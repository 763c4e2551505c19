"""The displays of a fleet while it is read: a table for people, JSON for programs."""

import json
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import click

from fleet_fn.errors import one_line
from fleet_fn.fleet.rows import Row, State, Totals

#: Columns between two cells.
_GAP: Final = "  "
#: Columns of a line without a terminal.
_WIDTH: Final = 200
#: Columns for an error, even in a narrow terminal.
_MIN_ERROR_WIDTH: Final = 20


class Display(Protocol):
    """Takes a fleet page by page, and shows each page at once."""

    def show(self, rows: Sequence[Row]) -> None:
        """Show a page of devices; it may be empty."""

    def end(self, totals: Totals) -> None:
        """Show the totals of all devices."""

    def break_off(self, reason: str) -> None:
        """End before all devices have been shown."""


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as wide as the first page needs, within bounds."""

    title: str
    least: int
    most: int


_COLUMNS: Final = (
    _Column("DEVICE", 12, 40),
    _Column("CURRENT", 8, 20),
    _Column("TARGET", 8, 20),
    _Column("IN SYNC", 7, 7),
    _Column("PROGRESS", 13, 24),
    _Column("ATTEMPTS", 8, 8),
    _Column("LAST CHANGE", 20, 20),
)
_ERROR: Final = "LAST ERROR"
_IN_SYNC: Final = {True: "yes", False: "no", None: "-"}
_STATES: Final = {
    State.IN_SYNC: "in sync",
    State.UPDATING: "updating",
    State.HELD: "held back",
    State.FAILED: "failed",
    State.UNKNOWN: "unknown",
}


class Table:
    """A table, and the totals below it.

    Text from devices or upstreams cannot steer the terminal.
    """

    def __init__(
        self,
        echo: Callable[[str], object] = click.echo,
        above: Callable[[], object] = lambda: None,
        width: int | None = None,
    ) -> None:
        """Print lines with `echo`, after one call of `above`.

        `width` is the width of a line in columns; None asks the terminal.
        """
        self._echo = echo
        self._above = above
        self._width = shutil.get_terminal_size((_WIDTH, 0)).columns if width is None else width
        self._widths: list[int] | None = None

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
            self._echo(self._line(self._widths, [*(column.title for column in _COLUMNS), _ERROR]))
        for each in cells:
            self._echo(self._line(self._widths, each))

    def end(self, totals: Totals) -> None:
        """Show the numbers of devices by state and by version, and conflicting gateways."""
        states = ", ".join(f"{totals.states[state]} {name}" for state, name in _STATES.items())
        self._echo("")
        self._echo(f"{_devices(totals.devices)}: {states}")
        for version in totals.versions:
            current, targeted = totals.current[version], totals.target[version]
            target = f" (target of {targeted})" if targeted else ""
            self._echo(f"{one_line(version) or '-'}: {_devices(current)}{target}")
        for conflict in totals.gateways.conflicts():
            self._echo(one_line(f"warning: {conflict.describe()}"))

    def break_off(self, reason: str) -> None:
        """Show nothing: a table without totals is incomplete.

        The command prints the reason.
        """

    def _line(self, widths: Sequence[int], cells: Sequence[str]) -> str:
        *cells, error = cells
        line = "".join(_pad(cell, width) + _GAP for cell, width in zip(cells, widths, strict=True))
        return (line + _cut(error, max(_MIN_ERROR_WIDTH, self._width - _columns(line)))).rstrip()


class Document:
    """One JSON document, one device a line.

    It is well-formed even if the reading breaks off.
    """

    def __init__(self, application: str, write: Callable[[str], object] = lambda text: click.echo(text, nl=False)):
        self._application = application
        self._write = write
        self._has_begun = False
        self._separator = "\n"

    def show(self, rows: Sequence[Row]) -> None:
        """Show a page of devices."""
        if not self._has_begun:
            self._has_begun = True
            self._write(f'{{"application": {json.dumps(self._application)}, "devices": [')
        for row in rows:
            separator, self._separator = self._separator, ",\n"
            self._write(separator + json.dumps(_members(row)))

    def end(self, totals: Totals) -> None:
        """Show the numbers of devices by state and by version, and conflicting gateways."""
        versions = {
            version: {"current": totals.current[version], "target": totals.target[version]}
            for version in totals.versions
        }
        states = {state.value: totals.states[state] for state in State}
        conflicts = [
            {"gateway": conflict.gateway, "devices": conflict.devices, "count": conflict.total}
            for conflict in totals.gateways.conflicts()
        ]
        counts = {"devices": totals.devices, **states, "versions": versions}
        self._close(totals=counts, gatewayConflicts=conflicts)

    def break_off(self, reason: str) -> None:
        """Show the error instead of the totals, if the document has begun."""
        if self._has_begun:
            self._close(error=reason)

    def _close(self, **members: object) -> None:
        self._write("\n]" + "".join(f', "{name}": {json.dumps(value)}' for name, value in members.items()) + "}\n")


def _members(row: Row) -> dict[str, Any]:
    return {
        "device": row.device,
        "current": row.current,
        "target": row.target,
        "inSync": row.in_sync,
        "progress": row.progress,
        "held": row.held,
        "attempts": row.attempts,
        "lastChange": row.last_change,
        "lastError": row.last_error,
    }


def _cells(row: Row) -> list[str]:
    """Return the cells of a row; a device without a status has dashes only."""
    missing = "-" if row == Row(row.device, gateways=row.gateways) else ""
    cells = (
        row.device,
        row.current or "-",
        row.target or "-",
        _IN_SYNC[row.in_sync],
        _progress(row) or missing,
        str(row.attempts or missing),
        row.last_change or "-",
        row.last_error or missing,
    )
    return [one_line(cell) for cell in cells]


def _progress(row: Row) -> str:
    held = None if row.held is None else f"held: {row.held}"
    percent = None if row.progress is None else f"{row.progress:.2f} %"
    return ", ".join(part for part in (held, percent) if part)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [
        min(max([column.least, *(_columns(cells[index]) for cells in rows)]), column.most)
        for index, column in enumerate(_COLUMNS)
    ]


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _columns(text))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _columns(text: str) -> int:
    """Return a text's columns in a terminal, as well as Unicode's tables tell."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in ("W", "F") for character in text)
    marks = sum(unicodedata.combining(character) > 0 for character in text)
    return len(text) + wide - marks


def _devices(count: int) -> str:
    return f"{count} device" if count == 1 else f"{count} devices"
