"""Simulated devices, sandbox and function with the real hawkBit."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.peers.cloud import Cloud, running
from tests.peers.simulated import Device, device
from tests.support.firmware import random_bytes
from tests.support.hawkbit import Hawkbit, running_hawkbit

pytestmark = pytest.mark.timeout(600)  # hawkBit starts within half a minute if the machine is idle

SIZE = 20_000
#: Takes a device seconds, in small blocks.
LARGE = 200_000
_numbers = count(1)


@pytest.fixture(scope="module")
def hawkbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hawkbit]:
    with running_hawkbit(tmp_path_factory.mktemp("hawkbit")) as hawkbit:
        yield hawkbit


@pytest.fixture(scope="module")
def cloud(hawkbit: Hawkbit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with running(tmp_path_factory.mktemp("cloud"), SPEC_TTL_SECONDS="1", **hawkbit.environment) as cloud:
        yield cloud


class Managed:
    """A device of an application of its own, and its target in hawkBit."""

    def __init__(self, cloud: Cloud, hawkbit: Hawkbit, folder: Path, **firmware: Any) -> None:
        self.application = f"hawk-{next(_numbers)}"
        self.target = f"{self.application}.sensor"
        self._cloud, self._hawkbit, self._folder = cloud, hawkbit, folder
        source = {"hawkbit": {"controller": "{application}.{device}"}}
        cloud.create(self.application, "sensor", {**source, **firmware})

    def release(self, version: str, size: int = SIZE) -> int:
        """Upload a firmware of which there is no other; return its distribution set."""
        return self._hawkbit.release(self.version(version), random_bytes(size, (self.application, version)))

    def version(self, version: str) -> str:
        """Return this device's own form of a version: hawkBit takes each once."""
        return f"{version}.{self.application.rpartition('-')[2]}"

    def run(self, *options: str) -> Any:
        return device(self._cloud, self.application, "sensor", self._folder, *options)

    @property
    def reported(self) -> Any:
        """`status.firmware` of the device."""
        status = self._cloud.device(self.application, "sensor").get("status") or {}
        return status.get("firmware") or {}

    @property
    def is_begun(self) -> bool:
        """Whether the device got its first block."""
        return "update" in self.reported

    @property
    def reason(self) -> str:
        """Why the device is not in sync."""
        return self._cloud.reason(self.application, "sensor")


@pytest.fixture
def managed(cloud: Cloud, hawkbit: Hawkbit, tmp_path: Path) -> Managed:
    return Managed(cloud, hawkbit, tmp_path, maxAttempts=2)


def test_a_device_comes_up_with_what_was_assigned(hawkbit: Hawkbit, managed: Managed) -> None:
    action = hawkbit.assign(managed.release("1.0"), managed.target)
    running: Device
    with managed.run() as running:
        running.wait_until(lambda: action.ended == "finished")
    assert hawkbit.target(managed.target)["updateStatus"] == "in_sync"
    assert action.told.count("finished") == 1
    assert managed.version("1.0") in action.messages
    attributes = hawkbit.attributes(managed.target)
    assert (attributes["application"], attributes["device"]) == (managed.application, "sensor")


def test_next_version_follows_the_first(hawkbit: Hawkbit, managed: Managed) -> None:
    with managed.run() as running:
        for version in ("1.0", "1.1"):
            action = hawkbit.assign(managed.release(version), managed.target)
            running.wait_until(lambda action=action: action.ended == "finished")
    assert managed.reported["current"] == managed.version("1.1")


def test_an_action_fails_once_the_attempts_ran_out(hawkbit: Hawkbit, managed: Managed) -> None:
    action = hawkbit.assign(managed.release("2.0"), managed.target)
    with managed.run("--reject", f"version:{managed.version('2.0')}") as running:
        running.wait_until(lambda: action.ended == "error")
    assert hawkbit.target(managed.target)["updateStatus"] == "error"
    assert action.told.count("error") == 1


def test_a_cancellation_is_accepted_midway(hawkbit: Hawkbit, managed: Managed) -> None:
    action = hawkbit.assign(managed.release("3.0", LARGE), managed.target)
    with managed.run("--mtu", "64") as running:
        running.wait_until(lambda: managed.is_begun)
        action.cancel()
        running.wait_until(lambda: action.ended == "canceled")
        running.wait_until(lambda: "told to stay with 0.1.0" in running.said)
    assert managed.reported["current"] == "0.1.0"


def test_an_assignment_that_replaces_another_is_carried_out(hawkbit: Hawkbit, managed: Managed) -> None:
    first, second = managed.release("4.0", LARGE), managed.release("4.1")
    replaced = hawkbit.assign(first, managed.target)
    with managed.run("--mtu", "64", "--dialect", "documented") as running:
        running.wait_until(lambda: managed.is_begun)
        action = hawkbit.assign(second, managed.target)
        running.wait_until(lambda: action.ended == "finished")
    assert replaced.ended == "canceled"


def test_no_device_swaps_before_the_window_opens(hawkbit: Hawkbit, managed: Managed) -> None:
    opens = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=45)
    window = {"schedule": f"{opens:%S %M %H} ? * *", "duration": "00:10:00", "timezone": "+00:00"}
    action = hawkbit.assign(managed.release("5.0"), managed.target, maintenanceWindow=window)
    with managed.run() as running:
        running.wait_until(lambda: managed.reason == "window" and "downloaded" in action.told)
        assert datetime.now(UTC) < opens, "this machine is too slow for the window"
        assert action.ended == ""
        running.wait_until(lambda: action.ended == "finished")
        assert datetime.now(UTC) >= opens
    assert hawkbit.target(managed.target)["updateStatus"] == "in_sync"


def test_a_download_is_closed_with_all_blocks(hawkbit: Hawkbit, managed: Managed) -> None:
    action = hawkbit.assign(managed.release("6.0"), managed.target, type="downloadonly")
    with managed.run() as running:
        running.wait_until(lambda: "downloaded" in action.told)
        running.wait_until(lambda: managed.reason in ("window", "unmanaged"))
    assert hawkbit.target(managed.target)["updateStatus"] == "in_sync"
    assert managed.reported["current"] == "0.1.0"


def test_a_device_waits_for_confirmation(hawkbit: Hawkbit, managed: Managed) -> None:
    if not hawkbit.has_confirmation:
        pytest.skip("this hawkBit has no confirmation")
    hawkbit.ask_for_confirmation(True)
    try:
        action = hawkbit.assign(managed.release("7.0"), managed.target, confirmationRequired=True)
        with managed.run() as running:
            running.wait_until(lambda: managed.reason == "approval")
            assert action.ended == ""
            assert not managed.is_begun
            action.confirm()
            running.wait_until(lambda: action.ended == "finished")
    finally:
        hawkbit.ask_for_confirmation(False)
