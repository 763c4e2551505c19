"""What idle devices cost: requests to the device registry, bytes and CPU for each poll, over simulated time.

One process of the function answers the polls that come to it. Its requests go to an nginx, whose log counts them.
"""

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

import click

from fleet_fn.clocks import Clocks
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import DEVICE_EVENT, DFU, Event
from fleet_fn.drogue.read_ahead import Background
from fleet_fn.parts import Parts
from fleet_fn.settings import Settings
from tests.bench.peers import await_port, free_port, missing
from tests.support.firmware import publish, random_bytes

DEVICES: Final = 10_000
POLL_SECONDS: Final = 300.0
#: IN_SYNC_TTL_SECONDS, as docs/scale.md advises it.
TTL_SECONDS: Final = 1800.0
SPEC_TTL_SECONDS: Final = 10.0
#: Processes that share the polls evenly, and the time that is simulated: whole TTLs, for some thousand polls each.
PROCESSES: Final = {1: 1, 4: 2, 30: 8}
#: Devices whose polls count where none costs anything for others: without listings.
_SAMPLE: Final = 1000
#: What docs/scale.md says of reads for each poll, at most.
PROMISED: Final = {1: 0.006, 4: 0.016, 30: 0.08}

_PAGE: Final = 100
_ROUNDS: Final = 5
_APPLICATION: Final = "fleet"
_EPOCH: Final = 1.8e9
_OBJECT: Final[Mapping[str, Any]] = {
    "spec": {"credentials": {"credentials": [{"pass": {"bcrypt": "$2y$05$" + 53 * "x"}}]}},
    "status": {
        "firmware": {
            "current": "1",
            "target": "1",
            "conditions": [{"type": "InSync", "status": "True", "lastTransitionTime": "2026-11-23T06:00:00Z"}],
            "reported": "2026-11-23T06:00:00Z",
            "seen": "2026-11-29T06:00:00Z",
            "update": {
                "version": "1",
                "checksum": 64 * "a",
                "started": "2026-11-23T05:00:00Z",
                "swapped": "2026-11-23T05:30:00Z",
                "synced": "2026-11-23T06:00:00Z",
                "syncs": 1,
                "attempts": 1,
                "answered": {"events": [32 * "b"], "time": "2026-11-23T05:30:00Z", "status": "deadbeef"},
            },
        }
    },
}


def run(seed: int) -> list[str]:
    """Prints what a poll costs; returns what is dearer than promised."""
    if packages := missing():
        return [f"nothing is measured without {', '.join(packages)}"]
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder, _cloud(Path(folder)) as cloud:
        publish(Path(folder) / "layouts", "app", "1", random_bytes(1000, seed))
        click.echo(f"{DEVICES:,} devices that poll each {POLL_SECONDS:.0f} s; for each poll of one process:")
        click.echo("processes  setting                reads   bytes read   us of CPU")
        for processes in PROCESSES:
            # The first kind also comes last: other work on the machine must not make one look cheap.
            costs = [_measure(cloud, processes, ttl, ahead, seed) for _, ttl, ahead in (*_KINDS, _KINDS[0])]
            before, after, again = costs[0], costs[-2], costs.pop()
            before = costs[0] = replace(before, cpu=(before.cpu + again.cpu) / 2)
            for (name, *_), cost in zip(_KINDS, costs, strict=True):
                click.echo(f"{processes:9}  {name:19} {cost.reads:8.4f} {cost.read_bytes:12.0f} {1e6 * cost.cpu:11.0f}")
            if before.reads < 0.99:
                wrong.append(f"{processes} processes: {before.reads:.3f} reads for each poll without the setting")
            if after.reads > PROMISED[processes]:
                wrong.append(f"{processes} processes: {after.reads:.4f} reads for each poll")
            if processes == 1 and after.cpu > before.cpu:
                wrong.append("CPU for each poll grows with the setting")
        wrong += _weigh_pages(cloud)
    return wrong


