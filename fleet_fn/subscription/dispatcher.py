"""A dispatcher: a device's events in their order, several devices' side by side."""

import heapq
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Final

from fleet_fn.observability import metrics
from fleet_fn.observability.log import logger
from fleet_fn.subscription.messages import Answer, Deliver, Request
from fleet_fn.subscription.pauses import Pauses

#: Pauses before an event is delivered again.
_PAUSES: Final = Pauses(0.5, 8.0, floor=0.5)
#: If events never get stale, one is given up that had no final answer for so long: it holds up those behind it.
_ENDLESS_SECONDS: Final = 120.0


@dataclass(slots=True, eq=False)
class _Lane:
    """The events of one device; a thread works on the first one."""

    key: object
    waiting: deque["_Item"] = field(default_factory=deque)


@dataclass(slots=True)
class _Item:
    """An event, and its caller's function for the time when it is done."""

    request: Request
    done: Callable[[], None]
    attempts: int = 0


class Dispatcher:
    """Delivers requests in threads until each has a final answer, or is too old.

    The caller bounds the number of requests.
    """

    def __init__(self, deliver: Deliver, threads: int, max_age_seconds: float) -> None:
        """Deliver with `deliver`, on up to `threads` threads.

        Args:
            deliver: is called for one request of each source at a time.
            threads: number of threads.
            max_age_seconds: age up to which an event without a final answer is delivered again; 0 is any age.

        """
        self._deliver = deliver
        self._max_age_seconds = max_age_seconds
        self._changed = Condition()
        self._lanes: dict[object, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        #: Lanes that pause before their first event is delivered again: when, a number that breaks ties, the lane.
        self._pausing: list[tuple[float, int, _Lane]] = []
        self._numbers: Iterator[int] = itertools.count()
        self._working = 0
        self._is_ending = False
        self._count = metrics.subscription()
        for number in range(threads):
            Thread(target=self._work, name=f"events-{number}", daemon=True).start()

    def submit(self, request: Request, done: Callable[[], None]) -> None:
        """Deliver a request; `done` is called in another thread once it needs no more."""
        key = object() if request.source is None else request.source
        with self._changed:
            if self._is_ending:
                return
            lane = self._lanes.get(key)
            if lane is None:
                lane = self._lanes[key] = _Lane(key)
                self._ready.append(lane)
                self._changed.notify()
            lane.waiting.append(_Item(request, done))
        self._count.waiting(1)

    def end(self, seconds: float) -> None:
        """Deliver what has come, but nothing again, and return after `seconds` at most.

        Requests without a final answer stay undone.
        """
        with self._changed:
            self._is_ending = True
            for _, _, lane in self._pausing:
                self._forget(lane)
            self._pausing.clear()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._lanes, seconds)

    # --- In the threads

    def _work(self) -> None:
        while lane := self._next_lane():
            item = lane.waiting[0]
            answer = self._deliver(item.request)
            pause = self._pause(item, answer)
            if pause is None:
                item.done()
            with self._changed:
                self._working -= 1
                if pause is None:
                    lane.waiting.popleft()
                    self._count.waiting(-1)
                self._put_back(lane, pause)

    def _next_lane(self) -> _Lane | None:
        """Wait for a lane whose first event is to be delivered; None at the end."""
        with self._changed:
            while True:
                now = time.monotonic()
                while self._pausing and self._pausing[0][0] <= now:
                    self._ready.append(heapq.heappop(self._pausing)[2])
                if self._ready:
                    self._working += 1
                    return self._ready.popleft()
                if self._is_ending and not self._working:
                    return None
                self._changed.wait(self._pausing[0][0] - now if self._pausing else None)

    def _put_back(self, lane: _Lane, pause: float | None) -> None:
        """Let a lane wait for a thread, or pause, or go if it is empty."""
        if not lane.waiting or (pause is not None and self._is_ending):
            self._forget(lane)
        elif pause is None:
            self._ready.append(lane)
        else:
            heapq.heappush(self._pausing, (time.monotonic() + pause, next(self._numbers), lane))
        # Another thread may have to wait for less time from now on, or the end may have come.
        self._changed.notify_all() if self._is_ending else self._changed.notify()

    def _forget(self, lane: _Lane) -> None:
        self._count.waiting(-len(lane.waiting))
        del self._lanes[lane.key]

    def _pause(self, item: _Item, answer: Answer) -> float | None:
        """Return the pause before an event is delivered again; None if it is done."""
        if answer.is_final:
            return None
        item.attempts += 1
        pause = max(answer.retry_after or 0.0, _PAUSES.seconds(item.attempts))
        if self._is_ending or pause <= self._time_left(item.request):
            return pause
        self._count.given_up()
        fields = {"reason": answer.reason, "source": item.request.source, "id": item.request.id}
        known = {name: value for name, value in fields.items() if value}
        logger.warning("event given up: it got too old without a final answer", extra={"fields": known})
        return None

    def _time_left(self, request: Request) -> float:
        """Return the seconds for which an event may be delivered again."""
        waited = time.monotonic() - request.since
        if not self._max_age_seconds:
            return _ENDLESS_SECONDS - waited
        age = waited if request.time is None else max(waited, time.time() - request.time)
        return self._max_age_seconds - age
