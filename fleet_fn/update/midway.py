"""Decide whether a device's reported blocks are the target's, and really there.

Pure. The rules come from the protocol's description: "What an answer may rest on" and "What devices in the field do
with an answer". Most devices cannot begin anew midway: ordered to, they refuse the block, and report the new version
with the old offset. So the record keeps the order until the device's offset shows whether it obeyed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final, NamedTuple

from fleet_fn.drogue.update_record import PendingRestart, Record
from fleet_fn.protocol.messages import Progress, Swap
from fleet_fn.protocol.step import FLASH_WORD_BYTES, Block, Target, paddings
from fleet_fn.update.values import DecisionContext, Settle, Stuck

#: Orders to begin anew that a device midway gets, if its status does not show whether it heard them.
_MAX_ORDERS: Final = 5
#: Units of which a shortened block should consist: flash words if possible, the largest first.
_UNITS_BYTES: Final = (*reversed(FLASH_WORD_BYTES), 1)
#: Clocks of processes differ, and records hold whole seconds.
CLOCK_MARGIN: Final = timedelta(seconds=2)


class Checked(NamedTuple):
    """A step that the record allows, and the record that it leaves behind."""

    step: Swap | Block
    record: Record


Answer = Checked | Settle | Stuck


@dataclass(slots=True)
class Midway:
    """A device's progress beside the record of its update."""

    #: The next step by the protocol's decision table alone.
    step: Swap | Block
    progress: Progress | None
    target: Target
    #: The record in the device's object.
    known: Record | None
    #: The record of the update to `target`.
    record: Record
    context: DecisionContext
    #: A process recorded that the device began with the target's bytes. Most rows ask for it.
    is_recorded: bool = field(init=False)

    def __post_init__(self) -> None:
        progress, known = self.progress, self.known
        self.is_recorded = bool(
            progress and known and known.is_of(self.target) and self.record.describes(progress.version)
        )

    @property
    def offset(self) -> int:
        """Bytes that the device reports."""
        return self.progress.offset if self.progress else 0

    @property
    def is_of_target(self) -> bool:
        """The progress is of the target's version."""
        return self.progress is not None and self.progress.version == self.target.version

    @property
    def order(self) -> PendingRestart | None:
        """The last order to begin anew, until the device has shown that it obeyed."""
        return self.known.restart if self.known else None

    @property
    def has_obeyed(self) -> bool:
        """True if the offset is that after the ordered block, padded or not.

        Padding goes up to a flash word.
        """
        return (
            self.is_recorded and self.order is not None and self.offset in paddings(self.order.sent, self.target.size)
        )

    @property
    def is_another_device(self) -> bool:
        """The device was deleted, and created anew under the same name."""
        return bool(self.record.device) and self.context.device_uid not in ("", self.record.device)

    @property
    def has_been_stuck(self) -> bool:
        """True if an earlier status showed that the device's bytes are unknown.

        Its offset has not changed that.
        """
        order = self.order
        return bool(order and order.stuck and (not self.has_obeyed or self.offset == order.midway))

    @property
    def is_released(self) -> bool:
        """The operator has changed the retry token since."""
        return self.known is None or self.known.retry != self.record.retry

    @property
    def may_have_other_bytes(self) -> bool:
        """Another process may have continued the device with other bytes of this version."""
        return self.record.superseded_at(self.target.version, but=self.record.checksum) is not None

    @property
    def may_be_deaf(self) -> bool:
        """The offset is the one before the order, which the device may not have heard."""
        order = self.order
        return order is not None and self.offset == order.midway and 0 < order.orders < _MAX_ORDERS

    @property
    def tells_nothing(self) -> bool:
        """True if the offset after the ordered block equals the one before it.

        Then it shows nothing.
        """
        return self.order is not None and self.order.midway in paddings(self.order.sent, self.target.size)


def check(device: Midway) -> Answer:
    """Return the answer of the first row of the table that applies to the device."""
    return next(answer(device) for _, applies, answer in TABLE if applies(device))


# --- Answers ----------------------------------------------------------------------------------------------------------


def _begin(device: Midway) -> Answer:
    """Start a device that says itself that it has no block."""
    order = None
    if isinstance(device.step, Block) and seconds_to_settle(device.record, device.context):
        order = PendingRestart(device.step.size, midway=0)
    return Checked(device.step, replace(device.record, restart=order))


def _go_on(device: Midway) -> Answer:
    """Send what comes next."""
    return Checked(device.step, device.record)


