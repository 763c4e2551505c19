"""Runs the benchmarks, each in turn; the exit code tells whether what they measured holds."""

import sys
from collections.abc import Callable
from typing import Final

import click

from tests.bench import footprint, rollout

#: Each takes a seed, prints what it measures, and returns what does not hold, one line each.
_BENCHMARKS: Final[dict[str, Callable[[int], list[str]]]] = {"rollout": rollout.run, "footprint": footprint.run}


@click.command(help=f"Runs the named benchmarks, else all: {', '.join(_BENCHMARKS)}.")
@click.argument("names", nargs=-1, type=click.Choice(list(_BENCHMARKS)))
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="What chance is drawn from.")
def main(names: tuple[str, ...], seed: int) -> None:
    """Runs the named benchmarks, else all."""
    wrong = [f"{name}: {line}" for name in names or _BENCHMARKS for line in _BENCHMARKS[name](seed)]
    for line in wrong:
        click.echo(line, err=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
