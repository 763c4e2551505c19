"""A bounded memory of what was looked up: an answer may be as old as the one who asks allows."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Retry, UpstreamError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Turn:
    """Whose look-up of a key it is."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    #: Threads that have it or wait for it.
    wanted_by: int = 0


class Memory(Generic[K, V]):
    """Values by key, each with the moment before which it cannot have changed.

    Those who ask for the same key at the same time share one look-up. Nothing in it is needed for a right answer.
    """

    def __init__(
        self,
        size: int,
        *,
        error_age: Callable[[UpstreamError], float] = lambda error: 0.0,  # noqa: ARG005
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A memory of at most `size` values; what failed is answered again for `error_age` seconds."""
        self._size = size
        self._error_age = error_age
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[float, V | UpstreamError]] = OrderedDict()
        self._turns: dict[K, _Turn] = {}
        self._forgotten = 0

    def get(self, key: K, max_age: float, look_up: Callable[[], V], deadline: Deadline) -> V:
        """The value of `key`, looked up when what is known is older than `max_age` seconds.

        Raises:
            Retry: somebody else's look-up of the same key took until the deadline.
            UpstreamError: what `look_up` raised, now or a moment ago.

        """
        asked = self._clock()
        known = self._known(key, asked, max_age)
        if known is None:
            with self._turn(key, deadline):
                # What somebody looked up after we asked is as fresh as our own look-up.
                known = self._known(key, asked, max_age) or self._look_up(key, look_up)
        if isinstance(known[0], UpstreamError):
            raise known[0].with_traceback(None)  # it is raised many times, and would collect the frames of all
        return known[0]

    def forget(self, key: K) -> None:
        """Forgets `key`, and keeps what is being looked up right now from being remembered."""
        with self._lock:
            self._entries.pop(key, None)
            self._forgotten += 1

    @contextmanager
    def _turn(self, key: K, deadline: Deadline) -> Iterator[None]:
        """The right to look `key` up, which one thread has at a time."""
        with self._lock:
            turn = self._turns.setdefault(key, _Turn())
            turn.wanted_by += 1
        try:
            if not turn.lock.acquire(timeout=deadline.remaining):
                raise Retry("an earlier look-up of the same has not ended")
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            with self._lock:
                turn.wanted_by -= 1
                if not turn.wanted_by:
                    del self._turns[key]

    def _known(self, key: K, asked: float, max_age: float) -> tuple[V | UpstreamError] | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        since, value = entry
        if isinstance(value, UpstreamError):
            max_age = self._error_age(value)
        return (value,) if since >= asked - max_age else None

    def _look_up(self, key: K, look_up: Callable[[], V]) -> tuple[V | UpstreamError]:
        since, forgotten = self._clock(), self._forgotten
        value: V | UpstreamError
        try:
            value = look_up()
        except UpstreamError as error:
            since, value = self._clock(), error  # what took its whole time-out to fail has only just failed
        with self._lock:
            if forgotten == self._forgotten and (not isinstance(value, UpstreamError) or self._error_age(value) > 0):
                self._entries[key] = (since, value)
                self._entries.move_to_end(key)
                if len(self._entries) > self._size:
                    self._entries.popitem(last=False)
        return (value,)
