"""What the processes of a function take (Linux)."""

import re
from pathlib import Path
from typing import Final

from tests.support.function import Function, Served

_RESET_PEAK: Final = "5"  # proc(5), /proc/pid/clear_refs


def workers(function: Function | Served) -> list[int]:
    """The process ids of gunicorn's workers."""
    return children(function.process.pid)


def children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(function: Function | Served) -> int:
    """Bytes of memory that the workers have now."""
    return sum(_status(pid, "VmRSS") for pid in workers(function))


def forget_peak(function: Function | Served) -> None:
    """From now on `peak_resident` tells the most that the workers have had."""
    for pid in workers(function):
        Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def peak_resident(function: Function | Served) -> int:
    """Bytes of memory that the workers have had at most."""
    return sum(_status(pid, "VmHWM") for pid in workers(function))


def descriptors(function: Function | Served) -> int:
    """How many files and sockets the workers have open."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers(function))


def threads(function: Function | Served) -> int:
    """How many threads the workers have."""
    return sum(_status(pid, "Threads") for pid in workers(function))


def wake_ups(pid: int) -> int:
    """How often the main thread of a process has gone to sleep so far (proc(5))."""
    return _status(pid, "voluntary_ctxt_switches")


def _status(pid: int, field: str) -> int:
    """A number in `/proc/pid/status`, in bytes where it is a size."""
    match = re.search(rf"^{field}:\s*(\d+)( kB)?$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * (1024 if match[2] else 1)
