"""A process of the function without its HTTP face, on a clock that a test sets."""

from collections.abc import Mapping
from datetime import UTC, datetime

from fleet_fn.clocks import Clocks
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import read_event
from fleet_fn.parts import Parts
from fleet_fn.settings import Settings
from fleet_fn.update.outcome import Outcome
from tests.support.timing import Clock

#: What the clock showed when it was 0.
_EPOCH = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
#: Seconds: so many that no upstream which answers at all is too late.
_DEADLINE = 60.0


class Pod:
    """What a pod remembers, and what it answers."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._parts = Parts(settings, Clocks(wall=lambda: wall(clock).timestamp(), monotonic=clock))

    def answer(self, attributes: Mapping[str, str | None], payload: bytes, deadline: Deadline | None = None) -> Outcome:
        """What comes of an event, given as `tests.support.function.event` makes it."""
        headers = [
            ("content-type" if name == "datacontenttype" else f"ce-{name}", value)
            for name, value in attributes.items()
            if value is not None
        ]
        return self._parts.updater.answer(read_event(headers, payload), deadline or Deadline(_DEADLINE))

    def close(self) -> None:
        self._parts.close()


def wall(clock: Clock) -> datetime:
    """What a wall clock shows at that moment."""
    return datetime.fromtimestamp(_EPOCH + clock(), UTC)
