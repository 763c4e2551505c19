"""Remember commands without effect that the device's record says were sent."""

from collections import OrderedDict
from typing import Final

from fleet_fn.drogue.update_record import Record

#: Events that are remembered. The oldest go first.
_MAX_EVENTS: Final = 1000


class UnsentCommands:
    """Events whose records this process wrote, but whose commands had no effect.

    It may not know that it wrote them. A redelivery to this process sends the command all the same, unless another
    process has written the record since.
    """

    def __init__(self) -> None:
        #: Tokens of the writes, by the keys of the events.
        self._writes: OrderedDict[str, str] = OrderedDict()

    def add(self, key: str, record: Record | None) -> None:
        """Remember that an event's command had no effect, and the record for it."""
        if record is None or record.write is None:
            return
        self._writes[key] = record.write
        if len(self._writes) > _MAX_EVENTS:
            self._writes.popitem(last=False)

    def covers(self, key: str, record: Record) -> bool:
        """Return whether `record` is that of an event whose command had no effect."""
        return record.write is not None and self._writes.get(key) == record.write

    def discard(self, key: str) -> None:
        """Forget an event whose command is sent now."""
        self._writes.pop(key, None)
