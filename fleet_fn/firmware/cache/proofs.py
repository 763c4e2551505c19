"""Proofs that a source has the bytes that it claims to have."""

from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.firmware.cache.blob import Blob
from fleet_fn.firmware.cache.small_files import SAVE_TIMEOUT_SECONDS, SmallFiles

#: Bound of the proofs that are remembered in memory.
_MAX_PROOFS: Final = 4096


class Proofs:
    """The proven claims of sources. Each is a note in the cache, remembered in memory."""

    def __init__(self, notes: SmallFiles) -> None:
        self._notes = notes
        self._proved: set[Blob] = set()

    def is_proved(self, blob: Blob) -> bool:
        """Return whether any process once fetched the bytes from the source claiming them."""
        if not blob.is_claim or blob in self._proved:
            return True
        if self._notes.load_note(blob.proof_key, 0) is None:
            return False
        self._remember(blob)
        return True

    def add(self, blob: Blob) -> None:
        """Record that the source has the bytes that it claims to have."""
        if blob.is_claim:
            self._remember(blob)
            self._notes.save_note(blob.proof_key, b"", Deadline(SAVE_TIMEOUT_SECONDS))

    def _remember(self, blob: Blob) -> None:
        if len(self._proved) >= _MAX_PROOFS:
            self._proved.clear()
        self._proved.add(blob)
