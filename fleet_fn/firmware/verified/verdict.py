"""Verdicts: results of hashing files, against which each block read is checked."""

import hashlib
import time
from typing import Final

from fleet_fn.firmware.verified.checks import MismatchError, check_block
from fleet_fn.firmware.verified.fingerprint import Fingerprint
from fleet_fn.firmware.verified.hashing import (
    CHUNK_HASH_BYTES,
    PIECE_BYTES,
    choose_chunk_bytes,
    hash_chunks,
    pread,
    read_pieces,
)

#: A file with wrong bytes is hashed again after this multiple of the time that hashing it took: the disk may have
#: misread it, or a mapping may have repaired it without a new mtime. So wrong files cost a tenth of a core.
_WRONG_FACTOR: Final = 10


class Verdict:
    """The SHA-256 of a file, and a hash of each chunk.

    A file's times reveal most changes, but not writes through a shared mapping, nor a failing disk. So the very bytes
    of each block that is served are checked against the hashes of its chunks.
    """

    __slots__ = ("_chunk_bytes", "_chunk_hashes", "digest", "fingerprint", "wrong_until")

    def __init__(
        self, fingerprint: Fingerprint, digest: bytes, chunk_bytes: int, chunk_hashes: bytes, wrong_until: float
    ) -> None:
        self.fingerprint = fingerprint
        self.digest = digest
        #: If the digest is not the expected one, the file is hashed again from this reading of `time.monotonic` on.
        self.wrong_until = wrong_until
        self._chunk_bytes = chunk_bytes
        self._chunk_hashes = chunk_hashes

    @classmethod
    def of(cls, descriptor: int, fingerprint: Fingerprint) -> "Verdict":
        """Hash the whole open file.

        Raises:
            UnreadableError: the disk fails to read all of it.

        """
        began, chunk_bytes = time.monotonic(), choose_chunk_bytes(fingerprint.size)
        digest, hashes = hashlib.sha256(), bytearray()
        for piece in read_pieces(descriptor, max(PIECE_BYTES, chunk_bytes)):
            digest.update(piece)
            hashes += hash_chunks(piece, chunk_bytes)
        ended = time.monotonic()
        return cls(fingerprint, digest.digest(), chunk_bytes, bytes(hashes), ended + _WRONG_FACTOR * (ended - began))

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""
        return len(self._chunk_hashes)

    def read(self, descriptor: int, offset: int, size: int) -> bytes | None:
        """Return `size` bytes of the open file, or None if its fingerprint has changed.

        Raises:
            MismatchError: the bytes differ from those that were hashed; or `UnreadableError`.
            PermanentError: the file has no such bytes.

        """
        chunk_bytes = self._chunk_bytes
        first = offset // chunk_bytes
        start = first * chunk_bytes
        chunks = -(-(offset + size) // chunk_bytes) - first
        read = pread(descriptor, chunks * chunk_bytes, start)
        if Fingerprint.of(descriptor) != self.fingerprint:
            return None
        at = first * CHUNK_HASH_BYTES
        hashes = hash_chunks(read, chunk_bytes)
        if hashes != self._chunk_hashes[at : at + chunks * CHUNK_HASH_BYTES]:
            raise MismatchError("digest mismatch: the bytes are not those that were verified")
        return check_block(read[offset - start : offset - start + size], offset, size)
