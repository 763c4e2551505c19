"""Checks of firmware that is to be rolled out, made in the background.

A check downloads and hashes the firmware, which may take minutes.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.starting import Candidate, check_firmware
from fleet_fn.fleet.rollout.target import FirmwareFinder

#: Firmware that is checked at the same time.
_WORKERS: Final = 4
#: How long a page waits for a check before it shows that it goes on; and how long the confirmation of a change does.
_WAIT_SECONDS: Final = 1.0
_CONFIRM_SECONDS: Final = 10.0
#: How long a check holds: tags move.
_HOLDS_SECONDS: Final = 60.0
_MAX_CHECKS: Final = 64


@dataclass(slots=True)
class _Check:
    result: "Future[Candidate]"
    #: When it ended; None while it goes on.
    ended: float | None = None


class Checks:
    """Remembers checks briefly. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._checks: OrderedDict[str, _Check] = OrderedDict()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="check")

    def check(
        self, finder: FirmwareFinder, application: Application, image: str, *, anew: bool = False
    ) -> Candidate | None:
        """Return a checked firmware; None while the check goes on.

        Args:
            finder: finds firmware.
            application: the application that it is for.
            image: a reference.
            anew: check again, because its tag may have moved since it was shown.

        Raises:
            NotReadyError, PermanentError, TransientError: see `check_firmware`.

        """
        key = json.dumps([application.name, application.firmware, image], sort_keys=True)
        with self._lock:
            known = self._checks.get(key)
            if known is None or anew or self._is_old(known):
                known = self._checks[key] = self._begin(finder, application, image)
            self._checks.move_to_end(key)
            while len(self._checks) > _MAX_CHECKS:
                self._checks.popitem(last=False)
        if not wait([known.result], _CONFIRM_SECONDS if anew else _WAIT_SECONDS).done:
            return None
        if known.result.exception():
            with self._lock:
                self._checks.pop(key, None)  # another look tries again
        return known.result.result()

    def _begin(self, finder: FirmwareFinder, application: Application, image: str) -> _Check:
        begun = _Check(self._pool.submit(check_firmware, finder, application, image))

        def note_end(_: object) -> None:
            begun.ended = self._clock()

        begun.result.add_done_callback(note_end)
        return begun

    def _is_old(self, known: _Check) -> bool:
        return known.ended is not None and self._clock() - known.ended > _HOLDS_SECONDS

    def close(self) -> None:
        """Begin no more checks."""
        self._pool.shutdown(wait=False, cancel_futures=True)
