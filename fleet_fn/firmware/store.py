"""What firmware is, and the two verbs of every store: resolve a reference, open what it resolved to."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.oci.reference import Reference
from fleet_fn.protocol.messages import U32_MAX

#: The share of the time left for reaching the firmware's bytes that is kept for telling the device to wait for them.
KEPT_FOR_WAIT: Final = 0.25


class NotReadyError(Exception):
    """The firmware is known, but its bytes cannot be served yet; what has to happen first goes on meanwhile."""

    @property
    def reason(self) -> str:
        """What goes on, in one line."""
        return str(self)


class Reader(Protocol):
    """Firmware whose bytes were verified."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: they are being changed, or verifying them takes longer than the deadline that the store was
                given.
            PermanentError: they are not what they should be, or cannot be read.

        """


@dataclass(frozen=True, slots=True)
class Firmware:
    """A version of a firmware, how it is known when it is seen, and how to get at its bytes."""

    version: str
    #: Bytes, from 1 to 2^32-1: what the protocol's offsets can express.
    size: int
    #: SHA-256 of all bytes, 32 bytes.
    checksum: bytes
    #: What kind of thing the reference named, for people: `artifact`, `labelled image`, …
    shape: str
    #: Its store's second verb, for this firmware.
    opener: Callable[[Deadline], AbstractContextManager[Reader]] = field(repr=False, compare=False)
    #: Digest of the manifest or the index that the reference stood at, where it is such a reference.
    manifest: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.size <= U32_MAX:
            raise PermanentError(f"a firmware of {self.size} bytes: from 1 to {U32_MAX} can be sent")
        if "\0" in self.version:
            raise PermanentError(f"a firmware version with U+0000, which Drogue Cloud cannot store: {self.version}")

    def open(self, deadline: Deadline) -> AbstractContextManager[Reader]:
        """The bytes, verified against size and checksum before the first of them is served.

        Raises:
            NotReadyError: that takes longer than the deadline; a later call finds the work done.
            TransientError: the place where they lie is not there.
            PermanentError: the bytes are not what they should be, or not there.

        """
        return self.opener(deadline)


class Store(Protocol):
    """A place where firmware lies."""

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        """The firmware that `reference` names right now; `known` is what it named before, where that is remembered.

        Raises:
            NotReadyError: finding out takes longer than the deadline; a later call finds the work done.
            PermanentError: there is none, or it is malformed.
            TransientError: the place is not there.

        """
