"""The device registry: read the specs of devices, and write their status."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from fleet_fn.concurrency.ttl_cache import Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry_api import DeviceNotFoundError, DeviceRegistryAPI, kind_of, unusable_error
from fleet_fn.drogue.device_registry_object import RegistryObject, read_map, read_object
from fleet_fn.drogue.failure_counter import FailedUpdate, FailureCounter
from fleet_fn.drogue.firmware_spec import Malformed
from fleet_fn.drogue.object_editor import pause_before_retry
from fleet_fn.drogue.refusals import DEVICE_REGISTRY
from fleet_fn.drogue.report_backoff import ReportBackoff
from fleet_fn.drogue.rollout_status import NO_ROLLOUT, RolloutStatus
from fleet_fn.drogue.spec_policy import NONE, Policy
from fleet_fn.drogue.spec_source import Source
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.drogue.status_report import Report, Reported
from fleet_fn.drogue.storable import storable
from fleet_fn.drogue.update_record import Record
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.client import HttpClient
from fleet_fn.strict_json import parse_json

if TYPE_CHECKING:
    from fleet_fn.drogue.event_check import EventCheck
    from fleet_fn.drogue.read_ahead import Background, ReadAhead

__all__ = [
    "ConflictError",
    "Desired",
    "DeviceDisabledError",
    "DeviceNotFoundError",
    "DeviceNotServedError",
    "DeviceRegistry",
]

T = TypeVar("T")

#: Devices and applications in the cache, and the memory for them: some 2,500 bytes each, unless labels or messages in
#: their objects are long.
_MAX_OBJECTS: Final = 20_000
_MAX_OBJECTS_BYTES: Final = 48 * 1024 * 1024
#: Devices that were just read, whole; the memory for them; and how long a write may be based on them.
_MAX_JUST_READ: Final = 256
_MAX_JUST_READ_BYTES: Final = 4 * 1024 * 1024
_JUST_READ_SECONDS: Final = 1.0
#: Unreadable gateways in the cache.
_MAX_UNREADABLE: Final = 1000
#: Attempts to write an object that other processes write at the same time. Commands wait for a changed record, so that
#: its writes go on until the deadline.
_MAX_ATTEMPTS: Final = 2
_MAX_RECORD_ATTEMPTS: Final = 50


class DeviceDisabledError(PermanentError):
    """Drogue Cloud's operator has disabled the device or its application.

    No command may be sent.
    """


class DeviceNotServedError(Exception):
    """The device lacks a label of those that this function serves.

    Another server may serve it, so it gets neither command nor report.
    """


class ConflictError(Exception):
    """The record changed since it was read (optimistic-lock conflict)."""


class Desired(NamedTuple):
    """The firmware that a device should run, its policy, and its last report."""

    #: None if neither the device nor its application names a firmware.
    source: Source | None
    policy: Policy
    #: The device's UID; empty if its object has none.
    uid: str
    labels: Mapping[str, str]
    reported: Reported
    #: `spec.core.disabled` of the device or its application is true; then there is neither source nor policy.
    disabled: bool = False
    #: Devices through which this one may be reached (`spec.gatewaySelector.matchNames`).
    gateways: tuple[str, ...] = ()
    #: State of the application's rollout.
    rollout: RolloutStatus = NO_ROLLOUT


class DeviceRegistry:
    """A client of the device registry, with a cache of specs.

    It is safe to use from several threads.
    """

    def __init__(
        self,
        upstream: HttpClient,
        *,
        anonymous: bool = False,
        labels: Mapping[str, str] = MappingProxyType({}),
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a client.

        Args:
            upstream: Drogue Cloud.
            anonymous: whether `upstream` sends no credentials; refusals say so.
            labels: those of the devices that are served.
            remember: whether to cache objects.
            count: is called with each look-up in the cache.
            clock: seconds, never stepping.

        """
        self._upstream = upstream
        self._api = DeviceRegistryAPI(upstream, anonymous=anonymous)
        self._labels = labels
        self._objects: TTLCache[tuple[str, ...], RegistryObject] = TTLCache(
            _MAX_OBJECTS if remember else 0, max_bytes=_MAX_OBJECTS_BYTES, count=count, clock=clock
        )
        #: JSON texts, which take less memory than the parsed objects.
        self._just_read: TTLCache[tuple[str, ...], bytes] = TTLCache(
            _MAX_JUST_READ if remember else 0, max_bytes=_MAX_JUST_READ_BYTES, clock=clock
        )
        self._unreadable: TTLCache[tuple[str, ...], bool] = TTLCache(_MAX_UNREADABLE if remember else 0, clock=clock)
        self._clock = clock
        #: None unless objects of devices in sync are remembered for longer.
        self._read_ahead: ReadAhead | None = None
        self._event_check: EventCheck | None = None
        self._backoff = ReportBackoff(clock)
        self._failures = FailureCounter(
            self._api, lambda names, found: self._objects.replace(names, _read(found, names))
        )

    # --- Reading ------------------------------------------------------------------------------------------------------

    def read_desired(
        self, application: str, device: str, max_age: float, deadline: Deadline, *, of_device: float | None = None
    ) -> Desired:
        """Return the firmware that a device should run, and its policy.

        The device's own source wins over its application's as a whole, its policy key by key.

        Args:
            application: name of the application.
            device: name of the device.
            max_age: greatest age of cached objects, in seconds.
            deadline: for both look-ups together.
            of_device: another `max_age` for the device's object.

        Raises:
            DeviceNotServedError: the device lacks a label.
            MalformedSpecError: `spec.firmware` is malformed.
            DeviceNotFoundError: device or application unknown, credentials refused, or a malformed answer for the
                device.
            PermanentError: a malformed answer for the application.
            TransientError: the registry is unavailable.

        """
        own = self._object((application, device), max_age if of_device is None else of_device, deadline)
        for name, value in self._labels.items():
            if own.labels.get(name) != value:
                raise DeviceNotServedError(f"DEVICE_LABELS wants {name}={value}, which the device lacks")
        # A disabled device is disabled even if its application or its spec.firmware cannot be read.
        if own.disabled or (shared := self._object((application,), max_age, deadline)).disabled:
            return Desired(None, NONE, own.uid, own.labels, own.reported, disabled=True, gateways=own.gateways)
        return Desired(
            _well_formed(shared.source if own.source is None else own.source),
            _well_formed(own.policy).over(_well_formed(shared.policy)),
            own.uid,
            own.labels,
            own.reported,
            gateways=own.gateways,
            rollout=shared.rollout,
        )

    def peek_reported(self, application: str, device: str) -> Reported | None:
        """Return the device's last report from the cache, however old, or None."""
        known = self._objects.peek((application, device))
        return known.reported if known else None

    def remember_in_sync(self, seconds: float, background: "Background | None" = None) -> None:
        """Prepare for calls of `remembers_in_sync`.

        From now on, devices are listed into the cache if that spares single reads, and a log line tells if registry
        events do not come.

        Args:
            seconds: the `max_age` of `remembers_in_sync`.
            background: runs listings; by default in threads.

        """
        from fleet_fn.drogue.event_check import EventCheck
        from fleet_fn.drogue.read_ahead import ReadAhead

        self._event_check = EventCheck(seconds, self._clock)
        self._read_ahead = ReadAhead(self._upstream, self._objects, seconds, self._clock, background)

    def remembers_in_sync(self, application: str, device: str, version: str, uid: str, max_age: float) -> bool:
        """Return whether a cached object says that the device is in sync.

        Without an object, this counts as a miss; many begin a listing.

        Args:
            application: name of the application.
            device: name of the device.
            version: the version that the device runs.
            uid: the device's UID; empty if unknown. A device of another UID was created anew under the same name.
            max_age: greatest age of the object, in seconds.

        """
        known = self._objects.peek((application, device), max_age)
        if known is None:
            if self._read_ahead:
                self._read_ahead.count_miss(application)
            return False
        if uid and known.uid and uid != known.uid:
            return False
        return known.reported.current == version and known.reported.is_in_sync

    def read_record(self, application: str, device: str, max_age: float, deadline: Deadline) -> Record | None:
        """Return the record of another device's update, or None without record or device.

        Raises:
            TransientError: the registry does not answer.

        """
        names = (application, device)
        if self._unreadable.peek(names, max_age):
            return None
        since = self._unreadable.now()
        try:
            return self._object(names, max_age, deadline).reported.record
        except PermanentError:
            self._unreadable.put(names, since, True)
            return None

    def put(self, application: str, device: str, found: Mapping[str, Any]) -> None:
        """Remember a device that the caller has just read.

        Raises:
            DeviceNotFoundError: it is no device object.

        """
        names = (application, device)
        self._objects.put(names, self._objects.now(), _read(found, names))

    def forget(self, application: str, device: str) -> None:
        """Drop a device that an event names, or the application if `device` is empty."""
        if self._event_check:
            self._event_check.note((application, device))
        self._objects.invalidate((application, device) if device else (application,))
        self._unreadable.invalidate((application, device))

    def _object(self, names: tuple[str, ...], max_age: float, deadline: Deadline) -> RegistryObject:
        def look_up() -> RegistryObject:
            try:
                return _read(self._fetch(names, deadline), names)
            except DeviceNotFoundError:
                self._objects.invalidate(names)  # no event may rest on an older object: the device may be gone
                raise

        return self._objects.get(names, max_age, look_up, deadline)

    def _fetch(self, names: tuple[str, ...], deadline: Deadline) -> dict[str, Any]:
        since = self._just_read.now()
        found, text = self._api.fetch(names, deadline)
        if kind_of(names) == "device":
            self._just_read.put(names, since, text)
        return found

    # --- Writing ------------------------------------------------------------------------------------------------------

    def report(
        self, application: str, device: str, report: Report, now: datetime, deadline: Deadline
    ) -> Reported | None:
        """Write the news of a report into the device's object; leave the rest as it is.

        Other processes may write the object at the same time. A report that changes the record is tried again until the
        deadline, any other once more. If the answer to a write gets lost, the next reading shows by the record's token
        whether the registry has stored it.

        Returns:
            What the object said before; None if nothing was written, because the report was no news any more.

        Raises:
            ConflictError: the record has changed since `report.before` was read; nothing was written.
            DeviceNotFoundError: the device was deleted, or its object is malformed.
            PermanentError: the registry refuses the object.
            TransientError: the registry is unavailable, or another process wrote the object during each attempt.

        """
        names = (application, device)
        lost: TransientError | None = None
        before: Reported | None = None
        for attempt in range(_MAX_RECORD_ATTEMPTS if report.changes_record else _MAX_ATTEMPTS):
            if attempt > 1:
                pause_before_retry(deadline)
            text = self._just_read.peek(names, _JUST_READ_SECONDS)
            try:
                found = parse_json(text) if text else self._fetch(names, deadline)
            except TransientError as error:
                raise lost or error from error
            self._just_read.invalidate(names)  # a write makes it an old version
            known = _read(found, names)
            # The cached object keeps its age: this read says nothing of what other processes send to the device.
            self._objects.replace(names, known)
            if report.is_stored(known.reported):
                return before
            if lost:
                raise lost
            if report.changes_record and known.reported.record != report.before:
                raise ConflictError
            if not report.is_news(known.reported):
                return None
            before = known.reported
            changed = _with_report(found, report, now)
            try:
                is_written = self._put(names, changed, deadline)
            except TransientError as error:
                if not (report.token and error.may_have_acted):
                    raise
                lost = error
                continue
            if is_written:
                self._objects.replace(names, _read(changed, names))
                return before
        raise TransientError(f"{DEVICE_REGISTRY}: others keep changing the device")

    def _put(self, names: tuple[str, ...], changed: Mapping[str, Any], deadline: Deadline) -> bool:
        """Write a device, see `DeviceRegistryAPI.put`; the event of that is expected."""
        if self._event_check is None:
            return self._api.put(names, changed, deadline)
        self._event_check.expect(names)
        is_written = False
        try:
            is_written = self._api.put(names, changed, deadline)
        finally:
            if not is_written:
                self._event_check.withdraw(names)
        return is_written

    def record_failure(
        self, application: str, device: str, version: str, deadline: Deadline, *, is_first: bool
    ) -> int | None:
        """Record on the application that a version failed on a device.

        Each device counts once.

        Args:
            application: name of the application.
            device: name of the device.
            version: the version.
            deadline: for all requests together.
            is_first: the version failed for the first time on this device.

        Returns:
            The number of devices, this one included; None if it was counted before.

        Raises:
            PermanentError: the registry refuses the application or its change.
            TransientError: the registry is unavailable, or the application keeps changing.

        """
        return self._failures.record(application, FailedUpdate(device, version, is_first), deadline)

    def give_up_reporting(self, application: str, device: str) -> None:
        """Pause reports of a device after a failure."""
        names = (application, device)
        self._backoff.add_failure(names, self._objects.peek(names))

    def has_given_up_reporting(self, application: str, device: str) -> bool:
        """Return whether reports of a device are paused after a failure."""
        names = (application, device)
        return self._backoff.is_paused(names, self._objects.peek(names))


