"""Events on their way to the function, one by one over simulated time: partitions, KafkaSources, pods, command API.

The dispatcher works as Knative's `OrderedConsumerVerticle` does. A timer asks Kafka each 200 ms, unless the last poll
still waits. It asks only for partitions of which no event is left to be sent, and takes at most `max.poll.records`. One
event of each partition is under way at a time. A poll that finds nothing waits up to a second for the first event.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random
from typing import Any, Final

#: Events a second of a partition if the command API takes `UPSTREAM_SECONDS`, and if the function answers at once; both
#: were measured with the real deliverers.
PARTITION_RATE: Final = 35
AT_ONCE_RATE: Final = 678
#: Seconds that the command API takes: log-normal with this mean, since some answers take much longer than most.
UPSTREAM_SECONDS: Final = 0.020
UPSTREAM_SIGMA: Final = 0.5
#: What the command API does not take of an event's time: Kafka, the dispatcher, the network and the function do.
OWN_SECONDS: Final = 1 / PARTITION_RATE - UPSTREAM_SECONDS
#: Time between polls of a dispatcher, and that one poll waits for events.
TICK_SECONDS: Final = 0.2
POLL_SECONDS: Final = 1.0
#: `EVENT_MAX_AGE_SECONDS`: the function does not answer older events.
MAX_AGE_SECONDS: Final = 25.0
#: A device that has no command after this time sends its status again: Drogue Device, and the crate's updater.
PATIENCE_SECONDS: Final = 40.0
IMPATIENCE_SECONDS: Final = 15.0
#: `containerConcurrency`.
POD_EVENTS: Final = 8


@dataclass(frozen=True, slots=True)
class Plant:
    """What events pass through."""

    partitions: int
    sources: int
    #: `max.poll.records`.
    records: int
    pods: int


@dataclass(slots=True)
class Course:
    """What became of the events."""

    #: Seconds from a device's first status to its command.
    waits: list[float] = field(default_factory=list)
    #: When the last command came.
    end: float = 0.0
    #: Events that were too old to be answered.
    stale: int = 0
    #: Devices that have no command in the end.
    waiting: int = 0

    def wait(self, share: float) -> float:
        """Return the seconds within which a share of the devices, 0 to 1, had a command: infinite if it never had."""
        index = max(0, math.ceil(share * (len(self.waits) + self.waiting)) - 1)
        return sorted(self.waits)[index] if index < len(self.waits) else math.inf


@dataclass(frozen=True, slots=True)
class _Event:
    device: int
    made: float


@dataclass(slots=True, eq=False)
class _Partition:
    source: "_Source"
    #: Events that are in Kafka, and those that the dispatcher has taken.
    log: deque[_Event] = field(default_factory=deque)
    taken: deque[_Event] = field(default_factory=deque)
    #: One of its events is under way.
    is_busy: bool = False


@dataclass(slots=True, eq=False)
class _Source:
    partitions: list[_Partition] = field(default_factory=list)
    #: Partitions for which a poll waits, and until when.
    polled: list[_Partition] = field(default_factory=list)
    polled_until: float = -math.inf


class Simulation:
    """Devices ask, and get commands. Chance tells which partition a device's events are in."""

    def __init__(
        self, plant: Plant, asks: Iterable[tuple[float, int]], seed: int, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Let devices ask.

        Args:
            plant: what their events pass through.
            asks: when, in seconds, and which device: a number.
            seed: what chance is drawn from.
            patience: seconds after which a device without a command asks again.

        """
        self._records, self._random, self._patience = plant.records, Random(seed), patience
        self._sources = [_Source() for _ in range(plant.sources)]
        self._partitions = [_Partition(self._sources[number % plant.sources]) for number in range(plant.partitions)]
        for partition in self._partitions:
            partition.source.partitions.append(partition)
        self._place: dict[int, _Partition] = {}
        #: When devices asked first that have had no command since.
        self._since: dict[int, float] = {}
        #: Events that the pods can still take, and partitions whose event waits for one to end.
        self._room = plant.pods * POD_EVENTS
        self._held: deque[_Partition] = deque()
        #: When, a number to tell things of the same time apart, what to do, and with what.
        self._agenda: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self._planned = 0
        for at, device in asks:
            self._plan(at, self._ask_first, device)
        self._to_come = self._planned
        for source in self._sources:
            self._plan(self._random.uniform(0, TICK_SECONDS), self._tick, source)
        self.course = Course()

    def run(self, until: float) -> Course:
        """Return the course at that time, or once all devices have had their commands."""
        while (self._to_come or self._since) and self._agenda[0][0] < until:
            now, _, step, argument = heappop(self._agenda)
            step(now, argument)
        self.course.waiting = len(self._since)
        return self.course

    def _plan(self, at: float, step: Callable[[float, Any], None], argument: object) -> None:
        self._planned += 1
        heappush(self._agenda, (at, self._planned, step, argument))

    def _ask_first(self, now: float, device: int) -> None:
        self._to_come -= 1
        self._since.setdefault(device, now)
        self._ask(now, device)

    def _ask(self, now: float, device: int) -> None:
        """Let a device send its status, unless it has had its command."""
        if device not in self._since:
            return
        self._plan(now + self._patience, self._ask, device)
        partition = self._place.get(device) or self._place.setdefault(device, self._random.choice(self._partitions))
        partition.log.append(_Event(device, now))
        source = partition.source
        if now < source.polled_until and partition in source.polled:
            source.polled_until = now
            self._take(now, source.polled)

    def _tick(self, now: float, source: _Source) -> None:
        """Let a dispatcher ask Kafka for events."""
        self._plan(now + TICK_SECONDS, self._tick, source)
        idle = [partition for partition in source.partitions if not partition.taken]
        if now < source.polled_until or not idle:
            return
        self._random.shuffle(idle)
        if not self._take(now, idle):
            source.polled, source.polled_until = idle, now + POLL_SECONDS

    def _take(self, now: float, partitions: Iterable[_Partition]) -> int:
        """Move events from Kafka to the dispatcher; return how many."""
        left = self._records
        for partition in partitions:
            count = min(left, len(partition.log))
            partition.taken.extend(partition.log.popleft() for _ in range(count))
            left -= count
            if count and not partition.is_busy:
                self._send_next(now, partition)
        return self._records - left

    def _send_next(self, now: float, partition: _Partition) -> None:
        """Let a pod have a partition's next event, if any, as soon as it has room."""
        partition.is_busy = bool(partition.taken)
        if not partition.taken:
            return
        if not self._room:
            self._held.append(partition)
            return
        self._room -= 1
        event = partition.taken.popleft()
        is_stale = now - event.made > MAX_AGE_SECONDS
        seconds = 1 / AT_ONCE_RATE if is_stale else OWN_SECONDS + self._upstream()
        self._plan(now + seconds, self._end, (partition, event, is_stale))

    def _upstream(self) -> float:
        mean = math.log(UPSTREAM_SECONDS) - UPSTREAM_SIGMA**2 / 2
        return self._random.lognormvariate(mean, UPSTREAM_SIGMA)

    def _end(self, now: float, sent: tuple[_Partition, _Event, bool]) -> None:
        """Let an event end: its device has the command, unless the event was too old."""
        partition, event, is_stale = sent
        self.course.stale += is_stale
        if not is_stale and event.device in self._since:
            self.course.waits.append(now - self._since.pop(event.device))
            self.course.end = now
        self._room += 1
        if self._held:
            self._send_next(now, self._held.popleft())
        self._send_next(now, partition)
