"""The folder in which the worker processes of one server count together, as prometheus_client has it.

What a worker has counted stays when it ends, or sums would fall: then it is added to that of others who have ended.
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

#: The variable by which prometheus_client finds the folder. Whoever sets it names one that is emptied at the start.
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

_PREFIX: Final = "fleet-metrics-"
_LOCK: Final = "lock"
#: What the sums of workers that have ended are called, in the place of a process id.
_ENDED: Final = "ended"
_KINDS: Final = ("counter", "histogram")
#: Seconds after which a folder that nobody has locked is one that a killed server has left.
_LEFT: Final = 60.0
#: In memory where that can be had: the file system may be read-only, and a disk slow.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what is made there is its maker's alone


class Folder:
    """The folder of one server, for as long as that runs."""

    def __init__(self) -> None:
        """An empty folder, which processes that are forked from now on find.

        Raises:
            OSError: none can be made.

        """
        given = os.environ.get(FOLDER, "")
        self._is_ours = not given or Path(given).name.startswith(_PREFIX)
        if self._is_ours:
            parent = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
            _remove_left(parent)
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
        """Adds what a process has counted, which has ended, to the sums of those before it.

        Raises:
            OSError, ValueError, RuntimeError, struct.error: some of it was left half-written, or cannot be added.

        """
        with locked(self.path, fcntl.LOCK_EX), ExitStack() as each:
            for kind in _KINDS:
                each.callback(self._end, kind, pid)  # whatever becomes of the others

    def _end(self, kind: str, pid: int) -> None:
        from prometheus_client.mmap_dict import MmapedDict  # the server itself counts nothing

        from fleet_fn.observability.metrics_file import ReservedDict

        file = self.path / f"{kind}_{pid}.db"
        if not file.exists():
            return
        try:
            counted = list(MmapedDict.read_all_values_from_file(str(file)))  # all, or nothing of it is added
            sums: Any = ReservedDict(str(self.path / f"{kind}_{_ENDED}.db"))
            for key, value, _, _ in counted:
                sums.write_value(key, sums.read_value(key)[0] + value, 0.0)
            sums.close()
        finally:
            file.unlink()  # also one that cannot be read: each scrape would come to nothing for it

    def remove(self) -> None:
        """Removes the folder, unless somebody else named it."""
        os.close(self._life)
        if self._is_ours:
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def locked(folder: Path, operation: int) -> Iterator[None]:
    """The lock between those who read all files of a folder and those who remove some."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _remove_left(parent: Path) -> None:
    """Removes the folders of servers that were killed."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime < _LEFT or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / ".life", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
