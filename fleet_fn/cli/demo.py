"""`demo`: publish, sandbox, function and devices on this machine, and whether it all came out right."""

import hashlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
import requests

from fleet_fn.cli.fleet import print_fleet
from fleet_fn.errors import UpstreamError
from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.oci.access import Access, registry_reference
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import VERSION_ANNOTATION
from fleet_fn.oci.publication import Published
from fleet_fn.oci.publishing import publish_to_registry
from fleet_fn.oci.reference import LAYOUT_SCHEME
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.device_run import Character, DeviceOptions, DeviceReport, run_device
from fleet_fn.sandbox.device_wire import Dialect, Encoding
from fleet_fn.sandbox.local_registry import PROGRAM, local_registry

_APPLICATION: Final = "example"
_IMAGE: Final = "demo-firmware"
_OLD: Final = "0.1.0"
_NEW: Final = "0.1.1"
_PASSWORD: Final = "password"  # noqa: S105 - of a sandbox that lives for seconds
_GATEWAY: Final = "gateway"
#: Bytes: 200 KiB, and a little, so that the last block is a short one.
_SIZE: Final = 200 * 1024 + 32
#: Nobody waits in a demo: pauses between a device's reports are divided by this.
_SPEED: Final = 1000.0
#: What the function's process gets of the environment: nothing that is a setting.
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
#: Seconds within which the function has started.
_START: Final = 30
#: Seconds after which it has gone wrong.
_PATIENCE: Final = 120.0


@dataclass(frozen=True, slots=True)
class _Device:
    """One of the demo's devices, and what is special about it."""

    name: str
    about: str
    dialect: Dialect
    encoding: Encoding
    mtu: int
    character: Character = "careful"
    gateway: str | None = None
    crash_at: int | None = None
    drop: float = 0.0
    reject: int = 0
    #: Its part of the rollout; None leaves it to the application, which holds nobody back.
    percent: int | None = None

    @property
    def runs_at_the_end(self) -> str:
        """The version that it should have come to."""
        return _OLD if self.percent == 0 else _NEW


_DEVICES: Final = (
    _Device("sensor", "built with Drogue Device, packed CBOR", "packed", "cbor", 1024, "firmware-manager"),
    _Device("lamp", "documented JSON, loses power midway", "documented", "json", 1024, crash_at=_SIZE // 2),
    _Device("meter", "documented CBOR, loses every 20th answer", "documented", "cbor", 2048, drop=0.05),
    _Device("tag", f"named CBOR, behind {_GATEWAY!r}", "named", "cbor", 512, gateway=_GATEWAY),
    _Device("küche/ofen 1", "named JSON, a name that URLs have to escape", "named", "json", 4096),
    _Device("valve", "fails its self-test twice, and is given a third attempt", "packed", "cbor", 4096, reject=2),
    _Device("door", "held back by percent: 0", "packed", "cbor", 1024, percent=0),
)


_HELP: Final = f"""Update {len(_DEVICES)} simulated devices on this machine.

Publishes a generated firmware into an OCI image layout, starts a sandbox of Drogue Cloud and the function, and sends
devices of different dialects through a real update; one of them needs three attempts, and one is held back. Shows the
fleet as the device registry then knows it. Leaves nothing behind. Exits with 0 only if every device that is not held
back runs the new version with the right bytes.
"""


@click.command("demo", help=_HELP)
@click.option(
    "--registry", "in_registry", is_flag=True, help=f"Publish into a registry: {PROGRAM}, which has to be installed."
)
def command(in_registry: bool) -> None:
    """Run the demo."""
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ["NO_PROXY"] = "127.0.0.1"  # the simulated devices would take the environment's proxy
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="fleet-demo-") as folder:
            reports, checksum, table = _demonstrate(Path(folder), in_registry=in_registry)
    except UpstreamError as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("\ninterrupted", err=True)
        sys.exit(130)
    click.echo()
    right = [_is_right(device, report, checksum) for device, report in zip(_DEVICES, reports, strict=True)]
    for device, report, is_right in zip(_DEVICES, reports, right, strict=True):
        click.echo(f"{'ok   ' if is_right else 'WRONG'}  {report}")
        click.echo(f"       {device.about}")
    click.echo("\nwhat the registry knows (python -m fleet_fn fleet):\n")
    for line in table:
        click.echo(line)
    click.echo()
    updated = [is_right for device, is_right in zip(_DEVICES, right, strict=True) if device.runs_at_the_end == _NEW]
    click.echo(
        f"{sum(updated)} of {len(updated)} devices run {_NEW} with the right bytes, "
        f"{len(right) - len(updated)} held back, {time.monotonic() - started:.0f} s"
    )
    sys.exit(0 if all(right) else 1)


