"""Assess a device: find its target, and decide its next step."""

import zlib
from dataclasses import replace
from datetime import timedelta
from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import (
    Desired,
    DeviceDisabledError,
    DeviceNotFoundError,
    DeviceRegistry,
)
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.spec_policy import FINISH, RESTART
from fleet_fn.drogue.spec_source import File, HawkBit, Image
from fleet_fn.drogue.update_record import LastAnswered, Origin, Record
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.file_store import file_reference
from fleet_fn.firmware.resolver import Resolver
from fleet_fn.firmware.store import Firmware, NotReadyError
from fleet_fn.oci.reference import Reference, fill_in, image_reference
from fleet_fn.protocol.dialects import MAX_VERSION_BYTES, AnswerForm, Dialect, room_for_data
from fleet_fn.protocol.messages import U32_MAX, Status, Swap
from fleet_fn.protocol.step import FLASH_WORD_BYTES, Block, Target
from fleet_fn.settings import Settings
from fleet_fn.update.decision import MAX_ATTEMPTS, confirm, decide, has_begun
from fleet_fn.update.freshness import Ages, Clock
from fleet_fn.update.repeats import Repeats
from fleet_fn.update.unsent import UnsentCommands
from fleet_fn.update.values import Confirm, Decision, DecisionContext, Freshness
from fleet_fn.update.warnings import warn

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


class DeviceStatus(NamedTuple):
    """An event with its status, and the form in which the device wants its answer."""

    event: Event
    status: Status
    form: AnswerForm


class View(NamedTuple):
    """Facts about a device, and the decision that rests on them."""

    desired: Desired
    #: The target; None if none is named, or it could not be resolved.
    target: Firmware | None = None
    #: The firmware whose blocks the device gets: the target, or the one that it finishes first.
    served: Firmware | None = None
    decision: Decision | None = None
    #: Why the target could not be resolved; empty if nothing went wrong.
    problem: str = ""

    @property
    def rests_on(self) -> Freshness:
        """Freshness that the facts need."""
        return self.decision.rests_on if self.decision else Freshness.MEMORY


class Resolvers(NamedTuple):
    """Resolvers by kind of source; None if there are no files."""

    images: Resolver
    files: Resolver | None


