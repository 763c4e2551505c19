"""The state of a device's update, read from its object, and the totals of a fleet."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
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
from fleet_fn.drogue.update_record import parse_timestamp, timestamp
from fleet_fn.fleet.gateways import Gateways

_PERCENT: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,9})?")
#: Versions are counted by this many characters: a device may report a longer one.
_MAX_VERSION_CHARS: Final = 255


class State(Enum):
    """The state of a device."""

    IN_SYNC = "inSync"
    UPDATING = "updating"
    HELD = "held"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Row:
    """The state of a device's update. A value that its object lacks is None."""

    device: str
    state: State = State.UNKNOWN
    current: str | None = None
    target: str | None = None
    in_sync: bool | None = None
    #: Percent of the target that is written, 0 to 100.
    progress: float | None = None
    #: Why the device is held back: `paused`, `rollout`, `window`, `backoff`, `attempts`.
    held: str | None = None
    #: Swaps to the target after which the device came back with another version.
    attempts: int = 0
    #: RFC 3339, UTC.
    last_change: str | None = None
    last_error: str | None = None
    #: Names of its gateways.
    gateways: tuple[str, ...] = ()

    @property
    def is_updating(self) -> bool:
        """Is true if the device gets blocks, or is held back midway."""
        return self.state is State.UPDATING or (self.state is State.HELD and bool(self.progress))


def read_row(device: Device) -> Row:
    """Return a device's row from `status.firmware`; malformed parts count as missing."""
    section = device.status.get("firmware") if isinstance(device.status, dict) else None
    reported = Reported.read(section)
    in_sync = _in_sync(reported)
    held = _held(reported) if in_sync is False else None
    error = _error(reported) if in_sync is False else None
    failed = _find_error(reported)
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
    """Return the error that keeps a device off its target; None if policy does."""
    condition = reported.condition(IN_SYNC)
    is_error = condition is not None and (reported.target == UNKNOWN or condition.reason == BLOCK_REFUSED)
    return _describe(condition) if condition and is_error else None


def _find_error(reported: Reported) -> str | None:
    """Return why a device's update was given up."""
    condition = reported.condition(FAILED)
    if condition is None or condition.status != "True":
        return None
    return condition.message or condition.reason or FAILED


def _describe(condition: Condition) -> str:
    return ": ".join(part for part in (condition.reason, condition.message) if part) or UNKNOWN


def _progress(reported: Reported) -> float | None:
    condition = reported.condition(PROGRESS)
    if condition is None or not _PERCENT.fullmatch(condition.message):
        return None
    percent = float(condition.message)
    return percent if percent <= 100 else None


def _last_change(section: object, reported: Reported) -> str | None:
    """Return the latest time in the object."""
    record = reported.record
    times = [*_transitions(section), *((record.started, record.swapped) if record else ())]
    moments = [moment for text in times if (moment := parse_timestamp(text))]
    return timestamp(max(moments)) if moments else None


def _transitions(section: object) -> list[object]:
    """Return the transition times of our conditions."""
    conditions = section.get("conditions") if isinstance(section, dict) else None
    return [
        condition.get("lastTransitionTime")
        for condition in (conditions if isinstance(conditions, list) else [])
        if isinstance(condition, dict) and condition.get("type") in (IN_SYNC, PROGRESS, FAILED)
    ]


@dataclass(slots=True)
class Totals:
    """Numbers of devices by state, by version and by target."""

    states: Counter[State] = field(default_factory=Counter)
    current: Counter[str] = field(default_factory=Counter)
    target: Counter[str] = field(default_factory=Counter)
    gateways: Gateways = field(default_factory=Gateways)

    def add(self, rows: Iterable[Row]) -> None:
        """Count devices."""
        for row in rows:
            self.states[row.state] += 1
            if row.current is not None:
                self.current[row.current[:_MAX_VERSION_CHARS]] += 1
            if row.target not in (None, UNKNOWN):
                self.target[row.target[:_MAX_VERSION_CHARS]] += 1
            self.gateways.add(row.device, row.gateways, is_updating=row.is_updating)

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.states.total()

    @property
    def versions(self) -> list[str]:
        """All versions run or targeted by devices, highest first: 0.1.10 before 0.1.9."""
        return sorted({*self.current, *self.target}, key=_natural, reverse=True)


def _natural(version: str) -> list[tuple[int, str]]:
    """Return a key that sorts 0.1.10 above 0.1.9."""
    texts_and_numbers = re.split("([0-9]+)", version)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in texts_and_numbers]
