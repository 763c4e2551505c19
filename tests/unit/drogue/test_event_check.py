"""Whether registry events of our own writes come back, and what is said if they do not."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.device_registry import DeviceRegistry
from fleet_fn.drogue.status_report import IN_SYNC, Condition, Report
from fleet_fn.errors import PermanentError
from fleet_fn.http.authorization import Fixed
from fleet_fn.http.client import HttpClient
from tests.support.drogue import TOKEN, Drogue
from tests.support.http import Request, Response
from tests.support.timing import Clock

WARNING = "registry events of {} of 20 writes came to this process"


class Writer:
    """Writes reports of one device after another."""

    def __init__(self, drogue: Drogue) -> None:
        self.drogue = drogue
        self.clock = Clock()
        self.upstream = HttpClient("cloud", drogue.url, authorization=Fixed(f"Bearer {TOKEN}"))
        self.registry = DeviceRegistry(self.upstream, clock=self.clock)
        self.registry.remember_in_sync(1800.0)
        self._number = 0

    def write(self) -> str:
        self._number += 1
        device = f"device-{self._number}"
        self.drogue.put("fleet", device, spec={})
        report = Report("1", "1", (Condition(IN_SYNC, "True"),))
        self.registry.report("fleet", device, report, datetime.now(UTC), Deadline(10))
        return device

    def pass_time(self) -> None:
        """Wait for longer than an event takes, and let the check see that."""
        self.clock.now += 61
        self.registry.forget("fleet", self.write())


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Drogue() as drogue:
        drogue.put("fleet", spec={})
        writer = Writer(drogue)
        yield writer
        writer.upstream.close()


@pytest.mark.parametrize(("came", "is_told"), [(20, False), (18, False), (17, True), (0, True)])
def test_missing_events_are_warned_of(
    writer: Writer, caplog: pytest.LogCaptureFixture, came: int, is_told: bool
) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            device = writer.write()
            if number < came:
                writer.registry.forget("fleet", device)
        writer.pass_time()
    assert (WARNING.format(came) in caplog.text) is is_told


def test_one_warning_a_day_is_enough(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            writer.write()
            writer.pass_time()
            writer.clock.now += 800
    assert caplog.text.count("registry events of") == 1


def test_a_write_that_is_refused_raises_no_event(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(1, 26):
            writer.drogue.write_answers["fleet", f"device-{number}"] = lambda _: Response(413)
            with pytest.raises(PermanentError):
                writer.write()
        writer.pass_time()
    assert "registry events of" not in caplog.text


def test_an_event_may_come_before_its_write_has_ended(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(1, 26):

            def answer(_: Request, device: str = f"device-{number}") -> Response:
                writer.registry.forget("fleet", device)
                return Response(204)

            writer.drogue.write_answers["fleet", f"device-{number}"] = answer
            writer.write()
        writer.pass_time()
    assert "registry events of" not in caplog.text


def test_others_changes_prove_nothing(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            writer.write()
            writer.registry.forget("fleet", f"other-{number}")
        writer.pass_time()
    assert WARNING.format(0) in caplog.text
