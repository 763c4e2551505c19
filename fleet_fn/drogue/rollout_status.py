"""The state of an application's rollout: `status.firmware.rollout` of its object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.spec_values import MAX_TIME
from fleet_fn.drogue.update_record import parse_timestamp
from fleet_fn.protocol.messages import U32_MAX

#: Versions whose failures are kept, and versions that are kept as aborted.
_MAX_VERSIONS: Final = 16
#: The latest time at which a stage can begin: any of its times can be added.
_LATEST: Final = datetime.max.replace(tzinfo=UTC) - MAX_TIME
#: Room for the punctuation and the keys of a version's entry.
_ENTRY_BYTES: Final = 64
_NO_MAP: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Failures:
    """Devices on which a version failed: they rolled back, or gave it up."""

    #: Number of devices, each counted once.
    count: int = 0
    #: Their names, as far as the application's object has room for them.
    devices: tuple[str, ...] = ()

    @classmethod
    def read(cls, value: object) -> "Failures":
        """Read one version's entry; malformed parts count as missing."""
        fields = value if isinstance(value, dict) else {}
        count, devices = fields.get("count"), fields.get("devices")
        names = tuple(name for name in devices if isinstance(name, str)) if isinstance(devices, list) else ()
        return cls(max(min(count, U32_MAX) if type(count) is int else 0, len(names)), names)

    def to_json(self) -> dict[str, Any]:
        """Return the entry as it stands in the application's object."""
        return {"count": self.count, "devices": list(self.devices)}


class RolloutStatus(NamedTuple):
    """How far an application's rollout is, and how it goes.

    `version`, `stage`, `since`, `approved` and `complete` belong together, and say nothing about other versions.
    """

    version: str | None = None
    #: Index of the stage in `spec.firmware.rollout.stages`.
    stage: int = 0
    #: When it was reached; None if unknown.
    since: datetime | None = None
    #: An operator has approved that the rollout leaves the stage.
    approved: bool = False
    #: Neither stages nor a percentage hold back a device, as after an abort: the whole fleet goes back.
    complete: bool = False
    failed: Mapping[str, Failures] = _NO_MAP
    #: Versions that an operator has aborted.
    aborted: tuple[str, ...] = ()

    @classmethod
    def read(cls, section: object) -> "RolloutStatus":
        """Read an application's `status.firmware`; malformed parts count as missing."""
        rollout = section.get("rollout") if isinstance(section, dict) else None
        if not isinstance(rollout, dict):
            return NO_ROLLOUT
        version, stage, failed, aborted = (rollout.get(key) for key in ("version", "stage", "failed", "aborted"))
        since = parse_timestamp(rollout.get("since"))
        return cls(
            version if isinstance(version, str) else None,
            stage if type(stage) is int and stage > 0 else 0,
            since if since and since <= _LATEST else None,
            rollout.get("approved") is True,
            rollout.get("complete") is True,
            {name: Failures.read(entry) for name, entry in failed.items()} if isinstance(failed, dict) else _NO_MAP,
            tuple(name for name in aborted if isinstance(name, str)) if isinstance(aborted, list) else (),
        )

    def of(self, version: str) -> "RolloutStatus":
        """Return the state as far as it is about `version`.

        If the rollout is another version's, this one is at its first stage.
        """
        return self if self.version == version else RolloutStatus(failed=self.failed, aborted=self.aborted)

    def halts(self, version: str, max_failed: int | None) -> bool:
        """Return whether no device gets anything of `version`.

        Args:
            version: the version.
            max_failed: devices on which it may fail; None if any number may.

        """
        return version in self.aborted or self.failed_too_often(version, max_failed)

    def failed_too_often(self, version: str, max_failed: int | None) -> bool:
        """Return whether a version failed on `max_failed` devices or more."""
        return max_failed is not None and self.failed.get(version, _NO_FAILURES).count >= max_failed


#: An application without a rollout.
NO_ROLLOUT: Final = RolloutStatus()
_NO_FAILURES: Final = Failures()


def with_failure(
    rollout: object, version: str, device: str, *, is_first: bool, room_bytes: int
) -> dict[str, Any] | None:
    """Return a `status.firmware.rollout` with one more failure of a version.

    Each device counts once for each version.

    Args:
        rollout: the value in the application's object.
        version: the version.
        device: the device's name.
        is_first: it failed for the first time on this device. Only that counts if not all names are known.
        room_bytes: bytes by which the application's object may grow. If the name takes more, those of other versions
            go, and then this one is left out.

    Returns:
        The new value; None if the device is counted already.

    """
    fields = rollout if isinstance(rollout, dict) else {}
    entries = fields.get("failed")
    failed = {name: Failures.read(entry) for name, entry in (entries if isinstance(entries, dict) else {}).items()}
    known = failed.pop(version, _NO_FAILURES)
    if device in known.devices or (not is_first and known.count > len(known.devices)):
        return None
    # The registry does not keep the order of keys, so what fails least goes first if there are too many versions.
    others = dict(sorted(failed.items(), key=lambda entry: entry[1].count, reverse=True)[: _MAX_VERSIONS - 1])
    needed = len(json.dumps([version, device])) + _ENTRY_BYTES
    if needed > room_bytes:
        room_bytes += len(json.dumps([entry.devices for entry in others.values()]))
        others = {name: Failures(entry.count) for name, entry in others.items()}
    names = (*known.devices, device) if needed <= room_bytes else known.devices
    kept = {version: Failures(known.count + 1, names), **others}
    return {**fields, "failed": {name: entry.to_json() for name, entry in kept.items()}}
