"""Files whose bytes are served only after their size and SHA-256 were checked."""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from fleet_fn.background import Background
from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.firmware.files import open_without_waiting
from fleet_fn.firmware.store import NotHere, Reader

#: Bytes that are hashed at once: few, since many threads may be at it.
_CHUNK: Final = 256 * 1024
#: Files whose verdict is remembered.
_REMEMBERED: Final = 4096
#: Verified files that stay open between two reads, and seconds for which they do while nobody reads them.
_KEPT: Final = 8
_KEPT_SECONDS: Final = 1.0
#: Seconds by which a file's last change must precede its hashing. Within one tick of the file system's clock, which has
#: two seconds on some, a second change leaves the same times (git calls such an entry of its index racy).
_SETTLED: Final = 3.0


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


class Mismatch(Failed):
    """A file has another size or other bytes than it should."""


class VerifiedFiles:
    """Opens files against an expected size and checksum.

    A file is hashed when it is first used, and again when its inode, size, mtime or ctime differ. One that was changed
    just now is hashed with each read, because its times cannot tell yet whether it is changed again. Those who read it
    at the same time share that.

    A verified file stays open for a moment, since most is read again at once. Each system call is dear where there are
    threads: Python lets the others go on meanwhile, and has to wait for them then.
    """

    def __init__(self, background: Background, clock: Callable[[], float] = time.time) -> None:
        self._background = background
        self._clock = clock
        self._lock = threading.Lock()
        self._hashes: OrderedDict[Path, tuple[_Fingerprint, bytes]] = OrderedDict()
        #: By device and inode, for as long as somebody has the file open.
        self._queues: WeakValueDictionary[tuple[int, int], _Queue] = WeakValueDictionary()
        #: By path.
        self._kept: dict[str, _Kept] = {}
        self._sweeps = False

    @contextmanager
    def open(self, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Iterator[Reader]:
        """The file at `path`, which has `size` bytes and the SHA-256 `checksum`.

        Raises:
            FileNotFoundError: there is no such file.
            NotHere: hashing it takes longer than the deadline, and goes on; or it is being replaced.
            Failed: it has other bytes, or cannot be read.

        """
        with ExitStack() as opened:

            def anew() -> Reader:
                try:
                    descriptor = open_without_waiting(path)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise Failed(f"firmware: {error.strerror}") from error
                opened.callback(os.close, descriptor)
                return self.reader(descriptor, path, size, checksum, deadline)

            yield self.kept(str(path), size, checksum, anew) or anew()

    def kept(self, path: str, size: int, checksum: bytes, anew: Callable[[], Reader]) -> Reader | None:
        """The file at `path` as above, if it is open still; should it have changed, `anew` opens it once it is read."""
        kept = self._kept.get(path)
        if kept is None or kept.fingerprint.size != size or kept.digest != checksum:
            return None
        kept.is_used = True
        return _KeptFile(kept, anew)

    def reader(self, descriptor: int, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Reader:
        """The file at `path` as above, of which `descriptor` was opened: it stays the caller's to close.

        Raises:
            NotHere, Failed: as above; `Mismatch` where it has another size or other bytes.

        """
        fingerprint = _Fingerprint.of(descriptor)
        check_size(fingerprint.size, size)
        if not self._is_settled(fingerprint):
            with self._lock:
                queue = self._queues.setdefault((fingerprint.device, fingerprint.inode), _Queue())
            return _UnsettledFile(descriptor, checksum, deadline, queue)
        check_digest(self._hash(path, fingerprint, deadline), checksum)
        self._keep(path, fingerprint, checksum)
        return _SettledFile(descriptor, fingerprint)

    def _keep(self, path: Path, fingerprint: _Fingerprint, digest: bytes) -> None:
        """Keeps the file open, by a descriptor of its own: a lock on the other one is to end with that."""
        try:
            kept = _Kept(open_without_waiting(path), fingerprint, digest)
        except OSError:
            return
        with self._lock:
            self._kept.pop(str(path), None)
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[str(path)] = kept
            if not self._sweeps:
                self._sweep_soon()

    def _sweep_soon(self) -> None:
        timer = threading.Timer(_KEPT_SECONDS, self._sweep)
        timer.daemon = True
        try:
            timer.start()
            self._sweeps = True
        except RuntimeError:  # no thread can be had
            self._kept.clear()

    def _sweep(self) -> None:
        """Closes what nobody has read since the last time: what is open takes room, even once it is deleted."""
        with self._lock:
            self._kept = {path: kept for path, kept in self._kept.items() if kept.is_used}
            for kept in self._kept.values():
                kept.is_used = False
            self._sweeps = False
            if self._kept:
                self._sweep_soon()

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
                digest = hash_of(file.fileno())
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotHere("the file is being changed")
            self._remember(path, fingerprint, digest)
            return digest

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


class _Kept:
    """A descriptor of a verified file, which closes with the last reference to it."""

    def __init__(self, descriptor: int, fingerprint: _Fingerprint, digest: bytes) -> None:
        self.descriptor = descriptor
        self.fingerprint = fingerprint
        self.digest = digest
        self.is_used = True

    def __del__(self) -> None:
        os.close(self.descriptor)


class _KeptFile:
    """A verified file that is open still, for as long as it has not changed. Its times change also when it goes."""

    def __init__(self, kept: _Kept, anew: Callable[[], Reader]) -> None:
        self._kept = kept
        self._anew = anew
        self._file: Reader | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on; see `Reader.read`, and what opening it anew raises."""
        if self._file is None:
            kept = self._kept
            block = _pread(kept.descriptor, size, offset)
            if _Fingerprint.of(kept.descriptor) == kept.fingerprint:
                return _whole(block, offset, size)
            self._file = self._anew()
        return self._file.read(offset, size)


class _UnsettledFile:
    """An open file that was changed just now: what is read of it comes from the very bytes that are hashed."""

    def __init__(self, descriptor: int, checksum: bytes, deadline: Deadline, queue: "_Queue") -> None:
        self._descriptor = descriptor
        self._checksum = checksum
        self._deadline = deadline
        self._queue = queue

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            NotHere: hashing the file takes longer than the deadline.
            Mismatch: the file has other bytes.
            Failed: it has no such ones, or cannot be read.

        """
        mine = self._queue.joined(offset, size)
        if not self._queue.turn.acquire(timeout=self._deadline.remaining):
            raise NotHere("verifying")
        try:
            if mine.digest is None:
                self._queue.begin(mine)
                mine.run(self._descriptor, self._deadline)
        finally:
            self._queue.turn.release()
        check_digest(mine.digest or b"", self._checksum)
        return _whole(bytes(mine.blocks[offset, size]), offset, size)


class _Pass:
    """One hashing of a whole file, from whose bytes come all the blocks that were asked for before it began."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int], bytearray] = {}
        #: None until the blocks are there.
        self.digest: bytes | None = None

    def run(self, descriptor: int, deadline: Deadline) -> None:
        digest, position = hashlib.sha256(), 0
        blocks = {wanted: bytearray() for wanted in self.blocks}
        while chunk := _pread(descriptor, _CHUNK, position):
            digest.update(chunk)
            for (offset, size), block in blocks.items():
                block += chunk[max(0, offset - position) : max(0, offset + size - position)]
            position += len(chunk)
            if not deadline.remaining:
                raise NotHere("verifying")
        self.blocks, self.digest = blocks, digest.digest()


class _Queue:
    """Those who want blocks of a file that was changed just now. Whoever comes during a pass takes part in the next."""

    def __init__(self) -> None:
        #: Whoever has it makes the pass that it joined, if nobody has made that yet.
        self.turn = threading.Lock()
        self._lock = threading.Lock()
        self._next = _Pass()

    def joined(self, offset: int, size: int) -> _Pass:
        with self._lock:
            self._next.blocks[offset, size] = bytearray()
            return self._next

    def begin(self, this: _Pass) -> None:
        with self._lock:
            if self._next is this:
                self._next = _Pass()


def _whole(block: bytes, offset: int, size: int) -> bytes:
    if len(block) != size:
        raise Failed(f"firmware: {size} bytes from {offset} on are not all there")
    return block


def check_size(actual: int, size: int) -> None:
    """Raises `Mismatch` where there are not as many bytes as there should be."""
    if actual != size:
        raise Mismatch(f"size mismatch: {actual} bytes where there should be {size}")


def check_digest(digest: bytes, checksum: bytes) -> None:
    """Raises `Mismatch` where a SHA-256 is not what it should be."""
    if digest != checksum:
        raise Mismatch("digest mismatch: the bytes have another SHA-256 than they should")


def hash_of(descriptor: int) -> bytes:
    """The SHA-256 of an open file.

    Raises:
        Failed: it cannot be read.

    """
    digest, position = hashlib.sha256(), 0
    while chunk := _pread(descriptor, _CHUNK, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.digest()


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise Failed(f"firmware: {error.strerror}") from error
