"""From the start to the first answer, and memory: the function beside an empty view."""

from pathlib import Path
from statistics import median
from typing import Final

import click

from tests.bench.peers import DONE, IN_SYNC, Cloud, Load
from tests.bench.servers import EMPTY, FUNCTION, serving
from tests.bench.throughput.measuring import THREADS, event_headers, title

STARTS: Final = 7
#: Events after which memory is measured.
FIRST_EVENTS: Final = 20

_MIB: Final = 1024 * 1024


def show(peers: Cloud, folder: Path) -> None:
    started: dict[str, list[float]] = {FUNCTION: [], EMPTY: []}
    resident: dict[str, list[float]] = {FUNCTION: [], EMPTY: []}
    done = Load(folder, DONE, IN_SYNC)
    for _ in range(STARTS):
        for kind in started:
            with serving(kind, peers, folder, workers=1, threads=THREADS) as server:
                started[kind].append(server.started)
                for _ in range(FIRST_EVENTS):
                    assert server.ask("POST", "/", event_headers(done), done.status).status == 204
                resident[kind].append(server.resident)
    title(f"from the start to the first 200, and memory after {FIRST_EVENTS} events, 1 worker of {THREADS} threads")
    click.echo(f"{'':20} {'ms':>9} {'of empty':>9} {'MiB':>9} {'of empty':>9}")
    for kind in started:
        click.echo(
            f"{kind:20} {1000 * median(started[kind]):>9.0f} {median(started[kind]) / median(started[EMPTY]):>8.2f}x"
            f" {median(resident[kind]) / _MIB:>9.1f} {median(resident[kind]) / median(resident[EMPTY]):>8.2f}x"
        )
