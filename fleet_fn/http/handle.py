"""Handles of libcurl: requests one after another, over one kept connection.

libcurl bounds a whole exchange by one time-out, bounds heads, skips interim answers, and repeats an idempotent request
once if the kept connection turns out to be dead. A body that cannot be rewound is never sent twice; so a POST is not.

libcurl calls into Python take the interpreter lock. So there are none for the head unless the request wants the body.

States of a handle, and the states that may follow:

    new        no request was sent yet                            asking, closed
    asking     libcurl exchanges a request for an answer          kept, parted, failed, resolving, closed
    kept       the answer ended; the connection is open           asking, closed
    parted     the answer ended, and the connection with it       asking, closed
    failed     there is no answer, or only a part of one          closed
    resolving  no answer in time, while libcurl looked up the     closed, in the closer's thread
               host's name; it goes on with that
"""

import select
import threading
from collections.abc import Callable, Mapping
from typing import Final

import pycurl

from fleet_fn.deadline import Deadline
from fleet_fn.http.closer import CLOSER
from fleet_fn.http.failures import WEIRD_SERVER_REPLY, ForbiddenAddressError, HangingResolverError, TransferError
from fleet_fn.http.messages import MAX_BODY_BYTES, Answer, Request
from fleet_fn.http.origin import Origin
from fleet_fn.http.socket_opener import SocketOpener
from fleet_fn.http.tls import Trust
from fleet_fn.http.transfer import Transfer

#: Largest body that is read only to keep the connection.
_MAX_UNWANTED_BYTES: Final = 64 * 1024
#: Statuses from here on may ask to wait: 429 and 5xx.
_MAY_ASK_TO_WAIT: Final = 429
_MAIN_THREAD: Final = threading.main_thread().ident
#: libcurl's option that lets a handle be closed while its resolver runs. pycurl has no name for it.
_QUICK_EXIT: Final = 322


