"""A fleet under everything at once: whatever course things take, no device boots what nobody published, and all arrive.

Several pods, each with a memory of its own, answer the devices of one application. Time passes when a step says so, so
that what the pods remember is as old as it may become; what goes between them and their upstreams goes over sockets.
"""

import hashlib
import itertools
import math
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    rule,
    run_state_machine_as_test,
)

from fleet_fn.cli.device_wire import Dialect, Encoding, decode_command, encode_status
from fleet_fn.cli.simulated_device import CarefulDevice, FirmwareManagerDevice, SimulatedDevice
from fleet_fn.protocol.messages import Command, Swap, Sync, Write
from fleet_fn.settings import Settings
from fleet_fn.update import Outcome
from tests.support.drogue import TOKEN, USER, Drogue, SentCommand
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import event
from tests.support.hostile import cut, hang_up, reset
from tests.support.http import Answer, Request, Response
from tests.support.pod import Pod, wall
from tests.support.statuses import FORMS
from tests.support.timing import Clock

#: Seconds that a device listens for the answer to a status.
LISTENS: Final = 30.0
#: Seconds for which a change may be unknown to whoever starts or ends an update.
FRESH: Final = 1.0
#: Seconds for which nothing is reported, at most, of a device whose object could not be written.
UNREPORTED: Final = 60.0
PODS: Final = 2
#: Bytes of a firmware.
SIZES: Final = st.sampled_from([4, 64, 132, 200, 256, 520])
#: What kind of device, in which dialect, and the bytes of its blocks.
Made = tuple[type[SimulatedDevice], tuple[Dialect, Encoding], int]
CHARACTERS: Final[list[type[SimulatedDevice]]] = [CarefulDevice, FirmwareManagerDevice]
DEVICES: Final[st.SearchStrategy[Made]] = st.tuples(
    st.sampled_from(CHARACTERS), st.sampled_from(FORMS), st.sampled_from([32, 64, 68, 512])
)
#: Outcomes of statuses of devices that exist.
OUTCOMES: Final = {"sync", "write", "swap", "withheld", "stale", "duplicate", "failed", "retry", "wait"}


# --- Upstreams that fail once -----------------------------------------------------------------------------------------


class FailingDrogue(Drogue):
    """A Drogue Cloud that deals with the next request of a kind as it is told to."""

    def __init__(self) -> None:
        self.failures = Failures()
        #: Devices whose objects could not be written in the exchange that goes on.
        self.unwritten: set[str] = set()
        super().__init__()

    def _answer(self, request: Request) -> Response | None:
        kind = {"GET": "read", "PUT": "report", "POST": "command"}[request.method]
        if kind == "report" and self.failures.due.get(kind):
            self.unwritten.add(request.path.rpartition("/")[2])
        return self.failures.answer(kind, request, super()._answer)


class FailingRegistry(FakeRegistry):
    """A registry that does."""

    def __init__(self, folder: Path) -> None:
        self.failures = Failures()
        super().__init__(folder)

    def _answer(self, request: Request) -> Response | None:
        kind = "manifest" if "/manifests/" in request.path else "blob"
        return self.failures.answer(kind, request, super()._answer)


class Failures:
    """What is to go wrong with the next requests of each kind."""

    def __init__(self) -> None:
        self.due: dict[str, deque[Failure]] = {}

    def answer(self, kind: str, request: Request, honest: Answer) -> Response | None:
        due = self.due.get(kind)
        return due.popleft()(request, honest) if due else honest(request)


#: Deals with a request; the second argument is what would be answered else.
Failure = Callable[[Request, Answer], Response | None]


def says(status: int, body: bytes = b"", **headers: str) -> Failure:
    return lambda _request, _honest: Response(status, body, {name.replace("_", "-"): v for name, v in headers.items()})


def hangs_up(request: Request, _: Answer) -> None:
    hang_up(request)


def resets(request: Request, _: Answer) -> None:
    reset(request)


def does_it_and_resets(request: Request, honest: Answer) -> None:
    honest(request)
    reset(request)


