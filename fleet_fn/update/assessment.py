"""Assess a device: find its target, and decide its next step."""

import zlib
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import (
    Desired,
    DeviceDisabledError,
    DeviceNotFoundError,
    DeviceNotServedError,
    DeviceRegistry,
)
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.update_record import LastAnswered, Record
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.store import Firmware, NotReadyError
from fleet_fn.firmware.trust import UntrustedFirmwareError
from fleet_fn.protocol.dialects import MAX_VERSION_BYTES, AnswerForm, Dialect, room_for_data
from fleet_fn.protocol.messages import U32_MAX, Status, Swap, Sync
from fleet_fn.protocol.step import FLASH_WORD_BYTES, Block, Target
from fleet_fn.settings import Settings
from fleet_fn.update.decision import confirm, decide
from fleet_fn.update.freshness import Ages, Clock, recalled_ages
from fleet_fn.update.repeats import Repeats
from fleet_fn.update.target import Found, TargetFinder
from fleet_fn.update.unsent import UnsentCommands
from fleet_fn.update.values import Confirm, Decision, DecisionContext, DeviceStatus, Freshness
from fleet_fn.update.warnings import warn

if TYPE_CHECKING:
    from fleet_fn.update.assigned import Assigned

#: The share of an event's time within which its target is resolved if the device has to hear SYNC all the same.
_KEPT_FOR_SYNC: Final = 0.5
#: Bytes of a command that Drogue Cloud takes, its envelope included.
MAX_COMMAND_BYTES: Final = 65_536
#: A block that has to be shortened for that is a multiple of the largest flash word.
_BLOCK_UNIT_BYTES: Final = max(FLASH_WORD_BYTES)
#: Accepted SYNCs after which a device counts as having heard one although it reports early. Devices of the embedded
#: dialects keep still for `poll` seconds once they have heard it; other clients may not.
_ENOUGH_SYNCS: Final = {Dialect.DOCUMENTED: 2, Dialect.NAMED: 3, Dialect.PACKED: 3}
#: Gateways of a device that are looked at. Drogue Cloud's devices have one, or a few.
_MAX_GATEWAYS: Final = 8
#: The longest time for which another process is believed to remember an object.
_MAX_SPEC_TTL_SECONDS: Final = 365 * 24 * 60 * 60.0
#: The same block asked for so many times in a row is reported.
SUSPICIOUS_REPEATS: Final = 5


class View(NamedTuple):
    """Facts about a device, and the decision that rests on them."""

    desired: Desired
    #: The target; None if none is named, or it could not be resolved.
    target: Firmware | None = None
    #: The firmware whose blocks the device gets: the target, or the one that it finishes first.
    served: Firmware | None = None
    decision: Decision | None = None
    #: Why the target could not be resolved, and the particulars; empty if nothing went wrong.
    problem: str = ""
    message: str = ""
    #: What a DDI server wants of the device; None without one.
    assigned: "Assigned | None" = None

    @property
    def rests_on(self) -> Freshness:
        """Freshness that the facts need."""
        return self.decision.rests_on if self.decision else Freshness.MEMORY


