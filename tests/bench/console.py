"""What the console takes for fleets of several sizes: the time of pages and filters, and memory.

The console runs as users run it. Its Drogue Cloud answers from memory, so that the console is what is measured: a
generated fleet of 2,000 devices, repeated with other names.
"""

import json
import os
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import click
import requests

from tests.bench.processes import resident
from tests.support.console import environment_of
from tests.support.console_process import serving_console
from tests.support.fleets import Story, make_fleet
from tests.support.http import Request, Response, Server

SIZES: Final = (100, 10_000, 100_000)
_GENERATED: Final = 2000
_PAGE: Final = 100
#: Looks of which the median counts.
_LOOKS: Final = 15
_PATIENCE_SECONDS: Final = 300.0
#: What an operator is promised for 10,000 devices, in seconds.
_PROMISED: Final = {"page": 1.0, "filter by state": 0.2, "search by name": 0.2, "filter by label, sorted": 0.2}
_LOOKED_AT: Final = {
    "page": "",
    "filter by state": "?state=held",
    "search by name": "?q=oslo-1",
    "filter by label, sorted": "?label=ring%3D2&sort=-since",
}
_MIB: Final = 1024 * 1024


def run(seed: int) -> list[str]:
    """Prints what the console takes; returns what is slower than promised."""
    pages = _generate(seed)
    wrong: list[str] = []
    medians: dict[int, float] = {}
    for size in SIZES:
        with _cloud(pages, size) as url, serving_console({**os.environ, **environment_of(url)}) as console:
            page = f"{console}/applications/fleet"
            with requests.Session() as session:
                reading = _read(session, page)
                taken = {name: _time(session, page + query) for name, query in _LOOKED_AT.items()}
            memory = _resident(console)
        medians[size] = taken["page"]
        ratio = taken["page"] / medians[SIZES[0]]
        times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in taken.items())
        click.echo(f"{size:,} devices: read in {reading:.1f} s; {times}; {memory / _MIB:.0f} MiB resident")
        click.echo(f"  the page takes {ratio:.1f} times as long as with {SIZES[0]} devices")
        if size == 10_000:
            wrong += [f"{name} takes {taken[name]:.2f} s" for name, most in _PROMISED.items() if taken[name] > most]
    return wrong


def _generate(seed: int) -> tuple[bytes, list[str]]:
    """Returns an application's object, and pages of its devices."""
    story = Story("fleet", _GENERATED, seed, now=datetime.now(UTC))
    application, *devices = make_fleet(story)
    texts = [json.dumps(devices[start : start + _PAGE]) for start in range(0, len(devices), _PAGE)]
    return json.dumps(application).encode(), texts


@contextmanager
def _cloud(generated: tuple[bytes, list[str]], size: int) -> Iterator[str]:
    application, pages = generated

    def answer(request: Request) -> Response:
        url = urlsplit(request.path)
        if url.path.endswith("/apps/fleet"):
            return Response(200, application)
        offset = int(parse_qs(url.query)["offset"][0])
        if offset >= size:
            return Response(200, b"[]")
        round_, index = divmod(offset // _PAGE, len(pages))
        renamed = re.sub(r'"name": "(?=[a-z]+-)', f'"name": "{round_}-', pages[index]) if round_ else pages[index]
        return Response(200, renamed.encode())

    with Server(answer, remembers=False) as server:
        yield server.url


def _read(session: requests.Session, page: str) -> float:
    """Waits until the console has read all devices; returns the seconds that took."""
    began = time.monotonic()
    while "data-reading" in session.get(page, headers={"Fragment": "1"}, timeout=60).text:
        if time.monotonic() - began > _PATIENCE_SECONDS:
            raise TimeoutError(f"the devices were not read within {_PATIENCE_SECONDS} s")
        time.sleep(0.2)
    return time.monotonic() - began


def _time(session: requests.Session, url: str) -> float:
    def look(_: Any) -> float:
        began = time.monotonic()
        session.get(url, timeout=60).raise_for_status()
        return time.monotonic() - began

    return statistics.median(map(look, range(_LOOKS)))


def _resident(console: str) -> int:
    """Returns the resident bytes of the process that answers at a URL, the one of two with more memory."""
    port = f"{urlsplit(console).port:04X}"
    inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if f":{port} " in line}
    sizes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = {str(link.readlink()) for link in (process / "fd").iterdir()}
            if any(f"socket:[{inode}]" in links for inode in inodes) and process.name != str(os.getpid()):
                sizes.append(resident(int(process.name)))
        except OSError:
            continue  # it has ended, or is another user's
    return max(sizes)
