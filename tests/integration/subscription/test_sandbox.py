"""Whole updates through the sandbox's MQTT integration, which sends one event at a time as Drogue Cloud does."""

import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme

from fleet_fn.sandbox import MqttOptions, Sandbox
from fleet_fn.sandbox.device_run import DeviceOptions, DeviceReport, run_device
from tests.support.firmware import Published, publish, random_bytes
from tests.support.statuses import FORMS
from tests.support.subscriber import Subscriber, wait_for

DEVICES = [f"pump-{number}" for number in range(len(FORMS))]


@pytest.fixture
def released(tmp_path: Path) -> Published:
    return publish(tmp_path / "layouts", "pumps", "0.1.1", random_bytes(20_000))


@contextmanager
def cloud(tmp_path: Path, partitions: int = 1) -> Iterator[tuple[Sandbox, dict[str, str]]]:
    """A sandbox with TLS on its MQTT integration, and settings of a function for it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    credentials = {"authentication": {"credentials": [{"pass": "secret"}]}}
    objects: list[dict[str, Any]] = [
        {"metadata": {"name": "pumps"}, "spec": {"firmware": {"container": {"image": "pumps:0.1.1"}}}},
        {"metadata": {"name": "fans"}},
        *({"metadata": {"application": "pumps", "name": name}, "spec": credentials} for name in DEVICES),
    ]
    with Sandbox(objects, mqtt=MqttOptions(partitions=partitions, tls=context)) as sandbox:
        assert sandbox.mqtt_url
        yield (
            sandbox,
            {
                "DROGUE_API_URL": sandbox.url,
                "DROGUE_USER": "sandbox",
                "DROGUE_TOKEN": "sandbox",
                "DROGUE_MQTT_URL": sandbox.mqtt_url,
                "DROGUE_CA_FILE": str(ca_file),
                "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path / 'layouts'}",
            },
        )


def update(sandbox: Sandbox, number: int, lines: list[str]) -> DeviceReport:
    dialect, encoding = FORMS[number]
    options = DeviceOptions(
        sandbox.url,
        "pumps",
        DEVICES[number],
        "secret",
        dialect=dialect,
        encoding=encoding,
        once=True,
        speed=20,
    )
    return run_device(options, on_line=lines.append, stop=threading.Event())


def test_devices_of_each_dialect_are_updated_without_an_inbound_route(tmp_path: Path, released: Published) -> None:
    with cloud(tmp_path) as (sandbox, settings), Subscriber(settings) as subscriber:
        subscriber.logged("subscribed", 2)
        with ThreadPoolExecutor(len(DEVICES)) as pool:
            reports = list(pool.map(lambda number: update(sandbox, number, []), range(len(DEVICES))))
        subscriber.end()
    for report in reports:
        assert (report.in_sync, report.version, report.violations) == (True, b"0.1.1", ())
        assert report.sha256 == sha256(released.content).hexdigest()


def test_updates_go_on_if_a_process_of_the_group_is_killed(tmp_path: Path, released: Published) -> None:
    lines: list[str] = []
    with cloud(tmp_path, partitions=4) as (sandbox, settings):
        options = ("--application", "pumps", "--connections", "2")
        with Subscriber(settings, *options) as one, Subscriber(settings, *options) as other:
            for subscriber in (one, other):
                subscriber.logged("subscribed", 2)
            with ThreadPoolExecutor(len(DEVICES)) as pool:
                running = [pool.submit(update, sandbox, number, lines) for number in range(len(DEVICES))]
                wait_for(lambda: bool(one.lines("event", outcome="write") and other.lines("event", outcome="write")))
                other.process.kill()
                reports = [each.result() for each in running]
            one.end()
    for report in reports:
        assert (report.in_sync, report.sha256) == (True, sha256(released.content).hexdigest())
