"""Events a second, start-up, memory, and where an event's CPU goes: the function beside the least that could be done.

Whatever is compared is measured in one run, alternating, by the same load, with as many workers and threads: absolute
figures are a machine's, ratios are the function's. The load and the upstreams take part of the same CPUs.
"""

import tempfile
from pathlib import Path

import click

from tests.bench import parts
from tests.bench.peers import cloud, missing
from tests.bench.throughput import latency, rates, sizes, starts
from tests.bench.throughput.measuring import SIZES


def run(seed: int) -> list[str]:
    """Print what was measured; return what should be otherwise."""
    if packages := missing():
        click.echo(f"throughput: not measured, for want of {', '.join(packages)} (apt-get install)")
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # nginx gives up what root may do
        with cloud(folder, SIZES, seed) as peers:
            wrong = [line for part in (rates, latency, sizes, starts) for line in part.show(peers, folder)]
            parts.show(peers, folder)
    return wrong
