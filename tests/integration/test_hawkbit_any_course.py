"""Devices of hawkBit under everything at once: no device boots what hawkBit did not assign, and all arrive.

Several pods, each with a memory of its own, answer the devices. An operator assigns, cancels, confirms, and opens and
closes windows. Pods are restarted, commands get lost, and hawkBit fails. Time passes when a step says so.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import pytest
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from fleet_fn.protocol.messages import Command, Swap, Sync, Write
from fleet_fn.sandbox.device_wire import Dialect, Encoding, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import CarefulDevice, CrateDevice, FirmwareManagerDevice, SimulatedDevice
from fleet_fn.settings import Settings
from fleet_fn.update.outcome import Outcome
from tests.support.ddi import Action, FakeHawkbit, module
from tests.support.ddi.fake import TENANT
from tests.support.ddi.fake import TOKEN as GATEWAY_TOKEN
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.firmware import random_bytes
from tests.support.function import event
from tests.support.http import Response
from tests.support.pod import Pod, wall
from tests.support.statuses import FORMS
from tests.support.timing import Clock

#: How many courses are tried; `COURSES=1000` is for a long look.
COURSES: Final = int(os.environ.get("COURSES", "40"))
PODS: Final = 2
#: Seconds for which a change may be unknown to what starts or ends an update.
FRESH: Final = 1.0
POLL: Final = 300
VERSIONS: Final = ("1.0", "1.1", "1.2")
CONTENT: Final = {version: random_bytes(size, version) for version, size in zip(VERSIONS, (132, 256, 520), strict=True)}
CHARACTERS: Final[list[type[SimulatedDevice]]] = [CarefulDevice, FirmwareManagerDevice, CrateDevice]
KINDS: Final = st.sampled_from(["forced", "forced", "soft", "downloadonly"])
OUTCOMES: Final = {"sync", "write", "swap", "withheld", "duplicate", "failed", "retry", "wait"}
#: What hawkBit does instead of an answer, by the requests that it does it to.
FAILURES: Final = {
    "base is 503": ("", 503),
    "base is 401": ("", 401),
    "base is 429": ("", 429),
    "feedback is 503": ("feedback", 503),
    "feedback is 429": ("feedback", 429),
    "feedback is 410": ("feedback", 410),
    "deployment is 404": ("deploymentBase", 404),
    "download is 404": ("softwaremodules", 404),
    "download is wrong": ("softwaremodules", 200),
}


@dataclass
class Device:
    """A device, and what its controller is to do."""

    name: str
    simulated: SimulatedDevice
    form: tuple[Dialect, Encoding]
    #: The versions that hawkBit let it boot, each with the moment since which it does; "" is none.
    allowed: list[tuple[float, str]] = field(default_factory=list)
    #: Versions that it was told to boot.
    swapped: set[str] = field(default_factory=set)
    actions: list[Action] = field(default_factory=list)

    @property
    def action(self) -> Action | None:
        """The action that was last assigned, if it is open."""
        return next((action for action in reversed(self.actions) if action.active), None)


class HawkbitMachine(RuleBasedStateMachine):
    """Devices, pods, an operator of hawkBit, and failures."""

    drogue: Drogue
    hawkbit: FakeHawkbit
    _names = itertools.count(1)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.name = f"bits-{next(self._names)}"
        self.folder = Path(mkdtemp())
        self.pods: list[Pod] = []
        self.fleet: list[Device] = []

    def teardown(self) -> None:
        try:
            if self.fleet:
                self._end()
        finally:
            for pod in self.pods:
                pod.close()
            shutil.rmtree(self.folder)

    @initialize(
        made=st.lists(st.tuples(st.sampled_from(CHARACTERS), st.sampled_from(FORMS)), min_size=1, max_size=2),
        ttl=st.sampled_from([0.0, 10.0]),
    )
    def begin(self, made: list[tuple[type[SimulatedDevice], tuple[Dialect, Encoding]]], ttl: float) -> None:
        self.settings = Settings(
            drogue_api_url=self.drogue.url,
            drogue_user=USER,
            drogue_token=TOKEN,
            hawkbit_url=self.hawkbit.url,
            hawkbit_tenant=TENANT,
            hawkbit_gateway_token=GATEWAY_TOKEN,
            firmware_cache_dir=str(self.folder),
            firmware_cache_bytes=2500,
            spec_ttl_seconds=ttl,
            poll_seconds=POLL,
        )
        self.pods = [Pod(self.settings, self.clock) for _ in range(PODS)]
        self.drogue.put(self.name, spec={"firmware": {"hawkbit": {"controller": "{application}.{device}"}}})
        for number, (character, form) in enumerate(made):
            name = f"d{number}"
            self.drogue.put(self.name, name, spec={})
            if character is CarefulDevice:
                simulated: SimulatedDevice = CarefulDevice(b"0.1", mtu=64, correlate=form[0] != "documented")
            else:
                simulated = character(b"0.1", mtu=64)
            self.fleet.append(Device(name, simulated, form, [(self.clock() - 10, "")]))

    # --- The operator -------------------------------------------------------------------------------------------------

    def _device(self, number: int) -> Device:
        return self.fleet[number % len(self.fleet)]

    def _note_allowed(self, device: Device) -> None:
        action = device.action
        is_open = action and not (action.is_canceling or action.is_waiting or action.type == "downloadonly")
        allowed = action.modules[0].version if action and is_open and action.window != "unavailable" else ""
        device.allowed.append((self.clock(), allowed))

    @rule(
        number=st.integers(0, 1),
        version=st.sampled_from(VERSIONS),
        kind=KINDS,
        window=st.sampled_from([None, None, None, "unavailable", "available"]),
        waits=st.sampled_from([False, False, False, True]),
        insists=st.sampled_from([False, False, False, True]),
    )
    def assign(self, number: int, version: str, kind: str, window: str | None, waits: bool, insists: bool) -> None:
        device = self._device(number)
        if device.action and not insists:
            return
        status = "wait_for_confirmation" if waits and not window else "running"
        action = self.hawkbit.assign(
            f"{self.name}.{device.name}", module(version, CONTENT[version]), type=kind, window=window, status=status
        )
        device.actions.append(action)
        self._note_allowed(device)
        self.clock.now += 2 * FRESH

    @rule(number=st.integers(0, 1), change=st.sampled_from(["cancel", "confirm", "window", "quit"]))
    def change(self, number: int, change: str) -> None:
        device = self._device(number)
        action = device.action
        if action is None:
            return
        if change == "cancel" and not action.is_canceling:
            self.hawkbit.cancel(action)
        elif change == "confirm" and action.is_waiting:
            self.hawkbit.confirm(action)
        elif change == "window" and action.window:
            self.hawkbit.set_window(action, "available" if action.window == "unavailable" else "unavailable")
        elif change == "quit":
            action.active = False
            action.change("canceled")
        self._note_allowed(device)
        self.clock.now += 2 * FRESH

    # --- Time and pods ------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 1.5, 12.0, 60.0, POLL + 1.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(number=st.integers(0, PODS - 1), loses_cache=st.booleans())
    def restart(self, number: int, loses_cache: bool) -> None:
        self.pods[number].close()
        if loses_cache:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        self.pods[number] = Pod(self.settings, self.clock)

    @rule()
    def restart_all(self) -> None:
        for number in range(PODS):
            self.restart(number, False)

    @rule(number=st.integers(0, 1))
    def power_cycle(self, number: int) -> None:
        self._device(number).simulated.power_cycle()

    # --- Devices ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.fleet)
    @rule(
        number=st.integers(0, 1),
        exchanges=st.lists(
            st.tuples(
                st.integers(0, PODS - 1),
                st.none() | st.none() | st.none() | st.sampled_from(sorted(FAILURES)),
                st.sampled_from([True, True, True, True, True, True, False]),
            ),
            min_size=1,
            max_size=8,
        ),
    )
    def talk(self, number: int, exchanges: list[tuple[int, str | None, bool]]) -> None:
        device = self._device(number)
        for pod, failure, arrives in exchanges:
            self._exchange(device, pod, failure, arrives=arrives)
            self.clock.now += 1.0

    @precondition(lambda self: self.fleet)
    @rule(number=st.integers(0, 1), pod=st.integers(0, PODS - 1), count=st.integers(1, 10))
    def go_on(self, number: int, pod: int, count: int) -> None:
        """Nothing fails for a while."""
        device = self._device(number)
        for _ in range(count):
            self._exchange(device, pod)
            self.clock.now += 1.0

    def _exchange(self, device: Device, pod: int, failure: str | None = None, *, arrives: bool = True) -> Outcome:
        simulated = device.simulated
        status = simulated.status()
        payload, content_type = encode_status(status, *device.form)
        attributes = event(device.name, self.name, datacontenttype=content_type, time=wall(self.clock).isoformat())
        before = len(self.drogue.commands)
        self._note_allowed(device)
        if failure:
            key, code = FAILURES[failure]
            self.hawkbit.answers[key] = lambda _: Response(code, b"wrong bytes")
        try:
            outcome = self.pods[pod].answer(attributes, payload)
        finally:
            self.hawkbit.answers.clear()
        note(f"{device.name}: {status} -> {outcome} ({failure})")
        assert outcome.name in OUTCOMES
        commands = self.drogue.commands[before:]
        assert len(commands) <= 1
        for sent in commands:
            command, correlation_id = decode_command(sent.payload, sent.content_type)
            self._check(device, status.version, command)
            if arrives:
                simulated.handle(command, correlation_id)
        assert not simulated.is_bricked
        return outcome

    def _check(self, device: Device, version: bytes, command: Command) -> None:
        """Checks that a command is one that a device may get."""
        if isinstance(command, Sync):
            assert command.version == version, "SYNC for a version that the device does not run"
        if isinstance(command, Write):
            content = CONTENT[command.version.decode()]
            assert command.data == content[command.offset : command.offset + len(command.data)]
        if isinstance(command, Swap):
            told = command.version.decode()
            assert command.checksum == hashlib.sha256(CONTENT[told]).digest()
            since = self.clock() - FRESH
            last = max((moment for moment, _ in device.allowed if moment < since), default=0.0)
            recent = {allowed for moment, allowed in device.allowed if moment >= last}
            # After the first SWAP a cancellation comes too late.
            assert told in recent or told in device.swapped, f"SWAP to {told}, and hawkBit allows {recent}"
            device.swapped.add(told)

    # --- The end ------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Nothing fails any more: all devices arrive, and hawkBit knows."""
        for device in self.fleet:
            action = self.hawkbit.assign(f"{self.name}.{device.name}", module("1.2", CONTENT["1.2"]))
            device.actions.append(action)
            self.clock.now += 60.0
            device.simulated.power_cycle()
            for number in range(200):
                self._exchange(device, number % PODS)
                self.clock.now += 15.0
                if number % 40 == 39:
                    # What makes FirmwareManager begin anew.
                    device.simulated.power_cycle()
                    self.clock.now += POLL + 1.0
                if not action.active:
                    break
            assert action.status == "finished", (action.status, action.statuses, device.simulated.status())
            assert device.simulated.status().version == b"1.2"
            assert all(len(each.statuses) < 300 for each in device.actions)
            for boot in device.simulated.boots:
                assert boot.sha256 == hashlib.sha256(CONTENT[boot.version.decode()]).hexdigest()


@pytest.fixture(scope="module")
def upstreams() -> Iterator[tuple[Drogue, FakeHawkbit]]:
    with Drogue() as drogue, FakeHawkbit() as hawkbit:
        yield drogue, hawkbit


def test_any_course(upstreams: tuple[Drogue, FakeHawkbit]) -> None:
    class Machine(HawkbitMachine):
        drogue, hawkbit = upstreams

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=COURSES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
