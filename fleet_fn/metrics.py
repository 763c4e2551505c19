"""What is counted. The module `prometheus` does it, and is loaded with the first event, or soon after the start.

A function has to be there fast, and what loads Prometheus' client does nothing to that.
"""

from collections.abc import Callable
from threading import RLock
from typing import Any


class _Counter:
    """A function of `prometheus`, which is made when it is first called."""

    __slots__ = ("_count", "_make")

    def __init__(self, make: Callable[[], Callable[..., None]]) -> None:
        self._make = make
        self._count: Callable[..., None] | None = None
        _counters.append(self)

    def __call__(self, *what: Any, **more: Any) -> None:
        (self._count or self.made())(*what, **more)

    def made(self) -> Callable[..., None]:
        """The function, from now on."""
        with _lock:
            if self._count is None:
                self._count = self._make()
            return self._count


_lock = RLock()
_counters: list[_Counter] = []


def events(outcomes: tuple[str, ...]) -> Callable[[str, float], None]:
    """Counts an event by its outcome, and the seconds that it took."""

    def make() -> Callable[[str, float], None]:
        from fleet_fn.prometheus import Events

        return Events(outcomes).count

    return _Counter(make)


def exchanges(upstream: str) -> Callable[[int | None, float], None]:
    """Counts a request to `upstream` by the status of the answer, None where there was none, and its seconds."""

    def make() -> Callable[[int | None, float], None]:
        from fleet_fn.prometheus import Exchanges

        return Exchanges(upstream).count

    return _Counter(make)


def lookups(cache: str) -> Callable[..., None]:
    """Counts a look-up in `cache`, by `hit`."""

    def make() -> Callable[..., None]:
        from fleet_fn.prometheus import Lookups

        return Lookups(cache).count

    return _Counter(make)


def sent() -> Callable[[int], None]:
    """Counts bytes of firmware that a device was sent."""

    def make() -> Callable[[int], None]:
        from fleet_fn.prometheus import count_sent

        return count_sent

    return _Counter(make)


def load() -> None:
    """Has all counters there, at 0 until something is to be counted: a first event is to be seen as one more."""
    for counter in _counters:
        counter.made()


def exposition(accept: str) -> tuple[bytes, str]:
    """What is counted, in the format that the header `Accept` asks for, and its media type."""
    from fleet_fn import prometheus

    load()
    return prometheus.exposition(accept)
