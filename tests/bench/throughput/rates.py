"""Events a second, and the CPU of each: the function beside the floor."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Final

import click

from tests.bench.peers import BEFORE, DONE, IN_SYNC, STARTING, Cloud, Load, midway
from tests.bench.servers import EMPTY, FLOOR, FUNCTION, PLAIN, Server, serving
from tests.bench.throughput.measuring import (
    FEW,
    SIZES,
    THREADS,
    WORKERS,
    Measured,
    alternating,
    await_firmware,
    title,
)

#: As many connections as there are threads. And twice as many, so that no thread has to wait for its next event.
CONNECTIONS: Final = (WORKERS * THREADS, 2 * WORKERS * THREADS)
#: How many times as many events a second as the floor answers the function has to, and for what share of the CPU.
LEAST: Final = {"a block": 1.9, "a poll": 2.0}
MOST_CPU: Final = 0.5
#: More of one CPU is too much for the load and for nginx, which have one thread each: they could be what is measured.
_MOST_BUSY: Final = 0.8


def show(peers: Cloud, folder: Path) -> list[str]:
    """Print what two workers and what one worker do; return what should be otherwise."""
    return [*_two_workers(peers, folder), *_one_worker(peers, folder)]


def _two_workers(peers: Cloud, folder: Path) -> Iterator[str]:
    with ExitStack() as servers:
        function, plain, floor, empty = (
            servers.enter_context(serving(kind, peers, folder, workers=WORKERS, threads=THREADS))
            for kind in (FUNCTION, PLAIN, FLOOR, EMPTY)
        )
        for server in (function, plain):
            await_firmware(server, _block(folder, 1))
        await_firmware(function, _start(folder, 1))
        for connections in CONNECTIONS:
            block, poll = _block(folder, connections), _poll(folder, connections)
            runs = {
                "floor": (floor, block),
                "a block": (function, block),
                "the same, gthread": (plain, block),
                "a poll": (function, poll),
            }
            if connections == CONNECTIONS[0]:
                runs["a new device's poll"] = (function, _poll(folder, connections, devices=0))
                runs["a start of an update"] = (function, _start(folder, connections))
                runs["empty view"] = (empty, block)
            measured = alternating(peers, runs)
            title(
                f"{WORKERS} workers of {THREADS} threads, {connections} connections;"
                f" {os.cpu_count()} CPUs, shared with load and upstream"
            )
            table(measured, measured["floor"])
            if connections == CONNECTIONS[0]:
                _prices(measured)
            yield from below_target(measured, f"{connections} connections")
            yield from load_is_limit(measured)


def _one_worker(peers: Cloud, folder: Path) -> Iterator[str]:
    runs: dict[str, tuple[Server, Load]] = {}
    with ExitStack() as servers:
        floor, function = (
            servers.enter_context(serving(kind, peers, folder, workers=1, threads=THREADS))
            for kind in (FLOOR, FUNCTION)
        )
        await_firmware(function, _block(folder, 1))
        for what, server, load in (
            ("floor", floor, _block),
            ("a block", function, _block),
            ("a poll", function, _poll),
        ):
            runs[f"{what}, 1 connection"] = (server, load(folder, 1))
            runs[f"{what}, {THREADS}"] = (server, load(folder, THREADS))
        measured = alternating(peers, runs)
    title(f"1 worker of {THREADS} threads, 1 and {THREADS} connections; beside the floor with {THREADS}")
    table(measured, measured[f"floor, {THREADS}"])
    for what in LEAST:
        one, many = measured[f"{what}, 1 connection"], measured[f"{what}, {THREADS}"]
        passed = f"{what}: {THREADS} connections pass {many.rate_of(one):.2f} times what one does"
        click.echo(f"{passed}, at {many.cost_of(one):.2f} of its CPU")
        if many.rate_of(one) < 1:
            yield passed


def _block(folder: Path, connections: int) -> Load:
    return Load(folder, "medium", midway(SIZES["medium"]), devices=FEW, connections=connections)


def _poll(folder: Path, connections: int, devices: int = FEW) -> Load:
    return Load(folder, DONE, IN_SYNC, devices=devices, connections=connections)


def _start(folder: Path, connections: int) -> Load:
    return Load(folder, STARTING, BEFORE, devices=0, connections=connections)


def table(measured: Mapping[str, Measured], floor: Measured) -> None:
    """Print one row for each, beside the floor."""
    click.echo(f"{'':23} {'events/s':>8} {'worst':>7} {'of floor':>8} {'us of CPU':>9} {'of floor':>8} {'requests':>9}")
    for what, result in measured.items():
        click.echo(
            f"{what:23} {result.rate:>8.0f} {result.worst:>7.0f} {result.rate_of(floor):>7.2f}x"
            f" {result.cost:>9.0f} {result.cost_of(floor):>7.2f}x {result.median(lambda one: one.requests):>9.2f}"
        )


def _prices(measured: Mapping[str, Measured]) -> None:
    new = measured["a new device's poll"].cost_of(measured["a poll"])
    start = measured["a start of an update"].cost_of(measured["a block"])
    click.echo(f"a new device's poll takes {new:.2f} times a poll's CPU, a start {start:.2f} times a block's")


def below_target(measured: Mapping[str, Measured], where: str) -> Iterator[str]:
    """Yield what does not reach its target."""
    for what, least in LEAST.items():
        rate, cost = measured[what].rate_of(measured["floor"]), measured[what].cost_of(measured["floor"])
        if rate < least:
            yield f"{what}, {where}: {rate:.2f} times the floor's events/s, not {least}"
        if cost > MOST_CPU:
            yield f"{what}, {where}: {cost:.2f} of the floor's CPU, not {MOST_CPU}"


def load_is_limit(measured: Mapping[str, Measured]) -> Iterator[str]:
    """Say what load and nginx take at the function's highest rate; yield what could be the limit."""
    fastest = max((measured[what] for what in LEAST), key=lambda result: result.rate)
    costs = {"wrk": fastest.median(lambda one: one.load_cost), "nginx": fastest.median(lambda one: one.cloud_cost)}
    busy = {name: fastest.rate * cost / 1e6 for name, cost in costs.items()}
    told = ", ".join(f"{name} {costs[name]:.0f} us ({busy[name]:.0%} of one CPU)" for name in costs)
    click.echo(f"of an event, load and upstream take: {told}")
    others = median(one.others for result in measured.values() for one in result.rounds)
    click.echo(f"other processes use {others:.0%} of the CPUs; with more than a few the figures say little")
    for name, share in busy.items():
        if share > _MOST_BUSY:
            yield f"{name} is busy for {share:.0%} of the time, so it may be what is measured"
