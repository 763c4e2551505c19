"""An application's object, as far as its rollout goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from fleet_fn.drogue.device_registry_object import read_map
from fleet_fn.drogue.firmware_spec import FirmwareSpec, Malformed, read_firmware_spec
from fleet_fn.drogue.rollout_status import RolloutStatus
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.spec_source import SOURCES, Source, read_source
from fleet_fn.drogue.spec_values import MalformedSpecError
from fleet_fn.drogue.update_record import parse_timestamp
from fleet_fn.errors import PermanentError

_PATH: Final = "the application's spec.firmware"


class RefusedError(PermanentError):
    """The rollout cannot be changed so.

    The change makes no sense, or the function would refuse its result.
    """


@dataclass(frozen=True, slots=True)
class Previous:
    """The firmware that an application had before its rollout."""

    #: Its source, as it stands in `spec.firmware`: a kind, and the map below it.
    kind: str
    source: Mapping[str, Any]
    #: None if it was not known.
    version: str | None = None

    @classmethod
    def read(cls, value: object) -> Self | None:
        """Read `status.firmware.rollout.previous`; None if it is missing or malformed."""
        fields = value if isinstance(value, dict) else {}
        kinds = [kind for kind in SOURCES if isinstance(fields.get(kind), dict)]
        if len(kinds) != 1:
            return None
        version = fields.get("version")
        return cls(kinds[0], fields[kinds[0]], version if isinstance(version, str) else None)

    def read_source(self) -> Source | None:
        """Return the source.

        Raises:
            RefusedError: it is malformed.

        """
        try:
            return read_source({self.kind: dict(self.source)})
        except MalformedSpecError as error:
            raise RefusedError(f"status.firmware.rollout.previous.{error.reason}") from error

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the application's object."""
        return {self.kind: dict(self.source), **({"version": self.version} if self.version else {})}


@dataclass(frozen=True, slots=True)
class LastAction:
    """The last change of a rollout by `fleet-fn rollout`."""

    action: str
    user: str | None = None
    at: datetime | None = None

    @classmethod
    def read(cls, value: object) -> Self | None:
        """Read `status.firmware.rollout.last`; None if it is missing or malformed."""
        fields = value if isinstance(value, dict) else {}
        action, user = fields.get("action"), fields.get("user")
        if not isinstance(action, str):
            return None
        return cls(action, user if isinstance(user, str) else None, parse_timestamp(fields.get("at")))


@dataclass(frozen=True, slots=True)
class Application:
    """An application and the state of its rollout."""

    #: The whole object, as the registry has it.
    found: Mapping[str, Any]
    name: str
    #: Its `spec.firmware` and its `status.firmware.rollout`; empty if missing.
    firmware: Mapping[str, Any]
    status: Mapping[str, Any]
    spec: FirmwareSpec
    rollout: RolloutStatus
    previous: Previous | None
    last: LastAction | None
    #: Name and digest of the firmware's manifest, `name@sha256:…`, as resolved for `rollout.version`.
    image: str | None

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Self:
        """Read an application's object.

        Raises:
            RefusedError: one of its sections is no map.

        """
        try:
            name = read_map(found, "metadata").get("name")
            firmware = read_map(read_map(found, "spec"), "firmware")
            status = read_map(read_map(found, "status"), "firmware")
        except ValueError as error:
            raise RefusedError(f"the application's object is malformed: {error}") from error
        try:
            section = read_map(status, "rollout")
        except ValueError as error:
            raise RefusedError(f"the application's status.firmware.{error}; remove it") from error
        image = section.get("image")
        return cls(
            found,
            name if isinstance(name, str) else "",
            firmware,
            section,
            read_firmware_spec(firmware or None, _PATH),
            RolloutStatus.read(status),
            Previous.read(section.get("previous")),
            LastAction.read(section.get("last")),
            image if isinstance(image, str) else None,
        )

    @property
    def source(self) -> Source | None:
        """The application's firmware source; None if it names none.

        Raises:
            RefusedError: it is malformed.

        """
        if isinstance(self.spec.source, Malformed):
            raise RefusedError(self.spec.source.reason)
        return self.spec.source

    @property
    def policy(self) -> Policy:
        """The application's update policy.

        Raises:
            RefusedError: it is malformed.

        """
        if isinstance(self.spec.policy, Malformed):
            raise RefusedError(self.spec.policy.reason)
        return self.spec.policy

    @property
    def source_section(self) -> tuple[str, Mapping[str, Any]] | None:
        """The source as it stands in `spec.firmware`: its kind, and the map below it."""
        if self.source is None:
            return None
        kind = next(kind for kind in SOURCES if self.firmware.get(kind) is not None)
        return kind, self.firmware[kind]

    def rollout_policy(self, key: str) -> Any:
        """Return the value of a key in `spec.firmware.rollout`; None if it is not set."""
        rollout = self.firmware.get("rollout")
        return rollout.get(key) if isinstance(rollout, dict) else None

    def changed(self, firmware: Mapping[str, Any], status: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the object with another `spec.firmware` and `status.firmware.rollout`.

        Returns:
            The object; None if nothing is different.

        Raises:
            RefusedError: the function would refuse this `spec.firmware`.

        """
        if firmware == self.firmware and status == self.status:
            return None
        for part in read_firmware_spec(dict(firmware), _PATH):
            if isinstance(part, Malformed):
                raise RefusedError(part.reason)
        spec, state = read_map(self.found, "spec"), read_map(self.found, "status")
        reported = {**read_map(state, "firmware"), "rollout": dict(status)}
        changed = dict(self.found)
        if firmware != self.firmware:
            changed["spec"] = {**spec, "firmware": dict(firmware)}
        if status != self.status:
            changed["status"] = {**state, "firmware": reported}
        return changed


def with_rollout_policy(firmware: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    """Return a `spec.firmware` with other keys in its `rollout`; None removes a key.

    Raises:
        RefusedError: `rollout` is no map.

    """
    rollout = firmware.get("rollout")
    if rollout is not None and not isinstance(rollout, dict):
        raise RefusedError(f"{_PATH}.rollout is no map")
    merged = {**(rollout or {}), **values}
    policy = {key: value for key, value in merged.items() if key not in values or value is not None}
    changed = {key: value for key, value in firmware.items() if key != "rollout"}
    return {**changed, "rollout": policy} if policy or rollout == {} else changed
