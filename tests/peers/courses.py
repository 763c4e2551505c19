"""What happens to a device, and when. Pure: a course is a plan, and who carries it out is `drive`."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.peers.firmware import Firmware

OLD: Final = "0.1.0"
#: What each device left the factory with.
FACTORY: Final = Firmware(OLD, 2048 + 64)


@dataclass(frozen=True)
class Kind:
    """A kind of device: its board, and what it asks for."""

    board: str
    word: int = 4
    mtu: int = 512
    packed: bool = True

    @property
    def is_manager(self) -> bool:
        """Whether it has the habits of Drogue Device's FirmwareManager."""
        return self.board.startswith("manager")

    @property
    def reverts(self) -> bool:
        """Whether a bootloader goes back to the old firmware when the new one does not mark itself good."""
        return self.board != "plain"

    def takes(self, size: int) -> bool:
        """Whether it accepts each block of a firmware of `size` bytes."""
        if not self.is_manager:
            return True
        last = size % self.mtu
        blocks = [last] if size < self.mtu else [last, self.mtu]
        return all(block <= self.word or block % self.word == 0 for block in blocks)


@dataclass(frozen=True)
class Move:
    """The target moves."""

    to: Firmware


@dataclass(frozen=True)
class Republish:
    """The target's tag gets other bytes under the same version."""

    build: Firmware


@dataclass(frozen=True)
class Cut:
    """The power goes."""


@dataclass(frozen=True)
class Lose:
    """What is on its way does not arrive."""


@dataclass(frozen=True)
class Fuse:
    """The power goes in the middle of a write or an erase, so many of them later."""

    operations: int


@dataclass(frozen=True)
class Wipe:
    """The device's object is replaced by one without status, as when a manifest is applied."""


Happening = Move | Republish | Cut | Lose | Fuse | Wipe


