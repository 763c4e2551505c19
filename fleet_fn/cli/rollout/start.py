"""`rollout start`: make a firmware the target of an application's devices."""

from collections.abc import Mapping
from typing import Any, Final

import click

from fleet_fn.cli.rollout.device_changes import Changed, change_devices
from fleet_fn.cli.rollout.shared import change_options, operate, reading, warn
from fleet_fn.drogue.spec_policy import MAX_FAILED
from fleet_fn.errors import one_line
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Start
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.devices import Selection, label_value, with_label
from fleet_fn.fleet.rollout.plans import plan_start
from fleet_fn.fleet.rollout.session import RolloutSession
from fleet_fn.fleet.rollout.stage_list import check_stages, parse_stage
from fleet_fn.fleet.rollout.starting import Candidate, check_firmware, select_devices, start_notes
from fleet_fn.fleet.states import State
from fleet_fn.fleet.wording import describe_devices

#: Names of devices that are listed.
_MAX_NAMES: Final = 5


def _read_stage(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the stages of `--stage`, as they stand in `spec.firmware`.

    Raises:
        click.BadParameter: the function would refuse them.

    """
    try:
        stages = [parse_stage(value) for value in values]
        check_stages(stages)
    except RefusedError as error:
        raise click.BadParameter(error.reason) from error
    return stages


@click.command("start")
@change_options
@click.option("--image", required=True, metavar="REF", help="NAME, NAME:TAG or NAME@sha256:…, below FIRMWARE_REGISTRY.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    callback=_read_stage,
    metavar="PERCENT[,…]",
    help="A stage, in order: '1,approval', '10,after=24h,success=95', '100,over=48h'. Replaces all stages, or percent.",
)
@click.option("--percent", type=click.FloatRange(0, 100), metavar="N", help="Let in N % of the devices; no stages.")
@click.option(
    "--max-failed",
    type=click.IntRange(1, MAX_FAILED),
    metavar="N",
    help="Halt the rollout once N devices have failed.",
)
@click.option(
    "--from-version",
    "versions",
    multiple=True,
    metavar="V",
    help="Begin with the devices that run this version; may be repeated.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Begin with the devices in this state, as `fleet` shows it; may be repeated.",
)
@click.option(
    "--failed-version",
    "failed",
    multiple=True,
    metavar="V",
    help="Begin with the devices on which this version failed, now or earlier; may be repeated.",
)
@click.option("--replace-source", is_flag=True, help="Replace the application's source if it is no image.")
def command(
    application: str,
    dry_run: bool,
    image: str,
    stages: list[dict[str, Any]],
    percent: float | None,
    max_failed: int | None,
    versions: tuple[str, ...],
    states: tuple[str, ...],
    failed: tuple[str, ...],
    replace_source: bool,
) -> None:
    """Begin the rollout of the firmware that REF names.

    First it checks what the function would check: it resolves REF below FIRMWARE_REGISTRY, and verifies the bytes. Then
    it makes REF the application's image, and records the version, the time and the firmware from before, to which
    `rollout abort` goes back. The rollout begins at its first stage. If it is of this version already, it goes on where
    it is.

    With --from-version, --state or --failed-version, only the devices that all of these select now get the firmware,
    within the rollout's stages or percentage: each is given the label fleet-rollout, and rollout.labels asks for it.
    Start the same image again without a selection, and all others follow, from the first stage on.
    """
    if stages and percent is not None:
        raise click.UsageError("--stage and --percent exclude each other")
    with operate("start", application, dry_run=dry_run) as operation, operation.open_finder() as finder:
        found = operation.session.read()
        candidate = check_firmware(finder, found, image)
        _print_firmware(candidate)
        target = candidate.target
        selection = Selection(versions, tuple(map(State, states)), failed)
        wanted = Start(
            candidate.reference,
            target,
            found.source_section,
            candidate.before,
            replaces_source=replace_source,
            selection=label_value(target.version) if selection else None,
            percent=int(percent) if percent is not None and percent.is_integer() else percent,
            stages=stages or None,
            max_failed=max_failed,
        )
        actions.start(found, wanted, operation.session.actor)  # refuses before any device is labelled
        if selection:
            _label_devices(operation.session, selection, label_value(target.version))
        now = operation.session.now()
        change = operation.carry_out(plan_start(wanted, now))
        for note in start_notes(Application.read(change.after), target.version, now):
            warn(note)


def _label_devices(session: RolloutSession, selection: Selection, label: str) -> None:
    """Label the selected devices, so that the rollout begins with them.

    Raises:
        RefusedError: no device is selected.

    """
    with reading() as seen:
        found = select_devices(session, selection, label, seen)
    if found.own:
        warn(f"left out, because they name their own firmware: {_list(found.own)}")
    changed = Changed()
    change_devices(session, found.unlabelled, lambda device: with_label(device, label), "labelling devices", changed)
    count = len(found.names) - len(found.unlabelled) + len(changed.names)
    if not count:
        raise RefusedError("none of the selected devices could be labelled")
    labelled = f"{'would be' if session.dry_run else 'are'} labelled {actions.SELECTION_LABEL}={label}"
    click.echo(f"{describe_devices(count)} {labelled} ({selection}): {_list(found.names)}")
    click.echo()


def _list(names: list[str]) -> str:
    """Return the first of some names."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return one_line(", ".join(names[:_MAX_NAMES]) + more)


def _print_firmware(candidate: Candidate) -> None:
    for warning in candidate.warnings:
        warn(warning)
    firmware, signature = candidate.firmware, candidate.signature
    rows: Mapping[str, object] = {
        "image": candidate.reference,
        "digest": firmware.manifest,
        "version": firmware.version,
        "size": firmware.size,
        "sha256": f"{firmware.checksum.hex()} (verified)",
        "authors": firmware.authors,
        "hardware": ", ".join(firmware.hardware),
        "requires": firmware.requires,
        "signature": f"good, by {signature.key.name}" if signature and signature.key else "",
    }
    for name, value in rows.items():
        if value:
            click.echo(one_line(f"{name:<10} {value}"))
    click.echo()
