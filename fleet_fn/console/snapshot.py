"""One application's fleet as it was read: values that pages show."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar

from fleet_fn.console.sharing import Sharing
from fleet_fn.drogue.device_registry_object import read_object
from fleet_fn.drogue.listing import Device
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.fleet.attention import Attention
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.overview import Overview
from fleet_fn.fleet.rollout.progress import assess
from fleet_fn.fleet.rollout.target import FoundTarget
from fleet_fn.fleet.rollout_numbers import RolloutCount, RolloutNumbers
from fleet_fn.fleet.rows import Row, read_row
from fleet_fn.fleet.states import ATTENTION
from fleet_fn.fleet.totals import Totals

T = TypeVar("T")
FindTarget = Callable[[Application], FoundTarget]


@dataclass(frozen=True, slots=True)
class Entry:
    """A device of the fleet."""

    row: Row
    labels: Mapping[str, str]
    #: It names a firmware of its own, so the application's rollout does not concern it.
    has_own_firmware: bool
    disabled: bool


@dataclass(frozen=True, slots=True)
class Devices:
    """All devices of an application, read once."""

    #: None if they were given up for other applications' devices; the numbers stay.
    entries: Sequence[Entry] | None
    totals: Totals
    count: RolloutCount
    #: Those to look at first, and how many of them there are.
    attention: Sequence[Row]
    attention_count: int
    #: The most frequent labels, `key=value`.
    labels: Sequence[str]
    #: When the reading began, and how many seconds it took.
    at: datetime
    seconds: float
    _remembered: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    def remember(self, key: object, compute: Callable[[], T]) -> T:
        """Return a value that depends on the devices and a key alone, computed once."""
        if key not in self._remembered:
            self._remembered[key] = compute()
        found: T = self._remembered[key]
        return found

    @property
    def left_out(self) -> int:
        """Number of devices that are counted but not kept, because there are too many."""
        return 0 if self.entries is None else self.totals.devices - len(self.entries)

    def numbers(self, found: Mapping[str, Any], version: str, now: datetime) -> RolloutNumbers | None:
        """Return how a version fares on these devices.

        Args:
            found: the application's object, which may be newer than the devices.
            version: the version.
            now: the current time.

        """
        return replace(self.count, application=read_object(found, "application")).numbers(now, version)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the console knows of an application."""

    application: str
    #: None before they were read for the first time.
    devices: Devices | None = None
    overview: Overview | None = None
    #: Why the last reading failed; empty if it did not.
    problem: str = ""
    #: When `problem` came up.
    problem_at: datetime | None = None
    #: The rollout's target may be another by now, for this reason.
    target_problem: str = ""
    #: A reading goes on, and has seen this many devices.
    is_reading: bool = False
    seen: int = 0

    @property
    def at(self) -> datetime | None:
        """The time that the devices are from."""
        return self.devices.at if self.devices else None


#: Devices that need attention and are kept, and frequent labels.
_MAX_ATTENTION: Final = 20
_MAX_LABELS: Final = 50
#: Different labels that are counted.
_MAX_COUNTED: Final = 10_000


@dataclass(slots=True)
class DeviceCollector:
    """Collects the devices of a reading."""

    count: RolloutCount
    now: datetime
    #: Devices that are kept; others are only counted.
    most: int
    entries: list[Entry] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    _attention: Attention = field(default_factory=lambda: Attention(_MAX_ATTENTION))
    _labels: Counter[str] = field(default_factory=Counter)
    _sharing: Sharing = field(default_factory=Sharing)

    @classmethod
    def of(cls, found: Mapping[str, Any], now: datetime, most: int = sys.maxsize) -> "DeviceCollector":
        """Return a collector for an application's object.

        Raises:
            RefusedError: the object is malformed.

        """
        try:
            return cls(RolloutCount(read_object(found, "application")), now, most)
        except ValueError as error:
            raise RefusedError(f"the application's object is malformed: {error}") from error

    def add(self, devices: Sequence[Device]) -> None:
        """Add a page of devices."""
        rows = [self._sharing.row(read_row(device, self.now)) for device in devices]
        self.totals.add(rows)
        self._attention.add(row for row in rows if row.state in ATTENTION)
        for device, row in zip(devices, rows, strict=True):
            self.count.add(device, row)
            labels = self._sharing.labels(device.labels)
            self._count_labels(labels)
            if len(self.entries) < self.most:
                self.entries.append(Entry(row, labels, device.source is not None, device.disabled))

    def finish(self, seconds: float) -> Devices:
        """Return what was collected in so many seconds."""
        attention = self._attention
        self.entries.sort(key=lambda entry: entry.row.device)  # so that the table sorts fast
        labels = [label for label, _ in self._labels.most_common(_MAX_LABELS)]
        return Devices(
            self.entries, self.totals, self.count, attention.rows, attention.count, labels, self.now, seconds
        )

    def _count_labels(self, labels: Mapping[str, str]) -> None:
        for key, value in labels.items():
            label = f"{key}={value}"
            if label in self._labels or len(self._labels) < _MAX_COUNTED:
                self._labels[label] += 1


def make_overview(
    found: Mapping[str, Any], devices: Devices | None, find_target: FindTarget, now: datetime
) -> tuple[Overview, str]:
    """Return how the rollout stands, and why its target may be another.

    Args:
        found: the application's object.
        devices: its devices, as they were last read.
        find_target: finds its firmware.
        now: the current time.

    Raises:
        RefusedError: the object is malformed.

    """
    application = Application.read(found)
    try:
        target, problem = find_target(application)
    except (UpstreamError, NotReadyError) as error:
        return Overview(application, now, None, None, None, error.reason), ""
    numbers = None
    if devices:
        devices.count.application = read_object(found, "application")
        numbers = devices.count.numbers(now, target.version)
    try:
        progress = (
            assess(application, target.version, now, lambda: numbers, in_full=numbers is not None) if numbers else None
        )
    except RefusedError as error:
        return Overview(application, now, target, None, None, error.reason), problem
    return Overview(application, now, target, progress, numbers), problem
