"""Verified files that stay open between two reads.

A file is usually read again at once. Each system call to open it is expensive in a process with threads: Python
releases its lock for the call, and then waits for the other threads to get it back.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fleet_fn.files import open_without_waiting
from fleet_fn.firmware.store import Reader
from fleet_fn.firmware.verified.checks import MismatchError
from fleet_fn.firmware.verified.verdict import Verdict

#: Bound of the files that stay open, and the time after which an unused one is closed.
_MAX_OPEN: Final = 8
_IDLE_SECONDS: Final = 1.0


class OpenFile:
    """A descriptor of a verified file, closed with the last reference to it."""

    def __init__(self, descriptor: int, verdict: Verdict) -> None:
        self.descriptor = descriptor
        self.verdict = verdict
        self.is_used = True

    def __del__(self) -> None:
        os.close(self.descriptor)


class OpenFiles:
    """Files that stay open until they are idle for a moment.

    They are safe to use from several threads.
    """

    def __init__(self, mark_used: Callable[[str], object]) -> None:
        """Create an empty set of files.

        `mark_used` is called from time to time with each path that was read.
        """
        self._mark_used = mark_used
        self._lock = threading.Lock()
        #: By path.
        self._files: dict[str, OpenFile] = {}
        self._sweeps = False

    def get(self, path: str) -> OpenFile | None:
        """Return the open file with this path, if there is one."""
        return self._files.get(path)

    def open(self, path: Path, verdict: Verdict) -> None:
        """Open a file once more, by a descriptor of its own.

        A lock on the caller's descriptor ends with that descriptor.
        """
        try:
            file = OpenFile(open_without_waiting(path), verdict)
        except OSError:
            return
        with self._lock:
            self._files.pop(str(path), None)
            if len(self._files) >= _MAX_OPEN:
                del self._files[next(iter(self._files))]
            self._files[str(path)] = file
            if not self._sweeps:
                self._sweep_soon()

    def remove(self, path: str, verdict: Verdict) -> None:
        """Forget the file with this path, unless it was opened again with another verdict."""
        with self._lock:
            file = self._files.get(path)
            if file is not None and file.verdict is verdict:
                del self._files[path]

    def _sweep_soon(self) -> None:
        timer = threading.Timer(_IDLE_SECONDS, self._sweep)
        timer.daemon = True
        try:
            timer.start()
            self._sweeps = True
        except RuntimeError:  # the process cannot start another thread
            self._files.clear()

    def _sweep(self) -> None:
        """Close the files that were not read since the last sweep.

        A deleted file takes disk space while it is open.
        """
        with self._lock:
            self._files = {path: file for path, file in self._files.items() if file.is_used}
            for path, file in self._files.items():
                file.is_used = False
                self._mark_used(path)
            self._sweeps = False
            if self._files:
                self._sweep_soon()


class OpenFileReader:
    """Reads a file that is still open, until it changes.

    Deleting a file changes its times, too.
    """

    def __init__(self, file: OpenFile, reopen: Callable[[], Reader], forget: Callable[[], None]) -> None:
        self._file = file
        self._reopen = reopen
        self._forget = forget
        self._reader: Reader | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on; see `Reader.read`.

        Errors of reopening the file are passed on.
        """
        if self._reader is None:
            try:
                block = self._file.verdict.read(self._file.descriptor, offset, size)
            except MismatchError:
                self._forget()
                block = None
            if block is not None:
                return block
            self._reader = self._reopen()
        return self._reader.read(offset, size)
