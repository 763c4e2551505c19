"""The devices, what they should run, and how that changes while they are at it."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any, Final

from fleet_fn.protocol.messages import Command, Swap, Sync, Write
from fleet_fn.sandbox.device_wire import CommandError, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import (
    CarefulDevice,
    CrateDevice,
    FirmwareManagerDevice,
    Outcome,
    SimulatedDevice,
    UpdaterDevice,
)
from tests.soak.deliveries import Agenda, Deliveries, Delivery
from tests.soak.faults import Faults
from tests.support.drogue import Drogue, SentCommand
from tests.support.firmware import publish, random_bytes
from tests.support.function import event
from tests.support.images import metadata
from tests.support.signer import Attacher, Signer
from tests.support.statuses import FORMS

#: By block size in bytes: how many of a hundred devices ask for it, and how many updates each of these goes through, so
#: that all have about as much to do.
MTUS: Final = {512: (1, 1), 1024: (4, 1), 2048: (15, 1), 4096: (50, 1), 16384: (15, 4), 65536: (15, 11)}
#: Seconds that a device's second takes here. All else that is waited for is shorter in the same way.
PACE: Final = 0.5
#: Seconds for which a device waits for a command.
PATIENCE: Final = PACE * 16
_VERSIONS: Final = 13


class Source(Enum):
    """How a fleet's firmware is named. The shares are those of a hundred devices."""

    TAG = 20
    #: A tag that is looked up for each status, and pushed anew when half of what it stood at has been written.
    MOVING_TAG = 5
    DIGEST = 25
    FILE = 50


class Interruption(Enum):
    """What the owner does to a device."""

    NONE = auto()
    #: Another target, midway.
    MOVED = auto()
    PAUSED_AT_FIRST = auto()
    PAUSED_MIDWAY = auto()


@dataclass(frozen=True)
class Target:
    """A firmware, and the section of a spec that names it."""

    version: bytes
    content: bytes
    checksum: bytes
    section: Mapping[str, Any]


class Firmware:
    """All that is published: layouts that a registry serves, and files; signed with one key."""

    def __init__(self, layouts: Path, files: Path, size: int, seed: int) -> None:
        self._layouts = layouts
        self.signer = Signer()
        self.targets: dict[Source, list[Target]] = {}
        for source in Source:
            name = source.name.lower().replace("_", "-")
            self.targets[source] = [
                self._publish(source, name, f"{name}-{number}", random_bytes(size, (seed, name, number)), files)
                for number in range(1, _VERSIONS + 1)
            ]
        self.by_version = {target.version: target for targets in self.targets.values() for target in targets}
        self.move_tag(0)

    def move_tag(self, number: int) -> None:
        """Pushes another of its firmwares to the moving tag."""
        target = self.targets[Source.MOVING_TAG][number]
        publish(self._layouts, "moving-tag", target.version.decode(), target.content, tag="stable")

    def _publish(self, source: Source, name: str, version: str, content: bytes, files: Path) -> Target:
        published = publish(self._layouts, name, version, content)
        Attacher(self._layouts / name).sign(self.signer, published.digest)
        if source is Source.FILE:
            (files / f"{version}.bin").write_bytes(content)
            (files / f"{version}.json").write_text(described := metadata(content, version))
            (files / f"{version}.sig").write_bytes(self.signer.sign(described.encode()))
            section: dict[str, Any] = {"file": {"name": version}}
        else:
            image = f"{name}@{published.digest}" if source is Source.DIGEST else f"{name}:{version}"
            section = {"container": {"image": image}}
        return Target(version.encode(), content, published.checksum, section)


class Fleet:
    """All devices, by name."""

    def __init__(self, firmware: Firmware, drogue: Drogue, agenda: Agenda, faults: Faults) -> None:
        self.firmware, self.drogue, self.agenda, self.faults = firmware, drogue, agenda, faults
        self.deliveries: Deliveries
        self.lines: dict[str, Line] = {}
        #: What happened to devices.
        self.counts: Counter[str] = Counter()
        #: What must not happen to any.
        self.wrong: list[str] = []
        self.lock = threading.Lock()
        self._left_of_moving = 0

    def populate(self, devices: int, size: int, seed: int) -> None:
        """Makes the devices, and says in the registry what they should run."""
        random = Random(seed)
        for source in Source:
            section = self.firmware.targets[source][0].section
            if source is Source.MOVING_TAG:
                section = {"container": {"image": "moving-tag:stable", "imagePullPolicy": "Always"}}
            self.drogue.put(source.name.lower(), spec={"firmware": {**section, "maxAttempts": 100}})
        for number in range(devices):
            source = random.choices(list(Source), [source.value for source in Source])[0]
            line = Line(self, f"device-{number}", source, random)
            self.lines[line.name] = line
            self._left_of_moving += size // 2 if source is Source.MOVING_TAG else 0

    @property
    def unfinished(self) -> "list[Line]":
        """Those that are not, or not for good, where they should be."""
        return [line for line in self.lines.values() if not line.is_done]

    def hear(self, command: SentCommand) -> None:
        """A command that the cloud has accepted, on its way to a device."""
        if not self.faults.strike("command", "lost on the way"):
            self.lines[command.device].hear(command)

    def changed(self, application: str, device: str) -> None:
        """An object has been written: the cloud tells of that, too."""
        attributes = {"type": "io.drogue.registry.v1", "subject": "devices"}
        self.deliveries.send(Delivery(0, lambda: (event(device, application, **attributes), b"")))

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def wrote(self, source: Source, size: int) -> None:
        """Moves the moving tag when half of its fleet's blocks have been written."""
        if source is not Source.MOVING_TAG:
            return
        with self.lock:
            before = self._left_of_moving
            self._left_of_moving -= size
            moves = before > 0 >= self._left_of_moving
        if moves:
            self.firmware.move_tag(1)
            target = self.firmware.targets[source][1]
            for line in self.lines.values():
                if line.source is source:
                    line.follow(target)


