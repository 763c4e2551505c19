"""Failures of an exchange, as the errors that the rest of the function knows."""

import errno
import http.client
import math
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Final

from fleet_fn.errors import PermanentError, RateLimitedError, TransientError

#: Longest `Retry-After` that counts: eleven days are as good as for ever.
_MAX_RETRY_AFTER_SECONDS: Final = 999_999


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn the errors of sockets, TLS and HTTP into a TransientError or a PermanentError of the upstream `name`."""
    try:
        yield
    except TimeoutError as error:
        raise TransientError(f"{name}: no answer in time") from error
    except ssl.SSLCertVerificationError as error:
        raise PermanentError(f"{name}: certificate not trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":  # the bytes "HTTP/1.1 400", read as TLS
            raise PermanentError(f"{name}: does not speak TLS") from error
        raise TransientError(f"{name}: {_describe(error)}") from error
    except http.client.IncompleteRead as error:
        raise TransientError(f"{name}: answer cut short") from error
    except OSError as error:
        raise TransientError(f"{name}: {_describe(error)}") from error
    except http.client.HTTPException as error:
        raise PermanentError(f"{name}: answer is not HTTP ({type(error).__name__})") from error


def raise_for_status(name: str, status: int, headers: http.client.HTTPMessage) -> None:
    """Raise an error if the upstream `name` answered 429 or 5xx.

    Raises:
        RateLimitedError: 429.
        TransientError: 5xx.

    """
    if status == 429:
        raise RateLimitedError(f"{name}: answered {status}", _retry_after(headers)).without_effect()
    if status >= 500:
        raise TransientError(f"{name}: answered {status}", _retry_after(headers))


def _describe(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "host not found"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionResetError | BrokenPipeError):
        return "connection closed without an answer"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failed'}"
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def _retry_after(headers: http.client.HTTPMessage) -> int | None:
    """Return the seconds that `Retry-After` asks for, in either of its forms (RFC 9110, section 10.2.3)."""
    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return int(value) if len(value) < 7 else _MAX_RETRY_AFTER_SECONDS
    try:
        moment = parsedate_to_datetime(value)
        seconds = (moment - datetime.now(moment.tzinfo)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(0, math.ceil(seconds)), _MAX_RETRY_AFTER_SECONDS)
