"""Acknowledgements, in the order of the messages, of events that are done."""

from collections import deque
from collections.abc import Callable, Iterator
from threading import Lock


class Window:
    """A bound on a connection's messages that are not done, of lost sessions too."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._undone = 0
        self._lock = Lock()

    @property
    def is_full(self) -> bool:
        """Return whether no further message may be taken."""
        return self._undone >= self.size

    def add(self, change: int) -> None:
        """Add to the number of messages."""
        with self._lock:
            self._undone += change


class Acknowledgements:
    """The messages of one session that are not acknowledged.

    MQTT wants acknowledgements in the order of the messages (MQTT 5, MQTT-4.6.0-2). So one that is done waits for those
    before it.
    """

    def __init__(self, window: Window, wake: Callable[[], None]) -> None:
        """Count messages in `window`; `wake` is called if one is done."""
        self._window = window
        self._wake = wake
        self._pending: deque[_Pending] = deque()

    def expect(self, mid: int, qos: int) -> Callable[[], None]:
        """Note a message; return the function to call, in any thread, when it is done."""
        pending = _Pending(mid)
        if qos:  # else the broker expects no acknowledgement
            self._pending.append(pending)
        self._window.add(1)

        def done() -> None:
            pending.is_done = True
            self._window.add(-1)
            self._wake()

        return done

    def due(self) -> Iterator[int]:
        """Yield the identifiers of messages to acknowledge now."""
        while self._pending and self._pending[0].is_done:
            yield self._pending.popleft().mid


class _Pending:
    __slots__ = ("is_done", "mid")

    def __init__(self, mid: int) -> None:
        self.mid = mid
        self.is_done = False
