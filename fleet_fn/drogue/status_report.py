"""The firmware section of a device's status: `status.firmware`.

Drogue's original console reads it, too. It needs `current`, `target` and `conditions`, and takes the message of
`UpdateProgress` for a number.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.update_record import Record, parse_timestamp, timestamp

#: The reported target if it is not known.
UNKNOWN: Final = "Unknown"

IN_SYNC: Final = "InSync"
PROGRESS: Final = "UpdateProgress"
FAILED: Final = "UpdateFailed"
_OURS: Final = (IN_SYNC, PROGRESS, FAILED)

#: The reason of `UpdateFailed`.
GIVEN_UP: Final = "attempts"
#: Reasons of `InSync` beside a known target that do not come from the policy. The device is on its way:
FINISHING: Final = "finishing"
CONFIRMING: Final = "confirming"
SETTLING: Final = "settling"
ON_THE_WAY: Final = (FINISHING, CONFIRMING, SETTLING)
#: or it asks for the same block again and again.
BLOCK_REFUSED: Final = "block-refused"


class Condition(NamedTuple):
    """One of our conditions. Empty fields are not written."""

    type: str
    #: `True`, `False` or `Unknown`.
    status: str
    reason: str = ""
    message: str = ""


class HoldReport(NamedTuple):
    """Why policy holds a device back."""

    reason: str
    #: For people.
    message: str = ""
    #: When it ends; None if only an operator or other devices end it.
    until: datetime | None = None

    @classmethod
    def read(cls, value: object) -> "HoldReport | None":
        """Read `status.firmware.hold`; None if it is missing or malformed."""
        fields = value if isinstance(value, dict) else {}
        reason = _text(fields.get("reason"))
        if not reason:
            return None
        return cls(reason, _text(fields.get("message")) or "", parse_timestamp(fields.get("until")))

    def to_json(self) -> dict[str, str]:
        """Return the hold as it stands in the device's object."""
        fields = {"reason": self.reason, "message": self.message, "until": timestamp(self.until) if self.until else ""}
        return {name: value for name, value in fields.items() if value}


class Heartbeat(NamedTuple):
    """Times between which a device was last seen, unless its object is to say so anew."""

    since: datetime
    until: datetime


class Reported(NamedTuple):
    """The last report in a device's object, without parts that other software writes."""

    current: str | None = None
    target: str | None = None
    conditions: tuple[Condition, ...] = ()
    record: Record | None = None
    #: When it was written, and when the device was last seen.
    reported: datetime | None = None
    seen: datetime | None = None
    hold: HoldReport | None = None

    @classmethod
    def read(cls, section: object) -> "Reported":
        """Read a `status.firmware`; malformed parts count as missing."""
        fields = section if isinstance(section, dict) else {}
        found = {kind: condition for kind in _OURS if (condition := _find(fields, kind))}
        return cls(
            _text(fields.get("current")),
            _text(fields.get("target")),
            tuple(
                Condition(kind, *(_text(condition.get(key)) or "" for key in ("status", "reason", "message")))
                for kind, condition in found.items()
            ),
            Record.read(fields.get("update")),
            parse_timestamp(fields.get("reported")),
            parse_timestamp(fields.get("seen")),
            HoldReport.read(fields.get("hold")),
        )

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of a type; None if there is none."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    @property
    def is_in_sync(self) -> bool:
        """Return whether the device was in sync."""
        return any(type_ == IN_SYNC and status == "True" for type_, status, *_ in self.conditions)


class Report(NamedTuple):
    """A report on a device's update."""

    current: str
    target: str
    #: All conditions that hold.
    conditions: tuple[Condition, ...]
    #: The record in the object at the time of the decision, and the record that replaces it.
    before: Record | None = None
    record: Record | None = None
    #: The sent block reaches the next tenth of the way.
    crosses_tenth: bool = False
    hold: HoldReport | None = None
    #: The device is in sync, and its object tells from time to time that it was seen.
    heartbeat: Heartbeat | None = None

    @property
    def changes_record(self) -> bool:
        """Return whether the report changes the record of the update."""
        return self.record is not self.before and self.record != self.before  # mostly they are one and the same

    @property
    def token(self) -> str | None:
        """Token of the write of this report; None if its record has none of its own."""
        token = self.record.write if self.record else None
        return token if self.before is None or token != self.before.write else None

    def is_stored(self, reported: Reported) -> bool:
        """Return whether a write of this very report made the record in the object."""
        return self.token is not None and reported.record is not None and reported.record.write == self.token

    def is_news(self, reported: Reported) -> bool:
        """Return whether it differs from the last report.

        A percentage alone counts at each tenth only, and the end of a hold alone not at all.
        """
        if (self.current, self.target) != (reported.current, reported.target) or self.changes_record:
            return True
        differ = self.conditions != reported.conditions
        if differ and _without_percentage(self.conditions) != _without_percentage(reported.conditions):
            return True
        if _without_end(self.hold) != _without_end(reported.hold) or self._is_heartbeat_due(reported.seen):
            return True
        return self.crosses_tenth and differ

    def _is_heartbeat_due(self, seen: datetime | None) -> bool:
        if self.heartbeat is None:
            return False
        return seen is None or not self.heartbeat.since < seen <= self.heartbeat.until

    def merge_into(self, section: object, now: datetime) -> dict[str, Any]:
        """Return a `status.firmware` with this report in it.

        Keys and conditions of other software stay. A condition's `lastTransitionTime` changes only together with its
        `status`.
        """
        fields = dict(section) if isinstance(section, dict) else {}
        conditions = [_condition_json(condition, _find(fields, condition.type), now) for condition in self.conditions]
        others = [other for other in _conditions(fields) if _type(other) not in _OURS]
        if self.changes_record:
            fields.pop("update", None)
            if self.record:
                fields["update"] = self.record.to_json()
        fields.pop("hold", None)
        if self.hold:
            fields["hold"] = self.hold.to_json()
        times = {"reported": timestamp(now), "seen": timestamp(now)}
        targets = {"current": self.current, "target": self.target}
        return {**fields, **targets, **times, "conditions": [*conditions, *others]}


def _condition_json(condition: Condition, earlier: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    since = earlier.get("lastTransitionTime") if earlier and earlier.get("status") == condition.status else None
    fields = {
        "type": condition.type,
        "status": condition.status,
        "lastTransitionTime": since if isinstance(since, str) else timestamp(now),
        "reason": condition.reason,
        "message": condition.message,
    }
    return {name: value for name, value in fields.items() if value}


def _without_percentage(conditions: tuple[Condition, ...]) -> list[tuple[str, ...]]:
    return [(c.type, c.status) if c.type == PROGRESS else (c.type, c.status, c.reason, c.message) for c in conditions]


def _without_end(hold: HoldReport | None) -> HoldReport | None:
    return hold._replace(until=None) if hold else None


def _conditions(fields: Mapping[str, Any]) -> list[Any]:
    conditions = fields.get("conditions")
    return conditions if isinstance(conditions, list) else []


def _find(fields: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return next((condition for condition in _conditions(fields) if _type(condition) == kind), None)


def _type(condition: object) -> object:
    return condition.get("type") if isinstance(condition, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
