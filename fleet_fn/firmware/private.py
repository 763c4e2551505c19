"""Folders and files that no other user can change.

The user of this process and root may: root may change everything anyhow. The rule is that of OpenSSH's `StrictModes`.
"""

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(PermissionError):
    """Another user owns a folder or a file, or may write to it."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__(errno.EPERM, f"{str(path)!a} {why}")


class UntrustedFileError(UntrustedError):
    """The folder is ours alone; a file in it is not."""


def private_folder(folder: Path) -> Path:
    """Return where to keep what only we may change, as `folder` was named for it.

    This is `folder` itself, if only we can write there, or if it has yet to be made. Into a volume that root has opened
    to others, as Kubernetes mounts them, a folder of our own is made.

    Raises:
        UntrustedError: another user owns the folder, a link to it, or our folder in it.
        OSError: there is something else, or our folder cannot be made.

    """
    if folder.is_symlink():
        _check_owner(folder, folder.lstat())
        folder = folder.resolve(strict=True)
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return folder
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    _check_owner(folder, status)
    if not status.st_mode & _WRITABLE_BY_OTHERS:
        return folder
    own = folder / _name()
    with suppress(FileExistsError):
        own.mkdir(0o700)
    os.close(open_folder(own))
    return own


def default_folder() -> Path:
    """Return our folder in the system's temporary directory, and make it if missing.

    So no other user can be the first to make it.

    Raises:
        UntrustedError: another user was the first, or may write to it.
        OSError: there is no such directory, or it cannot be written.

    """
    folder = Path(gettempdir(), _name())
    with suppress(FileExistsError):
        folder.mkdir(0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise UntrustedError(folder, "is no folder")
    check_private(folder, status)
    return folder


def _name() -> str:
    return f"fleet-firmware-{os.geteuid()}"


def open_folder(path: Path) -> int:
    """Open the folder at `path`; close it to other users if it is ours.

    Kubernetes opens whole volumes to `fsGroup`, each time that a pod mounts them.

    Raises:
        UntrustedError: another user owns it, or it is root's and others may write to it.
        OSError: there is no folder; a link is none.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_mode & _WRITABLE_BY_OTHERS:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~_WRITABLE_BY_OTHERS)
            status = os.fstat(descriptor)
        check_private(path, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_file(folder: Path, name: str, flags: int) -> int:
    """Open a file of a private folder: no link, and without waiting on a FIFO.

    Raises:
        UntrustedError: another user owns the folder, or may write to it; `UntrustedFileError`: the file.
        OSError: the file cannot be opened.

    """
    parent = open_folder(folder)
    try:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
    finally:
        os.close(parent)
    status = os.fstat(descriptor)
    if not is_private(status):
        os.close(descriptor)
        raise UntrustedFileError(folder / name, "is another user's, or others may write to it")
    return descriptor


def is_private(status: os.stat_result) -> bool:
    """Return whether only we and root can change a file or a folder with this status."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & _WRITABLE_BY_OTHERS


def check_private(path: str | Path, status: os.stat_result) -> None:
    """Raise `UntrustedError` if another user can change what has this status."""
    _check_owner(path, status)
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise UntrustedError(path, f"can be written by other users (mode {stat.S_IMODE(status.st_mode):04o})")


def _check_owner(path: str | Path, status: os.stat_result) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise UntrustedError(path, f"belongs to user {status.st_uid}")