def _read(found: Mapping[str, Any], names: tuple[str, ...]) -> RegistryObject:
    kind = kind_of(names)
    try:
        return read_object(found, kind)
    except ValueError as error:
        raise unusable_error(names, f"answer for the {kind} is no {kind} object") from error


def _well_formed(value: T | Malformed) -> T:
    if isinstance(value, Malformed):
        raise MalformedSpecError(value.reason)
    return value


def _with_report(device: Mapping[str, Any], report: Report, now: datetime) -> dict[str, Any]:
    """Return a device's object with a report in it, whose news the registry can store."""
    try:
        status = read_map(device, "status")
    except ValueError as error:
        raise DeviceNotFoundError(f"{DEVICE_REGISTRY}: the device's {error}") from error
    before = status.get("firmware")
    section = _storable_news(report.merge_into(before, now), before)
    return {**device, "status": {**status, "firmware": section}}


def _storable_news(section: Mapping[str, Any], before: object) -> dict[str, Any]:
    """Return a `status.firmware` whose news the registry can store.

    The rest comes from the registry, so it can be stored.
    """
    known = before if isinstance(before, dict) else {}
    conditions = known.get("conditions")
    stored = {id(value) for value in known.values()}
    stored.update(map(id, conditions if isinstance(conditions, list) else []))

    def as_storable(value: T) -> T:
        return value if id(value) in stored else storable(value)

    news = {name: as_storable(value) for name, value in section.items() if name != "conditions"}
    return {**news, "conditions": [as_storable(condition) for condition in section["conditions"]]}
