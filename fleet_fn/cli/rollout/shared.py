"""Parts that the rollout commands share: options, session, ends of failures."""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click

from fleet_fn.cli.failures import FAILED, WRONG_USAGE, describe_os_error, fail
from fleet_fn.drogue.spec_source import Source
from fleet_fn.errors import UpstreamError, one_line
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.fleet.cures import cure_of_drogue
from fleet_fn.fleet.rollout.actions import Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.plans import Plan
from fleet_fn.fleet.rollout.session import Change, RolloutSession
from fleet_fn.fleet.rollout.target import FirmwareFinder, find_target, open_finder
from fleet_fn.fleet.rollout.user import user_of
from fleet_fn.settings import Settings, SettingsError
from fleet_fn.upstreams import make_drogue, make_sink

F = TypeVar("F", bound=Callable[..., Any])

#: A shell's code for a process that SIGINT ended.
_INTERRUPTED: Final = 128 + signal.SIGINT

application_option = click.option("--application", required=True, metavar="NAME", help="The application.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Print what would change, and write nothing.")


def change_options(command: F) -> F:
    """Add the options of each command that changes the application."""
    return application_option(dry_run_option(command))


@dataclass(frozen=True, slots=True)
class Operation:
    """A rollout command while it runs."""

    settings: Settings
    session: RolloutSession

    def open_finder(self) -> AbstractContextManager[FirmwareFinder]:
        """Open the finder of firmware in images (a context manager).

        Raises:
            RefusedError: FIRMWARE_REGISTRY is not set.

        """
        if not self.settings.has_images:
            raise RefusedError("FIRMWARE_REGISTRY is not set. Set it as the function has it, e.g. ghcr.io/acme/")
        return self._open_finder()

    def _open_finder(self) -> AbstractContextManager[FirmwareFinder]:
        return open_finder(self.settings, self.session.name)

    def find_target(self, application: Application, *, strictly: bool = False) -> Target:
        """Return the application's firmware; warn if it may be another. See `find_target`."""
        if not self.settings.finds_firmware:
            return find_target(application, None).target
        with self._open_finder() as finder:
            found = find_target(application, finder, strictly=strictly)
        if found.problem:
            warn(f"{found.problem}; going by the recorded version, {found.target.version}")
        return found.target

    def find_version(self, source: Source | None) -> str:
        """Return the version that a source names; see `FirmwareFinder.target`."""
        with self._open_finder() as finder:
            return finder.target(source).version

    def carry_out(self, plan: Plan) -> Change:
        """Make a change; print it and its effect, or that there is nothing to change."""
        change = self.session.change(plan.action, plan.make)
        if not change.is_made:
            click.echo(one_line(plan.nothing))
            return change
        print_diff(change)
        click.echo()
        click.echo(one_line(plan.effect(Application.read(change.after))))
        if change.sink_problem:
            warn(f"the change is made, but no event of it was sent: {change.sink_problem}")
        if self.session.dry_run:
            click.echo("--dry-run: nothing was written")
        return change


@contextmanager
def operate(name: str, application: str, *, dry_run: bool = False, failure: int = FAILED) -> Iterator[Operation]:
    """Yield the operation of a command, and end the process if it fails.

    Args:
        name: the command's name.
        application: the application's name.
        dry_run: write nothing.
        failure: exit code of a failure.

    """
    command = f"rollout {name}"
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack characters of a name
    try:
        settings = Settings.for_operator(os.environ)
    except SettingsError as error:
        fail(command, str(error), WRONG_USAGE)
    sink = make_sink(settings)
    try:
        with closing(make_drogue(settings)) as upstream:
            session = RolloutSession(
                upstream,
                application,
                user_of(settings),
                anonymous=settings.is_anonymous,
                dry_run=dry_run,
                sink=sink,
            )
            yield Operation(settings, session)
    except UpstreamError as error:
        fail(command, f"{error.reason}{cure_of_drogue(error.reason, settings)}", failure)
    except NotReadyError as error:
        fail(command, error.reason, failure)
    except BrokenPipeError:  # click ends quietly then
        raise
    except OSError as error:
        fail(command, describe_os_error(error), failure)
    except KeyboardInterrupt:
        fail(command, "interrupted", _INTERRUPTED)
    finally:
        if sink:
            sink.close()


@contextmanager
def reading() -> Iterator[Callable[[int], object]]:
    """Show the progress of a reading of devices, if stderr is a terminal.

    Yield a function that takes the number of devices so far.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from fleet_fn.cli.fleet_terminal import reading_progress

    with reading_progress() as show:
        yield show


def print_diff(change: Change) -> None:
    """Print a difference, with colors in a terminal unless NO_COLOR is set."""
    colors = {} if os.environ.get("NO_COLOR") else {"+": "green", "-": "red", "@": "cyan"}
    for line in change.diff():
        click.secho(one_line(line), fg=colors.get(line[:1]))


def warn(text: str) -> None:
    """Print a warning to stderr."""
    click.echo(one_line(f"warning: {text}"), err=True)
