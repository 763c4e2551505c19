"""Downloads into a part file, counted and hashed as they pass."""

import hashlib
import os

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache.part import PartFile
from fleet_fn.firmware.verified import MismatchError, check_digest, check_size


class Download:
    """The bytes of one download."""

    def __init__(self, part: PartFile, size: int) -> None:
        self.size = size
        self.written = 0
        self._part = part
        self._has_room = False
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Append `piece`.

        Raises:
            NotReadyError: the cache has no room now.
            PermanentError: there are more bytes than `size`, or they cannot be written.

        """
        if self.written + len(piece) > self.size:
            raise MismatchError(f"size mismatch: more than {self.size} bytes")
        self._digest.update(piece)
        rest = memoryview(piece)
        try:
            if not self._has_room:
                # Only now: until the first bytes arrive, no other file has to be evicted.
                self._part.reserve(self.size)
                self._has_room = True
            while rest:
                count = os.pwrite(self._part.descriptor, rest, self.written)
                self.written += count
                rest = rest[count:]
        except OSError as error:  # `fill` must not take it for an error of its source
            raise cache_error(error) from error

    def check(self, checksum: bytes) -> None:
        """Raise `MismatchError` if size or SHA-256 are not the expected ones."""
        check_size(self.written, self.size)
        check_digest(self._digest.digest(), checksum)


def cache_error(error: OSError) -> PermanentError:
    """Translate an error of the cache's file system."""
    return PermanentError(f"firmware cache: {error.strerror}")
