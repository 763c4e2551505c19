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
from fleet_fn.firmware.store import NotHere, Reader

_CHUNK: Final = 1024 * 1024
#: Files whose verdict is remembered.
_REMEMBERED: Final = 4096
#: Seconds by which a file's last change must precede its hashing. Within one tick of the file system's clock, which has
#: two seconds on some, a second change leaves the same times (git calls such an entry of its index racy).
_SETTLED: Final = 3.0


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

    A file is hashed when it is first used, and again when its inode, size, mtime or ctime differ. One that was changed
    just now is hashed with each read, because its times cannot tell yet whether it is changed again.
    """

    def __init__(self, background: Background, clock: Callable[[], float] = time.time) -> None:
        self._background = background
        self._clock = clock
        self._lock = threading.Lock()
        self._hashes: OrderedDict[Path, tuple[_Fingerprint, bytes]] = OrderedDict()

    @contextmanager
    def open(self, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Iterator[Reader]:
        """The file at `path`, which has `size` bytes and the SHA-256 `checksum`.

        Raises:
            FileNotFoundError: there is no such file.
            NotHere: hashing it takes longer than the deadline, and goes on; or it is being replaced.
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
            if not self._is_settled(fingerprint):
                yield _UnsettledFile(descriptor, checksum, deadline)
            else:
                _check(self._hash(path, fingerprint, deadline), checksum)
                yield _SettledFile(descriptor, fingerprint)
        finally:
            os.close(descriptor)

    def _is_settled(self, fingerprint: _Fingerprint) -> bool:
        now = self._clock()
        return all(abs(now - changed / 1e9) > _SETTLED for changed in (fingerprint.ctime, fingerprint.mtime))

    def _hash(self, path: Path, fingerprint: _Fingerprint, deadline: Deadline) -> bytes:
        known = self._hashes.get(path)
        if known is not None and known[0] == fingerprint:
            return known[1]

        def hash_file() -> bytes:
            # Opened anew: the event that asked may be gone before this ends.
            with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotHere("the file is being replaced")
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotHere("the file is being changed")
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


class _SettledFile:
    """An open file that was verified. Reads are positioned, of just the block."""

    def __init__(self, descriptor: int, fingerprint: _Fingerprint) -> None:
        self._descriptor = descriptor
        self._fingerprint = fingerprint

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            NotHere: the file was changed since it was verified.
            Failed: it has no such bytes, or cannot be read.

        """
        block = _pread(self._descriptor, size, offset)
        if _Fingerprint.of(self._descriptor) != self._fingerprint:
            raise NotHere("the file is being changed")
        return _whole(block, offset, size)


class _UnsettledFile:
    """An open file that was changed just now: what is read of it comes from the very bytes that are hashed."""

    def __init__(self, descriptor: int, checksum: bytes, deadline: Deadline) -> None:
        self._descriptor = descriptor
        self._checksum = checksum
        self._deadline = deadline

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            NotHere: hashing the file takes longer than the deadline.
            Failed: the file has other bytes, or no such ones, or cannot be read.

        """
        digest, block, position = hashlib.sha256(), bytearray(), 0
        while chunk := _pread(self._descriptor, _CHUNK, position):
            digest.update(chunk)
            block += chunk[max(0, offset - position) : max(0, offset + size - position)]
            position += len(chunk)
            if not self._deadline.remaining:
                raise NotHere("verifying")
        _check(digest.digest(), self._checksum)
        return _whole(bytes(block), offset, size)


def _whole(block: bytes, offset: int, size: int) -> bytes:
    if len(block) != size:
        raise Failed(f"firmware: {size} bytes from {offset} on are not all there")
    return block


def _check(digest: bytes, checksum: bytes) -> None:
    if digest != checksum:
        raise Failed("digest mismatch: the bytes have another SHA-256 than they should")


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise Failed(f"firmware: {error.strerror}") from error
