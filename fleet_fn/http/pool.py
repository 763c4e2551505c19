"""Pool of kept connections."""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from fleet_fn.http.handle import Handle

#: Idle connections that are kept, and for how long. Servers close idle connections after 5 s or more (Actix, Node). A
#: command that meets a closing connection cannot be sent again, so the pool closes its connections earlier.
MAX_IDLE_CONNECTIONS: Final = 64
MAX_IDLE_SECONDS: Final = 4.0

H = TypeVar("H", bound=Handle)


class Pool(Generic[H]):
    """Idle handles of one upstream. Safe to use from several threads."""

    def __init__(self, make: Callable[[], H], max_idle: int, clock: Callable[[], float]) -> None:
        """Create an empty pool.

        Args:
            make: makes a handle.
            max_idle: idle handles that are kept.
            clock: seconds; measures idle times.

        """
        self._make = make
        self._max_idle = max_idle
        self._clock = clock
        self._idle: deque[H] = deque()

    def take(self) -> H:
        """Return the handle used last, or a new one if its connection idled for too long."""
        while True:
            try:
                handle = self._idle.pop()
            except IndexError:
                return self._make()
            if self._clock() - handle.idle_since < MAX_IDLE_SECONDS and not handle.has_input:
                return handle
            handle.close()

    def give_back(self, handle: H) -> None:
        """Keep a handle if it is usable and there are not enough of them; else close it.

        Close handles that idled for too long, too: a busy one on top of them would keep them open.
        """
        now = self._clock()
        if self._idle:
            self._close_stale(now)
        if not handle.is_usable or len(self._idle) >= self._max_idle:
            handle.close()
            return
        handle.idle_since = now
        self._idle.append(handle)

    def _close_stale(self, now: float) -> None:
        """Close handles at the old end, each once in its life."""
        while self._idle:
            try:
                if now - self._idle[0].idle_since < MAX_IDLE_SECONDS:
                    return
                handle = self._idle.popleft()
            except IndexError:  # another thread took the last one
                return
            if now - handle.idle_since < MAX_IDLE_SECONDS:  # another thread took the old one
                self._idle.appendleft(handle)
                return
            handle.close()

    def close(self) -> None:
        """Close the idle handles."""
        while self._idle:
            self._idle.pop().close()
