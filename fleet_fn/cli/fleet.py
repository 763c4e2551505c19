"""`fleet`: show the state of an application's devices from the device registry."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import click

from fleet_fn.cli.fleet_display import Document, Lines, SummaryLines
from fleet_fn.cli.fleet_view import Display, Selection
from fleet_fn.cli.signals import end_on_sigterm
from fleet_fn.drogue.spec_values import MalformedSpecError, read_time
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.fleet.cures import cure_of_drogue
from fleet_fn.fleet.states import State
from fleet_fn.fleet.survey import Survey
from fleet_fn.http.client import HttpClient
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.upstreams import make_drogue

#: Exit codes. The last two are a shell's codes for a process that SIGINT or SIGPIPE ended.
_GOOD, _ATTENTION, _UNREADABLE, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE
#: Shows how many devices were read, while it is entered.
Progress = AbstractContextManager[Callable[[int], None]]
_NO_PROGRESS: Final[Progress] = nullcontext(lambda _: None)
#: Devices that each reading of --watch shows without a terminal.
_MOST_WATCHED: Final = 20
#: A day.
_MAX_INTERVAL_SECONDS: Final = 24 * 60 * 60


class _Duration(click.ParamType[timedelta]):
    """A time such as `30m`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the time; a malformed one is a usage error."""
        if isinstance(value, timedelta):
            return value
        try:
            duration = read_time(value, "it")
        except MalformedSpecError as error:
            self.fail(error.reason, param, ctx)
        if not duration:
            self.fail(f"it is {value}; it must be above 0", param, ctx)
        return duration


@click.command("fleet")
@click.option("--application", required=True, metavar="NAME", help="The application.")
@click.option(
    "--labels",
    metavar="SELECTOR",
    help="Read only devices with these labels: 'site=oslo,ring in (1, 2),!retired'. Neither site!=oslo nor "
    "'site notin (oslo)' selects devices without the label site. A comma at the end is an error.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Show only devices in this state; may be repeated.",
)
@click.option(
    "--version",
    "versions",
    multiple=True,
    metavar="VERSION",
    help="Show only devices that run or should run this version; may be repeated.",
)
@click.option("--summary", is_flag=True, help="Show no devices, only numbers: by state, by version, of the rollout.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, one device a line.")
@click.option(
    "--stalled-after",
    type=_Duration(),
    default="1h",
    show_default=True,
    metavar="TIME",
    help="Silence after which an update counts as stalled: 90s, 30m, 2h, 1d.",
)
@click.option("--watch", is_flag=True, help="Read again until Ctrl-C; show numbers, and devices that need attention.")
@click.option(
    "--interval",
    type=click.IntRange(1, _MAX_INTERVAL_SECONDS),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two readings of --watch.",
)
def command(
    application: str,
    labels: str | None,
    states: tuple[str, ...],
    versions: tuple[str, ...],
    summary: bool,
    as_json: bool,
    stalled_after: timedelta,
    watch: bool,
    interval: int,
) -> None:
    """Show the state of an application's devices.

    The table has a row for each device: its state and since when, the running version and the target, and the reason.
    The states are failed, rolled-back, stalled, held, updating, in-sync, and unknown. Below are the numbers of devices
    by state and by version, and those of the rollout. A warning names each gateway that is being updated at the same
    time as devices behind it.

    In a terminal the table fits its width, and cuts long texts. Through a pipe each device has one line with all of
    its texts. --json has everything.

    The numbers and the exit code are about all devices of the application, or all that --labels selects. --state and
    --version select the devices that are shown.

    The state comes from the device registry, through DROGUE_API_URL and the function's credentials. With
    REPORT_STATUS=false, the function reports no state.

    \b
    Exits with 0 if no device has failed, rolled back or stalled,
      1 if any device has,
      2 if the devices cannot be read: a wrong setting or option, an unknown
        application, refused credentials, or no answer.
    With --watch, the last complete reading counts.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack characters of a name
    try:
        settings = Settings.for_drogue(os.environ)
    except SettingsError as error:
        sys.exit(_complain(str(error)))
    selection = Selection(application, labels, frozenset(map(State, states)), versions, stalled_after)
    try:
        with closing(make_drogue(settings)) as upstream:
            reader = _Reader(upstream, selection, settings)
            if watch and not as_json and _is_terminal():
                code = _watch_on_screen(reader, interval)
            elif watch:
                code = _watch(reader, _watched(selection, as_json=as_json, summary=summary), interval)
            else:
                code = reader.read(_display(selection, as_json=as_json, summary=summary))
    except UpstreamError as error:
        code = _complain(_with_cure(error, settings, labels))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _BROKEN_PIPE
        _drop_output()
    except OSError as error:  # from printing: an upstream's failure is an UpstreamError
        code = _complain(str(error.strerror))
        _drop_output()
    sys.exit(code)


