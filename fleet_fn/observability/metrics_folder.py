"""The folder in which the worker processes of one server count together.

It serves prometheus_client's multiprocess mode.

Totals must not fall when a worker ends. So each worker has a slot, and goes on in the files of the slot's last worker.
prometheus_client would name the files by process id. Then each ended worker would leave 128 KB and add 0.25 ms of CPU
to each scrape (measured with 1,000), and each event would spend 3 us, a quarter of its counting, on asking for the id.
"""

import fcntl
import os
import shutil
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

#: The variable by which prometheus_client finds the folder. If the user sets it, the folder is emptied at the start.
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"

_PREFIX: Final = "fleet-metrics-"
#: Age from which an unlocked folder counts as left by a killed server.
_ABANDONED_SECONDS: Final = 60.0
#: Preferred place: the file system may be read-only, and a disk slow.
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - only its owner can read a folder there

_slot: int | None = None


def take_slot(slot: int) -> None:
    """Make this process count in the files of `slot`.

    No other living process may have the slot.
    """
    global _slot
    _slot = slot


def process_identifier() -> int:
    """Return the part of this process's file names: its slot, else its process id."""
    return os.getpid() if _slot is None else _slot


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

    def clean(self, slot: int) -> None:
        """Remove the gauges of a slot whose worker has ended, and its damaged files.

        A gauge tells what a living worker has. One damaged file makes each scrape fail, and keeps the slot's next
        worker from counting.

        Raises:
            OSError, ValueError, RuntimeError, struct.error: a file was damaged, so its counts are lost.

        """
        from prometheus_client.mmap_dict import MmapedDict  # late: the server itself counts nothing

        for file in self.path.glob(f"gauge_live*_{slot}.db"):
            file.unlink(missing_ok=True)
        damage: Exception | None = None
        for file in self.path.glob(f"*_{slot}.db"):
            try:
                list(MmapedDict.read_all_values_from_file(str(file)))
            except (OSError, ValueError, RuntimeError, struct.error) as error:
                damage = error
                file.unlink(missing_ok=True)
        if damage:
            raise damage

    def remove(self) -> None:
        """Remove the folder, unless the environment named it."""
        os.close(self._life)
        if self._is_ours:
            shutil.rmtree(self.path, ignore_errors=True)


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
