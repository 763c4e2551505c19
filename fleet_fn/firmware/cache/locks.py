"""File locks of the cache's folder.

They are flock's, so they end with the process that holds them.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from fleet_fn.firmware.private import UntrustedFileError, open_file

#: Attempts to create the folder if another process deletes it at once.
_MAX_ATTEMPTS: Final = 3


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Take the right to reserve room, evict and rename in the folder.

    Callers hold it for moments only.

    Raises:
        OSError: the folder cannot be written.

    """
    with lock_file(folder, ".lock", fcntl.LOCK_EX):
        yield


@contextmanager
def lock_file(folder: Path, name: str, wait: int) -> Iterator[int]:
    """Yield a descriptor of a file with an exclusive lock; create a missing file.

    Args:
        folder: the cache's folder, created if it is missing.
        name: the file's name.
        wait: the kind of lock with which to wait while another process has the file. An exclusive lock keeps the turn;
            a shared one does not, and the attempt starts over.

    Raises:
        OSError: the file cannot be written.

    """
    path = folder / name
    while True:
        descriptor = _open_or_create(folder, path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(descriptor, wait)
                if wait == fcntl.LOCK_SH:
                    continue
            # The last holder may have renamed or unlinked the file. Then another file has to be locked.
            if is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Yield whether no other process uses the file at `path`.

    While the lock is held, none does.
    """
    is_free = False
    with ExitStack() as opened:
        with suppress(OSError):
            descriptor = open_file(path.parent, path.name, os.O_RDWR)  # NFS gives exclusive locks to writers only
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = is_at(descriptor, path)
        yield is_free


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _open_or_create(folder: Path, path: Path) -> int:
    for _ in range(_MAX_ATTEMPTS):
        with suppress(FileNotFoundError):
            for parent in reversed((folder, *folder.parents)):
                if not parent.exists():
                    parent.mkdir(0o700, exist_ok=True)
            try:
                return open_file(folder, path.name, os.O_RDWR | os.O_CREAT)
            except UntrustedFileError:
                path.unlink()
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
