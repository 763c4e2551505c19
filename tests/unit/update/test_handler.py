"""The use case, where it depends on time that no socket could give a test."""

import time
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import Event
from fleet_fn.firmware.resolver import Resolver
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_image_store
from fleet_fn.protocol.messages import Swap, Write
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from tests.support.drogue import TOKEN, Drogue
from tests.support.files import later
from tests.support.firmware import publish, random_bytes

T = TypeVar("T")


class Endless(SingleFlight):
    """Never gets done in time."""

    def result(self, key: Hashable, function: Callable[[], T], deadline: Deadline, *, keeps_error: bool = False) -> T:
        if isinstance(key, tuple) and key[0] == "hash":
            time.sleep(deadline.remaining)
            raise StillRunningError
        return super().result(key, function, deadline, keeps_error=keeps_error)


@pytest.fixture
def drogue() -> Iterator[Drogue]:
    with Drogue() as drogue:
        drogue.put("example", spec={})
        drogue.put_image("example", "pump", "pump:1")
        yield drogue


@pytest.fixture
def upstream(drogue: Drogue) -> Iterator[HttpClient]:
    upstream = HttpClient("cloud", drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
    yield upstream
    upstream.close()


def updater(upstream: HttpClient, folder: Path, single_flight: SingleFlight) -> UpdateHandler:
    settings = Settings(
        drogue_api_url="unused",
        firmware_registry=f"oci-layout:{folder}",
        firmware_cache_dir=str(folder / "cache"),
        spec_ttl=3600.0,
        manifest_ttl=3600.0,
        event_max_age=0.0,
    )
    files = VerifiedFiles(single_flight, later)
    images = Resolver(make_image_store(settings, files, single_flight), single_flight)
    return UpdateHandler(settings, DeviceRegistry(upstream), images, None, Commands(upstream))


def status(offset: int, identity: str = "1") -> Event:
    payload = b'{"version": "0", "update": {"version": "1", "offset": %d}}' % offset
    return Event(identity, "source", "io.drogue.event.v1", "dfu", "example", "pump", None, "application/json", payload)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish(tmp_path, "pump", "1", random_bytes(1024, 1))
    publish(tmp_path, "pump", "2", random_bytes(1024, 2))
    return tmp_path


def test_waiting_for_its_turn_makes_nothing_fresh_that_was_read_before(
    drogue: Drogue, upstream: HttpClient, folder: Path
) -> None:
    pumps = updater(upstream, folder, SingleFlight())
    assert isinstance(pumps.decide(status(512), Deadline(10)).command, Write)
    drogue.put_image("example", "pump", "pump:2")
    now = [0.0]
    late = Deadline(10, clock=lambda: now[0])
    now[0] = 5.0  # it had to wait for 5 s, in which the spec was read
    time.sleep(1.05)
    command = pumps.decide(status(1024), late).command
    assert command is not None
    assert not isinstance(command, Swap)
    assert isinstance(command, Write)
    assert (command.version, command.offset) == (b"2", 0)


def test_verifying_for_too_long_leaves_time_to_tell_the_device_to_wait(
    drogue: Drogue, upstream: HttpClient, folder: Path
) -> None:
    outcome = updater(upstream, folder, Endless()).answer(status(512), Deadline(1))
    assert (outcome.name, outcome.reason) == ("wait", "verifying")
    (command,) = drogue.commands_for("pump")
    assert command.payload == b'{"wait":{"poll":10}}'


def test_a_command_is_not_sent_when_its_acceptance_could_come_too_late(
    drogue: Drogue, upstream: HttpClient, folder: Path
) -> None:
    pumps = updater(upstream, folder, SingleFlight())
    now = [0.0]
    late = Deadline(10, clock=lambda: now[0])
    now[0] = 9.6
    assert pumps.answer(status(512), late).name == "retry"
    assert not drogue.commands
    assert pumps.answer(status(512), Deadline(10)).name == "write"
    assert len(drogue.commands) == 1