def print_fleet(upstream: HttpClient, application: str, *, echo: Callable[[str], object] = click.echo) -> bool:
    """Print the table of devices once; return whether any needs attention.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer makes no sense.
        TransientError: the device registry does not answer.

    """
    selection = Selection(application)
    display = _display(selection, echo=echo)
    return _read(Survey(upstream, application), selection, display) != _GOOD


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the fleet, once or again and again."""

    upstream: HttpClient
    selection: Selection
    settings: Settings

    def survey(self) -> Survey:
        selection = self.selection
        return Survey(self.upstream, selection.application, selection.labels, stalled_after=selection.stalled_after)

    def read(self, display: Display) -> int:
        """Read all devices and show them; return the exit code."""
        return _read(self.survey(), self.selection, display, _progress(display))

    def describe(self, error: UpstreamError) -> str:
        return _with_cure(error, self.settings)


def _read(survey: Survey, selection: Selection, display: Display, progress: Progress = _NO_PROGRESS) -> int:
    try:
        with progress as show_progress:
            for rows in survey.pages():
                display.show([row for row in rows if selection.shows(row)])
                show_progress(survey.totals.devices)
    except UpstreamError as error:
        display.break_off(error.reason)
        raise
    except KeyboardInterrupt:
        display.break_off("interrupted")
        raise
    display.end(survey.summary())
    return _ATTENTION if survey.totals.needs_attention else _GOOD


# --- Displays ---------------------------------------------------------------------------------------------------------


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _display(
    selection: Selection,
    echo: Callable[[str], object] = click.echo,
    *,
    as_json: bool = False,
    summary: bool = False,
) -> Display:
    """Return the display of a single reading."""
    if as_json:
        return Document(selection, has_devices=not summary)
    if not _is_terminal():
        return SummaryLines(selection, echo) if summary else Lines(selection, echo)
    from fleet_fn.cli.fleet_terminal import TerminalSummary, TerminalTable

    return TerminalSummary(selection, echo) if summary else TerminalTable(selection, echo)


def _progress(display: Display) -> Progress:
    """Return what shows the progress of a reading in the terminal, if there is one."""
    if not sys.stderr.isatty():
        return _NO_PROGRESS
    from fleet_fn.cli.fleet_terminal import TerminalTable, reading_progress

    if isinstance(display, TerminalTable):  # its rows show the progress
        return _NO_PROGRESS
    return reading_progress()


def _watched(selection: Selection, *, as_json: bool, summary: bool) -> Iterator[Display]:
    """Yield a display for each reading of --watch without a terminal."""
    while as_json:
        yield Document(selection, has_devices=not summary)
    has_shown = False
    while True:
        above: Callable[[], object] = click.echo if has_shown else lambda: None  # an empty line between two
        display = SummaryLines(selection, above=above, most_rows=0 if summary else _MOST_WATCHED)
        yield display
        has_shown = has_shown or display.has_begun


# --- Watching ---------------------------------------------------------------------------------------------------------


def _watch(reader: _Reader, displays: Iterator[Display], interval: int) -> int:
    """Read every `interval` seconds until a signal comes.

    Return the exit code of the last complete reading.

    Raises:
        PermanentError: another try would fail too.

    """
    end_on_sigterm()
    code = _UNREADABLE
    try:
        while True:
            pause: float = interval
            try:
                code = reader.read(next(displays))
            except TransientError as error:
                pause = max(interval, error.negative_ttl)
                _complain(f"{reader.describe(error)}; trying again in {pause:.0f} s")
            time.sleep(pause)
    except KeyboardInterrupt:
        return code


def _watch_on_screen(reader: _Reader, interval: int) -> int:
    """Do the same in a terminal.

    Its other contents come back at the end, with the last reading below.

    Raises:
        PermanentError: another try would fail too.

    """
    from rich.live import Live

    from fleet_fn.cli.fleet_terminal import Screen, make_console, render

    end_on_sigterm()
    code, console = _UNREADABLE, make_console()
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        screen = Screen(reader.selection, live)
        try:
            while True:
                pause: float = interval
                try:
                    code = _read(reader.survey(), reader.selection, screen, nullcontext(screen.count))
                except TransientError as error:
                    pause = max(interval, error.negative_ttl)
                    screen.complain(reader.describe(error))
                screen.wait(pause)
        except KeyboardInterrupt:
            pass
    if last := screen.last():
        click.echo(render(console, last))
    return code


def _with_cure(error: UpstreamError, settings: Settings, labels: str | None = None) -> str:
    of_labels = f"; check --labels {labels!r}" if labels and "answered 400 for the devices" in error.reason else ""
    return f"{error.reason}{cure_of_drogue(error.reason, settings)}{of_labels}"


def _complain(reason: str) -> int:
    click.echo(f"fleet: {reason}", err=True)
    return _UNREADABLE


def _drop_output() -> None:
    """Discard further output: stdout's reader is gone, or its disk is full.

    Otherwise Python would complain at its end.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
