"""Work that runs once for all callers that wait, and outlives them."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError
from tests.support.timing import Clock, SignalingDeadline


def test_what_the_function_returns_is_the_result() -> None:
    assert SingleFlight().result("key", lambda: 42, Deadline(5)) == 42


def test_what_the_function_raises_is_raised() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        SingleFlight().result("key", fail, Deadline(5))


def test_work_that_takes_longer_than_the_deadline_goes_on_and_is_found_by_who_asks_later() -> None:
    single_flight, may_end, runs = SingleFlight(), threading.Event(), []

    def slow() -> int:
        runs.append(1)
        may_end.wait()
        return 42

    deadline = Deadline(0.05)
    with pytest.raises(StillRunningError):
        single_flight.result("key", slow, deadline)
    assert deadline.elapsed < 1
    with ThreadPoolExecutor() as threads:
        later = threads.submit(single_flight.result, "key", slow, Deadline(10))
        may_end.set()
        assert later.result() == 42
    assert runs  # `later` may have asked just when it had ended


def test_a_deadline_that_has_passed_does_not_keep_work_from_being_done() -> None:
    single_flight, done = SingleFlight(), threading.Event()
    with pytest.raises(StillRunningError):
        single_flight.result("key", done.wait, Deadline(0))
    done.set()


def test_however_many_ask_at_once_it_is_done_once() -> None:
    single_flight, may_end, runs = SingleFlight(), threading.Event(), []
    waiting = threading.Semaphore(0)

    def slow() -> int:
        runs.append(1)
        may_end.wait()
        return 42

    with ThreadPoolExecutor(16) as threads:
        results = [threads.submit(single_flight.result, "key", slow, SignalingDeadline(10, waiting)) for _ in range(16)]
        for _ in results:
            assert waiting.acquire(timeout=10)
        may_end.set()
        assert [result.result() for result in results] == [42] * 16
    assert len(runs) == 1


def test_work_under_other_keys_does_not_wait() -> None:
    single_flight, over = SingleFlight(), threading.Event()
    with pytest.raises(StillRunningError):
        single_flight.result("one", over.wait, Deadline(0.01))
    assert single_flight.result("other", lambda: 42, Deadline(5)) == 42
    over.set()


def test_results_are_not_remembered() -> None:
    single_flight = SingleFlight()
    numbers = iter(range(3))
    assert [single_flight.result("key", numbers.__next__, Deadline(5)) for _ in range(3)] == [0, 1, 2]


def test_where_no_thread_can_be_started_nobody_waits_for_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    single_flight = SingleFlight()
    with monkeypatch.context() as patch:

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(TransientError, match=r"^no thread can be started$"):
            single_flight.result("key", lambda: 42, Deadline(5))
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


class Slow:
    """Work that fails when it may."""

    def __init__(self, error: Exception) -> None:
        self.may_end = threading.Event()
        self._error = error
        self._threads = set(threading.enumerate())

    def __call__(self) -> int:
        assert self.may_end.wait(30)
        raise self._error

    def ends(self) -> None:
        """Lets it end, and waits until that is known."""
        self.may_end.set()
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(30)


def fails_unheard(single_flight: SingleFlight, error: Exception, *, keeps_error: bool = True) -> None:
    slow = Slow(error)
    with pytest.raises(StillRunningError):
        single_flight.result("key", slow, Deadline(0), keeps_error=keeps_error)
    slow.ends()


def test_an_error_that_nobody_waited_for_is_raised_for_the_next_and_only_for_that_one() -> None:
    single_flight = SingleFlight()
    fails_unheard(single_flight, TransientError("away", 7))
    assert single_flight.result("other", lambda: 42, Deadline(5)) == 42
    with pytest.raises(TransientError, match="away") as caught:
        single_flight.result("key", lambda: 42, Deadline(0))
    assert caught.value.retry_after == 7
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


def test_a_mistake_that_nobody_waited_for_is_raised_with_where_it_was_made() -> None:
    single_flight = SingleFlight()
    fails_unheard(single_flight, KeyError("x"))
    with pytest.raises(KeyError) as caught:
        single_flight.result("key", lambda: 42, Deadline(5))
    assert caught.traceback[-1].name == "__call__"


def test_an_error_is_kept_only_where_that_is_asked_for() -> None:
    single_flight = SingleFlight()
    fails_unheard(single_flight, KeyError("x"), keeps_error=False)
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


def test_an_error_that_anybody_waited_for_is_not_kept() -> None:
    single_flight, slow = SingleFlight(), Slow(KeyError("x"))
    with pytest.raises(StillRunningError):
        single_flight.result("key", slow, Deadline(0), keeps_error=True)
    waiting = threading.Semaphore(0)
    with ThreadPoolExecutor() as threads:
        patient = threads.submit(single_flight.result, "key", slow, SignalingDeadline(30, waiting), keeps_error=True)
        assert waiting.acquire(timeout=10)
        slow.may_end.set()
        with pytest.raises(KeyError):
            patient.result()
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


def test_work_that_ends_just_as_the_wait_for_it_does_is_not_lost() -> None:
    single_flight, slow = SingleFlight(), Slow(KeyError("x"))

    class JustOver(Deadline):
        """A deadline at which the work has ended, though it had not when the wait began."""

        @property
        def remaining(self) -> float:
            slow.ends()
            return 0.0

    with pytest.raises(KeyError):
        single_flight.result("key", slow, JustOver(5), keeps_error=True)
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


def test_errors_that_nobody_ever_asks_for_are_forgotten_in_time() -> None:
    clock = Clock(0.0)
    single_flight = SingleFlight(clock)
    fails_unheard(single_flight, KeyError("x"))
    clock.now = 599.0
    with pytest.raises(KeyError):
        single_flight.result("key", lambda: 42, Deadline(5))
    fails_unheard(single_flight, KeyError("x"))
    clock.now += 601.0
    assert single_flight.result("key", lambda: 42, Deadline(5)) == 42


def test_work_that_runs_out_of_time_itself_says_so() -> None:
    def time_out() -> None:
        raise TimeoutError("connecting")

    with pytest.raises(TimeoutError, match="connecting"):
        SingleFlight().result("key", time_out, Deadline(5))


def test_nobody_waits_for_what_has_taken_longer_already_than_they_could_wait() -> None:
    clock = Clock(0.0)
    single_flight, slow = SingleFlight(clock), Slow(KeyError("x"))
    clock.now = 100.0
    with pytest.raises(StillRunningError):
        single_flight.result("key", slow, Deadline(0))
    clock.now = 103.5
    began = time.monotonic()
    with pytest.raises(StillRunningError):
        single_flight.result("key", slow, Deadline(3.4))
    assert time.monotonic() - began < 2
    slow.ends()
    assert single_flight.result("key", lambda: 42, Deadline(3.4)) == 42
