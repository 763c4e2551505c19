"""Record in applications' objects which version failed on which devices."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet_fn.concurrency.turns import Turns
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI, encode_object, unusable_error
from fleet_fn.drogue.device_registry_object import read_map
from fleet_fn.drogue.object_editor import edit_object
from fleet_fn.drogue.refusals import DEVICE_REGISTRY
from fleet_fn.drogue.rollout_status import RolloutStatus, with_failure
from fleet_fn.drogue.storable import storable
from fleet_fn.errors import TransientError

#: Bytes of an application's object at most: the registry takes 65,536, and others want to write it too.
_MAX_OBJECT_BYTES: Final = 56 * 1024


@dataclass(slots=True, eq=False)
class FailedUpdate:
    """A version that failed on a device, on its way into the application's object."""

    device: str
    version: str
    #: It failed for the first time on this device.
    is_first: bool
    #: Devices on which the version failed, this one included; None if it was counted before.
    count: int | None = None
    is_recorded: bool = False
    #: The answer to a write of it was lost.
    may_be_stored: bool = False


class FailureCounter:
    """Counts each device on which a version fails once.

    If many devices fail at the same time, each write of the object is a conflict for all other writers. So one thread
    of a process writes all failures that wait for the same application.
    """

    def __init__(self, api: DeviceRegistryAPI, remember: Callable[[tuple[str, ...], dict[str, Any]], None]) -> None:
        """Write by `api`; `remember` is called with each object that was read or written."""
        self._api = api
        self._remember = remember
        self._turns: Turns[str] = Turns(
            lambda: TransientError(f"{DEVICE_REGISTRY}: no time is left to record the failed update")
        )
        self._lock = threading.Lock()
        self._waiting: dict[str, list[FailedUpdate]] = {}

    def record(self, application: str, failed: FailedUpdate, deadline: Deadline) -> int | None:
        """Record a failure, and return `failed.count`.

        Raises:
            PermanentError: the registry refuses the application or its change.
            TransientError: the registry is unavailable, or the application keeps changing.

        """
        with self._lock:
            self._waiting.setdefault(application, []).append(failed)
        try:
            with self._turns.take(application, deadline):
                if not failed.is_recorded:
                    self._write_waiting(application, deadline)
        finally:
            self._forget(application, failed)
        return failed.count

    def _write_waiting(self, application: str, deadline: Deadline) -> None:
        """Write all failures that wait for an application."""
        with self._lock:
            failures = list(self._waiting[application])
        names = (application,)

        def add(found: dict[str, Any]) -> dict[str, Any] | None:
            return _with_failures(found, failures)

        try:
            found = edit_object(self._api, names, add, deadline)
        except TransientError as error:
            if not error.may_have_acted or all(failed.count is None for failed in failures):
                raise
            for failed in failures:
                failed.may_be_stored = True
            found = edit_object(self._api, names, add, deadline)  # reading shows whether it was stored
        self._remember(names, found)
        for failed in failures:
            failed.is_recorded = True

    def _forget(self, application: str, failed: FailedUpdate) -> None:
        with self._lock:
            waiting = self._waiting[application]
            waiting.remove(failed)
            if not waiting:
                del self._waiting[application]


def _with_failures(application: dict[str, Any], failures: list[FailedUpdate]) -> dict[str, Any] | None:
    """Return an application's object with more failures; None if it has all already."""
    changed = application
    for failed in failures:
        more = _with_failure(changed, failed)
        if more:
            changed = more
            failed.count = RolloutStatus.read(_firmware(more)).failed[storable(failed.version)].count
        elif not failed.may_be_stored:
            failed.count = None  # another process has counted the device
    return None if changed is application else changed


def _with_failure(application: Mapping[str, Any], failed: FailedUpdate) -> dict[str, Any] | None:
    """Return an application's object with one more failure; None if it has it already.

    Raises:
        PermanentError: its status is malformed.

    """
    try:
        status = read_map(application, "status")
    except ValueError as error:
        raise unusable_error(("",), f"the application's {error}") from error
    section = _firmware(application)
    room_bytes = _MAX_OBJECT_BYTES - len(encode_object(application))
    version, device = storable(failed.version), storable(failed.device)
    rollout = with_failure(section.get("rollout"), version, device, is_first=failed.is_first, room_bytes=room_bytes)
    if rollout is None:
        return None
    return {**application, "status": {**status, "firmware": {**section, "rollout": rollout}}}


def _firmware(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object's `status.firmware`; an empty one if there is none."""
    status = found.get("status")
    section = status.get("firmware") if isinstance(status, dict) else None
    return section if isinstance(section, dict) else {}
