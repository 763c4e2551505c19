"""Racy files: changed so recently that their times cannot show a further change.

Such a file is hashed with each read, and the block that is served comes from the very bytes that were hashed. Threads
that read one file at the same time share one pass over it.
"""

import hashlib
import threading
from functools import partial
from typing import TypeAlias
from weakref import WeakValueDictionary

from fleet_fn.concurrency.turns import Turns
from fleet_fn.deadline import Deadline
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.firmware.verified.checks import check_block, check_digest
from fleet_fn.firmware.verified.fingerprint import Fingerprint
from fleet_fn.firmware.verified.hashing import PIECE_BYTES, read_pieces

#: Device and inode of a file.
Inode: TypeAlias = tuple[int, int]


class RacyFile:
    """An open racy file."""

    def __init__(self, files: "RacyFiles", descriptor: int, inode: Inode, checksum: bytes, deadline: Deadline) -> None:
        self._files = files
        self._descriptor = descriptor
        self._inode = inode
        self._checksum = checksum
        self._deadline = deadline

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: hashing the file takes longer than the deadline.
            MismatchError: the file has other bytes than it should.
            PermanentError: the file has no bytes at this offset, or cannot be read.

        """
        mine = self._files.join(self._inode, offset, size)
        with self._files.turns.take(self._inode, self._deadline):
            if mine.digest is None:
                self._files.begin(self._inode, mine)
                mine.run(self._descriptor, self._deadline)
        check_digest(mine.digest or b"", self._checksum)
        return check_block(bytes(mine.blocks[offset, size]), offset, size)


class RacyFiles:
    """The hashing passes over racy files. Safe to use from several threads.

    A pass cannot be joined once it has begun, because its bytes may be older than the read. So a thread that comes
    during a pass joins the next one, which `SingleFlight` does not offer.
    """

    def __init__(self) -> None:
        #: The thread that has the turn runs the pass that it joined, unless another thread has run it.
        self.turns: Turns[Inode] = Turns(partial(NotReadyError, "verifying"))
        self._lock = threading.Lock()
        #: Passes that have not begun, for as long as a thread waits for them.
        self._next: WeakValueDictionary[Inode, HashingPass] = WeakValueDictionary()

    def open(self, descriptor: int, fingerprint: Fingerprint, checksum: bytes, deadline: Deadline) -> RacyFile:
        """Return a reader of an open file; the caller closes the descriptor."""
        return RacyFile(self, descriptor, (fingerprint.device, fingerprint.inode), checksum, deadline)

    def join(self, inode: Inode, offset: int, size: int) -> "HashingPass":
        """Return the next pass over a file, which will have this block."""
        with self._lock:
            joined = self._next.get(inode)
            if joined is None:
                joined = self._next[inode] = HashingPass()
            joined.blocks[offset, size] = bytearray()
            return joined

    def begin(self, inode: Inode, this: "HashingPass") -> None:
        """Make later threads join another pass than `this`."""
        with self._lock:
            if self._next.get(inode) is this:
                del self._next[inode]


class HashingPass:
    """One hashing of a whole file, for all blocks that were asked for before it began."""

    def __init__(self) -> None:
        #: By offset and size.
        self.blocks: dict[tuple[int, int], bytearray] = {}
        #: None until the blocks are complete.
        self.digest: bytes | None = None

    def run(self, descriptor: int, deadline: Deadline) -> None:
        """Hash an open file.

        Raises:
            NotReadyError: it takes longer than the deadline.
            UnreadableError: the disk fails to read all of it.

        """
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
