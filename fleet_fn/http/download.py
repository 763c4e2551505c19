"""Downloads: answers whose bodies are read in pieces, each within its deadline."""

import select
import sys
from collections.abc import Callable
from typing import Final

import pycurl

from fleet_fn.deadline import Deadline
from fleet_fn.http.closer import CLOSER
from fleet_fn.http.failures import TransferError
from fleet_fn.http.handle import Handle, check_head
from fleet_fn.http.messages import Answer, Request
from fleet_fn.http.origin import Origin
from fleet_fn.http.tls import Trust

#: Events of `select.poll` for each of libcurl's wishes.
_WAITS_FOR: Final = {
    pycurl.POLL_IN: select.POLLIN,
    pycurl.POLL_OUT: select.POLLOUT,
    pycurl.POLL_INOUT: select.POLLIN | select.POLLOUT,
}


class Download(Handle):
    """libcurl handle whose answers are read piece by piece.

    It receives little more than the caller asks for.
    """

    def __init__(self, origin: Origin, trust: Trust, permits: Callable[[str], bool] | None) -> None:
        super().__init__(origin, trust, permits)
        self._events = _Events()
        self._multi = multi = pycurl.CurlMulti()
        multi.setopt(pycurl.M_SOCKETFUNCTION, self._events.watch)
        multi.setopt(pycurl.M_TIMERFUNCTION, self._events.set_timer)
        self._is_under_way = False
        self._failure_at_end: TransferError | None = None

    @property
    def is_usable(self) -> bool:
        """True if the last answer came to its end, so the connection can be used again."""
        return not self._is_under_way and not self._failure_at_end

    @property
    def length(self) -> int | None:
        """Bytes of the body that the head announces; None if it does not."""
        length = int(self._curl.getinfo(pycurl.CONTENT_LENGTH_DOWNLOAD_T))
        return length if length >= 0 else None

    def begin(self, request: Request, deadline: Deadline) -> Answer:
        """Send a request, and return its answer without the body, once its head came.

        Raises:
            TransferError: as with `exchange`.

        """
        self._transfer.end()
        self._start(request)
        while self._is_under_way and not self._transfer.head.is_complete:
            self._advance(deadline)
        answer = self._answer(b"")
        if self._failure_at_end and not self._transfer.head.is_complete:
            raise self._failure_at_end
        check_head(answer)
        return answer

    def _start(self, request: Request) -> None:
        self._prepare(request, sys.maxsize)
        self._failure_at_end = None
        self._multi.add_handle(self._curl)
        self._is_under_way = True

    def read(self, size: int, deadline: Deadline) -> bytes:
        """Return the next bytes of the body: 1 to `size`, or none at its end.

        Raises:
            TransferError: nothing came within the deadline, or the connection broke, or the body is malformed.

        """
        received = self._transfer.body
        while not received and self._is_under_way:
            self._advance(deadline)
        if not received and self._failure_at_end:
            raise self._failure_at_end
        piece = bytes(received[:size])
        del received[:size]
        return piece

    def close(self) -> None:
        """Close the connection. Never wait, and never raise."""
        if self._is_under_way:
            self._multi.remove_handle(self._curl)
        self._curl.close()
        if self._opener:
            self._opener.close()
        # It may wait for its resolver even after an answer: one address is enough for a connection.
        CLOSER.add(self._multi.close, self._host if self._is_resolving else None)

    def _advance(self, deadline: Deadline) -> None:
        """Wait for an event, and let libcurl handle it.

        Raises:
            TransferError: the deadline has passed.

        """
        if not deadline.remaining:
            raise self._failure(pycurl.E_OPERATION_TIMEDOUT, "")
        for descriptor, event in self._events.wait(deadline) or [(pycurl.SOCKET_TIMEOUT, 0)]:
            self._multi.socket_action(descriptor, event)
        _, over, failed = self._multi.info_read()
        if over or failed:
            self._end(None)
            self._multi.remove_handle(self._curl)
            self._is_under_way = False
        for _, code, detail in failed:
            self._failure_at_end = self._failure(code, detail)


class _Events:
    """Sockets and the timer that libcurl waits for."""

    def __init__(self) -> None:
        self._poll = select.poll()
        #: Time until libcurl wants to go on anyway; None if it does not.
        self._timer: Deadline | None = None

    def watch(self, wish: int, descriptor: int, *_: object) -> None:
        """Wait for other events of a socket."""
        if wish == pycurl.POLL_REMOVE:
            self._poll.unregister(descriptor)
        else:
            self._poll.register(descriptor, _WAITS_FOR[wish])

    def set_timer(self, milliseconds: int) -> None:
        """Set the time after which libcurl goes on anyway; -1 is never."""
        self._timer = Deadline(milliseconds / 1000) if milliseconds >= 0 else None

    def wait(self, deadline: Deadline) -> list[tuple[int, int]]:
        """Return descriptors with an event and libcurl's masks; none if the time is over."""
        seconds = min(deadline.remaining, self._timer.remaining) if self._timer else deadline.remaining
        return [(descriptor, _as_mask(event)) for descriptor, event in self._poll.poll(1000 * seconds)]


def _as_mask(event: int) -> int:
    mask = pycurl.CSELECT_IN if event & (select.POLLIN | select.POLLHUP) else 0
    mask |= pycurl.CSELECT_OUT if event & select.POLLOUT else 0
    mask |= pycurl.CSELECT_ERR if event & (select.POLLERR | select.POLLNVAL) else 0
    return int(mask)
