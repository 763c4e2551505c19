"""Folder of the cache: its files, and their locks."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache.eviction import Eviction
from fleet_fn.firmware.cache.locks import is_at, lock_file
from fleet_fn.firmware.cache.part import PartFile
from fleet_fn.firmware.cache.usage import UsageMarkers
from fleet_fn.firmware.private import UntrustedFileError, open_file
from fleet_fn.firmware.verified import check_size, hash_file

#: Attempts to open a file that another process locks for a moment, and the pause between them.
_MAX_LOCK_ATTEMPTS: Final = 50
_LOCK_PAUSE_SECONDS: Final = 0.001


class CacheFolder:
    """The files of a cache.

    NAME              the SHA-256 of a firmware's bytes; or of a key, with `.small`. A reader holds a shared lock.
    .NAME.FROM.part   becomes NAME; FROM is a hash of its source. It has its full size from the first byte on. Its
                      writer holds an exclusive lock; if no process does, the writer was killed.
    .NAME.used        its mtime is the time of the last use. NAME's own times must not change: they are part of its
                      fingerprint.
    .lock             its holder may reserve room, evict, and rename.
    """

    def __init__(self, path: Path, bound: int) -> None:
        self.path = path
        self.usage = UsageMarkers(path)
        self._bound = bound
        self._eviction = Eviction(path, bound, self.usage)

    def open(self, name: str) -> int | None:
        """Open a file; return None if it cannot be opened.

        The file is not evicted while the descriptor is open.
        """
        for _ in range(_MAX_LOCK_ATTEMPTS):
            try:
                descriptor = open_file(self.path, name, os.O_RDONLY)
            except OSError:
                return None
            try:
                # It may have been evicted just before. No matter: its bytes exist as long as it is open.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # Another process holds it for a moment: to check whether it can evict it, or after waiting to write it.
                os.close(descriptor)
                time.sleep(_LOCK_PAUSE_SECONDS)
            except OSError:
                os.close(descriptor)
                return None
            else:
                self.usage.mark_used(name)
                return descriptor
        return None

    def read(self, name: str, limit: int) -> bytes | None:
        """Return the first `limit` bytes of a file, or None if it cannot be read."""
        descriptor = self.open(name)
        if descriptor is None:
            return None
        try:
            return os.pread(descriptor, limit, 0)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def check_or_remove(self, name: str, size: int, checksum: bytes) -> bool:
        """Return whether a file has the right bytes; remove a file with wrong ones.

        Raises:
            MismatchError: the bytes are right, but `size` is not their number.
            OSError: the file cannot be opened; or it is wrong, and cannot be removed.

        """
        path = self.path / name
        try:
            descriptor = open_file(self.path, name, os.O_RDONLY)
        except UntrustedFileError:
            pass  # removed below
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
        else:
            try:
                # Without a lock: if the file is evicted now, the next reader fetches it again.
                actual = os.fstat(descriptor).st_size
                if actual <= self._bound and is_at(descriptor, path) and _has(descriptor, checksum):
                    check_size(actual, size)
                    return True
            finally:
                os.close(descriptor)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return False

    @contextmanager
    def part(self, name: str, source: str) -> Iterator[PartFile]:
        """Wait for the sole right to write a file from a source.

        Afterwards, delete the part file unless it was published.

        Raises:
            OSError: the folder cannot be written.

        """
        part_name = f".{name}.{hashlib.sha256(source.encode()).hexdigest()[:16]}.part"
        path = self.path / part_name
        # Waits with a shared lock: after the rename, a waiter's exclusive lock would be one on NAME, and block readers.
        with lock_file(self.path, part_name, fcntl.LOCK_SH) as descriptor:
            try:
                yield PartFile(name, path, descriptor, self._eviction, self.usage)
            finally:
                if is_at(descriptor, path):
                    path.unlink(missing_ok=True)


def _has(descriptor: int, checksum: bytes) -> bool:
    try:
        return hash_file(descriptor) == checksum
    except PermanentError:
        return False
