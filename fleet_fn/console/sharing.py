"""Equal values of many devices as one object: a fleet may have 100,000."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from fleet_fn.fleet.rows import Row

#: Distinct values that are shared. Others cost memory, but they are right, too.
MAX_VALUES: Final = 100_000
#: Characters of a text, and texts of a list, that are kept of a device: its object may have 64 KB of them. No version
#: that devices are sent is as long.
_MAX_TEXT: Final = 1000
_MAX_LIST: Final = 8
#: Labels of a device, and the characters of each.
_MAX_LABELS: Final = 32
_MAX_LABEL: Final = 300
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
        """Return an equal row, but for texts that are far too long."""
        failed = tuple(each for each in row.failed[:_MAX_LIST] if len(each.version) <= _MAX_TEXT)
        return replace(row, failed=failed, **{name: self._value(getattr(row, name)) for name in _FIELDS})

    def labels(self, labels: Mapping[str, object]) -> Mapping[str, str]:
        """Return the labels that are texts, as all are that Drogue Cloud takes.

        Those that are far too long, or too many, are left out.
        """
        short = (
            (key, value)
            for key, value in labels.items()
            if isinstance(value, str) and len(key) + len(value) <= _MAX_LABEL
        )
        texts = dict(islice(short, _MAX_LABELS))
        found: Mapping[str, str] = self._known_as(frozenset(texts.items()), texts)
        return found

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            value = value[:_MAX_TEXT]
        elif isinstance(value, tuple):
            value = tuple(each[:_MAX_TEXT] for each in value[:_MAX_LIST])
        return self._known_as(value, value)

    def _known_as(self, key: Any, value: Any) -> Any:
        if len(self._known) < MAX_VALUES:
            return self._known.setdefault(key, value)
        return self._known.get(key, value)
