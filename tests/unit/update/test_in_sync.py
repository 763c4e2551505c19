"""IN_SYNC_TTL_SECONDS: what an old object of a device in sync does for, and what it does not."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet_fn.clocks import Clocks
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import DEVICE_EVENT, DFU, REGISTRY_EVENT, Event
from fleet_fn.firmware.resolver import ImageResolver
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_image_store
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.target import Resolvers
from tests.support.drogue import TOKEN, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.http import Response
from tests.support.timing import Clock

TTL = 1800.0
POLL = 300.0
PUMP = ("example", "pump")


class Pump:
    """A device that polls, its function, and the time, which passes when a test says so."""

    def __init__(self, drogue: Drogue, folder: Path, **changes: object) -> None:
        self.drogue = drogue
        self.clock = Clock()
        self.version, self.uid = "1", ""
        self._number = 0
        settings = Settings(
            drogue_api_url="unused",
            firmware_registry=f"oci-layout:{folder}",
            firmware_cache_dir=str(folder / "cache"),
            in_sync_ttl_seconds=TTL,
            event_max_age_seconds=0.0,
        )
        settings = replace(settings, **changes)  # type: ignore[arg-type]
        self.upstream = HttpClient("cloud", drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
        flight = SingleFlight()
        resolver = ImageResolver(make_image_store(settings, VerifiedFiles(flight), flight), flight, clock=self.clock)
        self.handler = UpdateHandler(
            settings,
            DeviceRegistry(self.upstream, clock=self.clock, labels=settings.device_labels or {}),
            Resolvers(resolver, None, Trust(None, None)),
            Commands(self.upstream),
            Clocks(wall=self.wall, monotonic=self.clock),
        )

    def wall(self) -> float:
        return 1.8e9 + self.clock()

    def poll(self, progress: str = "", *, age: float = 0.0, timed: bool = True) -> tuple[str, int]:
        """Report a status; return the outcome, and how often the device's object was read for it."""
        self._number += 1
        payload = b'{"version": "%s"%s}' % (self.version.encode(), progress.encode())
        time = datetime.fromtimestamp(self.wall(), UTC) - timedelta(seconds=age) if timed else None
        event = Event(str(self._number), "pump", DEVICE_EVENT, DFU, *PUMP, time, "application/json", payload, self.uid)
        before = self.drogue.reads_of(*PUMP)
        outcome = self.handler.answer(event, Deadline(10))
        return outcome.name.value, self.drogue.reads_of(*PUMP) - before

    def is_changed(self) -> None:
        """Deliver the registry's event of a change."""
        self._number += 1
        event = Event(str(self._number), "pump", REGISTRY_EVENT, "devices", *PUMP, None, None, b"")
        assert self.handler.answer(event, Deadline(10)).name == "ignored"

    def settle(self) -> None:
        """Poll until the device's object says that it is in sync, and is remembered."""
        self.poll()
        self.clock.now += TTL + 1
        assert self.poll() == ("sync", 1)


@pytest.fixture
def drogue() -> Iterator[Drogue]:
    with Drogue() as drogue:
        drogue.put_image("example", None, "pump:1")
        drogue.put(*PUMP, spec={})
        yield drogue


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for version in "12":
        publish(tmp_path, "pump", version, random_bytes(1024, int(version)))
    return tmp_path


@pytest.fixture
def pump(drogue: Drogue, folder: Path) -> Iterator[Pump]:
    pump = Pump(drogue, folder)
    pump.settle()
    yield pump
    pump.upstream.close()


def test_a_device_in_sync_costs_one_read_in_each_ttl(pump: Pump) -> None:
    for _ in range(int(TTL / POLL) - 1):
        pump.clock.now += POLL
        assert pump.poll() == ("sync", 0)
    pump.clock.now += POLL + 1
    assert pump.poll() == ("sync", 1)


def test_without_the_setting_each_poll_reads(drogue: Drogue, folder: Path) -> None:
    pump = Pump(drogue, folder, in_sync_ttl_seconds=0.0)
    pump.settle()
    pump.clock.now += POLL
    assert pump.poll() == ("sync", 1)
    pump.upstream.close()


def test_the_application_is_read_as_often_as_ever(pump: Pump) -> None:
    before = pump.drogue.reads_of("example")
    pump.clock.now += POLL
    pump.poll()
    assert pump.drogue.reads_of("example") == before + 1


def test_a_registry_event_has_the_object_read_again(pump: Pump) -> None:
    pump.drogue.put_image(*PUMP, "pump:2")
    pump.is_changed()
    pump.clock.now += POLL
    outcome, reads = pump.poll()
    assert outcome == "write"
    assert reads


def test_a_missed_registry_event_is_made_up_for_within_the_ttl(pump: Pump) -> None:
    pump.drogue.put_image(*PUMP, "pump:2")
    pump.clock.now += POLL
    assert pump.poll() == ("sync", 0)
    pump.clock.now += TTL
    assert pump.poll()[0] == "write"


