"""Move a rollout to its next stage."""

from datetime import UTC, datetime, timedelta
from typing import Final

from flask import Blueprint, g
from werkzeug.wrappers import Response

from fleet_fn.console.command_line import command_line
from fleet_fn.console.parts import parts
from fleet_fn.console.snapshot import Devices
from fleet_fn.console.views.changing import ActionPage, NotReadYetError, Wording, naming_firmware
from fleet_fn.fleet.rollout.advancing import Pass, plan_move, position_in
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.plans import Plan
from fleet_fn.fleet.rollout.progress import assess
from fleet_fn.fleet.rollout_numbers import RolloutNumbers

blueprint = Blueprint("advance", __name__)

#: Numbers of devices that are older than this, or than some readings take, decide nothing.
_MAX_AGE: Final = timedelta(minutes=2)
_MAX_AGE_READINGS: Final = 6
_WORDING: Final = Wording(
    "Advance the rollout",
    "Advance",
    "Moves the rollout to its next stage, if all that this stage asks for is there.",
)


@blueprint.route("/applications/<name>/rollout/advance", methods=["GET", "POST"])
def advance(name: str) -> Response:
    """Show the next stage and what it takes, or begin it."""
    parts().access.check(g.user, name)
    return ActionPage(name, _WORDING, command_line("rollout", "advance", application=name)).answer(_plan)


def _plan(application: Application) -> Plan:
    with naming_firmware():
        target = parts().firmware.find_target(application, strictly=True).target
    version, now = target.version, datetime.now(UTC)
    progress = assess(application, version, now, lambda: _numbers(application, version, now))
    move = plan_move(application, target, progress)
    if move is None:
        raise RefusedError(Pass(version, progress).describe())
    return Plan(
        "advance",
        move,
        lambda changed: Pass(version, progress, position_in(changed, target)).describe(),
        "another user, or another process, has changed the rollout meanwhile",
    )


def _numbers(application: Application, version: str, now: datetime) -> RolloutNumbers:
    """Return how the version fares on the devices, which were read a moment ago.

    Raises:
        NotReadYetError: they were not.

    """
    snapshot = parts().snapshots.look(g.user, application.name)
    if snapshot.problem:
        raise RefusedError(f"the devices cannot be read: {snapshot.problem}")
    if snapshot.devices is None or _is_old(snapshot.devices, now):
        raise NotReadYetError("the devices are being read, to see how the version fares")
    numbers = snapshot.devices.numbers(application.found, version, now)
    if numbers is None:
        raise RefusedError(snapshot.devices.count.problem)
    return numbers


def _is_old(devices: Devices, now: datetime) -> bool:
    return now - devices.at > max(_MAX_AGE, timedelta(seconds=_MAX_AGE_READINGS * devices.seconds))
