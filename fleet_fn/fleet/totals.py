"""Numbers of devices by state, reason and version."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from fleet_fn.drogue.status_report import UNKNOWN
from fleet_fn.fleet.gateways import Gateways
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import ATTENTION, State

#: Versions and reasons are counted by this many characters: a device may report longer ones.
MAX_CHARS: Final = 255
#: Different reasons that are counted; devices report them, and memory is bounded.
_MAX_REASONS: Final = 1000


@dataclass(slots=True)
class Totals:
    """Numbers of devices by state, by reason, by version and by target."""

    states: Counter[State] = field(default_factory=Counter)
    #: Reasons of the states that an operator should look at, and of devices that are held back.
    reasons: Counter[tuple[State, str]] = field(default_factory=Counter)
    current: Counter[str] = field(default_factory=Counter)
    target: Counter[str] = field(default_factory=Counter)
    gateways: Gateways = field(default_factory=Gateways)

    def add(self, rows: Iterable[Row]) -> None:
        """Count devices."""
        for row in rows:
            self.states[row.state] += 1
            if row.state in (*ATTENTION, State.HELD):
                self._add_reason(row)
            if row.current is not None:
                self.current[row.current[:MAX_CHARS]] += 1
            if row.target is not None and row.target != UNKNOWN:
                self.target[row.target[:MAX_CHARS]] += 1
            self.gateways.add(row.device, row.gateways, is_updating=row.is_updating)

    def _add_reason(self, row: Row) -> None:
        key = (row.state, (row.reason or row.message or "-")[:MAX_CHARS])
        if key in self.reasons or len(self.reasons) < _MAX_REASONS:
            self.reasons[key] += 1

    def reasons_of(self, state: State) -> list[tuple[str, int]]:
        """Return a state's reasons with their numbers of devices, the most frequent first."""
        found = [(reason, count) for (of, reason), count in self.reasons.items() if of is state]
        return sorted(found, key=lambda each: (-each[1], each[0]))

    @property
    def devices(self) -> int:
        """Number of devices."""
        return self.states.total()

    @property
    def needs_attention(self) -> bool:
        """Is true if any device has failed, rolled back or stalled."""
        return any(self.states[state] for state in ATTENTION)

    @property
    def versions(self) -> list[str]:
        """All versions run or targeted by devices, highest first: 0.1.10 before 0.1.9."""
        return sorted({*self.current, *self.target}, key=version_key, reverse=True)


def version_key(version: str) -> list[tuple[int, str]]:
    """Return a key that sorts 0.1.10 above 0.1.9."""
    texts_and_numbers = re.split("([0-9]+)", version)
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in texts_and_numbers]
