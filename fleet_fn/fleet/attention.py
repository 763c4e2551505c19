"""The devices that an operator should look at first, out of a fleet of any size."""

import heapq
from collections.abc import Iterable
from typing import Final

from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State

_STATES: Final = list(State)


class Attention:
    """Keeps a bounded number of rows.

    Worse states come first, and of each state what changed last.
    """

    def __init__(self, most: int) -> None:
        """Keep `most` rows at most."""
        self._most = most
        #: The row to give up first is on top.
        self._heap: list[tuple[int, float, int, Row]] = []
        #: Number of all rows that were added.
        self.count = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows."""
        for row in rows:
            self.count += 1
            time = row.since.timestamp() if row.since else 0.0
            entry = (-_STATES.index(row.state), time, -self.count, row)
            if len(self._heap) < self._most:
                heapq.heappush(self._heap, entry)
            else:
                heapq.heappushpop(self._heap, entry)

    @property
    def rows(self) -> list[Row]:
        """The rows that were kept, in order."""
        return [row for *_, row in sorted(self._heap, key=lambda entry: entry[:3], reverse=True)]
