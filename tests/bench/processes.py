"""What processes use (Linux)."""

import os
from pathlib import Path

from tests.support.processes import children


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used (proc(5): utime, stime)."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_children(pid: int) -> list[float]:
    """Seconds of CPU that each child of a process has used: a server's workers."""
    return [cpu(child) for child in children(pid)]


def resident(pid: int) -> int:
    """Bytes of memory that a process has, those included that others share."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def idle_seconds() -> float:
    """Seconds that all CPUs together have been idle (proc(5): cpu, idle)."""
    return int(Path("/proc/stat").read_text().split(maxsplit=5)[4]) / os.sysconf("SC_CLK_TCK")
