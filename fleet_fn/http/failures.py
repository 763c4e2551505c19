"""Failures of requests, as the errors that the rest of the function knows."""

import errno
import os
from typing import Final

import pycurl

from fleet_fn.errors import PermanentError, RateLimitedError, TooLargeError, TransientError, UpstreamError
from fleet_fn.http.messages import MAX_BODY_BYTES
from fleet_fn.http.tls_failures import HANDSHAKE_CLOSED, TlsFailure, read_tls_failure

#: libcurl's error codes that pycurl has no names for.
WEIRD_SERVER_REPLY: Final = 8
_SSL_CLIENTCERT: Final = 98
_UNRECOVERABLE_POLL: Final = 99
_TOO_LARGE: Final = 100

_CLOSED: Final = "connection closed without an answer"
_CUT_SHORT: Final = "answer cut short"
_NO_RESOURCES: Final = "this function has no memory, threads or file descriptors left"
#: Reasons for libcurl's error codes that a retry can cure: the network or the server may recover, or this process.
_TRANSIENT: Final = {
    pycurl.E_OPERATION_TIMEDOUT: "no answer in time",
    pycurl.E_COULDNT_RESOLVE_HOST: "host not found",  # also if the DNS server does not answer
    pycurl.E_PARTIAL_FILE: _CUT_SHORT,
    pycurl.E_SEND_ERROR: _CLOSED,
    # A kept connection was dead, and the request may not be sent twice.
    pycurl.E_SEND_FAIL_REWIND: _CLOSED,
    pycurl.E_FAILED_INIT: _NO_RESOURCES,
    pycurl.E_OUT_OF_MEMORY: _NO_RESOURCES,
    _UNRECOVERABLE_POLL: _NO_RESOURCES,
}
#: libcurl's error codes for connections that end before the answer does. A retry can cure these, too.
_CLOSINGS: Final = (pycurl.E_GOT_NOTHING, pycurl.E_RECV_ERROR)
#: Reasons for error numbers of the system if there is no connection. A retry can cure all of them.
_NO_CONNECTION: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.ENETUNREACH: "network is unreachable",
    errno.EHOSTUNREACH: "host is unreachable",
    errno.EACCES: "connection forbidden on this machine (a firewall?)",
    errno.EPERM: "connection forbidden on this machine (a firewall?)",
    errno.EADDRNOTAVAIL: "no local address or port for a connection",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files",
}
_NOT_HTTP: Final = "answer is not HTTP"
#: Reasons for error codes that only a person can cure: the configuration of this function or the server is wrong. So it
#: is with all codes that are in no table: they are of other protocols, or of options that no request has.
_PERMANENT: Final = {
    pycurl.E_UNSUPPORTED_PROTOCOL: _NOT_HTTP,  # HTTP/0.9, which has no status line
    WEIRD_SERVER_REPLY: _NOT_HTTP,
    pycurl.E_BAD_CONTENT_ENCODING: _NOT_HTTP,
    _TOO_LARGE: _NOT_HTTP,  # the head
    _SSL_CLIENTCERT: "TLS refused: the server requires a client certificate",
    pycurl.E_SSL_CACERT_BADFILE: "the file of trusted authorities cannot be read",
}
#: libcurl's error codes for answers that are too large: as announced, and as received.
_LARGE: Final = (pycurl.E_FILESIZE_EXCEEDED, pycurl.E_WRITE_ERROR)
#: How libcurl's messages begin if a head is too large, or a chunk malformed; its code is that of a broken connection.
_LARGE_HEAD: Final = "Too large response headers"
_BAD_CHUNK: Final = "chunk hex-length"


class TransferError(Exception):
    """Failure of a request that libcurl could not complete."""

    def __init__(
        self, code: int, detail: str = "", *, os_errno: int = 0, was_sent: bool = True, has_answer: bool = True
    ) -> None:
        """Describe the failure.

        Args:
            code: libcurl's error code.
            detail: libcurl's message.
            os_errno: error number of the system call that failed; 0 if none did.
            was_sent: whether any of the request was sent.
            has_answer: whether any of the answer's head was received.

        """
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.os_errno = os_errno
        self.was_sent = was_sent
        self.has_answer = has_answer

    @property
    def is_of_head(self) -> bool:
        """Whether the answer's head is too large."""
        return self.code == _TOO_LARGE or self.detail.startswith(_LARGE_HEAD)


class ForbiddenAddressError(TransferError):
    """All of the host's addresses are forbidden."""


class HangingResolverError(TransferError):
    """Too many lookups of the host's name hang to begin another one."""


def as_upstream_error(name: str, failure: TransferError) -> UpstreamError:
    """Return the error of the upstream `name` for a failure."""
    error = _classify(name, failure)
    return error if failure.was_sent else error.without_effect()


def raise_for_status(name: str, status: int, retry_after: int | None) -> None:
    """Raise an error if the upstream `name` answered 429 or 5xx.

    Raises:
        RateLimitedError: 429.
        TransientError: 5xx.

    """
    if status == 429:
        raise RateLimitedError(f"{name}: answered {status}", retry_after).without_effect()
    if status >= 500:
        raise TransientError(f"{name}: answered {status}", retry_after)


def _classify(name: str, failure: TransferError) -> UpstreamError:
    code, detail = failure.code, failure.detail
    if isinstance(failure, ForbiddenAddressError):
        return PermanentError(f"{name}: no address that requests may go to")
    if isinstance(failure, HangingResolverError):
        return TransientError(f"{name}: resolving the host's name takes too long")
    if tls := _tls_failure(failure):
        return (TransientError if tls.is_transient else PermanentError)(f"{name}: {tls.reason}")
    if code == pycurl.E_COULDNT_CONNECT:
        return TransientError(f"{name}: {_describe(failure.os_errno)}")
    if code == pycurl.E_RECV_ERROR and detail.startswith((_LARGE_HEAD, _BAD_CHUNK)):
        return PermanentError(f"{name}: {_NOT_HTTP}")
    if code in _CLOSINGS:
        return TransientError(f"{name}: {_CUT_SHORT if failure.has_answer else _CLOSED}")
    if reason := _TRANSIENT.get(code):
        return TransientError(f"{name}: {reason}")
    if code in _LARGE:
        return TooLargeError(f"{name}: answer larger than {MAX_BODY_BYTES} bytes")
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return PermanentError(f"{name}: certificate not trusted: {detail.removeprefix('SSL certificate problem: ')}")
    reason = _PERMANENT.get(code) or f"libcurl cannot make the request: {detail} (error {code})"
    return PermanentError(f"{name}: {reason}")


def _tls_failure(failure: TransferError) -> TlsFailure | None:
    """Return the failure of TLS; None if something else failed."""
    tls = read_tls_failure(failure.detail)
    if failure.code == pycurl.E_SSL_CONNECT_ERROR and not tls:
        ended = failure.os_errno != 0
        reason = HANDSHAKE_CLOSED if ended else f"TLS handshake failed: {failure.detail}".rstrip(": ")
        return TlsFailure(reason, is_transient=True)
    if failure.code in (pycurl.E_SSL_CONNECT_ERROR, _SSL_CLIENTCERT):
        return tls
    # With TLS 1.3, the server may refuse the connection when the request was sent.
    is_late = failure.code in (pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR) and not failure.has_answer
    return tls if is_late and tls and tls.is_alert else None


def _describe(os_errno: int) -> str:
    """Return why there is no connection, for an error number of the system; 0 is none."""
    if reason := _NO_CONNECTION.get(os_errno):
        return reason
    return f"no connection: {os.strerror(os_errno)}" if os_errno else "no connection"
