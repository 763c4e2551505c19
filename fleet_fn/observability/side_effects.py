"""Guards for counting, logging and tracing, so that they never change an answer.

Every observer of the function is called through a guard. The guard logs an observer's first failure, and has no other
effect.
"""

from collections.abc import Callable
from typing import Any, Final

from fleet_fn.errors import one_line
from fleet_fn.observability.log import logger

#: Longest reason of a failure.
_MAX_REASON_CHARS: Final = 300


class Guard:
    """Logs the first failure of one observer."""

    __slots__ = ("_has_failed", "_observer")

    def __init__(self, observer: str) -> None:
        """Guard the observer that log lines call `observer`."""
        self._observer = observer
        self._has_failed = False

    def report(self, error: BaseException) -> None:
        """Log an error, if it is the first one. Logging itself never raises."""
        if not self._has_failed:
            self._has_failed = True
            reason = one_line(f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS])
            fields = {"observer": self._observer, "reason": reason}
            logger.warning("a side effect failed; further failures are not logged", extra={"fields": fields})


class Guarded:
    """An observer that returns nothing and never raises."""

    __slots__ = ("_guard", "_observe")

    def __init__(self, observer: str, observe: Callable[..., object]) -> None:
        """Guard `observe`, which log lines call `observer`."""
        self._observe = observe
        self._guard = Guard(observer)

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Call the observer."""
        try:
            self._observe(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the answer comes first
            self._guard.report(error)


def guard(observer: str, observe: Callable[..., object] | None) -> Guarded | None:
    """Return `observe` behind a guard, unless it has one; None without an observer."""
    return observe if observe is None or isinstance(observe, Guarded) else Guarded(observer, observe)