def _begin_anew(device: Midway) -> Answer:
    """Start a device from 0, although it is midway."""
    size = min(device.context.mtu, device.target.size)
    if size > device.offset and (device.is_of_target or device.record.superseded_at(device.target.version)):
        # A process that does not know of the order only makes the offset grow, so obeying has to make it fall.
        size = _shorter(device.offset)
    return _order(device, size)


def _begin_anew_shorter(device: Midway) -> Answer:
    """Start a device from 0 with a shorter block than the last one.

    The offset after the last block showed nothing.
    """
    last = device.order.sent if device.order else device.target.size
    return _order(device, _shorter(min(device.context.mtu, device.target.size, last, device.offset)))


def _order(device: Midway, size: int) -> Answer:
    """Order a device to begin anew, unless it has heard too many orders.

    The block has `size` bytes.
    """
    before = device.record.restart
    earlier = before.orders if before and not before.stuck else 0
    orders = earlier + 1 if device.is_of_target else 0
    if not size or orders > _MAX_ORDERS:
        return Stuck()
    order = PendingRestart(size, device.offset, orders)
    return Checked(Block(device.target.version, 0, size), replace(device.record, restart=order))


def _order_again(device: Midway) -> Answer:
    """Repeat the order, with a block that is no longer than before."""
    assert device.order is not None  # noqa: S101 - the row's condition
    order = replace(device.order, orders=device.order.orders + 1, sent=min(device.order.sent, device.context.mtu))
    return Checked(Block(device.target.version, 0, order.sent), replace(device.record, restart=order))


def _settle_then_begin_anew(device: Midway) -> Answer:
    """Start a device from 0 once no other process can continue it."""
    seconds = seconds_to_settle(device.record, device.context)
    return Settle(seconds) if seconds else _begin_anew(device)


def _settle_then_go_on(device: Midway) -> Answer:
    """Send what comes next once no other process can send other bytes of this version."""
    if seconds := seconds_to_settle(device.record, device.context):
        return Settle(seconds)
    return Checked(device.step, replace(device.record, restart=None))


def _give_up(_: Midway) -> Answer:
    """Send nothing: the device's bytes are unknown."""
    return Stuck()


class Row(NamedTuple):
    """One row of the table."""

    #: Completes "The device …".
    device: str
    applies: Callable[[Midway], bool]
    answer: Callable[[Midway], Answer]


#: What a device midway gets. The first row that applies counts, so each row takes those above for granted.
TABLE: Final = (
    Row("reports no progress", lambda d: d.progress is None, _begin),
    Row("is another one of the same name", lambda d: d.is_recorded and d.is_another_device, _begin_anew),
    Row("has no block, of another version", lambda d: d.offset == 0 and not d.is_of_target, _begin),
    Row("is stuck", lambda d: d.has_been_stuck and not d.is_released, _give_up),
    Row("was stuck, and may try again", lambda d: d.has_been_stuck, _begin_anew),
    Row("has no block", lambda d: d.offset == 0, _begin),
    Row("has blocks that no record knows", lambda d: not d.is_recorded, _begin_anew),
    Row("is beyond the end", lambda d: d.order is None and _is_block_0(d.step), _begin_anew),
    Row("goes on", lambda d: d.order is None, _go_on),
    Row("may have other bytes", lambda d: not d.has_obeyed and d.may_have_other_bytes, _settle_then_begin_anew),
    Row("may not have heard its order", lambda d: not d.has_obeyed and d.may_be_deaf, _order_again),
    Row("has an offset that no order leads to", lambda d: not d.has_obeyed, _give_up),
    Row("has an offset that shows nothing", lambda d: d.tells_nothing, _begin_anew_shorter),
    Row("has obeyed its order", lambda _: True, _settle_then_go_on),
)


def _is_block_0(step: Swap | Block) -> bool:
    return isinstance(step, Block) and step.offset == 0


def _shorter(size: int) -> int:
    """Return about half of `size` in whole flash words; 0 without a shorter block."""
    return next((half for unit in _UNITS_BYTES if (half := size // 2 // unit * unit)), 0)


def seconds_to_settle(record: Record, context: DecisionContext) -> int:
    """Return how long another process may send other bytes of the record's version.

    Such a process read the device's object before this record took the place of one with the other bytes. It forgets
    that object after `spec_ttl`. Only a status that came after that counts: an older one may have been answered by it.
    """
    if not context.spec_ttl:
        return 0  # no process remembers any object
    superseded = record.superseded_at(record.version.encode(), but=record.checksum)
    if superseded is None:
        return 0
    # A time ahead of our clock counts as now.
    settled = min(superseded, context.now) + context.spec_ttl + CLOCK_MARGIN
    if context.reported_at >= settled:
        return 0
    return max(1, math.ceil((settled - context.now).total_seconds()))
