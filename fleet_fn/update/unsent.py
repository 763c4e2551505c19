"""Remember commands without effect that the device's record says were sent."""

from collections import OrderedDict
from typing import Final

#: Events that are remembered. The oldest go first.
_MAX_EVENTS: Final = 1000


class UnsentCommands:
    """Keys of events whose records could not be put back after a refused command.

    A redelivery to this process sends the command all the same.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def add(self, key: str) -> None:
        """Remember that the command of an event had no effect."""
        self._keys[key] = None
        if len(self._keys) > _MAX_EVENTS:
            self._keys.popitem(last=False)

    def discard(self, key: str) -> None:
        """Forget an event whose command is sent now."""
        self._keys.pop(key, None)
