"""The parts of the cloud that MQTT sessions use."""

from collections.abc import Callable
from dataclasses import dataclass

from fleet_fn.sandbox.commanding import Commanding
from fleet_fn.sandbox.mqtt.faults import Faults
from fleet_fn.sandbox.mqtt.topics import Topics
from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.registry import Registry
from fleet_fn.sandbox.rights import Permission, Rights


@dataclass(frozen=True, slots=True)
class Cloud:
    """The parts of the cloud that MQTT sessions use."""

    registry: Registry
    rights: Rights
    commanding: Commanding
    topics: Topics
    faults: Faults
    #: Takes one line for each connection, subscription and acknowledged event.
    log: Callable[[str], None]

    def may(self, user: str | None, application: str, permission: Permission) -> bool:
        """Return whether a user has a permission for an application, which exists."""
        registry = self.registry
        return registry.has(application) and self.rights.may(user, registry.owner(application), permission)

    def has_device(self, application: str, device: str) -> bool:
        """Return whether an application has a device of this name."""
        try:
            self.registry.device(application, device)
        except RefusedError:
            return False
        return True
