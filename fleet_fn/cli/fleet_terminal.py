"""The displays of a fleet in a terminal: tables that fit, views that stay."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

import click
from rich.bar import Bar
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from fleet_fn.cli.fleet_view import (
    Selection,
    describe_age,
    describe_rollout,
    describe_stop,
    describe_warnings,
)
from fleet_fn.errors import one_line
from fleet_fn.fleet.attention import Attention
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.survey import Summary
from fleet_fn.fleet.totals import Totals
from fleet_fn.fleet.wording import describe_devices, describe_percent

#: Lines of a cell at most; a cut one ends with an ellipsis. In 80 columns, most errors in `spec.firmware` fit whole.
_MOST_LINES: Final = 3
_MOST_LINES_OF_DETAILS: Final = 5
#: Characters of a text that are looked at: a device may report a longer one.
_MOST_CHARACTERS: Final = 1000
#: A narrower terminal gets fewer columns.
_MIN_WIDTH_OF_ALL: Final = 64
_MIN_WIDTH_OF_AGE: Final = 44
#: Below this height, numbers leave room for devices.
_MIN_HEIGHT_OF_ALL: Final = 40
#: Rows that a view keeps; no terminal has more lines.
_MOST_KEPT: Final = 300
#: Versions and reasons in a summary.
_MOST_VERSIONS: Final = 8
_BRIEF_VERSIONS: Final = 3
_MOST_REASONS: Final = 2
_BAR_WIDTH: Final = 16
#: Lines for devices at least, if there are any: a header, a device, and how many more there are.
_MIN_ROWS: Final = 3
#: Lines for devices in the view that stays when --watch ends.
_LAST_ROWS: Final = 12
#: Time before progress is shown, and between two drawings.
_PATIENCE_SECONDS: Final = 1.0
_DRAW_SECONDS: Final = 0.25
_COLORS: Final = {
    State.FAILED: "bright_red",
    State.ROLLED_BACK: "red",
    State.STALLED: "magenta",
    State.HELD: "yellow",
    State.UPDATING: "cyan",
    State.IN_SYNC: "green",
    State.UNKNOWN: "bright_black",
}
_STYLES: Final = {**_COLORS, State.FAILED: "bold bright_red"}


class Columns:
    """The columns of a table of devices.

    They are as wide as its first rows need, within the terminal's width.
    """

    def __init__(self, width: int, rows: Sequence[Row], *, is_brief: bool = False) -> None:
        self._width = width
        self._most_lines = 1 if is_brief else _MOST_LINES
        self._most_lines_of_details = 1 if is_brief else _MOST_LINES_OF_DETAILS
        self._has_version, self._has_age = width >= _MIN_WIDTH_OF_ALL, width >= _MIN_WIDTH_OF_AGE
        names = [cell_len(_clean(row.device)) for row in rows]
        versions = [cell_len(_version(row)) for row in rows]
        self._version = min(max([7, *versions]), max(width // 4, 13)) if self._has_version else 0
        self._device = min(max([6, *names]), max(width * 3 // 10, 7))
        fixed = 11 + sum(2 + each for each in (self._version, 4 if self._has_age else 0) if each)
        self._details = max(width - self._device - 2 - fixed - 2, 6)

    def table(self, rows: Iterable[Row], now: datetime, *, has_header: bool) -> Table:
        """Return a table of devices."""
        table = Table(box=None, show_header=has_header, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("DEVICE", width=self._device)
        table.add_column("STATE", width=11)
        if self._has_version:
            table.add_column("VERSION", width=self._version)
        if self._has_age:
            table.add_column("FOR", width=4, justify="right")
        table.add_column("DETAILS", width=self._details)
        for row in rows:
            table.add_row(*self._cells(row, now))
        return table

    def _cells(self, row: Row, now: datetime) -> list[Text]:
        style = _STYLES[row.state]
        name = _elide_middle(_clean(row.device), self._most_lines * self._device)
        cells = [self._fit(name, self._device, self._most_lines), Text(row.state, style)]
        if self._has_version:
            cells.append(self._fit(_version(row), self._version, self._most_lines))
        if self._has_age:
            cells.append(Text(describe_age(row.since, now), "dim"))
        # The version stands beside it.
        details = row.detail.removeprefix(f"{row.target} ")
        return [*cells, self._fit(details, self._details, self._most_lines_of_details)]

    def _fit(self, text: str, width: int, most: int) -> Text:
        """Return a text in `most` lines of `width` columns, with an ellipsis for the rest."""
        cleaned = _clean(text)
        if cell_len(cleaned) <= width:
            return Text(cleaned)
        lines = [line.plain.rstrip() for line in Text(cleaned).wrap(_MEASURE, width)]
        if len(lines) > most:
            rest = " ".join(lines[most - 1 :])
            lines = [*lines[: most - 1], _elide(rest, width)]
        return Text("\n".join(lines))


#: Wraps texts; prints nothing.
_MEASURE: Final = Console(width=80, quiet=True)


class TerminalTable:
    """A table of devices that fits the terminal, and the numbers below.

    Text from devices or upstreams cannot steer the terminal.
    """

    def __init__(
        self,
        selection: Selection,
        echo: Callable[[str], object] = click.echo,
        *,
        now: datetime | None = None,
        console: Console | None = None,
    ) -> None:
        """Print with `echo`; None asks the clock and makes the console."""
        self._selection = selection
        self._echo = echo
        self._now = now or datetime.now(UTC)
        self._console = console or make_console()
        self._columns: Columns | None = None
        self._shown = 0

    def show(self, rows: Sequence[Row]) -> None:
        """Show a page of devices; the first page with any sets the widths of the columns."""
        if not rows:
            return
        has_header = self._columns is None
        if self._columns is None:
            self._columns = Columns(self._console.width, rows)
        self._print(self._columns.table(rows, self._now, has_header=has_header))
        self._shown += len(rows)

    def end(self, summary: Summary) -> None:
        """Show the numbers, and warnings."""
        lines = (
            [] if self._selection.shows_all else [f"{self._shown} of {describe_devices(summary.totals.devices)} shown"]
        )
        self._print(Text())
        for line in lines:
            self._print(Text(line))
        self._print(summary_of(summary, self._selection, self._console.width, brief=True))

    def break_off(self, reason: str) -> None:
        """Show nothing: a table without numbers is incomplete.

        The command prints the reason.
        """

    def _print(self, what: RenderableType) -> None:
        self._echo(render(self._console, what))


class TerminalSummary:
    """The numbers of a fleet in a terminal."""

    def __init__(
        self,
        selection: Selection,
        echo: Callable[[str], object] = click.echo,
        *,
        console: Console | None = None,
    ) -> None:
        """Print with `echo`; None makes the console."""
        self._selection = selection
        self._echo = echo
        self._console = console or make_console()

    def show(self, rows: Sequence[Row]) -> None:
        """Show no device."""

    def end(self, summary: Summary) -> None:
        """Show the numbers."""
        self._echo(render(self._console, summary_of(summary, self._selection, self._console.width)))

    def break_off(self, reason: str) -> None:
        """Show nothing; the command prints the reason."""


class Top:
    """The first lines of something; all of them without a number."""

    def __init__(self, what: RenderableType, most: int | None) -> None:
        self._what = what
        self._most = most

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines, as rich asks for them."""
        for line in console.render_lines(self._what, options, pad=False)[: self._most]:
            yield from line
            yield Segment.line()


