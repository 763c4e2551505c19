"""A circuit breaker: an upstream that does not answer takes one thread only."""

import threading
from collections.abc import Callable
from copy import copy
from typing import Final, TypeVar

from fleet_fn.deadline import Deadline
from fleet_fn.errors import RateLimitedError, TransientError

T = TypeVar("T")

#: A failure that takes longer opens the circuit. Quicker ones cost no thread.
_SLOW_SECONDS: Final = 0.5


class CircuitBreaker:
    """Lets one call at a time through while an upstream does not answer.

    The first call that succeeds, or fails quickly, lets all through again. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The last failure; None while the circuit is closed.
        self._failure: TransientError | None = None
        self._is_probed = False

    def call(self, work: Callable[[], T], deadline: Deadline) -> T:
        """Return the result of `work`, which ends by `deadline`.

        Raises:
            TransientError: another call waits for the upstream, which did not answer an earlier one.
            Exception: that of `work`.

        """
        is_probe = self._begin()
        began, failure = deadline.elapsed, None
        try:
            return work()
        except TransientError as error:
            # A probe that had little time has shown nothing.
            is_slow = deadline.elapsed - began >= _SLOW_SECONDS or (is_probe and not deadline.remaining)
            if is_slow and not isinstance(error, RateLimitedError):
                failure = copy(error)  # without the frames of the call
            raise
        finally:
            self._end(failure, is_probe=is_probe)

    def _begin(self) -> bool:
        """Return whether a call is a probe of an upstream that does not answer."""
        with self._lock:
            if self._failure is None:
                return False
            if self._is_probed:
                raise copy(self._failure)
            self._is_probed = True
            return True

    def _end(self, failure: TransientError | None, *, is_probe: bool) -> None:
        with self._lock:
            self._failure = failure
            if is_probe:
                self._is_probed = False