#: Settings, IN_SYNC_TTL_SECONDS, and whether devices are read ahead.
_KINDS: Final = (("none", 0.0, False), ("1800 s, no listings", TTL_SECONDS, False), ("1800 s", TTL_SECONDS, True))


# --- The cloud --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cloud:
    url: str
    folder: Path

    def take_reads(self) -> list[tuple[str, int]]:
        """The paths of the registry that were read since the last time, and the bytes of the answers."""
        log = self.folder / "log"
        lines = [line.split() for line in log.read_text().splitlines()]
        log.write_text("")
        return [(path, int(size)) for method, path, size in lines if method == "GET"]


@contextmanager
def _cloud(folder: Path) -> Iterator[_Cloud]:
    folder.chmod(0o755)  # nginx's worker is another user
    objects = f"{folder}/objects"
    Path(objects).mkdir()
    found = [_device(number) for number in range(DEVICES)]
    for start in range(0, DEVICES + 1, _PAGE):
        Path(objects, str(start)).write_text(json.dumps(found[start : start + _PAGE]))
    application = {"metadata": {"name": _APPLICATION}, "spec": {"firmware": {"container": {"image": "app:1"}}}}
    path = f"/api/registry/v1alpha1/apps/{_APPLICATION}"
    named = json.dumps(_device(0)).replace("$", "${dollar}").replace(_name(0), "$device")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    port = free_port()
    (folder / "nginx.conf").write_text(f"""
        daemon off; pid {folder}/pid; error_log {folder}/errors; worker_processes 1;
        events {{ }}
        http {{
            log_format reads '$request_method $uri $body_bytes_sent'; access_log {folder}/log reads;
            keepalive_requests 1000000000; keepalive_timeout 3600; {temporary}
            geo $dollar {{ default "$"; }}
            server {{
                listen 127.0.0.1:{port};
                location /api/command/ {{ return 202; }}
                location = {path} {{ return 200 '{json.dumps(application)}'; }}
                location = {path}/devices {{ alias {objects}/$arg_offset; }}
                location ~ ^{path}/devices/(?<device>[^/]+)$ {{ return 200 '{named}'; }}
            }}
        }}
    """)
    process = subprocess.Popen(["nginx", "-e", folder / "errors", "-c", folder / "nginx.conf"])
    try:
        await_port(port, process)
        yield _Cloud(f"http://127.0.0.1:{port}", folder)
    finally:
        process.terminate()
        process.wait()


def _name(number: int) -> str:
    return f"device-{number:05}"


def _device(number: int) -> dict[str, Any]:
    uid = "5b0c2b6c-3f6e-4a0e-8a92-8d0b3f4e8d11"
    metadata = {"application": _APPLICATION, "name": _name(number), "uid": uid, "resourceVersion": uid, "labels": {}}
    return {"metadata": metadata, **_OBJECT}


# --- Simulated time ---------------------------------------------------------------------------------------------------