class Screen:
    """A view that is redrawn in place: numbers, and devices that need attention."""

    def __init__(self, selection: Selection, live: Live) -> None:
        """Draw with `live`, whose console is a terminal."""
        self._selection = selection
        self._live = live
        self._attention = Attention(_MOST_KEPT)
        #: Number of devices of the last reading.
        self._known = 0
        self._next_draw = 0.0
        self._summary: Summary | None = None
        self._shown: list[Row] = []
        self._more = 0
        self._now = datetime.now(UTC)
        self._note = ""

    def show(self, rows: Sequence[Row]) -> None:
        """Take a page of devices."""
        self._attention.add(row for row in rows if self._selection.shows_in_watch(row))

    def count(self, devices: int) -> None:
        """Show how many devices have been read."""
        if time.monotonic() < self._next_draw:
            return
        self._next_draw = time.monotonic() + _DRAW_SECONDS
        share = f" of {self._known}" if self._known > devices else ""
        self._draw(f"reading… {devices}{share}")

    def end(self, summary: Summary) -> None:
        """Show the numbers of a complete reading, and the devices that need attention."""
        self._summary, self._now = summary, datetime.now(UTC)
        self._known = summary.totals.devices
        self._shown, self._more = self._attention.rows, self._attention.count
        self._attention = Attention(_MOST_KEPT)
        self._note = ""

    def break_off(self, reason: str) -> None:  # noqa: ARG002 - `complain` gets more
        """Keep the last complete reading on the screen."""
        self._attention = Attention(_MOST_KEPT)

    def complain(self, reason: str) -> None:
        """Show why the last reading failed."""
        self._note = reason

    def wait(self, seconds: float) -> None:
        """Wait, and show for how long; a terminal of another size is filled anew."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._draw(f"next reading in {left:.0f} s" if left >= 0.5 else "reading…")
            time.sleep(min(left, 1.0))

    def last(self) -> RenderableType | None:
        """Return the last complete reading; None if there is none."""
        return self._view("", None) if self._summary else None

    def _draw(self, activity: str) -> None:
        self._live.update(self._view(activity, self._live.console.height), refresh=True)

    def _view(self, activity: str, height: int | None) -> RenderableType:
        console = self._live.console
        parts: list[RenderableType] = []
        if self._summary:
            brief = height is not None and height < _MIN_HEIGHT_OF_ALL
            parts += [summary_of(self._summary, self._selection, console.width, brief=brief), Text()]
        footer = Group(
            *([Text(one_line(self._note), "bold red", overflow="ellipsis", no_wrap=True)] if self._note else []),
            *(
                [
                    Text(
                        f"{self._now.astimezone():%H:%M:%S}  {activity}; Ctrl-C ends",
                        "dim",
                        overflow="ellipsis",
                        no_wrap=True,
                    )
                ]
                if activity
                else []
            ),
        )
        used = len(console.render_lines(Group(*parts, footer), pad=False))
        room = _LAST_ROWS if height is None else max(height - used - 2, 0)
        if self._shown and room >= _MIN_ROWS:
            parts += [self._devices(room), Text()]
        return Group(Top(Group(*parts), None if height is None else max(height - 3, 0)), footer)

    def _devices(self, room: int) -> RenderableType:
        """Return the devices that fit in so many lines, below a header."""
        most = room - 1 if self._more <= room - 1 else room - 2
        rows = self._shown[:most]
        table = Columns(self._live.console.width, rows, is_brief=True).table(rows, self._now, has_header=True)
        left = self._more - len(rows)
        return Group(table, Text(f"and {left:,} more", "dim")) if left else table


def make_console() -> Console:
    """Return a console for stdout that interprets nothing in the texts that it prints."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=False)


