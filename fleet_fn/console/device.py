"""One device, read when its page is asked for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fleet_fn.console.access import Access
from fleet_fn.console.snapshot import Snapshot
from fleet_fn.console.users import User
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceRegistryAPI
from fleet_fn.drogue.device_registry_object import read_map
from fleet_fn.drogue.firmware_spec import Malformed
from fleet_fn.drogue.listing import Device, read_device
from fleet_fn.drogue.spec_policy import NONE
from fleet_fn.drogue.status_report import Reported
from fleet_fn.drogue.update_record import Record
from fleet_fn.errors import TransientError
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rows import Row, read_row
from fleet_fn.update.decision import MAX_ATTEMPTS

#: How long a page waits for the device's object.
_WAIT_SECONDS: Final = 4.0


@dataclass(frozen=True, slots=True)
class ReadDevice:
    """A device as the registry has it now."""

    #: Its object.
    found: Mapping[str, Any]
    device: Device
    row: Row
    at: datetime

    @property
    def created(self) -> str | None:
        """When it was created, as the registry tells it."""
        created = self.found["metadata"].get("creationTimestamp")
        return created if isinstance(created, str) else None

    @property
    def record(self) -> Record | None:
        """The record of its update."""
        return self.reported.record

    @property
    def reported(self) -> Reported:
        """The last report on it."""
        status = self.device.status
        return Reported.read(status.get("firmware") if isinstance(status, dict) else None)

    @property
    def problems(self) -> list[str]:
        """What is malformed in its own `spec.firmware`."""
        parts = (self.device.source, self.device.policy)
        return list(dict.fromkeys(part.reason for part in parts if isinstance(part, Malformed)))

    @property
    def own_firmware(self) -> str:
        """Its own `spec.firmware`, as JSON for people; empty if it has none."""
        spec = self.found.get("spec")
        own = spec.get("firmware") if isinstance(spec, dict) else None
        return json.dumps(own, indent=2, ensure_ascii=False, sort_keys=True) if own else ""

    def max_attempts(self, application: Application | None) -> int:
        """Return the attempts after which a version is given up on it."""
        own = NONE if isinstance(self.device.policy, Malformed) else self.device.policy
        try:
            policy = own.over(application.policy) if application else own
        except RefusedError:
            policy = own
        return policy.max_attempts or MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class KnownDevice:
    """A device as the last snapshot has it, and why it could not be read now."""

    row: Row
    labels: Mapping[str, str]
    has_own_firmware: bool
    disabled: bool
    at: datetime
    problem: str


def read_now(access: Access, user: User, application: str, name: str) -> ReadDevice:
    """Return a device, read with the user's own credentials.

    Raises:
        PermanentError: there is no such device, or the user may not see it, or its object is malformed.
        TransientError: Drogue Cloud does not answer.

    """
    api = DeviceRegistryAPI(user.upstream)
    found, _ = access.ask(user, lambda: api.fetch((application, name), Deadline(_WAIT_SECONDS)))
    device, now = read_device(found, application), datetime.now(UTC)
    return ReadDevice(found, device, read_row(device, now), now)


def find_in(snapshot: Snapshot, name: str, error: TransientError) -> KnownDevice:
    """Return a device that could not be read, as the last snapshot has it.

    Raises:
        TransientError: the error, if the snapshot has no such device.

    """
    devices = snapshot.devices
    for entry in (devices.entries if devices else None) or ():
        if devices and entry.row.device == name:
            return KnownDevice(
                entry.row, entry.labels, entry.has_own_firmware, entry.disabled, devices.at, error.reason
            )
    raise error


def core_is_disabled(application: Application | None) -> bool:
    """Return whether the whole application is disabled, as far as is known."""
    if application is None:
        return False
    try:
        return read_map(read_map(application.found, "spec"), "core").get("disabled") is True
    except ValueError:
        return False
