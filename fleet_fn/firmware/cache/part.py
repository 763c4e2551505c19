"""Files of the cache while they are written."""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from fleet_fn.firmware.cache.eviction import Eviction
from fleet_fn.firmware.cache.locks import is_at, lock_folder
from fleet_fn.firmware.cache.usage import UsageMarkers


class PartFile:
    """A file that is being written, by its only writer."""

    def __init__(self, name: str, path: Path, descriptor: int, eviction: Eviction, usage: UsageMarkers) -> None:
        self.descriptor = descriptor
        self._name = name
        self._path = path
        self._eviction = eviction
        self._usage = usage

    def reserve(self, size: int) -> None:
        """Reserve `size` bytes of the cache and of the disk.

        Raises:
            NotReadyError: the cache has no room now.
            OSError: the disk is full.

        """
        with lock_folder(self._path.parent):
            self._eviction.make_room(size, self._path)
            os.ftruncate(self.descriptor, size)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            # Not every file system supports it; then a full disk shows when the bytes are written.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def publish(self) -> None:
        """Give the file its final name, unless another process deleted it.

        Raises:
            OSError: it cannot be renamed.

        """
        with lock_folder(self._path.parent), suppress(FileNotFoundError):
            if is_at(self.descriptor, self._path):
                self._usage.mark_used(self._name)
                self._path.rename(self._path.with_name(self._name))
                fcntl.flock(self.descriptor, fcntl.LOCK_SH)  # readable from now on
