"""Cache of verdicts by path, bounded in number and memory."""

import threading
import time
from collections import OrderedDict
from typing import Final

from fleet_fn.firmware.verified.fingerprint import Fingerprint
from fleet_fn.firmware.verified.verdict import Verdict

#: Bounds of the cached verdicts, and of their chunks' hashes. A file beyond either is hashed again.
_MAX_VERDICTS: Final = 4096
_MAX_VERDICTS_BYTES: Final = 16 * 1024 * 1024


class VerdictCache:
    """The verdicts of the files used last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        #: Bytes that the verdicts take.
        self._verdicts_bytes = 0

    def get(self, path: str, fingerprint: Fingerprint, checksum: bytes) -> Verdict | None:
        """Return the verdict of an unchanged file; None if the file has to be hashed.

        A verdict with another digest than `checksum` holds only for a while, see `Verdict.wrong_until`.
        """
        with self._lock:
            known = self._verdicts.get(path)
            if known is not None and known.fingerprint == fingerprint:
                self._verdicts.move_to_end(path)
                if known.digest == checksum or time.monotonic() < known.wrong_until:
                    return known
        return None

    def put(self, path: str, verdict: Verdict) -> None:
        """Cache a verdict; drop those that were not used for longest."""
        with self._lock:
            self._drop(path)
            self._verdicts[path] = verdict
            self._verdicts_bytes += verdict.size
            while len(self._verdicts) > _MAX_VERDICTS or self._verdicts_bytes > _MAX_VERDICTS_BYTES:
                self._drop(next(iter(self._verdicts)))

    def mark_used(self, path: str) -> None:
        """Make the verdict of a file, if there is one, the last to be dropped."""
        with self._lock:
            if path in self._verdicts:
                self._verdicts.move_to_end(path)

    def remove(self, path: str, verdict: Verdict) -> bool:
        """Remove a verdict; return False if another one or none is cached for the file."""
        with self._lock:
            if self._verdicts.get(path) is not verdict:
                return False
            self._drop(path)
            return True

    def _drop(self, path: str) -> None:
        verdict = self._verdicts.pop(path, None)
        if verdict is not None:
            self._verdicts_bytes -= verdict.size
