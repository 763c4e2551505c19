"""`fleet`: show the state of an application's devices from the device registry."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Final

import click

from fleet_fn.cli.cures import cure_of_drogue
from fleet_fn.cli.fleet_display import Display, Document, Table
from fleet_fn.cli.signals import end_on_sigterm
from fleet_fn.drogue.listing import list_devices
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.fleet.rows import State, Totals, read_row
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_drogue
from fleet_fn.settings import Settings, SettingsError

#: Exit codes. The last two are a shell's codes for a process that SIGINT or SIGPIPE ended.
_GOOD, _FAILED, _UNREADABLE, _INTERRUPTED, _BROKEN_PIPE = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE
#: A day.
_MAX_INTERVAL_SECONDS: Final = 24 * 60 * 60


@click.command("fleet")
@click.option("--application", required=True, metavar="NAME", help="The application.")
@click.option(
    "--labels",
    metavar="SELECTOR",
    help="Show only devices with these labels: 'site=oslo,ring in (1, 2),!retired'. Neither site!=oslo nor "
    "'site notin (oslo)' selects devices without the label site. A comma at the end is an error.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, one device a line.")
@click.option("--watch", is_flag=True, help="Read and print again until Ctrl-C.")
@click.option(
    "--interval",
    type=click.IntRange(1, _MAX_INTERVAL_SECONDS),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two readings of --watch.",
)
def command(application: str, labels: str | None, as_json: bool, watch: bool, interval: int) -> None:
    """Show the state of an application's devices.

    The table has a row for each device: the running version and the target; the progress, or why it is held back; how
    often the target did not come up; the time of the last change; the last error. Below are the numbers of devices by
    state and by version. A warning names each gateway that is being updated at the same time as devices behind it.

    The state comes from the device registry, through DROGUE_API_URL and the function's credentials. With
    REPORT_STATUS=false, the function reports no state.

    \b
    Exits with 0 if no device has failed,
      1 if a device's update failed or its status has an error,
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
    try:
        displays = _displays(application, as_json=as_json, watch=watch)
        with closing(make_drogue(settings)) as upstream:

            def read() -> int:
                return _FAILED if _show(upstream, application, labels, next(displays)) else _GOOD

            code = _watch(read, interval, settings) if watch else read()
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
    """Print the table of devices once, line by line; return whether any has failed.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer makes no sense.
        TransientError: the device registry does not answer.

    """
    return _show(upstream, application, None, Table(echo))


def _show(upstream: HttpClient, application: str, labels: str | None, display: Display) -> bool:
    """Read all devices and show them; return whether any of them has failed."""
    totals = Totals()
    try:
        for devices in list_devices(upstream, application, labels):
            rows = [read_row(device) for device in devices]
            display.show(rows)
            totals.add(rows)
    except UpstreamError as error:
        display.break_off(error.reason)
        raise
    except KeyboardInterrupt:
        display.break_off("interrupted")
        raise
    display.end(totals)
    return totals.states[State.FAILED] > 0


def _displays(application: str, *, as_json: bool, watch: bool) -> Iterator[Display]:
    """Yield a display for each reading."""
    while as_json:
        yield Document(application)
    while watch and sys.stdout.isatty():
        yield Table(above=click.clear)
    has_shown = False
    while True:
        table = Table(above=click.echo) if has_shown else Table()  # an empty line between two tables
        yield table
        has_shown = has_shown or table.has_begun


def _watch(read: Callable[[], int], interval: int, settings: Settings) -> int:
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
                code = read()
            except TransientError as error:
                pause = max(interval, error.negative_ttl)
                _complain(f"{_with_cure(error, settings)}; trying again in {pause:.0f} s")
            time.sleep(pause)
    except KeyboardInterrupt:
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
