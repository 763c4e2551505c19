"""The record of a device's update, kept between its statuses.

It is in the device's object, under `status.firmware.update`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.protocol.step import Target

#: Answered statuses that a record names: more than a device sends while one of them may be delivered again.
_MAX_ANSWERED: Final = 4
#: Earlier targets that a record names. Only those of the last `SPEC_TTL_SECONDS` matter.
_MAX_EARLIER: Final = 16
#: Versions that failed on the device and are kept.
_MAX_FAILED: Final = 4
#: Minimum time that a record names an earlier target; processes may have different TTLs.
_MIN_EARLIER_AGE: Final = timedelta(hours=1)
#: An update without a new record for this long counts as abandoned.
_ABANDONED_AFTER: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PendingRestart:
    """An order to a device midway to begin from 0, until a status shows its effect."""

    #: Bytes of the block at 0. A status that reports exactly this offset shows that the device wrote the block.
    sent: int
    #: The offset that the device reported before. A device that refused the block reports it again.
    midway: int
    #: Orders that were given while the device already reported the ordered version. Its status cannot show then whether
    #: it received one. 0 if it reported another version.
    orders: int = 0
    #: The device reported another offset than `sent`, so the content of its flash is unknown.
    stuck: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the order as it stands in the device's object."""
        fields = {"sent": self.sent, "midway": self.midway, "orders": self.orders or None, "stuck": self.stuck or None}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class LastAnswered:
    """The last answered statuses."""

    #: The keys of their events, the latest first.
    events: tuple[str, ...]
    #: When the latest came to the cloud; None if unknown.
    time: datetime | None = None
    #: Fingerprint of the latest status; a status that is published twice has the same one.
    status: str | None = None
    #: Random token of the write that recorded the latest, by which a process knows its own write; None if it had none.
    write: str | None = None

    def after(self, earlier: "LastAnswered | None") -> "LastAnswered":
        """Return these statuses followed by earlier ones."""
        if earlier is None:
            return self
        latest = earlier if self.is_before(earlier) else self
        return LastAnswered((self.events + earlier.events)[:_MAX_ANSWERED], latest.time, latest.status)

    def is_before(self, other: "LastAnswered | None") -> bool:
        """Return whether these came to the cloud before `other`, as far as is known."""
        return bool(other and other.time and self.time and self.time < other.time)

    def without(self, event: str) -> "LastAnswered":
        """Return these statuses without that of an event whose answer had no effect."""
        return LastAnswered(tuple(key for key in self.events if key != event))

    def to_json(self) -> dict[str, Any]:
        """Return the statuses as they stand in the device's object, with microseconds."""
        time = self.time and self.time.isoformat(timespec="microseconds")
        fields = {"events": list(self.events), "time": time, "status": self.status, "write": self.write}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class HawkbitAction:
    """The action of a DDI server that an update carries out, and where its bytes are.

    A process that has never asked the server goes on by it.
    """

    controller: str
    #: Id of the action.
    action: str
    #: Bytes of the firmware.
    size: int
    #: Path of the download at the server's own origin; empty if the bytes are elsewhere.
    path: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the action as it stands in the device's object."""
        fields = {"controller": self.controller, "action": self.action, "size": self.size, "path": self.path or None}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class Origin:
    """The place of an update's bytes, independent of tags."""

    #: Name of an OCI repository below the prefix, and the digest of a manifest or an index: `name@sha256:…`.
    image: str | None = None
    #: Selects one of an index's manifests.
    platform: str | None = None
    #: Name of a firmware in `FIRMWARE_DIR`.
    file: str | None = None
    hawkbit: HawkbitAction | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the origin as it stands in the device's object."""
        hawkbit = self.hawkbit and self.hawkbit.to_json()
        fields = {"image": self.image, "platform": self.platform, "file": self.file, "hawkbit": hawkbit}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class Superseded:
    """An earlier target of a device's update."""

    version: str
    #: SHA-256 of the firmware, in hex.
    checksum: str
    #: When the record of the next target took its place; None if unknown.
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the target as it stands in the device's object."""
        fields = {"version": self.version, "checksum": self.checksum, "at": self.at and timestamp(self.at)}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class FailedVersion:
    """A version that did not come up on the device."""

    version: str
    #: SHA-256 of the firmware, in hex.
    checksum: str
    #: Swaps to it after which the device came back with another version.
    attempts: int
    #: When that was last seen; None if unknown.
    at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the version as it stands in the device's object."""
        at = self.at and timestamp(self.at)
        fields = {"version": self.version, "checksum": self.checksum, "attempts": self.attempts, "at": at}
        return _present(fields)


