"""The demo: a real update of simulated devices, all on this machine.

It starts the sandbox and the function.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from fleet_fn.http.authorization import Fixed, basic
from fleet_fn.http.client import HttpClient
from fleet_fn.oci.access import Access, registry_reference
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import VERSION_ANNOTATION
from fleet_fn.oci.publication import Published
from fleet_fn.oci.publishing import publish_to_registry
from fleet_fn.oci.reference import LAYOUT_SCHEME
from fleet_fn.oci.signing import SigningKey
from fleet_fn.sandbox import demo_rollout
from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.sandbox.demo_function import serve_events, subscribe_to_events
from fleet_fn.sandbox.demo_rollout import RolloutDemo, RolloutResult
from fleet_fn.sandbox.device_run import Character, DeviceOptions, DeviceReport, run_device
from fleet_fn.sandbox.device_wire import Dialect, Encoding
from fleet_fn.sandbox.local_registry import local_registry
from fleet_fn.sandbox.mqtt.endpoint import MqttOptions

OLD_VERSION: Final = "0.1.0"
NEW_VERSION: Final = "0.1.1"

_APPLICATION: Final = "example"
_IMAGE: Final = "demo-firmware"
_PASSWORD: Final = "password"  # noqa: S105 - of a sandbox that lives for seconds
_GATEWAY: Final = "gateway"
#: 100 KiB and a little, so that the last block is a short one.
_SIZE_BYTES: Final = 100 * 1024 + 32
#: Divides the devices' pauses: no user wants to wait for them.
_SPEED: Final = 1000.0
#: Variables that the function's process inherits: none of them is a setting.
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR")
#: How long all updates may take.
_UPDATE_SECONDS: Final = 120.0
#: Characters of the function's log that a failed demo shows.
_LOG_TAIL_CHARS: Final = 4000


@dataclass(frozen=True, slots=True)
class DemoDevice:
    """One of the demo's devices, and its part in the demo."""

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
    #: Percent of the rollout, in the device's own spec; None leaves it to the application, which holds no device back.
    percent: int | None = None

    @property
    def expected_version(self) -> str:
        """Version that the device runs after the demo."""
        return OLD_VERSION if self.percent == 0 else NEW_VERSION


