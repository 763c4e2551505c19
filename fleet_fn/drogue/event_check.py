"""Check that registry events come to this process.

Each write of ours to a device raises one.
"""

import threading
from collections.abc import Callable
from typing import Final

from fleet_fn.observability.log import logger

#: Time within which the event of a write has to come.
_PATIENCE_SECONDS: Final = 60.0
#: Writes after which the share of events that came is judged, and the least share.
_SAMPLE: Final = 20
_LEAST_SHARE: Final = 0.9
#: Writes whose events are awaited at once.
_MAX_AWAITED: Final = 1000
#: The pause after a warning.
_PAUSE_SECONDS: Final = 86400.0


class EventCheck:
    """Warns if too few of our own writes come back as registry events.

    Safe to use from several threads.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """Create a check.

        Args:
            seconds: how long devices are remembered, for the warning.
            clock: monotonic seconds.

        """
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        #: Devices that are being written, and since when, the first one first.
        self._awaited: dict[tuple[str, ...], float] = {}
        self._came = self._missing = 0
        self._quiet_until = 0.0

    def expect(self, names: tuple[str, ...]) -> None:
        """Expect the event of a write that begins: it may come before the write has ended."""
        with self._lock:
            now = self._clock()
            if now < self._quiet_until:
                return
            while self._awaited and now - next(iter(self._awaited.values())) > _PATIENCE_SECONDS:
                del self._awaited[next(iter(self._awaited))]
                self._missing += 1
            if len(self._awaited) < _MAX_AWAITED:
                self._awaited.setdefault(names, now)
            if self._came + self._missing >= _SAMPLE:
                self._judge(now)

    def withdraw(self, names: tuple[str, ...]) -> None:
        """Expect no event of a write that has failed."""
        with self._lock:
            self._awaited.pop(names, None)

    def note(self, names: tuple[str, ...]) -> None:
        """Note an event that came."""
        with self._lock:
            if self._awaited.pop(names, None) is not None:
                self._came += 1

    def _judge(self, now: float) -> None:
        came, writes = self._came, self._came + self._missing
        self._came = self._missing = 0
        if came >= _LEAST_SHARE * writes:
            return
        self._awaited.clear()
        self._quiet_until = now + _PAUSE_SECONDS
        logger.warning(
            f"registry events of {came} of {writes} writes came to this process: it notices a change of a device in "
            f"sync up to {self._seconds:g} s later (IN_SYNC_TTL_SECONDS)"
        )
