"""Which command answers a status: the decision table, row by row."""

from dataclasses import dataclass

from fleet_fn.protocol.messages import Status, Swap, Sync

#: Devices pad the last block to their flash word and count the padding: bytes.
FLASH_WORDS = (4, 8, 16, 32)


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
    """A WRITE whose bytes are yet to be read: those of the target from `offset` to `offset + size`."""

    version: bytes
    offset: int
    #: Bytes, above 0.
    size: int


def next_command(status: Status, target: Target, *, mtu: int, poll: int) -> Sync | Swap | Block:
    """The command that brings a device in `status` closer to `target`.

    Args:
        status: what the device reported.
        target: what it should run.
        mtu: bytes of a block at most.
        poll: seconds after which a device in sync asks again.

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
    """Whether a device whose next byte is `offset` has all `size` bytes, the padding to its flash word included."""
    return offset in paddings(size, size)


def paddings(end: int, size: int) -> set[int]:
    """The offsets that a device may report after a block that ends at `end`: the last block of all may be padded."""
    return {end} | ({-(-end // word) * word for word in FLASH_WORDS} if end == size else set())


def _block(target: Target, offset: int, mtu: int) -> Block:
    return Block(target.version, offset, min(mtu, target.size - offset))
