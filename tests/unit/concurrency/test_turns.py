"""Turns: one thread at a time for each key, each thread until its own deadline."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet_fn.concurrency.turns import Turns
from fleet_fn.deadline import Deadline
from tests.support.timing import SignalingDeadline


class BusyError(Exception):
    """Another thread had the turn for too long."""


@pytest.fixture
def turns() -> Turns[str]:
    return Turns(BusyError)


def test_one_thread_at_a_time_has_the_turn_of_a_key(turns: Turns[str]) -> None:
    alone, clashes = threading.Lock(), []

    def work(_: int) -> None:
        for _ in range(200):
            with turns.take("key", Deadline(30)):
                if not alone.acquire(blocking=False):
                    clashes.append(1)
                    continue
                threading.Event().wait(0.0001)  # let the others queue
                alone.release()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert not clashes
    assert not turns._turns  # nothing is kept of turns that are over


def test_other_keys_do_not_wait(turns: Turns[str]) -> None:
    with turns.take("one", Deadline(5)), turns.take("other", Deadline(5)):
        pass


def test_thread_waits_until_its_own_deadline(turns: Turns[str]) -> None:
    deadline = Deadline(0.05)
    with turns.take("key", Deadline(5)):
        with pytest.raises(BusyError):
            turns.take("key", deadline)
        assert 0.05 <= deadline.elapsed < 5
        with pytest.raises(BusyError):
            turns.take("key", Deadline(0))
    with turns.take("key", Deadline(0)):  # which is free again, and needs no time
        pass
    assert not turns._turns


def test_each_thread_that_waits_gets_its_turn(turns: Turns[str]) -> None:
    waiting = threading.Semaphore(0)

    def work(number: int) -> int:
        with turns.take("key", SignalingDeadline(10, waiting)):
            return number

    with ThreadPoolExecutor(4) as threads:
        with turns.take("key", Deadline(5)):
            results = [threads.submit(work, number) for number in range(4)]
            for _ in results:
                assert waiting.acquire(timeout=10)
            assert not any(result.done() for result in results)
        assert [result.result(10) for result in results] == [0, 1, 2, 3]
    assert not turns._turns


def test_error_within_a_turn_ends_it_and_is_raised(turns: Turns[str]) -> None:
    with pytest.raises(ZeroDivisionError), turns.take("key", Deadline(5)):
        raise ZeroDivisionError
    with turns.take("key", Deadline(0)):
        pass
