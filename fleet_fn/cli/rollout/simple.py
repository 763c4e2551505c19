"""`rollout pause`, `resume`, `approve` and `abort`."""

import click

from fleet_fn.cli.rollout.shared import change_options, operate
from fleet_fn.fleet.rollout.plans import plan_abort, plan_approval, plan_pause, plan_resume


@click.command("pause")
@change_options
def pause(application: str, dry_run: bool) -> None:
    """Stop all updates of the application.

    No device gets a block or a swap any more, those midway included, until `rollout resume`. It sets
    spec.firmware.rollout.paused.
    """
    with operate("pause", application, dry_run=dry_run) as operation:
        operation.carry_out(plan_pause())


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
        operation.carry_out(plan_resume(operation.session.read(), operation.find_target, version))


@click.command("approve")
@change_options
def approve(application: str, dry_run: bool) -> None:
    """Approve that the rollout leaves its stage.

    Only a stage with `approval: true` asks for it. The rollout moves on with the next `rollout advance`, once all else
    that the stage asks for is there.
    """
    with operate("approve", application, dry_run=dry_run) as operation:
        operation.carry_out(plan_approval(operation.session.read(), operation.find_target))


@click.command("abort")
@change_options
def abort(application: str, dry_run: bool) -> None:
    """Go back to the firmware from before the rollout.

    All devices get the previous firmware, whatever stages and percentage say, and none gets anything of the aborted
    version, those midway in it included. A pause ends, and so does a selection of devices by `rollout start`.

    The rollout has to have been begun with `rollout start`, which records the previous firmware.
    """
    with operate("abort", application, dry_run=dry_run) as operation:
        find_version = operation.find_version if operation.settings.finds_firmware else None
        operation.carry_out(plan_abort(operation.session.read(), operation.find_target, find_version))
