"""What references resolve to, remembered for as long as they cannot have changed."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed, UpstreamError
from fleet_fn.firmware.reference import Reference, fill_in, parse_reference
from fleet_fn.firmware.store import Firmware, Reader, Store
from fleet_fn.memory import Memory

#: Seconds for which a reference that failed to resolve is answered at once, and one that timed out.
_FAILED_AGE: Final = 10.0
_RETRY_AGE: Final = 1.0
#: References that are remembered: some 500 bytes each.
_REMEMBERED: Final = 4096


class Catalogue:
    """The firmware below one prefix, in whatever store it lies."""

    def __init__(
        self, store: Store, prefix: str, *, remember: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """A catalogue of the references that begin with `prefix`, in which `{application}` is replaced."""
        self._store = store
        self._prefix = prefix if prefix.endswith("/") else f"{prefix}/"
        self._resolved: Memory[Reference, Firmware] = Memory(
            _REMEMBERED if remember else 0, error_age=_error_age, clock=clock
        )

    def resolve(self, reference: str, application: str, max_age: float, deadline: Deadline) -> Firmware:
        """The firmware that `reference` names for devices of an application.

        Args:
            reference: relative to the prefix.
            application: name of the application.
            max_age: seconds that a tag's manifest may be old; a digest's cannot change.
            deadline: for the look-up.

        Raises:
            Failed: the reference is invalid, names nothing, or names something malformed.
            Retry: the store is not there.

        """
        parsed = parse_reference(reference, fill_in(self._prefix, {"application": application}))
        if parsed.digest:
            max_age = math.inf
        return self._resolved.get(parsed, max_age, lambda: self._store.resolve(parsed, deadline), deadline)

    def open(self, firmware: Firmware, deadline: Deadline) -> AbstractContextManager[Reader]:
        """The bytes of `firmware`; see `Store.open`."""
        return self._store.open(firmware, deadline)


def _error_age(error: UpstreamError) -> float:
    return _FAILED_AGE if isinstance(error, Failed) else _RETRY_AGE
