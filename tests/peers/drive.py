"""Carries courses out: the Rust device on one side, the cloud on the other, moment by moment."""

import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.peers.cloud import Cloud
from tests.peers.courses import FACTORY, Course, Cut, Fuse, Happening, Lose, Move, Republish, Wipe
from tests.peers.firmware import Firmware, Shelf

_DEVICE: Final = "device"
#: Seconds that the endpoint holds an answer back.
_WAIT: Final = 6
#: SYNCs in a row, after which a device that has not arrived is left where it is.
_SETTLED: Final = 3
#: Equal exchanges in a row, after which somebody looks why.
_STANDING: Final = 4
#: And after which it counts as stuck; a process may go by a target of ten seconds ago, at a SYNC each second.
_HOPELESS: Final = 16
#: Seconds for which a manifest counts as just read (protocol, "What an answer may rest on"), and a little more.
_KNOWN: Final = 1.1
#: The reason for which only a loss of power helps, and how often one is granted.
_NEEDS_POWER: Final = "device-offset"
_HELP: Final = 3


@dataclass
class Result:
    """How a course ended."""

    arrived: bool = False
    bricked: bool = False
    #: It started bytes that nobody has published.
    wrong: bool = False
    exchanges: int = 0
    #: Times that its power was cut because nothing else helps.
    helped: int = 0
    #: What the device said first at each moment.
    moments: list[str] = field(default_factory=list)
    transcript: list[str] = field(default_factory=list)


def drive(course: Course, name: str, cloud: Cloud, shelf: Shelf, binary: Path) -> Result:
    """Send a device down its course, as the only one of the application `name`."""
    run = Run(course, name, cloud, shelf)
    with tempfile.NamedTemporaryFile(prefix="peer-") as factory:
        factory.write(FACTORY.content)
        factory.flush()
        run.start()
        kind = course.kind
        command = (
            str(binary),
            *(f"board={kind.board}", f"word={kind.word}", f"mtu={kind.mtu}"),
            f"keys={'packed' if kind.packed else 'named'}",
            *(f"address={cloud.address}", f"path=/v1/dfu?ct={_WAIT}", f"firmware={factory.name}"),
            f"authorization={cloud.authorization(name, _DEVICE)}",
        )
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            try:
                for line in process.stdout:
                    orders = run.take(line.strip())
                    if run.is_over:
                        break
                    process.stdin.writelines(f"{order}\n" for order in orders)
                    process.stdin.flush()
            finally:
                process.kill()
            if not run.is_over:
                raise RuntimeError(f"{course}: the device ended: {process.stderr.read()}")
    return run.result


class Run:
    """A course under way."""

    def __init__(self, course: Course, name: str, cloud: Cloud, shelf: Shelf) -> None:
        self._course = course
        self._name = name
        self._cloud = cloud
        self._shelf = shelf
        self._due: dict[int, list[Happening]] = {}
        for moment, happening in course.happenings:
            self._due.setdefault(moment, []).append(happening)
        self._target = course.target
        self._reference = ""
        self._runs: Firmware = FACTORY
        self._syncs = 0
        self._standing = 0
        self._said = ""
        self._remedied = False
        self.result = Result()
        self.is_over = False

    def start(self) -> None:
        """Publish what the course needs, and create its device."""
        own = {what.build for _, what in self._course.happenings if isinstance(what, Republish)}
        for firmware in {FACTORY, *self._course.targets} - own:
            self._shelf.publish(firmware)
        if own:  # nobody else's tag moves
            self._reference = f"{self._name}:{self._target.version}"
            self._shelf.put(self._reference, self._target)
        else:
            self._reference = self._shelf.publish(self._target)
        self._cloud.create(self._name, _DEVICE, {"container": {"image": self._reference}})

    def take(self, line: str) -> list[str]:
        """What to tell the device that said `line`."""
        result = self.result
        if line == "dark":
            result.transcript.append("     dark")
            return []
        moment = len(result.moments)
        word, _, rest = line.partition(" ")
        result.moments.append(word)
        happenings = self._due.pop(moment, [])
        told = ", ".join(self._happen(happening) for happening in happenings)
        result.transcript.append(f"{moment:4} {line}{f'   <- {told}' if told else ''}")
        if word == "boot":
            self._started(rest)
        elif word == "answer":
            self._answered(rest)
        if not self.is_over:
            self._look(word)
        return self._orders(word, happenings)

    def _started(self, rest: str) -> None:
        known = [firmware for firmware in (FACTORY, *self._course.targets) if firmware.started == rest]
        self._said, self._standing = "", 0
        if rest == "nothing":
            self.result.bricked = self.is_over = True
        elif not known:
            self.result.wrong = self.is_over = True
        else:
            self._runs = known[0]

    def _answered(self, rest: str) -> None:
        self.result.exchanges += 1
        self._syncs = self._syncs + 1 if " SYNC " in f" {rest} " else 0
        status = next(line for line in reversed(self.result.transcript) if " status " in line).partition("status ")[2]
        said = f"{status} {rest}"
        self._standing = self._standing + 1 if said == self._said else 0
        self._said = said

    def _look(self, word: str) -> None:
        """See whether the course is over."""
        course, result = self._course, self.result
        if word == "synced" and not self._due:
            if course.accepts(self._runs) and (course.arrives or self._syncs >= _SETTLED):
                result.arrived = course.arrives
                self.is_over = True
            elif course.remedy and self._syncs >= _SETTLED and not self._remedied:
                self._remedied = True
                result.transcript.append(f"     <- {self._happen(Move(course.remedy))}")
        if result.exchanges >= course.most or self._standing >= _HOPELESS:
            self.is_over = True

    def _orders(self, word: str, happenings: list[Happening]) -> list[str]:
        orders = [f"fuse {what.operations}" for what in happenings if isinstance(what, Fuse)]
        if any(isinstance(what, Cut) for what in happenings):
            return [*orders, "cut"]
        if word in ("status", "answer") and any(isinstance(what, Lose) for what in happenings):
            return [*orders, "lose"]
        if word == "status" and self._needs_power():
            self.result.helped += 1
            self.result.transcript.append(f"     <- {_NEEDS_POWER}: power cut")
            return [*orders, "cut"]
        return [*orders, "go"]

    def _needs_power(self) -> bool:
        """Whether the device stands still for a reason against which only that helps."""
        if not self._standing or self._standing % _STANDING or self.result.helped >= _HELP:
            return False
        return self._cloud.reason(self._name, _DEVICE) == _NEEDS_POWER

    def _happen(self, happening: Happening) -> str:
        """Carry out what happens in the cloud; tell it."""
        if isinstance(happening, Move):
            self._target = happening.to
            self._reference = self._shelf.publish(happening.to)
            self._cloud.desire(self._name, _DEVICE, {"container": {"image": self._reference}})
            return f"target {happening.to.version}"
        if isinstance(happening, Republish):
            self._target = happening.build
            self._shelf.put(self._reference, happening.build)
            time.sleep(_KNOWN)
            return f"other bytes, {happening.build.size}"
        if isinstance(happening, Wipe):
            self._cloud.wipe(self._name, _DEVICE)
        return f"fuse {happening.operations}" if isinstance(happening, Fuse) else type(happening).__name__.lower()
