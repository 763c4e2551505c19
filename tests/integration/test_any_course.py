"""A fleet under everything at once: whatever course things take, no device boots what nobody published, and all arrive.

Several pods, each with a memory of its own, answer the devices of one application. Time passes when a step says so, so
that what the pods remember is as old as it may become; what goes between them and their upstreams goes over sockets.
"""

import hashlib
import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
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

from fleet_fn.protocol.messages import Command, Swap, Sync, Write
from fleet_fn.sandbox.device_wire import Dialect, Encoding, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import CarefulDevice, CrateDevice, FirmwareManagerDevice, SimulatedDevice
from fleet_fn.settings import Settings
from fleet_fn.update.outcome import Outcome
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
#: Accepted SYNCs after which a device that reports early counts as having heard one, at least.
ENOUGH_SYNCS: Final = 2
PODS: Final = 3
#: How many courses are tried; `COURSES=3000` is for a long look.
COURSES: Final = int(os.environ.get("COURSES", "60"))
#: The seconds of the TTLs: of specs and records, and of tags.
TTLS: Final = st.sampled_from([(0.0, 0.0), (10.0, 30.0), (300.0, 300.0)])
#: Ranges that devices may follow, and the tags in them; the first versions are in each.
RANGES: Final[dict[str, Callable[[str], bool]]] = {
    "*": lambda _: True,
    "~0.1": lambda tag: tag.startswith("0.1."),
    "<0.3": lambda tag: not tag.startswith("0.3."),
}
#: Bytes of a firmware.
SIZES: Final = st.sampled_from([4, 64, 132, 200, 256, 520])
#: What kind of device, in which dialect, and the bytes of its blocks.
Made = tuple[type[SimulatedDevice], tuple[Dialect, Encoding], int]
CHARACTERS: Final[list[type[SimulatedDevice]]] = [CarefulDevice, FirmwareManagerDevice, CrateDevice]
MTUS: Final = st.sampled_from([32, 64, 68, 128, 512])
DEVICES: Final[st.SearchStrategy[Made]] = st.tuples(st.sampled_from(CHARACTERS), st.sampled_from(FORMS), MTUS)
#: Outcomes of statuses of devices that exist.
OUTCOMES: Final = {"sync", "write", "swap", "withheld", "stale", "duplicate", "failed", "retry", "wait"}


# --- Upstreams that fail once -----------------------------------------------------------------------------------------


class FailingDrogue(Drogue):
    """A Drogue Cloud that deals with the next request of a kind as it is told to."""

    def __init__(self) -> None:
        self.failures = Failures()
        super().__init__()

    def _answer(self, request: Request) -> Response | None:
        kind = {"GET": "read", "PUT": "report", "POST": "command"}[request.method]
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


def does_it_and_answers_502(request: Request, honest: Answer) -> Response:
    honest(request)
    return Response(502, b"")


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
    "does it and answers 502": does_it_and_answers_502,
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
    #: What the device runs, and the largest block that it asks for.
    version: bytes
    mtu: int
    since: float
    #: Seconds by which its time is ahead of the pods' clock.
    ahead: float = 0.0


#: States of something, each with the moment since which it holds.
History = list[tuple[float, Any]]


