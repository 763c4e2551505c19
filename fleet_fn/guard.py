"""What stands between a status and the command that the decision table has for it: policy, and what is noted.

Pure, like the table itself. What devices of the field do with an answer, and so what must not be sent to them, is
told by the protocol's description ("What devices in the field do with an answer").
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from types import MappingProxyType
from typing import Final, NamedTuple

from fleet_fn.policy import NONE, Policy, hold_start, hold_swap
from fleet_fn.protocol.messages import U32_MAX, Progress, Status, Swap, Sync
from fleet_fn.protocol.step import Block, Target, next_command, paddings
from fleet_fn.record import LastAnswered, Record, Restart, record_for

#: Swaps after which a version that never comes up is not sent any more.
MAX_ATTEMPTS: Final = 3
#: Times that a device midway is told to begin anew with the version that it has, until it counts as one that refuses.
_MAX_ORDERS: Final = 5
#: Seconds that a device is told to keep away between two attempts, at most.
_LONGEST_PAUSE: Final = 24 * 60 * 60
#: Bytes of the flash words that a shortened block should consist of, the best first.
_WORDS: Final = (32, 16, 8, 4, 1)
#: Starts, or swaps, of one device that are less apart are noted once.
_AT_ONCE: Final = timedelta(seconds=1)


class Look(Enum):
    """How fresh what a verdict rests on has to be."""

    #: What is remembered will do.
    MEMORY = 0
    #: The device's object has to be read anew.
    DEVICE = 1
    #: Its application's, and the tag's manifest, too.
    EVERYTHING = 2
    #: The same, and the device's object since this status came: a moment ago is too long ago.
    NOW = 3


class Hold(NamedTuple):
    """A device that is not on its target stays where it is for now."""

    reason: str
    #: Why, for people.
    message: str
    #: Seconds until it asks again.
    poll: int
    #: The version was given up.
    gives_up: bool = False


@dataclass(frozen=True, slots=True)
class Stuck:
    """A device of which nobody knows what it has written."""

    message: str = (
        "power-cycle it: it was told to begin anew, but reports another offset than that of the block sent, "
        "so nobody knows what it has written"
    )


@dataclass(frozen=True, slots=True)
class Again:
    """A status that another process has answered.

    The device would take an answer for the one to what it says next, and some erase what they have written then.
    """


class Situation(NamedTuple):
    """What there is to know besides the status and the target."""

    now: datetime
    #: Bytes of a block at most.
    mtu: int
    #: Seconds after which a device in sync asks again.
    poll: int
    #: What is noted of the device's update.
    record: Record | None = None
    policy: Policy = NONE
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    #: What to note once the status is answered; None where it does not matter whether it has been before.
    answered: LastAnswered | None = None


class Verdict(NamedTuple):
    """What to do with a device, and what to note of it."""

    step: Sync | Swap | Block | Hold | Stuck | Again
    #: What is noted of its update when the step is taken.
    record: Record | None
    #: It has to be noted before the command goes out, because nobody could tell later; but that the status is answered.
    notes_first: bool = False
    rests_on: Look = Look.MEMORY


def judge(status: Status, target: Target, situation: Situation) -> Verdict:
    """The command that brings a device closer to `target`, if it may have one."""
    known, answered = situation.record, situation.answered
    before = known.answered if known else None
    if answered and before and set(answered.events) & set(before.events):
        return Verdict(Again(), known)
    verdict = _judge(status, target, situation)
    if known and status.progress is None and answered and answered.is_before(before):
        # The device has said something since, and may have blocks by now, or an order to begin anew.
        verdict = verdict._replace(record=known, notes_first=False)
    if answered is None or verdict.record is None:
        return verdict
    if verdict.record == known and (not _orders_again(verdict.step) or _at_once(answered, before)):
        return verdict
    return verdict._replace(record=replace(verdict.record, answered=answered.after(before)))


def _orders_again(step: object) -> bool:
    """Whether it starts or ends an update, which is no news where it did before but that the status was answered."""
    return isinstance(step, Swap) or (isinstance(step, Block) and step.offset == 0)


def _at_once(answered: LastAnswered, before: LastAnswered | None) -> bool:
    return bool(before and before.time and answered.time and abs(answered.time - before.time) < _AT_ONCE)


def _judge(status: Status, target: Target, situation: Situation) -> Verdict:
    """The verdict on a status that nobody has answered yet."""
    known = situation.record
    step = next_command(status, target, mtu=situation.mtu, poll=situation.poll)
    if isinstance(step, Sync):
        came_up = known.with_success(situation.now) if known and known.is_of(target) else known
        return Verdict(step, came_up if status.progress else _without_restart(came_up))
    record, failed_swap = _counted(status, record_for(target, known, situation.policy.retry).with_return())
    checked = _checked(step, status.progress, target, known, record, situation.mtu)
    if isinstance(checked, Stuck):
        stuck = replace(known, restart=replace(known.restart, stuck=True)) if known and known.restart else known
        return Verdict(checked, stuck, rests_on=Look.NOW)
    if hold := _hold(checked.step, record, target, situation, failed_swap=failed_swap):
        of_target = known is not None and known.is_of(target)
        noted = record if of_target else known
        return Verdict(hold, noted if status.progress else _without_restart(noted))
    return _noted(checked, known, target, situation)


class _Checked(NamedTuple):
    """What the table and the notes together allow."""

    step: Swap | Block
    record: Record


def _counted(status: Status, record: Record) -> tuple[Record, bool]:
    """The record with what a status without progress tells, and whether that is that a swap came to nothing."""
    if status.progress is not None:
        return record, False
    if record.swapped:
        record = record.with_failed_swap()
        return replace(record, restart=None), True
    return replace(record, restart=None), False


def _checked(
    step: Swap | Block, progress: Progress | None, target: Target, known: Record | None, record: Record, mtu: int
) -> _Checked | Stuck:
    """Whether the blocks that a device says it has are those of the target, and really there."""
    if progress is None:
        return _Checked(step, record)
    restart = known.restart if known else None
    if restart and restart.stuck:
        if known and known.retry == record.retry:
            return Stuck()
        return _begin_anew(progress, target, record, mtu)
    if progress.offset == 0:
        return _begun(step, record, restart if known and known.is_of(target) else None)
    if progress.version != target.version:
        return _begin_anew(progress, target, record, mtu)
    if known and known.has_version_of(target) and not known.is_of(target):
        return _begin_anew(progress, target, record, mtu)  # the tag has been pushed anew: other bytes, same version
    if restart is None:
        if isinstance(step, Block) and step.offset == 0:
            return _begin_anew(progress, target, record, mtu)  # beyond the end
        return _Checked(step, record)
    if not record.restart:
        # It was told to begin with another version, and may hear of that any moment. Where its blocks of this one came
        # from is not known any more.
        return _begin_anew(progress, target, record, mtu)
    if progress.offset not in paddings(restart.sent, target.size):
        if progress.offset != restart.midway or not 0 < restart.orders < _MAX_ORDERS:
            return Stuck()
        order = replace(restart, orders=restart.orders + 1, sent=min(restart.sent, mtu))
        return _Checked(Block(target.version, 0, order.sent), replace(record, restart=order))
    if restart.midway in paddings(restart.sent, target.size):
        return _begin_anew(progress, target, record, mtu, shorter=True)  # either it wrote the block, or it refused it
    return _Checked(step, replace(record, restart=None))


def _begun(step: Swap | Block, record: Record, restart: Restart | None) -> _Checked:
    """A device that says itself that it has nothing; the block that begins may have another size by now."""
    if restart and isinstance(step, Block):
        record = replace(record, restart=replace(restart, sent=step.size))
    return _Checked(step, record)


def _begin_anew(
    progress: Progress, target: Target, record: Record, mtu: int, *, shorter: bool = False
) -> _Checked | Stuck:
    """From 0, although the device is midway.

    Most devices of the field then expect the offset that they had, refuse the block, and tell nobody: they report the
    new version with the old offset, and nothing written below it.
    """
    size = min(mtu, target.size)
    if shorter:
        size = _shortened(size)
    if not size:
        return Stuck()
    orders = 1 if progress.version == target.version else 0
    return _Checked(Block(target.version, 0, size), replace(record, restart=Restart(size, progress.offset, orders)))


def _shortened(size: int) -> int:
    """About half of `size` bytes, in whole flash words."""
    return next((half for word in _WORDS if (half := size // 2 // word * word)), 0)


def _hold(
    step: Swap | Block, record: Record, target: Target, situation: Situation, *, failed_swap: bool
) -> Hold | None:
    """Why the device gets nothing now, if so."""
    policy, poll, version = situation.policy, situation.poll, target.version.decode()
    if policy.paused:
        return Hold("paused", "updates are paused", poll)
    most = policy.max_attempts or MAX_ATTEMPTS
    if record.attempts >= most:
        advice = "a new target, or another spec.firmware.retry, starts afresh"
        return Hold(
            "attempts", f"{version} did not come up, attempts: {record.attempts}; {advice}", poll, gives_up=True
        )
    if failed_swap:
        pause = min(poll * 2 ** min(record.attempts, _LONGEST_PAUSE.bit_length()), max(poll, _LONGEST_PAUSE))
        return Hold("backoff", f"{version} did not come up, attempts: {record.attempts} of {most}", pause)
    if isinstance(step, Swap):
        held = hold_swap(policy, situation.now)
    elif step.offset == 0:
        held = hold_start(policy, situation.uid, situation.labels, version, situation.now)
    else:
        held = None
    if held is None:
        return None
    return Hold(held.reason, held.message, poll if held.opens_in is None else min(math.ceil(held.opens_in), U32_MAX))


def _noted(checked: _Checked, known: Record | None, target: Target, situation: Situation) -> Verdict:
    step, record, mtu = checked.step, checked.record, situation.mtu
    of_target = known is not None and known.is_of(target)
    notes_first = record.restart != (known.restart if known else None) or (record.restart is not None and not of_target)
    if isinstance(step, Swap):
        return Verdict(step, record.with_swap(situation.now), notes_first, Look.EVERYTHING)
    record = record.with_start(situation.now)
    if step.offset == 0:
        notes_first = notes_first or (record.republished and not of_target)
        return Verdict(step, record, notes_first, Look.EVERYTHING)
    if record.republished and step.offset % mtu == 0 and step.size == mtu:
        step = replace(step, size=_shortened(mtu) or mtu)
    rests_on = Look.MEMORY if of_target and not _wants_look(step.offset, mtu) else Look.DEVICE
    return Verdict(step, record, notes_first, Look.EVERYTHING if notes_first else rests_on)


def _wants_look(offset: int, mtu: int) -> bool:
    """Whether a block must not rest on what is remembered of the device.

    Another process may have told it to begin anew, with other bytes under the same version, after this one read its
    object. So whoever sends a device's second block looks. Where the bytes are others, it sends a shorter one; from
    then on no offset is a multiple of the block size, by which everybody knows to look.
    """
    return offset <= mtu or offset % mtu != 0


def _without_restart(record: Record | None) -> Record | None:
    return replace(record, restart=None) if record and record.restart else record
