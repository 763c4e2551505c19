"""Admission of events: the bound on events that are answered at the same time."""

from queue import Empty, SimpleQueue

from fleet_fn.deadline import Deadline
from fleet_fn.settings import MAX_WAITING


class BusyError(Exception):
    """All slots are taken, and too many events wait or the deadline has passed."""


class Slots:
    """Slots for events that need upstreams.

    `size` events have one, `MAX_WAITING` wait, and the others are refused.
    """

    def __init__(self, size: int) -> None:
        # A semaphore of `threading` would take 20 times as long for each event.
        self._free: SimpleQueue[None] = SimpleQueue()
        self._places: SimpleQueue[None] = SimpleQueue()
        for _ in range(size):
            self._free.put(None)
        for _ in range(MAX_WAITING):
            self._places.put(None)

    def acquire(self, deadline: Deadline) -> None:
        """Take a slot; the caller has to release it.

        Raises:
            BusyError: too many events wait already, or no slot gets free within the deadline.

        """
        try:
            self._free.get_nowait()
        except Empty:
            self._wait(deadline)

    def release(self) -> None:
        """Give a slot back."""
        self._free.put(None)

    def _wait(self, deadline: Deadline) -> None:
        try:
            self._places.get_nowait()
        except Empty as error:
            raise BusyError from error
        try:
            self._free.get(timeout=deadline.remaining)
        except Empty as error:
            raise BusyError from error
        finally:
            self._places.put(None)
