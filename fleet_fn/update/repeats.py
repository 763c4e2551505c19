"""Count how often devices are sent the same block in a row."""

import threading
from collections import OrderedDict
from typing import Final

from fleet_fn.protocol.step import Block

#: Devices whose last block is remembered: some 300 bytes each.
_MAX_DEVICES: Final = 10_000


class Repeats:
    """Blocks that this process sent to each device in a row; best effort, in memory."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: OrderedDict[tuple[str, str], tuple[Block, int]] = OrderedDict()

    def add(self, application: str, device: str, block: Block) -> None:
        """Count a block that was sent; another one begins a new row."""
        with self._lock:
            times = 1 + self.of(application, device, block)
            self._blocks[application, device] = (block, times)
            self._blocks.move_to_end((application, device))
            if len(self._blocks) > _MAX_DEVICES:
                self._blocks.popitem(last=False)

    def forget(self, application: str, device: str) -> None:
        """End the row of a device that got another command."""
        if (application, device) in self._blocks:
            with self._lock:
                self._blocks.pop((application, device), None)

    def of(self, application: str, device: str, block: Block) -> int:
        """Return how often in a row the block was sent to the device."""
        known = self._blocks.get((application, device))
        return known[1] if known and known[0] == block else 0
