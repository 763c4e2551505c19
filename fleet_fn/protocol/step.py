"""The decision table: the command that answers a status."""

from dataclasses import dataclass

from fleet_fn.protocol.messages import Status, Swap, Sync

#: Sizes of the words of devices' flash memories, mostly 4. A device writes only multiples of its word, so it pads the
#: last block, and counts the padding.
FLASH_WORD_BYTES = (4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Target:
    """The firmware that a device should run."""

    version: bytes
    #: Bytes, above 0.
    size: int
    #: SHA-256, 32 bytes.
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """A WRITE without data, for `size` bytes of the target from `offset` on.

    These bytes have to be read first.
    """

    version: bytes
    offset: int
    #: Bytes, above 0.
    size: int


def next_command(status: Status, target: Target, *, mtu: int, poll: int) -> Sync | Swap | Block:
    """Return the command that brings a device closer to its target.

    Args:
        status: the device's status.
        target: the device's target.
        mtu: bytes of a block at most.
        poll: seconds after which a device in sync reports again.

    """
    progress = status.progress
    if status.version == target.version:
        return Sync(target.version, poll)
    if progress is None or progress.version != target.version:
        return _block(target, 0, mtu)
    if is_all_written(progress.offset, target.size):
        return Swap(target.version, target.checksum)
    if progress.offset < target.size:
        return _block(target, progress.offset, mtu)
    return _block(target, 0, mtu)


def is_all_written(offset: int, size: int) -> bool:
    """Return whether a device at `offset` has all `size` bytes, padded or not."""
    return offset in paddings(size, size)


def paddings(end: int, size: int) -> set[int]:
    """Return the offsets that may follow a block up to `end`.

    Devices pad the last block.
    """
    return {end} | ({-(-end // word) * word for word in FLASH_WORD_BYTES} if end == size else set())


def _block(target: Target, offset: int, mtu: int) -> Block:
    return Block(target.version, offset, min(mtu, target.size - offset))
