"""Equal values of many devices as one object: a fleet may have 100,000."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fleet_fn.fleet.rows import Row

#: Distinct values that are shared. Others cost memory, but they are right, too.
MAX_VALUES: Final = 100_000
#: The fields of a row that are often equal: in one row, or in those of several devices.
_FIELDS: Final = (
    "reason",
    "message",
    "since",
    "current",
    "target",
    "held_until",
    "last_change",
    "last_error",
    "reported",
    "seen",
    "gateways",
)


@dataclass(slots=True)
class Sharing:
    """Remembers values while a fleet is read."""

    _known: dict[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def row(self, row: Row) -> Row:
        """Return an equal row."""
        return replace(row, **{name: self._value(getattr(row, name)) for name in _FIELDS})

    def labels(self, labels: Mapping[str, object]) -> Mapping[str, str]:
        """Return the labels that are texts, as all are that Drogue Cloud takes."""
        texts = {key: value for key, value in labels.items() if isinstance(value, str)}
        found: Mapping[str, str] = self._known_as(frozenset(texts.items()), texts)
        return found

    def _value(self, value: Any) -> Any:
        return self._known_as(value, value)

    def _known_as(self, key: Any, value: Any) -> Any:
        if len(self._known) < MAX_VALUES:
            return self._known.setdefault(key, value)
        return self._known.get(key, value)
