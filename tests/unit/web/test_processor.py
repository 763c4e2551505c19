"""On which CPU a worker's threads run, and when they move."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.web.processor import Processor

SEVERAL: Final = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one CPU")
TICKS: Final = os.sysconf("SC_CLK_TCK")


@pytest.fixture(autouse=True)
def affinity() -> Iterator[set[int]]:
    """The CPUs that this process has, and has again after the test."""
    allowed = os.sched_getaffinity(0)
    yield allowed
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), allowed)


class Machine:
    """Times of CPUs, and of a worker, by a clock that stands still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.now = self.own = 0.0
        self.stat = folder / "stat"
        self.busy = dict.fromkeys(os.sched_getaffinity(0), 0.0)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        self.write()

    def write(self) -> None:
        lines = [
            f"cpu{cpu} {int(busy * TICKS)} 0 0 {int((self.now - busy) * TICKS)} 5 0 0 0 0 0"
            for cpu, busy in self.busy.items()
        ]
        self.stat.write_text("\n".join(["cpu 1 2 3 4", *lines, "intr 1 2"]))

    def pass_second(self, own: float, others: Mapping[int, float], current: int) -> None:
        """Let a worker on `current` use a share of it, and others of any CPU."""
        self.now += 1
        self.own += own
        for cpu in self.busy:
            self.busy[cpu] += others.get(cpu, 0.0) + (own if cpu == current else 0.0)
        self.write()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def worker_on(machine: Machine, chance: float = 0.0) -> Processor:
    worker = Processor(0, stat=machine.stat, choose=lambda: chance)
    worker.look()
    return worker


@SEVERAL
def test_all_threads_stay_on_one_cpu(machine: Machine) -> None:
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    worker = worker_on(machine)
    later = threading.Thread(target=stop.wait)
    later.start()
    found = [os.sched_getaffinity(thread.native_id or 0) for thread in (*threads, later, threading.main_thread())]
    stop.set()
    assert found == [{worker.current}] * 5


@SEVERAL
def test_workers_begin_on_cpus_of_their_own(machine: Machine, affinity: set[int]) -> None:
    slots = range(len(affinity))
    found = set()
    for slot in slots:
        found.add(Processor(slot, stat=machine.stat).current)
        os.sched_setaffinity(0, affinity)
    assert found == affinity


def look_after(machine: Machine, worker: Processor, own: float, others: Mapping[int, float]) -> bool:
    """Return whether the worker moves after a second of this."""
    before = worker.current
    machine.pass_second(own, others, before)
    worker.look()
    return worker.current != before


@SEVERAL
@pytest.mark.parametrize(
    ("own", "others", "elsewhere", "moves"),
    [
        (0.5, 0.5, 0.0, True),
        (0.5, 0.5, 0.2, True),
        (0.5, 0.5, 0.4, False),  # no gain
        (1.0, 0.0, 0.0, False),  # alone
        (0.05, 0.95, 0.0, True),  # one of twenty
        (0.01, 0.95, 0.0, False),  # not busy
    ],
)
def test_a_busy_worker_moves_away_from_others(
    machine: Machine, own: float, others: float, elsewhere: float, moves: bool
) -> None:
    worker = worker_on(machine)
    shares = {cpu: others if cpu == worker.current else elsewhere for cpu in machine.busy}
    assert look_after(machine, worker, own, shares) is moves


@SEVERAL
def test_chance_decides_who_of_two_moves(machine: Machine) -> None:
    worker = worker_on(machine, chance=0.9)
    assert not look_after(machine, worker, 0.5, {worker.current: 0.5})


@SEVERAL
def test_a_worker_looks_once_a_second(machine: Machine) -> None:
    worker = worker_on(machine)
    machine.pass_second(0.5, {worker.current: 0.5}, worker.current)
    machine.now -= 0.5
    before = worker.current
    worker.look()
    assert worker.current == before


@SEVERAL
@pytest.mark.parametrize("content", ["", "cpu0 x y z\ncpu1 x", "cpu9999 1 2 3 4 5 6 7 8"])
def test_a_system_that_does_not_know_the_cpu_is_left_to_choose(
    machine: Machine, affinity: set[int], content: str
) -> None:
    worker = worker_on(machine)
    machine.stat.write_text(content)
    for _ in range(3):
        machine.now += 1
        worker.look()
    assert worker.current == -1
    assert os.sched_getaffinity(0) == affinity


@SEVERAL
def test_a_worker_that_cannot_read_the_times_stays(machine: Machine) -> None:
    worker = worker_on(machine)
    before = worker.current
    machine.stat.unlink()
    for _ in range(3):
        machine.now += 1
        worker.look()
    assert worker.current == before


@SEVERAL
def test_a_system_that_refuses_is_left_to_choose(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    assert worker_on(machine).current == -1


def test_one_cpu_leaves_no_choice(machine: Machine, affinity: set[int]) -> None:
    os.sched_setaffinity(0, {min(affinity)})
    assert worker_on(machine).current == -1


def test_a_system_without_choice_is_left_alone(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    assert worker_on(machine).current == -1


class Simulated(Processor):
    """A worker on a machine of which only the numbers are real."""

    def __init__(self, cpu: int, choose: Any) -> None:
        self._choose, self._current, self._last, self.cpu = choose, cpu, None, cpu

    def _move(self, cpu: int) -> None:
        self._current = self.cpu = cpu


@given(st.integers(2, 8), st.integers(1, 8), st.integers(0))
def test_workers_find_cpus_of_their_own(cpus: int, workers: int, seed: int) -> None:
    chance = Random(seed)
    found = [Simulated(0, chance.random) for _ in range(min(workers, cpus))]
    for _ in range(200):
        crowd = {cpu: sum(one.cpu == cpu for one in found) for cpu in range(cpus)}
        if max(crowd.values()) <= 1:
            return
        moment = [(one, 1 / crowd[one.cpu]) for one in found]
        for one, share in moment:
            one._reconsider(share, {cpu: float(count > 0) for cpu, count in crowd.items()})
    raise AssertionError(crowd)


def test_workers_of_many_containers_that_begin_on_one_cpu_leave_it_soon() -> None:
    chance, cpus = Random(1), range(64)
    found = [Simulated(0, chance.random) for _ in range(40)]
    for _ in range(20):  # each a second
        crowd = [sum(one.cpu == cpu for one in found) for cpu in cpus]
        moment = [(one, 1 / crowd[one.cpu]) for one in found]
        for one, share in moment:
            one._reconsider(share, {cpu: float(crowd[cpu] > 0) for cpu in cpus})
    assert len({one.cpu for one in found}) == len(found)


def test_servers_in_containers_of_one_node_begin_on_different_cpus() -> None:
    first = "from fleet_fn.web import server; print(server._first_cpu)"
    found = {subprocess.run([sys.executable, "-c", first], check=True, capture_output=True).stdout for _ in range(3)}
    assert len(found) > 1
