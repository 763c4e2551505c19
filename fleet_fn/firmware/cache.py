"""Verified bytes on disk: fetched once, shared by all processes of the pod, bounded."""

import errno
import fcntl
import hashlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.concurrency.ttl_cache import Count
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.firmware.private import UntrustedFileError, is_private, open_file
from fleet_fn.firmware.store import NotReadyError, Reader
from fleet_fn.firmware.verified import MismatchError, VerifiedFiles, check_digest, check_size, hash_file
from fleet_fn.observability.log import logger
from fleet_fn.observability.side_effects import guarded

#: Seconds that an event waits for small content to be kept, which it does not need.
_PATIENCE: Final = 0.5

#: How often, and with what pauses in seconds, a file is tried that somebody else has for a moment.
_LOCK_TRIES: Final = 50
_LOCK_PAUSE: Final = 0.001
#: How often a folder is made that is deleted at once.
_TRIES: Final = 3

#: Claims that are remembered to have been proved, and files that were marked as used.
_REMEMBERED: Final = 4096
#: Seconds between two marks of a file that is used all the time.
_MARKED_EACH: Final = 1.0
#: Bytes of a note's own checksum.
_DIGEST: Final = hashlib.sha256().digest_size

#: NAME, .NAME.FROM.part or .NAME.used
_ENTRY: Final = re.compile(
    r"(?P<dot>\.)?(?P<name>[0-9a-f]{64}(\.small)?)(?(dot)\.((?P<source>[0-9a-f]{16})\.part|used))"
)

#: Hands `write` the bytes that are wanted, piece by piece, and returns after the last.
Fill = Callable[[Callable[[bytes], object]], object]


