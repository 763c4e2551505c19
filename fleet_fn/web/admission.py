"""Admission of events: the bound on events that are answered at the same time."""

from threading import BoundedSemaphore

from fleet_fn.deadline import Deadline
from fleet_fn.settings import MAX_WAITING


class BusyError(Exception):
    """All slots are taken, and too many events wait or the deadline has passed."""


class Slots:
    """Slots for events that need upstreams.

    `size` events have one, `MAX_WAITING` wait, and the others are refused.
    """

    def __init__(self, size: int) -> None:
        self._working = BoundedSemaphore(size)
        self._waiting = BoundedSemaphore(MAX_WAITING)

    def acquire(self, deadline: Deadline) -> None:
        """Take a slot; the caller has to release it.

        Raises:
            BusyError: too many events wait already, or no slot gets free within the deadline.

        """
        if self._working.acquire(blocking=False):
            return
        if not self._waiting.acquire(blocking=False):
            raise BusyError
        try:
            if not self._working.acquire(timeout=deadline.remaining):
                raise BusyError
        finally:
            self._waiting.release()

    def release(self) -> None:
        """Give a slot back."""
        self._working.release()
