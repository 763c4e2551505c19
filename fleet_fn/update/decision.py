"""The decision: what the table, the record of the update and policy together let a device be told.

Pure, like the decision table itself. The rules come from the protocol's description: "What an answer may rest on" and
"What devices in the field do with an answer".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from fleet_fn.drogue.firmware_spec import NONE, Policy
from fleet_fn.drogue.update_record import LastAnswered, PendingRestart, Record, record_for
from fleet_fn.protocol.messages import U32_MAX, Progress, Status, Swap, Sync
from fleet_fn.protocol.step import Block, Target, next_command, paddings
from fleet_fn.update.policy import hold_start, hold_swap

#: Swaps after which a version that never comes up is not sent any more.
MAX_ATTEMPTS: Final = 3
#: Orders to begin anew that a device midway gets, if its status does not show whether it heard them.
_MAX_ORDERS: Final = 5
#: The longest pause between two attempts.
_MAX_BACKOFF_SECONDS: Final = 24 * 60 * 60
#: Bytes of the flash words that a shortened block should consist of, the best first.
_WORDS: Final = (32, 16, 8, 4, 1)
#: One status that is published twice, with different ids, arrives within this time.
_AT_ONCE: Final = timedelta(seconds=1)
#: The twin of a status comes within this time of the first.
_TWIN_AGE: Final = timedelta(seconds=30)
#: A device that did not hear a command reports again within this time: it listens for 30 s, and rests for 10 s.
_SILENCE_SECONDS: Final = 45
#: Clocks of processes differ, and records hold whole seconds.
_CLOCK_MARGIN: Final = timedelta(seconds=2)


class Freshness(Enum):
    """How fresh the facts have to be that a verdict rests on."""

    #: As fresh as caches keep them.
    MEMORY = 0
    #: Read within the last second: the specs, and the tag's manifest.
    EVERYTHING = 1
    #: The same, and the device's object read since this status came.
    NOW = 2


class Hold(NamedTuple):
    """Policy keeps a device that is not on its target where it is for now."""

    reason: str
    #: Why, for people.
    message: str
    #: Seconds until the device should ask again.
    poll: int
    #: The version was given up.
    gives_up: bool = False


class Confirm(NamedTuple):
    """The device came up with a version that it was swapped to: SYNC for that version comes before anything else.

    Until a device hears it, its bootloader goes back to the old image at the next reset, and the first block of the
    next update would erase that image.
    """

    version: bytes
    poll: int


class Settle(NamedTuple):
    """The device waits until no process can take other bytes of the same version for the target's."""

    seconds: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """A device of which nobody knows what it has written."""

    message: str = (
        "power-cycle it: it was told to begin anew, but reports another offset than that of the block sent, "
        "so nobody knows what it has written"
    )


@dataclass(frozen=True, slots=True)
class Again:
    """A status that was answered already, or that is older than one that was.

    The device would take an answer for the one to its next status. Some devices erase what they have written then.
    """


class DecisionContext(NamedTuple):
    """Everything that a decision rests on, besides the status and the target."""

    now: datetime
    #: The largest block, in bytes.
    mtu: int
    #: Seconds after which a device in sync asks again.
    poll: int
    #: The record in the device's object.
    record: Record | None = None
    policy: Policy = NONE
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    #: The record of this event's answer; None if the answer is only shown.
    answered: LastAnswered | None = None
    #: How old the device's object may be that another process acts on.
    spec_ttl: timedelta = timedelta()
    #: False if nothing may be written into the device's object. Then there is no record, and devices are believed.
    keeps_records: bool = True
    #: Accepted SYNCs after which a device counts as having heard one, if it reports before it was asked to.
    enough_syncs: int = 3
    #: A gateway of the device that is being updated, and would take the device's blocks for its own; empty if none.
    busy_gateway: str = ""
    #: The UID of the device that the status is of, as its event has it; empty if it has none.
    device_uid: str = ""
    #: The device numbers its statuses.
    correlates: bool = False
    #: Progress at 0 for the target's version shows that the device heard a start and refused it.
    tells_refusals: bool = False

    @property
    def reported_at(self) -> datetime:
        """When the status came to the cloud. A time ahead of our clock counts as now."""
        told = self.answered and self.answered.time
        return min(told, self.now) if told else self.now


