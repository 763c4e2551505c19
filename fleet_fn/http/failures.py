"""Failures of requests, as the errors that the rest of the function knows."""

import errno
from typing import Final

import pycurl

from fleet_fn.errors import PermanentError, RateLimitedError, TooLargeError, TransientError, UpstreamError

_CLOSED: Final = "connection closed without an answer"
_CUT_SHORT: Final = "answer cut short"
#: Reasons for libcurl's error codes that a retry can cure.
_TRANSIENT: Final = {
    pycurl.E_OPERATION_TIMEDOUT: "no answer in time",
    pycurl.E_COULDNT_RESOLVE_HOST: "host not found",
    pycurl.E_PARTIAL_FILE: _CUT_SHORT,
    pycurl.E_SEND_ERROR: _CLOSED,
    # A kept connection was dead, and the request may not be sent twice.
    pycurl.E_SEND_FAIL_REWIND: _CLOSED,
}
#: libcurl's error codes that pycurl has no names for.
WEIRD_SERVER_REPLY: Final = 8
_TOO_LARGE: Final = 100
#: libcurl's error codes for answers that are not HTTP/1.x.
_NOT_HTTP: Final = (
    pycurl.E_UNSUPPORTED_PROTOCOL,  # HTTP/0.9, which has no status line
    WEIRD_SERVER_REPLY,
    pycurl.E_BAD_CONTENT_ENCODING,
    _TOO_LARGE,  # the head
)
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


def as_upstream_error(name: str, failure: TransferError, max_bytes: int) -> UpstreamError:
    """Return the error of the upstream `name` for a failure.

    An answer was allowed `max_bytes` bytes.
    """
    error = _classify(name, failure, max_bytes)
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


def _classify(name: str, failure: TransferError, max_bytes: int) -> UpstreamError:
    code, detail = failure.code, failure.detail
    if isinstance(failure, ForbiddenAddressError):
        return PermanentError(f"{name}: no address that requests may go to")
    if isinstance(failure, HangingResolverError):
        return TransientError(f"{name}: resolving the host's name takes too long")
    if reason := _TRANSIENT.get(code):
        return TransientError(f"{name}: {reason}")
    if code in _NOT_HTTP or (code == pycurl.E_RECV_ERROR and detail.startswith((_LARGE_HEAD, _BAD_CHUNK))):
        return PermanentError(f"{name}: answer is not HTTP")
    if code in (pycurl.E_FILESIZE_EXCEEDED, pycurl.E_WRITE_ERROR):
        return TooLargeError(f"{name}: answer larger than {max_bytes} bytes")
    if code in (pycurl.E_GOT_NOTHING, pycurl.E_RECV_ERROR):
        return TransientError(f"{name}: {_CUT_SHORT if failure.has_answer else _CLOSED}")
    if code == pycurl.E_COULDNT_CONNECT:
        return TransientError(f"{name}: {_describe(failure.os_errno)}")
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return PermanentError(f"{name}: certificate not trusted: {detail.removeprefix('SSL certificate problem: ')}")
    if code == pycurl.E_SSL_CACERT_BADFILE:
        return PermanentError(f"{name}: the file of trusted authorities cannot be read")
    if code == pycurl.E_SSL_CONNECT_ERROR:
        if "wrong version number" in detail:  # the bytes "HTTP/1.1 400", read as TLS
            return PermanentError(f"{name}: does not speak TLS")
        return TransientError(f"{name}: TLS: {detail.rpartition(':')[2].strip() or 'handshake failed'}")
    return TransientError(f"{name}: libcurl error {code}")


def _describe(os_errno: int) -> str:
    return "connection refused" if os_errno == errno.ECONNREFUSED else errno.errorcode.get(os_errno, "no connection")