def render(console: Console, what: RenderableType) -> str:
    """Return the characters that show something in the terminal."""
    with console.capture() as captured:
        console.print(what)
    return "\n".join(line.rstrip(" ") for line in captured.get().removesuffix("\n").split("\n"))


@contextmanager
def reading_progress() -> Iterator[Callable[[int], None]]:
    """Show on stderr, a terminal, the progress of a reading that takes a while.

    Yield a function that takes the number. Nothing stays of what it shows.
    """
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("reading devices"), BarColumn(), TextColumn("{task.completed:,.0f}"))
    progress = Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = progress.add_task("", total=None)
    next_draw = time.monotonic() + _PATIENCE_SECONDS

    def show(devices: int) -> None:
        nonlocal next_draw
        if time.monotonic() >= next_draw:
            next_draw = time.monotonic() + _DRAW_SECONDS
            progress.start()
            progress.update(task, completed=devices, refresh=True)

    try:
        yield show
    finally:
        progress.stop()


# --- The summary ------------------------------------------------------------------------------------------------------


def summary_of(summary: Summary, selection: Selection, width: int, *, brief: bool = False) -> RenderableType:
    """Return the numbers of a fleet: by state, by version, and of the rollout.

    Args:
        summary: the numbers.
        selection: the devices that they are about.
        width: columns of the terminal.
        brief: leave out states without devices, and versions but the most frequent.

    """
    totals = summary.totals
    noun = "device" if totals.devices == 1 else "devices"
    of = f" with the labels {_clean(selection.labels)}" if selection.labels else ""
    parts: list[RenderableType] = [
        Text(f"{totals.devices:,} {noun} of {_clean(selection.application)}{of}", "bold"),
        Text(),
        _states(totals, width, brief=brief),
        Text(),
        _versions(totals, width, _BRIEF_VERSIONS if brief else _MOST_VERSIONS),
    ]
    if summary.rollout:
        stop = [Text(describe_stop(summary.rollout), "bold yellow")] if summary.rollout.stop else []
        parts += [Text(), *stop, Text(describe_rollout(summary.rollout))]
    parts += [Text(warning, "yellow") for warning in describe_warnings(summary)]
    return Group(*parts)


