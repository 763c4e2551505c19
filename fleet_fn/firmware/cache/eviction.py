"""Eviction of the files that were not used for longest."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple

from fleet_fn.firmware.cache.locks import try_lock
from fleet_fn.firmware.cache.usage import UsageMarkers
from fleet_fn.firmware.private import is_private
from fleet_fn.firmware.store import NotReadyError

#: NAME, .NAME.FROM.part or .NAME.used
_ENTRY: Final = re.compile(
    r"(?P<dot>\.)?(?P<name>[0-9a-f]{64}(\.small)?)(?(dot)\.((?P<source>[0-9a-f]{16})\.part|used))"
)


class Eviction:
    """Keeps the files of one folder within a bound."""

    def __init__(self, folder: Path, bound: int, usage: UsageMarkers) -> None:
        self._folder = folder
        self._bound = bound
        self._usage = usage

    def make_room(self, size: int, part: Path) -> None:
        """Evict files until `size` bytes fit in for the file `part`.

        The caller holds the folder's lock.

        Raises:
            NotReadyError: the files to be evicted are being read or written.

        """
        entries = [entry for entry in self._entries() if entry.path != part and not _remove_untrusted(entry)]
        excess = sum(entry.size for entry in entries) + size - self._bound
        victims = []
        for entry in sorted(entries, key=attrgetter("used")):
            if excess <= 0:
                break
            with try_lock(entry.path) as is_free:
                if is_free:
                    victims.append(entry)
                    excess -= entry.size
        # Evicted only now: if there is not enough room, no file is evicted in vain.
        if excess > 0 or not all(self._evict(entry) for entry in victims):
            raise NotReadyError("the firmware cache has no room while other firmware is being fetched or read")

    def _evict(self, entry: "_Entry") -> bool:
        with try_lock(entry.path) as is_free:
            if is_free:
                entry.path.unlink(missing_ok=True)
                self._usage.remove(entry.name)
        return is_free

    def _entries(self) -> Iterator["_Entry"]:
        with suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                match = _ENTRY.fullmatch(entry.name)
                if match is None or (match["dot"] and not match["source"]):
                    continue
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        # Half files go first; a lock protects those that are being written.
                        used = 0 if match["source"] else self._usage.last_used(match["name"])
                        yield _Entry(Path(entry.path), match["name"], status.st_size, used, is_private(status))


class _Entry(NamedTuple):
    """A file that takes room in the folder."""

    path: Path
    name: str
    #: Bytes.
    size: int
    #: Nanoseconds since the epoch.
    used: int
    #: Whether no other user can change it.
    is_private: bool


def _remove_untrusted(entry: _Entry) -> bool:
    """Remove a file that another user owns or may write.

    No reader of ours has it open.
    """
    if entry.is_private:
        return False
    with suppress(OSError):
        entry.path.unlink(missing_ok=True)
        return True
    return False
