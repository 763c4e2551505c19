"""`rollout show`: tell how an application's rollout stands."""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import click
from rich.cells import cell_len

from fleet_fn.cli.failures import WRONG_USAGE
from fleet_fn.cli.fleet_view import describe_age, describe_rollout
from fleet_fn.cli.rollout.shared import application_option, operate, reading
from fleet_fn.drogue.rollout_status import Failures
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.errors import one_line
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL
from fleet_fn.fleet.rollout.overview import Overview, failures_of, read_overview
from fleet_fn.fleet.rollout.progress import Standing, describe_time
from fleet_fn.fleet.rollout.wording import describe_conditions, describe_firmware, describe_source
from fleet_fn.fleet.wording import describe_devices

#: Names of failed devices, and versions, that are listed.
_MAX_NAMES: Final = 10
_MAX_VERSIONS: Final = 5
_NAME_WIDTH: Final = 12
#: Their message says it.
_TOLD: Final = (Standing.NO_STAGES, Standing.NEW)


@click.command("show", short_help="Show how the rollout stands, and what it needs.")
@application_option
@click.option("--json", "as_json", is_flag=True, help="Print all of it as one JSON document.")
def command(application: str, as_json: bool) -> None:
    """Show how the rollout stands, what its next stage needs, and who failed.

    The version is the one that the application's image names in FIRMWARE_REGISTRY; without that, the one that `rollout
    start` recorded.

    Exits with 2 if the application or its devices cannot be read.
    """
    with operate("show", application, failure=WRONG_USAGE) as operation:
        with reading() as seen:
            overview = read_overview(operation.session, operation.find_target, seen)
        if as_json:
            click.echo(json.dumps(overview.to_json(), indent=2))
            return
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for name, text in _rows(overview):
            click.echo(fit_row(name, one_line(text), width))


def fit_row(name: str, text: str, width: int | None) -> str:
    """Return a row, wrapped to the terminal's width; without one, in one line."""
    line = f"{name:<{_NAME_WIDTH}}{text}".rstrip()
    if width is None or cell_len(line) <= width:
        return line
    return textwrap.fill(
        line,
        max(width, 2 * _NAME_WIDTH),
        subsequent_indent=" " * _NAME_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _rows(overview: Overview) -> Iterator[tuple[str, str]]:
    application, progress, now = overview.application, overview.progress, overview.now
    yield "application", application.name
    yield "firmware", f"{describe_firmware(application)}, version {overview.version or 'unknown'}"
    if overview.target and overview.target.hardware:
        yield "hardware", ", ".join(overview.target.hardware)
    if overview.target and overview.target.requires:
        yield "requires", overview.target.requires
    if overview.problem:
        yield "problem", overview.problem
    if progress:
        standing = progress.standing
        named = "" if standing in _TOLD else f"{standing}: "
        ways_out = f" ({progress.ways_out})" if progress.ways_out else ""
        yield "rollout", f"{named}{progress.message}{ways_out}"
        yield from _stages(overview)
        for index, requirement in enumerate(progress.requirements):
            mark = "+" if requirement.is_met else "-"
            left = f", for {describe_time(requirement.due - now)}" if requirement.due else ""
            yield ("" if index else "next needs"), f"{mark} {requirement.message}{left}"
    yield from _policy(overview)
    if overview.numbers:
        yield "devices", describe_rollout(overview.numbers)
    for index, (version, failures) in enumerate(failures_of(application)[:_MAX_VERSIONS]):
        yield ("" if index else "failed"), f"{version}: {_failures(failures)}"
    if application.rollout.aborted:
        yield "aborted", ", ".join(application.rollout.aborted)
    if previous := application.previous:
        yield "previous", f"{describe_source(previous.kind, previous.source)}, version {previous.version or 'unknown'}"
    if last := application.last:
        age = describe_age(last.at, now)
        yield (
            "last",
            f"{last.action} by {last.user or 'an unknown user'}" + (f", {_at(last.at)}, {age} ago" if last.at else ""),
        )


def _stages(overview: Overview) -> Iterator[tuple[str, str]]:
    """Yield the plan, with the stage that is reached marked."""
    progress = overview.progress
    position = progress.position if progress else None
    if position is None:
        return
    reached = overview.application.rollout.of(overview.version or "")
    for index, stage in enumerate(overview.application.rollout_policy("stages") or ()):
        rest = ", ".join(describe_conditions(stage))
        is_reached = index == position.index and not reached.complete
        mark = ">" if is_reached else " "
        since = f"  since {_at(position.since)}" if is_reached and position.since else ""
        approved = ", approved" if is_reached and reached.approved else ""
        yield ("" if index else "stages"), f"{mark} {stage.get('percent')} %  {rest}{approved}{since}".rstrip()


def _policy(overview: Overview) -> Iterator[tuple[str, str]]:
    policy = overview.application.policy
    if policy.paused and overview.progress and overview.progress.standing is not Standing.PAUSED:
        yield "paused", "updates are paused"
    if labels := policy.labels:
        selected = " (rollout start selected them)" if SELECTION_LABEL in labels else ""
        yield "labels", ", ".join(f"{key}={value}" for key, value in labels.items()) + selected
    if policy.max_failed is not None:
        yield "maxFailed", str(policy.max_failed)


def _failures(failures: Failures) -> str:
    names = ", ".join(failures.devices[:_MAX_NAMES])
    more = failures.count - min(len(failures.devices), _MAX_NAMES)
    unnamed = f"{' and ' if names else ''}{more} more" if more else ""
    return f"{describe_devices(failures.count)} ({names}{unnamed})"


def _at(time: datetime | None) -> str:
    return timestamp(time) if time else "unknown"
