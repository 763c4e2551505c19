"""Which applications a user may see, as Drogue Cloud decides."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from fleet_fn.console.users import User
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.listing import list_applications
from fleet_fn.drogue.refusals import DEVICE_REGISTRY
from fleet_fn.errors import PermanentError, TransientError

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

#: How long an answer of Drogue Cloud holds; and how long while the cloud does not answer.
_HOLDS_SECONDS: Final = 30.0
_HOLDS_IN_OUTAGE_SECONDS: Final = 15 * 60.0
#: How long a page waits for the cloud.
_WAIT_SECONDS: Final = 5.0
#: Requests that may wait for the cloud at the same time; other threads stay free for users who can be answered.
MAX_WAITING: Final = 16
#: Answers that are remembered.
_MAX_REMEMBERED: Final = 100_000
#: How long no second look is taken after a failure.
_PAUSE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Applications:
    """The applications that a user may see."""

    names: tuple[str, ...]
    #: Why they may be others by now; empty if they are current.
    problem: str = ""


@dataclass(slots=True)
class _Known:
    names: tuple[str, ...]
    since: float


class Access:
    """Asks Drogue Cloud, with the user's credentials, what the user may see.

    Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        #: When a user was last let into an application.
        self._admitted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._lists: OrderedDict[str, _Known] = OrderedDict()
        #: When the cloud last failed to answer a user.
        self._failed: OrderedDict[str, tuple[float, TransientError]] = OrderedDict()

    def check(self, user: User, application: str) -> None:
        """Return if the user may see an application.

        Raises:
            PermanentError: the user may not, or there is no such application.
            TransientError: Drogue Cloud does not answer, and has not admitted the user lately.

        """
        key, now = (user.key, application), self._clock()
        with self._lock:
            since = self._admitted.get(key)
        if since is not None and now - since < _HOLDS_SECONDS:
            return
        try:
            self.ask(user, lambda: DeviceRegistryAPI(user.upstream).fetch((application,), Deadline(_WAIT_SECONDS)))
        except PermanentError:
            self.forget(user, application)
            raise
        except TransientError:
            if since is not None and now - since < _HOLDS_IN_OUTAGE_SECONDS:
                return
            raise
        self._admit(user, (application,))

    def applications(self, user: User) -> Applications:
        """Return the applications that the user may see.

        Raises:
            PermanentError: the user's credentials are refused.
            TransientError: Drogue Cloud does not answer, and has not told lately.

        """
        now = self._clock()
        with self._lock:
            known = self._lists.get(user.key)
        if known and now - known.since < _HOLDS_SECONDS:
            return Applications(known.names)
        try:
            names = tuple(self.ask(user, lambda: list_applications(user.upstream, patience=_WAIT_SECONDS)))
        except TransientError as error:
            if known and now - known.since < _HOLDS_IN_OUTAGE_SECONDS:
                return Applications(known.names, error.reason)
            raise
        with self._lock:
            _remember(self._lists, user.key, _Known(names, self._clock()))
        self._admit(user, names)
        return Applications(names)

    def forget(self, user: User, application: str) -> None:
        """Forget that a user was let into an application."""
        with self._lock:
            self._admitted.pop((user.key, application), None)
            self._lists.pop(user.key, None)

    def ask(self, user: User, ask: Callable[[], T]) -> T:
        """Ask the cloud, unless it failed to answer this user a moment ago.

        Pages must not queue up behind a cloud that hangs.

        Raises:
            PermanentError, TransientError: those of `ask`, now or a moment ago.

        """
        with self._lock:
            failed = self._failed.get(user.key)
        if failed and self._clock() - failed[0] < _PAUSE_SECONDS:
            raise failed[1]
        if not self._room.acquire(blocking=False):
            raise TransientError(f"{DEVICE_REGISTRY}: too many pages wait for an answer")
        try:
            found = ask()
        except TransientError as error:
            with self._lock:
                _remember(self._failed, user.key, (self._clock(), error))
            raise
        finally:
            self._room.release()
        with self._lock:
            self._failed.pop(user.key, None)
        return found

    def _admit(self, user: User, applications: tuple[str, ...]) -> None:
        now = self._clock()
        with self._lock:
            for application in applications:
                _remember(self._admitted, (user.key, application), now)


def _remember(known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    while len(known) > _MAX_REMEMBERED:
        known.popitem(last=False)
