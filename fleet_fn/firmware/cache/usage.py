"""Times of last use, for eviction: the mtime of a marker file beside each file."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from fleet_fn.firmware.private import open_file

#: Interval between two marks of a file that is used all the time.
_MARK_INTERVAL_SECONDS: Final = 1.0
#: Bound of the remembered times.
_MAX_MARKS: Final = 4096


class UsageMarkers:
    """The markers of the files in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Readings of `time.monotonic` when `mark_still_used` marked a file.
        self._marked: dict[str, float] = {}

    def last_used(self, name: str) -> int:
        """Return a file's last use, in nanoseconds since the epoch; 0 if it is unknown."""
        with suppress(OSError):
            return self._marker(name).lstat().st_mtime_ns
        return 0

    def mark_used(self, name: str) -> None:
        """Mark a file as the one used last."""
        marker, now = self._marker(name), time.time_ns()
        with suppress(OSError):  # if nothing can be written, nothing is evicted either
            try:
                os.utime(marker, ns=(now, now), follow_symlinks=False)
            except FileNotFoundError:
                os.close(open_file(self._folder, marker.name, os.O_WRONLY | os.O_CREAT))
                os.utime(marker, ns=(now, now), follow_symlinks=False)

    def mark_still_used(self, name: str) -> None:
        """Mark a file that is used all the time; writes a mark only once in a while."""
        now = time.monotonic()
        if now - self._marked.get(name, -math.inf) >= _MARK_INTERVAL_SECONDS:
            if len(self._marked) >= _MAX_MARKS:
                self._marked.clear()
            self._marked[name] = now
            self.mark_used(name)

    def remove(self, name: str) -> None:
        """Delete the marker of a file."""
        self._marker(name).unlink(missing_ok=True)

    def _marker(self, name: str) -> Path:
        return self._folder / f".{name}.used"
