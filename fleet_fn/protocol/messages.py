"""The messages of the DFU protocol: what a device reports, and what it is told to do.

Plain values: how they look on the wire is told by `dialects`, which of them answers which by `step`.
Versions are bytes, because that is how devices compare them; a version given as text is its UTF-8.
"""

from dataclasses import dataclass

#: Offsets, sizes, block sizes and correlation ids are 32-bit unsigned integers on the wire.
U32_MAX = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Progress:
    """An update under way on a device."""

    #: The version being written.
    version: bytes
    #: The next byte that the device expects, counted from the firmware's first.
    offset: int


@dataclass(frozen=True, slots=True)
class Status:
    """What a device runs, and how far it has written what comes next."""

    version: bytes
    #: The largest block that the device wants, in bytes; None leaves it to the server.
    mtu: int | None = None
    #: Opaque to the server, which echoes it where the dialect can.
    correlation_id: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Sync:
    """You run what you should: mark it good, and ask again after `poll` seconds."""

    version: bytes
    poll: int | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """Write these bytes at `offset`, then report."""

    version: bytes
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Swap:
    """All is written: verify, swap, boot, report."""

    version: bytes
    #: SHA-256 of the whole firmware, 32 bytes.
    checksum: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to say yet: ask again after `poll` seconds."""

    poll: int | None = None


Command = Sync | Write | Swap | Wait
