"""`rollout pause`, `resume`, `approve` and `abort`."""

import click

from fleet_fn.cli.rollout.shared import Operation, change_options, operate
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.effects import effect_of_abort, effect_of_approval, effect_of_pause, effect_of_resume
from fleet_fn.update.stages import Position


@click.command("pause")
@change_options
def pause(application: str, dry_run: bool) -> None:
    """Stop all updates of the application.

    No device gets a block or a swap any more, those midway included, until `rollout resume`. It sets
    spec.firmware.rollout.paused.
    """
    with operate("pause", application, dry_run=dry_run) as operation:
        change = operation.session.change("pause", actions.pause)
        operation.print_change(change, "nothing to change: updates are paused", lambda _: effect_of_pause())


@click.command("resume")
@change_options
@click.option("--version", metavar="V", help="Clear the halt of this version instead of the target's.")
def resume(application: str, dry_run: bool, version: str | None) -> None:
    """End a pause, and clear the halt of the target's version.

    A version is halted if as many devices failed as rollout.maxFailed says, or if it was aborted. Its failures are
    forgotten, so that as many devices may fail again. Devices that have given up the version get it only after `rollout
    retry`. Other versions stay halted.
    """
    with operate("resume", application, dry_run=dry_run) as operation:
        halted = _halted(operation, version)
        change = operation.session.change("resume", lambda found, actor: actions.resume(found, halted, actor))
        operation.print_change(
            change,
            _nothing_to_resume(operation.session.read(), halted),
            lambda found: effect_of_resume(found, halted),
        )


def _halted(operation: Operation, version: str | None) -> str | None:
    """Return the version whose halt is to be cleared; None if none is."""
    application = operation.session.read()
    halted = actions.halted_versions(application)
    if version is not None and version not in halted:
        raise RefusedError(f"{version} is not halted; halted are: {', '.join(halted) or 'none'}")
    if version is not None or not halted:
        return version
    target = operation.find_target(application).version
    return target if target in halted else None


def _nothing_to_resume(application: Application, version: str | None) -> str:
    halted = [name for name in actions.halted_versions(application) if name != version]
    besides = f"; halted are {', '.join(halted)}, which is not the target (--version clears one)" if halted else ""
    return f"nothing to change: updates are neither paused nor halted{besides}"


@click.command("approve")
@change_options
def approve(application: str, dry_run: bool) -> None:
    """Approve that the rollout leaves its stage.

    Only a stage with `approval: true` asks for it. The rollout moves on with the next `rollout advance`, once all else
    that the stage asks for is there.
    """
    with operate("approve", application, dry_run=dry_run) as operation:
        found = operation.session.read()
        target = operation.find_target(found)
        position = (
            Position.of(found.policy.stages or (), found.rollout, target.version) if found.policy.stages else None
        )
        stage = position.index if position else 0
        change = operation.session.change(
            "approve", lambda current, actor: actions.approve(current, target, stage, actor)
        )
        operation.print_change(
            change,
            "nothing to change: the stage is approved",
            lambda current: effect_of_approval(current, target.version),
        )


@click.command("abort")
@change_options
def abort(application: str, dry_run: bool) -> None:
    """Go back to the firmware from before the rollout.

    All devices get the previous firmware, whatever stages and percentage say, and none gets anything of the aborted
    version, those midway in it included. A pause ends, and so does a selection of devices by `rollout start`.

    The rollout has to have been begun with `rollout start`, which records the previous firmware.
    """
    with operate("abort", application, dry_run=dry_run) as operation:
        found = operation.session.read()
        target = operation.find_target(found) if found.rollout.version is not None else None
        version = _previous_version(operation, found)
        change = operation.session.change(
            "abort", lambda current, actor: actions.abort(current, target, version, actor)
        )
        operation.print_change(change, "nothing to change", effect_of_abort)


def _previous_version(operation: Operation, application: Application) -> str | None:
    """Return the previous firmware's version if the object does not tell it."""
    previous = application.previous
    if previous is None or previous.version is not None or not operation.settings.firmware_registry:
        return None
    with operation.open_finder() as finder:
        return finder.target(previous.read_source()).version
