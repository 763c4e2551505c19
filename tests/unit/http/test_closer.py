"""Closer: one thread, in order, none without handles, and what is left if no thread can start."""

import threading
from collections.abc import Iterator

import pytest

from fleet_fn.http.closer import MAX_LOOKUPS, Closer


class Lookup:
    """A hanging lookup, whose end a handle waits for when it is closed."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.closed = threading.Event()
        self.closed_by: threading.Thread | None = None

    def close(self) -> None:
        assert self.over.wait(10)
        self.closed_by = threading.current_thread()
        self.closed.set()


@pytest.fixture
def lookups() -> Iterator[list[Lookup]]:
    lookups = [Lookup() for _ in range(MAX_LOOKUPS)]
    yield lookups
    for lookup in lookups:
        lookup.over.set()


def join(lookup: Lookup) -> None:
    """Wait for the thread that closed a handle and had no other one to close."""
    assert lookup.closed.wait(10)
    assert lookup.closed_by
    lookup.closed_by.join(10)


def threads() -> set[threading.Thread]:
    """All threads but timers: those of earlier tests' caches start one another meanwhile, and other threads end."""
    return {thread for thread in threading.enumerate() if not isinstance(thread, threading.Timer)}


def test_one_thread_closes_all_handles(lookups: list[Lookup]) -> None:
    closer, before = Closer(), threads()
    for lookup in lookups:
        closer.add(lookup.close, "host")
    assert len(threads() - before) == 1
    for lookup in lookups:
        lookup.over.set()
    join(lookups[-1])
    assert {lookup.closed_by for lookup in lookups} == {lookups[0].closed_by}
    assert threads() <= before


def test_thread_ends_and_another_one_starts(lookups: list[Lookup]) -> None:
    closer = Closer()
    for lookup in lookups[:2]:
        lookup.over.set()
        closer.add(lookup.close)
        join(lookup)
    assert lookups[0].closed_by is not lookups[1].closed_by


def test_lookups_are_counted_for_each_host(lookups: list[Lookup]) -> None:
    closer = Closer()
    for lookup in lookups:
        assert not closer.has_too_many("host")
        closer.add(lookup.close, "host")
    assert closer.has_too_many("host")
    assert not closer.has_too_many("other")
    lookups[0].over.set()
    lookups[1].over.set()
    assert lookups[1].closed.wait(10)
    assert not closer.has_too_many("host")


def test_handles_without_a_lookup_are_not_counted(lookups: list[Lookup]) -> None:
    closer = Closer()
    for lookup in lookups:
        closer.add(lookup.close)
    assert not closer.has_too_many("host")


def test_handles_wait_for_a_thread(lookups: list[Lookup], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    closer = Closer()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for lookup in lookups:
            lookup.over.set()
            closer.add(lookup.close, "host")
        assert closer.has_too_many("host")
    assert not any(lookup.closed.is_set() for lookup in lookups)
    assert closer.has_too_many("host")  # which starts the thread
    join(lookups[-1])
    assert not closer.has_too_many("host")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_error_keeps_no_other_handle_open(lookups: list[Lookup]) -> None:
    def fail() -> None:
        lookups[0].close()
        raise AssertionError

    closer = Closer()
    closer.add(fail, "host")
    lookups[0].over.set()
    join(lookups[0])
    lookups[1].over.set()
    closer.add(lookups[1].close, "host")
    join(lookups[1])
