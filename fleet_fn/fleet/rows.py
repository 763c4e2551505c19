"""The state of a device's update, read from its object."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.status_report import (
    BLOCK_REFUSED,
    FAILED,
    IN_SYNC,
    ON_THE_WAY,
    PROGRESS,
    UNKNOWN,
    Condition,
    HoldReport,
    Reported,
)
from fleet_fn.drogue.update_record import FailedVersion, Record, parse_timestamp
from fleet_fn.fleet.states import State

#: Silence after which an update counts as stalled.
STALLED_AFTER: Final = timedelta(hours=1)
#: Reasons of updates that go on: the device gets blocks, or was told to swap.
WRITING: Final = "writing"
SWAPPED: Final = "swapped"

_PERCENT: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Row:
    """The state of a device's update. A value that its object lacks is None."""

    device: str
    state: State = State.UNKNOWN
    #: Why it is in this state: a word for programs, and a sentence for people.
    reason: str | None = None
    message: str | None = None
    #: When the state began, as far as the object tells.
    since: datetime | None = None
    current: str | None = None
    target: str | None = None
    in_sync: bool | None = None
    #: Percent of the target that is written, 0 to 100.
    progress: float | None = None
    #: Why the device is held back: `paused`, `halted`, `rollout`, `approval`, `window`, `backoff`, `attempts`, or
    #: `unmanaged` if its update was canceled.
    held: str | None = None
    #: When that ends; None if unknown.
    held_until: datetime | None = None
    #: Swaps to the target after which the device came back with another version.
    attempts: int = 0
    #: Versions that did not come up on the device, the latest first.
    failed: tuple[FailedVersion, ...] = ()
    #: The target was given up on this device.
    gave_up: bool = False
    last_change: datetime | None = None
    last_error: str | None = None
    #: When its object was last written, and when it was last seen.
    reported: datetime | None = None
    seen: datetime | None = None
    #: Names of its gateways.
    gateways: tuple[str, ...] = ()

    @property
    def is_updating(self) -> bool:
        """Is true if the device may get blocks, or is held back midway."""
        if self.state not in (State.UPDATING, State.STALLED, State.HELD, State.ROLLED_BACK):
            return False
        return self.held is None or bool(self.progress)

    @property
    def detail(self) -> str:
        """The reason and the message, for people."""
        reason, message = self.reason or "", self.message or ""
        if self.state not in (State.FAILED, State.HELD) or self.gave_up or message.startswith(reason):
            return message
        return f"{reason}: {message}" if message else reason


def read_row(device: Device, now: datetime, stalled_after: timedelta = STALLED_AFTER) -> Row:
    """Return a device's row from `status.firmware`; malformed parts count as missing.

    Args:
        device: a device in a listing.
        now: the current time.
        stalled_after: silence after which an update counts as stalled.

    """
    section = device.status.get("firmware") if isinstance(device.status, dict) else None
    return _View(section).row(device, now, stalled_after)


