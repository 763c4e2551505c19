"""A fleet under a bad version, event by event over simulated time, with the function's own decisions.

`hold_start`, `RolloutStatus.halts` and the pass of `rollout advance` say what devices may do. How long things take is
assumed here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from heapq import heapify, heappop, heappush
from itertools import compress
from random import Random
from typing import Any, Final, Self

from fleet_fn.drogue.rollout_status import RolloutStatus, with_failure
from fleet_fn.drogue.spec_policy import Policy
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Actor
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.progress import Progress, Standing, assess
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.update.policy import Candidate, hold_start
from fleet_fn.update.stages import Position
from tests.bench.rollout import make_uids

VERSION: Final = "2.0.0"
#: Each device asks once in this time, at a moment of its own, give or take a share of the time.
POLL_SECONDS: Final = 300.0
POLL_JITTER: Final = 0.1
#: All blocks of an update: log-normal, because some links are much slower than most.
DOWNLOAD_MEDIAN_SECONDS: Final = 600.0
DOWNLOAD_SIGMA: Final = 0.5
#: From a swap to the status of a device that came up with the version. One that rolls back boots twice.
BOOT_SECONDS: Final = (20.0, 60.0)
#: Starts and swaps rest on an application's object that was read within this time.
FRESH_SECONDS: Final = 1.0
#: Time between two passes of `rollout advance`: more than with `--watch`, less than with the CronJob in knative/.
PASS_SECONDS: Final = 60.0
#: No course takes longer.
HORIZON_SECONDS: Final = 30 * 86400.0

_BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)
_ACTOR: Final = "simulation"
#: Bytes that an application's object may grow: the names of all failures that matter fit.
_ROOM_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True)
class Fleet:
    """Devices, and what chance decides about them: the same for each policy."""

    uids: list[str]
    #: Seconds between a device's polls, and of its first one.
    period: list[float]
    phase: list[float]
    download: list[float]
    boot: list[float]
    #: From 0 to 1; a version that fails on a share of devices fails on those below it.
    luck: list[float]
    #: Devices that a policy lets in at a stage. No other state of the rollout makes a difference, nor does a limit of
    #: failures, of which a draw knows nothing.
    _let_in: dict[tuple[Policy, int], list[bool]] = field(default_factory=dict)

    @classmethod
    def make(cls, devices: int, seed: int) -> Self:
        """Return a fleet, the same for the same seed."""
        random = Random(seed)
        periods = [POLL_SECONDS * random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER) for _ in range(devices)]
        median = math.log(DOWNLOAD_MEDIAN_SECONDS)
        return cls(
            make_uids(devices, seed),
            periods,
            [period * random.random() for period in periods],
            [random.lognormvariate(median, DOWNLOAD_SIGMA) for _ in range(devices)],
            [random.uniform(*BOOT_SECONDS) for _ in range(devices)],
            [random.random() for _ in range(devices)],
        )

    def next_poll(self, device: int, after: float) -> float:
        """Return when a device asks next."""
        phase, period = self.phase[device], self.period[device]
        return phase + max(0, math.ceil((after - phase) / period)) * period

    def let_in(self, policy: Policy, rollout: RolloutStatus) -> list[bool]:
        """Return for each device whether it may start."""
        key = (replace(policy, max_failed=None), rollout.of(VERSION).stage)
        if key not in self._let_in:
            self._let_in[key] = [
                hold_start(policy, Candidate(uid, {}), VERSION, _BEGIN, rollout) is None for uid in self.uids
            ]
        return self._let_in[key]


class _Kind(IntEnum):
    START = 0
    SWAP = 1
    REPORT = 2
    PASS = 3


#: When, what, and which device.
_Event = tuple[float, int, int]


@dataclass(slots=True)
class Course:
    """How a rollout went. Times are seconds since its begin."""

    #: When each device that booted the version did so for the first time.
    boots: list[float] = field(default_factory=list)
    #: Devices that were let in.
    drawn: int = 0
    #: Devices that came up with it, and that came back with their old version.
    in_sync: int = 0
    rolled_back: int = 0
    #: When the status that reached `maxFailed` was recorded.
    halted_at: float | None = None
    #: Devices that had no result when that was known, and were booting, or told to.
    in_flight: int = 0
    #: When the last device reported the version.
    last_in_sync: float = 0.0
    #: When each stage but the first began.
    advances: list[float] = field(default_factory=list)
    #: What the last pass of `rollout advance` said; None if there are no stages.
    progress: Progress | None = None

    @property
    def last_boot(self) -> float:
        """The time after which no other device booted the version."""
        return self.boots[-1] if self.boots else 0.0


class Simulation:
    """The rollout of one version to a fleet."""

    def __init__(self, fleet: Fleet, rollout: Mapping[str, Any], failing: float) -> None:
        """Roll a version out that fails on a share of devices.

        Args:
            fleet: the devices.
            rollout: `spec.firmware.rollout`.
            failing: 0 to 1.

        """
        self._fleet = fleet
        self._failing = failing
        status = {"version": VERSION, "stage": 0, "since": timestamp(_BEGIN)}
        self._application = Application.read(
            {
                "metadata": {"name": "example"},
                "spec": {"firmware": {"container": {"image": f"firmware:{VERSION}"}, "rollout": dict(rollout)}},
                "status": {"firmware": {"rollout": status}},
            }
        )
        self._policy = self._application.policy
        self._known_halt = math.inf
        self._events: list[_Event] = []
        self._held: list[int] = []
        self.course = Course()

    def run(self) -> Course:
        """Return the course, when nothing happens any more."""
        self._held = list(range(len(self._fleet.uids)))
        self._let_in(0.0)
        if self._policy.stages:
            heappush(self._events, (PASS_SECONDS, _Kind.PASS, -1))
        steps: dict[int, Callable[[float, int], None]] = {
            _Kind.START: self._start,
            _Kind.SWAP: self._swap,
            _Kind.REPORT: self._report,
            _Kind.PASS: self._pass,
        }
        while self._events and self._events[0][0] < HORIZON_SECONDS:
            now, kind, device = heappop(self._events)
            steps[kind](now, device)
        return self.course

    def _let_in(self, now: float) -> None:
        """Let held devices start whom the rollout lets in: each when it asks next."""
        may = self._fleet.let_in(self._policy, self._application.rollout)
        starting = list(compress(self._held, (may[device] for device in self._held)))
        self._held = [device for device in self._held if not may[device]]
        self.course.drawn += len(starting)
        self._events.extend((self._fleet.next_poll(device, now), _Kind.START, device) for device in starting)
        heapify(self._events)

    def _start(self, now: float, device: int) -> None:
        if now < self._known_halt:
            heappush(self._events, (now + self._fleet.download[device], _Kind.SWAP, device))

    def _swap(self, now: float, device: int) -> None:
        if now >= self._known_halt:
            return
        self.course.boots.append(now)
        boots = 2 if self._fails(device) else 1
        heappush(self._events, (now + boots * self._fleet.boot[device], _Kind.REPORT, device))

    def _report(self, now: float, device: int) -> None:
        if self._fails(device):
            self.course.rolled_back += 1
            self._record_failure(now, device)
        else:
            self.course.in_sync += 1
            self.course.last_in_sync = now

    def _record_failure(self, now: float, device: int) -> None:
        if self._policy.max_failed is None or self.course.halted_at is not None:
            return
        status = with_failure(
            self._application.status, VERSION, f"device-{device}", is_first=True, room_bytes=_ROOM_BYTES
        )
        assert status is not None
        changed = self._application.changed(self._application.firmware, status)
        assert changed is not None
        self._application = Application.read(changed)
        if self._application.rollout.halts(VERSION, self._policy.max_failed):
            self.course.halted_at = now
            self._known_halt = now + FRESH_SECONDS
            booting = sum(kind == _Kind.REPORT for _, kind, _ in self._events)
            told = sum(kind == _Kind.SWAP and at < self._known_halt for at, kind, _ in self._events)
            self.course.in_flight = booting + told

    def _pass(self, now: float, _: int) -> None:
        """Make a pass of `rollout advance`."""
        at = _BEGIN + timedelta(seconds=now)
        progress = assess(self._application, VERSION, at, self._numbers)
        self.course.progress = progress
        if progress.standing is Standing.READY and progress.position:
            changed = actions.advance(self._application, VERSION, progress.position.index, Actor(_ACTOR, at))
            assert changed is not None
            self._application = Application.read(changed)
            self.course.advances.append(now)
            self._let_in(now + FRESH_SECONDS)
        # A rollout that waits goes on by itself later; any other one only if its devices still report.
        if self._events or progress.standing in (Standing.WAITING, Standing.READY):
            heappush(self._events, (now + PASS_SECONDS, _Kind.PASS, -1))

    def _numbers(self) -> RolloutNumbers:
        stages, course = self._policy.stages or (), self.course
        position = Position.of(stages, self._application.rollout, VERSION)
        return RolloutNumbers(
            VERSION,
            position.stage.percent,
            len(self._fleet.uids),
            course.drawn,
            course.in_sync,
            course.rolled_back,
            0,  # a device that gives up later has rolled back already: no other result
            position.index,
            len(stages),
        )

    def _fails(self, device: int) -> bool:
        return self._fleet.luck[device] < self._failing
