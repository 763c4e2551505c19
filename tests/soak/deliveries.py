"""The cloud's half that hands events on: some at a time, again after a 503, each device's in their order."""

import heapq
import http.client
import itertools
import queue
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tests.soak.faults import Faults

#: Events on their way at once.
IN_FLIGHT: Final = 64


class Agenda:
    """Calls things later, one at a time; they must be short."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._run, daemon=True).start()

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        with self._changed:
            heapq.heappush(self._calls, (time.monotonic() + seconds, next(self._numbers), call))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls or self._calls[0][0] > time.monotonic():
                    self._changed.wait(self._calls[0][0] - time.monotonic() if self._calls else None)
                call = heapq.heappop(self._calls)[2]
            call()


@dataclass
class Delivery:
    """An event on its way."""

    #: The lower, the sooner.
    urgency: int
    #: Makes the attributes and the payload when the event is first sent: until then it was not in the cloud.
    make: Callable[[], tuple[Mapping[str, str | None], bytes]]
    #: Told the outcome, when the event has been dealt with, or was given up.
    then: Callable[[str], object] = lambda _: None
    headers: dict[str, bytes] = field(default_factory=dict)
    payload: bytes = b""
    #: Beside the one that is delivered again after a 503.
    is_copy: bool = False
    #: It was answered already, but the answer did not arrive.
    is_again: bool = False


class Deliveries:
    """Whoever posts events to the function, over connections that are kept."""

    def __init__(self, port: int, agenda: Agenda, faults: Faults) -> None:
        self._port, self._agenda, self._faults = port, agenda, faults
        self._queue: queue.PriorityQueue[tuple[int, int, Delivery]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        #: What the function said, and seconds that each answer took.
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seconds = array("d")
        self.redelivered = 0
        #: Answers that the contract does not know, and connections that the function broke.
        self.wrong: list[str] = []
        self._is_over = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(IN_FLIGHT)]
        for thread in self._threads:
            thread.start()

    def send(self, delivery: Delivery, urgency: int | None = None) -> None:
        urgency = delivery.urgency if urgency is None else urgency
        self._queue.put((urgency, next(self._numbers), delivery))

    def end(self) -> None:
        """Lets the events that are on their way come to their end, and sends no others."""
        self._is_over = True
        for _ in self._threads:
            self.send(Delivery(-1, lambda: ({}, b"")))
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while True:
            _, _, delivery = self._queue.get()
            if self._is_over:
                connection.close()
                return
            try:
                self._deliver(delivery, connection)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._lock:
                    self.wrong.append(f"no answer: {error!r}")
                self._agenda.after(1, lambda delivery=delivery: self.send(delivery, 0))  # type: ignore[misc]

    def _deliver(self, delivery: Delivery, connection: http.client.HTTPConnection) -> None:
        if not delivery.headers:
            attributes, delivery.payload = delivery.make()
            delivery.headers = {
                "content-type" if name == "datacontenttype" else f"ce-{name}": value.encode()
                for name, value in attributes.items()
                if value is not None
            }
            if self._faults.strike("event", "two at once", 0.5):
                delivery.then = _after_both(delivery.then)
                self.send(replace(delivery, is_copy=True), 0)
        began = time.perf_counter()
        connection.request("POST", "/", delivery.payload, delivery.headers)
        response = connection.getresponse()
        body = response.read()
        seconds = time.perf_counter() - began
        outcome = response.headers.get("Fleet-Outcome", "")
        name = outcome.partition(";")[0]
        with self._lock:
            self.outcomes[name] += 1
            self.seconds.append(seconds)
            if name in ("failed", "retry", "withheld", "wait", "invalid"):
                self.reasons[outcome] += 1
            if response.status != _STATUS.get(name):
                self.wrong.append(f"{response.status} {outcome} {body[:300]!r}")
        if delivery.is_copy:
            delivery.then(outcome)
        elif response.status == 503:
            with self._lock:
                self.redelivered += 1
            self._agenda.after(int(response.headers["Retry-After"]), lambda: self.send(delivery, 0))
        elif not delivery.is_again and self._faults.strike("event", "delivered again", 0.5):
            delivery.is_again = True
            self.send(delivery, 0)
        else:
            delivery.then(outcome)


def _after_both(then: Callable[[str], object]) -> Callable[[str], None]:
    """Calls `then` when it is called for the second time."""
    calls = itertools.count(1)

    def ended(outcome: str) -> None:
        if next(calls) == 2:
            then(outcome)

    return ended


_STATUS: Final = {
    **dict.fromkeys(("sync", "write", "swap", "withheld", "wait", "ignored", "stale", "duplicate"), 204),
    "failed": 422,
    "retry": 503,
}