def cuts(request: Request, honest: Answer) -> Response | None:
    response = honest(request)
    assert response is not None
    return cut(response, len(response.body) // 2)(request)


def flips_a_bit(request: Request, honest: Answer) -> Response | None:
    response = honest(request)
    assert response is not None
    changed = response.body[:-1] + bytes([response.body[-1] ^ 1]) if response.body else b""
    return Response(response.status, changed, response.headers)


#: What becomes of an answer, by the kind of the request.
EVERYWHERE: Final[dict[str, Failure]] = {
    "503": says(503, Retry_After="1"),
    "500": says(500),
    "429": says(429, Retry_After="2"),
    "403": says(403),
    "404": says(404),
    "hangs up": hangs_up,
    "resets": resets,
    "does it and resets": does_it_and_resets,
    "sends elsewhere": says(302, Location="http://127.0.0.1:9/"),
}
FAILURES: Final[dict[str, dict[str, Failure]]] = {
    "read": {
        **EVERYWHERE,
        "cuts": cuts,
        "no JSON": says(200, b"<html>"),
        "no object": says(200, b"[]"),
        "spec is a list": says(200, b'{"metadata": {}, "spec": []}'),
        "firmware is a list": says(200, b'{"metadata": {}, "spec": {"firmware": []}}'),
    },
    "report": {**EVERYWHERE, "409": says(409), "400": says(400)},
    "command": {**EVERYWHERE, "406": says(406), "200": says(200, b"lost on the way")},
    "manifest": {**EVERYWHERE, "cuts": cuts, "flips a bit": flips_a_bit, "no JSON": says(200, b"<html>")},
    "blob": {**EVERYWHERE, "cuts": cuts, "flips a bit": flips_a_bit, "short": says(200, b"short")},
}
FAILURE_NAMES: Final = [f"{kind}: {name}" for kind, named in FAILURES.items() for name in named]
#: Exchanges of one device: with which pod, and what fails meanwhile.
EXCHANGES: Final = st.lists(
    st.tuples(st.integers(0, PODS - 1), st.none() | st.none() | st.none() | st.sampled_from(FAILURE_NAMES)),
    min_size=1,
    max_size=16,
)


# --- Devices ----------------------------------------------------------------------------------------------------------


@dataclass
class Delivery:
    """A status on its way, or that was."""

    attributes: dict[str, str | None]
    payload: bytes
    #: What the device runs.
    version: bytes
    since: float


#: States of something, each with the moment since which it holds.
History = list[tuple[float, Any]]


@dataclass
class Device:
    """A device, and what is under way from it."""

    name: str
    simulated: SimulatedDevice
    form: tuple[Dialect, Encoding]
    mtu: int
    #: When it began to listen for an answer; None while it does not.
    listens: float | None = None
    latest: Delivery | None = None
    on_the_way: list[Delivery] = field(default_factory=list)
    delivered: deque[Delivery] = field(default_factory=lambda: deque(maxlen=3))
    #: Since its last reset an answer to an earlier status came as the answer to a later one. No pod can know where
    #: that status was not answered before, or by another pod, or so that its acceptance got lost.
    is_confused: bool = False
    #: The registry has taken no note of its update since its first block, and it was told to go on without one. Nobody
    #: can tell then whether what it has was taken from the bytes that its target has by now.
    is_unnoted: bool = False
    #: When it was sent its first block, and when its object could not be written last.
    begun: float = 0.0
    unwritten: float = -math.inf
    #: Sections of its own.
    source: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)
    retry: str = "0"
    #: Its image, if it names one, and whether it is paused, if it says so.
    specs: History = field(default_factory=list)

    @property
    def is_careful(self) -> bool:
        return isinstance(self.simulated, CarefulDevice)

    def reset(self) -> None:
        self.simulated.power_cycle()
        self.listens = None
        self.is_confused = False


