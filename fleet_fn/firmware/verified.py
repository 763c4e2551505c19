"""Files whose bytes are served only after their size and SHA-256 were checked."""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from fleet_fn.background import Background
from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.firmware.store import NotHere

_CHUNK: Final = 1024 * 1024
#: Files whose verdict is remembered.
_REMEMBERED: Final = 4096
#: Seconds by which a file's last change must precede its hashing. Within one tick of the file system's clock a second
#: change leaves the same times (git calls such an entry of its index racy).
_SETTLED: Final = 1.0


def open_without_waiting(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """An `opener`: opening a FIFO in the usual way would wait for somebody at its other end."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


class _Fingerprint(NamedTuple):
    """What tells that a file is not the one that was hashed."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, descriptor: int) -> "_Fingerprint":
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Failed("firmware: not a regular file")
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class VerifiedFiles:
    """Opens files against an expected size and checksum.

    A file is hashed when it is first used, and again when its inode, size, mtime or ctime differ.
    """

    def __init__(self, background: Background, clock: Callable[[], float] = time.time) -> None:
        self._background = background
        self._clock = clock
        self._lock = threading.Lock()
        self._hashes: OrderedDict[Path, tuple[_Fingerprint, bytes]] = OrderedDict()

    @contextmanager
    def open(self, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Iterator["VerifiedFile"]:
        """The file at `path`, which has `size` bytes and the SHA-256 `checksum`.

        Raises:
            FileNotFoundError: there is no such file.
            NotHere: hashing it takes longer than the deadline, and goes on.
            Failed: it has other bytes, or cannot be read.

        """
        try:
            descriptor = open_without_waiting(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Failed(f"firmware: {error.strerror}") from error
        try:
            fingerprint = _Fingerprint.of(descriptor)
            if fingerprint.size != size:
                raise Failed(f"size mismatch: {fingerprint.size} bytes where there should be {size}")
            if self._hash(path, fingerprint, deadline) != checksum:
                raise Failed("digest mismatch: the bytes have another SHA-256 than they should")
            yield VerifiedFile(descriptor, fingerprint)
        finally:
            os.close(descriptor)

    def _hash(self, path: Path, fingerprint: _Fingerprint, deadline: Deadline) -> bytes:
        known = self._hashes.get(path)
        if known is not None and known[0] == fingerprint:
            return known[1]

        def hash_file() -> bytes:
            # Opened anew: the event that asked may be gone before this ends.
            with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotHere("the file is being replaced")
                started = self._clock()
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotHere("the file is being changed")
            if abs(started - fingerprint.ctime / 1e9) > _SETTLED and abs(started - fingerprint.mtime / 1e9) > _SETTLED:
                self._remember(path, fingerprint, digest.digest())
            return digest.digest()

        try:
            return self._background.result(("hash", path, fingerprint), hash_file, deadline)
        except TimeoutError as error:
            raise NotHere("verifying") from error
        except OSError as error:
            raise Failed(f"firmware: {error.strerror}") from error

    def _remember(self, path: Path, fingerprint: _Fingerprint, digest: bytes) -> None:
        with self._lock:
            self._hashes[path] = (fingerprint, digest)
            self._hashes.move_to_end(path)
            if len(self._hashes) > _REMEMBERED:
                self._hashes.popitem(last=False)


class VerifiedFile:
    """An open file that was verified. Reads are positioned, of just the block."""

    def __init__(self, descriptor: int, fingerprint: _Fingerprint) -> None:
        self._descriptor = descriptor
        self._fingerprint = fingerprint

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            Failed: the file was changed since it was verified, or cannot be read.

        """
        try:
            block = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise Failed(f"firmware: {error.strerror}") from error
        if len(block) != size or _Fingerprint.of(self._descriptor) != self._fingerprint:
            raise Failed("firmware: changed while it was read")
        return block
