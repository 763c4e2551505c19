"""One deadline for a whole event, handed down to whatever it has to wait for."""

import time
from collections.abc import Callable


class Deadline:
    """The moment by which something has to be done, on a clock that never steps."""

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
        """Seconds from when the deadline was set to its end."""
        return self._end - self._start

    def leaving(self, share: float) -> "Deadline":
        """An earlier deadline, which leaves `share` (0 to 1) of the remaining time for what comes after."""
        return Deadline(self.remaining * (1 - share), self._clock)
