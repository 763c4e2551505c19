"""Files whose bytes are served only after their size and SHA-256 were checked."""

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from hashlib import sha256 as chunk_hash
from pathlib import Path
from typing import Final, NamedTuple
from weakref import WeakValueDictionary

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.files import open_without_waiting
from fleet_fn.firmware.store import NotReadyError, Reader
from fleet_fn.observability.log import logger

#: Bytes that are read and hashed at once: few, since many threads may be at it.
_PIECE_BYTES: Final = 256 * 1024
#: Files whose verdict is remembered, and bytes of their chunks' hashes. A file beyond either is hashed again.
_REMEMBERED: Final = 4096
_REMEMBERED_BYTES: Final = 16 * 1024 * 1024
#: Bytes of a chunk that has a hash of its own. From 2,048 on hashlib gives up Python's lock, which costs a thread more
#: than the hashing. Chunks double until the hashes of one file take no more than the last number.
_CHUNK_BYTES: Final = 1024
_CHUNK_HASH_BYTES: Final = 16
_MAX_CHUNK_HASHES_BYTES: Final = 1024 * 1024
#: A wrong file is hashed again after this many times the seconds that hashing it took: the disk may have misread it, or
#: a mapping may have mended it without a trace. So files that stay wrong cost a tenth of a core.
_WRONG_FOR: Final = 10
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
            raise PermanentError("firmware: not a regular file")
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class MismatchError(PermanentError):
    """A file has another size or other bytes than it should."""


class UnreadableError(MismatchError):
    """The disk does not give a file's bytes."""


