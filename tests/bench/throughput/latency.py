"""What threads make of an upstream that takes its time."""

from pathlib import Path
from typing import Final

import click

from tests.bench.peers import DELAY, DONE, IN_SYNC, Cloud, Load, latency
from tests.bench.servers import FUNCTION, serving
from tests.bench.throughput.measuring import FEW, alternating, title

#: What share the function has to reach of what the upstream allows, unless the CPU ends: a worker uses nearly one, as
#: its interpreter's lock allows, or all are busy.
LEAST_SHARE: Final = 0.9
_MOST_OF_ONE, _LEAST_IDLE = 0.85, 0.1
_ROUNDS: Final = 3


def show(peers: Cloud, folder: Path) -> list[str]:
    """Print what workers and threads answer; return what should be more."""
    wrong = []
    upstream = latency(peers)
    title(f"upstream latency of {1000 * DELAY:.0f} ms, with nginx's timers {1000 * upstream:.2f} ms")
    click.echo(
        f"{'workers x threads':20} {'events/s':>8} {'worst':>7} {'could be':>8} {'share':>6} {'CPU':>6} {'idle':>6}"
    )
    for workers, threads in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 8)):
        load = Load(folder, DONE, IN_SYNC, devices=FEW, connections=2 * workers * threads)
        with serving(FUNCTION, peers, folder, workers=workers, threads=threads, slow=True) as function:
            measured = alternating(peers, {"": (function, load)}, _ROUNDS)[""]
        could_be = workers * threads / upstream
        used, share = measured.rate * measured.cost / 1e6 / workers, measured.rate / could_be
        idle = measured.median(lambda one: one.idle)
        what = f"{workers} x {threads}"
        click.echo(
            f"{what:20} {measured.rate:>8.0f} {measured.worst:>7.0f} {could_be:>8.0f} {share:>6.2f} {used:>6.0%}"
            f" {idle:>6.0%}"
        )
        if share < LEAST_SHARE and used < _MOST_OF_ONE and idle > _LEAST_IDLE:
            wrong.append(f"{what}: {share:.2f} of what an upstream of 5 ms allows, with {idle:.0%} of the CPUs idle")
    click.echo("could be: workers x threads / that latency; CPU: of one, for each worker; idle: of all CPUs")
    return wrong
