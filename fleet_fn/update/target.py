"""Find the firmware that a device should run, or finishes first."""

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import Desired
from fleet_fn.drogue.events import Event
from fleet_fn.drogue.spec_policy import FINISH, REFUSE, RESTART
from fleet_fn.drogue.spec_source import File, HawkBit, Image, Source
from fleet_fn.drogue.update_record import Origin, Record
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.firmware.file_store import file_reference
from fleet_fn.firmware.resolver import ImageResolver, Resolver
from fleet_fn.firmware.store import Firmware, NotReadyError
from fleet_fn.firmware.trust import Trust, UntrustedFirmwareError, as_signed
from fleet_fn.oci.reference import Reference, fill_in, image_reference
from fleet_fn.protocol.dialects import Dialect
from fleet_fn.settings import Settings
from fleet_fn.update import fitness
from fleet_fn.update.choice import Choice, Repository, choose_in_range
from fleet_fn.update.decision import MAX_ATTEMPTS, has_begun
from fleet_fn.update.fitness import Fitting
from fleet_fn.update.freshness import Ages, Clock
from fleet_fn.update.values import DeviceStatus
from fleet_fn.update.warnings import warn

if TYPE_CHECKING:
    from fleet_fn.firmware.hawkbit_store import HawkbitStore
    from fleet_fn.update.assigned import Assigned, AssignmentFinder


class Resolvers(NamedTuple):
    """Resolvers by kind of source, and who decides whether a firmware may be served."""

    images: ImageResolver
    #: None if there are no files.
    files: Resolver | None
    trust: Trust
    #: None if there is no DDI server.
    hawkbit: "HawkbitStore | None" = None


class Found(NamedTuple):
    """What a device should run."""

    #: None if no firmware is named, or assigned.
    firmware: Firmware | None = None
    #: The version that the rollout is of.
    highest: str = ""
    #: What a DDI server wants of the device; None without one.
    assigned: "Assigned | None" = None


