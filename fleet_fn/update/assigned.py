"""Find the firmware that a DDI server assigns to a device, with few requests.

An update is begun, and its SWAP sent, only by what the server said within the last second. In between the device's
record does: it has the action, and the size and the hash of the bytes. So a process that has never asked the server, or
cannot reach it, goes on with blocks.
"""

from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.spec_source import HawkBit
from fleet_fn.drogue.update_record import HawkbitAction, Origin, Record
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.assignment import Assignment, Controller, Kind
from fleet_fn.firmware.hawkbit_store import HawkbitStore
from fleet_fn.firmware.store import Firmware
from fleet_fn.update.freshness import Ages
from fleet_fn.update.values import DeviceStatus, SourceHold
from fleet_fn.update.warnings import warn

#: The share of an event's time within which the server is asked if the device's record can take its place.
_KEPT_FOR_RECORD: Final = 0.5
#: How long a reading counts that contradicts the device's record: another process may have begun the update since.
_DISPUTED_SECONDS: Final = 10.0
_APPROVAL: Final = SourceHold("approval", "hawkBit waits until the update is confirmed", of_swap_only=False)
_NO_DOWNLOAD: Final = SourceHold("window", "hawkBit does not allow the download yet", of_swap_only=False)
_NO_SWAP: Final = SourceHold("window", "hawkBit does not allow the installation yet", of_swap_only=True)


class Assigned(NamedTuple):
    """What a DDI server wants of a device."""

    controller: Controller
    assignment: Assignment
    #: None if it wants nothing.
    firmware: Firmware | None = None

    @property
    def action(self) -> str:
        """The open action that brings the device its firmware; empty without one."""
        return self.assignment.action if self.firmware else ""

    @property
    def hold(self) -> SourceHold | None:
        """Why the server holds the device back; None if it does not."""
        assignment = self.assignment
        if assignment.kind is Kind.CONFIRMATION:
            return _APPROVAL
        if not assignment.may_write:
            return _NO_DOWNLOAD
        return None if assignment.may_swap else _NO_SWAP

    @property
    def origin(self) -> Origin | None:
        """The place of the firmware's bytes, for the record."""
        if self.firmware is None or not self.action:
            return None
        path = self.assignment.path
        return Origin(hawkbit=HawkbitAction(self.controller.name, self.action, self.firmware.size, path))


class AssignmentFinder:
    """Finds what a DDI server wants of a device."""

    def __init__(self, store: HawkbitStore) -> None:
        self._store = store

    def find(
        self, received: DeviceStatus, source: HawkBit, record: Record | None, ages: Ages, deadline: Deadline
    ) -> Assigned:
        """Return what the server wants of a device.

        Args:
            received: the device's status.
            source: its controller.
            record: that of its update; None if there is none, or if records are not kept.
            ages: how old the server's word may be.
            deadline: bounds the requests.

        Raises:
            PermanentError, TransientError: that cannot be told.

        """
        controller = controller_of(source, received.event)
        begun = self._begun(received, controller, record)
        assignment = self._assignment(received.event, controller, begun, ages, deadline)
        match assignment.kind:
            case Kind.NOTHING:
                installed = assignment.firmware
                if record and not assignment.tells_installed and record.synced and _is_of(record, controller):
                    installed = self.recorded(record)
                runs_it = installed is not None and installed.version.encode() == received.status.version
                return Assigned(controller, assignment, installed if runs_it else None)
            case Kind.CANCELLATION:
                # After SWAP it is too late: the device may come up with the new version at any time.
                late = record is not None and is_swapped(record, controller, assignment.action)
                return Assigned(controller, assignment, self.recorded(record) if record and late else None)
        if assignment.problem:
            raise PermanentError(assignment.problem)
        return Assigned(controller, assignment, assignment.firmware)

    def recorded(self, record: Record) -> Firmware | None:
        """Return the firmware of a recorded update; None if it was of another source.

        Raises:
            PermanentError: no firmware can be like that.

        """
        own = record.origin.hawkbit if record.origin else None
        if own is None:
            return None
        try:
            checksum = bytes.fromhex(record.checksum)
        except ValueError as error:
            raise PermanentError("the record of the device's update is malformed") from error
        return self._store.recorded(Controller(own.controller), record.version, own.size, checksum, own.path)

    def _begun(self, received: DeviceStatus, controller: Controller, record: Record | None) -> Assignment | None:
        """Return the assignment that the device is midway in, by its record, or None."""
        progress = received.status.progress
        own = record.origin.hawkbit if record and record.origin else None
        if record is None or own is None or own.controller != controller.name or record.synced:
            return None
        if progress is None or not progress.offset or not record.describes(progress.version):
            return None
        return Assignment(Kind.DEPLOYMENT, own.action, self.recorded(record), path=own.path)

    def _assignment(
        self, event: Event, controller: Controller, begun: Assignment | None, ages: Ages, deadline: Deadline
    ) -> Assignment:
        store, max_age = self._store, ages.assignment()
        if begun is None or not ages.takes_records:
            return store.assignment(controller, max_age, deadline)
        if not store.is_known(controller):
            store.resume(controller)
        known = store.peek(controller, max_age)
        if known and not _lets_go_on(known, begun):
            max_age = min(max_age, _DISPUTED_SECONDS)
        elif known:
            return known
        elif store.is_resumed(controller, max_age):
            return begun
        try:
            return store.assignment(controller, max_age, deadline.leave(_KEPT_FOR_RECORD))
        except UpstreamError as error:
            # Its blocks are verified, so it goes on. What ends its update asks the server again.
            warn("DDI server unavailable; going on by the device's record", event, error)
            store.resume(controller)
            return begun


def _lets_go_on(known: Assignment, begun: Assignment) -> bool:
    """Return whether a reading lets an update go on that a record says was begun.

    A cancellation may follow later.
    """
    is_open = known.kind in (Kind.DEPLOYMENT, Kind.CANCELLATION)
    return is_open and known.action == begun.action and known.may_write


def controller_of(source: HawkBit, event: Event) -> Controller:
    """Return the controller of an event's device."""
    # In one pass: a device may be named after a placeholder.
    parts = source.controller.split("{device}")
    name = event.device.join(part.replace("{application}", event.application) for part in parts)
    return Controller(name, source.part, source.file)


def _is_of(record: Record, controller: Controller) -> bool:
    return bool(record.origin and record.origin.hawkbit and record.origin.hawkbit.controller == controller.name)


def is_swapped(record: Record, controller: Controller, action: str) -> bool:
    """Return whether SWAP was sent for an action, and has no result yet."""
    own = record.origin.hawkbit if record.origin else None
    is_of = own is not None and (own.controller, own.action) == (controller.name, action)
    return is_of and record.swapped is not None and record.synced is None
