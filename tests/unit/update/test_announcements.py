"""Consumers of transitions: what they get, when, and what their errors change."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.commands import Commands
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.events import Event
from fleet_fn.firmware.resolver import ImageResolver
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_image_store
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.target import Resolvers
from fleet_fn.update.transitions import Transition
from tests.support.drogue import TOKEN, Drogue
from tests.support.files import later
from tests.support.firmware import publish, random_bytes
from tests.support.http import Answer, Request, Response


class Consumer:
    """Remembers transitions."""

    def __init__(self) -> None:
        self.transitions: list[Transition] = []

    def __call__(self, _event: Event, transitions: tuple[Transition, ...], _deadline: Deadline) -> None:
        self.transitions += transitions

    @property
    def subjects(self) -> list[str]:
        return [transition.subject.value for transition in self.transitions]


class Refuses:
    """Comes between a cloud and its clients; answers some requests itself."""

    def __init__(self) -> None:
        self.applies: Callable[[Request], bool] = lambda _: False
        self.status = 500

    def __call__(self, honest: Answer) -> Answer:
        return lambda request: Response(self.status) if self.applies(request) else honest(request)


class Pump:
    """A device whose function hands transitions to a consumer."""

    def __init__(self, folder: Path, refuses: Refuses) -> None:
        self.refuses = refuses
        self.drogue = Drogue(through=refuses)
        self.consumer = Consumer()
        self._folder = folder
        self._identity = 0

    def __enter__(self) -> "Pump":
        self.drogue.__enter__()
        self.drogue.put("example", spec={})
        self.drogue.put_image("example", "pump", "pump:1")
        self._upstream = HttpClient("cloud", self.drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
        self.handler = self.make_handler(self.consumer)
        return self

    def __exit__(self, *_: object) -> None:
        self._upstream.close()
        self.drogue.__exit__(*_)

    def make_handler(
        self, *consumers: Callable[[Event, tuple[Transition, ...], Deadline], None], **changes: Any
    ) -> UpdateHandler:
        settings = Settings(
            drogue_api_url="unused",
            firmware_registry=f"oci-layout:{self._folder}",
            firmware_cache_dir=str(self._folder / "cache"),
            spec_ttl_seconds=0.0,
            manifest_ttl_seconds=0.0,
            event_max_age_seconds=0.0,
        )
        settings = replace(settings, **changes)
        single_flight = SingleFlight()
        files = VerifiedFiles(single_flight, later)
        images = ImageResolver(make_image_store(settings, files, single_flight), single_flight)
        registry = DeviceRegistry(self._upstream)
        return UpdateHandler(
            settings,
            registry,
            Resolvers(images, None, Trust(None, None)),
            Commands(self._upstream),
            consumers=consumers,
        )

    def event(self, version: str, offset: int | None = None) -> Event:
        self._identity += 1
        status = {"version": version, **({"update": {"version": "1", "offset": offset}} if offset else {})}
        payload = json.dumps(status).encode()
        kind, media_type = "io.drogue.event.v1", "application/json"
        return Event(str(self._identity), "source", kind, "dfu", "example", "pump", None, media_type, payload)

    def report(self, version: str, offset: int | None = None) -> str:
        return self.handler.answer(self.event(version, offset), Deadline(10)).name


@pytest.fixture
def pump(tmp_path: Path) -> Iterator[Pump]:
    publish(tmp_path, "pump", "1", random_bytes(1024, 1))
    with Pump(tmp_path, Refuses()) as pump:
        yield pump


def is_command(request: Request) -> bool:
    return request.method == "POST"


def is_write(request: Request) -> bool:
    return request.method == "PUT"


def test_an_update_starts_swaps_and_succeeds(pump: Pump) -> None:
    steps = [("0", None), ("0", 512), ("0", 1024), ("1", None), ("1", None)]
    assert [pump.report(*step) for step in steps] == ["write", "write", "swap", "sync", "sync"]
    assert pump.consumer.subjects == ["started", "swapped", "succeeded"]
    started, _, succeeded = pump.consumer.transitions
    assert (started.from_version, started.to_version) == ("0", "1")
    assert (succeeded.from_version, succeeded.to_version) == ("0", "1")
    assert len({transition.checksum for transition in pump.consumer.transitions}) == 1


def test_an_update_rolls_back_until_it_is_given_up(pump: Pump) -> None:
    for _ in range(3):
        for offset in (None, 512, 1024):
            pump.report("0", offset)
        assert pump.report("0") == "withheld"
    assert pump.consumer.subjects == [*["started", "swapped", "rolled-back"] * 3, "gave-up"]
    assert [transition.attempts for transition in pump.consumer.transitions][-2:] == [3, 3]


def test_a_hold_and_a_failure_are_told_once(pump: Pump) -> None:
    pump.drogue.put("example", spec={"firmware": {"rollout": {"paused": True}}})
    assert [pump.report("0") for _ in range(2)] == ["withheld", "withheld"]
    pump.drogue.put_image("example", "pump", "pump:missing")
    assert [pump.report("0") for _ in range(2)] == ["failed", "failed"]
    assert pump.consumer.subjects == ["held", "failed"]


def test_a_command_refused_for_good_is_a_failure_told_once(pump: Pump) -> None:
    pump.refuses.applies, pump.refuses.status = is_command, 400
    assert [pump.report("0") for _ in range(2)] == ["failed", "failed"]
    assert pump.consumer.subjects == ["failed"]
    pump.refuses.applies = lambda _: False
    assert pump.report("0") == "write"
    assert pump.consumer.subjects == ["failed", "started"]


def test_an_answer_that_was_retried_has_no_transition(pump: Pump) -> None:
    pump.refuses.applies, pump.refuses.status = is_command, 503
    assert pump.report("0") == "retry"
    assert pump.consumer.subjects == []


def test_a_duplicate_has_no_transition(pump: Pump) -> None:
    event = pump.event("0")
    assert [pump.handler.answer(event, Deadline(10)).name for _ in range(2)] == ["write", "duplicate"]
    assert pump.consumer.subjects == ["started"]


def test_a_transition_that_could_not_be_reported_is_told_with_the_report(pump: Pump) -> None:
    pump.drogue.put("example", spec={"firmware": {"rollout": {"paused": True}}})
    pump.refuses.applies = is_write
    assert pump.report("0") == "withheld"
    assert pump.consumer.subjects == []
    pump.refuses.applies = lambda _: False
    pump.handler = pump.make_handler(pump.consumer)
    assert pump.report("0") == "withheld"
    assert pump.consumer.subjects == ["held"]


def test_two_processes_tell_a_transition_once(pump: Pump) -> None:
    pump.drogue.put("example", spec={"firmware": {"rollout": {"paused": True}}})
    other = pump.make_handler(pump.consumer, spec_ttl_seconds=3600.0)
    other.answer(pump.event("0"), Deadline(10))
    pump.report("0")
    other.answer(pump.event("0"), Deadline(10))
    assert pump.consumer.subjects == ["held"]


def test_a_process_that_did_not_know_of_the_swap_tells_the_success(pump: Pump) -> None:
    other = pump.make_handler(pump.consumer, spec_ttl_seconds=3600.0)
    assert other.answer(pump.event("0"), Deadline(10)).name == "write"
    assert [pump.report("0", offset) for offset in (512, 1024)] == ["write", "swap"]
    assert other.answer(pump.event("1"), Deadline(10)).name == "sync"
    assert pump.consumer.subjects == ["started", "swapped", "succeeded"]
    assert pump.drogue.reported("pump")["update"]["syncs"] == 1
    assert pump.report("1") == "sync"
    assert pump.consumer.subjects == ["started", "swapped", "succeeded"]


def test_without_reports_a_start_and_a_swap_are_told(pump: Pump) -> None:
    pump.handler = pump.make_handler(pump.consumer, report_status=False)
    for offset in (None, 512, 1024):
        pump.report("0", offset)
    assert pump.report("1") == "sync"
    assert pump.consumer.subjects == ["started", "swapped"]


def test_a_consumer_that_breaks_changes_no_answer(pump: Pump, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no consumer today")

    pump.handler = pump.make_handler(fail, pump.consumer)
    event = pump.event("0")
    assert pump.handler.answer(event, Deadline(10)).name == "write"
    assert pump.handler.answer(event, Deadline(10)).name == "duplicate"
    assert pump.consumer.subjects == ["started"]
    assert "no consumer today" in caplog.text