class _View:
    """What a device's object says about its update."""

    def __init__(self, section: object) -> None:
        fields: Mapping[str, Any] = section if isinstance(section, dict) else {}
        self.reported = reported = Reported.read(fields)
        self.changed = _transitions(fields)
        self.condition = reported.condition(IN_SYNC) or Condition(IN_SYNC, "")
        self.in_sync = {"True": True, "False": False}.get(self.condition.status)
        self.progress = _progress(reported)
        record = reported.record
        #: The record, if it is of the target.
        self.record = record if record and record.version == reported.target else None
        self.started = parse_timestamp(self.record.started) if self.record else None
        self.swapped = parse_timestamp(self.record.swapped) if self.record else None
        self.attempts = self.record.attempts if self.record else 0
        #: The target's failure on the device; None if it has not failed.
        self.failure = _failure(reported, self.record)
        #: The condition that says that the update was given up; None if it was not.
        self.given_up = _given_up(reported)
        #: The condition with the error that keeps the device off its target; None if there is none.
        has_error = reported.target == UNKNOWN or self.condition.reason == BLOCK_REFUSED
        self.error = self.condition if self.in_sync is False and has_error else None
        #: Why policy holds back the device; None if it does not.
        self.hold = self._hold()
        times = [parse_timestamp(text) for text in ((record.started, record.swapped) if record else ())]
        #: The latest time of a condition, of the start, or of the swap.
        self.last_change = _latest(*times, *self.changed.values())
        answered = record.answered.time if record and record.answered else None
        #: The time of the latest sign of the device that its object has.
        self.last_heard = _latest(self.last_change, answered, reported.reported, reported.seen)

    def _hold(self) -> HoldReport | None:
        if self.in_sync is not False or self.reported.target in (None, UNKNOWN):
            return None
        reason = self.condition.reason
        if reason in ("", *ON_THE_WAY, BLOCK_REFUSED):
            return None
        return HoldReport(reason, self.condition.message, self.reported.hold.until if self.reported.hold else None)

    def row(self, device: Device, now: datetime, stalled_after: timedelta) -> Row:
        state = self._state(now, stalled_after)
        reason, message = self._explain(state)
        return Row(
            device.name,
            state,
            reason,
            message,
            self._since(state),
            self.reported.current,
            self.reported.target,
            self.in_sync,
            self.progress,
            self.hold.reason if self.hold else None,
            self.hold.until if self.hold else None,
            self.attempts,
            self.reported.record.failed if self.reported.record else (),
            self.given_up is not None,
            self.last_change,
            self._last_error(),
            self.reported.reported,
            self.reported.seen,
            device.gateways,
        )

    def _state(self, now: datetime, stalled_after: timedelta) -> State:
        if self.given_up or self.error:
            return State.FAILED
        if self.in_sync is False and (self.attempts or self.failure):
            return State.ROLLED_BACK
        if self.in_sync:
            return State.IN_SYNC
        if self.in_sync is None or self.reported.target is None:
            return State.UNKNOWN
        if self.hold:
            return State.HELD
        has_begun = self.progress is not None or self.started is not None or self.swapped is not None
        is_silent = self.last_heard is not None and now - self.last_heard >= stalled_after
        return State.STALLED if has_begun and is_silent else State.UPDATING

    def _since(self, state: State) -> datetime | None:
        """Return when a state began, as far as the object tells."""
        behind = self.changed.get(IN_SYNC)
        match state:
            case State.FAILED if self.given_up:
                return self.changed.get(FAILED) or behind
            case State.ROLLED_BACK:
                return (self.failure.at if self.failure else None) or behind
            case State.STALLED:
                return self.last_heard
            case State.UPDATING:
                return self.swapped or self.started or behind
            case State.FAILED | State.HELD:  # each change of the reason is written
                return self.reported.reported or behind
            case _:
                return behind

    def _explain(self, state: State) -> tuple[str | None, str | None]:
        """Return the reason of a state, and a sentence for people."""
        match state:
            case State.FAILED:
                condition = self.given_up or self.condition
                return condition.reason or None, condition.message or condition.reason or "the target is unknown"
            case State.ROLLED_BACK:
                return self._explain_rollback()
            case State.UPDATING | State.STALLED:
                return self._doing()
            case State.HELD if self.hold:
                return self.hold.reason, self.hold.message or None
            case State.UNKNOWN:
                return None, "never reported"
            case _:
                return None, None

    def _explain_rollback(self) -> tuple[str, str]:
        attempts = self.attempts or (self.failure.attempts if self.failure else 0)
        rollback = f"{self.reported.target} did not come up, attempts: {attempts}"
        reason, message = (self.hold.reason, self.hold.message) if self.hold else self._doing()
        # The message of a pause between two attempts is about the rollback already.
        if message.startswith(rollback):
            return reason, message
        now = ": ".join(filter(None, (reason, message))) if self.hold else message
        return reason, "; ".join(filter(None, (rollback, now)))

    def _doing(self) -> tuple[str, str]:
        """Return how an update goes that is not held back."""
        if self.condition.reason in ON_THE_WAY:
            return self.condition.reason, self.condition.message or self.condition.reason
        if self.swapped:
            return SWAPPED, "told to swap"
        return WRITING, "nothing written yet" if self.progress is None else f"{self.progress:.2f} % written"

    def _last_error(self) -> str | None:
        if self.error:
            return ": ".join(part for part in (self.error.reason, self.error.message) if part) or UNKNOWN
        return (self.given_up.message or self.given_up.reason or FAILED) if self.given_up else None


def _given_up(reported: Reported) -> Condition | None:
    condition = reported.condition(FAILED)
    return condition if condition and condition.status == "True" else None


def _failure(reported: Reported, record: Record | None) -> FailedVersion | None:
    """Return the failure of the target.

    Other bytes of the same version do not count, if the target's are known.
    """
    found = reported.record.failed if reported.record else ()
    checksum = record.checksum if record else None
    return next((f for f in found if f.version == reported.target and checksum in (None, f.checksum)), None)


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time), default=None)


def _progress(reported: Reported) -> float | None:
    condition = reported.condition(PROGRESS)
    if condition is None or not _PERCENT.fullmatch(condition.message):
        return None
    percent = float(condition.message)
    return percent if percent <= 100 else None


def _transitions(fields: Mapping[str, Any]) -> dict[str, datetime]:
    """Return the transition times of our conditions."""
    conditions = fields.get("conditions")
    times: dict[str, datetime] = {}
    for condition in conditions if isinstance(conditions, list) else []:
        kind = condition.get("type") if isinstance(condition, dict) else None
        time = parse_timestamp(condition.get("lastTransitionTime")) if isinstance(condition, dict) else None
        if kind in (IN_SYNC, PROGRESS, FAILED) and time:
            times[kind] = max(time, times.get(kind, time))
    return times
