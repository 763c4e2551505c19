"""Work that an event waits for, but that may outlive it: once at a time, however many events ask."""

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

from fleet_fn.deadline import Deadline

T = TypeVar("T")


class Background:
    """Runs functions in threads of their own, one for each key at a time.

    The threads are daemons: what they do must be safe to be cut off at any instant.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[Any]] = {}

    def result(self, key: Hashable, function: Callable[[], T], deadline: Deadline) -> T:
        """What `function` returns, or what it returned to whoever asked for the same `key` a moment before.

        Raises:
            TimeoutError: it goes on beyond the deadline.
            BaseException: whatever `function` raised.

        """
        with self._lock:
            future = self._running.get(key)
            if future is None:
                future = Future()
                threading.Thread(target=self._run, args=(key, function, future), daemon=True).start()
                self._running[key] = future  # only now: where no thread can be started nobody must wait for it
        result: T = future.result(deadline.remaining)
        return result

    def _run(self, key: Hashable, function: Callable[[], object], future: "Future[Any]") -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            self._end(key)
            future.set_exception(error)
        else:
            self._end(key)
            future.set_result(result)

    def _end(self, key: Hashable) -> None:
        with self._lock:
            del self._running[key]
