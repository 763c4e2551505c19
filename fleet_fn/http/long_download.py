"""Bodies of any length: given up only if they stall, whatever time they take."""

from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError
from fleet_fn.http.client import Stream

#: A download that brings less than `_MIN_PROGRESS_BYTES` bytes in this time is given up.
STALL_TIMEOUT_SECONDS: Final = 30.0
_MIN_PROGRESS_BYTES: Final = 1024


class LongDownload:
    """A download without a deadline, given up only if it stalls."""

    def __init__(self, stream: Stream, size: int, name: str) -> None:
        """Read at most `size` bytes of `stream`; `name` is the upstream's in reasons."""
        self._name = name
        self._stream = stream
        self._left = size
        self._window = Deadline(STALL_TIMEOUT_SECONDS)
        self._progress = 0

    def read(self, size: int, /) -> bytes:
        """Return at most `size` more bytes; b"" at the expected size or an early end.

        Raises:
            TransientError: the connection broke, or the download stalled.
            PermanentError: the answer is not HTTP.

        """
        if not self._left:
            return b""
        try:
            piece = self._stream.read(min(size, self._left), self._window)
        except TransientError as error:
            if self._window.remaining:
                raise
            raise TransientError(
                f"{self._name}: a download made no progress for {STALL_TIMEOUT_SECONDS:g} s"
            ) from error
        self._left -= len(piece)
        self._progress += len(piece)
        if self._progress >= _MIN_PROGRESS_BYTES:
            self._window, self._progress = Deadline(STALL_TIMEOUT_SECONDS), 0
        return piece
