"""Devices on lines that lose, repeat and reorder, against the real function: what they boot, and where they end."""

import hashlib
import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_fn.protocol.messages import Sync
from fleet_fn.sandbox.device_wire import Dialect, Encoding, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import CarefulDevice, FirmwareManagerDevice, SimulatedDevice
from tests.support.drogue import Drogue, SentCommand
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.statuses import FORMS

MTU = 64
#: Between two statuses of a device that hears nothing.
PAUSE = timedelta(seconds=25)


class Exchange(Enum):
    """What becomes of one status and its answer."""

    CLEAN = auto()
    STATUS_LOST = auto()
    ANSWER_LOST = auto()
    #: The same event is delivered twice.
    EVENT_REPEATED = auto()
    #: The status is published twice: two events.
    STATUS_REPEATED = auto()
    ANSWER_REPEATED = auto()
    #: The answer arrives after the next status's, or as the answer to it.
    ANSWER_LATE = auto()
    POWER_LOST = auto()
    TARGET_MOVED = auto()


class Line:
    """A device, its way to the function and back, and what it should run."""

    _names = itertools.count(1)

    def __init__(
        self,
        function: Function,
        drogue: Drogue,
        device: SimulatedDevice,
        form: tuple[Dialect, Encoding],
        targets: list[Published],
    ) -> None:
        self.name = f"line-{next(self._names)}"
        self.device = device
        self._function, self._drogue, self._form = function, drogue, form
        self._targets = iter(targets)
        drogue.put("example", spec={})
        self._late: list[SentCommand] = []
        self.was_stuck = False
        # Statuses come as far apart as a device's do that waits for its answer in vain, and so from the past.
        self._time = datetime.now(UTC) - timedelta(days=1)
        self.move_target()

    def move_target(self) -> None:
        target = next(self._targets, None)
        if target is None:
            return
        self.target = target
        # Attempts without end: what comes of this line is what is tested, not when somebody would give up.
        firmware = {"container": {"image": f"lines:{target.version}"}, "maxAttempts": 1000}
        self._drogue.put("example", self.name, spec={"firmware": firmware})
        self._function.post(event(self.name, type="io.drogue.registry.v1", subject="devices"), b"")

    def exchange(self, kind: Exchange = Exchange.CLEAN) -> None:
        if kind is Exchange.POWER_LOST:
            self.device.power_cycle()
            return
        if kind is Exchange.TARGET_MOVED:
            self.move_target()
            return
        dialect, encoding = self._form
        payload, content_type = encode_status(self.device.status(), dialect, encoding)
        self._time += PAUSE
        if kind is Exchange.STATUS_LOST:
            return
        attributes = event(self.name, datacontenttype=content_type, time=self._time.isoformat())
        sent = len(self._commands)
        self._post(attributes, payload)
        if kind is Exchange.EVENT_REPEATED:
            self._post(attributes, payload)
        if kind is Exchange.STATUS_REPEATED:
            again = event(self.name, datacontenttype=content_type, time=self._time.isoformat())
            self._post(again, payload)
        answers = self._commands[sent:]
        for answer in answers:
            command, _ = decode_command(answer.payload, answer.content_type)
            assert not isinstance(command, Sync) or command.version == self.device.version
        if kind is Exchange.ANSWER_REPEATED:
            answers = answers * 2
        if kind is Exchange.ANSWER_LATE:
            self._late += answers
            return
        if kind is not Exchange.ANSWER_LOST:
            for answer in [*answers, *self._late]:
                self.device.handle(*decode_command(answer.payload, answer.content_type))
            self._late.clear()

    @property
    def _commands(self) -> list[SentCommand]:
        return self._drogue.commands_for(self.name)

    def _post(self, attributes: dict[str, str | None], payload: bytes) -> None:
        answer = self._function.post(attributes, payload)
        if isinstance(self.device, FirmwareManagerDevice) and answer.status == 422:
            assert answer.reason == "device-offset"
            self.was_stuck = True
        else:
            assert answer.status == 204, answer.body


