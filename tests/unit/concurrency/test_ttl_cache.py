"""The values and errors of the cache, their age, and look-ups by several threads."""

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.concurrency.ttl_cache import TTLCache, deep_size
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from tests.support.timing import Clock, SignalingDeadline


@dataclass
class Source:
    """Answers with the number of the look-up, or with an error when there is one."""

    clock: Clock = field(default_factory=Clock)
    #: Seconds that a look-up takes.
    takes: float = 0.0
    error: UpstreamError | None = None
    look_ups: int = 0

    def __call__(self) -> int:
        self.clock.now += self.takes
        self.look_ups += 1
        if self.error:
            raise self.error
        return self.look_ups


class Held:
    """A look-up that ends when it may, with 1."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.began.set()
        self.may_end.wait()
        return 1


def memory(source: Source, size: int = 10, negative_ttl: float = 0.0) -> TTLCache[str, int]:
    return TTLCache(size, negative_ttl=lambda _: negative_ttl, clock=source.clock)


@pytest.mark.parametrize(("later", "look_ups"), [(0.0, 1), (9.9, 1), (10.0, 1), (10.1, 2)])
def test_a_value_is_answered_for_as_long_as_the_one_who_asks_allows(later: float, look_ups: int) -> None:
    source = Source()
    remembered = memory(source)
    remembered.get("key", 10, source, Deadline(5))
    source.clock.now += later
    assert remembered.get("key", 10, source, Deadline(5)) == look_ups


def test_a_value_is_as_old_as_the_beginning_of_its_look_up() -> None:
    source = Source(takes=8)
    remembered = memory(source)
    remembered.get("key", 10, source, Deadline(5))
    source.clock.now += 3
    assert remembered.get("key", 10, source, Deadline(5)) == 2  # it may have changed 11 s ago


def test_with_an_age_of_0_each_who_asks_has_it_looked_up_anew() -> None:
    source = Source()
    remembered = memory(source)
    for number in range(1, 4):
        source.clock.now += 1e-9 * 1024  # what a float of this size still tells apart
        assert remembered.get("key", 0, source, Deadline(5)) == number


def test_with_an_infinite_age_it_is_never_looked_up_again() -> None:
    source = Source()
    remembered = memory(source)
    for _ in range(3):
        source.clock.now += 1e9
        assert remembered.get("key", math.inf, source, Deadline(5)) == 1


def test_one_who_allows_less_refreshes_it_for_all() -> None:
    source = Source()
    remembered = memory(source)
    remembered.get("key", 30, source, Deadline(5))
    source.clock.now += 20
    assert remembered.get("key", 1, source, Deadline(5)) == 2
    source.clock.now += 20
    assert remembered.get("key", 30, source, Deadline(5)) == 2


def test_an_error_is_answered_for_its_own_age_counted_from_its_end_whatever_age_is_asked_for() -> None:
    source = Source(takes=100, error=PermanentError("no"))
    remembered = memory(source, negative_ttl=10)
    for _ in range(2):
        with pytest.raises(PermanentError, match="no"):
            remembered.get("key", 0, source, Deadline(5))
        source.clock.now += 9
    assert source.look_ups == 1
    source.clock.now += 2
    source.error = None
    assert remembered.get("key", math.inf, source, Deadline(5)) == 2


def test_errors_without_an_age_are_not_remembered() -> None:
    source = Source(error=TransientError("down"))
    remembered = memory(source)
    with pytest.raises(TransientError):
        remembered.get("key", math.inf, source, Deadline(5))
    source.error = None
    assert remembered.get("key", math.inf, source, Deadline(5)) == 2


def test_a_value_that_is_young_enough_outlives_a_later_error() -> None:
    source = Source()
    remembered = memory(source, negative_ttl=10.0)
    assert remembered.get("key", 30, source, Deadline(5)) == 1
    source.clock.now += 5
    source.error = TransientError("down")
    with pytest.raises(TransientError):  # for one who wants it fresh
        remembered.get("key", 1, source, Deadline(5))
    assert remembered.get("key", 30, source, Deadline(5)) == 1
    with pytest.raises(TransientError):
        remembered.get("key", 1, source, Deadline(5))
    assert source.look_ups == 2


def test_an_error_that_is_answered_often_does_not_grow() -> None:
    source = Source(error=PermanentError("no"))
    remembered = memory(source, negative_ttl=1000)
    depths = set()
    for _ in range(20):
        with pytest.raises(PermanentError) as caught:
            remembered.get("key", 0, source, Deadline(5))
        depths.add(len(caught.traceback))
    assert len(depths) <= 2


def test_errors_that_are_no_upstreams_pass_through_and_hinder_nobody() -> None:
    source = Source()
    remembered = memory(source, negative_ttl=1000)

    def stumble() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        remembered.get("key", 0, stumble, Deadline(5))
    assert remembered.get("key", 0, source, Deadline(5)) == 1


@given(st.lists(st.integers(0, 20), max_size=60), st.integers(0, 5))
def test_it_never_holds_more_than_its_size_and_gives_up_the_oldest(keys: list[int], size: int) -> None:
    source = Source()
    remembered = memory(source, size)
    looked_up: list[int] = []
    for key in keys:
        before = source.look_ups
        remembered.get(str(key), math.inf, source, Deadline(5))
        assert (source.look_ups == before) == (key in looked_up[-size:] if size else False)
        if source.look_ups > before:
            looked_up.append(key)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 500)), max_size=50), st.integers(0, 1000))
def test_its_values_never_take_more_bytes_than_it_may_and_the_oldest_are_given_up(
    puts: list[tuple[str, int]], max_bytes: int
) -> None:
    clock = Clock()
    remembered: TTLCache[str, bytes] = TTLCache(1000, max_bytes=max_bytes, clock=clock)
    put: dict[str, bytes] = {}
    has_overflown = False
    for key, size in puts:
        value = bytes(size)
        remembered.get(key, 0, lambda value=value: value, Deadline(5))  # type: ignore[misc]
        clock.now += 1
        put.pop(key, None)
        put[key] = value
        kept = [known for known in put if remembered.peek(known) is not None]
        taken = sum(deep_size(known) + deep_size(put[known]) for known in kept)
        assert taken <= max_bytes
        assert kept == list(put)[len(put) - len(kept) :]
        has_overflown |= sum(deep_size(known) + deep_size(each) for known, each in put.items()) > max_bytes
        assert has_overflown or kept == list(put)


def test_a_value_that_is_too_large_is_looked_up_each_time() -> None:
    source = Source()
    remembered: TTLCache[str, int] = TTLCache(10, max_bytes=10, clock=source.clock)
    assert [remembered.get("key", 10, source, Deadline(5)) for _ in range(3)] == [1, 2, 3]


@dataclass
class Pair:
    one: object
    other: object


@pytest.mark.parametrize("shape", [lambda it: (it,), lambda it: [it], lambda it: {"": it}, lambda it: {it: ""}])
@pytest.mark.parametrize("inside", [lambda it: it, lambda it: Pair(None, it), lambda it: (1, [it])])
def test_the_size_of_a_value_is_that_of_all_that_it_is_made_of(shape: Callable[..., Any], inside: Any) -> None:
    long, short = "x" * 10_000, "x"
    values = [(shape(text) if isinstance(inside(text), str) else inside(shape(text))) for text in (long, short)]
    assert deep_size(values[0]) - deep_size(values[1]) == 9_999


def test_what_is_forgotten_is_looked_up_again_and_the_rest_is_not() -> None:
    source = Source()
    remembered = memory(source)
    for key in ("one", "other"):
        remembered.get(key, math.inf, source, Deadline(5))
    remembered.invalidate("one")
    remembered.invalidate("unknown")
    assert remembered.get("other", math.inf, source, Deadline(5)) == 2
    assert remembered.get("one", math.inf, source, Deadline(5)) == 3


def test_what_is_forgotten_while_it_is_looked_up_is_not_remembered() -> None:
    source = Source()
    remembered = memory(source)

    def forgotten_meanwhile() -> int:
        value = source()
        remembered.invalidate("key")
        return value

    assert remembered.get("key", math.inf, forgotten_meanwhile, Deadline(5)) == 1
    assert remembered.get("key", math.inf, source, Deadline(5)) == 2


def test_nothing_is_kept_of_look_ups_that_ended() -> None:
    source = Source()
    remembered = memory(source, size=1)
    for error in (None, TransientError("down"), PermanentError("no")):
        source.error = error
        for number in range(10):
            with suppress(UpstreamError):
                remembered.get(str(number), math.inf, source, Deadline(5))
    with pytest.raises(ZeroDivisionError):
        remembered.get("key", math.inf, lambda: 1 // 0, Deadline(5))
    assert not remembered._looked_up
    assert not remembered._turns._turns


def at_once(calls: Iterable[Callable[[], int]]) -> list[int]:
    with ThreadPoolExecutor(32) as threads:
        return [result.result() for result in [threads.submit(call) for call in calls]]


@pytest.mark.parametrize("max_age", [60.0, 0.0])
def test_those_who_ask_while_it_is_looked_up_look_up_at_most_once_more(max_age: float) -> None:
    remembered: TTLCache[str, int] = TTLCache(10)
    began, may_end = threading.Event(), threading.Event()
    waiting = threading.Semaphore(0)
    look_ups: list[int] = []

    def look_up() -> int:
        look_ups.append(1)
        began.set()
        may_end.wait()
        return len(look_ups)

    with ThreadPoolExecutor(16) as threads:
        first = threads.submit(remembered.get, "key", max_age, look_up, Deadline(10))
        assert began.wait(10)
        others = [
            threads.submit(remembered.get, "key", max_age, look_up, SignalingDeadline(10, waiting)) for _ in range(8)
        ]
        for _ in others:
            assert waiting.acquire(timeout=10)
        may_end.set()
        assert first.result() == 1
        # With no age allowed, what began before they asked is too old for them; what one of them began is not.
        assert {other.result() for other in others} == ({1} if max_age else {2})


def test_never_are_two_looking_up_the_same_key() -> None:
    remembered: TTLCache[str, None] = TTLCache(10)
    looking = threading.Semaphore(1)
    clashes = []

    def look_up() -> None:
        if not looking.acquire(blocking=False):
            clashes.append(1)
            return
        threading.Event().wait(0.0005)  # lets the others queue
        looking.release()

    def ask() -> int:
        for _ in range(40):
            remembered.get("key", 0, look_up, Deadline(30))
        return 0

    at_once([ask] * 6)
    assert not clashes


def test_keys_do_not_wait_for_each_other() -> None:
    remembered: TTLCache[str, int] = TTLCache(10)
    slow = Held()
    with ThreadPoolExecutor() as threads:
        slowly = threads.submit(remembered.get, "one", 60, slow, Deadline(10))
        assert slow.began.wait(10)
        assert remembered.get("other", 60, lambda: 2, Deadline(10)) == 2
        slow.may_end.set()
        assert slowly.result() == 1


def test_who_waits_for_the_look_up_of_another_waits_until_the_own_deadline() -> None:
    remembered: TTLCache[str, int] = TTLCache(10)
    slow = Held()
    with ThreadPoolExecutor() as threads:
        slowly = threads.submit(remembered.get, "key", 60, slow, Deadline(10))
        assert slow.began.wait(10)
        deadline = Deadline(0.1)
        with pytest.raises(TransientError, match=r"^an earlier look-up of the same has not ended$"):
            remembered.get("key", 60, slow, deadline)
        assert deadline.elapsed < 1
        slow.may_end.set()
        assert slowly.result() == 1
    assert remembered.get("key", 60, slow, Deadline(0)) == 1


def test_known_values_are_answered_to_those_without_any_time_left() -> None:
    source = Source()
    remembered = memory(source)
    remembered.get("key", 60, source, Deadline(5))
    assert remembered.get("key", 60, source, Deadline(0)) == 1
