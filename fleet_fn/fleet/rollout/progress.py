"""How far a rollout is, and whether it may move to its next stage."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from fleet_fn.drogue.spec_policy import Stage
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.fleet.stops import find_stop
from fleet_fn.update.stages import Position


class Standing(StrEnum):
    """Where a rollout stands."""

    #: An operator aborted its version, or too many devices failed: no device gets anything of it.
    ABORTED = "aborted"
    HALTED = "halted"
    #: An operator paused all updates.
    PAUSED = "paused"
    #: It has no stages, or its last one is reached in full.
    NO_STAGES = "no-stages"
    COMPLETE = "complete"
    #: No stage of the version is recorded yet, so the first one applies.
    NEW = "new"
    #: The next stage needs more time, results, or an approval.
    WAITING = "waiting"
    #: Too few of the devices with a result are in sync.
    FAILING = "failing"
    #: The next stage may begin.
    READY = "ready"


#: An operator has to look at these.
TROUBLED: Final = (Standing.ABORTED, Standing.HALTED, Standing.FAILING)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One thing that the next stage needs."""

    #: The key of the stage: `after`, `over`, `success` or `approval`.
    key: str
    is_met: bool
    #: What is there, and what is missing, for people.
    message: str
    #: It is not only missing: the devices show that the version is bad.
    fails: bool = False
    #: When it will be met if nothing else happens; None if that is not known.
    due: datetime | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rollout stands, and why."""

    standing: Standing
    message: str
    #: None without stages.
    position: Position | None = None
    #: What the next stage needs, as far as it was looked at.
    requirements: tuple[Requirement, ...] = ()
    #: What an operator may do if it has stopped; empty if it has not.
    ways_out: str = ""


def assess(
    application: Application,
    version: str,
    now: datetime,
    count: Callable[[], RolloutNumbers],
    *,
    in_full: bool = False,
) -> Progress:
    """Return where the rollout of a version stands.

    Args:
        application: the application.
        version: the target's.
        now: the current time.
        count: counts the devices. It is called only if nothing else holds the rollout back, or for `in_full`.
        in_full: look at all that the next stage needs.

    Raises:
        RefusedError: the application's policy is malformed.

    """
    policy = application.policy
    position = Position.of(policy.stages, application.rollout, version) if policy.stages else None
    if stop := find_stop(policy, application.rollout, version):
        requirements = _requirements(position, now, count) if position and in_full else ()
        return Progress(Standing(stop.kind.value), stop.message, position, requirements, stop.ways_out)
    if application.rollout.of(version).complete:
        return Progress(Standing.COMPLETE, "neither stages nor a percentage hold a device back", position)
    if position is None:
        percent = 100.0 if policy.percent is None else policy.percent
        labeled = "devices with its labels" if policy.labels else "devices"
        return Progress(Standing.NO_STAGES, f"there are no stages; {percent:.15g} % of {labeled} are let in")
    if application.rollout.version != version:
        return Progress(Standing.NEW, f"{version} is at its first stage, which is not recorded yet", position)
    return _assess_stage(position, now, count, in_full=in_full)


def _assess_stage(position: Position, now: datetime, count: Callable[[], RolloutNumbers], *, in_full: bool) -> Progress:
    if position.is_last:
        missing = [each for each in _times(position, now, last=True) if not each.is_met]
        if not missing:
            return Progress(Standing.COMPLETE, f"{position.describe()} is reached in full", position)
        return Progress(Standing.WAITING, missing[0].message, position, tuple(missing))
    free = (*_times(position, now), *_approval(position))
    needs_devices = in_full or all(each.is_met for each in free)
    requirements = (*free, *(_success(position.stage, count) if needs_devices else ()))
    missing = [each for each in requirements if not each.is_met]
    message = "; ".join(each.message for each in missing or requirements) or "the stage asks for nothing more"
    if any(each.fails for each in missing):
        return Progress(Standing.FAILING, message, position, requirements)
    return Progress(Standing.WAITING if missing else Standing.READY, message, position, requirements)


def _requirements(position: Position, now: datetime, count: Callable[[], RolloutNumbers]) -> tuple[Requirement, ...]:
    if position.is_last:
        return tuple(_times(position, now, last=True))
    return (*_times(position, now), *_approval(position), *_success(position.stage, count))


def _times(position: Position, now: datetime, *, last: bool = False) -> list[Requirement]:
    """Return the times that have to pass.

    No stage follows the `last` one, so `after` means nothing there.
    """
    stage = position.stage
    waits = [("over", stage.over, "the share still grows")]
    if not last:
        waits.insert(0, ("after", stage.after, "the stage is not over"))
    found = []
    for key, time, problem in waits:
        if time is None:
            continue
        if position.since is None:
            found.append(Requirement(key, False, f"{key}: the time when the stage began is not recorded"))
            continue
        until = position.since + time
        shown = timestamp(until)
        if now >= until:
            found.append(Requirement(key, True, f"{key}: passed at {shown}"))
        else:
            found.append(Requirement(key, False, f"{key}: {problem} until {shown}", due=until))
    return found


def _approval(position: Position) -> list[Requirement]:
    if not position.stage.approval:
        return []
    if position.waits_for_approval:
        return [Requirement("approval", False, "approval: not given (rollout approve)")]
    return [Requirement("approval", True, "approval: given")]


def _success(stage: Stage, count: Callable[[], RolloutNumbers]) -> list[Requirement]:
    if stage.success is None:
        return []
    numbers, least = count(), f"{stage.success:.15g} %"
    if not numbers.drawn:
        return [Requirement("success", True, "success: no device is drawn yet")]
    if numbers.success is None:
        return [Requirement("success", False, f"success: none of the {_devices(numbers.drawn)} drawn has a result yet")]
    found = (
        f"{numbers.in_sync} of the {_devices(numbers.with_result)} with a result are in sync "
        f"({round_percent(numbers.success, stage.success)} %)"
    )
    if numbers.success >= stage.success:
        return [Requirement("success", True, f"success: {found}, at least {least} are needed")]
    return [Requirement("success", False, f"success: {found}, and {least} are needed", fails=True)]


def round_percent(value: float, limit: float | None = None) -> str:
    """Return a percentage with one decimal, or more if it misses a limit narrowly."""
    shown = f"{value:.1f}"
    return f"{value:.6g}" if limit is not None and value < limit <= float(shown) else shown


def describe_time(time: timedelta) -> str:
    """Return a duration in its two largest units."""
    seconds = max(0, round(time.total_seconds()))
    for unit, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= unit:
            rest = seconds % unit // small
            return f"{seconds // unit} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{seconds} s"


def _devices(count: int) -> str:
    return f"{count:,} device{'' if count == 1 else 's'}"
