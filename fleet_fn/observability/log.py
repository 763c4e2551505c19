"""Log lines on stdout: one JSON object each for machines, or a line of words for people."""

import json
import logging
import os
import select
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import one_line

#: Characters of a value in a line: as many as the longest reason has. Names may be as long as a whole request.
_MAX_VALUE: Final = 1001
#: Characters of a traceback's beginning, and of its end: what went wrong may quote all that was read.
_MAX_TRACEBACK: Final = 10_000
#: Seconds that whatever reads stdout may take for a line.
_PATIENCE_SECONDS: Final = 0.1


class _Logger(logging.Logger):
    """A logger that never raises: a line that cannot be written has no other effect."""

    def handle(self, record: logging.LogRecord) -> None:
        """Write a line, or let it be."""
        try:
            super().handle(record)
        except Exception as error:  # noqa: BLE001 - no answer may depend on it
            _complain(error)


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to a stream that may be closed, full, or read by none."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's signature
        """Tell of the error that is being handled."""
        _complain(sys.exc_info()[1])


class _Pipe:
    """A pipe to which lines are written if its reader takes them in time; else they are dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._is_stalled = False
        #: The last line has been written in part.
        self._is_cut = False

    def write(self, line: str) -> None:
        """Write a line.

        Raises:
            BlockingIOError: the reader has not taken it in time. It gets time once, until it takes lines again.

        """
        whole = ("\n" * self._is_cut + line).encode("utf-8", "backslashreplace")
        rest, deadline = memoryview(whole), Deadline(0 if self._is_stalled else _PATIENCE_SECONDS)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                if not self._poll.poll(deadline.remaining * 1000):
                    self._is_cut = self._is_cut or len(rest) < len(whole)
                    self._is_stalled = True
                    raise
        self._is_stalled = self._is_cut = False

    def flush(self) -> None:
        """Nothing is kept back."""


def _stream() -> Any:
    """Return stdout, or what writes to the same pipe if that does not wait for its reader."""
    try:
        descriptor = sys.stdout.fileno()
        return sys.stdout if os.get_blocking(descriptor) else _Pipe(descriptor)
    except (OSError, ValueError, AttributeError):  # closed, or no file
        return sys.stdout


def _complain(error: BaseException | None) -> None:
    """Tell once, and elsewhere, that lines cannot be written."""
    if not _complained:
        _complained.append(True)
        with suppress(Exception):  # it may be in no better state
            sys.stderr.write(f"fleet_fn: lines cannot be logged: {one_line(repr(error))}\n")


_complained: Final[list[bool]] = []
_class: Final = logging.getLoggerClass()
logging.setLoggerClass(_Logger)
logger = logging.getLogger("fleet_fn")
logging.setLoggerClass(_class)


def configure(level: str, form: str) -> None:
    """Log everything of the project from `level` on; `form` is `json`, or `text` for people."""
    handler = _Handler(_stream())
    handler.setFormatter(_JSONFormatter() if form == "json" else _TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        text = super().formatException(ei)
        if len(text) <= 2 * _MAX_TRACEBACK:
            return text
        return f"{text[:_MAX_TRACEBACK]}…\n…{text[-_MAX_TRACEBACK:]}"


class _JSONFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname, "message": record.getMessage(), **_fields(record)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _TextFormatter(_Formatter):
    """Values that are more than a plain word are quoted as in JSON, so that no name can forge a line or a field."""

    def format(self, record: logging.LogRecord) -> str:
        words = [_time(record), record.levelname, record.getMessage()]
        words += [f"{key}={_word(value)}" for key, value in _fields(record).items()]
        lines = [" ".join(words)]
        if record.exc_info:  # indented, because its text may hold what looks like a line of ours
            lines += [f"  {one_line(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    """What was given as `extra={"fields": …}`."""
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    return {name: _bounded(value) for name, value in fields.items()}


def _bounded(value: object) -> object:
    return f"{value[:_MAX_VALUE]}…" if isinstance(value, str) and len(value) > _MAX_VALUE else value


def _word(value: object) -> str:
    word = str(value)
    return word if word.isascii() and word.isprintable() and not set(word) & set(' "=\\') else json.dumps(word)
