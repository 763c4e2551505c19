"""Updates a whole fleet at once, with faults on every wire; the exit code tells whether all went as it should."""

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import click

from tests.soak.deliveries import Agenda, Deliveries
from tests.soak.faults import DEADLINE, Faults
from tests.soak.fleet import PATIENCE, Firmware, Fleet
from tests.soak.samples import Samples
from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry
from tests.support.function import ROOT, Served, serving
from tests.support.http import Answer, Request, Response
from tests.support.processes import workers

_WORKERS: Final = 2
#: Seconds between two looks at the processes, and between two lines that tell how far it is.
_LOOK, _TELL = 1.0, 10.0
#: Log lines that no fault of an upstream may cause.
_UNEXPECTED: Final = "unexpected error"


@click.command()
@click.option("--devices", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--size", type=click.IntRange(min=4), default=300 * 1024, show_default=True, help="Bytes of a firmware.")
@click.option("--faults", type=click.FloatRange(0, 0.2), default=0.02, show_default=True, help="Share of requests.")
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True, help="What chance is drawn from.")
@click.option("--seconds", type=click.IntRange(min=1), default=1800, show_default=True, help="When to give up.")
def main(devices: int, size: int, faults: float, seed: int, seconds: int) -> None:
    """Updates a whole fleet at once, with faults on every wire."""
    click.echo(f"{devices:,} devices, firmware of {size:,} bytes, faults {faults:.1%}, seed {seed}, {_WORKERS} workers")
    wrong = run(devices, size, faults, seed, seconds)
    for line in wrong:
        click.echo(line, err=True)
    sys.exit(1 if wrong else 0)


def run(devices: int, size: int, share: float, seed: int, seconds: int) -> list[str]:
    """Prints what it measures; returns what does not hold."""
    with _soaking(size, share, seed) as (fleet, deliveries, function, log):
        fleet.populate(devices, size, seed)
        samples = Samples(function, lambda: len(deliveries.seconds))
        for line in fleet.lines.values():
            line.report()
        began = time.monotonic()
        told = began
        while fleet.unfinished and time.monotonic() - began < seconds:
            time.sleep(_LOOK)
            sample = samples.take()
            if time.monotonic() - told >= _TELL:
                told += _TELL
                click.echo(f"{sample}  {devices - len(fleet.unfinished):,} devices done")
        taken = time.monotonic() - began
        _tell(fleet, deliveries, taken)
        wrong = [*fleet.wrong, *deliveries.wrong, *samples.compare()]
        if fleet.unfinished:
            wrong.append(f"{len(fleet.unfinished)} devices are not on their target after {taken:.0f} s, such as")
            wrong += [f"  {line}" for line in fleet.unfinished[:5]]
        deliveries.end()
        function.end()
        log.seek(0)
        wrong += [f"logged: {line.strip()}" for line in log.read().decode().splitlines() if _UNEXPECTED in line]
    return wrong


@contextmanager
def _soaking(size: int, share: float, seed: int) -> Iterator[tuple[Fleet, Deliveries, Served, IO[bytes]]]:
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryFile() as log:
        layouts, files, cache, key = (Path(name, part) for part in ("layouts", "files", "cache", "release.pub"))
        for folder in (layouts, files):
            folder.mkdir()
        faults, agenda = Faults(share, seed), Agenda()
        firmware = Firmware(layouts, files, size, seed)
        key.write_bytes(firmware.signer.public)

        def through(answer: Answer) -> Answer:
            def telling(request: Request) -> Response | None:
                response = answer(request)
                if request.method == "PUT" and response and response.status == 204:
                    *_, application, _, device = request.path.split("/")
                    fleet.changed(application, device)
                return response

            return faults.around(telling, _drogues_interface)

        with (
            Drogue(through=through, deliver=lambda command: fleet.hear(command)) as drogue,
            FakeRegistry(layouts) as registry,
        ):
            fleet = Fleet(firmware, drogue, agenda, faults)
            for layout in layouts.iterdir():
                registry.answers[layout.name] = faults.around(registry.honest, lambda _: "OCI registry")
            environment = {
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                **drogue.environment,
                **registry.environment,
                "FIRMWARE_DIR": str(files),
                "FIRMWARE_VERIFY_KEYS": str(key),
                "FIRMWARE_CACHE_DIR": str(cache),
                "WEB_CONCURRENCY": str(_WORKERS),
                "PORT": "0",
                "EVENT_DEADLINE_SECONDS": str(DEADLINE),
                "EVENT_MAX_AGE_SECONDS": str(PATIENCE - 1),
                "POLL_SECONDS": "10",
            }
            with serving([sys.executable, "-m", "fleet_fn", "serve"], environment, ROOT, log) as function:
                while len(workers(function)) < _WORKERS:
                    time.sleep(0.01)
                fleet.deliveries = Deliveries(function.port, agenda, faults)
                yield fleet, fleet.deliveries, function, log


def _drogues_interface(request: Request) -> str:
    return "command API" if request.path.startswith("/api/command/") else f"device registry, {request.method}"


def _tell(fleet: Fleet, deliveries: Deliveries, taken: float) -> None:
    events = len(deliveries.seconds)
    rate = events / taken
    click.echo(f"\n{events:,} answers in {taken:.0f} s, {rate:.0f} per second; {deliveries.redelivered:,} redeliveries")
    took = sorted(deliveries.seconds)
    marks = {"half": 0.5, "95 %": 0.95, "99 %": 0.99, "all": 1.0}
    shown = ", ".join(f"{name} {took[max(0, int(events * mark) - 1)] * 1000:.0f} ms" for name, mark in marks.items())
    click.echo(f"time to answer: {shown}")
    _tell_counts("answers", deliveries.outcomes)
    _tell_counts("why", deliveries.reasons)
    _tell_counts("requests to", fleet.faults.requests)
    injected = Counter({f"{wire}: {kind}": count for (wire, kind), count in fleet.faults.injected.items()})
    _tell_counts("faults", injected)
    _tell_counts("devices", fleet.counts)


def _tell_counts(title: str, counts: "Counter[str]") -> None:
    click.echo(f"\n{title}")
    for name, count in counts.most_common(40):
        click.echo(f"  {count:>9,}  {name}")


if __name__ == "__main__":
    main(prog_name="python -m tests.soak")
