"""Opening files that may be anything, and reading small ones."""

import os
from pathlib import Path

from fleet_fn.errors import PermanentError


def open_without_waiting(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """An `opener`: opening a FIFO in the usual way would wait for somebody at its other end."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)


def read_small(path: Path, limit: int, what: str) -> bytes:
    """All of a file that is called `what`, and may have `limit` bytes.

    Raises:
        OSError: it cannot be read.
        PermanentError: it is larger.

    """
    with open(path, "rb", opener=open_without_waiting) as file:
        content = file.read(limit + 1) or b""  # None from a FIFO
    if len(content) > limit:
        raise PermanentError(f"{what} is larger than {limit} bytes")
    return content
