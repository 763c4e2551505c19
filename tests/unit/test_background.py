"""Work that outlives who waits for it, and is done once however many wait."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet_fn.background import Background
from fleet_fn.deadline import Deadline


def test_what_the_function_returns_is_the_result() -> None:
    assert Background().result("key", lambda: 42, Deadline(5)) == 42


def test_what_the_function_raises_is_raised() -> None:
    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        Background().result("key", fail, Deadline(5))


def test_work_that_takes_longer_than_the_deadline_goes_on_and_is_found_by_who_asks_later() -> None:
    background, may_end, runs = Background(), threading.Event(), []

    def slow() -> int:
        runs.append(1)
        may_end.wait()
        return 42

    deadline = Deadline(0.05)
    with pytest.raises(TimeoutError):
        background.result("key", slow, deadline)
    assert deadline.elapsed < 1
    with ThreadPoolExecutor() as threads:
        later = threads.submit(background.result, "key", slow, Deadline(10))
        may_end.set()
        assert later.result() == 42
    assert runs  # `later` may have asked just when it had ended


def test_a_deadline_that_has_passed_does_not_keep_work_from_being_done() -> None:
    background, done = Background(), threading.Event()
    with pytest.raises(TimeoutError):
        background.result("key", done.wait, Deadline(0))
    done.set()


def test_however_many_ask_at_once_it_is_done_once() -> None:
    background, may_end, runs = Background(), threading.Event(), []
    waiting = threading.Semaphore(0)

    class Told(Deadline):
        """Tells that its owner is about to wait."""

        @property
        def remaining(self) -> float:
            waiting.release()
            return super().remaining

    def slow() -> int:
        runs.append(1)
        may_end.wait()
        return 42

    with ThreadPoolExecutor(16) as threads:
        results = [threads.submit(background.result, "key", slow, Told(10)) for _ in range(16)]
        for _ in results:
            assert waiting.acquire(timeout=10)
        may_end.set()
        assert [result.result() for result in results] == [42] * 16
    assert len(runs) == 1


def test_work_under_other_keys_does_not_wait() -> None:
    background, over = Background(), threading.Event()
    with pytest.raises(TimeoutError):
        background.result("one", over.wait, Deadline(0.01))
    assert background.result("other", lambda: 42, Deadline(5)) == 42
    over.set()


def test_results_are_not_remembered() -> None:
    background = Background()
    numbers = iter(range(3))
    assert [background.result("key", numbers.__next__, Deadline(5)) for _ in range(3)] == [0, 1, 2]


def test_where_no_thread_can_be_started_nobody_waits_for_it_later(monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background()
    with monkeypatch.context() as patch:

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            background.result("key", lambda: 42, Deadline(5))
    assert background.result("key", lambda: 42, Deadline(5)) == 42
