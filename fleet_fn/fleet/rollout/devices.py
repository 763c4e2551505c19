"""Devices that a rollout command selects, and their change, one by one."""

import hashlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from fleet_fn.drogue.device_registry_object import read_map
from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.listing import Device, list_devices
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL, Object
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.session import Change, RolloutSession
from fleet_fn.fleet.rows import Row, read_row
from fleet_fn.fleet.states import State

#: Characters of a label's value at most, and of the hash that replaces what a label cannot have.
_MAX_LABEL_CHARACTERS: Final = 63
_HASH_CHARACTERS: Final = 8
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
#: Devices that are changed at the same time: the cloud may be far away.
_WORKERS: Final = 8
#: Names in an event.
_MAX_TOLD: Final = 1000
#: Attempts to change a device while the registry is unavailable.
_MAX_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class Selection:
    """Devices by what they run, by what failed on them, and by their state."""

    #: Versions that they run; any if empty.
    versions: tuple[str, ...] = ()
    #: Their states; any if empty.
    states: tuple[State, ...] = ()
    #: Versions that failed on them, now or earlier; any if empty.
    failed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.versions or self.states or self.failed)

    def matches(self, row: Row) -> bool:
        """Return whether a device is selected."""
        if self.versions and row.current not in self.versions:
            return False
        if self.failed and not any(failure.version in self.failed for failure in row.failed):
            return False
        return not self.states or row.state in self.states

    def __str__(self) -> str:
        parts = [(f"running {' or '.join(self.versions)}", self.versions), (" or ".join(self.states), self.states)]
        parts.append((f"{' or '.join(self.failed)} failed on them", self.failed))
        return ", ".join(text for text, values in parts if values)


@dataclass(frozen=True, slots=True)
class DeviceEdit:
    """A device that was to be changed."""

    device: str
    #: None if the registry did not take the change.
    change: Change | None
    #: Why it did not; empty if it did.
    problem: str = ""


def read_rows(session: RolloutSession, seen: Callable[[int], object] = lambda _: None) -> Iterator[tuple[Device, Row]]:
    """Yield each device of the application with its row.

    Args:
        session: of the application.
        seen: is called after each page with the number of devices so far.

    Raises:
        PermanentError, TransientError: the devices cannot be read.

    """
    count = 0
    for devices in list_devices(session.upstream, session.name):
        now = session.now()
        yield from ((device, read_row(device, now)) for device in devices)
        count += len(devices)
        seen(count)


def needs_retry(row: Row) -> bool:
    """Return whether a device rolled back, or gave its target up."""
    return row.state is State.ROLLED_BACK or row.gave_up


def edit_devices(
    session: RolloutSession, names: Iterable[str], change: Callable[[Object], Object | None]
) -> Iterator[DeviceEdit]:
    """Change devices, several at a time, and yield each when it is done.

    A device that cannot be changed, because it was deleted meanwhile for instance, has a `problem`.

    Raises:
        TransientError: the registry is unavailable for some seconds.

    """
    rest = iter(names)
    with ThreadPoolExecutor(_WORKERS) as pool:
        # No more are begun than the caller has seen the end of, so that it can stop.
        edits = deque(pool.submit(_try_edit, session, name, change) for name in islice(rest, _WORKERS))
        try:
            while edits:
                yield edits.popleft().result()
                edits.extend(pool.submit(_try_edit, session, name, change) for name in islice(rest, 1))
        finally:
            for edit in edits:
                edit.cancel()


def _try_edit(session: RolloutSession, name: str, change: Callable[[Object], Object | None]) -> DeviceEdit:
    try:
        return DeviceEdit(name, _edit(session, name, change))
    except PermanentError as error:
        return DeviceEdit(name, None, error.reason)


def _edit(session: RolloutSession, name: str, change: Callable[[Object], Object | None]) -> Change:
    for attempt in range(_MAX_ATTEMPTS):
        try:
            return session.edit((session.name, name), f"device {name}", change)
        except TransientError as error:
            if attempt == _MAX_ATTEMPTS - 1:
                raise
            time.sleep(error.negative_ttl)
    raise AssertionError


def with_label(found: Mapping[str, Any], value: str) -> Object | None:
    """Return a device with the label of selected devices; None if it has it."""
    metadata, labels = _part(found, "metadata"), found["metadata"].get("labels") or {}
    if labels.get(SELECTION_LABEL) == value:
        return None
    return {**found, "metadata": {**metadata, "labels": {**labels, SELECTION_LABEL: value}}}


def with_retry(found: Mapping[str, Any], token: str) -> Object | None:
    """Return a device whose failed attempts are forgotten; None if they are already.

    Raises:
        RefusedError: the device's `spec.firmware` is malformed.

    """
    spec = _part(found, "spec")
    before = _part(spec, "firmware")
    if before.get("retry") == token:
        return None
    firmware = {**before, "retry": token}
    for part in read_firmware_spec(firmware, "the device's spec.firmware"):
        if isinstance(part, Malformed):
            raise RefusedError(part.reason)
    return {**found, "spec": {**spec, "firmware": firmware}}


def tell_retry(session: RolloutSession, names: Sequence[str], token: str) -> str:
    """Send an event of a retry to the sink; return why that failed.

    Args:
        session: of the application.
        names: the devices that try again.
        token: the new value of their `spec.firmware.retry`.

    """
    change = {"devices": list(names[:_MAX_TOLD]), "count": len(names), "spec.firmware.retry": token}
    return session.tell("retry", change)


def label_value(version: str) -> str:
    """Return a version as the value of a label.

    Characters that no label can have are replaced; a hash tells such versions apart.
    """
    if _LABEL.fullmatch(version) and len(version) <= _MAX_LABEL_CHARACTERS:
        return version
    digest = hashlib.sha256(version.encode(errors="surrogatepass")).hexdigest()[:_HASH_CHARACTERS]
    text = re.sub(r"[^A-Za-z0-9_.-]", "_", version)[: _MAX_LABEL_CHARACTERS - _HASH_CHARACTERS - 1].lstrip("_.-")
    return f"{text}-{digest}" if text else digest


def _part(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    try:
        return read_map(found, key)
    except ValueError as error:
        raise RefusedError(f"the device's {error}") from error
