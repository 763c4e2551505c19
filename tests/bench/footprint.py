"""What a pod takes: memory and CPU of the function while it has as many events as it works on at once."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import cbor2
import click
import yaml

from tests.bench import processes
from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT, Function, event
from tests.support.processes import forget_peak, peak_resident, resident, workers

THREADS: Final = 8
EVENTS: Final = 4000
#: Bytes of firmware, and of the blocks that devices ask for: many small ones, and some of the largest that there are.
SIZE: Final = 4 * 1024 * 1024
BLOCKS: Final = {"512 bytes": 512, "64 KiB": 65536}
_MIB: Final = 1024 * 1024


def run(seed: int) -> list[str]:
    """Prints what the function takes; returns what does not agree with the manifest's requests and limits."""
    with tempfile.TemporaryDirectory() as folder, Drogue() as drogue:
        publish(Path(folder), "app", "2", random_bytes(SIZE, seed))
        devices = [f"device-{number}" for number in range(THREADS)]
        drogue.put("example", spec={"firmware": {"container": {"image": "app:2"}}})
        for device in devices:
            drogue.put("example", device, spec={})
        settings = {"FIRMWARE_REGISTRY": f"oci-layout:{folder}", "THREADS": str(THREADS), "LOG_LEVEL": "INFO"}
        began = time.monotonic()
        # With a setting of Python's it is no fork, in whose memory there would be more.
        with Function({**drogue.environment, **settings, "PYTHONWARNINGS": "ignore"}) as function:
            ready = time.monotonic() - began
            idle = _master(function) + resident(function)
            click.echo(f"{THREADS} events at a time; ready after {ready:.2f} s, resident then {idle / _MIB:.0f} MiB")
            forget_peak(function)
            for name, mtu in BLOCKS.items():
                used = _cpu(function)
                began = time.monotonic()
                with ThreadPoolExecutor(THREADS) as pool:
                    list(pool.map(lambda device, mtu=mtu: _update(function, device, mtu), devices))
                taken, used = time.monotonic() - began, _cpu(function) - used
                drogue.commands.clear()
                click.echo(
                    f"blocks of {name}: {EVENTS} events, {1000 * used / EVENTS:.2f} ms of CPU each "
                    f"({EVENTS / taken:.0f} per second, beside a cloud and devices on the same machine)"
                )
            peak = _master(function) + peak_resident(function)
            click.echo(f"resident at most {peak / _MIB:.0f} MiB")
    return _compared(peak)


def _update(function: Function, device: str, mtu: int) -> None:
    blocks = SIZE // mtu
    begins = cbor2.dumps({0: b"1", 1: mtu})  # the function continues only updates that it has recorded
    assert function.post(event(device, datacontenttype="application/cbor"), begins).outcome.startswith("write")
    for number in range(EVENTS // THREADS):
        status = {0: b"1", 1: mtu, 2: number, 3: {0: b"2", 1: number % (blocks - 1) * mtu + mtu}}
        answer = function.post(event(device, datacontenttype="application/cbor"), cbor2.dumps(status))
        assert answer.outcome.startswith("write"), answer.outcome


def _master(function: Function) -> int:
    """Bytes of memory of the process that minds the workers."""
    return processes.resident(function.process.pid)


def _cpu(function: Function) -> float:
    """Seconds of CPU that gunicorn and its workers have used."""
    return sum(map(processes.cpu, (function.process.pid, *workers(function))))


def _compared(peak: int) -> list[str]:
    service: Any = yaml.safe_load((ROOT / "knative" / "base" / "service.yaml").read_text())
    (container,) = service["spec"]["template"]["spec"]["containers"]
    memory = {kind: int(values["memory"].removesuffix("Mi")) for kind, values in container["resources"].items()}
    wrong = []
    if peak > memory["requests"] * _MIB:
        wrong.append(f"more than the {memory['requests']} MiB that a pod requests")
    if peak > memory["limits"] * _MIB / 2:
        wrong.append(f"more than half of the {memory['limits']} MiB that a pod may have")
    return wrong
