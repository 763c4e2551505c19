"""What processes use (Linux)."""

import os
from pathlib import Path


def children(pid: int) -> list[int]:
    """The process ids of a process's children: a server's workers."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_of_children(pid: int) -> list[float]:
    """Seconds of CPU that each child has used (proc(5): utime, stime)."""
    stats = [Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split() for child in children(pid)]
    return [(int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") for stat in stats]


def idle_seconds() -> float:
    """Seconds that all CPUs together have been idle (proc(5): cpu, idle)."""
    return int(Path("/proc/stat").read_text().split(maxsplit=5)[4]) / os.sysconf("SC_CLK_TCK")
