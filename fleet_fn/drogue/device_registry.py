"""The device registry: what Drogue Cloud says a device should run, and what we report of it."""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from fleet_fn.concurrency.ttl_cache import Bounded, Count, TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.firmware_spec import NONE, MalformedPolicyError, Policy, read_policy
from fleet_fn.drogue.refusals import (
    DEVICE_REGISTRY,
    refusal_for_application,
    refusal_for_device,
    refusal_of_status,
)
from fleet_fn.drogue.status_report import Report, Reported
from fleet_fn.drogue.storable import storable
from fleet_fn.drogue.update_record import Record
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.http.client import Answer, HttpClient
from fleet_fn.protocol.strict_json import parse_json

T = TypeVar("T")

_PATH: Final = "/api/registry/v1alpha1/apps"
#: What stands for itself in a path (RFC 3986, 2.3).
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~-]+")
#: Devices and applications whose specs are remembered, and the bytes that these may take: some 2,500 each, unless
#: labels or messages in their objects are long.
_REMEMBERED = 20_000
_REMEMBERED_BYTES: Final = 48 * 1024 * 1024
#: Devices whose whole objects are remembered as they were read, the bytes that these may take, and the seconds for
#: which an object is worth an attempt at writing it.
_JUST_READ: Final = 256
_JUST_READ_BYTES: Final = 4 * 1024 * 1024
_JUST_READ_SECONDS: Final = 1.0
#: Devices whose failed reports are remembered, and the bytes that these may take.
_REMEMBERED_FAILURES_BYTES: Final = 4 * 1024 * 1024
#: Seconds for which nothing is reported of a device whose object could not be written, and is the same still: a moment
#: at first, since nothing is known of where its blocks come from until that is noted, and each time twice as long.
_GIVEN_UP: Final = 1.0
_GIVEN_UP_AT_MOST: Final = 60.0
#: Attempts at writing an object that others write at the same time; of a report that changes the record, on which
#: commands wait, as many as fit into the time.
_ATTEMPTS: Final = 2
_ATTEMPTS_AT_RECORD: Final = 50
#: Seconds of the longest pause before another attempt, so that two writers do not keep step.
_LONGEST_PAUSE_SECONDS: Final = 0.02


#: Gateways that cannot be read that are remembered.
_MAX_ABSENT: Final = 1000


class Image(NamedTuple):
    """Firmware in an OCI repository, named by `container` or its alias `oci`."""

    #: Relative to the configured registry: `name`, `name:tag` or `name@digest`.
    reference: str
    #: The tag is looked up again for each status (`imagePullPolicy: Always`).
    always: bool = False
    #: Which of an index's manifests is meant: a platform, or an annotation.
    platform: str | None = None


class File(NamedTuple):
    """Firmware in a folder that the function has."""

    name: str


@dataclass(frozen=True, slots=True)
class HawkBit:
    """Firmware that an Eclipse hawkBit server assigns."""


Source = Image | File | HawkBit


class DeviceNotFoundError(PermanentError):
    """The registry does not say that there is such a device, so nothing can be sent to it."""


class MalformedSpecError(PermanentError):
    """The firmware section of a device or an application, which is known, cannot be understood."""


class DeviceDisabledError(PermanentError):
    """Drogue Cloud's operator has switched the device, or its application, off: nothing may be sent to it."""


class ConflictError(Exception):
    """What is noted of a device's update is not what it was any more when it was decided what to do."""


class _Malformed(NamedTuple):
    """What is remembered of what cannot be understood: why."""

    reason: str


class _Object(NamedTuple):
    """What matters of a device, or of an application."""

    source: Source | _Malformed | None
    policy: Policy | _Malformed
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    reported: Reported = Reported()
    disabled: bool = False
    gateways: tuple[str, ...] = ()


class _GivenUp(NamedTuple):
    """A failure to write an object."""

    #: Seconds for which the next attempt waits.
    pause: float
    #: What was known of the object then.
    known: _Object | None


class Desired(NamedTuple):
    """What a device should run, who may update it when, and what was reported of it last."""

    #: None where nothing is desired.
    source: Source | None
    policy: Policy
    #: The device's UID; empty where its object has none.
    uid: str
    labels: Mapping[str, str]
    reported: Reported
    #: `spec.core.disabled` of the device or its application is true; then neither source nor policy are given.
    disabled: bool = False
    #: The devices through which this one may be reached (`spec.gatewaySelector.matchNames`).
    gateways: tuple[str, ...] = ()