@dataclass(frozen=True, slots=True)
class Record:
    """The progress of a device's update to one target."""

    version: str
    #: SHA-256 of the firmware that its blocks are taken from, in hex.
    checksum: str
    #: The token of `spec.firmware.retry` under which its attempts were counted; `@` and the action of hawkBit follow.
    retry: str | None = None
    #: When its first block, its SWAP and its first SYNC were sent (RFC 3339).
    started: str | None = None
    swapped: str | None = None
    synced: str | None = None
    #: SYNCs sent to the device since it came up with the version, as far as they matter.
    syncs: int = 0
    #: Failed swaps: the device came back with another version.
    attempts: int = 0
    #: Versions that failed on the device, the latest first; they outlive the target.
    failed: tuple[FailedVersion, ...] = ()
    restart: PendingRestart | None = None
    #: Earlier targets, the latest first.
    earlier: tuple[Superseded, ...] = ()
    answered: LastAnswered | None = None
    origin: Origin | None = None
    #: The UID of the device; None if its event had none.
    device: str | None = None
    #: The device numbers its statuses, so it ignores answers that are meant for other devices.
    correlates: bool = False

    @classmethod
    def read(cls, value: object) -> Self | None:
        """Return the record in a device's object; None if it is missing or malformed."""
        fields = value if isinstance(value, dict) else {}
        version, checksum = fields.get("version"), fields.get("checksum")
        if not isinstance(version, str) or not isinstance(checksum, str):
            return None
        return cls(
            version,
            checksum,
            retry=_text(fields.get("retry")),
            started=_time_text(fields.get("started")),
            swapped=_time_text(fields.get("swapped")),
            synced=_time_text(fields.get("synced")),
            syncs=_count(fields.get("syncs")) or 0,
            attempts=_count(fields.get("attempts")) or 0,
            failed=_read_failed(fields.get("failed")),
            restart=_read_restart(fields.get("restart")),
            earlier=_read_earlier(fields.get("earlier")),
            answered=_read_answered(fields.get("answered")),
            origin=_read_origin(fields.get("origin")),
            device=_text(fields.get("device")),
            correlates=fields.get("correlates") is True,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as it stands in the device's object."""
        fields = {
            "version": self.version,
            "checksum": self.checksum,
            "retry": self.retry,
            "started": self.started,
            "swapped": self.swapped,
            "synced": self.synced,
            "syncs": self.syncs or None,
            "attempts": self.attempts,
            "failed": [version.to_json() for version in self.failed] or None,
            "restart": self.restart and self.restart.to_json(),
            "earlier": [target.to_json() for target in self.earlier] or None,
            "answered": self.answered and self.answered.to_json(),
            "origin": self.origin and self.origin.to_json(),
            "device": self.device,
            "correlates": self.correlates or None,
        }
        return _present(fields)

    @property
    def write(self) -> str | None:
        """Token of the write that made this record; None if it has none."""
        return self.answered.write if self.answered else None

    def with_write(self, token: str) -> "Record":
        """Return the record with the token of its write, if it names an event."""
        return replace(self, answered=replace(self.answered, write=token)) if self.answered else self

    def is_of(self, target: Target) -> bool:
        """Return whether the record has this target: the same bytes and the same version."""
        return self.version.encode() == target.version and self.checksum == target.checksum.hex()

    def describes(self, version: bytes) -> bool:
        """Return whether a device that is midway in `version` may go on by this record."""
        return self.started is not None and self.version.encode() == version

    def awaits_sync(self, version: bytes) -> bool:
        """Return whether a device that runs `version` came up with it by this swap."""
        return self.swapped is not None and self.version.encode() == version

    def is_under_way(self, now: datetime) -> bool:
        """Return whether the update has begun but not ended, and is not abandoned."""
        if self.started is None or self.synced is not None:
            return False
        times = (self.answered.time if self.answered else None, parse_timestamp(self.started))
        return any(time is not None and timedelta() <= now - time < _ABANDONED_AFTER for time in times)

    def with_start(self, now: datetime) -> "Record":
        """Return the record for a first block about to be sent; an earlier time stays."""
        return self if self.started else replace(self, started=timestamp(now))

    def with_swap(self, now: datetime) -> "Record":
        """Return the record for a SWAP about to be sent; an earlier time stays."""
        return self if self.swapped else replace(self, swapped=timestamp(now))

    def with_sync(self, now: datetime) -> "Record":
        """Return the record with one more SYNC and the time of the first."""
        return replace(self, synced=self.synced or timestamp(now), syncs=self.syncs + 1)

    def with_return(self) -> "Record":
        """Return the record of a device that came up, but left the version later.

        That is no failed swap.
        """
        return replace(self, started=None, swapped=None, synced=None, syncs=0) if self.synced else self

    def with_failed_swap(self, now: datetime) -> "Record":
        """Return the record of a device that came back from a swap with another version."""
        here = (self.version, self.checksum)
        before = sum(failed.attempts for failed in self.failed if (failed.version, failed.checksum) == here)
        others = (failed for failed in self.failed if (failed.version, failed.checksum) != here)
        failed = (FailedVersion(*here, before + 1, now), *others)[:_MAX_FAILED]
        return replace(
            self, attempts=self.attempts + 1, failed=failed, started=None, swapped=None, synced=None, syncs=0
        )

    def with_earlier_failure(self, now: datetime) -> "Record":
        """Return the record of a device that came back from a swap to an earlier target.

        The swap stays, and fails once.
        """
        swapped = (parse_timestamp(self.swapped) or now).replace(microsecond=0)
        last = self.failed[0] if self.failed else None
        is_same = last is not None and (last.version, last.checksum) == (self.version, self.checksum)
        if last and is_same and last.at and last.at >= swapped:
            return self
        # Clocks of processes differ.
        return replace(self, failed=self.with_failed_swap(max(now, swapped)).failed)

    def synced_at(self) -> datetime | None:
        """Return the time of the first SYNC; None if there is none."""
        return parse_timestamp(self.synced)

    def superseded_at(self, version: bytes, *, but: str | None = None) -> datetime | None:
        """Return when an earlier target of `version` was last replaced, or None.

        Args:
            version: the version.
            but: SHA-256 in hex; targets with these bytes do not count.

        """
        times = [t.at for t in self.earlier if t.version.encode() == version and t.checksum != but and t.at]
        return max(times, default=None)


def record_for(
    target: Target, known: Record | None, retry: str | None, now: datetime, kept: timedelta = timedelta()
) -> Record:
    """Return the record of an update to `target`: the known one, or a new one.

    Args:
        target: what the device should run.
        known: the record in the device's object.
        retry: the token of `spec.firmware.retry`, and the action. A change resets the attempts, but not a restart.
        now: the current time.
        kept: time for which earlier targets are kept, at least an hour.

    """
    if known and known.is_of(target):
        return known if known.retry == retry else replace(known, retry=retry, attempts=0, swapped=None)
    version, checksum = target.version.decode(), target.checksum.hex()
    if known is None:
        return Record(version, checksum, retry)
    oldest = now - max(kept, _MIN_EARLIER_AGE)
    earlier = [before for before in known.earlier if before.at and before.at >= oldest]
    superseded = Superseded(known.version, known.checksum, now)
    return Record(version, checksum, retry, failed=known.failed, earlier=(superseded, *earlier)[:_MAX_EARLIER])


def timestamp(now: datetime) -> str:
    """Return a time in RFC 3339's format, in UTC, to the second."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_timestamp(value: object) -> datetime | None:
    """Read an RFC 3339 time; return None if it is malformed or has no time zone."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        return moment.astimezone(UTC) if moment and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def _read_restart(value: object) -> PendingRestart | None:
    fields = value if isinstance(value, dict) else {}
    sent, midway = _count(fields.get("sent")), _count(fields.get("midway"))
    if not sent or midway is None:
        return None
    return PendingRestart(sent, midway, _count(fields.get("orders")) or 0, fields.get("stuck") is True)


def _read_earlier(value: object) -> tuple[Superseded, ...]:
    targets = [_read_superseded(target) for target in value] if isinstance(value, list) else []
    return tuple(target for target in targets if target)[:_MAX_EARLIER]


def _read_failed(value: object) -> tuple[FailedVersion, ...]:
    versions = [_read_failed_version(version) for version in value] if isinstance(value, list) else []
    return tuple(version for version in versions if version)[:_MAX_FAILED]


def _read_failed_version(value: object) -> FailedVersion | None:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    version, checksum, attempts = fields.get("version"), fields.get("checksum"), _count(fields.get("attempts"))
    if not isinstance(version, str) or not isinstance(checksum, str) or attempts is None:
        return None
    return FailedVersion(version, checksum, attempts, parse_timestamp(fields.get("at")))


def _read_superseded(value: object) -> Superseded | None:
    fields: Mapping[str, Any] = value if isinstance(value, dict) else {}
    version, checksum = fields.get("version"), fields.get("checksum")
    if not isinstance(version, str) or not isinstance(checksum, str):
        return None
    return Superseded(version, checksum, parse_timestamp(fields.get("at")))


def _read_answered(value: object) -> LastAnswered | None:
    fields = value if isinstance(value, dict) else {}
    events = fields.get("events")
    if not isinstance(events, list):
        return None
    keys = tuple(event for event in events if isinstance(event, str))
    return LastAnswered(
        keys[:_MAX_ANSWERED],
        parse_timestamp(fields.get("time")),
        _text(fields.get("status")),
        _text(fields.get("write")),
    )


def _read_origin(value: object) -> Origin | None:
    fields = value if isinstance(value, dict) else {}
    hawkbit = _read_hawkbit(fields.get("hawkbit"))
    image, platform, file = (_text(fields.get(name)) for name in ("image", "platform", "file"))
    origin = Origin(image, platform, file, hawkbit)
    return origin if origin.image or origin.file or origin.hawkbit else None


def _read_hawkbit(value: object) -> HawkbitAction | None:
    fields = value if isinstance(value, dict) else {}
    controller, action, size = _text(fields.get("controller")), _text(fields.get("action")), _count(fields.get("size"))
    if not controller or not action or not size:
        return None
    return HawkbitAction(controller, action, size, _text(fields.get("path")) or "")


def _time_text(value: object) -> str | None:
    return value if isinstance(value, str) and parse_timestamp(value) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= U32_MAX else None
