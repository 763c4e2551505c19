"""The applications whose events are wanted."""

from collections.abc import Callable, Collection
from threading import Event, Thread
from typing import Final

from fleet_fn.drogue.listing import list_applications
from fleet_fn.errors import UpstreamError
from fleet_fn.http.client import HttpClient
from fleet_fn.observability.log import logger
from fleet_fn.subscription.pauses import Pauses

#: Pause between two looks at the list of applications, and before another try if it cannot be had.
_LOOKS: Final = Pauses(60.0, 60.0, floor=0.75)
_RETRIES: Final = Pauses(1.0, 60.0, floor=0.25)
#: Characters that part topics, or stand for several of them.
_OF_FILTERS: Final = frozenset("/+#")


class AllApplications:
    """The applications that a token can see, which are listed again and again."""

    def __init__(
        self, upstream: HttpClient, excluded: Collection[str], changed: Callable[[], None], looks: Pauses = _LOOKS
    ) -> None:
        """List the applications of `upstream`, in a thread.

        Args:
            upstream: Drogue Cloud.
            excluded: names that are left out.
            changed: is called in that thread after the first list, and if the names have changed.
            looks: pauses between two looks at the list.

        """
        self._looks = looks
        self._upstream = upstream
        self._excluded = frozenset(excluded)
        self._changed = changed
        self._names: frozenset[str] | None = None
        self._ending = Event()

    def start(self) -> None:
        """Begin to list them, in a thread."""
        Thread(target=self._run, name="applications", daemon=True).start()

    def names(self) -> frozenset[str]:
        """Return the names known now: those of the last list that could be had."""
        return self._names or frozenset()

    def end(self) -> None:
        """List no more."""
        self._ending.set()

    def _run(self) -> None:
        failures = 0
        while not self._ending.wait(_RETRIES.seconds(failures) if failures else 0):
            try:
                names = list_applications(self._upstream)
            except UpstreamError as error:
                failures += 1
                if failures == 1:
                    fields = {"reason": error.reason}
                    logger.warning("applications cannot be listed; trying again", extra={"fields": fields})
                continue
            failures = 0
            found = frozenset(name for name in names if not _OF_FILTERS & set(name)) - self._excluded
            if found != self._names:
                self._names = found
                self._changed()
            if self._ending.wait(self._looks.seconds(1)):
                return
