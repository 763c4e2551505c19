"""The usual request of deliverers, read and answered without gunicorn's parser.

Parser, request and response of gunicorn take a quarter of an event's CPU (`make bench`). Nearly all requests have one
form: a POST with a length, plain header names and no header twice. One regular expression accepts these. Of any other
request, and of any that gunicorn would refuse, gunicorn's own parser decides.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from io import BytesIO
from typing import Any, Final

from gunicorn import SERVER, SERVER_SOFTWARE
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper

from fleet_fn.web.arrival import MAX_BODY_BYTES

#: Request line and headers. A header's value has no control characters but tabs.
_HEAD: Final = re.compile(
    r"POST (/[A-Za-z0-9._~/-]*) HTTP/1\.1\r\n((?:[A-Za-z0-9-]+:[\t -~\x80-\xff]*\r\n)+)\r\n", re.ASCII
)
_FIELD: Final = re.compile(r"([A-Za-z0-9-]+):([^\r]*)\r\n")
_HEAD_ENDS: Final = b"\r\n\r\n"
#: Largest head: none of its lines is longer than gunicorn allows by default.
_MAX_HEAD_BYTES: Final = 4094
_MAX_FIELDS: Final = 100
_LENGTH: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
#: Head of an answer. If it has one line for each header, no value has forged another.
_ANSWER_HEAD: Final = re.compile(
    r"HTTP/1\.1 [0-9]{3}(?: [\t -~\x80-\xff]*)?\r\n(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t -~\x80-\xff]*\r\n)*\r\n",
    re.ASCII,
)
_WITHOUT_BODY: Final = ("204", "304")


def is_usual(cfg: Any, log: Any) -> bool:
    """Return whether gunicorn, with its settings, reads usual requests alike.

    They do not if it must log or report each request, trust a proxy's headers, or take less than by default.
    """
    hooks = all(getattr(cfg, name) is cfg.settings[name].default for name in ("pre_request", "post_request"))
    limits = (
        cfg.limit_request_line in (0, _MAX_HEAD_BYTES)
        and cfg.limit_request_field_size >= _MAX_HEAD_BYTES
        and cfg.limit_request_fields >= _MAX_FIELDS
    )
    is_silent = type(log) is Logger and not log.access_log_enabled
    return hooks and limits and is_silent and not cfg.forwarded_allow_ips and "SCRIPT_NAME" not in os.environ


def environ_of_connection(cfg: Any, sock: object, client: Any, server: Any) -> dict[str, Any] | None:
    """Return what the WSGI environments of a connection's requests have in common.

    Return None if it is no TCP connection.
    """
    if not isinstance(client, tuple) or not isinstance(server, tuple):
        return None
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": WSGIErrorsWrapper(cfg),
        "wsgi.multithread": True,
        "wsgi.multiprocess": cfg.workers > 1,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.input_terminated": True,
        "gunicorn.socket": sock,
        "SERVER_SOFTWARE": SERVER_SOFTWARE,
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
    }


def read_usual(data: bytes, common: dict[str, Any]) -> dict[str, Any] | None:
    """Return the WSGI environment of a request; None if it is not the usual one.

    Args:
        data: the whole request, and nothing else.
        common: the part of the environment that all requests of the connection have in common.

    """
    end = data.find(_HEAD_ENDS, 0, _MAX_HEAD_BYTES) + len(_HEAD_ENDS)
    head = _HEAD.fullmatch(data[:end].decode("latin-1"))
    if head is None:
        return None
    path, lines = head.groups()
    fields = _FIELD.findall(lines)
    environ = {**common, "RAW_URI": path, "PATH_INFO": path}
    known = len(environ)
    for name, value in fields:
        environ[_key(name)] = value.strip(" \t")
    if len(environ) != known + len(fields) or len(fields) > _MAX_FIELDS:
        return None  # a header came twice, or there are too many
    length = environ.get("CONTENT_LENGTH", "")
    if not _LENGTH.fullmatch(length) or int(length) != len(data) - end or int(length) > MAX_BODY_BYTES:
        return None
    if "HTTP_TRANSFER_ENCODING" in environ or "HTTP_EXPECT" in environ:
        return None
    if environ.get("HTTP_CONNECTION", "keep-alive").lower() != "keep-alive":
        return None
    environ["wsgi.input"] = BytesIO(data[end:])
    return environ


@lru_cache(maxsize=256)
def _key(name: str) -> str:
    """Return the key of a header in the WSGI environment."""
    key = name.upper().replace("-", "_")
    return key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"


class UsualAnswer:
    """An application's answer to the usual request."""

    __slots__ = ("_body", "_headers", "_status")

    def __init__(self) -> None:
        self._status = ""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Callable[[bytes], None]:  # noqa: ARG002 - WSGI's signature
        """Take status and headers, as WSGI's `start_response`."""
        self._status, self._headers = status, headers
        return self._body.append

    def take(self, body: Iterable[bytes]) -> None:
        """Take the body that the application returned, and close that."""
        try:
            self._body.extend(body)
        finally:
            if close := getattr(body, "close", None):
                close()

    def to_bytes(self, *, keeps: bool) -> bytes:
        """Return the answer as it is sent; with `keeps`, the connection stays open.

        Raises:
            ValueError: status or headers are not HTTP.

        """
        body = b"".join(self._body)
        lines = [
            f"HTTP/1.1 {self._status}",
            f"Server: {SERVER}",
            f"Date: {_date(int(time.time()))}",
            f"Connection: {'keep-alive' if keeps else 'close'}",
        ]
        lines += [f"{name}: {value}" for name, value in self._headers]
        if self._status[:3] in _WITHOUT_BODY:
            body = b""
        elif not any(name.lower() == "content-length" for name, _ in self._headers):
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join([*lines, "", ""])
        if not _ANSWER_HEAD.fullmatch(head) or head.count("\n") != len(lines) + 1:
            raise ValueError("status or headers of the answer are not HTTP")
        return head.encode("latin-1") + body


@lru_cache(maxsize=2)
def _date(seconds: int) -> str:
    return formatdate(seconds, usegmt=True)
