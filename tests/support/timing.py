"""Upstreams that take their time, and how long that may take."""

import threading
from dataclasses import dataclass
from typing import Final

from fleet_fn.deadline import Deadline
from tests.support.http import Request, Response

#: Seconds: `EVENT_DEADLINE_SECONDS` of functions that tests have to wait for.
DEADLINE: Final = 1.0
#: What the machine may add to a deadline.
SLACK: Final = 0.5


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


class SignalingDeadline(Deadline):
    """Tells that its owner is about to wait."""

    def __init__(self, seconds: float, waiting: threading.Semaphore) -> None:
        super().__init__(seconds)
        self._waiting = waiting

    @property
    def remaining(self) -> float:
        self._waiting.release()
        return super().remaining


class Gate:
    """Holds an upstream's answers back until it is opened."""

    def __init__(self, response: Response) -> None:
        self.response = response
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self, _: Request) -> Response:
        self.reached.set()
        self.opened.wait(30)
        return self.response