class Assessor:
    """Finds the targets of devices, and decides their next steps."""

    def __init__(
        self,
        settings: Settings,
        device_registry: DeviceRegistry,
        targets: TargetFinder,
        clock: Clock,
        repeats: Repeats,
        unsent: UnsentCommands,
    ) -> None:
        """Put the parts together.

        Args:
            settings: the function's.
            device_registry: reads specs, and writes reports.
            targets: finds the firmware of specs.
            clock: the wall clock.
            repeats: blocks sent in a row.
            unsent: events whose commands had no effect.

        """
        self._settings = settings
        self._device_registry = device_registry
        self._targets = targets
        self._clock = clock
        self._repeats, self._unsent = repeats, unsent
        self._spec_ttl = timedelta(seconds=min(settings.spec_ttl_seconds, _MAX_SPEC_TTL_SECONDS))

    def assess(self, received: DeviceStatus, ages: Ages, deadline: Deadline) -> View:
        """Return the device's target, and the decision about its next step.

        Raises:
            NotReadyError, PermanentError, TransientError: the target is not known, or cannot be had.

        """
        event, status, form = received
        with self._clock.final_if_too_late(event, DeviceNotFoundError):
            desired = self._device_registry.read_desired(
                event.application, event.device, ages.application(), deadline, of_device=ages.device()
            )
        if desired.disabled:
            raise DeviceDisabledError("device disabled")
        context = self._context(received, desired)
        syncs_first = confirm(status, None, context)
        try:
            until = deadline.leave(_KEPT_FOR_SYNC) if syncs_first else deadline
            found = self._targets.find(received, desired, ages, until)
            if found.firmware is None:
                return View(desired, assigned=found.assigned)
            firmware, context = found.firmware, _with_found(context, found, found.firmware)
            begun = self._targets.find_begun(received, desired, firmware, ages, until)
        except (UpstreamError, NotReadyError) as error:
            if syncs_first is None or self._came_up_with_untrusted(received, error, context.record, ages, deadline):
                raise
            warn("target not resolved", event, error)
            message = error.message if isinstance(error, PermanentError) else ""
            return View(desired, decision=syncs_first, problem=error.reason, message=message)
        served, context_of_served = (begun, _as_begun(context, found)) if begun else (firmware, context)
        decision = self._decide(status, served, context_of_served, form)
        if begun and isinstance(decision.step, Block) and decision.step.offset == 0:
            # A device that has to begin anew all the same begins with its target.
            served, context_of_served = firmware, context
            decision = self._decide(status, served, context, form)
        if desired.gateways and isinstance(decision.step, Block | Swap):
            busy = self._busy_gateway(event, desired, ages, deadline)
            if busy:
                decision = self._decide(status, served, context_of_served._replace(busy_gateway=busy), form)
        has_nothing = status.progress is None or status.progress.offset == 0
        if has_nothing and self._refuses_starts(event, decision, form):
            decision = Decision(Confirm(status.version, self._settings.poll_seconds), desired.reported.record)
        if decision.records_first and decision.record and served is firmware:
            origin = found.assigned.origin if found.assigned else decision.record.origin
            origin = origin or self._targets.origin(event, desired, firmware)
            decision = decision._replace(record=replace(decision.record, origin=origin))
        return View(desired, firmware, served, decision, assigned=found.assigned)

    def recall(self, received: DeviceStatus, deadline: Deadline) -> View | None:
        """Return the decision to answer SYNC by an object that IN_SYNC_TTL_SECONDS allow.

        Return None if the object does not do. It must lead to no other decision, and say that the device was in sync
        with the version that it reports. A status that is old could be of a device that another process has updated
        since. It must not hear SYNC for a version that it left, so the object must be as new as ever then.
        """
        event, status, _ = received
        settings = self._settings
        if settings.in_sync_ttl_seconds <= settings.spec_ttl_seconds or event.time is None:
            return None
        # A status from the future may be old, too: the clock that gave it its time is ahead.
        if abs((self._clock.now() - event.time).total_seconds()) > settings.spec_ttl_seconds:
            return None
        if status.progress and status.progress.version != status.version:
            return None  # another process may be updating it
        version = status.version.decode(errors="replace")
        names = event.application, event.device, version, event.device_uid
        if not self._device_registry.remembers_in_sync(*names, settings.in_sync_ttl_seconds):
            return None
        try:
            view = self.assess(received, recalled_ages(settings), deadline)
        except (UpstreamError, NotReadyError, DeviceNotServedError):
            return None  # it may rest on the old object
        decision = view.decision
        is_sync = decision is not None and isinstance(decision.step, Sync) and decision.rests_on is Freshness.MEMORY
        return view if is_sync else None

    def _came_up_with_untrusted(
        self, received: DeviceStatus, error: Exception, record: Record | None, ages: Ages, deadline: Deadline
    ) -> bool:
        """Return whether a device must not hear SYNC for the version that it came up with.

        SYNC would mark that version good. Without SYNC, many bootloaders go back to the one before. The target may be
        untrusted, and the device's firmware not: then an unsigned push must not send the device back.
        """
        if not isinstance(error, UntrustedFirmwareError) or record is None:
            return False
        return self._targets.is_untrusted(received, record, ages, deadline)

    def _refuses_starts(self, event: Event, decision: Decision, form: AnswerForm) -> bool:
        """Return whether a device asks for its first block again and again.

        Bootloaders refuse it as long as their firmware is not marked good, which SYNC does.
        """
        step = decision.step
        if form.dialect is Dialect.DOCUMENTED or not isinstance(step, Block) or step.offset:
            return False
        return self._repeats.of(event.application, event.device, step) >= SUSPICIOUS_REPEATS

    def _decide(self, status: Status, firmware: Firmware, context: DecisionContext, form: AnswerForm) -> Decision:
        target = Target(firmware.version.encode(), firmware.size, firmware.checksum)
        mtu = self._fit_block(context.mtu, form, target.version, status)
        return decide(status, target, context if mtu == context.mtu else context._replace(mtu=mtu))

    def _context(self, received: DeviceStatus, desired: Desired) -> DecisionContext:
        event, status, form = received
        settings = self._settings
        mtu = min(status.mtu or settings.mtu_default_bytes, settings.mtu_max_bytes, desired.policy.mtu or U32_MAX)
        # A record says nothing if no process keeps it up to date.
        record = desired.reported.record if settings.report_status else None
        if record and record.answered and self._unsent.covers(event.key, record):
            record = replace(record, answered=record.answered.without(event.key))
        return DecisionContext(
            now=self._clock.now(),
            mtu=mtu,
            poll=settings.poll_seconds,
            record=record,
            policy=desired.policy,
            rollout=desired.rollout,
            uid=event.device_uid or desired.uid,
            labels=desired.labels,
            answered=LastAnswered((event.key,), event.time, _fingerprint(status, form)) if event.id else None,
            spec_ttl=self._spec_ttl,
            keeps_records=settings.report_status,
            enough_syncs=_ENOUGH_SYNCS[form.dialect],
            device_uid=event.device_uid,
            correlates=form.correlation_id is not None,
            tells_refusals=form.dialect is not Dialect.DOCUMENTED,
        )

    def _busy_gateway(self, event: Event, desired: Desired, ages: Ages, deadline: Deadline) -> str:
        """Return a gateway of the device that would take its block; empty if none.

        Such a gateway is being updated, and takes any block for its own.
        """
        now = self._clock.now()
        for gateway in desired.gateways[:_MAX_GATEWAYS]:
            record = self._device_registry.read_record(event.application, gateway, ages.device(), deadline)
            if gateway != event.device and record and record.is_under_way(now) and not record.correlates:
                return gateway
        return ""

    def _fit_block(self, mtu: int, form: AnswerForm, version: bytes, status: Status) -> int:
        """Return the largest block, in bytes, whose command Drogue Cloud takes."""
        if 4 * mtu <= 3 * (MAX_COMMAND_BYTES - 4 * MAX_VERSION_BYTES):
            return mtu  # fits in any form
        offset = status.progress.offset if status.progress else 0
        room = room_for_data(form, version, offset, MAX_COMMAND_BYTES)
        return mtu if mtu <= room else room // _BLOCK_UNIT_BYTES * _BLOCK_UNIT_BYTES


def _with_found(context: DecisionContext, found: Found, target: Firmware) -> DecisionContext:
    """Return the context with what the target's source says besides the target."""
    if found.highest != target.version:
        context = context._replace(rollout_version=found.highest)
    if found.assigned is None:
        return context
    return context._replace(source_hold=found.assigned.hold, action=found.assigned.action)


def _as_begun(context: DecisionContext, found: Found) -> DecisionContext:
    """Return the context for the firmware that a device finishes before its target."""
    origin = context.record.origin if context.record else None
    action = origin.hawkbit.action if origin and origin.hawkbit else ""
    return context._replace(source_hold=None, action=action, rollout_version=found.highest)


def _fingerprint(status: Status, form: AnswerForm) -> str:
    """Return a text that is the same for a status that is published twice.

    The correlation id makes no difference.
    """
    progress = status.progress and (status.progress.version, status.progress.offset)
    content = (status.version, status.mtu, progress, form.dialect.value, form.encoding.value)
    return f"{zlib.crc32(repr(content).encode()):08x}"