class TargetFinder:
    """Finds the firmware that specs and records name.

    No device gets a byte of a firmware that does not come from here.
    """

    def __init__(self, settings: Settings, resolvers: Resolvers, clock: Clock) -> None:
        self._settings = settings
        self._images, self._files, self._trust, hawkbit = resolvers
        self._assignments = _make_finder(hawkbit) if hawkbit else None
        self._clock = clock

    def find(self, received: DeviceStatus, desired: Desired, ages: Ages, deadline: Deadline) -> Found:
        """Return the firmware that a device should run.

        Raises:
            UnfitError: it is not for this device.
            NotReadyError, PermanentError, TransientError: it cannot be had.

        """
        event = received.event
        source = self._source(event, desired)
        if source is None:
            return Found()
        device = self._fitting(received, desired)
        assigned: Assigned | None = None
        with self._clock.final_if_too_late(event, PermanentError):
            if isinstance(source, Image) and source.version is not None:
                choice = self._choose(event, source, source.version, device, ages, deadline)
            elif isinstance(source, HawkBit):
                assigned = self._assigned(received, source, desired, ages, deadline)
                if assigned.firmware is None:
                    return Found(assigned=assigned)
                firmware = self._trusted(event, assigned.firmware, deadline)
                choice = Choice(firmware, firmware.version)
            else:
                firmware = self._resolve(event, source, ages, deadline)
                choice = Choice(firmware, firmware.version)
        if choice.firmware.version.encode() != received.status.version:  # else nothing is sent
            fitness.check(choice.firmware, device)
        return Found(choice.firmware, choice.highest, assigned)

    def find_begun(
        self, received: DeviceStatus, desired: Desired, target: Firmware, ages: Ages, deadline: Deadline
    ) -> Firmware | None:
        """Return the firmware that a device midway finishes before its target, or None.

        Devices of the embedded dialects cannot begin anew midway. None as well if the device's record is missing or of
        another version, or if the bytes that it began with are gone.

        Raises:
            NotReadyError, TransientError: it cannot be had now.

        """
        event, status, form = received
        record, progress = desired.reported.record, status.progress
        if record is None or not progress or not has_begun(status) or not self._settings.report_status:
            return None
        if record.version == target.version or record.origin is None or not record.describes(progress.version):
            return None  # a device that finished other bytes of the target's version would never get the target's
        if record.origin.hawkbit and isinstance(self._source(event, desired), HawkBit):
            return None  # its action is not open any more: it was canceled, or closed for another one
        default = RESTART if form.dialect is Dialect.DOCUMENTED else FINISH
        if (desired.policy.midway or default) == RESTART or _is_given_up(record, desired):
            return None
        try:
            with self._clock.final_if_too_late(event, PermanentError):
                begun = self._resolve_recorded(event, record, ages, deadline)
            # A digest need not tell the version.
            is_own = begun.has_own_version and begun.version == record.version
            begun = replace(begun, version=record.version, has_own_version=is_own)
            fitness.check(begun, self._fitting(received, desired))
        except PermanentError as error:
            warn("firmware that the device has begun is gone", event, error)
            return None
        return begun if begun.checksum.hex() == record.checksum else None

    def is_untrusted(self, received: DeviceStatus, record: Record, ages: Ages, deadline: Deadline) -> bool:
        """Return whether a recorded update was to firmware that is refused by now.

        It is denied, or its key was removed. False if that cannot be told: it was served once.
        """
        if record.origin is None:
            return False
        try:
            self._resolve_recorded(received.event, record, ages, deadline)
        except UntrustedFirmwareError as error:
            return error.checksum.hex() == record.checksum
        except (UpstreamError, NotReadyError):
            return False
        return False

    def origin(self, event: Event, desired: Desired, firmware: Firmware) -> Origin | None:
        """Return the place of the target's bytes, independent of tags."""
        source = self._source(event, desired)
        if isinstance(source, Image) and firmware.manifest:
            name = self._reference(event, source).name
            return Origin(image=f"{name}@{firmware.manifest}", platform=source.platform)
        return Origin(file=source.name) if isinstance(source, File) else None

    def _source(self, event: Event, desired: Desired) -> Source | None:
        """Return the device's firmware source: the specs', else the configured default."""
        source = desired.source
        if source is None and self._settings.firmware_default_image:
            names = {"application": event.application, "device": event.device}
            source = Image(fill_in(self._settings.firmware_default_image, names))
        return source

    def _fitting(self, received: DeviceStatus, desired: Desired) -> Fitting:
        policy = desired.policy
        return Fitting(
            received.status.version.decode("utf-8", "backslashreplace"),
            policy.hardware,
            refuses_downgrades=policy.downgrades == REFUSE,
            trusts_no_tag=self._trust.wants_signatures,
        )

    def _choose(
        self, event: Event, source: Image, version: str, device: Fitting, ages: Ages, deadline: Deadline
    ) -> Choice:
        """Return the highest firmware in a range of versions that a device may take."""
        from fleet_fn.version_range import parse_range  # imported when needed: most specs name a tag

        reference = self._reference(event, source)

        def firmware(tag: str, max_age: float) -> Firmware:
            return self._image(event, replace(reference, tag=tag), max_age, ages, deadline)

        versions = partial(self._images.versions, reference, deadline=deadline, stale_age=ages.stale)
        max_age = ages.always if source.always else ages.manifest
        repository = Repository(versions, firmware)
        return choose_in_range(repository, parse_range(version), device, max_age, self._settings.manifest_ttl_seconds)

    def _resolve(self, event: Event, source: Source, ages: Ages, deadline: Deadline) -> Firmware:
        """Return the firmware of a source that names one, if it may be served."""
        if isinstance(source, Image):
            max_age = ages.always() if source.always else ages.manifest()
            return self._image(event, self._reference(event, source), max_age, ages, deadline)
        if isinstance(source, File) and self._files is not None:
            # Unlike a blob's, its bytes may be others by now: what describes them is read each time.
            return self._trusted(event, self._files.resolve(file_reference(source.name), 0.0, deadline), deadline)
        raise PermanentError("unsupported-source", "its firmware is a file, and FIRMWARE_DIR is not set")

    def _resolve_recorded(self, event: Event, record: Record, ages: Ages, deadline: Deadline) -> Firmware:
        """Return the firmware of a recorded update, by the place of its bytes."""
        firmware = self._assignments.recorded(record) if self._assignments else None
        if firmware is not None:
            return self._trusted(event, firmware, deadline)
        return self._resolve(event, _source_of(record.origin or Origin()), ages, deadline)

    def _assigned(
        self, received: DeviceStatus, source: HawkBit, desired: Desired, ages: Ages, deadline: Deadline
    ) -> "Assigned":
        if self._assignments is None:
            raise PermanentError("unsupported-source", "its firmware comes from hawkBit, and HAWKBIT_URL is not set")
        record = desired.reported.record if self._settings.report_status else None
        return self._assignments.find(received, source, record, ages, deadline)

    def _image(self, event: Event, reference: Reference, max_age: float, ages: Ages, deadline: Deadline) -> Firmware:
        return self._trusted(event, self._images.resolve(reference, max_age, deadline, stale_age=ages.stale), deadline)

    def _trusted(self, event: Event, firmware: Firmware, deadline: Deadline) -> Firmware:
        signature = self._trust.check(firmware, event.application, deadline)
        return firmware if signature is None else as_signed(firmware, signature)

    def _reference(self, event: Event, image: Image) -> Reference:
        return image_reference(image.reference, self._settings.firmware_prefix, event.application, image.platform)


def _make_finder(store: "HawkbitStore") -> "AssignmentFinder":
    from fleet_fn.update.assigned import AssignmentFinder

    return AssignmentFinder(store)


def _is_given_up(record: Record, desired: Desired) -> bool:
    """Return whether a version fails, on this device or on others.

    Then a device that has begun it must not finish it.
    """
    if record.attempts >= (desired.policy.max_attempts or MAX_ATTEMPTS):
        return True
    return desired.rollout.halts(record.version, desired.policy.max_failed)


def _source_of(origin: Origin) -> Source:
    """Return the source that names an update's origin."""
    return Image(origin.image, platform=origin.platform) if origin.image else File(origin.file or "")