class Decision(NamedTuple):
    """What to tell a device, and what its record becomes."""

    step: Sync | Swap | Block | Hold | Confirm | Settle | Stuck | Again
    record: Record | None
    #: The record is written before the command is sent, which is not sent without it.
    records_first: bool = False
    rests_on: Freshness = Freshness.MEMORY


def decide(status: Status, target: Target, situation: DecisionContext) -> Decision:
    """Return the command that brings a device closer to `target`, if it may have one."""
    known, answered = _bounded(situation)
    situation = situation._replace(record=known, answered=answered)
    before = known.answered if known else None
    if known and answered and before and set(answered.events) & set(before.events):
        return Decision(Again(), known, rests_on=Freshness.NOW)
    verdict = confirm(status, target.version, situation) or _judge(status, target, situation)
    if not (known and answered):
        return _with_answer(verdict, known, answered)
    if answered.is_before(before):
        if _is_harmless(verdict, status, known):
            return verdict._replace(record=known)
        return Decision(Again(), known, rests_on=Freshness.NOW)
    was_start = known.is_of(target) and known.started is not None and known.swapped is None
    is_start = isinstance(verdict.step, Block) and verdict.step.offset == 0
    if is_start and was_start and _is_published_twice(answered, before, situation.now):
        return Decision(Again(), known, rests_on=Freshness.NOW)
    return _with_answer(verdict, known, answered)


def _is_harmless(verdict: Decision, status: Status, known: Record) -> bool:
    """Return whether a status that is older than the last recorded one may be answered all the same.

    The device has reported since, and takes the command for the answer to that. Nothing of the old status is recorded.
    """
    step = verdict.step
    if isinstance(step, Block):
        is_next = step.offset > 0 and not verdict.records_first
        return is_next and known.restart is None and known.swapped is None
    # By now, the device may run another version than it did: it must not hear SYNC for that one.
    runs_it = known.swapped is None or known.version.encode() == status.version
    return isinstance(step, Sync | Hold) and runs_it


def confirm(status: Status, target: bytes | None, situation: DecisionContext) -> Decision | None:
    """Return SYNC if the device may not have heard it since it came up with a version that it was swapped to.

    Args:
        status: the device's status.
        target: the version that it should run; None if that is unknown.
        situation: everything else.

    """
    record = situation.record
    if record is None or status.version == target or not record.awaits_sync(status.version):
        return None
    if has_begun(status):
        return None
    if _may_have_heard_sync(record, situation):
        return None
    return Decision(Confirm(status.version, situation.poll), record.with_sync(situation.now))


def has_begun(status: Status) -> bool:
    """Return whether a device has blocks of another version than the one that it runs.

    Some devices always report progress, at 0 if they have none; others keep that of the update that they came up with.
    """
    progress = status.progress
    return progress is not None and progress.offset > 0 and progress.version != status.version


def _may_have_heard_sync(record: Record, situation: DecisionContext) -> bool:
    """Return whether a status after a SYNC is one that a device sends that heard it.

    Such a device keeps still for `poll` seconds. One that reports earlier has not heard it, or keeps no time.
    """
    if record.syncs >= situation.enough_syncs:
        return True
    synced = record.synced_at()
    silence = timedelta(seconds=max(0.9 * situation.poll, _SILENCE_SECONDS))
    return synced is not None and situation.reported_at - synced >= silence


