"""`rollout advance`: move a rollout to its next stage, if it may."""

import time
from functools import partial
from typing import Final

import click

from fleet_fn.cli.failures import FAILED, WRONG_USAGE
from fleet_fn.cli.rollout.shared import Operation, change_options, operate, print_diff, reading, warn
from fleet_fn.cli.signals import end_on_sigterm
from fleet_fn.errors import TransientError, one_line
from fleet_fn.fleet.cures import cure_of_drogue
from fleet_fn.fleet.rollout.advancing import Pass, advance_once
from fleet_fn.fleet.rollout.progress import TROUBLED, Standing

_GOOD: Final = 0
#: A day.
_MAX_INTERVAL_SECONDS: Final = 24 * 60 * 60
#: --watch ends there.
_ENDS: Final = (Standing.COMPLETE, Standing.NO_STAGES, Standing.HALTED, Standing.ABORTED)


@click.command("advance", short_help="Move the rollout to its next stage, if it may.")
@change_options
@click.option("--watch", is_flag=True, help="Look again until the rollout is complete or halted, or until Ctrl-C.")
@click.option(
    "--interval",
    type=click.IntRange(1, _MAX_INTERVAL_SECONDS),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two looks of --watch.",
)
def command(application: str, dry_run: bool, watch: bool, interval: int) -> None:
    """Move the rollout to its next stage, if it may; to one stage at most.

    It may if it is neither paused nor halted, and if all that its stage asks for is there: the times of `after` and
    `over` have passed, an operator has approved if `approval` is set, and of the devices drawn so far that have a
    result, at least `success` percent are in sync. Without any result it waits. If no device is drawn, there is nothing
    to wait for. A version that came without `rollout start`, because its tag moved, is recorded at the first stage; for
    that, FIRMWARE_REGISTRY has to be set.

    It prints why the rollout moved or did not. Run it again and again, by cron for instance: two at the same time move
    one stage.

    \b
    Exits with 0 if all is well, whether the rollout moved or not,
      1 if the version is halted or aborted, or too few devices are in sync,
      2 if the rollout cannot be read or written.
    With --watch, the last look counts.
    """  # noqa: D301 - click's mark of a paragraph that is not wrapped
    with operate("advance", application, dry_run=dry_run, failure=WRONG_USAGE) as operation:
        if watch:
            code = _watch(operation, interval)
        else:
            found = _look(operation)
            _print(operation, found)
            code = _code(found)
    raise SystemExit(code)


def _look(operation: Operation) -> Pass:
    """Make one pass."""
    find_target = partial(operation.find_target, strictly=True)
    with reading() as seen:
        return advance_once(operation.session, find_target, seen)


def _print(operation: Operation, found: Pass, said: str = "") -> str:
    """Print what happened, unless that is what was `said` last; return it."""
    line = one_line(found.describe())
    if line != said:
        click.echo(line)
    if found.change and found.change.is_made:
        print_diff(found.change)
        if found.change.sink_problem:
            warn(f"the change is made, but no event of it was sent: {found.change.sink_problem}")
        if operation.session.dry_run:
            click.echo("--dry-run: nothing was written")
    return line


def _code(found: Pass) -> int:
    return FAILED if found.progress.standing in TROUBLED else _GOOD


def _watch(operation: Operation, interval: int) -> int:
    """Look every `interval` seconds until the rollout ends or a signal comes.

    Return the exit code.

    Raises:
        PermanentError: another try would fail too.

    """
    end_on_sigterm()
    code, said = WRONG_USAGE, ""
    try:
        while True:
            pause: float = interval
            try:
                found = _look(operation)
                code = _code(found)
                said = _print(operation, found, said)
                if found.progress.standing in _ENDS or operation.session.dry_run:
                    return code
            except TransientError as error:
                pause = max(interval, error.negative_ttl)
                cure = cure_of_drogue(error.reason, operation.settings)
                click.echo(f"rollout advance: {error.reason}{cure}; trying again in {pause:.0f} s", err=True)
            time.sleep(pause)
    except KeyboardInterrupt:
        return code
