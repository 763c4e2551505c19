"""Metrics for Prometheus: counters, and the answer to a scrape.

The answer has the sums over all worker processes.

docs/metrics.md lists the names. No label ever has a device's or an application's name.
"""

import os
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from fleet_fn.observability.metrics_file import ReservedDict
from fleet_fn.observability.metrics_folder import FOLDER, process_identifier

#: An answer from memory takes a few milliseconds; the deadline ends an event after some seconds.
_BUCKETS_SECONDS: Final = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
#: The label `status` of a request without an answer.
_UNANSWERED: Final = "error"

if FOLDER in os.environ:
    values.MmapedDict = ReservedDict  # type: ignore[attr-defined]
    values.ValueClass = values.MultiProcessValue(process_identifier)
disable_created_metrics()
_registry: Final = CollectorRegistry()
_events: Final = Counter("fleet_events", "Events that were answered.", ["outcome"], registry=_registry)
_event_seconds: Final = Histogram(
    "fleet_event_duration_seconds",
    "Time from an event's arrival to its answer.",
    buckets=_BUCKETS_SECONDS,
    registry=_registry,
)
_requests: Final = Counter(
    "fleet_upstream_requests",
    f"Requests to upstreams, by the status of their answers; without one it is {_UNANSWERED!r}.",
    ["upstream", "status"],
    registry=_registry,
)
_request_seconds: Final = Histogram(
    "fleet_upstream_duration_seconds",
    "Time from a request to an upstream to its answer, or the end of waiting for one.",
    ["upstream"],
    buckets=_BUCKETS_SECONDS,
    registry=_registry,
)
_sent: Final = Counter(
    "fleet_firmware_sent_bytes", "Bytes of firmware in commands that were accepted.", registry=_registry
)
_cache_requests: Final = Counter("fleet_cache_requests", "Look-ups in caches.", ["cache", "result"], registry=_registry)

_updates: Final = Counter("fleet_updates", "Turning points of updates, told once each.", ["result"], registry=_registry)


class Events:
    """Counts events by outcome.

    Each outcome begins at 0, so that Prometheus sees the first event as an increase.
    """

    def __init__(self, outcomes: tuple[str, ...]) -> None:
        self._outcomes = {outcome: _events.labels(outcome) for outcome in outcomes}

    def count(self, outcome: str, seconds: float) -> None:
        """Count an event and the seconds until its answer."""
        self._outcomes[outcome].inc()
        _event_seconds.observe(seconds)


class Exchanges:
    """Counts the requests to one upstream, such as `registry` or `command`."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._seconds = _request_seconds.labels(upstream)
        self._statuses: dict[int | None, Counter] = {}

    def count(self, status: int | None, seconds: float) -> None:
        """Count a request by the status of its answer, or None, and by its seconds."""
        if status not in self._statuses:
            self._statuses[status] = _requests.labels(self._upstream, str(status or _UNANSWERED))
        self._statuses[status].inc()
        self._seconds.observe(seconds)


class Lookups:
    """Counts the look-ups in one cache: `spec`, `manifest`, `firmware` or `signature`."""

    def __init__(self, cache: str) -> None:
        self._hits = _cache_requests.labels(cache, "hit")
        self._misses = _cache_requests.labels(cache, "miss")

    def count(self, *, hit: bool) -> None:
        """Count a look-up; `hit` says that the cache had the value."""
        (self._hits if hit else self._misses).inc()


class Updates:
    """Counts the turning points of updates by result; each begins at 0."""

    def __init__(self, results: tuple[str, ...]) -> None:
        self._results = {result: _updates.labels(result) for result in results}

    def count(self, result: str) -> None:
        """Count a turning point."""
        self._results[result].inc()


class Subscription:
    """Counts what comes from the MQTT integration."""

    def __init__(self) -> None:
        """Make the metrics, which a process without a subscription lacks."""
        self._connected = _gauge("fleet_mqtt_connected", "Connections to the MQTT integration that are up.")
        self._waiting = _gauge("fleet_mqtt_waiting", "Events from the MQTT integration without a final answer.")
        self._received = _counter("fleet_mqtt_received", "Messages from the MQTT integration.")
        self._redelivered = _counter("fleet_mqtt_redelivered", "Messages that the MQTT integration had sent before.")
        self._given_up = _counter("fleet_mqtt_given_up", "Events that got too old without a final answer.")

    def connected(self, change: int) -> None:
        """Add to the number of connections."""
        self._connected.inc(change)

    def waiting(self, change: int) -> None:
        """Add to the number of events without a final answer."""
        self._waiting.inc(change)

    def received(self, again: bool) -> None:
        """Count a message, and whether it was sent before."""
        self._received.inc()
        if again:
            self._redelivered.inc()

    def given_up(self) -> None:
        """Count an event that got too old."""
        self._given_up.inc()


@cache
def subscription() -> Subscription:
    """Return the process's counters of its subscription."""
    return Subscription()


def _gauge(name: str, documentation: str) -> Gauge:
    """Return a gauge at 0, which ends with its process."""
    gauge = Gauge(name, documentation, registry=_registry, multiprocess_mode="livesum")
    gauge.set(0)
    return gauge


def _counter(name: str, documentation: str) -> Counter:
    return Counter(name, documentation, registry=_registry)


def count_sent(size: int) -> None:
    """Count the bytes of firmware in an accepted command."""
    _sent.inc(size)


def exposition(accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that `Accept` asks for, and its media type."""
    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # `Accept` names a malformed version
        encode, content_type = choose_encoder("")
    folder = os.environ.get(FOLDER)
    if folder is None:
        return encode(_registry), content_type
    registry = CollectorRegistry()
    MultiProcessCollector(registry, folder)
    return encode(registry), content_type
