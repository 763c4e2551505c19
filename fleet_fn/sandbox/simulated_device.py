"""Three simulated devices as state machines, above one bootloader.

`CarefulDevice` trusts no command. `FirmwareManagerDevice` and `CrateDevice` behave like devices in the field, by the
sources of Drogue Device and of the crates embedded-update and embassy-boot.

No I/O and no clock: a device returns its status, takes a command, and returns the step that it made.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from fleet_fn.protocol.messages import U32_MAX, Command, Progress, Status, Swap, Sync, Wait, Write

#: Pause after an error.
ERROR_PAUSE_SECONDS = 10.0
#: Pause if the command has no `poll`.
POLL_PAUSE_SECONDS = 10.0
#: Pause of embedded-update's loop between two statuses, and time to boot.
BACKOFF_SECONDS = 1.0

#: Size of the buffer in which FirmwareManager and the crate's own devices keep a version.
VERSION_BYTES = 16
#: The bootloader swaps page by page, and keeps the old image one page further on.
PAGE_BYTES = 4096

#: Reason of a device that reports no more.
BRICKED = "bricked: an update began before the firmware that ran was marked good, and the revert found no old image"

#: Tells whether an image (its bytes, its version) boots.
Bootable = Callable[[bytes, bytes], bool]


class BrickedError(Exception):
    """Nothing boots, so the device reports nothing."""


class Outcome(Enum):
    """The effect of a command on a device."""

    WROTE = "wrote a block"
    IN_SYNC = "in sync"
    WAITING = "waiting"
    IGNORED = "ignored"
    FAILED = "failed"
    RESET = "reset"
    BOOTED = "booted"
    ROLLED_BACK = "rolled back"
    BRICKED = "bricked"


@dataclass(frozen=True, slots=True)
class Step:
    """The effect of a command on a device, and the pause until its next status."""

    outcome: Outcome
    #: Seconds until the next status.
    pause: float = 0.0
    #: Why a command was ignored or failed, or why an image was rolled back.
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Boot:
    """One swap: the image that the bootloader started, even if it did not boot."""

    #: The image's own version.
    version: bytes
    #: SHA-256 of the image, in hex.
    sha256: str
    #: Bytes.
    size: int
    #: Checksum that the SWAP announced, in hex.
    announced: str


@dataclass(frozen=True, slots=True)
class _Image:
    version: bytes
    content: bytes


def _comes_up(_image: bytes, _version: bytes) -> bool:
    return True


class SimulatedDevice(ABC):
    """The two partitions of a device, and embassy-boot, which exchanges them.

    SWAP and a reset exchange the active partition and the update partition. SYNC marks the new image good. Until then,
    every further reset exchanges them back: the old image is the fallback. A WRITE at 0 erases the update partition,
    and so the fallback if there is one. The next reset or SWAP then reverts into it, and nothing boots.

    Args:
        version: version of the delivered image.
        mtu: the largest block that the device asks for, in bytes.
        bootable: is called for every image but the delivered one; an empty image never boots.

    """

    def __init__(self, version: bytes, *, mtu: int | None = 512, bootable: Bootable = _comes_up) -> None:
        #: The largest block that the device asks for, in bytes; None leaves it to the server.
        self.mtu = mtu
        self._bootable = bootable
        self._running = _Image(version, b"")
        # The update partition, from its first byte to the last one written; the rest is erased.
        self._flash = bytearray()
        self._flash_version = b""
        # The update partition holds an old image, which begins one page further on than a new one.
        self._flash_is_old = False
        #: The bootloader keeps the running image; if False, the next reset reverts.
        self.marked_good = True
        #: An update began before the running image was marked good: the next reset bricks the device.
        self.fallback_erased = False
        #: Nothing boots; only a programmer cures that.
        self.is_bricked = False
        self.boots: list[Boot] = []
        self.rollbacks = 0
        #: Commands against the protocol that the device got.
        self.violations: list[str] = []

    @property
    def version(self) -> bytes:
        """Version that runs; empty if the device is bricked."""
        return self._running.version

    @property
    def image(self) -> bytes:
        """Bytes of the running image; none for the delivered image."""
        return self._running.content

    @property
    def flash(self) -> bytes:
        """Bytes of the update partition up to the last byte written."""
        return bytes(self._flash)

    @property
    @abstractmethod
    def progress(self) -> Progress | None:
        """Progress of the update, as the next status reports it."""

    def status(self) -> Status:
        """Return the next status; each call is a new one.

        Raises:
            BrickedError: nothing boots.

        """
        if self.is_bricked:
            raise BrickedError(BRICKED)
        return self._next_status()

    def handle(self, command: Command, correlation_id: int | None = None) -> Step:
        """Take the answer to the last status."""
        return (
            Step(Outcome.BRICKED, ERROR_PAUSE_SECONDS, BRICKED)
            if self.is_bricked
            else self._obey(command, correlation_id)
        )

    def power_cycle(self) -> None:
        """Lose power and get it back.

        The bootloader reverts an image that was not marked good.
        """
        if not self.marked_good and not self.is_bricked:
            self._revert()

    @abstractmethod
    def _next_status(self) -> Status: ...

    @abstractmethod
    def _obey(self, command: Command, correlation_id: int | None) -> Step: ...

    def _erase(self, version: bytes) -> None:
        self._flash.clear()
        self._flash_version = version
        self._flash_is_old = False
        self.fallback_erased = not self.marked_good

    def _swap(self, announced: bytes) -> Step:
        if not self.marked_good:
            # The exchange is done, and the mark "swap" still set: the bootloader takes this reset for a failure.
            return self._revert()
        self._exchange_partitions()
        image = self._running
        sha256 = hashlib.sha256(image.content).hexdigest()
        self.boots.append(Boot(image.version, sha256, len(image.content), announced.hex()))
        self.marked_good = False
        if not (image.content and self._bootable(image.content, image.version)):
            return self._revert()
        return Step(Outcome.BOOTED, BACKOFF_SECONDS)

    def _revert(self) -> Step:
        if self.fallback_erased:
            # The revert copies from the second page on, so even a whole new image there loses its first page.
            self._running = _Image(b"", b"")
            self.is_bricked = True
            return Step(Outcome.BRICKED, ERROR_PAUSE_SECONDS, BRICKED)
        failed = self._running.version
        self._running, old = _Image(self._flash_version, bytes(self._flash)), self._running
        self._flash, self._flash_version, self._flash_is_old = bytearray(old.content), old.version, False
        self.marked_good = True
        self.rollbacks += 1
        return Step(Outcome.ROLLED_BACK, BACKOFF_SECONDS, f"{failed!r} was not marked good")

    def _exchange_partitions(self) -> None:
        content = bytes(self._flash)
        if self._flash_is_old:
            # Nothing was written since the last swap, so the first page is still that of the running image.
            content = self._running.content[:PAGE_BYTES].ljust(PAGE_BYTES, b"\xff") + content
        image = _Image(self._flash_version, content)
        self._flash, self._flash_version = bytearray(self._running.content), self._running.version
        self._flash_is_old = True
        self._running = image

    def _sync(self, command: Sync) -> Step:
        self.marked_good, self.fallback_erased = True, False
        return Step(Outcome.IN_SYNC, command.poll or POLL_PAUSE_SECONDS)

    def _check_sync(self, command: Sync) -> bool:
        """Return whether a SYNC is for the running version.

        If it is not, record the violation of the protocol.
        """
        if command.version == self.version:
            return True
        self.violations.append(f"SYNC for {command.version!r} to a device that runs {self.version!r}")
        return False


class CarefulDevice(SimulatedDevice):
    """A device that writes in order, and verifies before it swaps.

    It keeps its progress when it loses power.

    An answer proves that the running image can reach the server. So the device marks that image good before it begins
    another update, and never erases a fallback that it may need.

    Args:
        correlate: send a correlation id with each status, and ignore answers with another.

    """

    def __init__(
        self, version: bytes, *, mtu: int | None = 512, bootable: Bootable = _comes_up, correlate: bool = True
    ) -> None:
        super().__init__(version, mtu=mtu, bootable=bootable)
        self._correlate = correlate
        # Both are in flash, so they survive a power cycle.
        self._correlation_id: int | None = None
        self._writing: bytes | None = None

    @property
    def progress(self) -> Progress | None:
        """Progress of the update."""
        return None if self._writing is None else Progress(self._writing, len(self._flash))

    def _next_status(self) -> Status:
        """Return the next status, with a correlation id that no earlier one had."""
        if self._correlate:
            self._correlation_id = 0 if self._correlation_id is None else (self._correlation_id + 1) & U32_MAX
        return Status(self.version, self.mtu, self._correlation_id, self.progress)

    def _obey(self, command: Command, correlation_id: int | None) -> Step:
        """Take the answer to the last status, and ignore one to an earlier status."""
        if self._correlate and correlation_id != self._correlation_id:
            return _ignore(f"correlation id {correlation_id}, not {self._correlation_id}")
        match command:
            case Wait(poll):
                return Step(Outcome.WAITING, poll or POLL_PAUSE_SECONDS)
            case Sync():
                if not self._check_sync(command):
                    return _ignore("SYNC for another version")
                return self._sync(command)
            case Write():
                return self._write(command)
            case Swap():
                return self._verify_and_swap(command)

    def _write(self, command: Write) -> Step:
        if command.version == self.version:
            return _ignore("WRITE of the running version")
        if command.offset == 0:
            self.marked_good = True
            self._erase(command.version)
            self._writing = command.version
        if self.progress != Progress(command.version, command.offset):
            return _ignore(f"WRITE at {command.offset}, which is not the next offset")
        self._flash += command.data
        return Step(Outcome.WROTE)

    def _verify_and_swap(self, command: Swap) -> Step:
        if command.version != self._writing:
            return _ignore("SWAP to a version that was not written")
        self._writing = None
        if hashlib.sha256(self._flash).digest() != command.checksum:
            return Step(Outcome.FAILED, BACKOFF_SECONDS, "the written bytes have another checksum")
        return self._swap(command.checksum)


def _ignore(reason: str) -> Step:
    return Step(Outcome.IGNORED, BACKOFF_SECONDS, reason)


class _DeviceError(Exception):
    """The device refuses a command.

    The updater's loop ends, and starts again after a pause.
    """


class _PanicError(Exception):
    """The device resets."""


class UpdaterDevice(SimulatedDevice):
    """embedded-update's `FirmwareUpdater`: a loop over a device, with its own counter.

    The loop begins with the device's own status. From then on it adds the length of each block to its counter, and
    WRITE at 0 does not reset that. WAIT and lost answers stay in the loop; SYNC, SWAP and the device's errors end it.
    It looks at neither correlation ids nor checksums.

    Args:
        refuses_early_writes: a bootloader (embassy-boot 0.2 and later) that refuses to erase the fallback.

    """

    def __init__(
        self,
        version: bytes,
        *,
        mtu: int | None = 512,
        bootable: Bootable = _comes_up,
        refuses_early_writes: bool = False,
    ) -> None:
        super().__init__(version, mtu=mtu, bootable=bootable)
        self._refuses_early_writes = refuses_early_writes
        self._in_loop = False
        self._counted: Progress | None = None

    @property
    def progress(self) -> Progress | None:
        """Progress by the loop's counter, which may differ from the bytes in flash."""
        return self._counted if self._in_loop else self._own_progress()

    def power_cycle(self) -> None:
        """Lose power and get it back, with empty RAM."""
        super().power_cycle()
        self._reset()

    @abstractmethod
    def _own_progress(self) -> Progress | None:
        """Return the progress that the device below the loop reports."""

    @abstractmethod
    def _start(self, version: bytes) -> None:
        """Begin an update."""

    @abstractmethod
    def _store(self, offset: int, data: bytes) -> None:
        """Write a block."""

    def _next_status(self) -> Status:
        self._counted, self._in_loop = self.progress, True
        return Status(self.version, self.mtu, None, self._counted)

    def _obey(self, command: Command, correlation_id: int | None) -> Step:  # noqa: ARG002 - it does not look
        """Take any answer as the answer to the last status."""
        self._counted, self._in_loop = self.progress, True
        match command:
            case Wait(poll):
                return Step(Outcome.WAITING, poll or BACKOFF_SECONDS)
            case Sync(_, poll):
                self._in_loop = False
                in_sync = self._check_sync(command)
                step = self._sync(command)  # for any version
                return step if in_sync else Step(Outcome.WAITING, step.pause, "SYNC for another version")
            case Write():
                return self._write(command)
            case Swap():
                step = self._swap(command.checksum)  # for any version and checksum
                self._reset()
                return step

    def _write(self, command: Write) -> Step:
        try:
            if command.offset == 0:
                self._start(command.version)
            self._store(command.offset, command.data)
            if len(command.version) > VERSION_BYTES:
                raise _DeviceError(f"the version is longer than {VERSION_BYTES} bytes")
        except _DeviceError as error:
            self._in_loop = False
            return Step(Outcome.FAILED, ERROR_PAUSE_SECONDS, str(error))
        except _PanicError as error:
            self.power_cycle()
            if self.is_bricked:
                return Step(Outcome.BRICKED, ERROR_PAUSE_SECONDS, BRICKED)
            return Step(Outcome.RESET, BACKOFF_SECONDS, f"panicked: {error}")
        self._flash_version = command.version
        offset = self._counted.offset if self._counted else 0
        self._counted = Progress(command.version, (offset + len(command.data)) & U32_MAX)
        return Step(Outcome.WROTE, BACKOFF_SECONDS)

    def _reset(self) -> None:
        """Empty the RAM, as every reset does."""
        self._in_loop = False

    def _prepare_update(self, version: bytes) -> None:
        if self._refuses_early_writes and not self.marked_good:
            raise _DeviceError("the bootloader takes no update before the running firmware is marked good")
        self._erase(version)