def test_an_update_starts_on_an_object_that_is_read_for_it(pump: Pump) -> None:
    pump.drogue.put_image("example", None, "pump:2")
    # The device alone is held back, and the event of that was missed.
    pump.drogue.put(*PUMP, spec={"firmware": {"rollout": {"paused": True}}})
    pump.clock.now += POLL
    outcome, reads = pump.poll()
    assert outcome == "withheld"
    assert reads


def test_an_error_rests_on_an_object_that_is_read_for_it(pump: Pump) -> None:
    pump.drogue.put_image("example", None, "pump:none")
    pump.drogue.put_image(*PUMP, "pump:1")
    pump.clock.now += POLL
    assert pump.poll() == ("sync", 1)


def test_a_device_midway_is_not_taken_for_one_in_sync(pump: Pump) -> None:
    """Another process has started an update of which this one has heard nothing."""
    pump.drogue.put_image(*PUMP, "pump:2")
    pump.clock.now += POLL
    outcome, reads = pump.poll(', "status": {"version": "2", "offset": 512}')
    assert outcome == "write"
    assert reads


def test_a_device_that_keeps_the_progress_of_its_last_update_costs_no_read(pump: Pump) -> None:
    pump.clock.now += POLL
    assert pump.poll(', "status": {"version": "1", "offset": 1024}') == ("sync", 0)


@pytest.mark.parametrize("how", [{"age": 11.0}, {"age": -11.0}, {"timed": False}])
def test_a_status_that_may_be_old_has_the_object_read(pump: Pump, how: dict[str, float]) -> None:
    """By now another process may have updated the device: it must not hear SYNC for a version that it left."""
    pump.clock.now += POLL
    assert pump.poll(**how) == ("sync", 1)  # type: ignore[arg-type]


def test_a_device_created_anew_is_another_one(drogue: Drogue, folder: Path) -> None:
    pump = Pump(drogue, folder)
    pump.uid = drogue.object(*PUMP)["metadata"]["uid"]
    pump.settle()
    drogue.recreate(*PUMP, spec={})
    pump.uid = drogue.object(*PUMP)["metadata"]["uid"]
    pump.clock.now += POLL
    assert pump.poll()[1] > 0
    pump.upstream.close()


def test_a_device_that_runs_another_version_has_its_object_read(pump: Pump) -> None:
    pump.version = "0"
    pump.clock.now += POLL
    assert pump.poll()[1] > 0


def test_a_disabled_device_gets_nothing_from_the_event_on(pump: Pump) -> None:
    pump.drogue.put(*PUMP, spec={"core": {"disabled": True}})
    pump.is_changed()
    pump.clock.now += POLL
    assert pump.poll() == ("failed", 1)


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_deleted_device_gets_nothing(pump: Pump, is_heard: bool) -> None:
    """Without the event, the command API refuses SYNC for it."""
    del pump.drogue._objects[PUMP]
    if is_heard:
        pump.is_changed()
    pump.clock.now += POLL
    before = len(pump.drogue.commands)
    assert pump.poll()[0] == "failed"
    assert len(pump.drogue.commands) == before


def test_a_device_found_gone_is_not_remembered_any_more(pump: Pump) -> None:
    pump.drogue.registry_answers[PUMP] = lambda _: Response(403)
    pump.clock.now += POLL
    assert pump.poll(age=11.0) == ("failed", 1)
    pump.clock.now += POLL
    assert pump.poll() == ("failed", 1)


def test_a_device_that_lost_its_label_is_left_to_others_from_the_event_on(drogue: Drogue, folder: Path) -> None:
    drogue.put(*PUMP, {"ring": "1"}, spec={})
    pump = Pump(drogue, folder, device_labels={"ring": "1"})
    pump.settle()
    drogue.put(*PUMP, {"ring": "2"}, spec={})
    pump.is_changed()
    pump.clock.now += POLL
    assert pump.poll() == ("ignored", 1)
    pump.upstream.close()


def test_no_object_is_remembered_for_longer_if_none_says_what_devices_run(drogue: Drogue, folder: Path) -> None:
    pump = Pump(drogue, folder, report_status=False)
    pump.settle()
    pump.clock.now += POLL
    assert pump.poll() == ("sync", 1)
    pump.upstream.close()


def test_a_heartbeat_is_written_although_the_object_is_old(drogue: Drogue, folder: Path) -> None:
    pump = Pump(drogue, folder, report_seen_seconds=1000.0)
    pump.settle()
    before = drogue.writes_of(*PUMP)
    for _ in range(5):
        pump.clock.now += POLL
        assert pump.poll()[0] == "sync"
    assert drogue.writes_of(*PUMP) == before + 1
    pump.upstream.close()
