"""Change files so that their times do not show it, as a shared writable mapping or a failing disk does."""

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Mapped:
    """A file in a shared writable mapping, all of whose pages are dirty already.

    The kernel moves a file's times when it first makes a page writable, and not with the writes after that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._map[:] = self._map[:]

    def flip(self, position: int, bits: int = 1) -> bool:
        """Change one byte; return whether the file's times stand still.

        They nearly always do. They move if the kernel wrote the page out just before.
        """
        before = self._path.stat()
        self._map[position] ^= bits
        after = self._path.stat()
        return (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)

    def close(self) -> None:
        self._map.close()


@contextmanager
def mapped(path: Path) -> Iterator[Mapped]:
    """Map the file at `path`, so that it can be changed without a trace."""
    mapping = Mapped(path)
    try:
        yield mapping
    finally:
        mapping.close()
