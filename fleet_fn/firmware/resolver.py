"""Resolve references to firmware, and cache the results for a time to live.

If the store is unavailable, a stale result is served.
"""

import math
import time
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Final, Generic, TypeVar

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.concurrency.ttl_cache import Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, negative_ttl
from fleet_fn.firmware.store import Firmware, ImageStore, NotReadyError, Store
from fleet_fn.firmware.tag_list import TagList
from fleet_fn.observability.log import logger
from fleet_fn.oci.reference import Reference

#: Bound of the cached references; about 500 bytes each.
_MAX_REFERENCES: Final = 4096
#: Bounds of the cached lists of tags: their number, and their bytes together.
_MAX_LISTS: Final = 256
_MAX_LISTS_BYTES: Final = 16 * 1024 * 1024
#: Share of the event's time left for serving the stale firmware if the store does not answer.
_KEPT_FOR_STALE: Final = 0.5

V = TypeVar("V")


class _Cache(Generic[V]):
    """A TTL cache of one kind of answers by reference, with stale-if-error (RFC 5861)."""

    def __init__(self, results: TTLCache[Reference, V], single_flight: SingleFlight, what: str) -> None:
        """Create a cache; `what` names its values in log lines."""
        self._results = results
        self._single_flight = single_flight
        self._what = what
        #: References that are served stale now; the log tells only the first time.
        self._served_stale: set[Reference] = set()
        #: References that no longer name anything, by the store's latest answer; never served stale.
        self._removed: set[Reference] = set()

    def get(
        self,
        reference: Reference,
        ask: Callable[[V | None, Deadline], V],
        deadline: Deadline,
        *,
        max_age: float,
        stale_age: float,
    ) -> V:
        """Return the result for a reference.

        Args:
            reference: what is looked up.
            ask: asks the store; it gets the last result, or None.
            deadline: bounds the look-up.
            max_age: age in seconds up to which the last result is served.
            stale_age: the same if the store is unavailable.

        Raises:
            NotReadyError, PermanentError, TransientError: those of `ask`.

        """
        if max_age > 0 and (known := self._results.hit(reference, max_age)) is not None:
            return known
        stale = None if reference in self._removed else self._results.peek(reference, stale_age)
        if stale is None:
            return self._look_up(reference, max_age, ask, deadline)
        try:
            # Has the time of a whole event, not only the rest of this one: other events wait for the same result.
            return self._single_flight.result(
                (self, reference),
                lambda: self._look_up(reference, max_age, ask, Deadline(deadline.total)),
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
            version = {"version": stale.version} if isinstance(stale, Firmware) else {}
            fields = {"reference": str(reference), **version, "reason": reason}
            logger.warning(f"OCI registry unavailable; serving stale {self._what}", extra={"fields": fields})
        return stale

    def _look_up(
        self, reference: Reference, max_age: float, ask: Callable[[V | None, Deadline], V], deadline: Deadline
    ) -> V:
        def look() -> V:
            known = self._results.peek(reference)
            try:
                result = ask(known, deadline)
            except PermanentError:
                if known is not None:
                    _add(self._removed, reference)
                raise
            self._served_stale.discard(reference)
            self._removed.discard(reference)
            return result

        return self._results.get(reference, max_age, look, deadline)


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
        resolved: TTLCache[Reference, Firmware] = TTLCache(
            _MAX_REFERENCES if remember else 0, negative_ttl=negative_ttl, count=count, clock=clock
        )
        self._resolved = _Cache(resolved, single_flight, "manifest")

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

        def ask(known: Firmware | None, until: Deadline) -> Firmware:
            return self._store.resolve(reference, until, known)

        max_age = math.inf if reference.digest else max_age
        return self._resolved.get(reference, ask, deadline, max_age=max_age, stale_age=stale_age)


class ImageResolver(Resolver):
    """Resolves references of a store with tags, and lists these."""

    def __init__(
        self,
        store: ImageStore,
        single_flight: SingleFlight,
        *,
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a resolver for `store`; see `Resolver`."""
        super().__init__(store, single_flight, remember=remember, count=count, clock=clock)
        self._images = store
        lists: TTLCache[Reference, TagList] = TTLCache(
            _MAX_LISTS if remember else 0,
            max_bytes=_MAX_LISTS_BYTES,
            negative_ttl=negative_ttl,
            count=count,
            clock=clock,
        )
        self._lists = _Cache(lists, single_flight, "list of tags")

    def versions(self, reference: Reference, max_age: float, deadline: Deadline, *, stale_age: float = 0.0) -> TagList:
        """Return the tags of a reference's repository that are semantic versions.

        Args:
            reference: its tag and its platform make no difference.
            max_age: age in seconds up to which the list is served from the cache.
            deadline: bounds the look-up.
            stale_age: age in seconds up to which it is served if the store is unavailable.

        Raises:
            PermanentError: there is no such repository, or it has too many tags.
            TransientError: the store is unavailable, and there is no list to serve stale.

        """
        repository = replace(reference, tag=None, digest=None, platform=None)

        def ask(_: TagList | None, until: Deadline) -> TagList:
            return TagList.of(self._images.tags(repository, until, whole=True))

        return self._lists.get(repository, ask, deadline, max_age=max_age, stale_age=stale_age)


def _add(references: set[Reference], reference: Reference) -> None:
    if len(references) >= _MAX_REFERENCES:
        references.clear()
    references.add(reference)
