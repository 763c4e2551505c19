"""Opens files against an expected size and checksum."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.files import open_without_waiting
from fleet_fn.firmware.store import NotReadyError, Reader
from fleet_fn.firmware.verified.checks import MismatchError, check_digest, check_size
from fleet_fn.firmware.verified.fingerprint import Fingerprint
from fleet_fn.firmware.verified.open_files import OpenFileReader, OpenFiles
from fleet_fn.firmware.verified.racy import RacyFiles
from fleet_fn.firmware.verified.verdict import Verdict
from fleet_fn.firmware.verified.verdict_cache import VerdictCache
from fleet_fn.observability.log import logger


class VerifiedFiles:
    """Opens files against an expected size and checksum.

    A file is hashed when it is first used. It is hashed again if its fingerprint differs, or if a chunk differs from
    the bytes that were hashed. A racy file is hashed with each read. A verified file stays open for a moment.
    """

    def __init__(self, single_flight: SingleFlight, clock: Callable[[], float] = time.time) -> None:
        self._single_flight = single_flight
        self._clock = clock
        self._verdicts = VerdictCache()
        self._open_files = OpenFiles(self._verdicts.mark_used)
        self._racy_files = RacyFiles()

    @contextmanager
    def open(self, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Iterator[Reader]:
        """Open the file at `path`, if it has `size` bytes and the SHA-256 `checksum`.

        Raises:
            FileNotFoundError: there is no such file.
            NotReadyError: hashing it takes longer than the deadline, and goes on; or it is being replaced.
            PermanentError: it has other bytes, or cannot be read.

        """
        with ExitStack() as opened:

            def reopen() -> Reader:
                try:
                    descriptor = open_without_waiting(path)
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise PermanentError(f"firmware: {error.strerror}") from error
                opened.callback(os.close, descriptor)
                return self.verify(descriptor, path, size, checksum, deadline)

            yield self.peek(str(path), size, checksum, reopen) or reopen()

    def peek(self, path: str, size: int, checksum: bytes, reopen: Callable[[], Reader]) -> Reader | None:
        """Return a reader of the file if it is still open, or None.

        If a read finds the file changed, it calls `reopen`.
        """
        file = self._open_files.get(path)
        if file is None or file.verdict.fingerprint.size != size or file.verdict.digest != checksum:
            return None
        file.is_used = True
        return OpenFileReader(file, reopen, lambda: self._forget(path, file.verdict))

    def verify(self, descriptor: int, path: Path, size: int, checksum: bytes, deadline: Deadline) -> Reader:
        """Verify the open file at `path`, and return a reader.

        The caller closes `descriptor` afterwards.

        Raises:
            NotReadyError, PermanentError: see `open`; `MismatchError` if it has another size or other bytes.

        """
        fingerprint = Fingerprint.of(descriptor)
        check_size(fingerprint.size, size)
        if fingerprint.is_racy(self._clock()):
            return self._racy_files.open(descriptor, fingerprint, checksum, deadline)
        verdict = self._verdict(path, fingerprint, checksum, deadline)
        check_digest(verdict.digest, checksum)
        self._open_files.open(path, verdict)
        return _VerifiedFile(descriptor, verdict, lambda: self._forget(str(path), verdict))

    def _verdict(self, path: Path, fingerprint: Fingerprint, checksum: bytes, deadline: Deadline) -> Verdict:
        known = self._verdicts.get(str(path), fingerprint, checksum)
        if known is not None:
            return known

        def hash_again() -> Verdict:
            # Opened once more: the event that asked may end, and close its descriptor, before this ends.
            with open(path, "rb", buffering=0, opener=open_without_waiting) as file:
                if Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotReadyError("the file is being replaced")
                verdict = Verdict.of(file.fileno(), fingerprint)
                if Fingerprint.of(file.fileno()) != fingerprint:
                    raise NotReadyError("the file is being changed")
            self._verdicts.put(str(path), verdict)
            return verdict

        try:
            return self._single_flight.result(("hash", path, fingerprint), hash_again, deadline)
        except StillRunningError as error:
            raise NotReadyError("verifying") from error
        except OSError as error:
            raise PermanentError(f"firmware: {error.strerror}") from error

    def _forget(self, path: str, verdict: Verdict) -> None:
        """Make the next reader hash the file again: this verdict does not hold any more."""
        self._open_files.remove(path, verdict)
        if self._verdicts.remove(path, verdict):  # False if another reader found the same
            logger.warning("firmware on disk changed without a trace", extra={"fields": {"file": path}})


class _VerifiedFile:
    """An open file that was verified. Each read checks the chunks that hold the block."""

    def __init__(self, descriptor: int, verdict: Verdict, forget: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._verdict = verdict
        self._forget = forget

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: the file was changed since it was verified.
            MismatchError: it was changed, although its times do not show it; or `UnreadableError`.
            PermanentError: the file has no such bytes.

        """
        try:
            block = self._verdict.read(self._descriptor, offset, size)
        except MismatchError:
            self._forget()
            raise
        if block is None:
            raise NotReadyError("the file is being changed")
        return block