class _Time(Background):
    """The time, and a listing in the background that takes of it what it pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self._wakes_at: float | None = None
        self._may_go, self._has_stopped = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self) -> float:
        return self.now

    def wall(self) -> float:
        return _EPOCH + self.now

    def begin(self, work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            work()
            self._wakes_at = None
            self._has_stopped.release()

        thread = threading.Thread(target=run)
        thread.start()
        self._has_stopped.acquire()
        return thread

    def pause(self, seconds: float) -> None:
        self._wakes_at = self.now + seconds
        self._has_stopped.release()
        self._may_go.acquire()

    def pass_until(self, moment: float) -> None:
        while self._wakes_at is not None and self._wakes_at <= moment:
            self.now = self._wakes_at
            self._may_go.release()
            self._has_stopped.acquire()
        self.now = moment


@dataclass(frozen=True)
class _Cost:
    """What one poll costs."""

    reads: float
    read_bytes: float
    #: Seconds, listings included.
    cpu: float


def _measure(cloud: _Cloud, processes: int, ttl: float, reads_ahead: bool, seed: int) -> _Cost:
    """Polls of the whole fleet, of which one of several processes gets its share."""
    clock = _Time()
    parts = _parts(cloud, ttl, clock)
    registry = parts.updater._device_registry
    registry._read_ahead = None
    if reads_ahead:
        registry.remember_in_sync(ttl, clock)
    cloud.take_reads()
    polls, seconds, devices = 0, PROCESSES[processes] * TTL_SECONDS, DEVICES if reads_ahead else _SAMPLE
    began = time.process_time()
    for number, (moment, device) in enumerate(_polls(devices, seconds, processes, seed)):
        clock.pass_until(moment)
        arrived = datetime.fromtimestamp(clock.wall(), UTC)
        event = Event(
            str(number),
            device,
            DEVICE_EVENT,
            DFU,
            _APPLICATION,
            device,
            arrived,
            "application/json",
            b'{"version":"1"}',
        )
        outcome = parts.updater.answer(event, Deadline(10))
        assert outcome.name == "sync", outcome
        polls += 1
    cpu = time.process_time() - began
    clock.pass_until(seconds + TTL_SECONDS)
    parts.close()
    sizes = [size for path, size in cloud.take_reads() if "/devices" in path]
    return _Cost(len(sizes) / polls, sum(sizes) / polls, cpu / polls)


def _parts(cloud: _Cloud, ttl: float, clock: _Time) -> Parts:
    settings = Settings(
        drogue_api_url=cloud.url,
        firmware_registry=f"oci-layout:{cloud.folder}/layouts/",
        firmware_cache_dir=f"{cloud.folder}/cache",
        in_sync_ttl_seconds=ttl,
        report_seen_seconds=0.0,
    )
    return Parts(settings, Clocks(clock.wall, clock))


def _polls(devices: int, seconds: float, processes: int, seed: int) -> Iterator[tuple[float, str]]:
    """The moments at which devices poll that this process hears of."""
    random = Random(seed)
    phases = sorted((random.random() * POLL_SECONDS, _name(number)) for number in range(devices))
    for cycle in range(round(seconds / POLL_SECONDS)):
        for phase, name in phases:
            if random.random() * processes < 1:
                yield cycle * POLL_SECONDS + phase, name


# --- Pages ------------------------------------------------------------------------------------------------------------


def _weigh_pages(cloud: _Cloud) -> list[str]:
    """Compares a page with single reads: with SPEC_TTL_SECONDS alone, it spares few of them."""
    clock = _Time()
    parts = _parts(cloud, TTL_SECONDS, clock)
    registry: DeviceRegistry = parts.updater._device_registry
    reads, pages = [], []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for number in range(_PAGE):
            registry.read_desired(_APPLICATION, _name(number), 1e9, Deadline(10), of_device=-1.0)
        reads.append((time.process_time() - began) / _PAGE)
        clock.now += TTL_SECONDS + 1
        registry.remember_in_sync(TTL_SECONDS, clock)
        began = time.process_time()
        for _ in range(20):  # misses begin a listing
            registry.remembers_in_sync(_APPLICATION, "unknown", "1", "", TTL_SECONDS)
        clock.pass_until(clock.now + TTL_SECONDS / 2)
        pages.append((time.process_time() - began) / (DEVICES / _PAGE))
    parts.close()
    page, as_much_as, used = median(pages), median(pages) / median(reads), _PAGE * SPEC_TTL_SECONDS / POLL_SECONDS
    click.echo(
        f"a page of {_PAGE} devices takes {1000 * page:.1f} ms of CPU, as much as {as_much_as:.0f} single reads;\n"
        f"if objects are good for {SPEC_TTL_SECONDS:.0f} s, {used:.1f} of its devices poll in time"
    )
    return [] if as_much_as > 2 * used else ["pages would be worth it with SPEC_TTL_SECONDS alone"]
