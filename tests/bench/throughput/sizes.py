"""Whether large firmware or many devices make an event cost more."""

from pathlib import Path
from typing import Final

import click

from tests.bench.peers import DONE, IN_SYNC, Cloud, Load, midway
from tests.bench.servers import FUNCTION, serving
from tests.bench.throughput.measuring import FEW, SIZES, THREADS, WORKERS, alternating, await_firmware, title

DEVICES: Final = (1, 1000, 100_000)
_ROUNDS: Final = 3


def show(peers: Cloud, folder: Path) -> list[str]:
    """Print what sizes and devices make of the rates; nothing is asked of them."""
    with serving(FUNCTION, peers, folder, workers=WORKERS, threads=THREADS) as function:
        loads = {
            f"{size / 1024:,.0f} KiB": Load(folder, name, midway(size), devices=FEW) for name, size in SIZES.items()
        }
        for load in loads.values():
            await_firmware(function, load)
        sizes = alternating(peers, {what: (function, load) for what, load in loads.items()}, _ROUNDS)
        devices = alternating(
            peers,
            {f"{count:,}": (function, Load(folder, DONE, IN_SYNC, devices=count)) for count in DEVICES},
            _ROUNDS,
        )
    for heading, measured in (("a block of a firmware of", sizes), ("polls of so many devices", devices)):
        title(heading)
        click.echo(f"{'':23} {'events/s':>8} {'worst':>7} {'us of CPU':>9} {'of first':>8} {'requests':>9}")
        first = next(iter(measured.values()))
        for what, result in measured.items():
            click.echo(
                f"{what:23} {result.rate:>8.0f} {result.worst:>7.0f} {result.cost:>9.0f}"
                f" {result.cost_of(first):>7.2f}x {result.median(lambda one: one.requests):>9.2f}"
            )
    click.echo("more devices than are remembered are read again with each poll")
    return []
