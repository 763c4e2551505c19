"""Turns: work under one key runs in one thread at a time.

Each thread waits for its turn until its own deadline. Unlike `SingleFlight`, the work runs in the caller's thread,
which saves the 0.15 ms of starting a thread, and may end with the caller's deadline. A caller whose turn comes late
decides for itself whether earlier work suffices.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from fleet_fn.deadline import Deadline

K = TypeVar("K", bound=Hashable)


class Turns(Generic[K]):
    """One turn for each key that threads want."""

    def __init__(self, busy: Callable[[], Exception]) -> None:
        """Create turns without threads; `busy` makes the error of a wait in vain."""
        self._busy = busy
        self._lock = threading.Lock()
        self._turns: dict[K, _Turn[K]] = {}

    def take(self, key: K, deadline: Deadline) -> "_Turn[K]":
        """Wait for the turn of `key`, and hold it for a `with` statement.

        No other thread has the turn at the same time. A free turn can be taken after the deadline, too.

        Raises:
            Exception: the error of `busy`; other threads had the turn until the deadline.

        """
        with self._lock:
            turn = self._turns.get(key)
            if turn is None:
                turn = self._turns[key] = _Turn(self, key)
            turn.wanted_by += 1
        if not turn.lock.acquire(timeout=deadline.remaining):
            self.leave(turn)
            raise self._busy()
        return turn

    def leave(self, turn: "_Turn[K]") -> None:
        """Want a turn no more."""
        with self._lock:
            turn.wanted_by -= 1
            if not turn.wanted_by:
                del self._turns[turn.key]


class _Turn(Generic[K]):
    """The turn of one key. It ends with the `with` statement."""

    __slots__ = ("_turns", "key", "lock", "wanted_by")

    def __init__(self, turns: Turns[K], key: K) -> None:
        self._turns = turns
        self.key = key
        self.lock = threading.Lock()
        #: Threads that have the turn or wait for it.
        self.wanted_by = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        self._turns.leave(self)
