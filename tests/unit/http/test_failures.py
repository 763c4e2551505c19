"""Failures: which of libcurl's error codes a retry can cure, and what their reasons say."""

import errno

import pycurl
import pytest

from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.failures import TransferError, as_upstream_error

#: libcurl's error codes, of which the last one is `CURLE_ECH_REQUIRED`.
CODES = range(1, 102)
TRANSIENT = {
    pycurl.E_FAILED_INIT,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_PARTIAL_FILE,
    pycurl.E_OUT_OF_MEMORY,
    pycurl.E_OPERATION_TIMEDOUT,
    pycurl.E_SSL_CONNECT_ERROR,
    pycurl.E_GOT_NOTHING,
    pycurl.E_SEND_ERROR,
    pycurl.E_RECV_ERROR,
    pycurl.E_SEND_FAIL_REWIND,
    99,  # CURLE_UNRECOVERABLE_POLL
}


@pytest.mark.parametrize("code", CODES)
def test_code_decides_whether_a_retry_helps(code: int) -> None:
    error = as_upstream_error("cloud", TransferError(code, "Detail"))
    assert isinstance(error, TransientError if code in TRANSIENT else PermanentError)
    assert error.reason.startswith("cloud: ")


def test_code_without_reason_quotes_libcurl() -> None:
    error = as_upstream_error("cloud", TransferError(pycurl.E_BAD_FUNCTION_ARGUMENT, "No such thing"))
    assert error.reason == "cloud: libcurl cannot make the request: No such thing (error 43)"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ECONNREFUSED, "connection refused"),
        (errno.ENETUNREACH, "network is unreachable"),
        (errno.EHOSTUNREACH, "host is unreachable"),
        (errno.EACCES, "connection forbidden on this machine (a firewall?)"),
        (errno.EMFILE, "too many open files"),
        (errno.ENOTSOCK, "no connection: Socket operation on non-socket"),
        (0, "no connection"),
    ],
)
def test_missing_connection_is_explained(number: int, reason: str) -> None:
    error = as_upstream_error("cloud", TransferError(pycurl.E_COULDNT_CONNECT, os_errno=number))
    assert error.reason == f"cloud: {reason}"


@pytest.mark.parametrize(
    ("detail", "is_transient", "reason"),
    [
        ("TLS connect error: error:0A00018A:SSL routines::dh key too small", False, "failed: dh key too small"),
        ("TLS connect error: error:0A000119:SSL routines::decryption failed or bad record mac", True, "failed: decry"),
        ("OpenSSL SSL_connect: SSL_ERROR_SYSCALL in connection to host:443 ", True, "failed: OpenSSL SSL_connect: SSL"),
        ("", True, "failed"),
    ],
)
def test_failed_handshake_is_explained(detail: str, is_transient: bool, reason: str) -> None:
    error = as_upstream_error("cloud", TransferError(pycurl.E_SSL_CONNECT_ERROR, detail))
    assert isinstance(error, TransientError) == is_transient
    assert error.reason.startswith(f"cloud: TLS handshake {reason}")


def test_alert_in_the_middle_of_an_answer_is_transient() -> None:
    detail = "OpenSSL SSL_read: OpenSSL/3.6.5: error:0A0003F2:SSL routines::ssl/tls alert unexpected message, errno 0"
    error = as_upstream_error("cloud", TransferError(pycurl.E_RECV_ERROR, detail, has_answer=True))
    assert isinstance(error, TransientError)
