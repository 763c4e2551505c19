"""Whether large firmware or many devices make an event cost more."""

from pathlib import Path
from typing import Final

import click

from tests.bench.peers import DONE, IN_SYNC, Cloud, Load, midway
from tests.bench.servers import FUNCTION, serving
from tests.bench.throughput.measuring import SIZES, THREADS, WORKERS, alternating, await_firmware, title

DEVICES: Final = (1, 1000, 100_000)


def show(peers: Cloud, folder: Path) -> None:
    with serving(FUNCTION, peers, folder, workers=WORKERS, threads=THREADS) as function:
        loads = {f"{size / 1024:,.0f} KiB": Load(folder, name, midway(size)) for name, size in SIZES.items()}
        for load in loads.values():
            await_firmware(function, load)
        sizes = alternating({what: (function, load) for what, load in loads.items()}, rounds=2)
        devices = alternating(
            {f"{count:,}": (function, Load(folder, DONE, IN_SYNC, devices=count)) for count in DEVICES}, rounds=2
        )
    for heading, measured in (("a block of a firmware of", sizes), ("polls of so many devices", devices)):
        title(heading)
        click.echo(f"{'':20} {'events/s':>9} {'us of CPU':>10} {'of first':>9}")
        first = next(iter(measured.values()))
        for what, result in measured.items():
            click.echo(f"{what:20} {result.rate:>9.0f} {result.cost:>10.0f} {result.cost / first.cost:>8.2f}x")
    click.echo("more devices than are remembered are read again with each poll")