@dataclass
class Device:
    """A device, and what is under way from it."""

    name: str
    #: Makes another one in the place of one that was bricked.
    make: Callable[[], SimulatedDevice]
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
    #: SYNCs in a row that did not arrive, and when the last was sent.
    lost_syncs: int = 0
    sync_lost: float | None = None
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
        if self.simulated.is_bricked:
            assert self.is_confused, "it was bricked by what pods could know"
            self.simulated = self.make()
        self.listens = self.sync_lost = None
        self.lost_syncs = 0
        self.is_confused = False

    def change_mtu(self, mtu: int) -> None:
        self.mtu = self.simulated.mtu = mtu


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
        self.pods: list[Pod] = []
        self.fleet: list[Device] = []
        #: All that was ever published, and what comes up of it.
        self.published: list[Published] = []
        self.bootable: set[bytes] = set()
        #: By tag.
        self.tags: dict[str, Published] = {}
        self.tag_history: History = []
        self.source: dict[str, Any] = {}
        self.is_paused = False
        #: Devices on which a version may fail; None if any number may.
        self.max_failed: int | None = None
        #: The application's image, and whether it is paused.
        self.specs: History = []
        #: The versions that no device gets anything of.
        self.halts: History = [(-1000.0, frozenset())]
        self.lost_commands = 0
        self.wiped = self.moved = -1000.0

    def teardown(self) -> None:
        for pod in self.pods:
            pod.close()
        shutil.rmtree(self.folder)

    # --- The operator

    @initialize(
        target=devices, sizes=st.tuples(SIZES, SIZES), made=st.lists(DEVICES, min_size=2, max_size=4), ttls=TTLS
    )
    def begin(self, sizes: tuple[int, int], made: list[Made], ttls: tuple[float, float]) -> MultipleResults[Device]:
        self.settings = Settings(
            drogue_api_url=self.drogue.url,
            drogue_user=USER,
            drogue_token=TOKEN,
            firmware_registry=f"{self.registry.host}/",
            firmware_registry_insecure=True,
            firmware_cache_dir=str(self.folder),
            # Room for two or three of the firmwares.
            firmware_cache_bytes=2500,
            spec_ttl_seconds=ttls[0],
            manifest_ttl_seconds=ttls[1],
        )
        self.pods = [Pod(self.settings, self.clock) for _ in range(PODS)]
        for number, size in enumerate(sizes, start=1):
            self._publish(f"0.1.{number}", size, is_good=True)
        self._move("stable", self.published[0])
        self.source = {"container": {"image": f"{self.name}:stable"}}
        self._write_application()
        for number, (character, form, mtu) in enumerate(made):
            make = partial(character, b"0.1.0", mtu=mtu, bootable=self._comes_up)
            if character is CarefulDevice:
                make = partial(make, correlate=form[0] != "documented")
            device = Device(f"{self.name}-{number}", make, make(), form, mtu)
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
        self._outlive_wipes()
        chosen = self.published[number % len(self.published)]
        image = {"tag": f":{chosen.version}", "digest": f"@{chosen.digest}", "stable": ":stable"}.get(by)
        device.source = {"container": {"image": self.name + image}} if image else {}
        self._write_device(device)

    @rule(device=devices, versions=st.sampled_from(sorted(RANGES)))
    def name_range(self, device: Device, versions: str) -> None:
        self._outlive_wipes()
        device.source = {"container": {"image": self.name, "version": versions}}
        self._write_device(device)

    def _outlive_wipes(self) -> None:
        """Move a target only once no pod remembers a record that was wiped."""
        self.moved = self.clock()
        self.clock.now = max(self.clock.now, self.wiped + self.settings.spec_ttl_seconds + 3)

    @rule(device=devices, is_paused=st.booleans())
    def pause_device(self, device: Device, is_paused: bool) -> None:
        device.rollout = {**device.rollout, "paused": is_paused}
        self._write_device(device)

    @rule(is_paused=st.booleans())
    def pause_application(self, is_paused: bool) -> None:
        self.is_paused = is_paused
        self._write_application()

    @rule(most=st.sampled_from([1, 1, 2, None]))
    def limit_failures(self, most: int | None) -> None:
        self.max_failed = most
        self._write_application()

    @rule(number=st.integers(0, 9))
    def abort(self, number: int) -> None:
        rollout = self._rollout()
        aborted = [*rollout.get("aborted", []), self.published[number % len(self.published)].version]
        self._write_application(status={"firmware": {"rollout": {**rollout, "aborted": aborted}}})

    @rule()
    def resume(self) -> None:
        self._write_application(status={"firmware": {"rollout": {}}})

    @rule(size=SIZES, most=st.sampled_from([1, 2]), pods=st.lists(st.integers(0, PODS - 1), min_size=4, max_size=4))
    def roll_out_a_version_that_fails(self, size: int, most: int, pods: list[int]) -> None:
        self._publish(f"0.3.{len(self.published)}", size, is_good=False)
        self._move("stable", self.published[-1])
        self.limit_failures(most)
        self.clock.now += 1.1 * FRESH
        for device, pod in zip(self.fleet, pods, strict=False):
            for _ in range(_blocks(self._target(device), device) + 3):
                self._listen_to_the_end(device)
                if self._exchange(device, pod).name in ("withheld", "failed", "retry"):
                    break

    @rule(device=devices)
    def retry_device(self, device: Device) -> None:
        device.retry += "+"
        self._write_device(device)

    @rule(device=devices, midway=st.sampled_from(["finish", "restart"]))
    def choose_what_becomes_of_devices_midway(self, device: Device, midway: str) -> None:
        device.rollout = {**device.rollout, "midway": midway}
        self._write_device(device)

    @rule(device=devices)
    def wipe(self, device: Device) -> None:
        """Another tool replaces the object by one without status."""
        if not device.simulated.marked_good:
            return  # nothing tells a device that came up with a new version from one that always had it
        self._write_device(device, status={})
        # What the record knew of earlier bytes of its versions is lost with it. Nothing makes up for it if the same
        # version is published again with other bytes while pods remember the record.
        self.wiped = self.clock()
        if self.clock() - self.moved < self.settings.spec_ttl_seconds + 3:
            self._outlive_wipes()

    # --- Devices, and their line

    @rule(device=devices, mtu=MTUS)
    def change_mtu(self, device: Device, mtu: int) -> None:
        device.change_mtu(mtu)

    @rule(device=devices)
    def report(self, device: Device) -> None:
        if device.listens is None or self.clock() >= device.listens + LISTENS:
            self._report(device)

    @rule(device=devices, pod=st.integers(0, PODS - 1), ahead=st.sampled_from([2.0, 600.0, 3e8]))
    def report_with_a_time_ahead(self, device: Device, pod: int, ahead: float) -> None:
        self._listen_to_the_end(device)
        self._report(device, ahead=ahead)
        self._deliver(device, device.on_the_way.pop(), pod)

    @rule(device=devices, pods=st.tuples(st.integers(0, PODS - 1), st.integers(0, PODS - 1)))
    def publish_one_status_twice(self, device: Device, pods: tuple[int, int]) -> None:
        self._listen_to_the_end(device)
        if self.clock() - self.moved < 1.1 * FRESH:
            self.clock.now += 1.1 * FRESH  # two targets start twice
        self._report(device)
        delivery = device.on_the_way.pop()
        attributes = {**delivery.attributes, "id": f"{delivery.attributes['id']}-again"}
        twin = replace(delivery, attributes=attributes)
        sent = len(self.drogue.commands)
        self._deliver(device, delivery, pods[0])
        self.clock.now += 0.4
        self._deliver(device, twin, pods[1])
        starts = [c for c in self.drogue.commands[sent:] if _is_start(c)]
        assert len(starts) <= 1, "one status published twice started two updates"

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

    @rule(device=devices, number=st.integers(0, 9), pod=st.integers(0, PODS - 1), loses_sync=st.booleans())
    def move_the_target_between_swap_and_sync(self, device: Device, number: int, pod: int, loses_sync: bool) -> None:
        for _ in range(_blocks(self._target(device), device) + 2):
            self._listen_to_the_end(device)
            if self._exchange(device, pod).name in ("swap", "failed", "retry"):
                break
        self._move("stable", self.published[number % len(self.published)])
        self.clock.now += 1.1 * FRESH
        self.lost_commands += loses_sync
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
        for number, device in enumerate(self.fleet):
            # Devices that did not hear SYNC ask again soon.
            while device.sync_lost is not None and not device.is_confused:
                self._listen_to_the_end(device)
                self._exchange(device, number)
        self.is_paused, self.max_failed = False, None
        self.resume()
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
        # A SWAP and a SYNC; three SYNCs for a version that came up before; and if a swap came to nothing before, or is
        # found to have, a pause each.
        allowed = _blocks(target, device) + 2 + 3 + 2
        # The rest of what it has begun, a SWAP to that, and three SYNCs.
        allowed += -(-max(len(p.content) for p in self.published) // device.mtu) + 1 + 3 + 2
        # Orders to begin anew which it does not show to have heard, the failures that end these, and its reset.
        allowed += 9 + _blocks(target, device)
        taken = []
        while (device.simulated.version, device.simulated.marked_good) != (target.version.encode(), True):
            outcome = self._exchange(device, number)
            assert outcome.name in ("write", "swap", "sync", "withheld", "failed", "wait"), outcome
            if outcome.name == "failed":
                assert outcome.reason == "device-offset"
                if isinstance(device.simulated, FirmwareManagerDevice | CarefulDevice):
                    device.reset()
            if outcome.name == "wait":
                self.clock.now += self.settings.spec_ttl_seconds
            taken.append(outcome)
            assert len(taken) <= allowed, taken
        # Other bytes of the same version are all the same to it.
        contents = [p.content for p in self.published if p.version == target.version]
        assert device.simulated.image in [b"", *contents]

    def _listen_to_the_end(self, device: Device) -> None:
        if device.listens is not None:
            self.clock.now += max(0.0, device.listens + LISTENS - self.clock())
            device.listens = None

    def _report(self, device: Device, *, ahead: float = 0.0) -> None:
        if device.sync_lost is not None and self.clock() - device.sync_lost >= 45:
            # It would have asked again by now, as far as any pod can know.
            device.is_confused = True
        if device.simulated.is_bricked:
            device.reset()
        payload, content_type = encode_status(device.simulated.status(), *device.form)
        time = (wall(self.clock) + timedelta(seconds=ahead)).isoformat()
        attributes = event(device.name, self.name, datacontenttype=content_type, time=time)
        device.latest = Delivery(attributes, payload, device.simulated.version, device.mtu, self.clock(), ahead)
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
        outcome = self.pods[pod].answer(delivery.attributes, delivery.payload)
        note(f"{device.name}: {outcome}")
        assert outcome.name in OUTCOMES
        if delivery not in device.delivered:
            device.delivered.append(delivery)
        commands = self.drogue.commands[sent:]
        assert len(commands) <= 1, "a status was answered twice"
        self._note_halts()
        for command in commands:
            assert command.device == device.name
            self._check(device, delivery, command)
            if self.lost_commands:
                self.lost_commands -= 1
                self._loses(device, command)
            else:
                self._arrives(device, delivery, command)
        return outcome

    def _loses(self, device: Device, sent: SentCommand) -> None:
        command = decode_command(sent.payload, sent.content_type)[0]
        if isinstance(command, Sync) and not device.simulated.marked_good:
            device.lost_syncs += 1
            device.sync_lost = self.clock()
            if device.lost_syncs >= ENOUGH_SYNCS:
                device.is_confused = True

    def _arrives(self, device: Device, delivery: Delivery, sent: SentCommand) -> None:
        """The device takes a command for the answer to its latest status, if it listens."""
        if device.listens is None or self.clock() - device.listens >= LISTENS:
            self._loses(device, sent)
            return
        if delivery is not device.latest:
            # A time ahead of the clock hides some of a status's age, which nothing else tells.
            age = self.clock() - delivery.since - delivery.ahead
            assert age <= self.settings.event_max_age_seconds, "a status was answered that its device may have given up"
            device.is_confused = True
        device.listens = None
        boots, violations = len(device.simulated.boots), len(device.simulated.violations)
        command = decode_command(sent.payload, sent.content_type)
        if isinstance(command[0], Sync):
            device.lost_syncs, device.sync_lost = 0, None
        device.simulated.handle(*command)
        if not device.is_confused:
            assert not device.simulated.fallback_erased, "an update began before the device had heard SYNC"
        contents = {(p.version.encode(), hashlib.sha256(p.content).hexdigest()) for p in self.published}
        for boot in device.simulated.boots[boots:]:
            if device.is_careful or not device.is_confused:
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
                assert 0 < len(data) <= delivery.mtu
                assert any(
                    p.version.encode() == version and p.content[offset : offset + len(data)] == data
                    for p in self.published
                ), "these bytes are nobody's"
                if offset == 0:
                    assert any(p.version.encode() == version for p in wanted)
                age = FRESH if offset == 0 else max(FRESH, self.settings.spec_ttl_seconds)
                assert not self._is_halted(version, age), "a block of a version that failed too often"
            case Swap(version, checksum):
                # So at most maxFailed devices boot a version that fails on all of them, besides those that were told to
                # swap before the halt was a second old.
                assert not self._is_halted(version, FRESH), "a swap to a version that failed too often"
                assert wanted, "its updates are paused"
                begun = [boot.version for boot in device.simulated.boots[-1:]]
                if progress := device.simulated.progress:
                    begun.append(progress.version)
                assert any(
                    (p.version.encode(), p.checksum) == (version, checksum)
                    for p in self.published
                    if p in wanted or version in begun
                ), "that is neither its target nor what it has begun"

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
        self._outlive_wipes()
        self.tags[tag] = published
        self.tag_history.append((self.clock(), dict(self.tags)))

    def _write_application(self, **sections: Any) -> None:
        rollout = {"rollout": {"paused": self.is_paused, "maxFailed": self.max_failed}}
        self.drogue.put(self.name, spec={"firmware": {**self.source, **rollout}}, **sections)
        self.specs.append((self.clock(), (self.source, self.is_paused)))
        self._note_halts()

    def _rollout(self) -> dict[str, Any]:
        """What the application's object says of its rollout."""
        status = self.drogue.object(self.name).get("status", {})
        rollout = status.get("firmware", {}).get("rollout", {})
        assert isinstance(rollout, dict)
        return rollout

    def _note_halts(self) -> None:
        rollout = self._rollout()
        failed = rollout.get("failed", {})
        for version, entry in failed.items():
            assert entry["count"] == len(set(entry["devices"])) == len(entry["devices"]) <= len(self.fleet), version
        most = self.max_failed or len(self.fleet) + 1
        failing = {version for version, entry in failed.items() if entry["count"] >= most}
        halted = frozenset(failing.union(rollout.get("aborted", [])))
        if halted != self.halts[-1][1]:
            self.halts.append((self.clock(), halted))

    def _is_halted(self, version: bytes, age: float) -> bool:
        """Whether a version was halted in all that a pod may have read that read it so long ago, or later."""
        return all(version.decode() in halted for halted in self._seen(self.halts, age))

    def _write_device(self, device: Device, **sections: Any) -> None:
        firmware = {**device.source, "rollout": device.rollout, "retry": device.retry}
        self.drogue.put(self.name, device.name, spec={"firmware": firmware}, **sections)
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

    def _seen(self, states: History, age: float = FRESH) -> list[Any]:
        """The states that somebody may have seen who looked a moment ago, or looks now."""
        ends = [*[since for since, _ in states[1:]], self.clock()]
        return [state for (_, state), end in zip(states, ends, strict=True) if end >= self.clock() - age - 0.01]

    def _target(self, device: Device) -> Published:
        target = self._named(device.source or self.source, self.tags)
        assert target is not None
        return target

    def _named(self, source: dict[str, Any], tags: dict[str, Published]) -> Published | None:
        image = source["container"]["image"]
        if versions := source["container"].get("version"):
            found = [tag for tag in tags if tag != "stable" and RANGES[versions](tag)]
            return tags[max(found, key=lambda tag: tuple(map(int, tag.split("."))))]
        name, separator, reference = image.partition("@") if "@" in image else image.partition(":")
        assert name == self.name
        if separator == "@":
            return next(p for p in self.published if p.digest == reference)
        return tags.get(reference)

    def _comes_up(self, image: bytes, _version: bytes) -> bool:
        return image in self.bootable


def _is_start(sent: SentCommand) -> bool:
    command = decode_command(sent.payload, sent.content_type)[0]
    return isinstance(command, Write) and command.offset == 0


def _blocks(firmware: Published, device: Device) -> int:
    return -(-len(firmware.content) // device.mtu)


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FailingDrogue, FailingRegistry]]:
    with ExitStack() as stack:
        drogue, registry = FailingDrogue(), FailingRegistry(tmp_path_factory.mktemp("registry"))
        stack.enter_context(drogue)
        stack.enter_context(registry)
        yield drogue, registry


@pytest.mark.timeout(
    300 if COURSES <= 60 else 0
)  # where it finds something it takes its time to find the shortest way there
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
            max_examples=COURSES, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
