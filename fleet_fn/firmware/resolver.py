"""What references resolve to, remembered for as long as they cannot have changed."""

import math
import time
from collections.abc import Callable
from copy import copy
from typing import Final

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.concurrency.ttl_cache import Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.firmware.store import Firmware, NotReadyError, Store
from fleet_fn.observability.log import logger
from fleet_fn.oci.reference import Reference

#: Seconds for which a reference that failed to resolve is answered at once.
_FAILED_AGE: Final = 10.0
#: References that are remembered: some 500 bytes each.
_REMEMBERED: Final = 4096
#: The share of an event's time that is kept for going on with what is remembered, where the store does not answer.
_KEPT_FOR_GOING_ON: Final = 0.5


class Resolver:
    """The firmware of one store, and what its references stood at a while ago."""

    def __init__(
        self,
        store: Store,
        background: SingleFlight,
        *,
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What `store` has; `count` is told of each look-up of a reference."""
        self._store = store
        self._background = background
        self._resolved: TTLCache[Reference, Firmware] = TTLCache(
            _REMEMBERED if remember else 0, negative_ttl=_error_age, count=count, clock=clock
        )
        #: References that are gone on with although their store does not answer.
        self._gone_on_with: set[Reference] = set()
        #: References whose store has answered since that they name nothing any more.
        self._gone: set[Reference] = set()

    def resolve(self, reference: Reference, max_age: float, deadline: Deadline, *, stale_age: float = 0.0) -> Firmware:
        """The firmware that `reference` names.

        Args:
            reference: which firmware.
            max_age: seconds that a tag's manifest may be old; a digest's cannot change.
            deadline: for the look-up.
            stale_age: seconds that it may be old where the store does not answer.

        Raises:
            NotReadyError: the store has to do something first, which goes on.
            PermanentError: the reference names nothing, or something malformed.
            TransientError: the store is not there.

        """
        if reference.digest:
            max_age = math.inf
        stale = None if reference in self._gone else self._resolved.peek(reference, stale_age)
        if stale is None or (max_age > 0 and self._resolved.peek(reference, max_age)):
            return self._look_up(reference, max_age, deadline)
        try:
            # With all the time that an event has, because others may need what it finds.
            return self._background.result(
                (self, reference),
                lambda: self._look_up(reference, max_age, Deadline(deadline.total)),
                deadline.leaving(_KEPT_FOR_GOING_ON),
            )
        except TimeoutError:
            reason = "no answer in time"
        except TransientError as error:
            reason = error.reason
        except (PermanentError, NotReadyError) as error:
            raise copy(error) from error  # others hear the same one at the same time
        if reference not in self._gone_on_with:
            _add(self._gone_on_with, reference)
            fields = {"reference": str(reference), "version": stale.version, "reason": reason}
            logger.warning("going on with what a reference last stood at", extra={"fields": fields})
        return stale

    def _look_up(self, reference: Reference, max_age: float, deadline: Deadline) -> Firmware:
        def ask() -> Firmware:
            known = self._resolved.peek(reference)
            try:
                firmware = self._store.resolve(reference, deadline, known)
            except PermanentError:
                if known is not None:
                    _add(self._gone, reference)
                raise
            self._gone_on_with.discard(reference)
            self._gone.discard(reference)
            return firmware

        return self._resolved.get(reference, max_age, ask, deadline)


def _add(references: set[Reference], reference: Reference) -> None:
    if len(references) >= _REMEMBERED:
        references.clear()
    references.add(reference)


def _error_age(error: UpstreamError) -> float:
    return error.quiet if isinstance(error, TransientError) else _FAILED_AGE