class Cache:
    """Firmware by the SHA-256 of its bytes, and small content by a key, in files of one folder.

    Any number of caches in any number of processes of one user may share the folder. Nothing in it is needed: all of it
    may be deleted at any instant. No byte of it is trusted: firmware is verified, and files that another user owns or
    may write count as missing, as does the whole folder. What else lies in it is left alone, and not counted.
    """

    def __init__(
        self,
        folder: str | Path,
        bound: int,
        files: VerifiedFiles,
        background: SingleFlight,
        *,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A cache of at most `bound` bytes in `folder`, which is made when it is first needed.

        `count` is told with each `open` whether the bytes were there.
        """
        self.bound = bound
        self._count = guarded("count of look-ups", count)
        self._clock = clock
        self._folder = _Folder(Path(folder), bound)
        self._files = files
        self._background = background
        #: Downloads under way in this process.
        self._downloads: dict[_Wanted, _Download] = {}
        #: What sources are known to have as they claim.
        self._proved: set[_Wanted] = set()
        #: When which source was found to be away.
        self._away: dict[tuple[object, ...], tuple[float, TransientError]] = {}

    @contextmanager
    def open(
        self, size: int, checksum: bytes, source: str, fill: Fill, deadline: Deadline, *, is_claim: bool = False
    ) -> Iterator[Reader]:
        """The `size` bytes with the SHA-256 `checksum`, verified before the first is served.

        Where they are not there `fill` fetches them, in the background, once however many events and processes ask for
        them from the same `source`: what is wrong with one of several must not be in the way of the others. It has to
        come to an end by itself, and must not write after it has returned.

        Where it `is_claim` that the source has these bytes, they are served only once they were fetched from there: one
        that tells something else of itself than it has is not to be believed because others have what it tells.

        Raises:
            NotReadyError: fetching or verifying them takes longer than the deadline, and goes on; or there is no room
                while other firmware is being fetched or read.
            PermanentError: they are larger than the cache; or what was fetched is something else, or cannot be
                written; or whatever `fill` raised.
            TransientError: as `fill` raised it.

        """
        if size > self.bound:
            raise PermanentError(
                f"firmware of {size} bytes is larger than the cache (FIRMWARE_CACHE_BYTES={self.bound})"
            )
        wanted = _Wanted(checksum.hex(), size, checksum, source, is_claim)
        hit = True
        with ExitStack() as opened:

            def look() -> Reader | None:
                return self._look(wanted, deadline, opened) if self._is_proved(wanted) else None

            def fetch() -> Reader:
                nonlocal hit
                hit = False
                self._fetch(wanted, fill, deadline)
                if reader := look():
                    return reader
                raise NotReadyError("the firmware was evicted right after its download")

            def anew() -> Reader:
                return look() or fetch()

            try:
                kept = self._files.peek(f"{self._folder.path}/{wanted.name}", size, checksum, anew)
                if kept and self._is_proved(wanted):
                    self._folder.mark_still_used(wanted.name)
                    file = kept
                else:
                    file = anew()
            finally:
                if self._count:
                    self._count(hit=hit)
            yield _CachedFile(file, fetch)

    def load(self, key: str, checksum: bytes, limit: int) -> bytes | None:
        """What was saved under `key`, up to `limit` bytes with the SHA-256 `checksum`; None where that is not there."""
        content = self._folder.content(_small(key), limit)
        return content if content is not None and hashlib.sha256(content).digest() == checksum else None

    def save(self, key: str, content: bytes, deadline: Deadline) -> None:
        """Keeps `content` under `key`, if that is possible; if not, a warning is logged."""
        name, checksum = _small(key), hashlib.sha256(content).digest()
        if self.load(key, checksum, len(content)) is not None:
            return

        def keep() -> None:
            try:
                self._store(_Wanted(name, len(content), checksum), lambda write: write(content))
            except (PermanentError, NotReadyError) as error:
                logger.warning("small content is not cached", extra={"fields": {"reason": error.reason}})

        with suppress(TimeoutError):
            patience = Deadline(min(_PATIENCE, deadline.remaining))
            self._background.result(("save", self._folder.path, name), keep, patience)

    def note(self, key: str, content: bytes, deadline: Deadline) -> None:
        """Keeps what others cannot verify as `save` does, with a checksum of its own: against accidents, not malice."""
        self.save(key, hashlib.sha256(content).digest() + content, deadline)

    def noted(self, key: str, limit: int) -> bytes | None:
        """What was noted under `key`, up to `limit` bytes; None where that is not there, or damaged."""
        content = self._folder.content(_small(key), limit + _DIGEST)
        if content is None or hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            return None
        return content[_DIGEST:]

    def _look(self, wanted: "_Wanted", deadline: Deadline, opened: ExitStack) -> Reader | None:
        """The file, if it is there and good; `opened` closes it."""
        descriptor = self._folder.open(wanted.name)
        if descriptor is None:
            return None
        opened.callback(os.close, descriptor)
        path = self._folder.path / wanted.name
        try:
            return self._files.verify(descriptor, path, wanted.size, wanted.checksum, deadline)
        except PermanentError:
            return None  # whoever fetches it looks at it again, alone

    def _fetch(self, wanted: "_Wanted", fill: Fill, deadline: Deadline) -> None:
        # With the size: two that ask for different ones are told different things.
        key = ("fetch", self._folder.path, wanted)
        since, retry = self._away.get(key, (0.0, None))
        if retry and self._clock() - since < retry.quiet:
            raise copy(retry)
        try:
            self._background.result(key, lambda: self._store(wanted, fill), deadline, keeps_error=True)
        except TimeoutError as error:
            raise NotReadyError(self._progress(wanted)) from error
        except (UpstreamError, NotReadyError) as error:
            if isinstance(error, TransientError):
                self._remember_away(key, error)
            raise copy(error) from error  # others hear the same one at the same time

    def _remember_away(self, key: tuple[object, ...], error: TransientError) -> None:
        now = self._clock()
        young = {other: entry for other, entry in self._away.items() if now - entry[0] < entry[1].quiet}
        self._away = {**young, key: (now, copy(error))}

    def _store(self, wanted: "_Wanted", fill: Fill) -> None:
        """Has the file hold the right bytes, which `fill` writes if it does not.

        Raises:
            NotReadyError: there is no room now.
            PermanentError: `fill` wrote something else, or nothing can be written; or as `fill` raised it.
            TransientError: as `fill` raised it.

        """
        try:
            with self._folder.part(wanted.name, wanted.source) as part:
                is_there = self._folder.holds(wanted.name, wanted.size, wanted.checksum)
                if is_there and self._is_proved(wanted):
                    return
                download = self._downloads[wanted] = _Download(part, wanted.size)
                try:
                    fill(download.write)
                finally:
                    # If the folder was deleted, another one may have begun and ended.
                    self._downloads.pop(wanted, None)
                download.check(wanted.checksum)
                if not is_there:  # whoever reads it is not disturbed for the sake of a proof
                    part.publish()
                self._prove(wanted)
        except OSError as error:
            raise _failed(error) from error

    def _is_proved(self, wanted: "_Wanted") -> bool:
        """Whether the source is known to have what it claims, from this process or from another."""
        if not wanted.is_claim or wanted in self._proved:
            return True
        if self.noted(wanted.proof, 0) is None:
            return False
        self._remember_proved(wanted)
        return True

    def _prove(self, wanted: "_Wanted") -> None:
        if wanted.is_claim:
            self._remember_proved(wanted)
            self.note(wanted.proof, b"", Deadline(_PATIENCE))

    def _remember_proved(self, wanted: "_Wanted") -> None:
        if len(self._proved) >= _REMEMBERED:
            self._proved.clear()
        self._proved.add(wanted)

    def _progress(self, wanted: "_Wanted") -> str:
        download = self._downloads.get(wanted)
        return f"downloading, {download.written} of {download.size} bytes" if download else "downloading"


class _Wanted(NamedTuple):
    """A file of the cache, and what it should hold."""

    name: str
    #: Bytes.
    size: int
    #: SHA-256.
    checksum: bytes
    #: Where to fetch it.
    source: str = ""
    #: That the source has it is what the source says.
    is_claim: bool = False

    @property
    def proof(self) -> str:
        """The key of the note that the source has it."""
        return f"{self.name}, {self.size} bytes, in {self.source}"


class _CachedFile:
    """A file that is fetched anew where only reading it tells that somebody changed it."""

    def __init__(self, file: Reader, fetch: Callable[[], Reader]) -> None:
        self._file = file
        self._fetch = fetch

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on; see `Cache.open` and `Reader.read`."""
        try:
            return self._file.read(offset, size)
        except MismatchError:
            self._file = self._fetch()
            return self._file.read(offset, size)


class _Download:
    """Bytes on their way into a file, counted and hashed as they pass."""

    def __init__(self, part: "_Part", size: int) -> None:
        self.size = size
        self.written = 0
        self._part = part
        self._has_room = False
        self._digest = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Appends `piece`.

        Raises:
            NotReadyError: there is no room now.
            PermanentError: there are more bytes than there should be, or they cannot be written.

        """
        if self.written + len(piece) > self.size:
            raise MismatchError(f"size mismatch: more than {self.size} bytes")
        self._digest.update(piece)
        rest = memoryview(piece)
        try:
            if not self._has_room:
                # Only now: until something comes nobody else should have to go.
                self._part.reserve(self.size)
                self._has_room = True
            while rest:
                count = os.pwrite(self._part.descriptor, rest, self.written)
                self.written += count
                rest = rest[count:]
        except OSError as error:  # not for `fill` to take for its own
            raise _failed(error) from error

    def check(self, checksum: bytes) -> None:
        """Raises `MismatchError` if these are not the bytes that there should be."""
        check_size(self.written, self.size)
        check_digest(self._digest.digest(), checksum)


def _small(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest() + ".small"


def _failed(error: OSError) -> PermanentError:
    return PermanentError(f"firmware cache: {error.strerror}")


# --- The folder -------------------------------------------------------------------------------------------------------


class _Folder:
    """The files of a cache, and whose they are at the moment.

    NAME              the SHA-256 of a firmware's bytes; or of a key, with `.small`. Whoever reads it holds a shared
                      lock.
    .NAME.FROM.part   what becomes NAME, from a source by its hash; of its full size from the first byte on. Whoever
                      holds its lock writes it; where nobody does, the writer was killed.
    .NAME.used        has the time of the last use. NAME's own times have to stay as they are, to tell when it is
                      changed.
    .lock             whoever holds it may reserve room, evict, and rename.

    The locks are flock's: they go with the process that holds them.
    """

    def __init__(self, path: Path, bound: int) -> None:
        self.path = path
        self._bound = bound
        #: When the file of a name was marked as used, by the clock of `time.monotonic`.
        self._marked: dict[str, float] = {}

    def open(self, name: str) -> int | None:
        """A descriptor of the file `name`, which is not evicted while that is open; None where it cannot be had."""
        for _ in range(_LOCK_TRIES):
            try:
                descriptor = open_file(self.path, name, os.O_RDONLY)
            except OSError:
                return None
            try:
                # It may have been evicted just before. No matter: its bytes are there as long as it is open.
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # For a moment: somebody looks whether it can be evicted, or waited for the turn to write it.
                os.close(descriptor)
                time.sleep(_LOCK_PAUSE)
            except OSError:
                os.close(descriptor)
                return None
            else:
                self.mark_used(name)
                return descriptor
        return None

    def content(self, name: str, limit: int) -> bytes | None:
        """The first `limit` bytes of the file `name`; None where they cannot be had."""
        descriptor = self.open(name)
        if descriptor is None:
            return None
        try:
            return os.pread(descriptor, limit, 0)
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def holds(self, name: str, size: int, checksum: bytes) -> bool:
        """Whether the file `name` has the right bytes. One that has not goes.

        Raises:
            MismatchError: it has, and they are not `size`.
            OSError: it cannot be opened; or it has not, and cannot be removed.

        """
        path = self.path / name
        try:
            descriptor = open_file(self.path, name, os.O_RDONLY)
        except UntrustedFileError:
            pass  # goes
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a socket
                raise
        else:
            try:
                # Without a lock: should it be evicted now, somebody will miss it later.
                actual = os.fstat(descriptor).st_size
                if actual <= self._bound and _is_at(descriptor, path) and _has(descriptor, checksum):
                    check_size(actual, size)
                    return True
            finally:
                os.close(descriptor)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        return False

    @contextmanager
    def part(self, name: str, source: str) -> Iterator["_Part"]:
        """The sole right to write the file `name` from a source, once nobody else has it.

        What is not published in the end goes.

        Raises:
            OSError: nothing can be written.

        """
        path = self.path / f".{name}.{hashlib.sha256(source.encode()).hexdigest()[:16]}.part"
        # Who waits for an exclusive lock gets that of NAME, once it was renamed, and is in the way of its readers.
        with self._locked(path, fcntl.LOCK_SH) as descriptor:
            try:
                yield _Part(self, name, path, descriptor)
            finally:
                if _is_at(descriptor, path):
                    path.unlink(missing_ok=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The right to reserve room, evict and rename. For moments only.

        Raises:
            OSError: nothing can be written.

        """
        with self._locked(self.path / ".lock", fcntl.LOCK_EX):
            yield

    def make_room(self, size: int, part: Path) -> None:
        """Evicts what was used least recently until `size` bytes fit in for the file `part`. It takes a turn.

        Raises:
            NotReadyError: what would have to go is being read or written.

        """
        entries = [entry for entry in self._entries() if entry.path != part and not _is_expelled(entry)]
        excess = sum(entry.size for entry in entries) + size - self._bound
        victims = []
        for entry in sorted(entries, key=attrgetter("used")):
            if excess <= 0:
                break
            with _claimed(entry.path) as is_free:
                if is_free:
                    victims.append(entry)
                    excess -= entry.size
        # Only now, lest any go in vain.
        if excess > 0 or not all(self._evict(entry) for entry in victims):
            raise NotReadyError("the firmware cache has no room while other firmware is being fetched or read")

    def _evict(self, entry: "_Entry") -> bool:
        with _claimed(entry.path) as is_free:
            if is_free:
                entry.path.unlink(missing_ok=True)
                self._marker(entry.name).unlink(missing_ok=True)
        return is_free

    def _entries(self) -> Iterator["_Entry"]:
        with suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                match = _ENTRY.fullmatch(entry.name)
                if match is None or (match["dot"] and not match["source"]):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        # Half files go first: none goes that is being written.
                        used = 0 if match["source"] else self._last_used(match["name"])
                        yield _Entry(Path(entry.path), match["name"], status.st_size, used, is_private(status))

    def _marker(self, name: str) -> Path:
        return self.path / f".{name}.used"

    def _last_used(self, name: str) -> int:
        with suppress(OSError):
            return self._marker(name).lstat().st_mtime_ns
        return 0

    def mark_still_used(self, name: str) -> None:
        """The same as `mark_used` for whoever uses the file all the time, which is told once in a while."""
        now = time.monotonic()
        if now - self._marked.get(name, -math.inf) >= _MARKED_EACH:
            if len(self._marked) >= _REMEMBERED:
                self._marked.clear()
            self._marked[name] = now
            self.mark_used(name)

    def mark_used(self, name: str) -> None:
        """Makes the file `name` the one that was used last."""
        marker, now = self._marker(name), time.time_ns()
        with suppress(OSError):  # where nothing can be written nothing is evicted either
            try:
                os.utime(marker, ns=(now, now), follow_symlinks=False)
            except FileNotFoundError:
                os.close(open_file(self.path, marker.name, os.O_WRONLY | os.O_CREAT))
                os.utime(marker, ns=(now, now), follow_symlinks=False)

    @contextmanager
    def _locked(self, path: Path, wait: int) -> Iterator[int]:
        """A descriptor of the file at `path`, locked exclusively, and made where it is missing.

        Whoever cannot have it at once waits for it with the lock `wait`: an exclusive one, in turn with others, or a
        shared one, with which to begin again.
        """
        while True:
            descriptor = self._made(path)
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    fcntl.flock(descriptor, wait)
                    if wait == fcntl.LOCK_SH:
                        continue
                # Whoever had it may have renamed or unlinked it. Then it is another one that is to be locked.
                if _is_at(descriptor, path):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _made(self, path: Path) -> int:
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):
                for folder in reversed((self.path, *self.path.parents)):
                    if not folder.exists():
                        folder.mkdir(0o700, exist_ok=True)
                try:
                    return open_file(self.path, path.name, os.O_RDWR | os.O_CREAT)
                except UntrustedFileError:
                    path.unlink()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class _Part:
    """A file that is being written, by its sole writer."""

    def __init__(self, folder: _Folder, name: str, path: Path, descriptor: int) -> None:
        self.descriptor = descriptor
        self._folder = folder
        self._name = name
        self._path = path

    def reserve(self, size: int) -> None:
        """Takes `size` bytes of the cache and of the disk.

        Raises:
            NotReadyError: the cache has no room now.
            OSError: the disk is full.

        """
        with self._folder.turn():
            self._folder.make_room(size, self._path)
            os.ftruncate(self.descriptor, size)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            # Not every file system can; then writing tells.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def publish(self) -> None:
        """Gives the file its final name, unless somebody deleted it.

        Raises:
            OSError: it cannot be renamed.

        """
        with self._folder.turn(), suppress(FileNotFoundError):
            if _is_at(self.descriptor, self._path):
                self._folder.mark_used(self._name)
                self._path.rename(self._folder.path / self._name)
                fcntl.flock(self.descriptor, fcntl.LOCK_SH)  # to be read from now on


class _Entry(NamedTuple):
    """What takes room in the folder."""

    path: Path
    name: str
    #: Bytes.
    size: int
    #: Nanoseconds since the epoch.
    used: int
    #: Whether no other user can change it.
    is_private: bool


def _is_expelled(entry: _Entry) -> bool:
    """Remove a file that another user owns or may write: no reader of ours has it open."""
    if entry.is_private:
        return False
    with suppress(OSError):
        entry.path.unlink(missing_ok=True)
        return True
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _has(descriptor: int, checksum: bytes) -> bool:
    try:
        return hash_file(descriptor) == checksum
    except PermanentError:
        return False


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Whether nobody else uses the file at `path`; nobody does until this ends."""
    is_free = False
    with ExitStack() as opened:
        with suppress(OSError):
            descriptor = open_file(path.parent, path.name, os.O_RDWR)  # with NFS, an exclusive lock is one for writers
            opened.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = _is_at(descriptor, path)
        yield is_free
