"""Fingerprints of open files, which change with most changes of their bytes."""

import os
import stat
from typing import Final, NamedTuple

from fleet_fn.errors import PermanentError

#: A file whose last change is younger than this is racy. Within one tick of the file system's clock, two seconds on
#: some, a second change leaves the same times.
_RACY_SECONDS: Final = 3.0


class Fingerprint(NamedTuple):
    """The status of a file; if it differs, the file is not the one that was hashed."""

    device: int
    inode: int
    #: Bytes.
    size: int
    #: Nanoseconds since the epoch.
    mtime: int
    ctime: int

    @classmethod
    def of(cls, descriptor: int) -> "Fingerprint":
        """Return the fingerprint of an open file.

        Raises:
            PermanentError: it is not a regular file.

        """
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermanentError("firmware: not a regular file")
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def is_racy(self, now: float) -> bool:
        """Return whether the file just changed, so that its times may hide a new change.

        git calls such an entry of its index racy. `now` is in seconds since the epoch.
        """
        return any(abs(now - changed / 1e9) <= _RACY_SECONDS for changed in (self.ctime, self.mtime))
