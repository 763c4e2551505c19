"""Log lines on stdout: a JSON object each for machines, or words for people."""

import json
import logging
import os
import select
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, Final, cast

from fleet_fn.deadline import Deadline
from fleet_fn.errors import one_line

#: Longest value in a line: as long as the longest reason. A name may be as long as a whole request.
_MAX_VALUE_CHARS: Final = 1001
#: Longest beginning, and longest end, of a traceback: an error's message may quote a whole document.
_MAX_TRACEBACK_CHARS: Final = 10_000
#: How long the reader of stdout may take for a line.
_WRITE_TIMEOUT_SECONDS: Final = 0.1


class _Logger(logging.Logger):
    """A logger that never raises: if a line cannot be written, the caller goes on."""

    def handle(self, record: logging.LogRecord) -> None:
        """Write a line, if it can be written."""
        try:
            super().handle(record)
        except Exception as error:  # noqa: BLE001 - no answer may depend on a log line
            _complain(error)

    def findCaller(self, *_: object) -> tuple[str, int, str, None]:  # noqa: N802 - logging's name
        """Look for no caller: no line tells it."""
        return "", 0, "", None

    def write(self, level: int, message: str, fields: Mapping[str, Any]) -> None:
        """Log a message with fields, as `log` does with `extra`.

        Handlers of ours get no `LogRecord`, whose making takes longer than the line.
        """
        if not self.isEnabledFor(level):
            return
        if len(self.handlers) != 1 or not isinstance(handler := self.handlers[0], _Handler):
            self.log(level, message, extra={"fields": fields})
            return
        try:
            handler.write(level, message, fields)
        except Exception as error:  # noqa: BLE001 - as above
            _complain(error)


class _Handler(logging.StreamHandler[Any]):
    """Writes lines to a stream that may be closed, full, or without a reader."""

    formatter: "_Formatter"

    def write(self, level: int, message: str, fields: Mapping[str, Any]) -> None:
        """Write a line without a record."""
        line = self.formatter.line(time.time(), logging.getLevelName(level), message, fields) + self.terminator
        self.acquire()
        try:
            self.stream.write(line)
            self.stream.flush()
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - logging's signature
        """Complain of the current error."""
        _complain(sys.exc_info()[1])


class _Pipe:
    """A pipe that drops lines which its reader does not take in time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._is_stalled = False
        #: Only a part of the last line was written.
        self._is_cut = False

    def write(self, line: str) -> None:
        """Write a line.

        Raises:
            BlockingIOError: the reader has not taken the line in time. Until it takes a line again, it gets no more
                time.

        """
        whole = rest = ("\n" * self._is_cut + line).encode("utf-8", "backslashreplace")
        deadline: Deadline | None = None
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                deadline = deadline or Deadline(0 if self._is_stalled else _WRITE_TIMEOUT_SECONDS)
                if not self._poll.poll(deadline.remaining * 1000):
                    self._is_cut = self._is_cut or len(rest) < len(whole)
                    self._is_stalled = True
                    raise
        self._is_stalled = self._is_cut = False

    def flush(self) -> None:
        """Do nothing: `write` buffers nothing."""


def _stream() -> Any:
    """Return stdout; or a `_Pipe` over it, if it is a pipe in non-blocking mode."""
    try:
        descriptor = sys.stdout.fileno()
        return sys.stdout if os.get_blocking(descriptor) else _Pipe(descriptor)
    except (OSError, ValueError, AttributeError):  # closed, or not a file
        return sys.stdout


def _complain(error: BaseException | None) -> None:
    """Say on stderr, once, that lines cannot be written."""
    if not _complained:
        _complained.append(True)
        with suppress(Exception):  # stderr may be broken too
            sys.stderr.write(f"fleet_fn: lines cannot be logged: {one_line(repr(error))}\n")


_complained: Final[list[bool]] = []
_class: Final = logging.getLoggerClass()
logging.setLoggerClass(_Logger)
logger: Final = cast(_Logger, logging.getLogger("fleet_fn"))
logging.setLoggerClass(_class)


def configure(level: str, form: str) -> None:
    """Log this project's records from `level` on, as `json`, or as `text` for people."""
    handler = _Handler(_stream())
    handler.setFormatter(_JSONFormatter() if form == "json" else _TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def keep_pipes_from_blocking() -> None:
    """Let writes to stdout and stderr fail instead of wait if a reader stalls.

    For servers, whose threads would wait for ever. A command whose output a pager reads has to wait, and must not call
    this. The flag belongs to the open file, which other processes may share. So the pipe is opened anew.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.dup2(opened, descriptor)
                os.close(opened)


class _Formatter(logging.Formatter, ABC):
    """Makes lines of records, and of what would be in a record."""

    @abstractmethod
    def line(self, created: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        """Return a line, with long values of fields cut."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, whose fields are its `extra={"fields": …}`."""
        return self.line(record.created, record.levelname, record.getMessage(), getattr(record, "fields", {}))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        text = super().formatException(ei)
        if len(text) <= 2 * _MAX_TRACEBACK_CHARS:
            return text
        return f"{text[:_MAX_TRACEBACK_CHARS]}…\n…{text[-_MAX_TRACEBACK_CHARS:]}"


class _JSONFormatter(_Formatter):
    def line(self, created: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        members = [f'"time": "{_time(created)}", "level": "{level}", "message": {_quote(message)}']
        members += [f'"{name}": {_json(value)}' for name, value in fields.items()]
        return f"{{{', '.join(members)}}}"

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.exc_info:
            line = f'{line[:-1]}, "exception": {_quote(self.formatException(record.exc_info))}}}'
        return line


class _TextFormatter(_Formatter):
    """Quotes all but plain words as JSON does: no name can forge a line or a field."""

    def line(self, created: float, level: str, message: str, fields: Mapping[str, Any]) -> str:
        words = [_time(created), level, message]
        words += [f"{key}={_word(value)}" for key, value in fields.items()]
        return " ".join(words)

    def format(self, record: logging.LogRecord) -> str:
        lines = [super().format(record)]
        if record.exc_info:  # indented: the error's text may look like a log line
            lines += [f"  {one_line(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


def _time(created: float) -> str:
    return datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds")


def _shorten(value: str) -> str:
    return value if len(value) <= _MAX_VALUE_CHARS else f"{value[:_MAX_VALUE_CHARS]}…"


def _json(value: object) -> str:
    # `dumps` would make an encoder of JSON for each value.
    if isinstance(value, str):
        return _quote(_shorten(value))
    return repr(value) if type(value) in (int, float) else json.dumps(value)


def _word(value: object) -> str:
    word = _shorten(value) if isinstance(value, str) else str(value)
    return word if word.isascii() and word.isprintable() and not set(word) & set(' "=\\') else json.dumps(word)
