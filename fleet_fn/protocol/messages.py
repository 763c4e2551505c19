"""Messages of the DFU protocol: statuses of devices, and commands to them.

`dialects` encodes them, `step` decides which command answers a status. Versions are bytes, because devices compare
bytes; a version that arrives as text becomes UTF-8.
"""

from dataclasses import dataclass

#: Offsets, sizes, block sizes and correlation ids are 32-bit unsigned integers on the wire.
U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an update on a device."""

    #: The version being written.
    version: bytes
    #: Offset in the firmware of the next byte that the device expects.
    offset: int


@dataclass(frozen=True, slots=True)
class Status:
    """The version that a device runs, and the progress of its update."""

    version: bytes
    #: The largest block that the device takes, in bytes; None if the server may choose.
    mtu: int | None = None
    #: Opaque to the server, which echoes it if the dialect can.
    correlation_id: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """The device runs its target: mark it good, and report again after `poll` seconds."""

    version: bytes
    poll: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write `data` at `offset`, then report."""

    version: bytes
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Swap:
    """All bytes are written: verify, swap, boot, report."""

    version: bytes
    #: SHA-256 of the whole firmware, 32 bytes.
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """The next step is not known yet: report again after `poll` seconds."""

    poll: int | None = None


Command = Sync | Write | Swap | Wait
