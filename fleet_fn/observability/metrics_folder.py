"""The folder in which the worker processes of one server count together (prometheus_client's multiprocess mode).

Totals must not fall when a worker ends. So the server adds its counts to those of the workers that ended before.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

#: The variable by which prometheus_client finds the folder. If the user sets it, the folder is emptied at the start.
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

_PREFIX: Final = "fleet-metrics-"
_LOCK: Final = "lock"
#: Stands for the process id in the names of the files that have the sums of workers that ended.
_ENDED: Final = "ended"
_KINDS: Final = ("counter", "histogram")
#: Age from which an unlocked folder counts as left by a killed server.
_ABANDONED_SECONDS: Final = 60.0
#: Preferred place: the file system may be read-only, and a disk slow.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only its owner can read a folder there


class Folder:
    """The metrics folder of one server, as long as the server runs."""

    def __init__(self) -> None:
        """Make an empty folder, which processes forked from now on use.

        Raises:
            OSError: the folder cannot be made.

        """
        given = os.environ.get(FOLDER, "")
        self._is_ours = not given or Path(given).name.startswith(_PREFIX)
        if self._is_ours:
            parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
            _remove_abandoned(parent)
            self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        else:
            self.path = Path(given)
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.path.glob("*.db"):
                file.unlink()
        self._life = os.open(self.path / ".life", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._life, fcntl.LOCK_SH)
        os.environ[FOLDER] = str(self.path)

    def end_worker(self, pid: int) -> None:
        """Add the counts of a worker that has ended to the sums of the workers before it.

        Raises:
            OSError, ValueError, RuntimeError, struct.error: a file is half-written, or its counts cannot be added.

        """
        with lock_folder(self.path, fcntl.LOCK_EX), ExitStack() as each:
            for kind in _KINDS:
                each.callback(self._end, kind, pid)  # even if another kind fails

    def _end(self, kind: str, pid: int) -> None:
        from prometheus_client.mmap_dict import MmapedDict  # late: the server itself counts nothing

        from fleet_fn.observability.metrics_file import ReservedDict

        file = self.path / f"{kind}_{pid}.db"
        if not file.exists():
            return
        try:
            counted = list(MmapedDict.read_all_values_from_file(str(file)))  # read all before anything is added
            sums: Any = ReservedDict(str(self.path / f"{kind}_{_ENDED}.db"))
            for key, value, _, _ in counted:
                sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
            sums.close()
        finally:
            file.unlink()  # an unreadable file too: it would make each scrape fail

    def remove(self) -> None:
        """Remove the folder, unless the environment named it."""
        os.close(self._life)
        if self._is_ours:
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path, operation: int) -> Iterator[None]:
    """Hold the lock that keeps scrapes, which read all files, apart from the removal of files."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of killed servers."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < _ABANDONED_SECONDS or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / ".life", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
