"""Racy files: changed so recently that their times cannot show a further change.

Such a file is hashed with each read, and the block that is served comes from the very bytes that were hashed. Threads
that read one file at the same time share one pass over it.
"""

import hashlib
import threading
from weakref import WeakValueDictionary

from fleet_fn.deadline import Deadline
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.firmware.verified.checks import check_block, check_digest
from fleet_fn.firmware.verified.fingerprint import Fingerprint
from fleet_fn.firmware.verified.hashing import PIECE_BYTES, read_pieces


class RacyFile:
    """An open racy file."""

    def __init__(self, descriptor: int, checksum: bytes, deadline: Deadline, queue: "_HashingQueue") -> None:
        self._descriptor = descriptor
        self._checksum = checksum
        self._deadline = deadline
        self._queue = queue

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: hashing the file takes longer than the deadline.
            MismatchError: the file has other bytes than it should.
            PermanentError: the file has no bytes at this offset, or cannot be read.

        """
        mine = self._queue.join(offset, size)
        if not self._queue.turn.acquire(timeout=self._deadline.remaining):
            raise NotReadyError("verifying")
        try:
            if mine.digest is None:
                self._queue.begin(mine)
                mine.run(self._descriptor, self._deadline)
        finally:
            self._queue.turn.release()
        check_digest(mine.digest or b"", self._checksum)
        return check_block(bytes(mine.blocks[offset, size]), offset, size)


class RacyFiles:
    """One hashing queue for each racy file that is open. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By device and inode, for as long as a thread has the file open.
        self._queues: WeakValueDictionary[tuple[int, int], _HashingQueue] = WeakValueDictionary()

    def open(self, descriptor: int, fingerprint: Fingerprint, checksum: bytes, deadline: Deadline) -> RacyFile:
        """Return a reader of an open file; the caller closes the descriptor."""
        with self._lock:
            queue = self._queues.setdefault((fingerprint.device, fingerprint.inode), _HashingQueue())
        return RacyFile(descriptor, checksum, deadline, queue)


class _HashingPass:
    """One hashing of a whole file, which collects all blocks that were asked for before it began."""

    def __init__(self) -> None:
        self.blocks: dict[tuple[int, int], bytearray] = {}
        #: None until the blocks are complete.
        self.digest: bytes | None = None

    def run(self, descriptor: int, deadline: Deadline) -> None:
        digest, position = hashlib.sha256(), 0
        blocks = {wanted: bytearray() for wanted in self.blocks}
        for piece in read_pieces(descriptor, PIECE_BYTES):
            digest.update(piece)
            for (offset, size), block in blocks.items():
                block += piece[max(0, offset - position) : max(0, offset + size - position)]
            position += len(piece)
            if not deadline.remaining:
                raise NotReadyError("verifying")
        self.blocks, self.digest = blocks, digest.digest()


class _HashingQueue:
    """The threads that wait for blocks of one racy file. A thread that comes during a pass joins the next one."""

    def __init__(self) -> None:
        #: The thread that holds it runs the pass that it joined, unless another thread has run it.
        self.turn = threading.Lock()
        self._lock = threading.Lock()
        self._next = _HashingPass()

    def join(self, offset: int, size: int) -> _HashingPass:
        with self._lock:
            self._next.blocks[offset, size] = bytearray()
            return self._next

    def begin(self, this: _HashingPass) -> None:
        with self._lock:
            if self._next is this:
                self._next = _HashingPass()
