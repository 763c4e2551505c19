"""The device registry: which firmware Drogue Cloud says a device should run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.memory import Memory
from fleet_fn.protocol.strict_json import parse_json
from fleet_fn.upstream import Upstream

_PATH: Final = "/api/registry/v1alpha1/apps"
#: Devices and applications whose specs are remembered: some 500 bytes each.
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Image:
    """Firmware in an OCI repository, named by `container` or its alias `oci`."""

    #: Relative to the configured registry: `name`, `name:tag` or `name@digest`.
    reference: str
    #: The tag is looked up again for each status (`imagePullPolicy: Always`).
    always: bool = False
    #: Which of an index's manifests is meant: a platform, or an annotation.
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class File:
    """Firmware in a folder that the function has."""

    name: str


@dataclass(frozen=True, slots=True)
class HawkBit:
    """Firmware that an Eclipse hawkBit server assigns."""


Source = Image | File | HawkBit


class NotKnown(Failed):
    """The registry does not say that there is such a device, so nothing can be sent to it."""


class MalformedSpec(Failed):
    """The firmware section of a device or an application, which is known, cannot be understood."""


@dataclass(frozen=True, slots=True)
class _Malformed:
    """What is remembered of a section that cannot be understood: why."""

    reason: str


class Registry:
    """What the device registry desires, remembered for a while."""

    def __init__(self, upstream: Upstream, *, remember: bool = True) -> None:
        self._upstream = upstream
        self._specs: Memory[tuple[str, ...], Source | _Malformed | None] = Memory(_REMEMBERED if remember else 0)

    def desired(self, application: str, device: str, max_age: float, deadline: Deadline) -> Source | None:
        """Where the firmware of a device is to be had: its own section's source, else its application's, else None.

        Args:
            application: name of the application.
            device: name of the device.
            max_age: seconds that what is remembered may be old.
            deadline: for both look-ups together.

        Raises:
            MalformedSpec: a section that cannot be understood.
            NotKnown: device or application unknown, credentials refused, an answer that makes no sense.
            Failed: an answer for the application that makes no sense.
            Retry: the registry is not there.

        """
        of_device = self._source((application, device), max_age, deadline)
        of_application = self._source((application,), max_age, deadline)
        desired = of_application if of_device is None else of_device
        if isinstance(desired, _Malformed):
            raise MalformedSpec(desired.reason)
        return desired

    def forget(self, application: str, device: str) -> None:
        """Forgets the spec that an event says has changed."""
        self._specs.forget((application, device) if device else (application,))

    def _source(self, names: tuple[str, ...], max_age: float, deadline: Deadline) -> Source | _Malformed | None:
        return self._specs.get(names, max_age, lambda: self._read(names, deadline), deadline)

    def _read(self, names: tuple[str, ...], deadline: Deadline) -> Source | _Malformed | None:
        kind = "device" if len(names) == 2 else "application"
        senseless = NotKnown if kind == "device" else Failed
        try:
            answer = self._upstream.request("GET", _PATH + "".join(_segments(names)), deadline)
        except Failed as error:
            raise senseless(error.reason) from error
        if answer.status in (401, 403):
            raise NotKnown("registry: our credentials were refused")
        if answer.status == 404:
            raise NotKnown(f"{kind} unknown")
        if answer.status != 200:
            raise senseless(f"registry: answered {answer.status} for the {kind}")
        try:
            found = parse_json(answer.body)
        except ValueError as error:
            raise senseless(f"registry: answer for the {kind}: {error}") from error
        other = senseless(f"registry: answer for the {kind} is no {kind} object")
        _map(found, "metadata", other)
        spec = _map(found, "spec", other)
        try:
            return _section_source(spec, f"the {kind}'s spec.firmware")
        except MalformedSpec as error:
            return _Malformed(error.reason)


def device_path(application: str, device: str) -> str:
    """`/APPLICATION/devices/DEVICE`, percent-encoded.

    Raises:
        Failed: a name that no path can carry.

    """
    return "".join(_segments((application, device)))


def _segments(names: tuple[str, ...]) -> list[str]:
    if any(name in (".", "..") for name in names):
        raise Failed("a name that no URL can carry")  # dot segments are removed on the way (RFC 3986, 5.2.4)
    encoded = [quote(name, safe="") for name in names]
    return [f"/{encoded[0]}", *(f"/devices/{name}" for name in encoded[1:])]


def _section_source(spec: Mapping[str, Any], where: str) -> Source | None:
    section = _map(spec, "firmware", MalformedSpec(f"{where} is not a map"))
    sources = [kind for kind in ("container", "oci", "file", "hawkbit") if section.get(kind) is not None]
    if not sources:
        return None
    if len(sources) > 1:
        raise MalformedSpec(f"{where} has two sources: {' and '.join(sources)}")
    kind = sources[0]
    source = _map(section, kind, MalformedSpec(f"{where}.{kind} is not a map"))
    if kind == "hawkbit":
        return HawkBit()
    if kind == "file":
        name = source.get("name")
        if not isinstance(name, str) or not name:
            raise MalformedSpec(f"{where}.file has no name")
        return File(name)
    reference, policy, platform = (source.get(key) for key in ("image", "imagePullPolicy", "platform"))
    if not isinstance(reference, str) or not reference:
        raise MalformedSpec(f"{where}.{kind} has no image")
    if policy not in (None, "IfNotPresent", "Always"):
        raise MalformedSpec(f"{where}.{kind}.imagePullPolicy is neither IfNotPresent nor Always")
    if platform is not None and (not isinstance(platform, str) or not platform):
        raise MalformedSpec(f"{where}.{kind}.platform is no text")
    return Image(reference, always=policy == "Always", platform=platform)


def _map(parent: object, key: str, error: Failed) -> Mapping[str, Any]:
    """The map at `key` of the map `parent`; absent and null are an empty one; for anything else `error` is raised."""
    value = parent.get(key, {}) if isinstance(parent, dict) else None
    if isinstance(parent, dict) and value is None:
        return {}
    if not isinstance(value, dict):
        raise error
    return value
