"""Which events a process has answered: what is delivered twice is answered once."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Retry

#: Answered events that are remembered, to know them when they are delivered again.
_ANSWERED: Final = 10_000


@dataclass(slots=True)
class Turn:
    """The right to answer an event."""

    is_duplicate: bool
    #: Set by whoever answered it for good.
    is_over: bool = False


class Answered:
    """Which events this process answered, and which it is answering."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered: OrderedDict[str, None] = OrderedDict()
        #: Those that are being answered; with an event for those who wait for that, if there are any.
        self._under_way: dict[str, threading.Event | None] = {}

    @contextmanager
    def turn(self, key: str, deadline: Deadline) -> Iterator[Turn]:
        """Waits until nobody else answers the event of `key`; its answer is remembered if the turn is over then.

        Raises:
            Retry: an earlier delivery of the event is being answered until the deadline.

        """
        while True:
            with self._lock:
                turn = Turn(is_duplicate=key in self._answered)
                if not turn.is_duplicate and key not in self._under_way:
                    self._under_way[key] = None
                    break
                if not turn.is_duplicate:
                    earlier = self._under_way[key] = self._under_way[key] or threading.Event()
            if turn.is_duplicate:
                yield turn
                return
            if not earlier.wait(deadline.remaining):
                raise Retry("an earlier delivery of this event is still being answered")
        try:
            yield turn
        finally:
            with self._lock:
                ended = self._under_way.pop(key)
                if turn.is_over:
                    self._answered[key] = None
                    if len(self._answered) > _ANSWERED:
                        self._answered.popitem(last=False)
            if ended:
                ended.set()