def _bounded(situation: DecisionContext) -> tuple[Record | None, LastAnswered | None]:
    """Return the record and this event's answer with no time ahead of our clock.

    In an event such a time counts as now. In a record it says nothing: each later status would count as older.
    """
    known, answered, now = situation.record, situation.answered, situation.now
    if known and known.answered and known.answered.time and known.answered.time > now:
        known = replace(known, answered=replace(known.answered, time=None))
    if answered and (answered.time is None or answered.time > now):
        answered = replace(answered, time=now)
    return known, answered


def _with_answer(verdict: Decision, known: Record | None, answered: LastAnswered | None) -> Decision:
    """Return the verdict with this event in its record, if the record is written for it."""
    record = verdict.record
    if answered is None or record is None or (record == known and not _orders(verdict.step)):
        return verdict
    return verdict._replace(record=replace(record, answered=answered.after(known.answered if known else None)))


def _orders(step: object) -> bool:
    """Return whether a step starts or ends an update."""
    return isinstance(step, Swap) or (isinstance(step, Block) and step.offset == 0)


def _is_published_twice(answered: LastAnswered, before: LastAnswered | None, now: datetime) -> bool:
    """Return whether a status is the last answered one under another id."""
    if not (before and before.time and answered.time and before.status):
        return False
    if now - before.time > _TWIN_AGE:
        return False  # its sender's clock stands still
    return before.status == answered.status and abs(answered.time - before.time) < _AT_ONCE


def _judge(status: Status, target: Target, situation: DecisionContext) -> Decision:
    """Return the verdict on a status that was not answered yet, of a device that keeps what it runs."""
    known = situation.record
    step = next_command(status, target, mtu=situation.mtu, poll=situation.poll)
    if isinstance(step, Sync):
        came_up = known
        if known and known.is_of(target) and known.swapped and not known.synced:
            came_up = known.with_sync(situation.now)
        if known and not known.is_of(target) and known.swapped is None and known.started and not has_begun(status):
            came_up = replace(known, started=None)  # what it had begun has come to nothing
        return Decision(step, came_up if status.progress else _without_restart(came_up))
    if not situation.keeps_records:
        hold = _hold(step, None, target, situation, failed_swap=False)
        rests_on = Freshness.EVERYTHING if _orders(step) else Freshness.MEMORY
        return Decision(hold, None) if hold else Decision(step, None, rests_on=rests_on)
    if known and _refuses_to_start(status.progress, target, known, situation):
        return Decision(Confirm(status.version, situation.poll), known.with_sync(situation.now))
    kept = situation.spec_ttl + _CLOCK_MARGIN
    now = situation.now.replace(microsecond=0)
    record = record_for(target, known, situation.policy.retry, now, kept).with_return()
    record, failed_swap = _came_back(status.progress, record)
    checked = _checked(step, status.progress, target, known, record, situation)
    if isinstance(checked, Stuck):
        stuck = replace(known, restart=replace(known.restart, stuck=True)) if known and known.restart else known
        return Decision(checked, stuck, rests_on=Freshness.NOW)
    if isinstance(checked, Settle):
        return Decision(checked, known, rests_on=Freshness.NOW)
    if hold := _hold(checked.step, record, target, situation, failed_swap=failed_swap):
        of_target = known is not None and known.is_of(target)
        held = record if of_target else known
        return Decision(hold, held if status.progress else _without_restart(held))
    return _recorded(checked, known, situation)


def _refuses_to_start(progress: Progress | None, target: Target, known: Record, situation: DecisionContext) -> bool:
    """Return whether the device refused its last start, as bootloaders do whose firmware was not marked good yet.

    SYNC marks it good: between two starts, the device is told so once.
    """
    is_refusal = situation.tells_refusals and progress == Progress(target.version, 0)
    was_started = known.is_of(target) and known.started is not None and known.swapped is None
    return is_refusal and was_started and known.syncs == 0


class _Checked(NamedTuple):
    """What the table and the record together allow."""

    step: Swap | Block
    record: Record


