"""The back-off of failed status reports."""

import threading
from collections.abc import Callable
from typing import Final, NamedTuple

from fleet_fn.concurrency.ttl_cache import Bounded
from fleet_fn.drogue.device_registry_object import RegistryObject

#: Back-off after a failed status report; doubles up to the maximum. The first is short: until a record is written, no
#: device midway can be continued safely.
_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 60.0
#: Devices whose failures are remembered, and the memory for them.
_MAX_FAILURES: Final = 20_000
_MAX_FAILURES_BYTES: Final = 4 * 1024 * 1024


class _Failure(NamedTuple):
    """A failed report."""

    pause_seconds: float
    #: The device's object at that time, as far as it was known.
    known: RegistryObject | None


class ReportBackoff:
    """Devices whose reports failed, with a pause for each.

    A changed object ends the pause: the reason of the failure may have gone. Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: Bounded[tuple[str, ...], _Failure] = Bounded(_MAX_FAILURES, _MAX_FAILURES_BYTES)
        self._lock = threading.Lock()

    def add_failure(self, names: tuple[str, ...], known: RegistryObject | None) -> None:
        """Start a pause, twice as long as the one before if the object is still the same."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        with self._lock:
            if (earlier := self._failures.get(names)) and earlier[1].known == known:
                pause_seconds = min(2 * earlier[1].pause_seconds, _MAX_PAUSE_SECONDS)
            self._failures.put(names, self._clock(), _Failure(pause_seconds, known))

    def is_paused(self, names: tuple[str, ...], known: RegistryObject | None) -> bool:
        """Return whether reports are paused: one failed, and the object is still the same."""
        entry = self._failures.get(names)
        if entry is None:
            return False
        since, failure, _ = entry
        # The very same object has not been read again, so a report would fail again. A device without a record is read
        # again with each of its blocks.
        is_early = self._clock() - since < failure.pause_seconds
        return failure.known is known or (failure.known == known and is_early)
