"""The fuzzer's targets, with the inputs that it is seeded with and those it once failed on, and mutations of them."""

import importlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.__main__ import CORPUS, TARGETS
from tests.fuzz.mutation import mutated

#: Mutations of all inputs of a target together. A layout is written to files each time, and signatures are checked.
MUTATIONS = {"layout": 150, "signature": 400}
DEFAULT = 1500


def one_input(target: str) -> Callable[[bytes], None]:
    read: Callable[[bytes], None] = importlib.import_module(f"tests.fuzz.{target}").one_input
    return read


def inputs(target: str) -> list[Path]:
    return sorted((CORPUS / target).iterdir())


@pytest.mark.parametrize(
    "path", [path for target in TARGETS for path in inputs(target)], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_what_must_hold_does_for_the_inputs_that_are_kept(path: Path) -> None:
    one_input(path.parent.name)(path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_what_must_hold_does_for_mutations_of_them(target: str) -> None:
    read, dice, seeds = one_input(target), random.Random(0), [path.read_bytes() for path in inputs(target)]
    for _ in range(MUTATIONS.get(target, DEFAULT)):
        content = mutation(dice, seeds)
        try:
            read(content)
        except BaseException as error:
            error.add_note(f"the input was {content!r}")
            raise


def mutation(dice: random.Random, seeds: list[bytes]) -> bytes:
    """One of `seeds` with a value of its JSON changed, or a few bytes changed, left out, repeated or of another's."""
    seed = dice.choice(seeds)
    if dice.random() < 0.5 and (changed := mutated(seed, dice)) != seed:
        return changed
    content = bytearray(seed)
    for _ in range(dice.randint(1, 3)):
        start = dice.randint(0, len(content))
        end = start + dice.choice((0, 1, 1, 4, 32))
        other = dice.choice(seeds)
        taken = dice.randint(0, len(other))
        content[start:end] = dice.choice(
            (b"", dice.randbytes(1), b"\0", b"\xff", bytes(content[start:end]) * 2, other[taken : taken + end - start])
        )
    return bytes(content)


def test_every_target_is_seeded() -> None:
    assert {path.name for path in CORPUS.iterdir()} == {*TARGETS}
