"""Snapshots of fleets, read in the background while users look at them."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from fleet_fn.console.snapshot import DeviceCollector, Devices, FindTarget, Snapshot, make_overview
from fleet_fn.console.users import User
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.listing import list_devices
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.target import FoundTarget, find_target
from fleet_fn.observability.log import logger

#: Applications that are read at the same time: the cloud serves devices, too.
_READERS: Final = 4
#: Pause between two readings of an application's object, and at least between two of its devices.
_OBJECT_PAUSE_SECONDS: Final = 5.0
_DEVICES_PAUSE_SECONDS: Final = 10.0
#: The devices are read a fifth of the time at most.
_PAUSE_SHARE: Final = 4.0
_OBJECT_SECONDS: Final = 15.0
#: Devices that are kept, of all applications together; beyond that, only numbers of those looked at longest ago.
MAX_DEVICES: Final = 250_000
#: Users of an application who are remembered: the next one is asked for if one may not see it any more.
_MAX_VIEWERS: Final = 8
#: How long a user who has not seen an application's snapshot yet may be shown it without another look at the
#: application, and how many such users are remembered.
_CONFIRMED_SECONDS: Final = 30.0
_MAX_KNOWN: Final = 10_000
#: Applications whose snapshot is kept.
_MAX_APPLICATIONS: Final = 2000


@dataclass(slots=True)
class _Kept:
    """An application's snapshot, and when its parts are due again."""

    snapshot: Snapshot
    #: The users who looked at it, the last one at the end: it is read with their credentials.
    viewers: OrderedDict[str, User] = field(default_factory=OrderedDict)
    object_due: float = 0.0
    devices_due: float = 0.0
    #: The application's object as it was last read, or changed by a user; and how often users changed it.
    found: Mapping[str, Any] = field(default_factory=dict)
    changes: int = 0
    #: When it was read; and the keys of the users who have seen it since it was created.
    found_at: float = 0.0
    known: dict[str, None] = field(default_factory=dict)

    def shows(self, user: User, now: float) -> bool:
        """Return whether a user may see the snapshot.

        One who comes later may not before the application's object was read: another application may have the name.
        """
        if user.key not in self.known and self.found and now - self.found_at > _CONFIRMED_SECONDS:
            return False
        self.known[user.key] = None
        if len(self.known) > _MAX_KNOWN:
            del self.known[next(iter(self.known))]
        return True


