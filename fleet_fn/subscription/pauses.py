"""Pauses between attempts, with jitter: many processes must not return at once."""

import random
from collections.abc import Callable
from dataclasses import dataclass

#: Growth of a pause stops after so many attempts: 2 to this power is larger than all bounds.
_MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Pauses:
    """Random pauses, whose bound doubles with each attempt."""

    #: Bound of the first pause, and of all.
    first_seconds: float
    max_seconds: float
    #: Least share of the bound: 0 is full jitter.
    floor: float = 0.0
    random: Callable[[], float] = random.random

    def seconds(self, attempts: int) -> float:
        """Return the pause after a number of failed attempts, in seconds."""
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(attempts - 1, _MAX_DOUBLINGS))
        return bound * (self.floor + (1 - self.floor) * self.random())
