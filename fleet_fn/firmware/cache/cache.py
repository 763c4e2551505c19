"""Firmware by the SHA-256 of its bytes, fetched once and verified each time."""

import os
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.concurrency.ttl_cache import Count
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.firmware.cache.blob import Blob, Fill
from fleet_fn.firmware.cache.download import Download, cache_error
from fleet_fn.firmware.cache.folder import CacheFolder
from fleet_fn.firmware.cache.proofs import Proofs
from fleet_fn.firmware.cache.small_files import SmallFiles
from fleet_fn.firmware.store import NotReadyError, Reader
from fleet_fn.firmware.verified import MismatchError, VerifiedFiles
from fleet_fn.observability.side_effects import guard


class Cache:
    """Firmware by the SHA-256 of its bytes, and small content by a key, in one folder.

    Any number of caches in any number of processes of one user may share the folder. All of it may be deleted at any
    time, at no loss but time. No byte of it is trusted: firmware is verified, and files that another user owns or may
    write count as missing, as does the whole folder. Other files in it are neither touched nor counted.
    """

    def __init__(
        self,
        folder: str | Path,
        bound: int,
        files: VerifiedFiles,
        single_flight: SingleFlight,
        *,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a cache of at most `bound` bytes in `folder`.

        The folder is created when it is first needed. `count` is called for each `open` with whether it was a hit.
        """
        self.bound = bound
        self._count = guard("count of look-ups", count)
        self._clock = clock
        self._folder = CacheFolder(Path(folder), bound)
        self._files = files
        self._single_flight = single_flight
        #: Manifests, configs and notes.
        self.small_files = SmallFiles(self._folder, single_flight, self._store)
        self._proofs = Proofs(self.small_files)
        #: Downloads in progress in this process.
        self._downloads: dict[Blob, Download] = {}
        #: When which source was found to be unavailable, by this cache's clock.
        self._unavailable: dict[tuple[object, ...], tuple[float, TransientError]] = {}

    def open(
        self, size: int, checksum: bytes, source: str, fill: Fill, deadline: Deadline, *, is_claim: bool = False
    ) -> "_OpenBlob":
        """Open `size` bytes with the SHA-256 `checksum`, verified before any is served.

        If they are missing, `fill` fetches them in the background, once for all events and processes that need them
        from the same `source`. Each source has its own download, so that a faulty one does not delay the others. `fill`
        has to end by itself, and must not write after it has returned.

        If `is_claim` is set, only the source itself says that it has these bytes. They are then served only after they
        were once fetched from it: a wrong claim must not be served because another source has the bytes.

        Raises:
            NotReadyError: fetching or verifying takes longer than the deadline, and goes on; or there is no room while
                other firmware is being fetched or read.
            PermanentError: the firmware is larger than the cache; or the fetched bytes are wrong, or cannot be written;
                or `fill` raised it.
            TransientError: `fill` raised it.

        """
        if size > self.bound:
            raise PermanentError(
                f"firmware of {size} bytes is larger than the cache (FIRMWARE_CACHE_BYTES={self.bound})"
            )
        return _OpenBlob(self, Blob(checksum.hex(), size, checksum, source, is_claim), fill, deadline)

    def peek(self, blob: Blob, reopen: Callable[[], Reader]) -> Reader | None:
        """Return a reader of a blob whose file is still open, or None.

        If a read finds the file changed, it calls `reopen`.
        """
        file = self._files.peek(f"{self._folder.path}/{blob.name}", blob.size, blob.checksum, reopen)
        if file is None or not self._proofs.is_proved(blob):
            return None
        self._folder.usage.mark_still_used(blob.name)
        return file

    def find(self, blob: Blob, deadline: Deadline, descriptors: list[int]) -> Reader | None:
        """Open a blob's file if it is there and verified; the caller closes `descriptors`.

        Raises:
            NotReadyError: verifying takes longer than the deadline.

        """
        descriptor = self._folder.open(blob.name) if self._proofs.is_proved(blob) else None
        if descriptor is None:
            return None
        descriptors.append(descriptor)
        path = self._folder.path / blob.name
        try:
            return self._files.verify(descriptor, path, blob.size, blob.checksum, deadline)
        except PermanentError:
            return None  # `_store` checks it again, under the lock, before it is fetched

    def fetch(self, blob: Blob, fill: Fill, deadline: Deadline) -> None:
        """Fetch a blob from its source; see `open`.

        Raises:
            NotReadyError, PermanentError, TransientError: it is not there.

        """
        # The key contains the expected size: threads that expect different sizes get different errors.
        key = ("fetch", self._folder.path, blob)
        since, error_before = self._unavailable.get(key, (0.0, None))
        if error_before and self._clock() - since < error_before.negative_ttl:
            raise copy(error_before)
        try:
            self._single_flight.result(key, lambda: self._store(blob, fill), deadline, keeps_error=True)
        except StillRunningError as error:
            raise NotReadyError(self._describe_progress(blob)) from error
        except (UpstreamError, NotReadyError) as error:
            if isinstance(error, TransientError):
                self._remember_unavailable(key, error)
            raise copy(error) from error  # other threads raise the same error at the same time

    def count(self, *, hit: bool) -> None:
        """Count an opening."""
        if self._count:
            self._count(hit=hit)

    def _remember_unavailable(self, key: tuple[object, ...], error: TransientError) -> None:
        now = self._clock()
        recent = {other: entry for other, entry in self._unavailable.items() if now - entry[0] < entry[1].negative_ttl}
        self._unavailable = {**recent, key: (now, copy(error))}

    def _store(self, blob: Blob, fill: Fill) -> None:
        """Make sure that the file has the right bytes; `fill` writes them if it has not.

        Raises:
            NotReadyError: the cache has no room now.
            PermanentError: `fill` wrote wrong bytes, or they cannot be written; or `fill` raised it.
            TransientError: `fill` raised it.

        """
        try:
            with self._folder.part(blob.name, blob.source) as part:
                is_there = self._folder.check_or_remove(blob.name, blob.size, blob.checksum)
                if is_there and self._proofs.is_proved(blob):
                    return
                download = self._downloads[blob] = Download(part, blob.size)
                try:
                    fill(download.write)
                finally:
                    # If the folder was deleted, another download of the same blob may have begun and ended.
                    self._downloads.pop(blob, None)
                download.check(blob.checksum)
                if not is_there:  # an intact file is not replaced for the sake of a proof: it may have readers
                    part.publish()
                self._proofs.add(blob)
        except OSError as error:
            raise cache_error(error) from error

    def _describe_progress(self, blob: Blob) -> str:
        download = self._downloads.get(blob)
        return f"downloading, {download.written} of {download.size} bytes" if download else "downloading"


class _OpenBlob:
    """A blob that is open while a `with` statement lasts, fetched if need be.

    It is fetched again if a read finds changed bytes.
    """

    __slots__ = ("_blob", "_cache", "_deadline", "_descriptors", "_file", "_fill", "_is_hit")

    def __init__(self, cache: Cache, blob: Blob, fill: Fill, deadline: Deadline) -> None:
        self._cache = cache
        self._blob = blob
        self._fill = fill
        self._deadline = deadline
        self._descriptors: list[int] = []
        self._is_hit = True

    def __enter__(self) -> Reader:
        try:
            self._file = self._cache.peek(self._blob, self._reopen) or self._reopen()
        except BaseException:
            self.__exit__()
            raise
        finally:
            self._cache.count(hit=self._is_hit)
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` (see `Cache.open` and `Reader.read`)."""
        try:
            return self._file.read(offset, size)
        except MismatchError:
            self._file = self._fetch()
            return self._file.read(offset, size)

    def _reopen(self) -> Reader:
        return self._find() or self._fetch()

    def _find(self) -> Reader | None:
        return self._cache.find(self._blob, self._deadline, self._descriptors)

    def _fetch(self) -> Reader:
        self._is_hit = False
        self._cache.fetch(self._blob, self._fill, self._deadline)
        if reader := self._find():
            return reader
        raise NotReadyError("the firmware was evicted right after its download")
