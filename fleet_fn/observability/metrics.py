"""What is counted. The module `prometheus` does it, and is loaded with the first event, or soon after the start.

Counting never raises, whatever becomes of the folder in which worker processes count together.

A function has to be there fast, and what loads Prometheus' client does nothing to that.
"""

import time
from collections.abc import Callable
from threading import RLock
from typing import Any, Final

from fleet_fn.observability.side_effects import Guard

#: Back-off after counters could not be made, for want of a folder or of space in it.
_BACK_OFF_SECONDS: Final = 10.0


class _Counter:
    """A function of `prometheus`, which is made when it is first called."""

    __slots__ = ("_count", "_make")

    def __init__(self, make: Callable[[], Callable[..., None]]) -> None:
        self._make = make
        self._count: Callable[..., None] | None = None
        _counters.append(self)

    def __call__(self, *what: Any, **more: Any) -> None:
        try:
            if self._count or _may_be_made():
                (self._count or self.made())(*what, **more)
        except Exception as error:  # noqa: BLE001 - no answer may depend on it
            _guard.report(error)

    def made(self) -> Callable[..., None]:
        """Return the function, which stays.

        Raises:
            Exception: it cannot be made.

        """
        global _failed_at
        with _lock:
            if self._count is None:
                try:
                    self._count = self._make()
                except Exception:
                    _failed_at = time.monotonic()
                    raise
            return self._count


def _may_be_made() -> bool:
    """Whether counters can be made, as far as is known: to try it again takes time."""
    return _failed_at is None or time.monotonic() - _failed_at > _BACK_OFF_SECONDS


_guard: Final = Guard("metrics")
_failed_at: float | None = None
_lock = RLock()
_counters: list[_Counter] = []


def events(outcomes: tuple[str, ...]) -> Callable[[str, float], None]:
    """Counts an event by its outcome, and the seconds that it took."""

    def make() -> Callable[[str, float], None]:
        from fleet_fn.observability.prometheus import Events

        return Events(outcomes).count

    return _Counter(make)


def exchanges(upstream: str) -> Callable[[int | None, float], None]:
    """Counts a request to `upstream` by the status of the answer, None where there was none, and its seconds."""

    def make() -> Callable[[int | None, float], None]:
        from fleet_fn.observability.prometheus import Exchanges

        return Exchanges(upstream).count

    return _Counter(make)


def lookups(cache: str) -> Callable[..., None]:
    """Counts a look-up in `cache`, by `hit`."""

    def make() -> Callable[..., None]:
        from fleet_fn.observability.prometheus import Lookups

        return Lookups(cache).count

    return _Counter(make)


def sent() -> Callable[[int], None]:
    """Counts bytes of firmware that a device was sent."""

    def make() -> Callable[[int], None]:
        from fleet_fn.observability.prometheus import count_sent

        return count_sent

    return _Counter(make)


def load() -> None:
    """Have all counters there, at 0 until something is to be counted: a first event is to be seen as one more."""
    try:
        _load()
    except Exception as error:  # noqa: BLE001 - events are answered without
        _guard.report(error)


def exposition(accept: str) -> tuple[bytes, str] | None:
    """Return what is counted, in the format that the header `Accept` asks for, and its media type; None if it is lost.

    Without the folder in which worker processes count together, a scrape would be told one worker's counts at a time.
    """
    try:
        _load()
        from fleet_fn.observability import prometheus

        return prometheus.exposition(accept)
    except Exception as error:  # noqa: BLE001 - a worker must not end for it
        _guard.report(error)
        return None


def _load() -> None:
    for counter in _counters:
        counter.made()
