"""Commands on their way, from the command API and the MQTT integration."""

from collections.abc import Callable
from typing import Final

from fleet_fn.sandbox import objects
from fleet_fn.sandbox.events import NotAcceptableError, normalize_payload
from fleet_fn.sandbox.objects import Core, Object
from fleet_fn.sandbox.refusal import RefusedError
from fleet_fn.sandbox.registry import Registry
from fleet_fn.sandbox.waiting import Command, Commands


class Commanding:
    """Passes commands on as Drogue Cloud does."""

    def __init__(
        self, registry: Registry, commands: Commands, log: Callable[[str], None], *, inverts_core: bool
    ) -> None:
        """Pass commands on.

        Args:
            registry: applications and devices.
            commands: the devices that wait for commands.
            log: takes one line for each command.
            inverts_core: read `spec.core.disabled` of a device like released clouds.

        """
        self._registry = registry
        #: The devices that wait.
        self.commands: Final = commands
        self._log = log
        self._inverts_core = inverts_core

    def send(self, application: str, device: str, name: str, payload: bytes, content_type: str | None) -> bool:
        """Send a command to a device and its gateways.

        Return whether the cloud accepts it. It accepts no command for a missing or a disabled device, and no payload
        that claims to be JSON and is not.
        """
        try:
            target = self._registry.device(application, device)
        except RefusedError:
            return False
        if not self._takes_commands(target):
            return False
        try:
            normalized, _ = normalize_payload(payload, content_type)
        except NotAcceptableError:
            return False
        command = Command(name, normalized)
        targets = [device, *self._gateways(application, target)]
        # Not any(), which would stop at the first.
        reached = sum(self.commands.send(application, gateway, device, command) for gateway in targets)
        fate = "passed on" if reached else "lost, since the device does not wait"
        self._log(f"{application}/{device} command {name}: {len(payload)} bytes, {fate}")
        return True

    def _gateways(self, application: str, device: Object) -> list[str]:
        """Return the names of a device's gateways that exist and take commands."""
        found = []
        for name in objects.gateways(device):
            try:
                gateway = self._registry.device(application, name)
            except RefusedError:
                continue
            if self._takes_commands(gateway):
                found.append(name)
        return found

    def _takes_commands(self, device: Object) -> bool:
        """Return whether the command endpoint treats a device as enabled.

        Released clouds return the flag `disabled` itself, so that a section `core` without it disables a device.
        """
        enabled = {Core.ABSENT, Core.DISABLED} if self._inverts_core else {Core.ABSENT, Core.ENABLED}
        return objects.core(device) in enabled
