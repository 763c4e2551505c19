"""Files and pipes: their kinds, their times, and how many of them are open."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def later() -> float:
    """A wall clock by which every file was written long ago."""
    return time.time() + 3600


def tick(path: Path) -> None:
    """Wait until the file system's clock has moved, so that the next change of the file at `path` can be seen."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns:
            return probe.unlink()


def become_fifo(path: Path) -> None:
    """Put a named pipe, which nothing is ever written to, in the place of a file."""
    path.unlink()
    os.mkfifo(path)


def open_descriptors() -> int:
    """Return how many files and sockets this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end, in blocking mode, of a pipe that is full because its reader has stalled."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    try:
        yield writing
    finally:
        os.close(reading)
        os.close(writing)
