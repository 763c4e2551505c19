"""Decide a device's next step by the protocol's table, its record, and policy.

Pure, like the decision table itself. The rules come from the protocol's description: "What an answer may rest on" and
"What devices in the field do with an answer".
"""

import math
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from fleet_fn.drogue.update_record import LastAnswered, Record, record_for
from fleet_fn.protocol.messages import U32_MAX, Progress, Status, Swap, Sync
from fleet_fn.protocol.step import Block, Target, next_command
from fleet_fn.update.midway import CLOCK_MARGIN, Checked, Midway, check
from fleet_fn.update.policy import Candidate, hold_start, hold_swap
from fleet_fn.update.values import (
    Again,
    Confirm,
    Decision,
    DecisionContext,
    Freshness,
    Hold,
    Settle,
    Stuck,
    starts_or_ends,
)

#: Swaps after which a version that never comes up is not sent any more.
MAX_ATTEMPTS: Final = 3
#: The longest pause between two attempts.
_MAX_BACKOFF_SECONDS: Final = 24 * 60 * 60
#: One status that is published twice, with different ids, arrives within this time.
_AT_ONCE: Final = timedelta(seconds=1)
#: The twin of a status comes within this time of the first.
_TWIN_AGE: Final = timedelta(seconds=30)
#: A device that did not hear a command reports again within this time: it listens for 30 s, and rests for 10 s.
_SILENCE_SECONDS: Final = 45


def decide(status: Status, target: Target, context: DecisionContext) -> Decision:
    """Return the command that brings a device closer to `target`, if it may have one."""
    known, answered = _without_future_times(context)
    if known is not context.record or answered is not context.answered:
        context = context._replace(record=known, answered=answered)
    before = known.answered if known else None
    if known and answered and before and set(answered.events) & set(before.events):
        return Decision(Again(), known, rests_on=Freshness.NOW)
    decision = confirm(status, target.version, context) or _decide(status, target, context)
    if not (known and answered):
        return _with_answer(decision, known, answered)
    if answered.is_before(before):
        if _is_harmless(decision, status, known):
            return decision._replace(record=known)
        return Decision(Again(), known, rests_on=Freshness.NOW)
    was_start = known.is_of(target) and known.started is not None and known.swapped is None
    is_start = isinstance(decision.step, Block) and decision.step.offset == 0
    if is_start and was_start and _is_published_twice(answered, before, context.now):
        return Decision(Again(), known, rests_on=Freshness.NOW)
    return _with_answer(decision, known, answered)


def _is_harmless(decision: Decision, status: Status, known: Record) -> bool:
    """Return whether a status older than the last recorded one may be answered.

    The device has reported since, and takes the command for the answer to that. Nothing of the old status is recorded.
    """
    step = decision.step
    if isinstance(step, Block):
        is_next = step.offset > 0 and not decision.records_first
        return is_next and known.restart is None and known.swapped is None
    # By now, the device may run another version than it did: it must not hear SYNC for that one.
    runs_it = known.swapped is None or known.version.encode() == status.version
    return isinstance(step, Sync | Hold) and runs_it


def confirm(status: Status, target: bytes | None, context: DecisionContext) -> Decision | None:
    """Return SYNC if the device may not have heard it since it came up.

    The device was swapped to the version that it came up with.

    Args:
        status: the device's status.
        target: the version that it should run; None if that is unknown.
        context: everything else.

    """
    record = context.record
    if record is None or status.version == target or not record.awaits_sync(status.version):
        return None
    if has_begun(status):
        return None
    if _may_have_heard_sync(record, context):
        return None
    return Decision(Confirm(status.version, context.poll), record.with_sync(context.now))


def has_begun(status: Status) -> bool:
    """Return whether a device has blocks of another version than the one that it runs.

    Some devices always report progress, at 0 if they have none; others keep that of the update that they came up with.
    """
    progress = status.progress
    return progress is not None and progress.offset > 0 and progress.version != status.version


def _may_have_heard_sync(record: Record, context: DecisionContext) -> bool:
    """Return whether the device may have heard an earlier SYNC.

    A device that has heard SYNC keeps still for `poll` seconds. One that reports earlier has not, or keeps no time.
    """
    if record.syncs >= context.enough_syncs:
        return True
    synced = record.synced_at()
    silence = timedelta(seconds=max(0.9 * context.poll, _SILENCE_SECONDS))
    return synced is not None and context.reported_at - synced >= silence


