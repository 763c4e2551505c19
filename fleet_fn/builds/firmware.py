"""The firmware of an application or a device, as far as its build needs it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fleet_fn.builds.description import Build, read_build
from fleet_fn.drogue.device_registry_object import read_map
from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.spec_source import IMAGE_SOURCES, Image
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Buildable:
    """A firmware that can be built: where it is published, and how it is built."""

    image: Image
    build: Build


def find_build(application: Mapping[str, Any], device: Mapping[str, Any] | None) -> Buildable:
    """Return the firmware that an application or a device is to run.

    A device's own source wins as a whole, as in the function.

    Args:
        application: the application's object.
        device: the device's object; None asks for the application's firmware.

    Raises:
        PermanentError: its `spec.firmware` is malformed, or describes no build.

    """
    if device is not None and (found := _read(device, "device")):
        return found
    if found := _read(application, "application"):
        return found
    raise PermanentError("the application's spec.firmware names no firmware: set container.image and container.build")


def _read(found: Mapping[str, Any], kind: str) -> Buildable | None:
    """Return the firmware that an object names; None if it names none."""
    path = f"the {kind}'s spec.firmware"
    try:
        section = read_map(found, "spec").get("firmware")
    except ValueError as error:
        raise PermanentError(f"the {kind}'s object is malformed: {error}") from error
    source = read_firmware_spec(section, path).source
    if isinstance(source, Malformed):
        raise PermanentError(source.reason)
    if source is None or not isinstance(section, dict):
        return None
    if not isinstance(source, Image):
        raise PermanentError(f"{path} names no container; only the firmware of a container is built")
    (key,) = [key for key in IMAGE_SOURCES if section.get(key) is not None]
    described = section[key].get("build")
    if described is None:
        raise PermanentError(f"{path}.{key}.build is not set; it says how the firmware is built (docs/build.md)")
    try:
        return Buildable(source, read_build(described, f"{path}.{key}.build"))
    except MalformedSpecError as error:
        raise PermanentError(error.reason) from error
