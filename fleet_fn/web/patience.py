"""An end to the patience with senders whose bodies do not come."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from fleet_fn.deadline import Deadline

#: Seconds between two looks at who is late.
_TICK: Final = 0.1


class Patience:
    """Ends reading from sockets at a deadline, however slowly bytes trickle in.

    The server reads bodies with as many calls as it takes, each of which may wait: a time-out of the socket bounds none
    but the single call. A socket that is late is shut down for reading, so that the body ends there and then, and can
    still be answered.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: dict[socket.socket, Deadline] = {}
        self._watching = False

    @contextmanager
    def with_sender(self, connection: socket.socket | None, deadline: Deadline) -> Iterator[None]:
        """While this lasts, `connection` is read from until `deadline` at the latest; None stands for one unknown."""
        if connection is None:
            yield
            return
        with self._lock:
            if not self._watching:
                threading.Thread(target=self._watch, daemon=True).start()
                self._watching = True  # only now: where no thread can be started the next has to try again
            self._reading[connection] = deadline
        try:
            yield
        finally:
            with self._lock:
                del self._reading[connection]

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(_TICK)
            with self._lock:
                for connection, deadline in self._reading.items():
                    if not deadline.remaining:
                        with suppress(OSError):  # closed by its sender meanwhile
                            connection.shutdown(socket.SHUT_RD)