def _came_back(progress: Progress | None, record: Record) -> tuple[Record, bool]:
    """Return the record after a status, and whether that status shows that a swap came to nothing.

    Some devices always report progress, at 0 if they have none.
    """
    if progress is None:
        record = replace(record, restart=None)
    has_nothing = progress is None or progress.offset == 0
    return (record.with_failed_swap(), True) if has_nothing and record.swapped else (record, False)


# --- Devices that report progress -------------------------------------------------------------------------------------


def _checked(
    step: Swap | Block,
    progress: Progress | None,
    target: Target,
    known: Record | None,
    record: Record,
    situation: DecisionContext,
) -> _Checked | Settle | Stuck:
    """Decide whether the blocks that a device reports are the target's, and really there."""
    if progress is None:
        return _begun(step, record, situation)
    restart = known.restart if known else None
    is_recorded = bool(known and known.is_of(target) and record.describes(progress.version))
    if is_recorded and record.device and situation.device_uid not in ("", record.device):
        return _begin_anew(progress, target, record, situation)  # it was created anew under the same name
    reached = is_recorded and restart is not None and progress.offset in paddings(restart.sent, target.size)
    if progress.offset == 0 and progress.version != target.version:
        return _begun(step, record, situation)
    if restart and restart.stuck and (not reached or progress.offset == restart.midway):
        if known and known.retry == record.retry:
            return Stuck()
        return _begin_anew(progress, target, record, situation)
    if progress.offset == 0:
        return _begun(step, record, situation)
    if not is_recorded:
        return _begin_anew(progress, target, record, situation)
    if restart is None:
        if _orders(step) and isinstance(step, Block):
            return _begin_anew(progress, target, record, situation)  # beyond the end
        return _Checked(step, record)
    if not reached and record.superseded_at(target.version, but=record.checksum):
        # A process that did not know of the order may have continued the device with the other bytes.
        if seconds := _seconds_to_settle(record, situation):
            return Settle(seconds)
        return _begin_anew(progress, target, record, situation)
    if not reached:
        if progress.offset != restart.midway or not 0 < restart.orders < _MAX_ORDERS:
            return Stuck()
        order = replace(restart, orders=restart.orders + 1, sent=min(restart.sent, situation.mtu))
        return _Checked(Block(target.version, 0, order.sent), replace(record, restart=order))
    if restart.midway in paddings(restart.sent, target.size):
        # The device either wrote the block, or refused it.
        return _begin_anew(progress, target, record, situation, most=restart.sent)
    if seconds := _seconds_to_settle(record, situation):
        return Settle(seconds)
    return _Checked(step, replace(record, restart=None))


def _begun(step: Swap | Block, record: Record, situation: DecisionContext) -> _Checked:
    """Start a device that says itself that it has nothing."""
    order = None
    if isinstance(step, Block) and _seconds_to_settle(record, situation):
        order = PendingRestart(step.size, midway=0)
    return _Checked(step, replace(record, restart=order))


def _begin_anew(
    progress: Progress, target: Target, record: Record, situation: DecisionContext, *, most: int | None = None
) -> _Checked | Stuck:
    """Start a device from 0, although it is midway.

    Most devices of the field then expect the offset that they had and refuse the block: they report the new version
    with the old offset, and nothing written below it. So the offset after the block tells whether it was written. It
    has to differ from the old one, and to be lower if a process that does not know of the order may continue the
    device meanwhile: offsets that such a process causes only grow.

    Args:
        progress: what the device reports.
        target: what it should run.
        record: the record of the update to `target`.
        situation: everything else.
        most: a block of this size, in bytes, has told nothing.

    """
    same_version = progress.version == target.version
    size = min(situation.mtu, target.size)
    if most is not None:
        size = _shorter(min(size, most, progress.offset))
    elif size > progress.offset and (same_version or record.superseded_at(target.version)):
        size = _shorter(progress.offset)
    earlier = record.restart.orders if record.restart and not record.restart.stuck else 0
    orders = earlier + 1 if same_version else 0
    if not size or orders > _MAX_ORDERS:
        return Stuck()
    order = PendingRestart(size, progress.offset, orders)
    return _Checked(Block(target.version, 0, size), replace(record, restart=order))


