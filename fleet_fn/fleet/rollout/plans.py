"""Changes of a rollout that an operator can ask for, ready to be tried or made."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from fleet_fn.drogue.spec_source import Source
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor, Object, Start, Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.effects import (
    effect_of_abort,
    effect_of_approval,
    effect_of_pause,
    effect_of_resume,
    effect_of_start,
)
from fleet_fn.update.stages import Position

#: Makes the change; see `actions`.
Make = Callable[[Application, Actor], Object | None]
FindTarget = Callable[[Application], Target]


@dataclass(frozen=True, slots=True)
class Plan:
    """A change of an application's rollout."""

    #: Name of the command, for events.
    action: str
    make: Make
    #: Tells in words what the change does, from the changed application.
    effect: Callable[[Application], str]
    #: What to say if there is nothing to change.
    nothing: str


def plan_pause() -> Plan:
    """Plan to stop all updates."""
    return Plan("pause", actions.pause, lambda _: effect_of_pause(), "nothing to change: updates are paused")


def plan_resume(application: Application, find_target: FindTarget, version: str | None = None) -> Plan:
    """Plan to end a pause, and a halt.

    Args:
        application: the application.
        find_target: finds its firmware.
        version: whose halt to clear; None for that of the application's firmware.

    Raises:
        RefusedError: the version is not halted.
        NotReadyError, PermanentError, TransientError: the application's firmware cannot be found.

    """
    cleared = _cleared(application, find_target, version)
    others = [name for name in actions.halted_versions(application) if name != cleared]
    besides = f"; halted are {', '.join(others)}, which is not the target (--version clears one)" if others else ""
    return Plan(
        "resume",
        lambda found, actor: actions.resume(found, cleared, actor),
        lambda found: effect_of_resume(found, cleared),
        f"nothing to change: updates are neither paused nor halted{besides}",
    )


def _cleared(application: Application, find_target: FindTarget, version: str | None) -> str | None:
    """Return the version whose halt is to be cleared; None if none is."""
    halted = actions.halted_versions(application)
    if version is not None and version not in halted:
        raise RefusedError(f"{version} is not halted; halted are: {', '.join(halted) or 'none'}")
    if version is not None or not halted:
        return version
    target = find_target(application).version
    return target if target in halted else None


def plan_approval(application: Application, find_target: FindTarget) -> Plan:
    """Plan to approve that the rollout leaves its stage.

    Raises:
        NotReadyError, PermanentError, TransientError: the application's firmware cannot be found.

    """
    target, stages = find_target(application), application.policy.stages
    stage = Position.of(stages, application.rollout, target.version).index if stages else 0
    return Plan(
        "approve",
        lambda found, actor: actions.approve(found, target, stage, actor),
        lambda found: effect_of_approval(found, target.version),
        "nothing to change: the stage is approved",
    )


def plan_abort(
    application: Application, find_target: FindTarget, find_version: Callable[[Source | None], str] | None
) -> Plan:
    """Plan to go back to the firmware from before the rollout.

    Args:
        application: the application.
        find_target: finds its firmware.
        find_version: finds the version of another source; None without FIRMWARE_REGISTRY and FIRMWARE_DIR.

    Raises:
        NotReadyError, PermanentError, TransientError: a firmware cannot be found.

    """
    target = find_target(application) if application.rollout.version is not None else None
    previous, version = application.previous, None
    if previous and previous.version is None and find_version:
        version = find_version(previous.read_source())
    return Plan(
        "abort",
        lambda found, actor: actions.abort(found, target, version, actor),
        effect_of_abort,
        "nothing to change",
    )


def plan_start(wanted: Start, now: datetime) -> Plan:
    """Plan to begin a rollout, or to change it."""
    version = wanted.target.version
    return Plan(
        "start",
        lambda found, actor: actions.start(found, wanted, actor),
        lambda found: effect_of_start(found, version, now),
        f"nothing to change: {version} is the target",
    )
