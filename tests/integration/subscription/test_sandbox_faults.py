"""Whole updates through the sandbox's MQTT integration, which loses connections and refuses credentials midway."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet_fn.sandbox import MqttOptions, Sandbox
from fleet_fn.sandbox.device_run import DeviceOptions, DeviceReport, run_device
from tests.support.firmware import Published, publish, random_bytes
from tests.support.subscriber import Subscriber, wait_for

APPLICATION = "shop"
#: One of each dialect, and a name that URLs have to escape.
DEVICES: dict[str, dict[str, Any]] = {
    "till": {"dialect": "packed", "encoding": "cbor"},
    "küche/ofen 1": {"dialect": "documented", "encoding": "json"},
    "lamp": {"dialect": "named", "encoding": "cbor"},
}
UPDATE_SECONDS = 60.0
SIZE_BYTES = 30_000


def objects() -> list[dict[str, Any]]:
    authentication = {"credentials": [{"pass": "secret"}]}
    return [
        {
            "metadata": {"name": APPLICATION},
            "spec": {"firmware": {"container": {"image": "sensor:0.2.0"}}},
        },
        *(
            {"metadata": {"application": APPLICATION, "name": name}, "spec": {"authentication": authentication}}
            for name in DEVICES
        ),
    ]


class Cloud:
    """A sandbox, firmware, and processes that take the sandbox's events."""

    def __init__(self, sandbox: Sandbox, firmware: Published, folder: Path, lines: list[str]) -> None:
        self.sandbox = sandbox
        self.firmware = firmware
        self.lines = lines
        self._environment = {
            "DROGUE_API_URL": sandbox.url,
            "DROGUE_MQTT_URL": sandbox.mqtt.url,
            "DROGUE_USER": "sandbox",
            "DROGUE_TOKEN": "sandbox",
            "FIRMWARE_REGISTRY": f"oci-layout:{folder}",
        }

    def subscriber(self) -> Subscriber:
        return Subscriber(self._environment)

    def update(self, midway: Callable[[], object] = lambda: None) -> list[DeviceReport]:
        """Update all devices, and return their reports; call `midway` when one of them has half of the firmware."""
        stop, once = threading.Event(), threading.Lock()

        def on_line(line: str) -> None:
            if "50 %" in line and once.acquire(blocking=False):
                midway()

        with ThreadPoolExecutor(len(DEVICES)) as pool:
            runs = [
                pool.submit(run_device, self._options(name, **how), on_line=on_line, stop=stop)
                for name, how in DEVICES.items()
            ]
            try:
                reports = [run.result(UPDATE_SECONDS) for run in runs]
            finally:
                stop.set()
        assert once.locked()
        return reports

    def check(self, reports: list[DeviceReport]) -> None:
        """Check that all devices run the new firmware, and that the device registry knows."""
        for report in reports:
            assert (report.in_sync, report.version, report.violations) == (True, b"0.2.0", ()), report
            assert report.sha256 == self.firmware.checksum.hex()
        assert self.sandbox.wait_for_deliveries(APPLICATION, UPDATE_SECONDS)
        for name in DEVICES:
            status = self.sandbox.get(APPLICATION, name)["status"]["firmware"]
            assert (status["current"], status["target"]) == ("0.2.0", "0.2.0")

    def _options(self, name: str, **how: Any) -> DeviceOptions:
        return DeviceOptions(
            url=self.sandbox.url,
            application=APPLICATION,
            device=name,
            password="secret",
            mtu=1024,
            once=True,
            speed=100.0,
            patience=30,
            size=SIZE_BYTES,
            **how,
        )


@contextmanager
def running(folder: Path) -> Iterator[Cloud]:
    firmware = publish(folder, "sensor", "0.2.0", random_bytes(SIZE_BYTES))
    lines: list[str] = []
    with Sandbox(objects(), mqtt=MqttOptions(), log=lines.append) as sandbox:
        yield Cloud(sandbox, firmware, folder, lines)


def test_an_update_outlives_a_lost_connection(tmp_path: Path) -> None:
    with running(tmp_path) as cloud, cloud.subscriber() as subscriber:
        cloud.check(cloud.update(cloud.sandbox.mqtt.drop_connections))
        assert subscriber.lines("connection lost")
        assert len(subscriber.lines("subscribed")) == 2
        subscriber.end()


def test_an_update_outlives_refused_credentials(tmp_path: Path) -> None:
    with running(tmp_path) as cloud, cloud.subscriber() as subscriber:
        faults = cloud.sandbox.mqtt.faults

        def refuse() -> None:
            faults.refuses_credentials = True
            cloud.sandbox.mqtt.drop_connections()
            threading.Thread(target=recover).start()

        def recover() -> None:
            wait_for(lambda: any("credentials were refused" in line["reason"] for line in subscriber.lines("conn")))
            faults.refuses_credentials = False

        cloud.check(cloud.update(refuse))
        assert any("refused: unknown credentials" in line for line in cloud.lines)
        subscriber.end()


def test_one_process_answers_and_the_other_stands_by_with_one_partition(tmp_path: Path) -> None:
    with running(tmp_path) as cloud, cloud.subscriber() as one, cloud.subscriber() as other:
        cloud.check(cloud.update())
        assert one.lines("event")
        assert other.lines("event") == []
        other.end()
        one.end()


def test_events_wait_for_a_process_that_is_away(tmp_path: Path) -> None:
    with running(tmp_path) as cloud:
        with cloud.subscriber() as subscriber:
            subscriber.end()
        with ThreadPoolExecutor(1) as pool:
            updating = pool.submit(cloud.update)
            with cloud.subscriber() as subscriber:
                cloud.check(updating.result(UPDATE_SECONDS))
                subscriber.end()