def _without_future_times(context: DecisionContext) -> tuple[Record | None, LastAnswered | None]:
    """Return the record and this event's answer with no time ahead of our clock.

    In an event such a time counts as now. In a record it says nothing: each later status would count as older.
    """
    known, answered, now = context.record, context.answered, context.now
    if known and known.answered and known.answered.time and known.answered.time > now:
        known = replace(known, answered=replace(known.answered, time=None))
    if answered and (answered.time is None or answered.time > now):
        answered = replace(answered, time=now)
    return known, answered


def _with_answer(decision: Decision, known: Record | None, answered: LastAnswered | None) -> Decision:
    """Return the decision with this event in its record, if that is written anyway."""
    record = decision.record
    is_same = record is known or record == known
    if answered is None or record is None or (is_same and not starts_or_ends(decision.step)):
        return decision
    return decision._replace(record=replace(record, answered=answered.after(known.answered if known else None)))


def _is_published_twice(answered: LastAnswered, before: LastAnswered | None, now: datetime) -> bool:
    """Return whether a status is the last answered one under another id."""
    if not (before and before.time and answered.time and before.status):
        return False
    if now - before.time > _TWIN_AGE:
        return False  # its sender's clock stands still
    return before.status == answered.status and abs(answered.time - before.time) < _AT_ONCE


def _decide(status: Status, target: Target, context: DecisionContext) -> Decision:
    """Return the decision on a status that was not answered yet.

    The device keeps the version that it runs.
    """
    known = _with_earlier_failure(status, target, context.record, context.now)
    if known is not context.record:
        # An old record may show a swap that the device has come up from since.
        decision = _decide_by_record(status, target, known, context)
        return decision._replace(rests_on=Freshness.NOW)
    return _decide_by_record(status, target, known, context)


def _with_earlier_failure(status: Status, target: Target, known: Record | None, now: datetime) -> Record | None:
    """Return the record with a failed swap to an earlier target.

    It is the known record if the status shows none, or if it has the failure already. The swap itself stays in the
    record: a device that comes up late all the same has to hear SYNC.
    """
    if known is None or known.is_of(target) or known.synced or not known.swapped:
        return known
    has_blocks = status.progress is not None and status.progress.offset > 0
    if has_blocks or status.version == known.version.encode():
        return known
    return known.with_earlier_failure(now.replace(microsecond=0))


def _decide_by_record(status: Status, target: Target, known: Record | None, context: DecisionContext) -> Decision:
    """Return the decision on a status, by the record of the device's update."""
    step = next_command(status, target, mtu=context.mtu, poll=context.poll)
    if isinstance(step, Sync):
        came_up = known
        if known and known.is_of(target) and known.swapped and not known.synced:
            came_up = known.with_sync(context.now)
        if known and not known.is_of(target) and known.swapped is None and known.started and not has_begun(status):
            came_up = replace(known, started=None)  # what it had begun has come to nothing
        return Decision(step, came_up if status.progress else _without_restart(came_up))
    if not context.keeps_records:
        hold = _hold(step, None, target, context, failed_swap=False)
        rests_on = Freshness.EVERYTHING if starts_or_ends(step) else Freshness.MEMORY
        return Decision(hold, None) if hold else Decision(step, None, rests_on=rests_on)
    if known and _refuses_to_start(status.progress, target, known, context):
        return Decision(Confirm(status.version, context.poll), known.with_sync(context.now))
    kept = context.spec_ttl + CLOCK_MARGIN
    now = context.now.replace(microsecond=0)
    record = record_for(target, known, context.retry, now, kept).with_return()
    record, failed_swap = _count_failed_swap(status.progress, record, now)
    checked = check(Midway(step, status.progress, target, known, record, context))
    if isinstance(checked, Stuck):
        stuck = replace(known, restart=replace(known.restart, stuck=True)) if known and known.restart else known
        return Decision(checked, stuck, rests_on=Freshness.NOW)
    if isinstance(checked, Settle):
        return Decision(checked, known, rests_on=Freshness.NOW)
    if hold := _hold(checked.step, record, target, context, failed_swap=failed_swap):
        of_target = known is not None and known.is_of(target)
        held = record if of_target else known
        # An old record may show a swap that the device has come up from since.
        rests_on = Freshness.NOW if failed_swap else Freshness.MEMORY
        return Decision(hold, held if status.progress else _without_restart(held), rests_on=rests_on)
    return _record(checked, known, context)


