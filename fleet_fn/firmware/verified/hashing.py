"""SHA-256 of whole files and of their chunks."""

import hashlib
import os
from collections.abc import Iterator
from hashlib import sha256 as chunk_hash
from typing import Final

from fleet_fn.firmware.verified.checks import UnreadableError

#: Size of each read while hashing: small, because many threads may hash at once.
PIECE_BYTES: Final = 256 * 1024
#: Size of a chunk that has its own hash. From 2,048 bytes on hashlib releases Python's lock, which costs a thread more
#: than the hashing. Chunks double until the hashes of one file take at most `_MAX_CHUNK_HASHES_BYTES`.
_CHUNK_BYTES: Final = 1024
CHUNK_HASH_BYTES: Final = 16
_MAX_CHUNK_HASHES_BYTES: Final = 1024 * 1024


def hash_file(descriptor: int) -> bytes:
    """Return the SHA-256 of an open file.

    Raises:
        UnreadableError: the disk fails to read all of it.

    """
    digest = hashlib.sha256()
    for piece in read_pieces(descriptor, PIECE_BYTES):
        digest.update(piece)
    return digest.digest()


def choose_chunk_bytes(size: int) -> int:
    """Return the size of the chunks of a file of `size` bytes."""
    chunk_bytes = _CHUNK_BYTES
    while size > chunk_bytes * (_MAX_CHUNK_HASHES_BYTES // CHUNK_HASH_BYTES):
        chunk_bytes *= 2
    return chunk_bytes


def hash_chunks(content: bytes, chunk_bytes: int) -> bytes:
    """Return the hashes of all chunks of `content`, of which the last may be shorter."""
    if len(content) <= chunk_bytes:
        return chunk_hash(content).digest()[:CHUNK_HASH_BYTES] if content else b""
    view = memoryview(content)
    return b"".join(
        chunk_hash(view[start : start + chunk_bytes]).digest()[:CHUNK_HASH_BYTES]
        for start in range(0, len(content), chunk_bytes)
    )


def read_pieces(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield all of an open file in pieces of `size` bytes; the last may be shorter.

    Raises:
        UnreadableError: the disk fails to read all of it.

    """
    position = 0
    while piece := pread(descriptor, size, position):
        while len(piece) < size and (more := pread(descriptor, size - len(piece), position + len(piece))):
            piece += more
        yield piece
        position += len(piece)


def pread(descriptor: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes from `offset` on.

    Raises:
        UnreadableError: the disk fails.

    """
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise UnreadableError(f"firmware: {error.strerror}") from error
