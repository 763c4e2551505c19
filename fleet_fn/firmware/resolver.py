"""Resolve references to firmware, and cache the results for a time to live.

If the store is unavailable, a stale result is served.
"""

import math
import time
from collections.abc import Callable
from copy import copy
from typing import Final

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.concurrency.ttl_cache import Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.firmware.store import Firmware, NotReadyError, Store
from fleet_fn.observability.log import logger
from fleet_fn.oci.reference import Reference

#: A permanent failure to resolve a reference is remembered this long.
_NEGATIVE_TTL_SECONDS: Final = 10.0
#: Bound of the cached references; about 500 bytes each.
_MAX_REFERENCES: Final = 4096
#: Share of the event's time left for serving the stale firmware if the store does not answer.
_KEPT_FOR_STALE: Final = 0.5


class Resolver:
    """Resolves references of one store: a TTL cache with stale-if-error (RFC 5861)."""

    def __init__(
        self,
        store: Store,
        single_flight: SingleFlight,
        *,
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a resolver for `store`.

        Args:
            store: resolves the references that are not cached.
            single_flight: runs look-ups that a stale firmware can replace.
            remember: cache resolved references.
            count: called for each look-up with whether it was a hit.
            clock: monotonic seconds.

        """
        self._store = store
        self._single_flight = single_flight
        self._resolved: TTLCache[Reference, Firmware] = TTLCache(
            _MAX_REFERENCES if remember else 0, negative_ttl=_negative_ttl, count=count, clock=clock
        )
        #: References that are served stale now; the log tells only the first time.
        self._served_stale: set[Reference] = set()
        #: References that no longer name anything, by the store's latest answer; never served stale.
        self._removed: set[Reference] = set()

    def resolve(self, reference: Reference, max_age: float, deadline: Deadline, *, stale_age: float = 0.0) -> Firmware:
        """Return the firmware that `reference` names.

        Args:
            reference: a tag or a digest.
            max_age: age in seconds up to which a tag's manifest is served from the cache. A digest never expires.
            deadline: bounds the look-up.
            stale_age: age in seconds up to which it is served if the store is unavailable.

        Raises:
            NotReadyError: the store needs longer than the deadline; its work goes on.
            PermanentError: the reference names nothing, or something malformed.
            TransientError: the store is unavailable, and there is no firmware to serve stale.

        """
        if reference.digest:
            max_age = math.inf
        stale = None if reference in self._removed else self._resolved.peek(reference, stale_age)
        if stale is None or (max_age > 0 and self._resolved.peek(reference, max_age)):
            return self._look_up(reference, max_age, deadline)
        try:
            # Has the time of a whole event, not only the rest of this one: other events wait for the same result.
            return self._single_flight.result(
                (self, reference),
                lambda: self._look_up(reference, max_age, Deadline(deadline.total)),
                deadline.leave(_KEPT_FOR_STALE),
            )
        except StillRunningError:
            reason = "no answer in time"
        except TransientError as error:
            reason = error.reason
        except (PermanentError, NotReadyError) as error:
            raise copy(error) from error  # other threads raise the same error at the same time
        if reference not in self._served_stale:
            _add(self._served_stale, reference)
            fields = {"reference": str(reference), "version": stale.version, "reason": reason}
            logger.warning("OCI registry unavailable; serving stale manifest", extra={"fields": fields})
        return stale

    def _look_up(self, reference: Reference, max_age: float, deadline: Deadline) -> Firmware:
        def ask() -> Firmware:
            known = self._resolved.peek(reference)
            try:
                firmware = self._store.resolve(reference, deadline, known)
            except PermanentError:
                if known is not None:
                    _add(self._removed, reference)
                raise
            self._served_stale.discard(reference)
            self._removed.discard(reference)
            return firmware

        return self._resolved.get(reference, max_age, ask, deadline)


def _add(references: set[Reference], reference: Reference) -> None:
    if len(references) >= _MAX_REFERENCES:
        references.clear()
    references.add(reference)


def _negative_ttl(error: UpstreamError) -> float:
    return error.negative_ttl if isinstance(error, TransientError) else _NEGATIVE_TTL_SECONDS