def _refuses_to_start(progress: Progress | None, target: Target, known: Record, context: DecisionContext) -> bool:
    """Return whether the device refused its last start.

    Bootloaders whose firmware was not marked good yet do so. SYNC marks it good. The device gets it once between two
    starts.
    """
    is_refusal = context.tells_refusals and progress == Progress(target.version, 0)
    was_started = known.is_of(target) and known.started is not None and known.swapped is None
    return is_refusal and was_started and known.syncs == 0


def _count_failed_swap(progress: Progress | None, record: Record, now: datetime) -> tuple[Record, bool]:
    """Return the record after a status, and whether that status shows a failed swap.

    Some devices always report progress, at 0 if they have none.
    """
    if progress is None:
        record = replace(record, restart=None)
    has_nothing = progress is None or progress.offset == 0
    return (record.with_failed_swap(now), True) if has_nothing and record.swapped else (record, False)


# --- Policy -----------------------------------------------------------------------------------------------------------


def _hold(
    step: Swap | Block, record: Record | None, target: Target, context: DecisionContext, *, failed_swap: bool
) -> Hold | None:
    """Return why policy gives the device nothing now, if so."""
    policy, poll, version = context.policy, context.poll, target.version.decode()
    most, attempts = policy.max_attempts or MAX_ATTEMPTS, record.attempts if record else 0
    given_up = _describe_failure(version, attempts) if attempts >= most else ""
    if context.rollout.halts(version, policy.max_failed):
        return Hold("halted", _describe_halt(version, context), poll, given_up)
    if policy.paused:
        return Hold("paused", "updates are paused", poll)
    if context.busy_gateway:
        message = f"its gateway {context.busy_gateway} is being updated, and would take the blocks for its own"
        return Hold("paused", message, poll)
    if given_up:
        advice = "a new version, or fleet-fn rollout retry, starts afresh"
        return Hold("attempts", f"{given_up}; {advice}", poll, f"{given_up}; {advice}")
    if failed_swap:
        exponent = min(attempts, _MAX_BACKOFF_SECONDS.bit_length())
        pause = min(poll * 2**exponent, max(poll, _MAX_BACKOFF_SECONDS))
        message = f"{_describe_failure(version, attempts)} of {most}"
        return Hold("backoff", message, pause, until=context.now + timedelta(seconds=pause))
    source = context.source_hold
    if source and (isinstance(step, Swap) or not source.of_swap_only):
        return Hold(source.reason, source.message, poll)
    if isinstance(step, Swap):
        held = hold_swap(policy, context.now)
    elif step.offset == 0:
        device = Candidate(context.uid, context.labels)
        held = hold_start(policy, device, context.rollout_version or version, context.now, context.rollout)
    else:
        held = None
    if held is None:
        return None
    pause = poll if held.opens_in is None else min(math.ceil(held.opens_in), U32_MAX)
    return Hold(held.reason, held.message, pause, until=held.until)


def _describe_failure(version: str, attempts: int) -> str:
    return f"{version} did not come up, attempts: {attempts}"


def _describe_halt(version: str, context: DecisionContext) -> str:
    """Return why no device gets anything of a version.

    The text stays the same while more devices fail.
    """
    if version in context.rollout.aborted:
        return f"the rollout of {version} was aborted"
    return f"{version} failed on {context.policy.max_failed} or more devices (rollout.maxFailed)"


# --- The record -------------------------------------------------------------------------------------------------------


def _record(checked: Checked, known: Record | None, context: DecisionContext) -> Decision:
    """Return the decision with the record after its step, and how fresh it must be.

    The record is written before each command that starts or ends an update, and before the first command after an
    order to begin anew: a process that finds the order in the record would take the device's offset for a refusal.
    """
    step, record = checked
    if isinstance(step, Swap):
        return Decision(step, record.with_swap(context.now), True, Freshness.EVERYTHING)
    if step.offset == 0:
        record = replace(
            record.with_start(context.now),
            swapped=None,
            synced=None,
            syncs=0,
            device=context.device_uid or None,
            correlates=context.correlates,
        )
        return Decision(step, record, True, Freshness.EVERYTHING)
    if record is not known and record != known:
        return Decision(step, record, True, Freshness.EVERYTHING)
    return Decision(step, record)


def _without_restart(record: Record | None) -> Record | None:
    return replace(record, restart=None) if record and record.restart else record
