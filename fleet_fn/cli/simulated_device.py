"""Two simulated devices as state machines: a careful one, and one with the field's habits.

No I/O and no clock: a device tells its status, is handed a command, and says what happens next.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fleet_fn.protocol.messages import U32_MAX, Command, Progress, Status, Swap, Sync, Wait, Write

#: Seconds that a device waits after an error.
ERROR_PAUSE = 10.0
#: Seconds until a device asks again where nobody told it when.
POLL_PAUSE = 10.0
#: Seconds that embedded-update's loop rests between two statuses, and that a device takes to boot.
BACKOFF = 1.0

#: FirmwareManager keeps versions in a buffer of this many bytes.
VERSION_BYTES = 16

#: Whether an image (its bytes, its version) comes up when it is booted.
Bootable = Callable[[bytes, bytes], bool]


class Outcome(Enum):
    """What a command did to a device."""

    WROTE = "wrote a block"
    IN_SYNC = "in sync"
    WAITING = "waiting"
    IGNORED = "ignored"
    FAILED = "failed"
    RESET = "reset"
    BOOTED = "booted"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class Step:
    """What a device did with a command, and when it reports next."""

    outcome: Outcome
    #: Seconds until the next status.
    pause: float = 0.0
    #: Why a command was ignored or failed.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Boot:
    """One swap: what the bootloader was told to start, whether or not it came up."""

    #: What the image calls itself.
    version: bytes
    #: SHA-256 of the image, in hex.
    sha256: str
    #: Bytes.
    size: int
    #: The checksum that the SWAP announced, in hex.
    announced: str


@dataclass(frozen=True, slots=True)
class _Image:
    version: bytes
    content: bytes


def _comes_up(_image: bytes, _version: bytes) -> bool:
    return True


class SimulatedDevice(ABC):
    """What both characters share: two slots in flash, and a bootloader that exchanges them.

    Args:
        version: what it runs when delivered.
        mtu: the largest block that it asks for, in bytes.
        bootable: asked about every image but the delivered one; an empty image never boots.

    """

    def __init__(self, version: bytes, *, mtu: int | None = 512, bootable: Bootable = _comes_up) -> None:
        self._mtu = mtu
        self._bootable = bootable
        self._delivered = self._running = _Image(version, b"")
        # The update partition, from its first byte to the last one written; everything behind it is erased.
        self._flash = bytearray()
        self._flash_version = b""
        # Between a swap and its being marked good: the bootloader goes back on the next reset.
        self._on_trial = False
        self.marked_good = True
        self.boots: list[Boot] = []
        self.rollbacks = 0
        #: What no server may say to a device, and this one heard.
        self.violations: list[str] = []

    @property
    def version(self) -> bytes:
        """The version that it runs."""
        return self._running.version

    @property
    def image(self) -> bytes:
        """The bytes that it runs; none for the image that it was delivered with."""
        return self._running.content

    @property
    def flash(self) -> bytes:
        """The update partition up to the last byte written."""
        return bytes(self._flash)

    @property
    @abstractmethod
    def progress(self) -> Progress | None:
        """The update under way, as the device itself remembers it."""

    @abstractmethod
    def status(self) -> Status:
        """The next status; each call is a new one."""

    @abstractmethod
    def handle(self, command: Command, correlation_id: int | None = None) -> Step:
        """Takes the answer to the last status."""

    def power_cycle(self) -> None:
        """Power is lost and comes back: an image that was not marked good yet is rolled back."""
        if self._on_trial:
            self._roll_back()

    def _erase(self, version: bytes) -> None:
        self._flash.clear()
        self._flash_version = version
        self._on_trial = False  # there is nothing left to go back to

    def _swap(self, announced: bytes) -> Step:
        self._exchange_slots()
        image = self._running
        sha256 = hashlib.sha256(image.content).hexdigest()
        self.boots.append(Boot(image.version, sha256, len(image.content), announced.hex()))
        if image != self._delivered and not (image.content and self._bootable(image.content, image.version)):
            self._roll_back()
            return Step(Outcome.ROLLED_BACK, BACKOFF)
        self._on_trial, self.marked_good = True, False
        return Step(Outcome.BOOTED, BACKOFF)

    def _roll_back(self) -> None:
        self._exchange_slots()
        self._on_trial, self.marked_good = False, True
        self.rollbacks += 1

    def _exchange_slots(self) -> None:
        image = _Image(self._flash_version, bytes(self._flash))
        self._flash, self._flash_version = bytearray(self._running.content), self._running.version
        self._running = image

    def _synced(self, command: Sync) -> Step:
        self._on_trial, self.marked_good = False, True
        return Step(Outcome.IN_SYNC, command.poll or POLL_PAUSE)

    def _check_sync(self, command: Sync) -> bool:
        """Whether a SYNC is for what the device runs; noted if not, for no server may say that."""
        if command.version == self.version:
            return True
        self.violations.append(f"SYNC for {command.version!r} to a device that runs {self.version!r}")
        return False


class CarefulDevice(SimulatedDevice):
    """A device that trusts nobody: it writes in order, verifies before it swaps, and forgets nothing.

    Args:
        correlate: send a correlation id with each status, and take no answer that carries another.

    """

    def __init__(
        self, version: bytes, *, mtu: int | None = 512, bootable: Bootable = _comes_up, correlate: bool = True
    ) -> None:
        super().__init__(version, mtu=mtu, bootable=bootable)
        self._correlate = correlate
        # These two are in flash as well: they survive a power cycle.
        self._correlation_id: int | None = None
        self._writing: bytes | None = None

    @property
    def progress(self) -> Progress | None:
        """The update under way."""
        return None if self._writing is None else Progress(self._writing, len(self._flash))

    def status(self) -> Status:
        """The next status, with a correlation id that no earlier one had."""
        if self._correlate:
            self._correlation_id = 0 if self._correlation_id is None else (self._correlation_id + 1) & U32_MAX
        return Status(self.version, self._mtu, self._correlation_id, self.progress)

    def handle(self, command: Command, correlation_id: int | None = None) -> Step:
        """Takes the answer to the last status, and ignores one to an earlier status."""
        if self._correlate and correlation_id != self._correlation_id:
            return _ignored(f"correlation id {correlation_id}, not {self._correlation_id}")
        match command:
            case Wait(poll):
                return Step(Outcome.WAITING, poll or POLL_PAUSE)
            case Sync():
                if not self._check_sync(command):
                    return _ignored("SYNC for another version")
                return self._synced(command)
            case Write():
                return self._write(command)
            case Swap():
                return self._verify_and_swap(command)

    def _write(self, command: Write) -> Step:
        if command.version == self.version:
            return _ignored("WRITE of the version that runs")
        if command.offset == 0:
            self._erase(command.version)
            self._writing = command.version
        if self.progress != Progress(command.version, command.offset):
            return _ignored(f"WRITE at {command.offset}, which is not what comes next")
        self._flash += command.data
        return Step(Outcome.WROTE)

    def _verify_and_swap(self, command: Swap) -> Step:
        if command.version != self._writing:
            return _ignored("SWAP to a version that was not written")
        self._writing = None
        if hashlib.sha256(self._flash).digest() != command.checksum:
            return Step(Outcome.FAILED, BACKOFF, "what was written has another checksum")
        return self._swap(command.checksum)


def _ignored(reason: str) -> Step:
    return Step(Outcome.IGNORED, BACKOFF, reason)


class FirmwareManagerDevice(SimulatedDevice):
    """Drogue Device's `FirmwareManager` below embedded-update's loop, which most of the field runs.

    Its progress is in RAM, it takes the server's word for everything, and it tells nobody of its errors.

    Args:
        flash_word: bytes that its flash writes at once.

    """

    def __init__(
        self, version: bytes, *, mtu: int | None = 512, bootable: Bootable = _comes_up, flash_word: int = 4
    ) -> None:
        super().__init__(version, mtu=mtu, bootable=bootable)
        self._flash_word = flash_word
        self._next_version: bytes | None = None
        self._next_offset = 0

    @property
    def progress(self) -> Progress | None:
        """The update under way, which need not be what lies in flash."""
        return None if self._next_version is None else Progress(self._next_version, self._next_offset)

    def status(self) -> Status:
        """The next status; it never has a correlation id."""
        return Status(self.version, self._mtu, None, self.progress)

    def handle(self, command: Command, correlation_id: int | None = None) -> Step:  # noqa: ARG002 - it does not look
        """Takes any answer for the answer to its last status."""
        match command:
            case Wait(poll):
                return Step(Outcome.WAITING, poll or BACKOFF)
            case Sync(_, poll):
                in_sync = self._check_sync(command)
                step = self._synced(command)  # whatever the version
                return step if in_sync else Step(Outcome.WAITING, step.pause, "SYNC for another version")
            case Write():
                return self._write(command)
            case Swap():
                self._forget()
                return self._swap(command.checksum)  # whatever the version and the checksum

    def power_cycle(self) -> None:
        """Power is lost and comes back: RAM is empty."""
        super().power_cycle()
        self._forget()

    def _forget(self) -> None:
        self._next_version, self._next_offset = None, 0

    def _write(self, command: Write) -> Step:
        if len(command.version) > VERSION_BYTES:
            self.power_cycle()
            return Step(Outcome.RESET, BACKOFF, f"panicked: the version is longer than {VERSION_BYTES} bytes")
        if command.offset == 0:
            self._erase(command.version)
            self._next_version = command.version
            # The offset that it expects stays where it was: that is the habit to beware of.
        if len(command.data) > self._flash_word and len(command.data) % self._flash_word:
            return Step(Outcome.FAILED, ERROR_PAUSE, f"a block that is no multiple of {self._flash_word} bytes")
        if command.offset != self._next_offset:
            return Step(Outcome.FAILED, ERROR_PAUSE, f"WRITE at {command.offset}, expected {self._next_offset}")
        # What lies between the last block and this one: that block's padding, or flash that is erased.
        gap = command.offset - len(self._flash)
        self._flash += (b"\x00" if self._flash else b"\xff") * gap + command.data
        self._flash_version = self._next_version = command.version
        self._next_offset += len(command.data) + -len(command.data) % self._flash_word
        return Step(Outcome.WROTE, BACKOFF)
