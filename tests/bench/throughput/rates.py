"""Events a second, and the CPU of each: the function beside the floor."""

import os
from contextlib import ExitStack
from pathlib import Path

import click

from tests.bench.peers import DONE, IN_SYNC, Cloud, Load, midway
from tests.bench.servers import EMPTY, FLOOR, FUNCTION, PLAIN, serving
from tests.bench.throughput.measuring import FEW, SIZES, THREADS, WORKERS, alternating, await_firmware, title


def show(peers: Cloud, folder: Path) -> None:
    block = Load(folder, "medium", midway(SIZES["medium"]), devices=FEW)
    poll = Load(folder, DONE, IN_SYNC, devices=FEW)
    with ExitStack() as servers:
        function, plain, floor, empty = (
            servers.enter_context(serving(kind, peers, folder, workers=WORKERS, threads=THREADS))
            for kind in (FUNCTION, PLAIN, FLOOR, EMPTY)
        )
        for server in (function, plain):
            await_firmware(server, block)
        measured = alternating(
            {
                "floor": (floor, block),
                "empty view": (empty, block),
                "function, a block": (function, block),
                "the same, gthread": (plain, block),
                "function, a poll": (function, poll),
            }
        )
    title(
        f"events a second, {WORKERS} workers of {THREADS} threads, {os.cpu_count()} CPUs shared with load and upstream"
    )
    click.echo(f"{'':20} {'events/s':>9} {'of floor':>9} {'us of CPU':>10} {'of floor':>9}")
    least = measured["floor"]
    for what, result in measured.items():
        click.echo(
            f"{what:20} {result.rate:>9.0f} {result.rate / least.rate:>8.2f}x"
            f" {result.cost:>10.0f} {result.cost / least.cost:>8.2f}x"
        )