class FirmwareManagerDevice(UpdaterDevice):
    """Drogue Device's `FirmwareManager` below the updater, like most real devices.

    It keeps its progress in RAM, verifies nothing, and reports none of its errors. A WRITE at 0 does not reset the
    offset that it expects. So after a restart midway it refuses every block until its power is cut.

    Args:
        flash_word: bytes that its flash writes at once.
        refuses_early_writes: see `UpdaterDevice`.

    """

    def __init__(
        self,
        version: bytes,
        *,
        mtu: int | None = 512,
        bootable: Bootable = _comes_up,
        refuses_early_writes: bool = False,
        flash_word: int = 4,
    ) -> None:
        super().__init__(version, mtu=mtu, bootable=bootable, refuses_early_writes=refuses_early_writes)
        self._flash_word = flash_word
        self._next_version: bytes | None = None
        self._next_offset = 0

    def _own_progress(self) -> Progress | None:
        return None if self._next_version is None else Progress(self._next_version, self._next_offset)

    def _reset(self) -> None:
        super()._reset()
        self._next_version, self._next_offset = None, 0

    def _start(self, version: bytes) -> None:
        if len(version) > VERSION_BYTES:
            raise _PanicError(f"the version is longer than {VERSION_BYTES} bytes")
        self._next_version = version  # even if the bootloader refuses
        self._prepare_update(version)

    def _store(self, offset: int, data: bytes) -> None:
        if len(data) > self._flash_word and len(data) % self._flash_word:
            raise _DeviceError(f"the block is not a multiple of {self._flash_word} bytes")
        if offset != self._next_offset:
            raise _DeviceError(f"WRITE at {offset}, expected {self._next_offset}")
        # Before this block lies the padding of the last one, or erased flash.
        gap = offset - len(self._flash)
        self._flash += (b"\x00" if self._flash else b"\xff") * gap + data
        self._next_offset += len(data) + -len(data) % self._flash_word


class CrateDevice(UpdaterDevice):
    """A device without progress below the updater, like the crate's own simulator.

    It writes at any offset. After a restart midway its loop reports `(new version, midway + sent)`, until SYNC ends the
    loop or power is cut.
    """

    def _own_progress(self) -> Progress | None:
        return None

    def _start(self, version: bytes) -> None:
        self._prepare_update(version)

    def _store(self, offset: int, data: bytes) -> None:
        self._flash += b"\xff" * (offset - len(self._flash))
        self._flash[offset : offset + len(data)] = data