class Handle:
    """libcurl handle with at most one connection. One thread at a time uses it."""

    def __init__(self, origin: Origin, trust: Trust, permits: Callable[[str], bool] | None) -> None:
        """Create a handle without a connection.

        Args:
            origin: the upstream.
            trust: whose certificates are trusted.
            permits: returns whether the handle may connect to an IP address; None permits all.

        """
        self._curl = curl = pycurl.Curl()
        self._host = origin.host
        self._trust = trust if origin.secure else None
        self._transfer = transfer = Transfer()
        self._opener = SocketOpener(permits) if permits else None
        #: What the last request was like; its options and its headers stay set.
        self._kind: tuple[str, bool] | None = None
        self._headers: Mapping[str, str] | None = None
        self._is_fresh = self._lets_signals_in = False
        #: The handle is kept or parted; the handle is resolving.
        self._is_whole = self._is_resolving = False
        #: Descriptor of the connection, and a poll for bytes on it; -1 and None if there is no connection.
        self._socket = -1
        self._poll: select.poll | None = None
        #: Time of the last use, on the client's clock.
        self.idle_since = 0.0
        curl.setopt(pycurl.URL, origin.url)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        curl.setopt(pycurl.NOSIGNAL, 1)
        curl.setopt(_QUICK_EXIT, 1)
        curl.setopt(pycurl.PROXY, "")  # else the environment's
        curl.setopt(pycurl.MAXCONNECTS, 1)
        curl.setopt(pycurl.READFUNCTION, transfer.read)
        curl.setopt(pycurl.SEEKFUNCTION, transfer.seek)
        curl.setopt(pycurl.WRITEFUNCTION, transfer.write)
        curl.setopt(pycurl.XFERINFOFUNCTION, _let_signals_in)
        if self._opener:
            curl.setopt(pycurl.OPENSOCKETFUNCTION, self._opener.open_socket)

    @property
    def is_usable(self) -> bool:
        """True if the last answer came to its end, so the connection can be used again."""
        return self._is_whole

    @property
    def has_input(self) -> bool:
        """Whether bytes have come after the last answer, or the connection's end.

        libcurl would use such a connection again, and take the bytes for the next answer.
        """
        return bool(self._poll and self._poll.poll(0))

    def exchange(self, request: Request, deadline: Deadline) -> Answer:
        """Send a request and return its answer.

        Raises:
            TransferError: no answer, or none before the deadline, or a malformed or too large one.

        """
        milliseconds = int(1000 * deadline.remaining)
        if not milliseconds:  # to libcurl, 0 is no time-out
            raise TransferError(pycurl.E_OPERATION_TIMEDOUT, was_sent=False, has_answer=False)
        self._curl.setopt(pycurl.TIMEOUT_MS, milliseconds)
        self._prepare(request, MAX_BODY_BYTES if request.wants_body else _MAX_UNWANTED_BYTES)
        try:
            failure = self._perform()
            answer = self._answer(bytes(self._transfer.body) if request.wants_body else b"")
            if failure and (request.wants_body or answer.status < 200 or failure.is_of_head):
                raise failure
            if request.wants_body or answer.status < 200:
                check_head(answer)
            self._end(failure)
            return answer
        finally:
            self._transfer.end()

    @property
    def address(self) -> str:
        """IP address of the last connection."""
        return str(self._curl.getinfo(pycurl.PRIMARY_IP))

    def close(self) -> None:
        """Close the connection. Never wait, and never raise."""
        if self._opener:
            self._opener.close()
        if self._is_resolving:
            CLOSER.add(self._close_after_lookup, self._host)
        else:
            self._curl.close()

    def _close_after_lookup(self) -> None:
        """Close the handle once its resolver has ended.

        libcurl reads the option when an exchange begins. Without a URL, it ends there, too.
        """
        self._curl.setopt(_QUICK_EXIT, 0)
        self._curl.setopt(pycurl.URL, "")
        self._perform()
        self._curl.close()

    def _prepare(self, request: Request, limit: int) -> None:
        """Set the options of a request whose answer may have `limit` bytes.

        Raises:
            HangingResolverError: as `_prepare_connection`.
            TransferError: as `_prepare_connection`.

        """
        curl, transfer = self._curl, self._transfer
        if self._socket < 0:
            self._prepare_connection()
        self._is_whole = False
        transfer.begin(request, limit)
        kind = request.method, request.wants_body
        if kind != self._kind:
            self._kind, self._headers = kind, None
            self._set_kind(request, limit)
        if request.headers != self._headers:
            curl.setopt(pycurl.HTTPHEADER, request.header_lines())
            self._headers = request.headers
        curl.setopt(pycurl.REQUEST_TARGET, request.target)
        if request.wants_body:
            curl.setopt(pycurl.HEADERFUNCTION, transfer.head.add)
        if request.carries_body:
            curl.setopt(pycurl.POSTFIELDSIZE_LARGE, len(request.body or b""))
        # libcurl repeats a request without a body, whatever its method, if the kept connection is dead.
        if self._is_fresh != (not request.body and not request.is_idempotent):
            self._is_fresh = not self._is_fresh
            curl.setopt(pycurl.FRESH_CONNECT, self._is_fresh)
        # Signals reach the main thread only. There, Ctrl-C would have to wait for the end of the exchange.
        if self._lets_signals_in != (threading.get_ident() == _MAIN_THREAD):
            self._lets_signals_in = not self._lets_signals_in
            curl.setopt(pycurl.NOPROGRESS, not self._lets_signals_in)

    def _prepare_connection(self) -> None:
        """Set the options of a connection.

        Raises:
            HangingResolverError: too many lookups of the host hang.
            TransferError: the trusted authorities cannot be read.

        """
        if CLOSER.has_too_many(self._host):
            raise HangingResolverError(pycurl.E_COULDNT_RESOLVE_HOST, was_sent=False, has_answer=False)
        if self._trust:
            self._trust.set_options(self._curl)

    def _set_kind(self, request: Request, limit: int) -> None:
        """Set the options that depend on the method, and on whether the body is wanted."""
        curl = self._curl
        if request.carries_body:
            curl.setopt(pycurl.POST, 1)
        else:
            curl.setopt(pycurl.NOBODY if request.method == "HEAD" else pycurl.HTTPGET, 1)
        curl.setopt(pycurl.CUSTOMREQUEST, request.method)
        # The length in an answer to a HEAD is that of another answer. 0 is no limit.
        curl.setopt(pycurl.MAXFILESIZE_LARGE, 0 if request.method == "HEAD" else limit)
        if not request.wants_body:
            curl.setopt(pycurl.HEADERFUNCTION, None)

    def _perform(self) -> TransferError | None:
        try:
            self._curl.perform()
        except pycurl.error as error:
            return self._failure(*error.args)
        return None

    def _answer(self, body: bytes) -> Answer:
        """Return the answer as far as it was received, with a `body`."""
        status = self._curl.getinfo(pycurl.RESPONSE_CODE)
        retry_after = self._curl.getinfo(pycurl.RETRY_AFTER) if status >= _MAY_ASK_TO_WAIT else None
        return Answer(status, self._transfer.head, body, retry_after or None)

    def _end(self, failure: TransferError | None) -> None:
        """Note what is left of the connection after an answer."""
        self._is_whole = not failure
        descriptor = self._curl.getinfo(pycurl.ACTIVESOCKET)
        if descriptor != self._socket:
            self._socket, self._poll = descriptor, None
            if descriptor >= 0:
                self._poll = select.poll()
                self._poll.register(descriptor, select.POLLIN)

    def _failure(self, code: int, detail: str) -> TransferError:
        """Return the failure that ended the exchange. The handle can only be closed then."""
        curl = self._curl
        was_sent = curl.getinfo(pycurl.REQUEST_SIZE) > 0
        # Over a kept connection, there is no lookup, and its time is 0, too.
        self._is_resolving = (
            code == pycurl.E_OPERATION_TIMEDOUT and not was_sent and not curl.getinfo(pycurl.NAMELOOKUP_TIME)
        )
        if code == pycurl.E_COULDNT_CONNECT and self._opener and not self._opener.has_opened:
            return ForbiddenAddressError(code, detail, was_sent=False, has_answer=False)
        return TransferError(
            code,
            detail,
            os_errno=curl.getinfo(pycurl.OS_ERRNO),
            was_sent=was_sent,
            has_answer=curl.getinfo(pycurl.HEADER_SIZE) > 0,
        )


def check_head(answer: Answer) -> None:
    """Check that the head of a final answer was received.

    Raises:
        TransferError: the server changes to another protocol, or the connection ended before the head did.

    """
    if 0 < answer.status < 200:
        raise TransferError(WEIRD_SERVER_REPLY)
    if not answer.head.is_complete:
        raise TransferError(pycurl.E_PARTIAL_FILE)


def _let_signals_in(*_: float) -> None:
    """Do nothing. Python runs its signal handlers before each call of a function."""