def _states(totals: Totals, width: int, *, brief: bool) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    bar = _BAR_WIDTH if width >= _MIN_WIDTH_OF_ALL else 0
    number = max(len(f"{totals.devices:,}"), 3)
    for columns in (11, number, 8, *([bar] if bar else [])):
        table.add_column(width=columns, justify="right" if columns in (number, 8) else "left")
    fixed = 11 + number + 8 + bar + 2 * (4 if bar else 3)
    table.add_column(width=max(width - fixed, 8), no_wrap=True, overflow="ellipsis")
    for state in State:
        count, style = totals.states[state], _STYLES[state]
        if brief and not count:
            continue
        share = 100 * count / totals.devices if totals.devices else 0.0
        table.add_row(
            Text(state, style if count else "dim"),
            Text(f"{count:,}", "" if count else "dim"),
            Text(describe_percent(share) if count else ""),
            *([Bar(100, 0, max(share, 1.0) if count else 0, width=bar, color=_COLORS[state])] if bar else []),
            Text(_reasons(totals, state)),
        )
    return table


def _reasons(totals: Totals, state: State) -> str:
    reasons = totals.reasons_of(state)
    listed = [f"{_clean(reason)} {count:,}" for reason, count in reasons[:_MOST_REASONS]]
    return ", ".join([*listed, *(["…"] if len(reasons) > _MOST_REASONS else [])])


def _versions(totals: Totals, width: int, most: int) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("version", max_width=max(width // 2, 10), no_wrap=True, overflow="ellipsis")
    table.add_column("run it", justify="right")
    table.add_column("should run it", justify="right")
    versions = sorted(totals.versions, key=lambda version: -(totals.current[version] + totals.target[version]))
    chosen = set(versions[:most])
    for version in (version for version in totals.versions if version in chosen):
        table.add_row(Text(_clean(version)), f"{totals.current[version]:,}", f"{totals.target[version]:,}")
    if more := len(versions) - len(chosen):
        table.add_row(Text(f"and {more:,} more", "dim"), "", "")
    return table


# --- Texts ------------------------------------------------------------------------------------------------------------


def _version(row: Row) -> str:
    """Return the version that a device runs, and the one that it should run."""
    current, target = _clean(row.current or ""), _clean(row.target or "")
    if row.in_sync or current == target or not target:
        return current
    return f"{current or '?'} → {target}"


def _clean(text: str) -> str:
    return one_line(text[:_MOST_CHARACTERS])


def _elide(text: str, width: int) -> str:
    """Return a text in `width` columns, with an ellipsis for the rest."""
    cut = Text(text)
    cut.truncate(width, overflow="ellipsis")
    return cut.plain


def _elide_middle(text: str, width: int) -> str:
    """Return a name in `width` columns; names of many devices differ at their ends."""
    if cell_len(text) <= width:
        return text
    left = (width - 1) // 2
    end = text[-(width - 1 - left) :]
    while cell_len(end) > width - 1 - left:  # wide characters
        end = end[1:]
    return f"{set_cell_size(text, left)}…{end}"
