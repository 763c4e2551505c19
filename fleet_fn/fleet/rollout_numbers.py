"""The numbers of a rollout: how many devices it let in, and how they fared."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from fleet_fn.drogue.device_registry_object import RegistryObject
from fleet_fn.drogue.firmware_spec import Malformed
from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.spec_policy import NONE, Policy
from fleet_fn.drogue.spec_source import Image
from fleet_fn.drogue.status_report import UNKNOWN
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.stops import Stop, find_stop
from fleet_fn.update.policy import Candidate, hold_draw
from fleet_fn.update.stages import Position
from fleet_fn.version_range import Version

#: UIDs that are kept as texts, before they are packed.
_CHUNK: Final = 1000
_SEPARATOR: Final = "\n"
#: Time within which all processes read a new target (`SPEC_TTL_SECONDS`), with room for clocks that differ.
_SETTLING: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class RolloutNumbers:
    """How a version fares on the devices that the application's rollout is about."""

    version: str
    #: Percent of the devices that the rollout lets in now.
    percent: float
    #: Devices that take the application's firmware: they name none of their own, and are not disabled.
    devices: int
    #: Those of them that the rollout has let in, by labels and by percent.
    drawn: int
    #: Devices drawn that run the version, that it rolled back on, and that have given it up.
    in_sync: int
    rolled_back: int
    failed: int
    #: Stage of the rollout, from 0, and the number of its stages; None if no stages apply.
    stage: int | None = None
    stages: int | None = None
    #: Why no device gets the version any more; None if devices may.
    stop: Stop | None = None

    @property
    def with_result(self) -> int:
        """Number of devices drawn that show whether the version works."""
        return self.in_sync + self.rolled_back + self.failed

    @property
    def success(self) -> float | None:
        """Percent of the devices with a result that run the version; None without any."""
        return 100 * self.in_sync / self.with_result if self.with_result else None

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for programs."""
        return {
            "version": self.version,
            "percent": self.percent,
            "stage": self.stage,
            "stages": self.stages,
            "devices": self.devices,
            "drawn": self.drawn,
            "withResult": self.with_result,
            "in-sync": self.in_sync,
            "rolled-back": self.rolled_back,
            "failed": self.failed,
            "success": self.success,
            "stopped": {"reason": self.stop.kind, "message": self.stop.message} if self.stop else None,
        }


class _Uids:
    """UIDs of many devices, packed: a fleet may have 100,000."""

    __slots__ = ("_open", "_packed")

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._open: list[str] = []

    def add(self, uid: str) -> None:
        self._open.append(uid)
        if len(self._open) == _CHUNK:
            self._packed.append(_SEPARATOR.join(self._open).encode())
            self._open = []

    def __iter__(self) -> Iterator[str]:
        for chunk in self._packed:
            yield from chunk.decode().split(_SEPARATOR)
        yield from self._open


#: The version that a device shows a result of, and the result; ("", None) if it shows none.
_Result = tuple[str, State | None]
_NO_RESULT: Final[_Result] = ("", None)


@dataclass(slots=True)
class RolloutCount:
    """Counts the devices of an application's rollout while a fleet's pages are read."""

    application: RegistryObject
    _devices: int = 0
    #: Devices whose labels match, by result: those without policy of their own, and those with one.
    _plain: dict[_Result, _Uids] = field(default_factory=dict)
    _special: list[tuple[_Result, str, Policy]] = field(default_factory=list)
    #: When a device last reported each target.
    _targeted: dict[str, datetime] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """Why there are no numbers; empty if nothing is in their way."""
        for part in (self.application.source, self.application.policy):
            if isinstance(part, Malformed):
                return part.reason
        return ""

    def add(self, device: Device, row: Row) -> None:
        """Count a device."""
        shared, own = self.application.policy, device.policy
        if device.source is not None or device.disabled or isinstance(shared, Malformed):
            return
        self._devices += 1
        self._add_target(row)
        if isinstance(own, Malformed):
            return
        policy = own.over(shared)
        if any(device.labels.get(key) != value for key, value in (policy.labels or {}).items()):
            return
        result, uid = _result(row), device.uid if _is_text(device.uid) else ""
        if own == NONE and _SEPARATOR not in uid:
            self._plain.setdefault(result, _Uids()).add(uid)
        else:
            self._special.append((result, uid, replace(policy, labels=None)))

    def _add_target(self, row: Row) -> None:
        time = row.reported or row.last_change
        if row.target is None or row.target == UNKNOWN or time is None or not _is_text(row.target):
            return
        known = self._targeted.get(row.target)
        if known is None or known < time:
            self._targeted[row.target] = time

    def numbers(self, now: datetime, version: str | None = None) -> RolloutNumbers | None:
        """Return the numbers of a version; None if the application has no rollout.

        Args:
            now: the current time.
            version: the version; without it, the one that the application's status and the devices' reports name.

        """
        shared = self.application.policy
        version = version or self._version()
        if version is None or isinstance(shared, Malformed) or self.problem or self.application.source is None:
            return None
        rollout = self.application.rollout
        drawn: dict[_Result, int] = {}
        for result, uid, policy in self._each(shared):
            if hold_draw(policy, Candidate(uid, {}), version, now, rollout) is None:
                drawn[result] = drawn.get(result, 0) + 1
        is_complete = rollout.of(version).complete
        position = Position.of(shared.stages, rollout, version) if shared.stages and not is_complete else None
        percent = position.percent_at(now) if position else shared.percent
        return RolloutNumbers(
            version,
            100.0 if percent is None or is_complete else percent,
            self._devices,
            sum(drawn.values()),
            drawn.get((version, State.IN_SYNC), 0),
            drawn.get((version, State.ROLLED_BACK), 0),
            drawn.get((version, State.FAILED), 0),
            position.index if position else None,
            len(position.stages) if position else None,
            find_stop(shared, rollout, version),
        )

    def _each(self, shared: Policy) -> Iterator[tuple[_Result, str, Policy]]:
        """Yield each device whose labels match, with the policy that draws it."""
        plain = replace(shared, labels=None)
        for result, uids in self._plain.items():
            for uid in uids:
                yield result, uid, plain
        yield from self._special

    def _version(self) -> str | None:
        """Return the version that the rollout is about; None if nothing names one.

        A rollout that was started with `fleet-fn rollout` names its version. If the application's firmware was changed
        by other means since, devices report another target later.
        """
        rollout, source = self.application.rollout, self.application.source
        if isinstance(source, Image) and source.version is not None:
            # Devices are led to the highest version, some of them by way of others.
            known = {
                version: text for text in (rollout.version, *self._targeted) if (version := Version.read(text or ""))
            }
            if known:
                return known[max(known)]
        latest = max(self._targeted, key=lambda version: self._targeted[version], default=None)
        if rollout.version is None or latest is None:
            return rollout.version or latest
        named, other = self._targeted.get(rollout.version, rollout.since), self._targeted[latest]
        return latest if named and other > named + _SETTLING else rollout.version


def _is_text(text: str) -> bool:
    """Return whether a text has no lone surrogates.

    JSON can spell them, but UTF-8 cannot.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _result(row: Row) -> _Result:
    if row.state is State.IN_SYNC and row.current is not None:
        return row.current, State.IN_SYNC
    if row.state is State.ROLLED_BACK or (row.state is State.FAILED and row.gave_up):
        return row.target or "", row.state
    return _NO_RESULT
