"""Deadlines: one for a whole event, shared by all that the event waits for."""

import time
from collections.abc import Callable


class Deadline:
    """A time on a clock that never steps, by which a task has to be done."""

    __slots__ = ("_clock", "_end", "_start")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = clock()
        self._end = self._start + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - self._clock())

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return self._clock() - self._start

    @property
    def total(self) -> float:
        """Seconds between the setting of the deadline and its end."""
        return self._end - self._start

    def within(self, seconds: float) -> "Deadline":
        """Return a deadline that is at most `seconds` away, and no later than this one."""
        return Deadline(min(self.remaining, seconds), self._clock)

    def leave(self, share: float) -> "Deadline":
        """Return an earlier deadline.

        It leaves a share (0 to 1) of the remaining time for later tasks.
        """
        return Deadline(self.remaining * (1 - share), self._clock)
