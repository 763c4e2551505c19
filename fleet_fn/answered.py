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
        self._under_way: dict[str, threading.Event] = {}

    @contextmanager
    def turn(self, key: str, deadline: Deadline) -> Iterator[Turn]:
        """Waits until nobody else answers the event of `key`; its answer is remembered if the turn is over then.

        Raises:
            Retry: an earlier delivery of the event is being answered until the deadline.

        """
        while True:
            with self._lock:
                turn = Turn(is_duplicate=key in self._answered)
                earlier = self._under_way.get(key)
                if not turn.is_duplicate and earlier is None:
                    ended = self._under_way[key] = threading.Event()
                    break
            if turn.is_duplicate:
                yield turn
                return
            if earlier is not None and not earlier.wait(deadline.remaining):
                raise Retry("an earlier delivery of this event is still being answered")
        try:
            yield turn
        finally:
            with self._lock:
                del self._under_way[key]
                if turn.is_over:
                    self._answered[key] = None
                    if len(self._answered) > _ANSWERED:
                        self._answered.popitem(last=False)
            ended.set()
