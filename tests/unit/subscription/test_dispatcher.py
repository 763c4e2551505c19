"""The dispatcher: order, parallelism, repetition and the end."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fleet_fn.subscription.dispatcher import Dispatcher
from fleet_fn.subscription.messages import Answer, Request
from tests.support.subscriber import wait_for

DONE = Answer(is_final=True)
AGAIN = Answer(is_final=False, reason="sink: connection refused")


def request(source: str | None, number: int = 0, at: float | None = None) -> Request:
    return Request({}, str(number).encode(), is_cut=False, source=source, time=at, id=str(number))


@contextmanager
def dispatching(
    deliver: Callable[[Request], Answer], threads: int = 4, max_age_seconds: float = 25.0
) -> Iterator[Dispatcher]:
    dispatcher = Dispatcher(deliver, threads, max_age_seconds)
    try:
        yield dispatcher
    finally:
        dispatcher.end(5)


def test_requests_of_a_source_are_delivered_in_order_and_one_at_a_time() -> None:
    found: dict[str | None, list[int]] = defaultdict(list)
    busy: set[str | None] = set()
    finished = threading.Semaphore(0)

    def deliver(each: Request) -> Answer:
        assert each.source not in busy
        busy.add(each.source)
        time.sleep(0)  # let the other threads go on
        found[each.source].append(int(each.body))
        busy.discard(each.source)
        return DONE

    with dispatching(deliver) as dispatcher:
        for number in range(200):
            for source in "abc":
                dispatcher.submit(request(source, number), finished.release)
        for _ in range(600):
            assert finished.acquire(timeout=10)
    assert found == {source: list(range(200)) for source in "abc"}


@pytest.mark.parametrize("sources", [["a", "b", "c"], [None, None, None]])
def test_several_sources_are_delivered_side_by_side(sources: list[str | None]) -> None:
    together = threading.Barrier(3, timeout=10)

    def deliver(_: Request) -> Answer:
        together.wait()
        return DONE

    finished = threading.Semaphore(0)
    with dispatching(deliver, threads=3) as dispatcher:
        for source in sources:
            dispatcher.submit(request(source), finished.release)
        for _ in sources:
            assert finished.acquire(timeout=10)


def test_no_more_threads_deliver_than_allowed() -> None:
    lock, working, most = threading.Lock(), 0, 0
    finished = threading.Semaphore(0)

    def deliver(_: Request) -> Answer:
        nonlocal working, most
        with lock:
            working += 1
            most = max(most, working)
        time.sleep(0.001)
        with lock:
            working -= 1
        return DONE

    with dispatching(deliver, threads=2) as dispatcher:
        for _ in range(100):
            dispatcher.submit(request(None), finished.release)
        for _ in range(100):
            assert finished.acquire(timeout=10)
    assert most <= 2


def test_a_request_is_delivered_again_and_takes_no_thread_meanwhile() -> None:
    answers = iter([AGAIN, Answer(is_final=False, retry_after=1.0)])
    order: list[str] = []

    def deliver(each: Request) -> Answer:
        order.append(f"{each.source}{each.id}")
        return next(answers, DONE) if each.source == "a" else DONE

    finished = threading.Semaphore(0)
    with dispatching(deliver, threads=1) as dispatcher:
        began = time.monotonic()
        for source, number in (("a", 1), ("a", 2), ("b", 1)):
            dispatcher.submit(request(source, number), finished.release)
        for _ in range(3):
            assert finished.acquire(timeout=10)
    assert order == ["a1", "b1", "a1", "a1", "a2"]
    assert time.monotonic() - began >= 1.25  # a quarter of a second, and what the receiver asked for


@pytest.mark.parametrize(
    ("max_age_seconds", "at", "deliveries"),
    [
        (1.0, None, 2),  # it waits for half a second or less, and once more would be too late
        (25.0, -30.0, 1),  # it came too old
        (25.0, 3600.0, 2),  # the cloud's clock is ahead
        (0.0, -3600.0, 2),  # age does not matter
    ],
)
def test_a_request_is_given_up_once_it_is_too_old(max_age_seconds: float, at: float | None, deliveries: int) -> None:
    count = 0
    enough = threading.Event()
    finished = threading.Event()

    def deliver(_: Request) -> Answer:
        nonlocal count
        count += 1
        if count == deliveries:
            enough.set()
        return AGAIN

    with dispatching(deliver, max_age_seconds=max_age_seconds) as dispatcher:
        dispatcher.submit(request("a", at=None if at is None else time.time() + at), finished.set)
        assert enough.wait(10)
        if deliveries == 1 or max_age_seconds == 1.0:
            assert finished.wait(10)
        else:
            assert not finished.is_set()


def test_a_delivery_that_hangs_is_not_done_and_the_others_go_on() -> None:
    going, finished = threading.Event(), threading.Event()
    undone = threading.Event()

    def deliver(each: Request) -> Answer:
        if each.source == "hangs":
            going.wait(20)
        return DONE

    dispatcher = Dispatcher(deliver, 2, 25.0)
    dispatcher.submit(request("hangs"), undone.set)
    dispatcher.submit(request("other"), finished.set)
    assert finished.wait(10)
    began = time.monotonic()
    dispatcher.end(0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert not undone.is_set()
    going.set()
    wait_for(undone.is_set)


def test_the_end_waits_for_what_has_come_but_delivers_nothing_again() -> None:
    begun, going = threading.Event(), threading.Event()
    done: list[str] = []
    count = 0

    def deliver(each: Request) -> Answer:
        nonlocal count
        count += 1
        if each.source == "slow":
            begun.set()
            going.wait(10)
        return AGAIN if each.source == "again" else DONE

    dispatcher = Dispatcher(deliver, 1, 25.0)
    for source in ("again", "slow", "slow", "later"):
        dispatcher.submit(request(source), lambda source=source: done.append(source))  # type: ignore[misc]
    assert begun.wait(10)
    threading.Timer(0.1, going.set).start()
    dispatcher.end(10)
    assert sorted(done) == ["later", "slow", "slow"]
    assert count == 4
    dispatcher.submit(request("new"), lambda: done.append("new"))
    assert len(done) == 3
