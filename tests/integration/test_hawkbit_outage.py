"""A hawkBit that does not answer, and what it does to the others."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ddi import FakeHawkbit, module
from tests.support.ddi.fake import answering
from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import Function, running
from tests.support.http import Response
from tests.support.statuses import post
from tests.support.timing import DEADLINE, Gate

THREADS = 4


@pytest.fixture(scope="module")
def hawkbit() -> Iterator[FakeHawkbit]:
    with FakeHawkbit() as hawkbit:
        yield hawkbit


@pytest.fixture
def function(drogue: Drogue, hawkbit: FakeHawkbit, tmp_path: Path) -> Iterator[Function]:
    own = {"FIRMWARE_CACHE_DIR": str(tmp_path), "THREADS": str(THREADS), "EVENT_DEADLINE_SECONDS": str(DEADLINE)}
    with running({**drogue.environment, **hawkbit.environment, **own}) as function:
        yield function


def test_a_hanging_server_leaves_threads_to_other_devices(
    function: Function, drogue: Drogue, hawkbit: FakeHawkbit
) -> None:
    drogue.put("example", spec={})
    drogue.put("example", "without-hawkbit", spec={})
    names = [f"hanging-{number}" for number in range(20 * THREADS)]
    for name in names:
        drogue.put("example", name, spec={"firmware": {"hawkbit": {"controller": name}}})
        hawkbit.assign(name, module("1.0", random_bytes(512, "hanging")))
    gate, is_over = Gate(Response(503)), threading.Event()

    def go_on(number: int) -> None:
        for name in itertools.cycle(names[number :: 2 * THREADS]):
            if is_over.is_set():
                return
            post(function, name)

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(2 * THREADS)]
    with answering(hawkbit, "", gate):
        for thread in threads:
            thread.start()
        try:
            assert gate.reached.wait(10)
            time.sleep(2 * DEADLINE)  # those that were asked before it was known to hang have failed by now
            began = time.monotonic()
            for _ in range(5):
                assert post(function, "without-hawkbit").outcome == 'withheld; reason="unmanaged"'
            took = time.monotonic() - began
            assert took < 2 * DEADLINE, took
        finally:
            is_over.set()
            gate.opened.set()
            for thread in threads:
                thread.join()
    time.sleep(DEADLINE)  # a failure is remembered for so long
    for name in names:
        assert post(function, name).outcome.startswith("write")
