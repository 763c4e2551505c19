"""The clocks that parts of the function are made with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Clocks:
    """A wall clock and a clock that never steps, both in seconds."""

    #: Since 1970; compared with the times of events.
    wall: Callable[[], float] = time.time
    #: Measures the age of what the process remembers. Deadlines and connections keep the system's time.
    monotonic: Callable[[], float] = time.monotonic


SYSTEM_CLOCKS: Final = Clocks()