class FleetMachine(RuleBasedStateMachine):
    """Devices, pods, an operator who changes his mind, and upstreams that fail."""

    drogue: FailingDrogue
    registry: FailingRegistry
    _names = itertools.count(1)

    devices = Bundle("devices")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.name = f"fleet-{next(self._names)}"
        self.folder = Path(mkdtemp())
        self.settings = Settings(
            drogue_api_url=self.drogue.url,
            drogue_user=USER,
            drogue_token=TOKEN,
            firmware_registry=f"{self.registry.host}/",
            firmware_registry_insecure=True,
            firmware_cache_dir=str(self.folder),
            # Room for two or three of the firmwares.
            firmware_cache_bytes=2500,
        )
        self.pods = [Pod(self.settings, self.clock) for _ in range(PODS)]
        self.fleet: list[Device] = []
        #: All that was ever published, and what comes up of it.
        self.published: list[Published] = []
        self.bootable: set[bytes] = set()
        #: By tag.
        self.tags: dict[str, Published] = {}
        self.tag_history: History = []
        self.source: dict[str, Any] = {}
        self.is_paused = False
        #: The application's image, and whether it is paused.
        self.specs: History = []
        self.lost_commands = 0

    def teardown(self) -> None:
        for pod in self.pods:
            pod.close()
        shutil.rmtree(self.folder)

    # --- The operator

    @initialize(target=devices, sizes=st.tuples(SIZES, SIZES), made=st.lists(DEVICES, min_size=2, max_size=4))
    def begin(self, sizes: tuple[int, int], made: list[Made]) -> MultipleResults[Device]:
        for number, size in enumerate(sizes, start=1):
            self._publish(f"0.1.{number}", size, is_good=True)
        self._move("stable", self.published[0])
        self.source = {"container": {"image": f"{self.name}:stable"}}
        self._write_application()
        for number, (character, form, mtu) in enumerate(made):
            simulated: SimulatedDevice
            if character is CarefulDevice:
                correlates = form[0] != "documented"
                simulated = CarefulDevice(b"0.1.0", mtu=mtu, bootable=self._comes_up, correlate=correlates)
            else:
                simulated = FirmwareManagerDevice(b"0.1.0", mtu=mtu, bootable=self._comes_up)
            device = Device(f"{self.name}-{number}", simulated, form, mtu)
            self.fleet.append(device)
            self._write_device(device)
        return multiple(*self.fleet)

    @rule(size=SIZES, is_good=st.sampled_from([True, True, True, False]))
    def publish(self, size: int, is_good: bool) -> None:
        self._publish(f"0.2.{len(self.published)}", size, is_good=is_good)
        self._move("stable", self.published[-1])

    @rule(number=st.integers(0, 9))
    def move_tag_back(self, number: int) -> None:
        self._move("stable", self.published[number % len(self.published)])

    @rule(number=st.integers(0, 9))
    def publish_other_bytes_under_the_same_version(self, number: int) -> None:
        """What `publish` refuses to do unless it is forced to, and other tools do when told."""
        earlier = self.published[number % len(self.published)]
        content = random_bytes(len(earlier.content), (self.name, len(self.published)))
        self.bootable.add(content)
        for tag in (earlier.version, "stable"):
            self._tag(tag, publish(self.registry.folder, self.name, earlier.version, content, tag))
        self.published.append(self.tags["stable"])
        # Two processes that look at different moments of the same second are told apart by nothing.
        self.clock.now += 1.1 * FRESH

    @rule(device=devices, number=st.integers(0, 9), by=st.sampled_from(["tag", "digest", "stable", "application"]))
    def name_firmware(self, device: Device, number: int, by: str) -> None:
        chosen = self.published[number % len(self.published)]
        image = {"tag": f":{chosen.version}", "digest": f"@{chosen.digest}", "stable": ":stable"}.get(by)
        device.source = {"container": {"image": self.name + image}} if image else {}
        self._write_device(device)

    @rule(device=devices, is_paused=st.booleans())
    def pause_device(self, device: Device, is_paused: bool) -> None:
        device.rollout = {"paused": is_paused}
        self._write_device(device)

    @rule(is_paused=st.booleans())
    def pause_application(self, is_paused: bool) -> None:
        self.is_paused = is_paused
        self._write_application()

    @rule(device=devices)
    def retry_device(self, device: Device) -> None:
        device.retry += "+"
        self._write_device(device)

    # --- Devices, and their line

    @rule(device=devices)
    def report(self, device: Device) -> None:
        if device.listens is None or self.clock() >= device.listens + LISTENS:
            self._report(device)

    @rule(device=devices, number=st.integers(0, 3), pod=st.integers(0, PODS - 1))
    def deliver(self, device: Device, number: int, pod: int) -> None:
        if device.on_the_way:
            self._deliver(device, device.on_the_way.pop(number % len(device.on_the_way)), pod)

    @rule(device=devices, number=st.integers(0, 2), pod=st.integers(0, PODS - 1))
    def deliver_again(self, device: Device, number: int, pod: int) -> None:
        if device.delivered:
            self._deliver(device, device.delivered[number % len(device.delivered)], pod)

    @rule(device=devices, exchanges=EXCHANGES)
    def go_on(self, device: Device, exchanges: list[tuple[int, str | None]]) -> None:
        """So that things get somewhere at all."""
        for pod, failure in exchanges:
            if failure is not None:
                kind, _, name = failure.partition(": ")
                self._fail_next(kind, name)
            self._listen_to_the_end(device)
            self._exchange(device, pod)

    @rule(device=devices, number=st.integers(0, 9), pod=st.integers(0, PODS - 1), pauses=st.booleans())
    def change_the_target_of_a_device_that_has_all_of_it(
        self, device: Device, number: int, pod: int, pauses: bool
    ) -> None:
        target = self._target(device)
        for _ in range(_blocks(target, device) + 1):
            self._listen_to_the_end(device)
            self._exchange(device, pod)
            progress = device.simulated.progress
            if progress and (progress.version, progress.offset) == (target.version.encode(), len(target.content)):
                break
        if pauses:
            self.pause_device(device, True)
        else:
            self._move("stable", self.published[number % len(self.published)])
        self.clock.now += 1.1 * FRESH
        self._exchange(device, pod)

    @rule(device=devices)
    def lose_status(self, device: Device) -> None:
        if device.on_the_way:
            device.on_the_way.pop()

    @rule()
    def lose_command(self) -> None:
        self.lost_commands += 1

    @rule(device=devices)
    def lose_power(self, device: Device) -> None:
        device.reset()

    # --- Time, pods and upstreams

    @rule(seconds=st.sampled_from([0.3, 1.1, 5.0, 12.0, 26.0, 31.0, 3600.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(pod=st.integers(0, PODS - 1))
    def restart(self, pod: int) -> None:
        self.pods[pod].close()
        self.pods[pod] = Pod(self.settings, self.clock)

    @rule(number=st.integers(0, 9))
    def damage_cache(self, number: int) -> None:
        files = sorted(path for path in self.folder.iterdir() if path.is_file())
        if files:
            content = files[number % len(files)].read_bytes()
            files[number % len(files)].write_bytes(content[:-1] + b"?")

    @rule(failure=st.sampled_from(FAILURE_NAMES))
    def fail_next(self, failure: str) -> None:
        kind, _, name = failure.partition(": ")
        self._fail_next(kind, name)

    def _fail_next(self, kind: str, name: str) -> None:
        failures = self.drogue.failures if kind in ("read", "report", "command") else self.registry.failures
        failures.due.setdefault(kind, deque()).append(FAILURES[kind][name])

    # --- What becomes of it

    def in_the_end(self) -> None:
        """Once nothing fails any more every device arrives, in as many exchanges as that takes."""
        self.drogue.failures.due.clear()
        self.registry.failures.due.clear()
        self.lost_commands = 0
        self.is_paused = False
        self._write_application()
        for device in self.fleet:
            device.rollout = {}
            device.retry += "+"
            device.listens = None
            device.on_the_way.clear()
            if device.is_confused:
                device.reset()
            self._write_device(device)
        self.clock.now += 3600
        for device in self.fleet:
            if self._target(device).content not in self.bootable:
                good = next(p for p in self.published if p.content in self.bootable)
                device.source = {"container": {"image": f"{self.name}@{good.digest}"}}
                self._write_device(device)
        self.clock.now += 3600
        for number, device in enumerate(self.fleet):
            self._arrive(device, number)

    def _arrive(self, device: Device, number: int) -> None:
        target = self._target(device)
        # A SWAP and a SYNC; and where a swap came to nothing before, or is found to have, a pause each.
        allowed = _blocks(target, device) + 2 + 2
        if not device.is_careful:
            # Orders to begin anew which it does not show to have heard, the failure that ends these, and its reset.
            allowed += 7
        # Where it has a mixture, which does not come up.
        all_again = 0
        taken = []
        while (device.simulated.version, device.simulated.marked_good) != (target.version.encode(), True):
            outcome = self._exchange(device, number)
            assert outcome.name in ("write", "swap", "sync", "withheld", "failed"), outcome
            if outcome.name == "failed":
                assert outcome.reason == "device-offset"
                device.reset()
            taken.append(outcome)
            if device.is_unnoted:
                all_again = _blocks(target, device) + 2
            assert len(taken) <= allowed + all_again, taken
        # Other bytes of the same version are all the same to it.
        contents = [p.content for p in self.published if p.version == target.version]
        assert device.simulated.image in [b"", *contents]

    def _listen_to_the_end(self, device: Device) -> None:
        if device.listens is not None:
            self.clock.now += max(0.0, device.listens + LISTENS - self.clock())
            device.listens = None

    def _report(self, device: Device) -> None:
        payload, content_type = encode_status(device.simulated.status(), *device.form)
        attributes = event(device.name, self.name, datacontenttype=content_type, time=wall(self.clock).isoformat())
        device.latest = Delivery(attributes, payload, device.simulated.version, self.clock())
        device.on_the_way.append(device.latest)
        device.listens = self.clock()

    def _exchange(self, device: Device, pod: int) -> Outcome:
        self._report(device)
        outcome = self._deliver(device, device.on_the_way.pop(), pod % PODS)
        device.listens = None
        self.clock.now += 1  # it rests a while
        return outcome

    def _deliver(self, device: Device, delivery: Delivery, pod: int) -> Outcome:
        sent = len(self.drogue.commands)
        is_noted = self._is_noted(device)
        outcome = self.pods[pod].answer(delivery.attributes, delivery.payload)
        note(f"{device.name}: {outcome}")
        if device.name in self.drogue.unwritten:
            self.drogue.unwritten.remove(device.name)
            device.unwritten = self.clock()
        assert outcome.name in OUTCOMES
        if delivery not in device.delivered:
            device.delivered.append(delivery)
        commands = self.drogue.commands[sent:]
        assert len(commands) <= 1, "a status was answered twice"
        for command in commands:
            assert command.device == device.name
            self._check(device, delivery, command)
            if self.lost_commands:
                self.lost_commands -= 1
            else:
                self._arrives(device, delivery, command, is_noted=is_noted)
        return outcome

    def _is_noted(self, device: Device) -> bool:
        """Whether the registry knows which bytes the device's blocks so far were taken from, or ought to.

        It need not, where since the first of them, or shortly before that, it could not be written.
        """
        status = self.drogue.object(self.name, device.name).get("status", {})
        noted = status.get("firmware", {}).get("update", {}).get("version")
        progress = device.simulated.progress
        is_known = progress is None or noted == progress.version.decode()
        return is_known or device.unwritten < device.begun - UNREPORTED

    def _arrives(self, device: Device, delivery: Delivery, sent: SentCommand, *, is_noted: bool) -> None:
        """The device takes a command for the answer to its latest status, if it listens."""
        if device.listens is None or self.clock() - device.listens >= LISTENS:
            return
        if delivery is not device.latest:
            age = self.clock() - delivery.since
            assert age <= self.settings.event_max_age, "a status was answered that its device may have given up"
            device.is_confused = True
        device.listens = None
        boots, violations = len(device.simulated.boots), len(device.simulated.violations)
        command = decode_command(sent.payload, sent.content_type)
        if isinstance(command[0], Write) and command[0].offset == 0:
            device.is_unnoted, device.begun = False, self.clock()
        elif isinstance(command[0], Write | Swap) and not is_noted:
            device.is_unnoted = True
        device.simulated.handle(*command)
        if isinstance(command[0], Swap) and not device.is_careful:
            # These mark their firmware good themselves: the function may begin the next update before it says SYNC.
            device.simulated.marked_good = True
        contents = {(p.version.encode(), hashlib.sha256(p.content).hexdigest()) for p in self.published}
        for boot in device.simulated.boots[boots:]:
            if device.is_careful or not (device.is_confused or device.is_unnoted):
                assert (boot.version, boot.sha256) in contents, "it boots what nobody published"
                assert boot.sha256 == boot.announced
        if not device.is_confused:
            assert not device.simulated.violations[violations:]

    def _check(self, device: Device, delivery: Delivery, sent: SentCommand) -> None:
        """What holds of every command, whether or not it arrives."""
        command: Command = decode_command(sent.payload, sent.content_type)[0]
        wanted = self._wanted(device)
        match command:
            case Sync(version):
                assert version == delivery.version
            case Write(version, offset, data):
                assert 0 < len(data) <= device.mtu
                assert any(
                    p.version.encode() == version and p.content[offset : offset + len(data)] == data
                    for p in self.published
                ), "these bytes are nobody's"
                if offset == 0:
                    assert any(p.version.encode() == version for p in wanted)
            case Swap(version, checksum):
                assert any((p.version.encode(), p.checksum) == (version, checksum) for p in wanted), (
                    "that is not its target"
                )

    # --- What is wanted

    def _publish(self, version: str, size: int, *, is_good: bool) -> None:
        content = random_bytes(size, (self.name, version))
        published = publish(self.registry.folder, self.name, version, content)
        self.published.append(published)
        self._tag(version, published)
        if is_good:
            self.bootable.add(content)

    def _move(self, tag: str, published: Published) -> None:
        self._tag(tag, publish(self.registry.folder, self.name, published.version, published.content, tag))

    def _tag(self, tag: str, published: Published) -> None:
        self.tags[tag] = published
        self.tag_history.append((self.clock(), dict(self.tags)))

    def _write_application(self) -> None:
        rollout = {"rollout": {"paused": True}} if self.is_paused else {}
        self.drogue.put(self.name, spec={"firmware": {**self.source, **rollout}})
        self.specs.append((self.clock(), (self.source, self.is_paused)))

    def _write_device(self, device: Device) -> None:
        firmware = {**device.source, "rollout": device.rollout, "retry": device.retry}
        self.drogue.put(self.name, device.name, spec={"firmware": firmware})
        device.specs.append((self.clock(), (device.source, device.rollout.get("paused"))))

    def _wanted(self, device: Device) -> list[Published]:
        """What it may be sent: what comes of any states of its spec, of its application's and of the tags a moment ago.

        Each of the three is looked up by itself.
        """
        seen = (self._seen(states) for states in (device.specs, self.specs, self.tag_history))
        named = [
            self._named(own or shared, tags)
            for (own, own_pause), (shared, shared_pause), tags in itertools.product(*seen)
            if not (shared_pause if own_pause is None else own_pause)
        ]
        return [published for published in named if published is not None]

    def _seen(self, states: History) -> list[Any]:
        """The states that somebody may have seen who looked a moment ago, or looks now."""
        ends = [*[since for since, _ in states[1:]], self.clock()]
        return [state for (_, state), end in zip(states, ends, strict=True) if end >= self.clock() - FRESH - 0.01]

    def _target(self, device: Device) -> Published:
        target = self._named(device.source or self.source, self.tags)
        assert target is not None
        return target

    def _named(self, source: dict[str, Any], tags: dict[str, Published]) -> Published | None:
        image = source["container"]["image"]
        name, separator, reference = image.partition("@") if "@" in image else image.partition(":")
        assert name == self.name
        if separator == "@":
            return next(p for p in self.published if p.digest == reference)
        return tags.get(reference)

    def _comes_up(self, image: bytes, _version: bytes) -> bool:
        return image in self.bootable


def _blocks(firmware: Published, device: Device) -> int:
    return -(-len(firmware.content) // device.mtu)


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FailingDrogue, FailingRegistry]]:
    with ExitStack() as stack:
        drogue, registry = FailingDrogue(), FailingRegistry(tmp_path_factory.mktemp("registry"))
        stack.enter_context(drogue)
        stack.enter_context(registry)
        yield drogue, registry


@pytest.mark.timeout(300)  # where it finds something it takes its time to find the shortest way there
def test_whatever_course_things_take_no_device_boots_what_nobody_published_and_all_arrive(
    upstreams: tuple[FailingDrogue, FailingRegistry],
) -> None:
    class Machine(FleetMachine):
        drogue, registry = upstreams

        def teardown(self) -> None:
            try:
                self.in_the_end()
            finally:
                super().teardown()

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=60, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
