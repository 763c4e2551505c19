"""Closing handles whose resolver hangs.

libcurl resolves names in threads. When it closes a handle, it may wait for these threads, and takes no time-out for
that. So one thread of ours waits.
"""

import os
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

#: Interrupted lookups of one host's name that may still run. libcurl has two threads for each (A and AAAA).
MAX_LOOKUPS: Final = 64


class Closer:
    """Closes handles one after another, in a thread that runs while there are any.

    If no thread can be started, the handles stay here: a handle that is forgotten may wait for its resolver, too.
    """

    def __init__(self) -> None:
        self._of_parents: list[object] = []
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        #: The first one is being closed. Each with its host if a lookup of that was interrupted.
        self._waiting: deque[tuple[Callable[[], None], str | None]] = deque()
        self._lookups: Counter[str] = Counter()
        self._thread: threading.Thread | None = None

    def begin_anew(self) -> None:
        """Forget the handles of the parent process after a fork.

        They are never closed here: their resolvers do not run in this process, so libcurl would wait forever.
        """
        self._of_parents.append(self._waiting)
        self._begin()

    def add(self, close: Callable[[], None], host: str | None = None) -> None:
        """Have a handle closed. Return at once, and never raise.

        Args:
            close: closes the handle; returns once its resolver has ended.
            host: the host whose lookup was interrupted; None if none was.

        """
        with self._lock:
            self._waiting.append((close, host))
            if host is not None:
                self._lookups[host] += 1
            self._ensure_thread()

    def has_too_many(self, host: str) -> bool:
        """Return whether so many lookups of a host hang that no further one may begin."""
        if self._lookups[host] < MAX_LOOKUPS:
            return False
        with self._lock:
            self._ensure_thread()  # no handle may be added from now on
        return True

    def _ensure_thread(self) -> None:
        if not self._waiting or (self._thread and self._thread.is_alive()):
            return
        thread = threading.Thread(target=self._run, name="close libcurl handles", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads for this process; the next call tries again
            return
        self._thread = thread

    def _run(self) -> None:
        while close := self._next():
            try:
                close()
            finally:
                self._remove()

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            if self._waiting:
                return self._waiting[0][0]
            self._thread = None
            return None

    def _remove(self) -> None:
        with self._lock:
            _, host = self._waiting.popleft()
            if host is not None:
                self._lookups[host] -= 1
                self._lookups += Counter()  # drops hosts without lookups


#: The process's closer.
CLOSER: Final = Closer()
os.register_at_fork(after_in_child=CLOSER.begin_anew)