class Line:
    """A device, its way to the function and back, and what it should run."""

    def __init__(self, fleet: Fleet, name: str, source: Source, random: Random) -> None:
        self.name, self.source = name, source
        self._fleet = fleet
        self.application = source.name.lower()
        mtu = random.choices(list(MTUS), [share for share, _ in MTUS.values()])[0]
        if source is Source.MOVING_TAG:
            mtu = max(mtu, 2048)  # else it would be at its second firmware long after all others are done
        character = random.choices([CarefulDevice, FirmwareManagerDevice, CrateDevice], [2, 1, 1])[0]
        if character is CrateDevice:
            # It miscounts after a command that comes twice. Of more blocks than this, one nearly always does.
            mtu = max(mtu, 4096)
        self._mtu = mtu
        self._form = random.choice(FORMS)
        self.device: SimulatedDevice
        if character is CarefulDevice:
            self.device = CarefulDevice(
                b"0.1.0", mtu=mtu, correlate=self._form[0] != "documented", bootable=self._is_published
            )
        else:
            self.device = character(b"0.1.0", mtu=mtu, bootable=self._is_published)
        targets = fleet.firmware.targets[source]
        self.target, updates = targets[0], MTUS[mtu][1]
        self._later: Iterator[Target] = iter(targets[1:updates])
        self._interruption = Interruption.NONE
        if source is Source.MOVING_TAG:
            self._later = iter(())
        elif mtu >= 2048 and random.random() < 0.15:
            self._interruption = random.choice(list(Interruption)[1:])
            if self._interruption is Interruption.MOVED:
                self._later = iter(targets[1 : updates + 1])
        self._section: Mapping[str, Any] = {}
        self._lock = threading.RLock()
        #: Which status is the latest, which one's event is on its way first, and those behind it.
        self._sequence = 0
        self._under_way: list[int] = []
        self._waiting: list[Delivery] = []
        self._listens = False
        #: The next status waits for its turn.
        self._is_due = False
        #: A command came twice, or too late: what a device with the field's habits does then is nobody's fault.
        self._confused = False
        self._withheld = 0
        #: Its owner's tries after failures that were the wire's fault, and whether it is paused.
        self._retries = 0
        self._is_paused = False
        self.is_done = False
        self._desire(paused=self._interruption is Interruption.PAUSED_AT_FIRST)

    def __str__(self) -> str:
        with self._lock:
            return f"{self.name} of {self.application}, {self._mtu} bytes, {self._form}: {self.device.status()}"

    def follow(self, target: Target) -> None:
        """The application's target is another now."""
        with self._lock:
            self.target = target

    # --- What it says

    def report(self) -> None:
        """Sends a status, as soon as those before it have been dealt with."""
        with self._lock:
            if self.is_done or self._is_due:
                return
            # Where it has to wait for others, it is in the cloud already; until its own turn it is not even made.
            made = self._make_status() if self._waiting else None
            self._is_due = made is None
            # Those with the most blocks go first, so that the load is the same until the end.
            urgency = 1 if self._mtu < 4096 else 2
            self._waiting.append(Delivery(urgency, lambda: made or self._make_status(), self._answered))
            if len(self._waiting) == 1:
                self._fleet.deliveries.send(self._waiting[0])

    def _make_status(self) -> tuple[Mapping[str, str | None], bytes]:
        with self._lock:
            self._is_due, self._listens = False, True
            self._sequence += 1
            self._under_way.append(self._sequence)
            sequence = self._sequence
            self._fleet.agenda.after(PATIENCE, lambda: self._give_up(sequence))
            payload, content_type = encode_status(self.device.status(), *self._form)
            return event(self.name, self.application, datacontenttype=content_type), payload

    def _answered(self, outcome: str) -> None:
        """The event that came first has been dealt with."""
        with self._lock:
            del self._under_way[0], self._waiting[0]
            if self._waiting:
                self._fleet.deliveries.send(self._waiting[0], 0)
            if "device-offset" in outcome:
                self._fleet.count("power cycles, as the function asked for")
                self.device.power_cycle()
                self._rest(1.0)

    def _give_up(self, sequence: int) -> None:
        with self._lock:
            if self._listens and sequence == self._sequence:
                self._fleet.count("statuses without a command in time")
                self._rest(0.0)

    def _rest(self, seconds: float) -> None:
        """Reports again, after so many of its own seconds."""
        self._listens = False
        sequence = self._sequence
        self._fleet.agenda.after(PACE * seconds, lambda: self._report_after(sequence))

    def _report_after(self, sequence: int) -> None:
        with self._lock:
            if sequence == self._sequence and not self._listens:
                self.report()

    # --- What it is told

    def hear(self, sent: SentCommand) -> None:
        with self._lock:
            if not self._listens:
                self._fleet.count("commands that came when nobody listened")
                return
            if not self._under_way or self._under_way[0] != self._sequence:
                self._fleet.count("commands taken for the answer to a later status")
                self._confused = True
            try:
                command, correlation = decode_command(sent.payload, sent.content_type)
            except CommandError as error:
                self._fleet.wrong.append(f"{self.name}: {error}")
                return
            self._check(command)
            boots = len(self.device.boots)
            step = self.device.handle(command, correlation)
            self._fleet.count(f"device: {step.outcome.value}")
            for boot in self.device.boots[boots:]:
                self._check_boot(boot.version, boot.sha256)
            if step.outcome is Outcome.WROTE and isinstance(command, Write):
                self._wrote(command)
            if step.outcome is Outcome.IN_SYNC:
                self._in_sync()
            if step.outcome is Outcome.BRICKED:
                self._fleet.wrong.append(f"{self.name}: bricked")
                self.is_done, self._listens = True, False
            if not self.is_done:
                self._rest(step.pause)

    def _check(self, command: Command) -> None:
        if isinstance(command, Sync):
            if command.version != self.device.version and not self._confused:
                self._fleet.wrong.append(f"{self.name}: SYNC for {command.version!r}, it runs {self.device.version!r}")
            return
        if not isinstance(command, Write | Swap):
            return
        target = self._fleet.firmware.by_version.get(command.version)
        if target is None:
            self._fleet.wrong.append(f"{self.name}: told of {command.version!r}, which nobody published")
        elif isinstance(command, Swap):
            if command.checksum != target.checksum:
                self._fleet.wrong.append(f"{self.name}: another checksum for {command.version!r}")
        elif command.data != target.content[command.offset : command.offset + len(command.data)] or not command.data:
            self._fleet.wrong.append(f"{self.name}: wrong bytes at {command.offset} of {command.version!r}")

    def _check_boot(self, version: bytes, sha256: str) -> None:
        target = self._fleet.firmware.by_version.get(version)
        if target is not None and target.checksum.hex() == sha256:
            self._fleet.count("boots of the published bytes")
            self._confused = False
        elif self._confused and isinstance(self.device, UpdaterDevice):
            self._fleet.count("boots of a mixture, rolled back, after a command that came twice or late")
            self._confused = False
            self._retries += 1  # else it would wait twice as long after each
            self._desire(paused=self._is_paused)
        else:
            self._fleet.wrong.append(f"{self.name}: booted wrong bytes as {version!r}")

    def _is_published(self, image: bytes, version: bytes) -> bool:
        target = self._fleet.firmware.by_version.get(version)
        return target is not None and target.content == image

    # --- What its owner does

    def _wrote(self, command: Write) -> None:
        self._fleet.wrote(self.source, len(command.data))
        if command.offset + len(command.data) < len(self.target.content) // 2:
            return
        if self._interruption is Interruption.MOVED:
            self._interruption = Interruption.NONE
            self._move(next(self._later))
        elif self._interruption is Interruption.PAUSED_MIDWAY:
            self._desire(paused=True)

    def _in_sync(self) -> None:
        if self.device.version == self.target.version and self.device.marked_good:
            if self.device.image != self.target.content:
                self._fleet.wrong.append(f"{self.name}: in sync with other bytes")
            self._fleet.count("updates done")
            target = next(self._later, None)
            if target is not None:
                self._move(target)
            elif not self._awaits_move():
                self.is_done, self._listens = True, False
        elif self._interruption in (Interruption.PAUSED_AT_FIRST, Interruption.PAUSED_MIDWAY):
            self._withheld += 1
            if self._withheld == 2:
                self._interruption = Interruption.NONE
                self._fleet.count("devices paused and released")
                self._desire(paused=False)

    def _awaits_move(self) -> bool:
        return self.source is Source.MOVING_TAG and self.target is self._fleet.firmware.targets[self.source][0]

    def _move(self, target: Target) -> None:
        self.target = target
        self._section = target.section
        self._desire(paused=False)

    def _desire(self, *, paused: bool) -> None:
        self._is_paused = paused
        policy: dict[str, Any] = {"rollout": {"paused": True}} if paused else {}
        if self._retries:
            policy["retry"] = str(self._retries)
        self._fleet.drogue.put(self.application, self.name, spec={"firmware": {**self._section, **policy}})
        if self._sequence:
            self._fleet.changed(self.application, self.name)
