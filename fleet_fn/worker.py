"""The process that gunicorn has answer requests: its own, but that a thread stays with a connection that asks on.

Deliverers send one event after the other on a connection. Between two of them gunicorn gives the connection back to the
worker's main thread, which waits for it together with all others, and hands it to a thread again: several calls of the
system, and two threads to wake, for nothing if the next event follows at once. `make bench` tells what that costs.
"""

import select
from typing import Any, Final

from gunicorn.workers import gthread

#: Milliseconds for which a thread waits for a connection's next request.
_STAYS: Final = 1


class ThreadWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's, whose threads stay with a connection as long as that asks on, and nobody waits for a thread."""

    def handle(self, conn: Any) -> Any:
        """Answers the request that `conn` has, and those that follow it at once; returns what gunicorn's returns."""
        poll = None
        while (kept := super().handle(conn)) and self._has_time():
            if poll is None:
                poll = select.poll()
                poll.register(conn.sock, select.POLLIN)
            if not poll.poll(_STAYS):
                break
        return kept

    def _has_time(self) -> bool:
        """Whether there is a thread for each of the connections that have, or are about to have, a request."""
        busy = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        return bool(busy <= self.cfg.threads)
