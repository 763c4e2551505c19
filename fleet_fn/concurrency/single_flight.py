"""Run slow work once at a time per key, while any number of events wait for it.

The work runs in a thread of its own.
"""

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

#: Errors that no caller has received yet, and how long they are kept. A waiting device asks again sooner.
_MAX_UNHEARD: Final = 256
_UNHEARD_SECONDS: Final = 600.0


class StillRunningError(Exception):
    """The work goes on beyond the deadline of a caller.

    No `TimeoutError`: the work may raise that itself, and has ended then.
    """


@dataclass(slots=True)
class _Work:
    """The work under one key."""

    since: float
    keeps_error: bool
    future: "Future[Any]" = field(default_factory=Future)
    #: Callers that wait for the result.
    waiting: int = 0


class SingleFlight:
    """Runs functions in threads, one at a time per key.

    The threads are daemons: the process may end at any instant of their work.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Hashable, _Work] = {}
        self._unheard: OrderedDict[Hashable, tuple[float, BaseException]] = OrderedDict()

    def result(self, key: Hashable, function: Callable[[], T], deadline: Deadline, *, keeps_error: bool = False) -> T:
        """Return the result of `function`, or of the call already running under `key`.

        Args:
            key: names the work.
            function: does the work.
            deadline: when to stop waiting. Work that has already taken longer than the whole deadline is not awaited.
            keeps_error: if no caller waits any more when `function` fails, raise its error for the next caller. Else
                that caller would start the work again; if it always takes too long, no caller would learn why.

        Raises:
            StillRunningError: the work goes on beyond the deadline.
            TransientError: no thread could be started for it.
            BaseException: any error of `function`.

        """
        with self._lock:
            work = self._running.get(key)
            if work is None:
                self._raise_unheard(key)
                work = _Work(self._clock(), keeps_error)
                try:
                    run = copy_context().run  # the work belongs to the trace of the first caller
                    threading.Thread(target=run, args=(self._run, key, function, work), daemon=True).start()
                except RuntimeError as error:
                    raise TransientError("no thread can be started") from error
                self._running[key] = work  # only now: if no thread could be started, no caller must wait for one
            elif self._clock() - work.since > deadline.total:
                raise StillRunningError
            work.waiting += 1
        result: T
        try:
            result = work.future.result(deadline.remaining)
        except TimeoutError:
            with self._lock:
                work.waiting -= 1
                if not work.future.done():
                    raise StillRunningError from None
            result = work.future.result()  # the work has just ended, or `function` itself raised TimeoutError
        return result

    def _run(self, key: Hashable, function: Callable[[], object], work: _Work) -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to the callers that wait
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
        # A copy does not keep the frames of the work alive.
        self._unheard[key] = (self._clock(), copy(error) if isinstance(error, UpstreamError) else error)
        if len(self._unheard) > _MAX_UNHEARD:
            self._unheard.popitem(last=False)

    def _raise_unheard(self, key: Hashable) -> None:
        since, error = self._unheard.pop(key, (0.0, None))
        if error and self._clock() - since < _UNHEARD_SECONDS:
            raise error
