"""A time-out for whole bodies that are read while the application runs."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fleet_fn.deadline import Deadline

#: Pause between two looks at the deadlines.
_TICK_SECONDS: Final = 0.1


class BodyTimeout:
    """Ends reading from sockets at a deadline, however slowly bytes trickle in.

    The server reads a body with many calls, each of which may wait; a time-out of the socket bounds a single call only.
    So a thread shuts a late socket down for reading. The body then ends, and the request can still be answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: dict[socket.socket, Deadline] = {}
        self._watching = False

    @contextmanager
    def watch(self, connection: socket.socket | None, deadline: Deadline) -> Iterator[None]:
        """End reads from `connection` at the deadline while the context lasts.

        If `connection` is None, nothing is watched.
        """
        if connection is None:
            yield
            return
        with self._lock:
            if not self._watching:
                threading.Thread(target=self._watch, daemon=True).start()
                self._watching = True  # only now: if no thread could be started, the next request has to try again
            self._reading[connection] = deadline
        try:
            yield
        finally:
            with self._lock:
                del self._reading[connection]

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(_TICK_SECONDS)
            with self._lock:
                for connection, deadline in self._reading.items():
                    if not deadline.remaining:
                        with suppress(OSError):  # the sender has closed it meanwhile
                            connection.shutdown(socket.SHUT_RD)
