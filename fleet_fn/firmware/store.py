"""What firmware is, and the two verbs of every store: resolve a reference, open what it resolved to."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fleet_fn.deadline import Deadline
from fleet_fn.firmware.reference import Reference
from fleet_fn.protocol.messages import U32_MAX


class NotHere(Exception):
    """The firmware is known, but its bytes cannot be served yet; what has to happen first goes on meanwhile."""

    @property
    def reason(self) -> str:
        """What goes on, in one line."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Firmware:
    """A version of a firmware, and how it is known when it is seen."""

    version: str
    #: Bytes, from 1 to 2^32-1: what the protocol's offsets can express.
    size: int
    #: SHA-256 of all bytes, 32 bytes.
    checksum: bytes
    #: The file that should hold exactly these bytes.
    path: Path
    #: What kind of thing the reference named, for people: `artifact`, …
    shape: str = "artifact"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= U32_MAX:
            raise ValueError(f"a firmware of {self.size} bytes: from 1 to {U32_MAX} can be sent")


class Reader(Protocol):
    """Firmware whose bytes were verified."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            NotHere: they are being changed, or verifying them takes longer than the deadline that the store was given.
            Failed: they are not what they should be, or cannot be read.

        """


class Store(Protocol):
    """A place where firmware lies."""

    def resolve(self, reference: Reference, deadline: Deadline) -> Firmware:
        """The firmware that `reference` names right now.

        Raises:
            Failed: there is none, or it is malformed.
            Retry: the place is not there.

        """

    def open(self, firmware: Firmware, deadline: Deadline) -> AbstractContextManager[Reader]:
        """The bytes of `firmware`, verified against its size and checksum before the first is served.

        Raises:
            NotHere: that takes longer than the deadline; a later call finds the work done.
            Failed: the bytes are not what they should be.

        """
