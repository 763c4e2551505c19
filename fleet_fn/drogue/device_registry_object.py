"""Parts of a registry object (device or application) that updates depend on."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from fleet_fn.drogue.firmware_spec import Malformed, read_firmware_spec
from fleet_fn.drogue.rollout_status import NO_ROLLOUT, RolloutStatus
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.spec_source import Source
from fleet_fn.drogue.status_report import Reported


class RegistryObject(NamedTuple):
    """A device or an application, as far as updates depend on it."""

    source: Source | Malformed | None
    policy: Policy | Malformed
    #: Empty if the object has none.
    uid: str = ""
    labels: Mapping[str, str] = MappingProxyType({})
    reported: Reported = Reported()
    #: `spec.core.disabled` is true.
    disabled: bool = False
    gateways: tuple[str, ...] = ()
    #: State of the rollout; only applications have one.
    rollout: RolloutStatus = NO_ROLLOUT


def read_object(found: Mapping[str, Any], kind: str) -> RegistryObject:
    """Return the parts of an object that updates depend on.

    Args:
        found: the object.
        kind: `device` or `application`, for reasons.

    Raises:
        ValueError: it is no object of the registry. A malformed `spec.firmware` raises nothing, see `Malformed`.

    """
    metadata, spec = read_map(found, "metadata"), read_map(found, "spec")
    uid, labels, status = metadata.get("uid"), metadata.get("labels"), found.get("status")
    source, policy = read_firmware_spec(spec.get("firmware"), f"the {kind}'s spec.firmware")
    firmware = status.get("firmware") if isinstance(status, dict) else None
    return RegistryObject(
        source,
        policy,
        uid if isinstance(uid, str) else "",
        labels if isinstance(labels, dict) else {},
        Reported.read(firmware),
        is_disabled(spec),
        read_gateways(spec),
        RolloutStatus.read(firmware),
    )


def read_map(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the map at `key`; an empty one if there is none.

    Raises:
        ValueError: the value at `key` is not a map.

    """
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a map")
    return value


def read_gateways(spec: object) -> tuple[str, ...]:
    """Return the names in a spec's `gatewaySelector.matchNames`; none if malformed."""
    selector = spec.get("gatewaySelector") if isinstance(spec, dict) else None
    names = selector.get("matchNames") if isinstance(selector, dict) else None
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def is_disabled(spec: Mapping[str, Any]) -> bool:
    """Return whether an operator has disabled the device or the application."""
    core = spec.get("core")
    return isinstance(core, dict) and core.get("disabled") is True
