"""`fleet`: how far an application's devices are, as the registry has it."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from types import FrameType
from typing import Final

import click

from fleet_fn.cli.fleet_display import Display, Document, Table
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.drogue.listing import list_devices
from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.fleet.rows import State, Totals, read_row
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_drogue
from fleet_fn.settings import Settings, SettingsError

#: Exit codes; the last two are those that shells give to what a signal ended.
_GOOD, _FAILED, _UNREADABLE, _INTERRUPTED, _UNHEARD = 0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGPIPE
#: Seconds: a day.
_LONGEST: Final = 24 * 60 * 60


@click.command("fleet")
@click.option("--application", required=True, metavar="NAME", help="Whose devices.")
@click.option(
    "--labels",
    metavar="SELECTOR",
    help="Only devices with these labels: 'site=oslo,ring in (1, 2),!retired'. site!=oslo and 'site notin (oslo)' "
    "leave out devices without the label site. A comma at the end is an error.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document, with one device a line.")
@click.option("--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.IntRange(1, _LONGEST),
    default=5,
    show_default=True,
    metavar="SECONDS",
    help="Pause of --watch.",
)
def command(application: str, labels: str | None, as_json: bool, watch: bool, interval: int) -> None:
    """Show how far an application's devices are.

    For each device the version that it runs and the one that it should run, how much of that is written, or what it is
    held back for; how often the new version did not come up; when its state last changed, and what went wrong. Below
    that, how many devices are how far, and run which version; and a warning for each gateway that is being updated at
    the same time as devices behind it.

    It is read from the device registry, with DROGUE_API_URL and the credentials that the function has; what the
    function does not report there (REPORT_STATUS=false) is not known.

    Exits with 0; with 1 when a device's update failed, or an error stands in its status; with 2 when that could not be
    read: a setting or an option is wrong, the application is unknown, credentials are refused, the registry is not
    there. With --watch, what counts is the last reading that came to its end.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may hold what an older terminal has no characters for
    url = ""
    try:
        displays = _displays(application, as_json=as_json, watch=watch)
        with closing(make_drogue(Settings.for_drogue(os.environ), SingleFlight())) as upstream:
            url = upstream.origin.url

            def read() -> int:
                return _FAILED if _show(upstream, application, labels, next(displays)) else _GOOD

            code = _watch(read, interval, url) if watch else read()
    except SettingsError as error:
        code = _complain(str(error))
    except UpstreamError as error:
        code = _complain(_with_url(error, url))
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except BrokenPipeError:
        code = _UNHEARD
        _drop_output()
    except OSError as error:  # of what is printed: an upstream's is an UpstreamError
        code = _complain(str(error.strerror))
        _drop_output()
    sys.exit(code)


def print_fleet(upstream: HttpClient, application: str, *, echo: Callable[[str], object] = click.echo) -> bool:
    """Print the table of an application's devices, once, line by line.

    Returns:
        Whether an update failed, or an error stands in a device's status.

    Raises:
        PermanentError: the application is unknown, our credentials are refused, or an answer makes no sense.
        TransientError: the registry is not there.

    """
    return _show(upstream, application, None, Table(echo))


def _show(upstream: HttpClient, application: str, labels: str | None, display: Display) -> bool:
    """Whether any of the devices that are shown has failed."""
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
    """A display for each reading."""
    while as_json:
        yield Document(application)
    while watch and sys.stdout.isatty():
        yield Table(above=click.clear)
    has_shown = False
    while True:
        table = Table(above=click.echo) if has_shown else Table()  # an empty line between two
        yield table
        has_shown = has_shown or table.has_begun


def _watch(read: Callable[[], int], interval: int, url: str) -> int:
    """Read every `interval` seconds until it is interrupted; return what the last reading that succeeded did.

    Raises:
        PermanentError: it makes no sense to try again.

    """
    signal.signal(signal.SIGTERM, _interrupt)
    code = _UNREADABLE
    try:
        while True:
            pause: float = interval
            try:
                code = read()
            except TransientError as error:
                pause = max(interval, error.quiet)
                _complain(f"{_with_url(error, url)}; trying again in {pause:.0f} s")
            time.sleep(pause)
    except KeyboardInterrupt:
        return code


def _with_url(error: UpstreamError, url: str) -> str:
    return f"{error.reason}; DROGUE_API_URL is {url}"


def _complain(reason: str) -> int:
    click.echo(f"fleet: {reason}", err=True)
    return _UNREADABLE


def _drop_output() -> None:
    """Nothing is written any more, nor complained of when Python ends: nobody reads, or there is no room."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
