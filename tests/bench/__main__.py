"""Runs the benchmarks, each in turn, and says what they measured."""

from collections.abc import Callable
from typing import Final

import click

from tests.bench import bad_version, capacity, cold, console, footprint, rollout, throughput

#: Each takes a seed, prints what it measures, and returns what does not hold, one line each.
_BENCHMARKS: Final[dict[str, Callable[[int], list[str]]]] = {
    "throughput": throughput.run,
    "footprint": footprint.run,
    "rollout": rollout.run,
    "bad-version": bad_version.run,
    "capacity": capacity.run,
    "console": console.run,
    "cold": cold.run,
}


@click.command(help=f"Runs the named benchmarks, else all: {', '.join(_BENCHMARKS)}.")
@click.argument("names", nargs=-1, type=click.Choice(list(_BENCHMARKS)))
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="What chance is drawn from.")
def main(names: tuple[str, ...], seed: int) -> None:
    """Runs the named benchmarks, else all."""
    wrong = [f"{name}: {line}" for name in names or _BENCHMARKS for line in _BENCHMARKS[name](seed)]
    click.echo("\n" + ("what does not hold:" if wrong else "all of it holds that is said elsewhere"))
    for line in wrong:
        click.echo(line)


if __name__ == "__main__":
    main(prog_name="python -m tests.bench")
