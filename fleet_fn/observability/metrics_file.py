"""The file in which a worker process counts, with reserved space.

prometheus_client maps sparse files into memory. If the file system has no space for a page of such a file, the kernel
ends the process that writes to it (SIGBUS). With reserved space, the file fails when it is made or grows instead.
"""

import os
from pathlib import Path

from prometheus_client.mmap_dict import _INITIAL_MMAP_SIZE, MmapedDict

#: Bytes of a value in the file, without its key; rounded up.
_VALUE_BYTES = 64


class ReservedDict(MmapedDict):
    """A dict of numbers in a file.

    Raises:
        OSError: the file system has no space for the file, or for one more value.

    """

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode and not Path(filename).exists():
            _make(Path(filename))
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + _VALUE_BYTES > self._capacity:
            os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _make(path: Path) -> None:
    """Make a file without values, which appears with all of its space.

    A scrape fails if it finds an empty file.
    """
    unfinished = path.with_suffix(".new")
    try:
        with unfinished.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _INITIAL_MMAP_SIZE)
        unfinished.rename(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
