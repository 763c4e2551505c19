"""The use case: time that no socket could give a test, and lost answers between its steps."""

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
from fleet_fn.errors import TransientError
from fleet_fn.firmware.resolver import ImageResolver
from fleet_fn.firmware.trust import Trust
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from fleet_fn.parts import make_image_store
from fleet_fn.protocol.messages import Swap, Write
from fleet_fn.settings import Settings
from fleet_fn.update.handler import UpdateHandler
from fleet_fn.update.outcome import Outcome, OutcomeName
from fleet_fn.update.target import Resolvers
from tests.support.drogue import TOKEN, Drogue
from tests.support.files import later
from tests.support.firmware import publish, random_bytes
from tests.support.http import Answer, Request, Response

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


def updater(
    upstream: HttpClient, folder: Path, single_flight: SingleFlight, commands: Commands | None = None
) -> UpdateHandler:
    settings = Settings(
        drogue_api_url="unused",
        firmware_registry=f"oci-layout:{folder}",
        firmware_cache_dir=str(folder / "cache"),
        spec_ttl_seconds=3600.0,
        manifest_ttl_seconds=3600.0,
        event_max_age_seconds=0.0,
    )
    files = VerifiedFiles(single_flight, later)
    images = ImageResolver(make_image_store(settings, files, single_flight), single_flight)
    resolvers = Resolvers(images, None, Trust(None, None))
    return UpdateHandler(settings, DeviceRegistry(upstream), resolvers, commands or Commands(upstream))


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


# --- Lost answers -----------------------------------------------------------------------------------------------------

START = Event(
    "1", "source", "io.drogue.event.v1", "dfu", "example", "pump", None, "application/json", b'{"version": "0"}'
)


class LosesWrites:
    """Comes between a cloud and its clients; loses the answer to the first write, which the cloud stores or not."""

    def __init__(self, response: Response | None, *, stores: bool = True, pause: float = 0.0) -> None:
        self._response = response
        self._stores = stores
        self._pause = pause
        self.writes = 0

    def __call__(self, honest: Answer) -> Answer:
        def answer(request: Request) -> Response | None:
            self.writes += request.method == "PUT"
            if request.method != "PUT" or self.writes > 1:
                return honest(request)
            if self._stores:
                honest(request)
            time.sleep(self._pause)
            return self._response

        return answer


@pytest.fixture
def losing(request: pytest.FixtureRequest) -> Iterator[tuple[Drogue, HttpClient]]:
    with Drogue(through=request.param) as drogue:
        drogue.put("example", spec={})
        drogue.put_image("example", "pump", "pump:1")
        upstream = HttpClient("cloud", drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
        yield drogue, upstream
        upstream.close()


@pytest.mark.parametrize(
    "losing", [LosesWrites(None), LosesWrites(Response(503))], indirect=True, ids=["closed", "503"]
)
def test_a_start_is_sent_if_the_answer_to_its_record_is_lost(losing: tuple[Drogue, HttpClient], folder: Path) -> None:
    drogue, upstream = losing
    pumps = updater(upstream, folder, SingleFlight())
    assert pumps.answer(START, Deadline(10)).name == "write"
    assert pumps.answer(START, Deadline(10)).name == "duplicate"
    assert len(drogue.commands) == 1


@pytest.mark.parametrize("losing", [LosesWrites(None, pause=1.0)], indirect=True)
def test_a_redelivery_sends_a_start_whose_record_was_confirmed_too_late(
    losing: tuple[Drogue, HttpClient], folder: Path
) -> None:
    drogue, upstream = losing
    pumps = updater(upstream, folder, SingleFlight())
    assert pumps.answer(START, Deadline(0.5)).name == "retry"
    assert not drogue.commands
    assert pumps.answer(START, Deadline(10)).name == "write"
    assert len(drogue.commands) == 1


@pytest.mark.parametrize("losing", [LosesWrites(None, stores=False, pause=1.0)], indirect=True)
def test_a_start_that_another_process_sent_meanwhile_is_not_sent_again(
    losing: tuple[Drogue, HttpClient], folder: Path
) -> None:
    drogue, upstream = losing
    one, other = (updater(upstream, folder, SingleFlight()) for _ in range(2))
    assert one.answer(START, Deadline(0.5)).name == "retry"
    assert other.answer(START, Deadline(10)).name == "write"
    assert one.answer(START, Deadline(10)).name == "duplicate"
    assert len(drogue.commands) == 1


class Expired:
    """A token that the cloud refuses, and that cannot be renewed for the first time."""

    def __init__(self) -> None:
        self._is_renewed = False

    def header(self, _: Deadline) -> str:
        return f"Bearer {TOKEN}" if self._is_renewed else "Bearer expired"

    def refresh(self, _refused: str, _status: int, _deadline: Deadline) -> str | None:
        self._is_renewed = True
        raise TransientError("token endpoint: no answer in time")

    def close(self) -> None:
        """Nothing to close."""


def test_a_start_is_sent_again_if_its_refused_token_could_not_be_renewed(
    drogue: Drogue, upstream: HttpClient, folder: Path
) -> None:
    api = HttpClient("command API", drogue.url, authorization=Expired())
    pumps = updater(upstream, folder, SingleFlight(), Commands(api))
    assert pumps.answer(START, Deadline(10)) == Outcome(OutcomeName.RETRY, "token endpoint: no answer in time")
    assert not drogue.commands
    assert pumps.answer(START, Deadline(10)).name == "write"
    assert len(drogue.commands) == 1
    api.close()


def test_an_accepted_command_is_answered_even_if_its_report_breaks(
    upstream: HttpClient, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    pumps = updater(upstream, folder, SingleFlight())
    assert pumps.answer(START, Deadline(10)).name == "write"
    monkeypatch.setattr(DeviceRegistry, "report", fail)
    assert pumps.answer(status(512, "2"), Deadline(10)).name == "write"
    assert pumps.answer(status(512, "2"), Deadline(10)).name == "duplicate"
    assert "can't start new thread" in caplog.text
