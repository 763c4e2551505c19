"""Open files that may be devices or FIFOs, and read small ones."""

import os
from pathlib import Path

from fleet_fn.errors import PermanentError


def open_without_waiting(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a file (an `opener` for `open`) without waiting for a FIFO's other end."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def read_small(path: Path, limit: int, name: str) -> bytes:
    """Return the content of a file of at most `limit` bytes; reasons call it `name`.

    Raises:
        OSError: the file cannot be read.
        PermanentError: the file is larger.

    """
    with open(path, "rb", opener=open_without_waiting) as file:
        content = file.read(limit + 1) or b""  # a FIFO gives None
    if len(content) > limit:
        raise PermanentError(f"{name} is larger than {limit} bytes")
    return content
