"""Small content by key: manifests, configs, and notes."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.cache.blob import Blob, Fill
from fleet_fn.firmware.cache.folder import CacheFolder
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.observability.log import logger

#: Wait for saving; an event does not need its result.
SAVE_TIMEOUT_SECONDS: Final = 0.5
#: Size of a note's own checksum.
_DIGEST_BYTES: Final = hashlib.sha256().digest_size


class SmallFiles:
    """The small content of a cache. Safe to use from several threads."""

    def __init__(
        self,
        folder: CacheFolder,
        single_flight: SingleFlight,
        store: Callable[[Blob, Fill], None],
    ) -> None:
        """Create the small files of a cache; `store` writes a file of it."""
        self._folder = folder
        self._single_flight = single_flight
        self._store = store

    def load(self, key: str, checksum: bytes, limit: int) -> bytes | None:
        """Return the content saved under `key`, or None.

        Return None if its SHA-256 is not `checksum`, or if it is over `limit` bytes.
        """
        content = self._folder.read(_name(key), limit)
        return content if content is not None and hashlib.sha256(content).digest() == checksum else None

    def save(self, key: str, content: bytes, deadline: Deadline) -> None:
        """Save `content` under `key`; log a warning if that fails."""
        name, checksum = _name(key), hashlib.sha256(content).digest()
        if self.load(key, checksum, len(content)) is not None:
            return

        def store() -> None:
            try:
                self._store(Blob(name, len(content), checksum), lambda write: write(content))
            except (PermanentError, NotReadyError) as error:
                _warn(error.reason)

        timeout = Deadline(min(SAVE_TIMEOUT_SECONDS, deadline.remaining))
        try:
            with suppress(StillRunningError):
                self._single_flight.result(("save", self._folder.path, name), store, timeout)
        except TransientError as error:  # no thread can be started
            _warn(error.reason)

    def load_note(self, key: str, limit: int) -> bytes | None:
        """Return the note under `key`, up to `limit` bytes; None if missing or damaged."""
        content = self._folder.read(_name(key), limit + _DIGEST_BYTES)
        if content is None or hashlib.sha256(content[_DIGEST_BYTES:]).digest() != content[:_DIGEST_BYTES]:
            return None
        return content[_DIGEST_BYTES:]

    def save_note(self, key: str, content: bytes, deadline: Deadline) -> None:
        """Save content of unknown checksum as `save` does.

        The note's own checksum reveals damage, but no malice.
        """
        self.save(key, hashlib.sha256(content).digest() + content, deadline)


def _warn(reason: str) -> None:
    logger.warning("small content is not cached", extra={"fields": {"reason": reason}})


def _name(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() + ".small"