class Assessor:
    """Finds the targets of devices, and decides their next steps."""

    def __init__(
        self,
        settings: Settings,
        device_registry: DeviceRegistry,
        resolvers: Resolvers,
        clock: Clock,
        repeats: Repeats,
        unsent: UnsentCommands,
    ) -> None:
        """Put the parts together.

        Args:
            settings: the function's.
            device_registry: reads specs, and writes reports.
            resolvers: resolve references.
            clock: the wall clock.
            repeats: blocks sent in a row.
            unsent: events whose commands had no effect.

        """
        self._settings = settings
        self._device_registry = device_registry
        self._images, self._files = resolvers
        self._clock = clock
        self._repeats, self._unsent = repeats, unsent

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
            firmware = self._firmware(event, desired, ages, until)
            if firmware is None:
                return View(desired)
            served = self._find_begun(received, desired, firmware, ages, until) or firmware
        except (UpstreamError, NotReadyError) as error:
            if syncs_first is None:
                raise
            warn("target not resolved", event, error)
            return View(desired, decision=syncs_first, problem=error.reason)
        decision = self._decide(status, served, context, form)
        if served is not firmware and isinstance(decision.step, Block) and decision.step.offset == 0:
            # A device that has to begin anew all the same begins with its target.
            served = firmware
            decision = self._decide(status, served, context, form)
        if desired.gateways and isinstance(decision.step, Block | Swap):
            busy = self._busy_gateway(event, desired, ages, deadline)
            decision = self._decide(status, served, context._replace(busy_gateway=busy), form) if busy else decision
        has_nothing = status.progress is None or status.progress.offset == 0
        if has_nothing and self._refuses_starts(event, decision, form):
            decision = Decision(Confirm(status.version, self._settings.poll_seconds), desired.reported.record)
        if decision.records_first and decision.record and decision.record.origin is None:
            decision = decision._replace(record=replace(decision.record, origin=self._origin(event, desired, firmware)))
        return View(desired, firmware, served, decision)

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
        return decide(status, target, context._replace(mtu=mtu))

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
            spec_ttl=timedelta(seconds=min(settings.spec_ttl_seconds, _MAX_SPEC_TTL_SECONDS)),
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

    def _source(self, event: Event, desired: Desired) -> Image | File | HawkBit | None:
        """Return the device's firmware source: the specs', else the configured default."""
        source = desired.source
        if source is None and self._settings.firmware_default_image:
            names = {"application": event.application, "device": event.device}
            source = Image(fill_in(self._settings.firmware_default_image, names))
        return source

    def _firmware(self, event: Event, desired: Desired, ages: Ages, deadline: Deadline) -> Firmware | None:
        """Return the firmware that the device should run; None if none is named."""
        source = self._source(event, desired)
        if source is None:
            return None
        with self._clock.final_if_too_late(event, PermanentError):
            if isinstance(source, Image):
                max_age = ages.always() if source.always else ages.manifest()
                return self._images.resolve(self._reference(event, source), max_age, deadline, stale_age=ages.stale)
            if isinstance(source, File) and self._files is not None:
                # Unlike a blob's, its bytes may be others by now: what describes them is read each time.
                return self._files.resolve(file_reference(source.name), 0.0, deadline)
        raise PermanentError("unsupported-source")

    def _reference(self, event: Event, image: Image) -> Reference:
        return image_reference(image.reference, self._settings.firmware_prefix, event.application, image.platform)

    def _origin(self, event: Event, desired: Desired, firmware: Firmware) -> Origin | None:
        """Return the place of the target's bytes, independent of tags."""
        source = self._source(event, desired)
        if isinstance(source, Image) and firmware.manifest:
            name = self._reference(event, source).name
            return Origin(image=f"{name}@{firmware.manifest}", platform=source.platform)
        return Origin(file=source.name) if isinstance(source, File) else None

    def _find_begun(
        self, received: DeviceStatus, desired: Desired, target: Firmware, ages: Ages, deadline: Deadline
    ) -> Firmware | None:
        """Return the firmware that a device midway finishes before its target, or None.

        Devices of the embedded dialects cannot begin anew midway. None as well if the device's record is missing or of
        another version, or if the bytes that it began with are gone.
        """
        event, status, form = received
        record, progress = desired.reported.record, status.progress
        if record is None or not progress or not has_begun(status) or not self._settings.report_status:
            return None
        if record.version == target.version or record.origin is None or not record.describes(progress.version):
            return None  # a device that finished other bytes of the target's version would never get the target's
        default = RESTART if form.dialect is Dialect.DOCUMENTED else FINISH
        if (desired.policy.midway or default) == RESTART or _is_given_up(record, desired):
            return None
        try:
            begun = self._firmware(event, _desire(desired, record.origin), ages, deadline)
        except PermanentError as error:
            warn("firmware that the device has begun is gone", event, error)
            return None
        if begun is None or begun.checksum.hex() != record.checksum:
            return None
        return replace(begun, version=record.version)  # a digest need not tell the version


def _is_given_up(record: Record, desired: Desired) -> bool:
    """Return whether a version fails, on this device or on others.

    Then a device that has begun it must not finish it.
    """
    if record.attempts >= (desired.policy.max_attempts or MAX_ATTEMPTS):
        return True
    return desired.rollout.halts(record.version, desired.policy.max_failed)


def _desire(desired: Desired, origin: Origin) -> Desired:
    """Return what would be desired if the spec named an update's origin."""
    if origin.image:
        return desired._replace(source=Image(origin.image, platform=origin.platform))
    return desired._replace(source=File(origin.file or ""))


def _fingerprint(status: Status, form: AnswerForm) -> str:
    """Return a text that is the same for a status that is published twice.

    The correlation id makes no difference.
    """
    progress = status.progress and (status.progress.version, status.progress.offset)
    content = (status.version, status.mtu, progress, form.dialect.value, form.encoding.value)
    return f"{zlib.crc32(repr(content).encode()):08x}"
