"""The function's counters.

Counting never raises, even if the folder for metrics breaks.

The module `prometheus` counts. It is loaded with the first event, or soon after the start: loading Prometheus' client
takes 15 ms, which would delay the start.
"""

import time
from collections.abc import Callable
from threading import RLock
from typing import Any, Final, NamedTuple

from fleet_fn.observability.side_effects import Guard, Guarded

#: Pause before another try after counters could not be made, e.g. because the folder is full.
_BACK_OFF_SECONDS: Final = 10.0


class _Counter(Guarded):
    """A counting function of `prometheus`, made with its first call."""

    __slots__ = ("_made", "_make")

    def __init__(self, make: Callable[[], Callable[..., None]]) -> None:
        super().__init__("metrics", self._count_first)
        self._guard = _guard  # one for all counters: what keeps one from counting mostly keeps the others, too
        self._make = make
        self._made: Callable[..., None] | None = None
        _counters.append(self)

    def _count_first(self, *args: Any, **kwargs: Any) -> None:
        if self._made or _may_retry():
            self.load()(*args, **kwargs)

    def load(self) -> Callable[..., None]:
        """Make the function, unless it was made before, and return it.

        Raises:
            Exception: it cannot be made.

        """
        global _failed_at
        with _lock:
            if self._made is None:
                try:
                    self._made = self._observe = self._make()
                except Exception:
                    _failed_at = time.monotonic()
                    raise
            return self._made


def _may_retry() -> bool:
    """Return whether to try to make a counter: a try that fails takes time."""
    return _failed_at is None or time.monotonic() - _failed_at > _BACK_OFF_SECONDS


_guard: Final = Guard("metrics")
_failed_at: float | None = None
_lock = RLock()
_counters: list[_Counter] = []


def events(outcomes: tuple[str, ...]) -> Callable[[str, float], None]:
    """Return a counter of events: by outcome, and by the seconds until the answer."""

    def make() -> Callable[[str, float], None]:
        from fleet_fn.observability.prometheus import Events

        return Events(outcomes).count

    return _Counter(make)


def exchanges(upstream: str) -> Callable[[int | None, float], None]:
    """Return a counter of requests to `upstream`, by status of the answer and seconds.

    The status is None without an answer.
    """

    def make() -> Callable[[int | None, float], None]:
        from fleet_fn.observability.prometheus import Exchanges

        return Exchanges(upstream).count

    return _Counter(make)


def lookups(cache: str) -> Callable[..., None]:
    """Return a counter of look-ups in `cache`, by `hit`."""

    def make() -> Callable[..., None]:
        from fleet_fn.observability.prometheus import Lookups

        return Lookups(cache).count

    return _Counter(make)


def sent() -> Callable[[int], None]:
    """Return a counter of the firmware bytes in accepted commands."""

    def make() -> Callable[[int], None]:
        from fleet_fn.observability.prometheus import count_sent

        return count_sent

    return _Counter(make)


def updates(results: tuple[str, ...]) -> Callable[[str], None]:
    """Return a counter of the turning points of updates, by result."""

    def make() -> Callable[[str], None]:
        from fleet_fn.observability.prometheus import Updates

        return Updates(results).count

    return _Counter(make)


class SubscriptionCounts(NamedTuple):
    """Counters of a subscription to the MQTT integration."""

    #: Adds to the number of connections.
    connected: Callable[[int], None]
    #: Counts a message; its argument is whether it was sent before.
    received: Callable[[bool], None]
    #: Adds to the number of events without a final answer.
    waiting: Callable[[int], None]
    given_up: Callable[[], None]


def subscription() -> SubscriptionCounts:
    """Return the counters of a subscription."""

    def maker(name: str) -> Callable[[], Callable[..., None]]:
        def make() -> Callable[..., None]:
            from fleet_fn.observability import prometheus

            count: Callable[..., None] = getattr(prometheus.subscription(), name)
            return count

        return make

    return SubscriptionCounts(*(_Counter(maker(name)) for name in SubscriptionCounts._fields))


def load() -> None:
    """Make all counters, at 0, so that Prometheus sees the first event as an increase."""
    try:
        _load()
    except Exception as error:  # noqa: BLE001 - events are answered without counters
        _guard.report(error)


def exposition(accept: str) -> tuple[bytes, str] | None:
    """Return the metrics in the format that `Accept` asks for, and its media type.

    Return None without the folder that the workers share: a scrape would show the counts of one worker only.
    """
    try:
        _load()
        from fleet_fn.observability import prometheus

        return prometheus.exposition(accept)
    except Exception as error:  # noqa: BLE001 - a failed scrape must not end the worker
        _guard.report(error)
        return None


def _load() -> None:
    for counter in _counters:
        counter.load()
