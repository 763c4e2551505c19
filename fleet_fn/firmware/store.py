"""Firmware, and the interface of each store.

A store resolves a reference, and opens the firmware that it names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.oci.attached import Attached
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.signature_keys import PublicKey
from fleet_fn.oci.signature_search import Signature
from fleet_fn.protocol.messages import U32_MAX

#: Share of the time for opening a firmware that is left for sending WAIT if its bytes are not ready.
KEPT_FOR_WAIT: Final = 0.25


class NotReadyError(Exception):
    """The firmware is known, but its bytes are not ready.

    Downloading or verifying them goes on.
    """

    @property
    def reason(self) -> str:
        """Work in progress, in one line."""
        return str(self)


class Reader(Protocol):
    """An open firmware whose bytes were verified."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        Raises:
            NotReadyError: the bytes are being changed, or verifying them takes longer than the deadline of `open`.
            PermanentError: the bytes differ from the checksum, or cannot be read.

        """


class Signed(NamedTuple):
    """The parts of a firmware's source that can be signed."""

    #: Unique name of the repository or the file.
    place: str
    #: Digests of the index and of the manifest that was chosen in it, or of the description: one signature will do.
    digests: tuple[str, ...]
    #: Yields the signatures by some keys, and those that do not count; raises `TransientError`.
    search: Callable[[Sequence[PublicKey], Deadline], Iterator[Signature]]
    #: Lists what is attached to them, for people; raises `PermanentError` and `TransientError`.
    attached: Callable[[Deadline], list[Attached]] = lambda _: []


@dataclass(frozen=True, slots=True)
class Firmware:
    """A version of a firmware: its size and checksum, and how to open its bytes."""

    version: str
    #: Bytes, from 1 to 2^32-1: what the protocol's offsets can express.
    size: int
    #: SHA-256 of all bytes, 32 bytes.
    checksum: bytes
    #: Kind of content that the reference named, for people: `artifact`, `labelled image`, …
    shape: str
    #: Opens the bytes in the firmware's store.
    opener: Callable[[Deadline], AbstractContextManager[Reader]] = field(repr=False, compare=False)
    #: Digest of the manifest or index that the reference named; None if the store has no manifests.
    manifest: str | None = None
    #: Who published it, in the words of the manifest, for people; empty if the manifest does not tell.
    authors: str = field(default="", compare=False)
    #: Annotations that tell where it came from, for people.
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    #: Hardware that it is built for; empty if it names none.
    hardware: tuple[str, ...] = ()
    #: Range that a device's version must be in before it gets this one; empty for any, unchecked.
    requires: str = ""
    #: It tells its version itself. Otherwise its tag does, which no signature covers.
    has_own_version: bool = True
    #: Where its signatures are; None if its source has none.
    signed: Signed | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= U32_MAX:
            raise PermanentError(f"a firmware of {self.size} bytes: from 1 to {U32_MAX} can be sent")
        if "\0" in self.version:
            raise PermanentError(f"a firmware version with U+0000, which Drogue Cloud cannot store: {self.version}")

    def open(self, deadline: Deadline) -> AbstractContextManager[Reader]:
        """Open the bytes, verified against size and checksum before any is served.

        Raises:
            NotReadyError: fetching or verifying takes longer than the deadline; a later call finds the work done.
            TransientError: the source of the bytes is unavailable.
            PermanentError: the bytes are missing, or differ from size or checksum.

        """
        return self.opener(deadline)


class Store(Protocol):
    """A source of firmware."""

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        """Return the firmware that `reference` names now.

        `known` is the firmware that it named before, if cached.

        Raises:
            NotReadyError: resolving takes longer than the deadline; a later call finds the work done.
            PermanentError: the reference names nothing, or something malformed.
            TransientError: the source is unavailable.

        """

    def close(self) -> None:
        """Close idle connections, if the source has any; a later call opens new ones."""


class ImageStore(Store, Protocol):
    """A source of firmware in repositories, which have tags."""

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:
        """Return tags of the repository that `reference` names; with `whole`, all.

        Raises:
            PermanentError: there is no such repository, or it is malformed, or it denies access; or it has more tags
                than are read, and the list has to be `whole`.
            TransientError: the source is unavailable.

        """
