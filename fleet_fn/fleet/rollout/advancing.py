"""One pass of `rollout advance`: look at a rollout, and move it on if it may."""

from collections.abc import Callable
from dataclasses import dataclass

from fleet_fn.drogue.device_registry_object import read_object
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor, Object, Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.devices import read_rows
from fleet_fn.fleet.rollout.plans import Make
from fleet_fn.fleet.rollout.progress import Progress, Standing, assess
from fleet_fn.fleet.rollout.session import Change, RolloutSession
from fleet_fn.fleet.rollout_numbers import RolloutCount, RolloutNumbers
from fleet_fn.fleet.stops import find_stop
from fleet_fn.update.stages import Position


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass saw, and what it did."""

    version: str
    #: Where the rollout stood before.
    progress: Progress
    #: The stage that it moved to; None if it stays where it is.
    moved_to: Position | None = None
    #: None if nothing was to be changed.
    change: Change | None = None

    def describe(self) -> str:
        """Return what happened and why, in one line."""
        progress, position = self.progress, self.progress.position
        if self.moved_to:
            begins = f"{self.version}: {self.moved_to.describe()} begins"
            return (
                f"{begins}, because its rollout is new"
                if progress.standing is Standing.NEW
                else (f"{begins}; {progress.message}")
            )
        if self.change:
            return f"{self.version}: another process changed the rollout meanwhile; nothing to do"
        where = f"stays at {position.describe()}" if position else "has no stages"
        if progress.standing in (Standing.COMPLETE, Standing.NO_STAGES):
            return f"{self.version}: {progress.message}"
        ways_out = f" ({progress.ways_out})" if progress.ways_out else ""
        return f"{self.version}: {where}, {progress.standing}: {progress.message}{ways_out}"


def advance_once(
    session: RolloutSession,
    find_target: Callable[[Application], Target],
    seen: Callable[[int], object] = lambda _: None,
) -> Pass:
    """Move the application's rollout on by one stage, if it may.

    Two processes may do so at the same time: the second one finds that the stage has been left.

    Args:
        session: of the application.
        find_target: finds the application's firmware.
        seen: is called after each page of devices with their number so far.

    Raises:
        PermanentError, TransientError: the application or its devices cannot be read, or it cannot be written.

    """
    application = session.read()
    target = find_target(application)
    version = target.version
    progress = assess(application, version, session.now(), lambda: count_devices(session, application, version, seen))
    move = plan_move(application, target, progress)
    if move is None:
        return Pass(version, progress)
    change = session.change("advance", move)
    if not change.is_made:
        return Pass(version, progress, change=change)
    return Pass(version, progress, position_in(Application.read(change.after), target), change)


def plan_move(application: Application, target: Target, progress: Progress) -> Make | None:
    """Return the change that moves a rollout on; None if it may not move.

    Args:
        application: the application.
        target: its firmware.
        progress: where the rollout stands.

    """
    position, version = progress.position, target.version
    if position is None or progress.standing not in (Standing.NEW, Standing.READY):
        return None

    def move(found: Application, actor: Actor) -> Object | None:
        if found.firmware != application.firmware or found.rollout.version != application.rollout.version:
            return None
        if find_stop(found.policy, found.rollout, version):
            return None
        if progress.standing is Standing.NEW:
            return actions.begin(found, target, actor)
        return actions.advance(found, version, position.index, actor)

    return move


def position_in(application: Application, target: Target) -> Position:
    """Return where the rollout of a target stands; the application has stages."""
    return Position.of(application.policy.stages or (), application.rollout, target.version)


def count_devices(
    session: RolloutSession,
    application: Application,
    version: str,
    seen: Callable[[int], object] = lambda _: None,
) -> RolloutNumbers:
    """Return how a version fares on the application's devices.

    Raises:
        PermanentError, TransientError: the devices cannot be read.

    """
    count = RolloutCount(read_object(application.found, "application"))
    for device, row in read_rows(session, seen):
        count.add(device, row)
    numbers = count.numbers(session.now(), version)
    if numbers is None:
        raise RefusedError(count.problem)
    return numbers
