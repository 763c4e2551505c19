"""Connections shared out evenly among the workers of a server.

All workers listen on one socket, and any of them may take a connection. A deliverer's connection lives for hours. If
most of them are one worker's, that one is busy while the others are idle. So each worker tells the others how many it
has. One with more than another leaves new connections to it, and closes some that it has.
"""

import mmap
import time
from collections.abc import Callable
from typing import Final

#: Most workers that are told apart; further ones take connections as they come.
_SLOTS: Final = 256
#: Number of connections in the slot of a worker that takes none.
_ABSENT: Final = -1
#: How long a worker leaves a new connection to others, looking so often whether they have taken it.
_PATIENCE_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 0.0001
#: How long it does not do so after it has waited in vain: the other worker may hang.
_DOUBT_SECONDS: Final = 1.0
#: How often a worker looks whether to close a connection for the sake of balance.
_CLOSE_SECONDS: Final = 0.1


class Board:
    """Numbers of connections of all workers, in memory that they share.

    The server makes it before it forks.
    """

    def __init__(self) -> None:
        #: Connections by slot; behind them, how many slots have been used.
        self._counts = memoryview(mmap.mmap(-1, 4 * (_SLOTS + 1))).cast("i")

    def enter(self, slot: int) -> None:
        """Note that a worker begins; the server calls it, so no two at a time."""
        if slot < _SLOTS:
            self.leave(slot)
            self._counts[_SLOTS] = max(self._counts[_SLOTS], slot + 1)

    def write(self, slot: int, connections: int) -> None:
        """Note the number of connections of a worker."""
        if slot < _SLOTS:
            self._counts[slot] = connections

    def leave(self, slot: int) -> None:
        """Note that a worker takes no connections any more."""
        self.write(slot, _ABSENT)

    def least(self, slot: int) -> int | None:
        """Return the least number of connections of another worker, or None."""
        if slot >= _SLOTS:
            return None
        counts = self._counts[: self._counts[_SLOTS]].tolist()
        others = [count for other, count in enumerate(counts) if other != slot and count != _ABSENT]
        return min(others, default=None)


class Share:
    """One worker's share of the connections.

    The others leave none to it before it tells its number.
    """

    def __init__(self, board: Board, slot: int) -> None:
        self._board = board
        self._slot = slot
        self._own = _ABSENT
        self._doubts_until = self._closes_from = 0.0

    def tell(self, connections: int) -> None:
        """Tell the other workers how many connections this one has."""
        if connections != self._own:
            self._own = connections
            self._board.write(self._slot, connections)

    def leave(self) -> None:
        """Take no connections any more."""
        self.tell(_ABSENT)

    def yield_connection(self, is_waiting: Callable[[], bool]) -> None:
        """Give workers with fewer connections a moment to take the next one.

        `is_waiting` returns whether that connection still waits.
        """
        now = time.monotonic()
        if not self._is_ahead or now < self._doubts_until:
            return
        until = now + _PATIENCE_SECONDS
        while self._is_ahead and is_waiting():
            if time.monotonic() >= until:
                self._doubts_until = until + _DOUBT_SECONDS
                return
            time.sleep(_LOOK_SECONDS)

    def must_close(self) -> bool:
        """Return whether to close a connection so that its sender gets another worker."""
        now = time.monotonic()
        if now < self._closes_from:
            return False
        self._closes_from = now + _CLOSE_SECONDS
        least = self._board.least(self._slot)
        return least is not None and self._own > least + 1 + self._own // 4

    @property
    def _is_ahead(self) -> bool:
        least = self._board.least(self._slot)
        return least is not None and self._own > least
