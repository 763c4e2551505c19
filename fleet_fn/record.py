"""What is noted of a device's update between two of its statuses: `status.firmware.update` in its object."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from fleet_fn.protocol.messages import U32_MAX
from fleet_fn.protocol.step import Target

#: Statuses that are remembered to have been answered: more than a device sends while one may still come again.
_ANSWERED: Final = 4


@dataclass(frozen=True, slots=True)
class Restart:
    """A device that was midway has been told to begin from 0, and has not said yet where it is now."""

    #: Bytes of the block that begins it: what its first status for the version has to report as its offset.
    sent: int
    #: The offset that it reported then. A device that heard the version, but refused the block, reports it again.
    midway: int
    #: Times that it has been told, where its status does not show whether it heard: the version was the same before.
    #: 0 where it was another.
    orders: int = 0
    #: It reported another offset than that of the block sent: what lies in its flash is unknown.
    stuck: bool = False

    def shown(self) -> dict[str, Any]:
        """The note as it stands in an object."""
        fields = {"sent": self.sent, "midway": self.midway, "orders": self.orders or None, "stuck": self.stuck or None}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class LastAnswered:
    """The last statuses that notes were made for."""

    #: The keys of their events, the one that was answered last first.
    events: tuple[str, ...]
    #: When the latest came to the cloud; None where that is not known.
    time: datetime | None = None

    def after(self, earlier: "LastAnswered | None") -> "LastAnswered":
        """These, and those that were answered before."""
        if earlier is None:
            return self
        latest = earlier.time if self.is_before(earlier) else self.time
        return LastAnswered((self.events + earlier.events)[:_ANSWERED], latest)

    def is_before(self, other: "LastAnswered | None") -> bool:
        """Whether these came to the cloud before some others that were answered already, as far as is known."""
        return bool(other and other.time and self.time and self.time < other.time)

    def shown(self) -> dict[str, Any]:
        """The statuses as they stand in an object, the time to the microsecond (RFC 3339)."""
        time = self.time and self.time.isoformat(timespec="microseconds")
        fields = {"events": list(self.events), "time": time}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Record:
    """How far a device's update to one target has come."""

    version: str
    #: SHA-256 of the firmware that its blocks were taken from, in hex.
    checksum: str
    #: The token of `spec.firmware.retry` that its attempts were counted under.
    retry: str | None = None
    #: When its first block went out, its SWAP, and when it came up with the version (RFC 3339).
    started: str | None = None
    swapped: str | None = None
    synced: str | None = None
    #: Swaps after which the device came back with another version.
    attempts: int = 0
    restart: Restart | None = None
    #: Other bytes than these had the same version a while ago, and some process may still take them for the target's.
    republished: bool = False
    #: Version and checksum of the target before this one.
    previous: tuple[str, str] | None = None
    answered: LastAnswered | None = None

    @classmethod
    def read(cls, value: object) -> Self | None:
        """The record that stands in an object; None where there is none, or something else."""
        fields = value if isinstance(value, dict) else {}
        version, checksum = fields.get("version"), fields.get("checksum")
        if not isinstance(version, str) or not isinstance(checksum, str):
            return None
        return cls(
            version,
            checksum,
            retry=_text(fields.get("retry")),
            started=_text(fields.get("started")),
            swapped=_text(fields.get("swapped")),
            synced=_text(fields.get("synced")),
            attempts=_count(fields.get("attempts")) or 0,
            restart=_read_restart(fields.get("restart")),
            republished=fields.get("republished") is True,
            previous=_read_previous(fields.get("previous")),
            answered=_read_answered(fields.get("answered")),
        )

    def shown(self) -> dict[str, Any]:
        """The record as it stands in an object."""
        restart, previous, answered = self.restart, self.previous, self.answered
        fields = {
            "version": self.version,
            "checksum": self.checksum,
            "retry": self.retry,
            "started": self.started,
            "swapped": self.swapped,
            "synced": self.synced,
            "attempts": self.attempts,
            "restart": restart and restart.shown(),
            "republished": self.republished or None,
            "previous": previous and {"version": previous[0], "checksum": previous[1]},
            "answered": answered and answered.shown(),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def not_answered(self, before: "Record | None") -> "Record":
        """The record while the command has not gone out yet, where it was another one before."""
        told, restart = before.restart if before else None, self.restart
        if told and restart and replace(restart, orders=told.orders) == told:
            restart = told  # an order counts once it has gone out
        return replace(self, answered=before.answered if before else None, restart=restart)

    def is_of(self, target: Target) -> bool:
        """Whether it is this target's: the same bytes under the same version."""
        return self.has_version_of(target) and self.checksum == target.checksum.hex()

    def has_version_of(self, target: Target) -> bool:
        """Whether it is of the target's version, whatever its bytes."""
        return self.version.encode() == target.version

    def with_start(self, now: datetime) -> "Record":
        """The record once a block has gone out."""
        return self if self.started else replace(self, started=timestamp(now))

    def with_swap(self, now: datetime) -> "Record":
        """The record once SWAP has gone out; for one that is sent again the first counts."""
        return self if self.swapped else replace(self, swapped=timestamp(now))

    def with_success(self, now: datetime) -> "Record":
        """The record once the device that was told to swap has come up with the version."""
        return replace(self, synced=timestamp(now)) if self.swapped and not self.synced else self

    def with_return(self) -> "Record":
        """The record of a device that had come up, and has another version since: that is no failure of the swap."""
        return replace(self, started=None, swapped=None, synced=None) if self.synced else self

    def with_failed_swap(self) -> "Record":
        """The record once a device that had swapped has come back with another version."""
        return replace(self, attempts=self.attempts + 1, started=None, swapped=None)


def record_for(target: Target, known: Record | None, retry: str | None) -> Record:
    """The record of an update to `target`: what is `known` of it, or a new one.

    Another token in `retry` forgets the attempts; where a restarted device stands has nothing to do with it.
    """
    if known and known.is_of(target):
        return known if known.retry == retry else replace(known, retry=retry, attempts=0, swapped=None)
    version, checksum = target.version.decode(), target.checksum.hex()
    if known is None:
        return Record(version, checksum, retry)
    earlier = ((known.version, known.checksum), known.previous)
    republished = any(before and before[0] == version and before[1] != checksum for before in earlier)
    return Record(version, checksum, retry, republished=republished, previous=earlier[0])


def timestamp(now: datetime) -> str:
    """A moment as RFC 3339 has it, UTC, to the second."""
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def _read_restart(value: object) -> Restart | None:
    fields = value if isinstance(value, dict) else {}
    sent, midway = _count(fields.get("sent")), _count(fields.get("midway"))
    if sent is None or midway is None:
        return None
    return Restart(sent, midway, _count(fields.get("orders")) or 0, fields.get("stuck") is True)


def _read_previous(value: object) -> tuple[str, str] | None:
    fields = value if isinstance(value, dict) else {}
    version, checksum = fields.get("version"), fields.get("checksum")
    return (version, checksum) if isinstance(version, str) and isinstance(checksum, str) else None


def _read_answered(value: object) -> LastAnswered | None:
    fields = value if isinstance(value, dict) else {}
    events, time = fields.get("events"), fields.get("time")
    if not isinstance(events, list):
        return None
    try:
        moment = datetime.fromisoformat(time) if isinstance(time, str) else None
    except ValueError:
        moment = None
    keys = tuple(event for event in events if isinstance(event, str))
    return LastAnswered(keys[:_ANSWERED], moment if moment and moment.tzinfo else None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= U32_MAX else None
