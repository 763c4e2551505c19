"""Derive the turning points of a device's update from the report of an answer.

Pure. The device's object is the memory: an answer whose report says nothing new has no transition, whichever
process gives it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fleet_fn.drogue.status_report import FAILED, GIVEN_UP, IN_SYNC, UNKNOWN, Report, Reported
from fleet_fn.drogue.update_record import FailedVersion, Record
from fleet_fn.protocol.messages import Swap
from fleet_fn.update.values import Hold, starts_or_ends

#: Reasons of holds that follow from a failed swap, which has a transition of its own.
_AFTER_FAILURE: Final = ("backoff", "attempts")


class Subject(StrEnum):
    """What happened to an update. docs/audit.md says what each means."""

    STARTED = "started"
    SWAPPED = "swapped"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled-back"
    GAVE_UP = "gave-up"
    HELD = "held"
    FAILED = "failed"
    HALTED = "halted"


@dataclass(frozen=True, slots=True)
class Transition:
    """A turning point of a device's update. Empty texts are unknown."""

    subject: Subject
    #: The version that the device ran, as far as its object told, and the one that it should run.
    from_version: str = ""
    to_version: str = ""
    #: SHA-256 of the firmware, in hex.
    checksum: str = ""
    #: Failed swaps to the version so far.
    attempts: int = 0
    #: Why, if it is a hold, a failure, or given up.
    reason: str = ""


def transitions_of(step: object, report: Report, checksum: str, reported: Reported) -> tuple[Transition, ...]:
    """Return the transitions that a report tells, in the order in which they happened.

    Args:
        step: the decided step.
        report: what the device's object is going to say.
        checksum: SHA-256 of the firmware that the device should get, in hex; empty if it is unknown.
        reported: what it said before.

    """
    transitions = tuple(_recorded(report, reported))
    return transitions + tuple(_held(step, report, reported, checksum)) if isinstance(step, Hold) else transitions


def transitions_without_record(step: object, current: str, version: str, checksum: str) -> tuple[Transition, ...]:
    """Return the transitions of an answer to a device whose object is not written.

    Args:
        step: the decided step.
        current: the version that the device runs.
        version: that of the firmware that it gets.
        checksum: SHA-256 of that firmware, in hex.

    """
    if not starts_or_ends(step):
        return ()
    return (Transition(Subject.SWAPPED if isinstance(step, Swap) else Subject.STARTED, current, version, checksum),)


def failure_of(reason: str, report: Report, reported: Reported) -> tuple[Transition, ...]:
    """Return the transition to a failure, unless it was told before.

    Args:
        reason: why it failed, in short. The device's object gives it, if it was told before.
        report: what the device's object would say, or would have said without the failure.
        reported: what it said before.

    """
    if reason == _reason(reported):
        return ()
    target = next((target for target in (report.target, reported.target) if target not in (None, UNKNOWN)), None)
    record = report.record or reported.record
    record = record if record and record.version == target else None
    checksum, attempts = (record.checksum, record.attempts) if record else ("", 0)
    return (Transition(Subject.FAILED, report.current, target or "", checksum, attempts, reason),)


def _recorded(report: Report, reported: Reported) -> Iterator[Transition]:
    """Yield the transitions that the record of the update shows."""
    after = report.record
    if after is None or not report.changes_record:
        return
    before = _of_same_target(report.before, after)
    if after.attempts > (before.attempts if before else 0):
        yield _of_record(Subject.ROLLED_BACK, report.current, after)
    elif failed := _failed_earlier(report.before, after):
        yield Transition(Subject.ROLLED_BACK, report.current, failed.version, failed.checksum, failed.attempts)
    if after.started and not (before and before.started):
        yield _of_record(Subject.STARTED, report.current, after)
    if after.swapped and not (before and before.swapped):
        yield _of_record(Subject.SWAPPED, report.current, after)
    # A device that refuses to start hears SYNC too, in its old version.
    if after.synced and not (before and before.synced) and report.current == after.version:
        earlier = reported.current or ""
        yield _of_record(Subject.SUCCEEDED, earlier if earlier != report.current else "", after)


def _held(hold: Hold, report: Report, reported: Reported, checksum: str) -> Iterator[Transition]:
    """Yield the transitions of a device that policy holds back."""
    record = report.record
    attempts = record.attempts if record and record.checksum == checksum else 0
    gave_up = reported.condition(FAILED)
    if hold.given_up and not (gave_up and gave_up.status == "True"):
        yield Transition(Subject.GAVE_UP, report.current, report.target, checksum, attempts, GIVEN_UP)
    if hold.reason not in _AFTER_FAILURE and hold.reason != _reason(reported):
        yield Transition(Subject.HELD, report.current, report.target, checksum, attempts, hold.reason)


def _of_record(subject: Subject, current: str, record: Record) -> Transition:
    return Transition(subject, current, record.version, record.checksum, record.attempts)


def _failed_earlier(before: Record | None, after: Record) -> FailedVersion | None:
    """Return the version that has failed since, although the target had moved on."""
    known = before.failed if before else ()
    return after.failed[0] if after.failed and after.failed[:1] != known[:1] else None


def _of_same_target(before: Record | None, after: Record) -> Record | None:
    """Return the earlier record if it is of the same version and the same bytes."""
    is_same = before is not None and (before.version, before.checksum) == (after.version, after.checksum)
    return before if is_same else None


def _reason(reported: Reported) -> str:
    """Return why the device was said to be out of sync; empty if that is not known."""
    condition = reported.condition(IN_SYNC)
    return condition.reason if condition else ""
