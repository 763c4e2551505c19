"""Names and expected content of the cache's files."""

from collections.abc import Callable
from typing import NamedTuple

#: Passes all bytes of a blob to `write`, piece by piece, and returns after the last.
Fill = Callable[[Callable[[bytes], object]], object]


class Blob(NamedTuple):
    """A file of the cache, and the content that it should have."""

    name: str
    #: Bytes.
    size: int
    #: SHA-256.
    checksum: bytes
    #: Repository to fetch it from.
    source: str = ""
    #: The source itself claims to have these bytes, and may lie.
    is_claim: bool = False

    @property
    def proof_key(self) -> str:
        """Key of the note which proves that the source has these bytes."""
        return f"{self.name}, {self.size} bytes, in {self.source}"
