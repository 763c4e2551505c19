"""The body of a request: read within the deadline, bounded, or discarded."""

import socket
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from gunicorn.http.errors import ParseException

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.cloud_events import InvalidEventError
from fleet_fn.web.arrival import DEADLINE, MAX_BODY_BYTES, MAX_DISCARDED_BYTES
from fleet_fn.web.body_timeout import BodyTimeout

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

#: How long to read a body that is too large, or of a request that is refused.
_DISCARD_SECONDS: Final = 1.0

_timeout = BodyTimeout()
_no_timeout: Final = nullcontext()


class TooLargeError(Exception):
    """The body of an event is larger than `MAX_BODY_BYTES`."""


def read_body(environ: "WSGIEnvironment", deadline: Deadline) -> bytes:
    """Return the body of a request.

    Raises:
        TooLargeError: it is larger than `MAX_BODY_BYTES`.
        InvalidEventError: it did not come in time, or not whole.

    """
    announced = _announced(environ)
    if announced is not None and announced > MAX_BODY_BYTES:
        raise TooLargeError
    try:
        sender = _sender(environ)
        with _timeout.watch(sender, deadline) if sender else _no_timeout:
            body: bytes = environ["wsgi.input"].read(_bound(environ, MAX_BODY_BYTES + 1))
    except TimeoutError as error:
        raise InvalidEventError("the body did not come in time") from error
    except (OSError, ParseException) as error:
        if not deadline.remaining:
            raise InvalidEventError("the body did not come in time") from error
        raise InvalidEventError("the body is cut short, or its chunks are malformed") from error
    if len(body) > MAX_BODY_BYTES:
        raise TooLargeError
    if announced is not None and len(body) < announced:
        raise InvalidEventError("the body ended early" if deadline.remaining else "the body did not come in time")
    return body


def discard_body(environ: "WSGIEnvironment") -> None:
    """Read a body that is not wanted off the connection.

    Otherwise the sender would not read the answer. If that fails, the sender gets the answer nonetheless.
    """
    with (
        suppress(OSError, ParseException, RuntimeError),  # the last one: no thread can be started
        _timeout.watch(_sender(environ), Deadline(_DISCARD_SECONDS)),
    ):
        left = _bound(environ, MAX_DISCARDED_BYTES)
        while left > 0 and (chunk := environ["wsgi.input"].read(min(left, MAX_BODY_BYTES))):
            left -= len(chunk)


def _announced(environ: "WSGIEnvironment") -> int | None:
    """Return the length of the body; None if the request does not say it."""
    length = environ.get("CONTENT_LENGTH", "")
    return int(length) if length.isdecimal() and environ.get("HTTP_TRANSFER_ENCODING") != "chunked" else None


def _bound(environ: "WSGIEnvironment", size: int) -> int:
    """Return how much of a body to read, at most `size`.

    Unless the server ends the stream with the body, a read beyond the body would wait for ever.
    """
    return size if environ.get("wsgi.input_terminated") else min(size, _announced(environ) or 0)


def _sender(environ: "WSGIEnvironment") -> socket.socket | None:
    """Return the socket that the body is read from; None if all of it was read."""
    if DEADLINE in environ:
        return None
    sender: socket.socket | None = environ.get("gunicorn.socket")
    return sender