@dataclass(frozen=True)
class Course:
    """What happens to one device on its way from FACTORY to a target."""

    kind: Kind
    target: Firmware
    #: By the number of the moment.
    happenings: tuple[tuple[int, Happening], ...] = ()
    #: The target once the device was left where it is, three SYNCs in a row.
    remedy: Firmware | None = None
    #: False: it cannot take this firmware, and must stay what it was.
    arrives: bool = True

    @property
    def targets(self) -> list[Firmware]:
        """All of its targets, in turn."""
        later = [what.to for _, what in self.happenings if isinstance(what, Move)]
        builds = [what.build for _, what in self.happenings if isinstance(what, Republish)]
        return [self.target, *later, *builds, *([self.remedy] if self.remedy else [])]

    @property
    def last(self) -> Firmware:
        """What it has to run in the end."""
        if self.remedy:
            return self.remedy
        target = self.target
        for _, what in sorted(self.happenings, key=lambda happening: happening[0]):
            if isinstance(what, Move):
                target = what.to
            elif isinstance(what, Republish):
                target = what.build
        return target if self.arrives else FACTORY

    def accepts(self, firmware: Firmware) -> bool:
        """Whether it may end with `firmware`: either of two builds of one version, since it reports only that."""
        return firmware.version == self.last.version

    @property
    def least(self) -> int:
        """Exchanges that the last target takes by itself: its blocks, SWAP and SYNC."""
        if self.last == FACTORY:
            return 1
        return self.blocks(self.last) + 2

    @property
    def most(self) -> int:
        """Exchanges after which it does not count as on its way any more."""
        return 40 + 4 * sum(self.blocks(target) + 2 for target in self.targets)

    def blocks(self, firmware: Firmware) -> int:
        """How many blocks a firmware takes."""
        return -(-firmware.size // self.kind.mtu)

    def __str__(self) -> str:
        kind = self.kind
        what = ", ".join(f"{moment}: {_shown(happening)}" for moment, happening in self.happenings)
        keys = "packed" if kind.packed else "named"
        device = f"{kind.board}, word {kind.word}, mtu {kind.mtu}, {keys}"
        remedy = f"; then {_shown(Move(self.remedy))}" if self.remedy else ""
        return f"{device}: {_shown(Move(self.target))}{f'; {what}' if what else ''}{remedy}"


def _shown(happening: Happening) -> str:
    if isinstance(happening, Move | Republish):
        firmware = happening.to if isinstance(happening, Move) else happening.build
        build = " (crashes)" if firmware.crashes else f" build {firmware.build}" if firmware.build else ""
        return f"{type(happening).__name__.lower()} {firmware.version}{build}, {firmware.size} bytes"
    return f"fuse {happening.operations}" if isinstance(happening, Fuse) else type(happening).__name__.lower()


@dataclass(frozen=True)
class Plain:
    """An undisturbed course, and what its moments were: the first words of what the device said."""

    moments: Sequence[str] = field(default_factory=tuple)


#: The courses of a scenario for a kind of device, where something happens at moments of an undisturbed update.
Scenario = Callable[[Kind, Plain], Iterator[Course]]

BOARDS: Final = ("plain", "careful-0.1", "careful-0.7", "manager-0.1", "manager-0.7")
#: Block sizes, some of which only devices ask for that do not care about words.
_MTUS: Final = (64, 100, 256, 333, 500, 512, 1024, 2016)


def new(kind: Kind) -> Firmware:
    """The usual target: four blocks and a short one."""
    return Firmware("0.1.1", 4 * kind.mtu + 32)


def newer(kind: Kind) -> Firmware:
    """Where it moves: three blocks and a short one."""
    return Firmware("0.1.2", 3 * kind.mtu + 96)


def plain(kind: Kind, _: Plain) -> Iterator[Course]:
    """Sizes around multiples of blocks, words and pages."""
    for at, (one, size) in enumerate(_sizes(kind)):
        if one.takes(size):
            yield Course(_keyed(one, at), Firmware("0.1.1", size))


def odd_end(kind: Kind, _: Plain) -> Iterator[Course]:
    """Last blocks that a device refuses for ever, since they are no whole words."""
    for at, (one, size) in enumerate(_sizes(kind)):
        if not one.takes(size):
            yield Course(_keyed(one, at), Firmware("0.1.1", size), arrives=False)


def _sizes(kind: Kind) -> Iterator[tuple[Kind, int]]:
    for word in (4, 8) if kind.reverts else (4,):
        for mtu in _MTUS:
            one = Kind(kind.board, word, mtu)
            if kind.is_manager and mtu % word:
                continue  # it would refuse every block
            for size in (mtu - 4, mtu, mtu + 1, 2 * mtu + word, 3 * mtu + 13, 5 * mtu - 32, 8 * mtu):
                if size >= FACTORY.size // 32:
                    yield one, size


def _keyed(kind: Kind, at: int) -> Kind:
    """A kind, every third of which speaks with names for keys."""
    return Kind(kind.board, kind.word, kind.mtu, packed=at % 3 != 0)


def moved(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves to a newer version, at every moment."""
    for moment in range(len(undisturbed.moments)):
        yield Course(_keyed(kind, moment), new(kind), ((moment, Move(newer(kind))),))


def moved_back(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves back to what the device came with, at every moment."""
    for moment in range(len(undisturbed.moments)):
        yield Course(_keyed(kind, moment), new(kind), ((moment, Move(FACTORY)),))


def moved_twice(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves, and soon again."""
    newest = Firmware("0.1.3", 2 * kind.mtu + 64)
    for moment in range(len(undisturbed.moments)):
        happenings = ((moment, Move(newer(kind))), (moment + 1 + moment % 5, Move(newest)))
        yield Course(_keyed(kind, moment), new(kind), happenings)


def republished(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The tag gets other bytes under the same version, at every moment until the device is told to swap."""
    target = new(kind)
    for moment in range(undisturbed.moments.index("updated") - 1):
        one = Firmware(target.version, target.size, build=1000 + moment)
        other = Firmware(target.version, target.size + 64 * (moment % 2), build=5000 + moment)
        yield Course(_keyed(kind, moment), one, ((moment, Republish(other)),))


def power(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The power goes, at every moment."""
    for moment in range(len(undisturbed.moments)):
        yield Course(_keyed(kind, moment), new(kind), ((moment, Cut()),))


def flash(kind: Kind, _: Plain) -> Iterator[Course]:
    """The power goes in the middle of a write or an erase: of the device's, and of its bootloader's."""
    if kind.reverts:
        # An update takes about 400: some for its blocks, six for each page that is swapped, some for marks.
        for at, operations in enumerate((*range(14), *range(14, 388, 34), *range(388, 400))):
            yield Course(_keyed(kind, at), new(kind), ((0, Fuse(operations)),))


def moved_and_power(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves, and the power goes some moments later."""
    for moment in range(len(undisturbed.moments)):
        happenings = ((moment, Move(newer(kind))), (moment + 1 + moment % 4, Cut()))
        yield Course(_keyed(kind, moment), new(kind), happenings)


def lost(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """A status or an answer does not arrive, each of them once."""
    for moment, said in enumerate(undisturbed.moments):
        if said in ("status", "answer"):
            yield Course(_keyed(kind, moment), new(kind), ((moment, Lose()),))


def moved_and_lost(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves, and the next answer does not arrive."""
    for moment, said in enumerate(undisturbed.moments):
        if said == "status":
            yield Course(_keyed(kind, moment), new(kind), ((moment, Move(newer(kind))), (moment + 1, Lose())))


def wiped(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """What the function has noted of the device is gone, at every moment."""
    for moment in range(len(undisturbed.moments)):
        yield Course(_keyed(kind, moment), new(kind), ((moment, Wipe()),))


def moved_and_wiped(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The target moves, and what the function has noted is gone some moments later."""
    moments = undisturbed.moments
    swap, sync = moments.index("updated") - 1, moments.index("synced") - 1
    for moment in range(len(moments)):
        wipe = moment + 1 + moment % 4
        if kind.board.endswith("-0.1") and swap <= wipe < sync:
            continue  # nothing tells it from a new device any more, which needs no SYNC before it starts
        yield Course(_keyed(kind, moment), new(kind), ((moment, Move(newer(kind))), (wipe, Wipe())))


def rolled_back(kind: Kind, undisturbed: Plain) -> Iterator[Course]:
    """The new firmware crashes; a remedy comes once it was given up, or at some moment before."""
    if not kind.reverts:
        return
    broken = Firmware("0.1.1", new(kind).size, crashes=True)
    yield Course(kind, broken, remedy=newer(kind))
    for moment in range(2 * len(undisturbed.moments)):
        yield Course(_keyed(kind, moment), broken, ((moment, Move(newer(kind))),))


def by_chance(kind: Kind, undisturbed: Plain, seed: int = 1) -> Iterator[Course]:
    """Several of all that, at moments that chance draws."""
    targets = [Firmware(f"0.1.{patch}", kind.mtu * blocks + 32) for patch, blocks in ((1, 4), (2, 3), (3, 2), (4, 5))]
    for run in range(30):
        dice = random.Random(f"{seed} {run}")  # the same for all kinds
        cuts = 2
        happenings: list[tuple[int, Happening]] = []
        for moment in sorted(dice.sample(range(2 * len(undisturbed.moments)), 5)):
            what: Happening = dice.choice(
                (Move(dice.choice([*targets, FACTORY])), Cut(), Lose(), Fuse(dice.randrange(6)))
            )
            if isinstance(what, Cut | Fuse):
                cuts -= 1
                if cuts < 0:
                    what = Lose()
            happenings.append((moment, what))
        yield Course(_keyed(kind, run), targets[0], tuple(happenings))


SCENARIOS: Final[dict[str, Scenario]] = {
    "plain": plain,
    "end of no whole word": odd_end,
    "lost status or answer": lost,
    "power cut": power,
    "power cut in flash": flash,
    "target moves": moved,
    "moves, answer lost": moved_and_lost,
    "moves, power cut": moved_and_power,
    "moves twice": moved_twice,
    "moves back": moved_back,
    "tag republished": republished,
    "record wiped": wiped,
    "moves, record wiped": moved_and_wiped,
    "new one crashes": rolled_back,
    "by chance": by_chance,
}