def _demonstrate(folder: Path, *, in_registry: bool) -> tuple[list[DeviceReport], str, list[str]]:
    """The reports of all devices, the SHA-256 of what they should run, and the table of the fleet."""
    table: list[str] = []
    with _published(folder, in_registry=in_registry) as (published, settings), Sandbox(_objects()) as sandbox:
        click.echo(f"firmware  {_IMAGE}:{_NEW}, {published.size} bytes, sha256 {published.sha256[:12]}…")
        click.echo(f"sandbox   {sandbox.url}")
        with _function({**settings, "DROGUE_API_URL": sandbox.url}, folder) as (url, log):
            click.echo(f"function  {url}\n")
            sandbox.sink = url
            reports = _run_devices(sandbox.url)
            sandbox.sink = None
        # The function has ended, and so has reported all that it had to report.
        cloud = HttpClient("sandbox", sandbox.url, authorization=Fixed(basic("sandbox", "sandbox")))
        with closing(cloud):
            print_fleet(cloud, _APPLICATION, echo=table.append)
        if not all(map(_is_right, _DEVICES, reports, itertools.repeat(published.sha256))):
            click.echo(f"\nthe function's last lines:\n{log.read_text()[-4000:]}", err=True)
    return reports, published.sha256, table


@contextmanager
def _published(folder: Path, *, in_registry: bool) -> Iterator[tuple[Published, dict[str, str]]]:
    """The firmware, where it was published to; and the settings with which the function finds it there."""
    firmware = BytesIO(hashlib.shake_256(b"the demo's firmware").digest(_SIZE))
    annotations = {VERSION_ANNOTATION: _NEW}
    if not in_registry:
        layout = layout_reference(f"{LAYOUT_SCHEME}{folder / _IMAGE}:{_NEW}")
        yield publish_to_layout(layout, firmware, annotations), {"FIRMWARE_REGISTRY": f"{LAYOUT_SCHEME}{folder}"}
        return
    with local_registry(folder) as host:
        click.echo(f"registry  http://{host}/")
        reference = registry_reference(f"{host}/{_IMAGE}:{_NEW}")
        published = publish_to_registry(reference, firmware, annotations, access=Access(insecure=True))
        yield published, {"FIRMWARE_REGISTRY": f"{host}/", "FIRMWARE_REGISTRY_INSECURE": "true"}


def _objects() -> list[dict[str, Any]]:
    """The application, whose spec names the firmware of all its devices, and these."""
    authentication = {"credentials": [{"pass": _PASSWORD}]}
    devices = [
        {
            "metadata": {"application": _APPLICATION, "name": device.name},
            "spec": {
                "authentication": authentication,
                **({"gatewaySelector": {"matchNames": [device.gateway]}} if device.gateway else {}),
                **({"firmware": {"rollout": {"percent": device.percent}}} if device.percent is not None else {}),
            },
        }
        for device in _DEVICES
    ]
    gateway = {
        "metadata": {"application": _APPLICATION, "name": _GATEWAY},
        "spec": {"authentication": authentication},
    }
    application = {
        "metadata": {"name": _APPLICATION},
        "spec": {"firmware": {"container": {"image": f"{_IMAGE}:{_NEW}"}}},
    }
    return [application, gateway, *devices]


@contextmanager
def _function(settings: Mapping[str, str], folder: Path) -> Iterator[tuple[str, Path]]:
    """The function in a process of its own: its URL, and the file that it logs to."""
    log = folder / "function.log"
    environment = {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "DROGUE_USER": "sandbox",
        "DROGUE_TOKEN": "sandbox",
        "FIRMWARE_CACHE_DIR": str(folder / "cache"),
        "LOG_FORMAT": "text",
        **settings,
    }
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        serve: Sequence[str] = (
            *(sys.executable, "-m", "gunicorn", "--config", "python:fleet_fn.web.server"),
            *("--bind", f"fd://{listener.fileno()}", "fleet_fn.app:create_app()"),
        )
        process = subprocess.Popen(  # noqa: S603 - this interpreter, and nothing from outside
            serve, env=environment, pass_fds=[listener.fileno()], stdout=output, stderr=output
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        try:
            # The socket takes connections from the start: this waits until somebody answers.
            requests.get(f"{url}readyz", timeout=_START).raise_for_status()
            yield url, log
        except requests.RequestException as error:
            raise click.ClickException(f"the function did not start: {error}\n{log.read_text()}") from error
        finally:
            process.terminate()
            process.wait()


def _run_devices(url: str) -> list[DeviceReport]:
    stop = threading.Event()
    with ThreadPoolExecutor(len(_DEVICES)) as pool:
        runs = [pool.submit(run_device, _options(device, url), on_line=click.echo, stop=stop) for device in _DEVICES]
        try:
            return [run.result(_PATIENCE) for run in runs]
        finally:
            stop.set()


def _options(device: _Device, url: str) -> DeviceOptions:
    return DeviceOptions(
        url=url,
        application=_APPLICATION,
        device=device.name,
        password=_PASSWORD,
        gateway=device.gateway,
        version=_OLD.encode(),
        mtu=device.mtu,
        dialect=device.dialect,
        encoding=device.encoding,
        character=device.character,
        crash_at=device.crash_at,
        drop=device.drop,
        reject=device.reject,
        once=True,
        speed=_SPEED,
        size=_SIZE,
    )


def _is_right(device: _Device, report: DeviceReport, sha256: str) -> bool:
    expected = (sha256, _SIZE) if device.runs_at_the_end == _NEW else (None, 0)
    return (
        report.in_sync
        and report.version == device.runs_at_the_end.encode()
        and (report.sha256, report.size) == expected
        and report.rollbacks == device.reject
        and not report.violations
    )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