class _Verdict:
    """What hashing a file showed: its SHA-256, and a hash of each chunk.

    The file's times tell of most changes. They do not tell of those through a shared writable mapping, nor of a disk
    that fails. So each block is checked against the hashes of its chunks: the very bytes that are served.
    """

    __slots__ = ("_chunk_bytes", "_chunk_hashes", "digest", "fingerprint", "wrong_until")

    def __init__(
        self, fingerprint: _Fingerprint, digest: bytes, chunk_bytes: int, chunk_hashes: bytes, wrong_until: float
    ) -> None:
        self.fingerprint = fingerprint
        self.digest = digest
        #: When the file is hashed again if this is another digest than it should have, by the clock `time.monotonic`.
        self.wrong_until = wrong_until
        self._chunk_bytes = chunk_bytes
        self._chunk_hashes = chunk_hashes

    @classmethod
    def of(cls, descriptor: int, fingerprint: _Fingerprint) -> "_Verdict":
        """Hash the whole open file.

        Raises:
            UnreadableError: the disk does not give all of it.

        """
        began, chunk_bytes = time.monotonic(), _chunk_bytes(fingerprint.size)
        digest, hashes = hashlib.sha256(), bytearray()
        for piece in _pieces(descriptor, max(_PIECE_BYTES, chunk_bytes)):
            digest.update(piece)
            hashes += _hash_chunks(piece, chunk_bytes)
        ended = time.monotonic()
        return cls(fingerprint, digest.digest(), chunk_bytes, bytes(hashes), ended + _WRONG_FOR * (ended - began))

    @property
    def size(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self._chunk_hashes)

    def read(self, descriptor: int, offset: int, size: int) -> bytes | None:
        """Return `size` bytes of the open file, or None if its times tell of a change.

        Raises:
            MismatchError: they are not the bytes that were hashed; or `UnreadableError`.
            PermanentError: the file has no such bytes.

        """
        chunk_bytes = self._chunk_bytes
        first = offset // chunk_bytes
        start = first * chunk_bytes
        chunks = -(-(offset + size) // chunk_bytes) - first
        read = _pread(descriptor, chunks * chunk_bytes, start)
        if _Fingerprint.of(descriptor) != self.fingerprint:
            return None
        at = first * _CHUNK_HASH_BYTES
        hashes = _hash_chunks(read, chunk_bytes)
        if hashes != self._chunk_hashes[at : at + chunks * _CHUNK_HASH_BYTES]:
            raise MismatchError("digest mismatch: the bytes are not those that were verified")
        return _whole(read[offset - start : offset - start + size], offset, size)


def _chunk_bytes(size: int) -> int:
    """Return how many bytes of a file of `size` bytes have one hash."""
    chunk_bytes = _CHUNK_BYTES
    while size > chunk_bytes * (_MAX_CHUNK_HASHES_BYTES // _CHUNK_HASH_BYTES):
        chunk_bytes *= 2
    return chunk_bytes


def _hash_chunks(content: bytes, chunk_bytes: int) -> bytes:
    """Return the hashes of all chunks of `content`, of which the last may be shorter."""
    if len(content) <= chunk_bytes:
        return chunk_hash(content).digest()[:_CHUNK_HASH_BYTES] if content else b""
    view = memoryview(content)
    return b"".join(
        chunk_hash(view[start : start + chunk_bytes]).digest()[:_CHUNK_HASH_BYTES]
        for start in range(0, len(content), chunk_bytes)
    )


class VerifiedFiles:
    """Opens files against an expected size and checksum.

    A file is hashed when it is first used, and again when its inode, size, mtime or ctime differ, or a chunk has other
    bytes than were hashed. One that was changed just now is hashed with each read, because its times cannot tell yet
    whether it is changed again. Those who read it at the same time share that.

    A verified file stays open for a moment, since most is read again at once. Each system call is dear where there are
    threads: Python lets the others go on meanwhile, and has to wait for them then.
    """

    def __init__(self, background: SingleFlight, clock: Callable[[], float] = time.time) -> None:
        self._background = background
        self._clock = clock
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[str, _Verdict] = OrderedDict()
        #: Bytes that the verdicts take.
        self._verdicts_bytes = 0
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
            NotReadyError: hashing it takes longer than the deadline, and goes on; or it is being replaced.
            PermanentError: it has other bytes, or cannot be read.

        """
        with ExitStack() as opened:

            def anew() -> Reader:
                try:
                    descriptor = open_without_waiting(path)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise PermanentError(f"firmware: {error.strerror}") from error
                opened.callback(os.close, descriptor)
                return self.reader(descriptor, path, size, checksum, deadline)

            yield self.kept(str(path), size, checksum, anew) or anew()

    def kept(self, path: str, size: int, checksum: bytes, anew: Callable[[], Reader]) -> Reader | None:
        """The file at `path` as above, if it is open still; should it have changed, `anew` opens it once it is read."""
        kept = self._kept.get(path)
        if kept is None or kept.verdict.fingerprint.size != size or kept.verdict.digest != checksum:
            return None
        kept.is_used = True
        return _KeptFile(kept, anew, lambda: self._forget(path, kept.verdict))

    def reader(self, descriptor: int, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Reader:
        """The file at `path` as above, of which `descriptor` was opened: it stays the caller's to close.

        Raises:
            NotReadyError, PermanentError: as above; `MismatchError` where it has another size or other bytes.

        """
        fingerprint = _Fingerprint.of(descriptor)
        check_size(fingerprint.size, size)
        if not self._is_settled(fingerprint):
            with self._lock:
                queue = self._queues.setdefault((fingerprint.device, fingerprint.inode), _Queue())
            return _UnsettledFile(descriptor, checksum, deadline, queue)
        verdict = self._verdict(path, fingerprint, checksum, deadline)
        check_digest(verdict.digest, checksum)
        self._keep(path, verdict)
        return _SettledFile(descriptor, verdict, lambda: self._forget(str(path), verdict))

    def _keep(self, path: Path, verdict: _Verdict) -> None:
        """Keeps the file open, by a descriptor of its own: a lock on the other one is to end with that."""
        try:
            kept = _Kept(open_without_waiting(path), verdict)
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
            for path, kept in self._kept.items():
                kept.is_used = False
                if path in self._verdicts:
                    self._verdicts.move_to_end(path)
            self._sweeps = False
            if self._kept:
                self._sweep_soon()

    def _is_settled(self, fingerprint: _Fingerprint) -> bool:
        now = self._clock()
        return all(abs(now - changed / 1e9) > _SETTLED for changed in (fingerprint.ctime, fingerprint.mtime))

    def _verdict(self, path: Path, fingerprint: _Fingerprint, checksum: bytes, deadline: Deadline) -> _Verdict:
        with self._lock:
            known = self._verdicts.get(str(path))
            if known is not None and known.fingerprint == fingerprint:
                self._verdicts.move_to_end(str(path))
                if known.digest == checksum or time.monotonic() < known.wrong_until:
                    return known

        def hash_file() -> _Verdict:
            # Opened anew: the event that asked may be gone before this ends.
            with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotReadyError("the file is being replaced")
                verdict = _Verdict.of(file.fileno(), fingerprint)
                if _Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotReadyError("the file is being changed")
            self._remember(str(path), verdict)
            return verdict

        try:
            return self._background.result(("hash", path, fingerprint), hash_file, deadline)
        except TimeoutError as error:
            raise NotReadyError("verifying") from error
        except OSError as error:
            raise PermanentError(f"firmware: {error.strerror}") from error

    def _remember(self, path: str, verdict: _Verdict) -> None:
        with self._lock:
            self._drop(path)
            self._verdicts[path] = verdict
            self._verdicts_bytes += verdict.size
            while len(self._verdicts) > _REMEMBERED or self._verdicts_bytes > _REMEMBERED_BYTES:
                self._drop(next(iter(self._verdicts)))

    def _drop(self, path: str) -> None:
        verdict = self._verdicts.pop(path, None)
        if verdict is not None:
            self._verdicts_bytes -= verdict.size

    def _forget(self, path: str, verdict: _Verdict) -> None:
        """Have the file hashed anew by the next reader, because this verdict does not hold any more."""
        with self._lock:
            kept = self._kept.get(path)
            if kept is not None and kept.verdict is verdict:
                del self._kept[path]
            if self._verdicts.get(path) is not verdict:
                return  # another reader found the same
            self._drop(path)
        logger.warning("firmware on disk changed without a trace", extra={"fields": {"file": path}})


class _SettledFile:
    """An open file that was verified. Reads are positioned, of just the chunks that hold the block."""

    def __init__(self, descriptor: int, verdict: _Verdict, forget: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._verdict = verdict
        self._forget = forget

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: the file was changed since it was verified.
            MismatchError: it was, although its times do not tell; or `UnreadableError`.
            PermanentError: it has no such bytes.

        """
        try:
            block = self._verdict.read(self._descriptor, offset, size)
        except MismatchError:
            self._forget()
            raise
        if block is None:
            raise NotReadyError("the file is being changed")
        return block


class _Kept:
    """A descriptor of a verified file, which closes with the last reference to it."""

    def __init__(self, descriptor: int, verdict: _Verdict) -> None:
        self.descriptor = descriptor
        self.verdict = verdict
        self.is_used = True

    def __del__(self) -> None:
        os.close(self.descriptor)


class _KeptFile:
    """A verified file that is open still, for as long as it has not changed. Its times change also when it goes."""

    def __init__(self, kept: _Kept, anew: Callable[[], Reader], forget: Callable[[], None]) -> None:
        self._kept = kept
        self._anew = anew
        self._forget = forget
        self._file: Reader | None = None

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on; see `Reader.read`, and what opening it anew raises."""
        if self._file is None:
            try:
                block = self._kept.verdict.read(self._kept.descriptor, offset, size)
            except MismatchError:
                self._forget()
                block = None
            if block is not None:
                return block
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
            NotReadyError: hashing the file takes longer than the deadline.
            MismatchError: the file has other bytes.
            PermanentError: it has no such ones, or cannot be read.

        """
        mine = self._queue.joined(offset, size)
        if not self._queue.turn.acquire(timeout=self._deadline.remaining):
            raise NotReadyError("verifying")
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
        for piece in _pieces(descriptor, _PIECE_BYTES):
            digest.update(piece)
            for (offset, size), block in blocks.items():
                block += piece[max(0, offset - position) : max(0, offset + size - position)]
            position += len(piece)
            if not deadline.remaining:
                raise NotReadyError("verifying")
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
        raise PermanentError(f"firmware: {size} bytes from {offset} on are not all there")
    return block


def check_size(actual: int, size: int) -> None:
    """Raises `MismatchError` where there are not as many bytes as there should be."""
    if actual != size:
        raise MismatchError(f"size mismatch: {actual} bytes where there should be {size}")


def check_digest(digest: bytes, checksum: bytes) -> None:
    """Raises `MismatchError` where a SHA-256 is not what it should be."""
    if digest != checksum:
        raise MismatchError("digest mismatch: the bytes have another SHA-256 than they should")


def hash_of(descriptor: int) -> bytes:
    """The SHA-256 of an open file.

    Raises:
        UnreadableError: the disk does not give all of it.

    """
    digest = hashlib.sha256()
    for piece in _pieces(descriptor, _PIECE_BYTES):
        digest.update(piece)
    return digest.digest()


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield all of an open file in pieces of `size` bytes, of which only the last may be shorter."""
    position = 0
    while piece := _pread(descriptor, size, position):
        while len(piece) < size and (more := _pread(descriptor, size - len(piece), position + len(piece))):
            piece += more
        yield piece
        position += len(piece)


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise UnreadableError(f"firmware: {error.strerror}") from error