class Snapshots:
    """Keeps one snapshot per application; each look at one lets it be refreshed.

    A look never waits. It is safe to use from several threads. The caller checks that the user may see the application.
    """

    def __init__(
        self,
        find_target: FindTarget,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        max_devices: int = MAX_DEVICES,
    ) -> None:
        """Keep no snapshot yet.

        Args:
            find_target: finds an application's firmware.
            clock: seconds, never stepping; for pauses.
            now: the current time, for people.
            max_devices: devices that are kept.

        """
        self._find_target = find_target
        self._clock = clock
        self._now = now
        self._max_devices = max_devices
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="snapshot")
        self._is_closed = False

    def look(self, user: User, application: str) -> Snapshot:
        """Return the snapshot of an application, and have it refreshed if it is due."""
        with self._lock:
            kept = self._kept.setdefault(application, _Kept(Snapshot(application)))
            self._kept.move_to_end(application)
            kept.viewers[user.key] = user
            kept.viewers.move_to_end(user.key)
            if len(kept.viewers) > _MAX_VIEWERS:
                kept.viewers.popitem(last=False)
            now = self._clock()
            lacks_devices = kept.snapshot.devices is None or kept.snapshot.devices.entries is None
            is_due = now >= min(kept.object_due, kept.devices_due) or (lacks_devices and not kept.snapshot.problem)
            if is_due and not kept.snapshot.is_reading and not self._is_closed:
                kept.snapshot = replace(kept.snapshot, is_reading=True, seen=0)
                self._pool.submit(self._refresh, application)
            snapshot = kept.snapshot
            if not kept.shows(user, now):
                snapshot = Snapshot(application, problem=snapshot.problem, problem_at=snapshot.problem_at)
            self._trim()
        return snapshot

    def put(self, application: str, found: Mapping[str, Any]) -> None:
        """Show a changed application at once, and read its devices soon."""
        with self._lock:
            kept = self._kept.get(application)
            if kept is None:
                return
            kept.found, kept.changes = found, kept.changes + 1
        before = kept.snapshot.overview

        def find_known_target(application: Application) -> FoundTarget:
            """Return the target without a question to the OCI registry, which might hang."""
            if application.rollout.version is not None or before is None or before.target is None:
                return find_target(application, None)
            return FoundTarget(before.target)

        self._show(kept, find_known_target)
        with self._lock:
            kept.object_due = kept.devices_due = 0.0

    def close(self) -> None:
        """Stop reading."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(cancel_futures=True)

    # In the background.

    def _refresh(self, application: str) -> None:
        with self._lock:
            kept = self._kept[application]
            viewers = list(reversed(kept.viewers.values()))
        problem = "no user may see it"
        try:
            for user in viewers:
                try:
                    self._read(kept, user)
                    problem = ""
                    break
                except PermanentError as error:  # this user may not, or not any more; another one may
                    problem = error.reason
                    with self._lock:
                        kept.viewers.pop(user.key, None)
        except UpstreamError as error:
            problem = error.reason
        except Exception:  # noqa: BLE001 - the one boundary of this thread
            logger.exception("unexpected error")
            problem = "internal error; the console's log has it"
        with self._lock:
            now = self._clock()
            kept.object_due = max(kept.object_due, now + _OBJECT_PAUSE_SECONDS)
            if problem:
                kept.devices_due = max(kept.devices_due, now + _DEVICES_PAUSE_SECONDS)
            since = kept.snapshot.problem_at if kept.snapshot.problem else self._now()
            kept.snapshot = replace(
                kept.snapshot, is_reading=False, problem=problem, problem_at=since if problem else None
            )

    def _read(self, kept: _Kept, user: User) -> None:
        """Read an application's object, and its devices if they are due."""
        application = kept.snapshot.application
        self._read_object(kept, user)
        devices = kept.snapshot.devices
        if devices and devices.entries is not None and self._clock() < kept.devices_due:
            return
        began, uid, collector = (
            self._clock(),
            _uid_of(kept.found),
            DeviceCollector.of(kept.found, self._now(), self._max_devices),
        )
        for page in list_devices(user.upstream, application):
            if self._is_closed:
                return
            collector.add(page)
            with self._lock:
                kept.snapshot = replace(kept.snapshot, seen=collector.totals.devices)
            if self._clock() >= kept.object_due:
                with suppress(TransientError):  # a large fleet takes minutes; its rollout may halt meanwhile
                    self._read_object(kept, user)
            if _uid_of(kept.found) != uid:
                return
        seconds = self._clock() - began
        with self._lock:
            kept.devices_due = self._clock() + max(_DEVICES_PAUSE_SECONDS, _PAUSE_SHARE * seconds)
        self._show(kept, self._find_target, collector.finish(seconds))

    def _read_object(self, kept: _Kept, user: User) -> None:
        """Read an application's object; show it unless a user has changed it."""
        changes = kept.changes
        with self._lock:
            kept.object_due = self._clock() + _OBJECT_PAUSE_SECONDS
        names = (kept.snapshot.application,)
        found, _ = DeviceRegistryAPI(user.upstream).fetch(names, Deadline(_OBJECT_SECONDS))
        with self._lock:
            if kept.changes == changes:
                if kept.found and _uid_of(kept.found) != _uid_of(found):  # it was deleted, and created anew
                    kept.snapshot = Snapshot(kept.snapshot.application, is_reading=True)
                    kept.known.clear()
                kept.found, kept.found_at = found, self._clock()
        self._show(kept, self._find_target)

    def _show(self, kept: _Kept, find_target: FindTarget, devices: Devices | None = None) -> None:
        """Show how the rollout stands; on `devices`, if given, which are shown with it."""
        found, known = kept.found, devices or kept.snapshot.devices
        overview, problem = make_overview(found, known, find_target, self._now())
        with self._lock:
            if devices:
                kept.snapshot = replace(kept.snapshot, devices=devices)
            if kept.found is found:  # else another thread shows a newer one
                kept.snapshot = replace(kept.snapshot, overview=overview, target_problem=problem)

    def _trim(self) -> None:
        """Give up devices, and snapshots, that were looked at longest ago."""
        while len(self._kept) > _MAX_APPLICATIONS:
            self._kept.popitem(last=False)
        room = self._max_devices
        for position, kept in enumerate(reversed(self._kept.values())):
            devices = kept.snapshot.devices
            if devices is None or devices.entries is None:
                continue
            room -= len(devices.entries)
            if room < 0 and position:
                kept.snapshot = replace(kept.snapshot, devices=replace(devices, entries=None))


def _uid_of(found: Mapping[str, Any]) -> object:
    return found["metadata"].get("uid")
