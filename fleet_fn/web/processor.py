"""The CPU of a worker: all its threads stay on one, and move together.

Only one of a worker's threads runs Python at a time. On several CPUs, each change of threads moves the objects' memory
from one CPU's cache to another's, and an event of eight connections takes 1.5 times the time (`make bench`). If others
use the worker's CPU, too, and another CPU has room, the worker moves there.
"""

import math
import os
import random
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

#: Seconds between two looks at the CPUs.
_LOOK_SECONDS: Final = 1.0
#: A worker that uses a smaller share of a CPU stays where it is. One that shares its CPU with 40 others uses more.
_BUSY_SHARE: Final = 0.02
#: A worker moves to a CPU that others use less by this share.
_GAIN: Final = 0.25
#: CPUs whose use differs less are alike.
_ALIKE: Final = 0.1
#: Two workers on one CPU would both move to the next: each moves with this probability.
_MOVES: Final = 0.5
#: Columns of a line of /proc/stat, after the name: times since the start of the machine, idle and waiting for disks
#: among them (proc(5)).
_COLUMNS: Final = 8
_IDLE: Final = slice(3, 5)


class _Look(NamedTuple):
    """Times at one moment, in seconds."""

    moment: float
    #: The worker's own CPU time.
    own: float
    #: Time that each CPU was busy.
    busy: Mapping[int, float]


class Processor:
    """Keeps the threads of this process on one CPU.

    It does nothing where the system does not let it.
    """

    def __init__(
        self, number: int, *, stat: Path = Path("/proc/stat"), choose: Callable[[], float] = random.random
    ) -> None:
        """Stay on a CPU that no worker of another `number` begins with.

        Args:
            number: any; those of a server's workers follow each other.
            stat: times of the CPUs.
            choose: returns a number from 0 to 1, by chance; less than 1.

        """
        self._stat = stat
        self._choose = choose
        self._allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
        self._current = -1
        self._last: _Look | None = None
        self._next = 0.0
        if len(self._allowed) > 1:
            self._move(self._allowed[number % len(self._allowed)])

    @property
    def current(self) -> int:
        """Number of the CPU; -1 if the system chooses."""
        return self._current

    def look(self) -> None:
        """Move to another CPU if others use this one; do nothing most of the time."""
        if self._current < 0 or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_SECONDS
        try:
            look = _Look(time.monotonic(), time.process_time(), self._read_busy())
        except OSError:
            return
        except ValueError:
            look = None
        if not look or self._current not in look.busy:
            self._leave_choice()  # a container may number its CPUs anew, and others may use this one
            return
        last, self._last = self._last, look
        if last and (seconds := look.moment - last.moment) > 0:
            own = (look.own - last.own) / seconds
            busy = {cpu: (look.busy[cpu] - last.busy[cpu]) / seconds for cpu in look.busy.keys() & last.busy.keys()}
            self._reconsider(own, busy)

    def _reconsider(self, own: float, busy: dict[int, float]) -> None:
        others = busy.pop(self._current) - own
        least = min(busy.values(), default=math.inf)
        if own >= _BUSY_SHARE and least <= others - _GAIN and self._choose() < _MOVES:
            # Not all to the same one: the workers of other servers look at the same time.
            free = [cpu for cpu, share in busy.items() if share <= least + _ALIKE]
            self._move(free[int(self._choose() * len(free))])

    def _read_busy(self) -> dict[int, float]:
        """Return the seconds for which each allowed CPU has been busy."""
        tick = os.sysconf("SC_CLK_TCK")
        busy = {}
        for line in self._stat.read_text().splitlines():
            name, *columns = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._allowed:
                times = [int(column) for column in columns[:_COLUMNS]]
                busy[int(name[3:])] = (sum(times) - sum(times[_IDLE])) / tick
        return busy

    def _move(self, cpu: int) -> None:
        """Move all threads to a CPU. Later threads begin there, as their makers do."""
        try:
            _bind_threads({cpu})
        except OSError:  # the CPU is not allowed any more, or the system allows no choice
            self._leave_choice()
            return
        self._current, self._last = cpu, None

    def _leave_choice(self) -> None:
        """Let the system choose from now on."""
        self._current = -1
        with suppress(OSError):
            _bind_threads(self._allowed)


def _bind_threads(cpus: Collection[int]) -> None:
    """Let all threads of this process run on these CPUs only.

    Raises:
        OSError: the system refuses.

    """
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), cpus)