@pytest.fixture(scope="session")
def targets(firmware: Path) -> list[Published]:
    return [
        publish(firmware, "lines", f"0.1.{number}", random_bytes(size, number))
        for number, size in enumerate((640, 392, 1000, 64), start=1)
    ]


@pytest.fixture(scope="module")
def lines(environment: dict[str, str]) -> Iterator[Function]:
    with running(environment | {"EVENT_MAX_AGE_SECONDS": "0", "LOG_LEVEL": "ERROR"}) as function:
        yield function


def new_device(character: type[SimulatedDevice], form: tuple[Dialect, Encoding]) -> SimulatedDevice:
    if character is CarefulDevice:
        return CarefulDevice(b"0.1.0", mtu=MTU, correlate=form[0] != "documented")
    return FirmwareManagerDevice(b"0.1.0", mtu=MTU)


DISTURBANCES = st.lists(st.sampled_from(Exchange), max_size=25)
#: What makes a device that takes any answer for the one to its last status do something twice, or too late.
CONFUSING = {Exchange.STATUS_REPEATED, Exchange.ANSWER_REPEATED, Exchange.ANSWER_LATE}
#: Exchanges within which any of the targets is reached, the error pauses and roll-backs on the way included.
ENOUGH = 60


def run(line: Line, disturbances: list[Exchange]) -> None:
    for kind in disturbances:
        line.exchange(kind)


def bring_home(line: Line) -> None:
    """The line is clean from now on."""
    line.exchange()  # takes what is still under way
    for _ in range(ENOUGH):
        if line.device.version == line.target.version.encode() and line.device.marked_good:
            return
        line.exchange()


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(disturbances=DISTURBANCES, form=st.sampled_from(FORMS), first=st.permutations(range(4)))
def test_a_careful_device_swaps_to_published_bytes_only_and_ends_on_the_target(
    lines: Function,
    drogue: Drogue,
    targets: list[Published],
    disturbances: list[Exchange],
    form: tuple[Dialect, Encoding],
    first: list[int],
) -> None:
    device = new_device(CarefulDevice, form)
    line = Line(lines, drogue, device, form, [targets[index] for index in first])
    run(line, disturbances)
    bring_home(line)
    published = {target.version.encode(): target.checksum.hex() for target in targets}
    assert all(published[boot.version] == boot.sha256 == boot.announced for boot in device.boots)
    assert device.image == line.target.content
    assert device.marked_good


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(disturbances=DISTURBANCES, form=st.sampled_from(FORMS), first=st.permutations(range(4)))
def test_a_device_with_the_fields_habits_ends_on_the_target(
    lines: Function,
    drogue: Drogue,
    targets: list[Published],
    disturbances: list[Exchange],
    form: tuple[Dialect, Encoding],
    first: list[int],
) -> None:
    contents = {target.version.encode(): target.content for target in targets}
    device = FirmwareManagerDevice(b"0.1.0", mtu=MTU, bootable=lambda image, version: contents.get(version) == image)
    line = Line(lines, drogue, device, form, [targets[index] for index in first])
    run(line, disturbances)
    if Exchange.TARGET_MOVED in disturbances:
        line.exchange()
        device.power_cycle()
    bring_home(line)
    if not CONFUSING & set(disturbances):
        assert all(hashlib.sha256(contents[boot.version]).hexdigest() == boot.sha256 for boot in device.boots)
    assert hashlib.sha256(device.image).digest() == line.target.checksum
    assert device.marked_good


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("character", [CarefulDevice, FirmwareManagerDevice])
def test_on_a_clean_line_an_update_takes_the_blocks_that_arithmetic_demands(
    lines: Function,
    drogue: Drogue,
    targets: list[Published],
    form: tuple[Dialect, Encoding],
    character: type[SimulatedDevice],
) -> None:
    device = new_device(character, form)
    line = Line(lines, drogue, device, form, targets)
    blocks = -(-len(line.target.content) // MTU)
    for _ in range(blocks + 2):  # and a SWAP, and a SYNC
        line.exchange()
    assert device.image == line.target.content
    assert device.marked_good
    assert len(device.boots) == 1
    assert not device.violations
