"""How far a device's update is, told by its object; and what many of them come to."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.status_report import (
    BLOCK_REFUSED,
    FAILED,
    IN_SYNC,
    ON_THE_WAY,
    PROGRESS,
    UNKNOWN,
    Condition,
    Reported,
)
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.fleet.gateways import Gateways

_PERCENT: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
#: Characters by which versions are told apart when they are counted: devices may report what they like.
_MAX_VERSION: Final = 255


class State(Enum):
    """What is up with a device; each is in one."""

    IN_SYNC = "inSync"
    UPDATING = "updating"
    HELD = "held"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """How far a device is; what its object does not say is None."""

    device: str
    state: State = State.UNKNOWN
    current: str | None = None
    target: str | None = None
    in_sync: bool | None = None
    #: Percent of the target that are written, 0 to 100.
    progress: float | None = None
    #: Why it is held back: `paused`, `rollout`, `window`, `backoff`, `attempts`.
    held: str | None = None
    #: Swaps to the target after which it came back with another version.
    attempts: int = 0
    #: RFC 3339, UTC.
    last_change: str | None = None
    last_error: str | None = None
    #: The devices through which it may be reached.
    gateways: tuple[str, ...] = ()

    @property
    def is_updating(self) -> bool:
        """Whether the device is sent blocks, or has begun with them and is held back."""
        return self.state is State.UPDATING or (self.state is State.HELD and bool(self.progress))


def read_row(device: Device) -> Row:
    """What a device's `status.firmware` says; where it is something else than it should be, nothing."""
    section = device.status.get("firmware") if isinstance(device.status, dict) else None
    reported = Reported.read(section)
    in_sync = _in_sync(reported)
    held = _held(reported) if in_sync is False else None
    error = _error(reported) if in_sync is False else None
    failed = _failed(reported)
    record = reported.record
    return Row(
        device.name,
        _state(reported, in_sync, failed=error is not None or failed is not None, held=held is not None),
        reported.current,
        reported.target,
        in_sync,
        _progress(reported),
        held,
        record.attempts if record and record.version == reported.target else 0,
        _last_change(section, reported),
        error if error is not None else failed,
        device.gateways,
    )


def _state(reported: Reported, in_sync: bool | None, *, failed: bool, held: bool) -> State:
    if failed:
        return State.FAILED
    if in_sync:
        return State.IN_SYNC
    if held:
        return State.HELD
    return State.UPDATING if in_sync is False and reported.target is not None else State.UNKNOWN


def _in_sync(reported: Reported) -> bool | None:
    condition = reported.condition(IN_SYNC)
    return {"True": True, "False": False}.get(condition.status) if condition else None


def _held(reported: Reported) -> str | None:
    """Return why policy holds back a device that is not in sync."""
    condition = reported.condition(IN_SYNC)
    if condition is None or reported.target in (None, UNKNOWN) or condition.reason in (*ON_THE_WAY, BLOCK_REFUSED):
        return None
    return condition.reason or None


def _error(reported: Reported) -> str | None:
    """Return what keeps a device that is not in sync from its target, if it is no policy."""
    condition = reported.condition(IN_SYNC)
    is_error = condition is not None and (reported.target == UNKNOWN or condition.reason == BLOCK_REFUSED)
    return _told(condition) if condition and is_error else None


def _failed(reported: Reported) -> str | None:
    """Why a device's update was given up."""
    condition = reported.condition(FAILED)
    if condition is None or condition.status != "True":
        return None
    return condition.message or condition.reason or FAILED


def _told(condition: Condition) -> str:
    return ": ".join(part for part in (condition.reason, condition.message) if part) or UNKNOWN


def _progress(reported: Reported) -> float | None:
    condition = reported.condition(PROGRESS)
    if condition is None or not _PERCENT.fullmatch(condition.message):
        return None
    percent = float(condition.message)
    return percent if percent <= 100 else None


def _last_change(section: object, reported: Reported) -> str | None:
    """The last moment that the object tells of."""
    record = reported.record
    told = [*_transitions(section), *((record.started, record.swapped) if record else ())]
    moments = [moment for text in told if (moment := _moment(text))]
    return timestamp(max(moments)) if moments else None


def _transitions(section: object) -> list[object]:
    """When our conditions changed, as far as that is told."""
    conditions = section.get("conditions") if isinstance(section, dict) else None
    return [
        condition.get("lastTransitionTime")
        for condition in (conditions if isinstance(conditions, list) else [])
        if isinstance(condition, dict) and condition.get("type") in (IN_SYNC, PROGRESS, FAILED)
    ]


def _moment(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


@dataclass(slots=True)
class Totals:
    """How many devices are in which state, run which version, and have which as their target."""

    states: Counter[State] = field(default_factory=Counter)
    current: Counter[str] = field(default_factory=Counter)
    target: Counter[str] = field(default_factory=Counter)
    gateways: Gateways = field(default_factory=Gateways)

    def add(self, rows: Iterable[Row]) -> None:
        """Count further devices."""
        for row in rows:
            self.states[row.state] += 1
            if row.current is not None:
                self.current[row.current[:_MAX_VERSION]] += 1
            if row.target not in (None, UNKNOWN):
                self.target[row.target[:_MAX_VERSION]] += 1
            self.gateways.add(row.device, row.gateways, is_updating=row.is_updating)

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.states.total()

    @property
    def versions(self) -> list[str]:
        """All versions that devices run, or have as their target: the highest first, as people count."""
        return sorted({*self.current, *self.target}, key=_natural, reverse=True)


def _natural(version: str) -> list[tuple[int, str]]:
    """A key that sorts 0.1.10 above 0.1.9."""
    texts_and_numbers = re.split("([0-9]+)", version)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in texts_and_numbers]