DEVICES: Final = (
    DemoDevice("sensor", "built with Drogue Device, packed CBOR", "packed", "cbor", 1024, "firmware-manager"),
    DemoDevice("lamp", "documented JSON, loses power midway", "documented", "json", 1024, crash_at=_SIZE_BYTES // 2),
    DemoDevice("meter", "documented CBOR, loses every 20th answer", "documented", "cbor", 2048, drop=0.05),
    DemoDevice("tag", f"named CBOR, behind {_GATEWAY!r}", "named", "cbor", 512, gateway=_GATEWAY),
    DemoDevice("küche/ofen 1", "named JSON, a name that URLs have to escape", "named", "json", 4096),
    DemoDevice("valve", "fails its self-test twice, and is given a third attempt", "packed", "cbor", 4096, reject=2),
    DemoDevice("door", "held back by percent: 0", "packed", "cbor", 1024, percent=0),
)


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """The end of the updates of `DEVICES`."""

    #: Each device's report, in their order.
    reports: list[DeviceReport]
    #: Whether each device ended as it should.
    successes: list[bool]


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The end of a demo."""

    #: Whether each of `DEVICES` ended as it should.
    successes: list[bool]
    #: The end of the rollout that halts, and of its fix.
    rollout: RolloutResult
    #: The end of the function's log; empty if all went well.
    log_tail: str

    @property
    def is_right(self) -> bool:
        """Everything ended as it should."""
        return all(self.successes) and self.rollout.is_right


def run_demo(
    folder: Path,
    *,
    in_registry: bool,
    subscribes: bool,
    on_line: Callable[[str], None],
    show_updates: Callable[[UpdateResult, HttpClient, str], object],
    stay: Callable[[Mapping[str, str]], object] = lambda _: None,
) -> DemoResult:
    """Publish firmware, start sandbox and function, update devices, roll out more.

    Args:
        folder: takes all files.
        in_registry: publish into a local registry, not into an image layout.
        subscribes: let the function take events over MQTT, instead of having them delivered over HTTP.
        on_line: takes the lines that tell how far the demo is.
        show_updates: is called after the updates of `DEVICES`, with a client of the sandbox and the application's name.
        stay: is called at the end with the environment of an operator, while the sandbox still runs.

    Raises:
        UpstreamError: the firmware could not be published, or the fleet could not be read.
        DemoError: the function did not start.
        RolloutDemoError: a command of the rollout's operator failed.

    """
    log, mqtt = folder / "function.log", MqttOptions() if subscribes else None
    with _publish(folder, in_registry, on_line) as (published, firmware), Sandbox(_objects(), mqtt=mqtt) as sandbox:
        on_line(f"firmware  {_IMAGE}:{NEW_VERSION}, {published.size} bytes, sha256 {published.sha256[:12]}…")
        on_line("          signed with a new key; the function serves only what that key has signed")
        on_line(f"sandbox   {sandbox.url}")
        cloud_urls = {"DROGUE_API_URL": sandbox.url, **({"DROGUE_MQTT_URL": sandbox.mqtt.url} if subscribes else {})}
        settings = _environment({**firmware, **cloud_urls}, folder)
        with _run_function(sandbox, settings, log, subscribes=subscribes) as url:
            on_line(f"function  {'takes events from ' if subscribes else ''}{url}\n")
            reports = _run_devices(sandbox.url, on_line)
        # The function has ended, so all its status reports have been written.
        successes = [
            _is_right(device, report, published.sha256) for device, report in zip(DEVICES, reports, strict=True)
        ]
        with closing(HttpClient("sandbox", sandbox.url, authorization=Fixed(basic("sandbox", "sandbox")))) as cloud:
            show_updates(UpdateResult(reports, successes), cloud, _APPLICATION)
        # So that the lights need not wait until the function has forgotten what they should run.
        impatient = settings | {"SPEC_TTL_SECONDS": "0"}
        with _run_function(sandbox, impatient, log, subscribes=subscribes):
            rollout = RolloutDemo(sandbox, _PASSWORD, settings, on_line).run()
        result = DemoResult(successes, rollout, "")
        stay(settings)
        return result if result.is_right else replace(result, log_tail=log.read_text()[-_LOG_TAIL_CHARS:])


@contextmanager
def _publish(
    folder: Path, in_registry: bool, on_line: Callable[[str], None]
) -> Iterator[tuple[Published, dict[str, str]]]:
    """Publish all firmware; yield that of `DEVICES`, and the settings that name it."""
    firmware = hashlib.shake_256(b"the demo's firmware").digest(_SIZE_BYTES)
    key, public = SigningKey.generate(), folder / "release.pub"
    public.write_bytes(key.public)
    documents, trust = [key.sign_manifest], {"FIRMWARE_VERIFY_KEYS": str(public)}
    others = {
        version: hashlib.shake_256(version.encode()).digest(demo_rollout.SIZE_BYTES)
        for version in demo_rollout.VERSIONS
    }

    def publish_all(publish: Callable[[str, str, bytes], Published]) -> Published:
        for version, content in others.items():
            publish(demo_rollout.IMAGE, version, content)
        return publish(_IMAGE, NEW_VERSION, firmware)

    if not in_registry:

        def publish_here(image: str, version: str, content: bytes) -> Published:
            layout = layout_reference(f"{LAYOUT_SCHEME}{folder / image}:{version}")
            return publish_to_layout(layout, BytesIO(content), {VERSION_ANNOTATION: version}, documents=documents)

        yield publish_all(publish_here), {**trust, "FIRMWARE_REGISTRY": f"{LAYOUT_SCHEME}{folder}"}
        return
    with local_registry(folder) as host:
        on_line(f"registry  http://{host}/")

        def publish_there(image: str, version: str, content: bytes) -> Published:
            reference = registry_reference(f"{host}/{image}:{version}")
            annotations, access = {VERSION_ANNOTATION: version}, Access(insecure=True)
            return publish_to_registry(reference, BytesIO(content), annotations, access=access, documents=documents)

        yield (
            publish_all(publish_there),
            {**trust, "FIRMWARE_REGISTRY": f"{host}/", "FIRMWARE_REGISTRY_INSECURE": "true"},
        )


def _objects() -> list[dict[str, Any]]:
    """Return the application, the gateway and the devices.

    The application's spec names the firmware.
    """
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
        for device in DEVICES
    ]
    gateway = {
        "metadata": {"application": _APPLICATION, "name": _GATEWAY},
        "spec": {"authentication": authentication},
    }
    application = {
        "metadata": {"name": _APPLICATION},
        "spec": {"firmware": {"container": {"image": f"{_IMAGE}:{NEW_VERSION}"}}},
    }
    return [application, gateway, *devices, *demo_rollout.objects(authentication)]


def _environment(settings: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of the function, and of the operator's commands."""
    return {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "DROGUE_USER": "sandbox",
        "DROGUE_TOKEN": "sandbox",
        "FIRMWARE_CACHE_DIR": str(folder / "cache"),
        "LOG_FORMAT": "text",
        "NO_PROXY": "127.0.0.1",
        **settings,
    }


def _run_function(
    sandbox: Sandbox, settings: Mapping[str, str], log: Path, *, subscribes: bool
) -> AbstractContextManager[str]:
    """Run the function, and let it have the sandbox's events.

    Return a context with the URL that the events go to, or come from.
    """
    if subscribes:
        return subscribe_to_events(sandbox, settings, log, (_APPLICATION, demo_rollout.APPLICATION))
    return serve_events(sandbox, settings, log)


def _run_devices(url: str, on_line: Callable[[str], None]) -> list[DeviceReport]:
    """Run all devices at the same time, and return their reports."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(DEVICES)) as pool:
        runs = [pool.submit(run_device, _options(device, url), on_line=on_line, stop=stop) for device in DEVICES]
        try:
            return [run.result(_UPDATE_SECONDS) for run in runs]
        finally:
            stop.set()


def _options(device: DemoDevice, url: str) -> DeviceOptions:
    return DeviceOptions(
        url=url,
        application=_APPLICATION,
        device=device.name,
        password=_PASSWORD,
        gateway=device.gateway,
        version=OLD_VERSION.encode(),
        mtu=device.mtu,
        dialect=device.dialect,
        encoding=device.encoding,
        character=device.character,
        crash_at=device.crash_at,
        drop=device.drop,
        reject=device.reject,
        once=True,
        speed=_SPEED,
        size=_SIZE_BYTES,
    )


def _is_right(device: DemoDevice, report: DeviceReport, sha256: str) -> bool:
    expected = (sha256, _SIZE_BYTES) if device.expected_version == NEW_VERSION else (None, 0)
    return (
        report.in_sync
        and report.version == device.expected_version.encode()
        and (report.sha256, report.size) == expected
        and report.rollbacks == device.reject
        and not report.violations
    )
