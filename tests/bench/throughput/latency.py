"""What threads make of an upstream that takes its time."""

from pathlib import Path

import click

from tests.bench.peers import DELAY, DONE, IN_SYNC, Cloud, Load, latency
from tests.bench.servers import FUNCTION, serving
from tests.bench.throughput.measuring import FEW, alternating, title


def show(peers: Cloud, folder: Path) -> None:
    title(f"upstream latency of {1000 * DELAY:.0f} ms: workers x threads / {1000 * DELAY:.0f} ms is what could be")
    click.echo(f"{'workers x threads':20} {'events/s':>9} {'could be':>9} {'share':>9} {'CPU':>9}")
    for workers, threads in ((1, 1), (1, 4), (1, 8), (2, 8)):
        load = Load(folder, DONE, IN_SYNC, devices=FEW, connections=4 * workers * threads)
        with serving(FUNCTION, peers, folder, workers=workers, threads=threads, slow=True) as function:
            measured = alternating({"": (function, load)}, rounds=2)[""]
        most, used = workers * threads / DELAY, measured.rate * measured.cost / 1e6 / workers
        share = measured.rate / most
        click.echo(f"{f'{workers} x {threads}':20} {measured.rate:>9.0f} {most:>9.0f} {share:>9.2f} {used:>9.0%}")
    click.echo(f"the upstream by itself takes {1000 * latency(peers):.2f} ms; CPU: of one, for each worker")
