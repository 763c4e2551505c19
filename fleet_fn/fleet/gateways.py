"""Gateways whose own update may run during the updates of their devices.

A gateway that waits for commands receives those of its devices too, and these name no device (docs/gateways.md).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

#: Names of devices that are kept per gateway; further devices are only counted.
_MAX_NAMES: Final = 10


class Conflict(NamedTuple):
    """A gateway that is being updated at the same time as devices behind it."""

    gateway: str
    #: Names of the first devices, in the registry's order.
    devices: list[str]
    #: Number of all devices.
    total: int

    def describe(self) -> str:
        """Return the conflict as a sentence for people."""
        others = self.total - len(self.devices)
        more = f" and {others} more" if others else ""
        names = ", ".join(self.devices)
        return (
            f"gateway {self.gateway} is being updated at the same time as {names}{more} behind it, "
            "and may take their blocks for its own: pause one side (docs/gateways.md)"
        )


@dataclass(slots=True)
class _Children:
    names: list[str] = field(default_factory=list)
    count: int = 0


@dataclass(slots=True)
class Gateways:
    """Collects gateways and the devices behind them while a fleet's pages are read."""

    _updating: set[str] = field(default_factory=set)
    _children: dict[str, _Children] = field(default_factory=dict)

    def add(self, device: str, gateways: Iterable[str], *, is_updating: bool) -> None:
        """Add a device and the names in its `gatewaySelector`."""
        if not is_updating:
            return
        self._updating.add(device)
        for gateway in {*gateways} - {device}:
            children = self._children.setdefault(gateway, _Children())
            children.count += 1
            if len(children.names) < _MAX_NAMES:
                children.names.append(device)

    def conflicts(self) -> list[Conflict]:
        """Return gateways that are updated while their devices are, sorted by name."""
        return [
            Conflict(gateway, children.names, children.count)
            for gateway, children in sorted(self._children.items())
            if gateway in self._updating
        ]