class DeviceRegistry:
    """What the device registry desires, remembered for a while, and what is reported to it."""

    def __init__(
        self,
        upstream: HttpClient,
        *,
        remember: bool = True,
        count: Count | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What `upstream` has; `count` is told of each look-up of an object."""
        self._upstream = upstream
        self._objects: TTLCache[tuple[str, ...], _Object] = TTLCache(
            _REMEMBERED if remember else 0, max_bytes=_REMEMBERED_BYTES, count=count, clock=clock
        )
        #: Devices as they were read a moment ago, with all that stands in them: as JSON, which is the smallest form.
        self._read: TTLCache[tuple[str, ...], bytes] = TTLCache(
            _JUST_READ if remember else 0, max_bytes=_JUST_READ_BYTES, clock=clock
        )
        #: Devices that are named as gateways, and cannot be read.
        self._absent: TTLCache[tuple[str, ...], bool] = TTLCache(_MAX_ABSENT if remember else 0, clock=clock)
        self._clock = clock
        self._given_up: Bounded[tuple[str, ...], _GivenUp] = Bounded(_REMEMBERED, _REMEMBERED_FAILURES_BYTES)
        self._given_up_lock = threading.Lock()

    def desired(
        self, application: str, device: str, max_age: float, deadline: Deadline, *, of_device: float | None = None
    ) -> Desired:
        """What is desired for a device: its own section's source, else its application's, else none.

        Policy keys are merged one by one, the device's winning.

        Args:
            application: name of the application.
            device: name of the device.
            max_age: seconds that what is remembered may be old.
            deadline: for both look-ups together.
            of_device: another `max_age` for the device's object.

        Raises:
            MalformedSpecError: a section that cannot be understood.
            DeviceNotFoundError: device or application unknown, credentials refused, an answer that makes no sense.
            PermanentError: an answer for the application that makes no sense.
            TransientError: the registry is not there.

        """
        own = self._object((application, device), max_age if of_device is None else of_device, deadline)
        # A disabled device is disabled whatever its application is, and whatever its firmware section says.
        if own.disabled or (shared := self._object((application,), max_age, deadline)).disabled:
            return Desired(None, NONE, own.uid, own.labels, own.reported, disabled=True, gateways=own.gateways)
        return Desired(
            _understood(shared.source if own.source is None else own.source),
            _understood(own.policy).over(_understood(shared.policy)),
            own.uid,
            own.labels,
            own.reported,
            gateways=own.gateways,
        )

    def reported(self, application: str, device: str) -> Reported | None:
        """What is remembered of what was reported of a device, however old."""
        known = self._objects.peek((application, device))
        return known.reported if known else None

    def record(self, application: str, device: str, max_age: float, deadline: Deadline) -> Record | None:
        """Return the record of another device's update; None if there is none, or no such device.

        Raises:
            TransientError: the registry does not answer.

        """
        names = (application, device)
        if self._absent.peek(names, max_age):
            return None
        since = self._absent.now()
        try:
            return self._object(names, max_age, deadline).reported.record
        except PermanentError:
            self._absent.put(names, since, True)
            return None

    def forget(self, application: str, device: str) -> None:
        """Forgets the spec that an event says has changed."""
        self._objects.invalidate((application, device) if device else (application,))
        self._absent.invalidate((application, device))

    def report(self, application: str, device: str, report: Report, now: datetime, deadline: Deadline) -> None:
        """Write what is new in `report` into the device's object; everything else in it stays as it is.

        Others may write the object at the same time. A report that changes the record is tried again until the
        deadline, any other one once more.

        Raises:
            ConflictError: the record was changed meanwhile; nothing was written.
            DeviceNotFoundError: there is no such device any more, or its object makes no sense.
            PermanentError: the registry does not take it.
            TransientError: the registry is not there, or others wrote the object each time that we tried.

        """
        names = (application, device)
        for attempt in range(_ATTEMPTS_AT_RECORD if report.changes_record else _ATTEMPTS):
            if attempt > 1:
                pause = random.uniform(0, _LONGEST_PAUSE_SECONDS)  # noqa: S311 - nothing depends on it being secret
                time.sleep(min(pause, deadline.remaining))
            just_read = self._read.peek(names, _JUST_READ_SECONDS)
            found = parse_json(just_read) if just_read else self._fetch(names, deadline)
            self._read.invalidate(names)  # what is written now makes another version
            known = _read_object(found, "device")
            # Which is no fresher for it: others than us may tell the device something before its next status.
            self._objects.replace(names, known)
            if report.changes_record and known.reported.record != report.before:
                raise ConflictError
            if not report.is_news(known.reported):
                return
            status = _map(found, "status", DeviceNotFoundError(f"{DEVICE_REGISTRY}: the device's status is not a map"))
            section = report.written_into(status.get("firmware"), now)
            changed = {**found, "status": {**status, "firmware": _with_storable_news(section, status.get("firmware"))}}
            if self._put(names, changed, deadline):
                self._objects.replace(names, _read_object(changed, "device"))
                return
        raise TransientError(f"{DEVICE_REGISTRY}: others keep changing the device")

    def give_up_reporting(self, application: str, device: str) -> None:
        """Nothing more is reported of a device for a while, and until its object has been read again."""
        names, pause = (application, device), _GIVEN_UP
        known = self._objects.peek(names)
        with self._given_up_lock:
            if (earlier := self._given_up.get(names)) and earlier[1].known == known:
                pause = min(2 * earlier[1].pause, _GIVEN_UP_AT_MOST)
            self._given_up.put(names, self._clock(), _GivenUp(pause, known))

    def has_given_up_reporting(self, application: str, device: str) -> bool:
        """Whether reporting failed a while ago, and what is known of the object is the same still."""
        names = (application, device)
        entry = self._given_up.get(names)
        if entry is None:
            return False
        since, given_up = entry
        known = self._objects.peek(names)
        # A device of which nothing can be noted is read again with each of its blocks.
        is_early = self._clock() - since < given_up.pause
        return given_up.known is known or (given_up.known == known and is_early)

    def _object(self, names: tuple[str, ...], max_age: float, deadline: Deadline) -> _Object:
        def read() -> _Object:
            return _read_object(self._fetch(names, deadline), _kind(names))

        return self._objects.get(names, max_age, read, deadline)

    def _fetch(self, names: tuple[str, ...], deadline: Deadline) -> dict[str, Any]:
        """The object of that name, as the registry has it."""
        kind, since = _kind(names), self._read.now()
        answer = self._request("GET", names, deadline)
        if answer.status != 200:
            raise _senseless(kind)(f"{DEVICE_REGISTRY}: answered {answer.status} for the {kind}")
        try:
            found = parse_json(answer.body)
        except ValueError as error:
            raise _senseless(kind)(f"{DEVICE_REGISTRY}: answer for the {kind}: {error}") from error
        if not isinstance(found, dict) or (named := _names(found)) is None:
            raise _senseless(kind)(f"{DEVICE_REGISTRY}: answer for the {kind} is no {kind} object")
        if named[-len(names) :] != names:
            # The answer to another request: so may be whatever comes next on the connections that are kept.
            self._upstream.close()
            raise _senseless(kind)(f"{DEVICE_REGISTRY}: answer for the {kind} is another object")
        if kind == "device":
            self._read.put(names, since, answer.body)
        return found

    def _put(self, names: tuple[str, ...], changed: Mapping[str, Any], deadline: Deadline) -> bool:
        """Whether the registry took the object; if not, it was another version that was changed."""
        answer = self._request("PUT", names, deadline, json.dumps(changed).encode())
        if answer.status == 409:
            return False
        if not 200 <= answer.status < 300:
            raise PermanentError(refusal_of_status(answer.status, *names))
        return True

    def _request(self, method: str, names: tuple[str, ...], deadline: Deadline, body: bytes | None = None) -> Answer:
        kind = _kind(names)
        path = _PATH + "".join(_segments(names))
        try:
            answer = self._upstream.request(
                method,
                path,
                deadline,
                body=body,
                content_type="application/json" if body else None,
                wants_body=not body,
            )
        except PermanentError as error:
            raise _senseless(kind)(error.reason) from error
        if answer.status in (401, 403, 404):
            raise DeviceNotFoundError(_refusal(method, answer.status, names))
        return answer


def _with_storable_news(section: Mapping[str, Any], before: object) -> dict[str, Any]:
    """Return `status.firmware` with all that is new in it as it can be stored; the rest has been stored before."""
    known = before if isinstance(before, dict) else {}
    conditions = known.get("conditions")
    kept = {id(value) for value in known.values()}
    kept.update(map(id, conditions if isinstance(conditions, list) else []))

    def changed(value: T) -> T:
        return value if id(value) in kept else storable(value)

    news = {name: changed(value) for name, value in section.items() if name != "conditions"}
    return {**news, "conditions": [changed(condition) for condition in section["conditions"]]}


def _understood(value: T | _Malformed) -> T:
    if isinstance(value, _Malformed):
        raise MalformedSpecError(value.reason)
    return value


def _kind(names: tuple[str, ...]) -> str:
    return "device" if len(names) == 2 else "application"


def _refusal(method: str, status: int, names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return refusal_for_application(DEVICE_REGISTRY, status, *names)
    if method == "PUT":
        return refusal_of_status(status, *names)
    return refusal_for_device(DEVICE_REGISTRY, status, *names)


def _names(found: Mapping[str, Any]) -> tuple[object, object] | None:
    """Return the names of the application and of itself that an object has; None if it is no object."""
    metadata = found.get("metadata")
    return (metadata.get("application"), metadata.get("name")) if isinstance(metadata, dict) else None


def _senseless(kind: str) -> type[PermanentError]:
    """What is raised for an answer that makes no sense: without a device there is nobody to be told."""
    return DeviceNotFoundError if kind == "device" else PermanentError


def _read_object(found: Mapping[str, Any], kind: str) -> _Object:
    other = _senseless(kind)(f"{DEVICE_REGISTRY}: answer for the {kind} is no {kind} object")
    metadata = _map(found, "metadata", other)
    spec = _map(found, "spec", other)
    where = f"the {kind}'s spec.firmware"
    status = found.get("status")
    uid, labels = metadata.get("uid"), metadata.get("labels")
    return _Object(
        _source(spec, where),
        _policy(spec.get("firmware"), where),
        uid if isinstance(uid, str) else "",
        labels if isinstance(labels, dict) else {},
        Reported.read(status.get("firmware") if isinstance(status, dict) else None),
        _is_disabled(spec),
        gateways_of(spec),
    )


def _is_disabled(spec: Mapping[str, Any]) -> bool:
    core = spec.get("core")
    return isinstance(core, dict) and core.get("disabled") is True


def gateways_of(spec: object) -> tuple[str, ...]:
    """Return the names in `gatewaySelector.matchNames` of a device's `spec`; none if it is malformed."""
    selector = spec.get("gatewaySelector") if isinstance(spec, dict) else None
    names = selector.get("matchNames") if isinstance(selector, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _source(spec: Mapping[str, Any], where: str) -> Source | _Malformed | None:
    try:
        return _section_source(spec, where)
    except MalformedSpecError as error:
        return _Malformed(error.reason)


def _policy(section: object, where: str) -> Policy | _Malformed:
    if not isinstance(section, dict):
        return NONE
    try:
        return read_policy(section)
    except MalformedPolicyError as error:
        return _Malformed(f"{where}.{error}")


def device_path(application: str, device: str) -> str:
    """`/APPLICATION/devices/DEVICE`, percent-encoded.

    Raises:
        PermanentError: a name that no path can carry.

    """
    return "".join(_segments((application, device)))


def _segments(names: tuple[str, ...]) -> list[str]:
    if any(name in (".", "..") for name in names):
        raise PermanentError("a name that no URL can carry")  # dot segments are removed on the way (RFC 3986, 5.2.4)
    encoded = [name if _PLAIN.fullmatch(name) else quote(name, safe="") for name in names]
    return [f"/{encoded[0]}", *(f"/devices/{name}" for name in encoded[1:])]


def _section_source(spec: Mapping[str, Any], where: str) -> Source | None:
    section = _map(spec, "firmware", MalformedSpecError(f"{where} is not a map"))
    sources = [kind for kind in ("container", "oci", "file", "hawkbit") if section.get(kind) is not None]
    if not sources:
        return None
    if len(sources) > 1:
        raise MalformedSpecError(f"{where} has two sources: {' and '.join(sources)}")
    kind = sources[0]
    source = _map(section, kind, MalformedSpecError(f"{where}.{kind} is not a map"))
    if kind == "hawkbit":
        return HawkBit()
    if kind == "file":
        name = source.get("name")
        if not isinstance(name, str) or not name:
            raise MalformedSpecError(f"{where}.file has no name")
        return File(name)
    reference, policy, platform = (source.get(key) for key in ("image", "imagePullPolicy", "platform"))
    if not isinstance(reference, str) or not reference:
        raise MalformedSpecError(f"{where}.{kind} has no image")
    if policy not in (None, "IfNotPresent", "Always"):
        raise MalformedSpecError(f"{where}.{kind}.imagePullPolicy is neither IfNotPresent nor Always")
    if platform is not None and (not isinstance(platform, str) or not platform):
        raise MalformedSpecError(f"{where}.{kind}.platform is no text")
    return Image(reference, always=policy == "Always", platform=platform)


def _map(parent: object, key: str, error: PermanentError) -> Mapping[str, Any]:
    """The map at `key` of the map `parent`; absent and null are an empty one; for anything else `error` is raised."""
    value = parent.get(key, {}) if isinstance(parent, dict) else None
    if isinstance(parent, dict) and value is None:
        return {}
    if not isinstance(value, dict):
        raise error
    return value
