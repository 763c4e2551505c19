"""Work that an event waits for, but that may outlive it: once at a time, however many events ask."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextvars import copy_context
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError, UpstreamError

T = TypeVar("T")

#: Errors that nobody heard yet, and seconds for which they are kept: devices that wait ask again sooner.
_UNHEARD: Final = 256
_UNHEARD_SECONDS: Final = 600.0


@dataclass(slots=True)
class _Work:
    """What goes on under a key."""

    since: float
    keeps_error: bool
    future: "Future[Any]" = field(default_factory=Future)
    #: Those who would hear of an error.
    waiting: int = 0


class SingleFlight:
    """Runs functions in threads of their own, one for each key at a time.

    The threads are daemons: what they do must be safe to be cut off at any instant.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Hashable, _Work] = {}
        self._unheard: OrderedDict[Hashable, tuple[float, BaseException]] = OrderedDict()

    def result(self, key: Hashable, function: Callable[[], T], deadline: Deadline, *, keeps_error: bool = False) -> T:
        """What `function` returns, or what it returned to whoever asked for the same `key` a moment before.

        Args:
            key: what is to be done once at a time.
            function: does it.
            deadline: when to stop waiting for it; what has taken longer already than that is in all is not waited for.
            keeps_error: where nobody waits any more for a `function` that fails, its error is raised for the next who
                asks. Else that one would start it again, and if it always takes too long, nobody would ever hear why.

        Raises:
            TimeoutError: it goes on beyond the deadline.
            TransientError: it could not be begun.
            BaseException: whatever `function` raised.

        """
        with self._lock:
            work = self._running.get(key)
            if work is None:
                self._raise_unheard(key)
                work = _Work(self._clock(), keeps_error)
                try:
                    run = copy_context().run  # what is done is part of the first one's trace
                    threading.Thread(target=run, args=(self._run, key, function, work), daemon=True).start()
                except RuntimeError as error:
                    raise TransientError("no thread can be started") from error
                self._running[key] = work  # only now: where no thread can be started nobody must wait for it
            elif self._clock() - work.since > deadline.total:
                raise TimeoutError
            work.waiting += 1
        result: T
        try:
            result = work.future.result(deadline.remaining)
        except TimeoutError:
            with self._lock:
                work.waiting -= 1
                if not work.future.done():
                    raise
            result = work.future.result()  # it has just ended, or it was `function` that raised this
        return result

    def _run(self, key: Hashable, function: Callable[[], object], work: _Work) -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            with self._lock:
                del self._running[key]
                work.future.set_exception(error)
                if work.keeps_error and not work.waiting:
                    self._keep_unheard(key, error)
        else:
            with self._lock:
                del self._running[key]
                work.future.set_result(result)

    def _keep_unheard(self, key: Hashable, error: BaseException) -> None:
        # The copy leaves behind the frames of the work, and whatever these hold.
        self._unheard[key] = (self._clock(), copy(error) if isinstance(error, UpstreamError) else error)
        if len(self._unheard) > _UNHEARD:
            self._unheard.popitem(last=False)

    def _raise_unheard(self, key: Hashable) -> None:
        since, error = self._unheard.pop(key, (0.0, None))
        if error and self._clock() - since < _UNHEARD_SECONDS:
            raise error
