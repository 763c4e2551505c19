"""How `build` shows runs."""

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import click

from fleet_fn.builds.run import Run, State
from fleet_fn.cli.fleet_view import describe_age
from fleet_fn.errors import one_line

_HEADER: Final = ("RUN", "STATE", "AGE", "TOOK", "FOR", "REVISION", "DETAILS")
#: Characters of a commit's id that are shown.
_COMMIT_CHARACTERS: Final = 12
_COLORS: Final = {
    State.PENDING: "bright_black",
    State.RUNNING: "cyan",
    State.SUCCEEDED: "green",
    State.FAILED: "bright_red",
    State.CANCELLED: "yellow",
    State.TIMED_OUT: "red",
}


def print_runs(runs: Sequence[Run], now: datetime) -> None:
    """Print a table of runs.

    In a terminal it fits the width; through a pipe each run has one line.
    """
    rows = [_row(run, now) for run in runs]
    if sys.stdout.isatty():
        _print_table(runs, rows)
        return
    widths = [max(len(row[column]) for row in [_HEADER, *rows]) for column in range(len(_HEADER) - 1)]
    for row in [_HEADER, *rows]:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def _print_table(runs: Sequence[Run], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from fleet_fn.cli.fleet_terminal import make_console, render

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in _HEADER:
        table.add_column(column, overflow="fold", no_wrap=column in ("RUN", "STATE", "AGE", "TOOK"))
    for run, row in zip(runs, rows, strict=True):
        table.add_row(row[0], Text(row[1], _COLORS[run.state]), *map(Text, row[2:]))
    click.echo(render(make_console(), table))


def _row(run: Run, now: datetime) -> tuple[str, ...]:
    whom = "/".join(filter(None, (run.application, run.device)))
    cells = (
        run.name,
        run.state,
        describe_age(run.created, now),
        describe_time(run.duration(now)),
        whom or "-",
        run.revision[:_COMMIT_CHARACTERS] or "-",
        _details(run),
    )
    return tuple(one_line(cell) for cell in cells)


def _details(run: Run) -> str:
    """Return what came of a run: the firmware, or why there is none."""
    if run.state is State.SUCCEEDED:
        return run.image
    if run.state is State.RUNNING:
        return " ".join(filter(None, (run.task, run.image)))
    return ": ".join(filter(None, (run.reason, run.message)))


def describe_time(time: timedelta | None) -> str:
    """Return how long something took, such as 1m02s; `-` if it has not begun."""
    if time is None:
        return "-"
    minutes, seconds = divmod(int(time.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def describe_progress(run: Run) -> str:
    """Return how far a run is, in a line without the time that it took."""
    said = run.message if run.state is not State.SUCCEEDED else ""
    return one_line("  ".join(filter(None, (run.state, run.task, said))))


def print_end(run: Run, place: str, now: datetime) -> None:
    """Print what came of a run, a line for each fact; where to read on if it failed.

    `place` are the options of kubectl that name the namespace.
    """
    facts = {
        "run": run.name,
        "state": run.state,
        "took": describe_time(run.duration(now)),
        "revision": run.revision,
        "version": run.version,
        "firmware": run.image if run.state is State.SUCCEEDED else "",
        "reason": "" if run.state is State.SUCCEEDED else _details(run),
    }
    for name, value in facts.items():
        if value:
            click.echo(f"{name:<8}  {one_line(value)}")
    if run.state in (State.FAILED, State.TIMED_OUT) and run.task:
        labels = f"tekton.dev/pipelineRun={run.name},tekton.dev/pipelineTask={run.task}"
        click.echo(f"log       kubectl logs {place} -l {labels} --all-containers --tail=-1")