def _shorter(size: int) -> int:
    """Return about half of `size` bytes, in whole flash words; 0 if there is no shorter block."""
    return next((half for word in _WORDS if (half := size // 2 // word * word)), 0)


def _seconds_to_settle(record: Record, situation: DecisionContext) -> int:
    """Return for how long another process may still send other bytes of the record's version.

    Such a process read the device's object before this record took the place of one with the other bytes. It forgets
    that object after `spec_ttl`. Only a status that came after that counts: an older one may have been answered by it.
    """
    if not situation.spec_ttl:
        return 0  # no process remembers any object
    superseded = record.superseded_at(record.version.encode(), but=record.checksum)
    if superseded is None:
        return 0
    # A time ahead of our clock counts as now.
    settled = min(superseded, situation.now) + situation.spec_ttl + _CLOCK_MARGIN
    if situation.reported_at >= settled:
        return 0
    return max(1, math.ceil((settled - situation.now).total_seconds()))


# --- Policy -----------------------------------------------------------------------------------------------------------


def _hold(
    step: Swap | Block, record: Record | None, target: Target, situation: DecisionContext, *, failed_swap: bool
) -> Hold | None:
    """Return why policy gives the device nothing now, if so."""
    policy, poll, version = situation.policy, situation.poll, target.version.decode()
    if policy.paused:
        return Hold("paused", "updates are paused", poll)
    if situation.busy_gateway:
        message = f"its gateway {situation.busy_gateway} is being updated, and would take the blocks for its own"
        return Hold("paused", message, poll)
    most, attempts = policy.max_attempts or MAX_ATTEMPTS, record.attempts if record else 0
    if attempts >= most:
        advice = "a new target, or another spec.firmware.retry, starts afresh"
        return Hold("attempts", f"{version} did not come up, attempts: {attempts}; {advice}", poll, gives_up=True)
    if failed_swap:
        exponent = min(attempts, _MAX_BACKOFF_SECONDS.bit_length())
        pause = min(poll * 2**exponent, max(poll, _MAX_BACKOFF_SECONDS))
        return Hold("backoff", f"{version} did not come up, attempts: {attempts} of {most}", pause)
    if isinstance(step, Swap):
        held = hold_swap(policy, situation.now)
    elif step.offset == 0:
        held = hold_start(policy, situation.uid, situation.labels, version, situation.now)
    else:
        held = None
    if held is None:
        return None
    return Hold(held.reason, held.message, poll if held.opens_in is None else min(math.ceil(held.opens_in), U32_MAX))


# --- The record -------------------------------------------------------------------------------------------------------


def _recorded(checked: _Checked, known: Record | None, situation: DecisionContext) -> Decision:
    """Return the verdict with the record that the step leaves behind, and how fresh it has to be.

    The record is written before each command that starts or ends an update, and before the first command after an
    order to begin anew: a process that finds the order in the record would take the device's offset for a refusal.
    """
    step, record = checked
    if isinstance(step, Swap):
        return Decision(step, record.with_swap(situation.now), True, Freshness.EVERYTHING)
    if step.offset == 0:
        record = replace(
            record.with_start(situation.now),
            swapped=None,
            synced=None,
            syncs=0,
            device=situation.device_uid or None,
            correlates=situation.correlates,
        )
        return Decision(step, record, True, Freshness.EVERYTHING)
    if record != known:
        return Decision(step, record, True, Freshness.EVERYTHING)
    return Decision(step, record)


def _without_restart(record: Record | None) -> Record | None:
    return replace(record, restart=None) if record and record.restart else record
