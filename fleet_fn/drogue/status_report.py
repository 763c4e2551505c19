"""What a device's object says of its firmware: `status.firmware`, readable to the original's console.

That console takes `current`, `target` and `conditions` for granted, and a condition's message `UpdateProgress` for a
number.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.update_record import Record, timestamp

#: The target of a device for which it cannot be told.
UNKNOWN: Final = "Unknown"

IN_SYNC: Final = "InSync"
PROGRESS: Final = "UpdateProgress"
FAILED: Final = "UpdateFailed"
_OURS: Final = (IN_SYNC, PROGRESS, FAILED)

#: Reasons of `InSync` beside a known target that are none of policy's. The device is on its way:
FINISHING: Final = "finishing"
CONFIRMING: Final = "confirming"
SETTLING: Final = "settling"
ON_THE_WAY: Final = (FINISHING, CONFIRMING, SETTLING)
#: or it asks for the same block again and again.
BLOCK_REFUSED: Final = "block-refused"


class Condition(NamedTuple):
    """One of our conditions; what is empty is left out."""

    type: str
    #: `True`, `False` or `Unknown`.
    status: str
    reason: str = ""
    message: str = ""


class Reported(NamedTuple):
    """What stands in an object: of all that may stand there, what is ours."""

    current: str | None = None
    target: str | None = None
    conditions: tuple[Condition, ...] = ()
    record: Record | None = None

    @classmethod
    def read(cls, section: object) -> "Reported":
        """What `status.firmware` says; where it is something else than it should be, nothing."""
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
        )

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)


class Report(NamedTuple):
    """What there is to say of a device."""

    current: str
    target: str
    #: All of ours that hold.
    conditions: tuple[Condition, ...]
    #: The record that stood in the object when it was decided what to do, and what it becomes.
    before: Record | None = None
    record: Record | None = None
    #: The block that was sent reaches the next tenth of the way.
    crosses_tenth: bool = False

    @property
    def changes_record(self) -> bool:
        """Whether something else is to be noted of the update."""
        return self.record != self.before

    def is_news(self, reported: Reported) -> bool:
        """Whether it says more than what stands there. A percentage alone does only with each tenth."""
        if (self.current, self.target) != (reported.current, reported.target) or self.changes_record:
            return True
        if _but_percentage(self.conditions) != _but_percentage(reported.conditions):
            return True
        return self.crosses_tenth and self.conditions != reported.conditions

    def written_into(self, section: object, now: datetime) -> dict[str, Any]:
        """The section as it is to stand; what others have in it stays.

        A condition's `lastTransitionTime` changes with its `status` only.
        """
        fields = dict(section) if isinstance(section, dict) else {}
        conditions = [_written(condition, _find(fields, condition.type), now) for condition in self.conditions]
        others = [other for other in _conditions(fields) if _type(other) not in _OURS]
        if self.changes_record:
            fields.pop("update", None)
            if self.record:
                fields["update"] = self.record.to_json()
        return {**fields, "current": self.current, "target": self.target, "conditions": [*conditions, *others]}


def _written(condition: Condition, earlier: Mapping[str, Any] | None, now: datetime) -> dict[str, Any]:
    since = earlier.get("lastTransitionTime") if earlier and earlier.get("status") == condition.status else None
    fields = {
        "type": condition.type,
        "status": condition.status,
        "lastTransitionTime": since if isinstance(since, str) else timestamp(now),
        "reason": condition.reason,
        "message": condition.message,
    }
    return {name: value for name, value in fields.items() if value}


def _but_percentage(conditions: tuple[Condition, ...]) -> list[tuple[str, ...]]:
    return [(c.type, c.status) if c.type == PROGRESS else (c.type, c.status, c.reason, c.message) for c in conditions]


def _conditions(fields: Mapping[str, Any]) -> list[Any]:
    conditions = fields.get("conditions")
    return conditions if isinstance(conditions, list) else []


def _find(fields: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return next((condition for condition in _conditions(fields) if _type(condition) == kind), None)


def _type(condition: object) -> object:
    return condition.get("type") if isinstance(condition, dict) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
