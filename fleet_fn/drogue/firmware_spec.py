"""`spec.firmware` of an application or a device: firmware source, update policy."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.spec_policy import NONE, POLICY_KEYS, ROLLOUT_KEYS, Policy, read_policy
from fleet_fn.drogue.spec_source import SOURCES, Source, read_source
from fleet_fn.drogue.spec_values import MalformedSpecError, check_keys

_KEYS: Final = (*SOURCES, *POLICY_KEYS)
#: Keys that users set one level too high, with their paths.
_DEEPER: Final = (
    *(f"container.{key}" for key in ("image", "version", "imagePullPolicy", "platform")),
    *(f"rollout.{key}" for key in ROLLOUT_KEYS),
)


class Malformed(NamedTuple):
    """A malformed part of `spec.firmware`.

    Only updates that need the part fail, and for this reason.
    """

    reason: str


class FirmwareSpec(NamedTuple):
    """The parts of a `spec.firmware`."""

    source: Source | Malformed | None = None
    policy: Policy | Malformed = NONE


def read_firmware_spec(section: object, path: str) -> FirmwareSpec:
    """Return the parts of a `spec.firmware`, which stands at `path`."""
    if section is None:
        return FirmwareSpec()
    if not isinstance(section, dict):
        return FirmwareSpec(Malformed(f"{path} is not a map"))
    try:
        check_keys(section, path, _KEYS, _DEEPER)
    except MalformedSpecError as error:
        return FirmwareSpec(Malformed(error.reason), Malformed(error.reason))
    return FirmwareSpec(_read_source(section, path), _read_policy(section, path))


def _read_source(section: Mapping[str, Any], path: str) -> Source | Malformed | None:
    try:
        return read_source(section)
    except MalformedSpecError as error:
        return Malformed(f"{path}.{error.reason}")


def _read_policy(section: Mapping[str, Any], path: str) -> Policy | Malformed:
    try:
        return read_policy(section)
    except MalformedSpecError as error:
        return Malformed(f"{path}.{error.reason}")
