"""How long an answered event is remembered: by age first, whatever else is answered meanwhile."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import TransientError
from fleet_fn.update import deduplication as answered
from fleet_fn.update.deduplication import AGELESS_SECONDS, MARGIN_SECONDS, MAX_EVENTS, EventDeduplicator
from tests.support.timing import Clock

MAX_AGE = 25.0
#: More than were remembered once, whatever their age.
MANY = 30_000


def is_duplicate(events: EventDeduplicator, key: str, *, over: bool = True) -> bool:
    with events.turn(key, Deadline(5)) as turn:
        turn.is_over = over
        return turn.is_duplicate


@pytest.mark.parametrize(("max_age", "kept"), [(MAX_AGE, MAX_AGE + MARGIN_SECONDS), (0.0, AGELESS_SECONDS)])
def test_event_is_known_until_its_age_however_many_follow(max_age: float, kept: float) -> None:
    clock = Clock()
    events = EventDeduplicator(max_age, clock)
    assert not is_duplicate(events, "first")
    for number in range(MANY):
        assert not is_duplicate(events, str(number))
    clock.now += kept
    assert is_duplicate(events, "first")
    clock.now += 0.1
    assert not is_duplicate(events, "first")


def test_forgotten_events_take_no_memory() -> None:
    clock = Clock()
    events = EventDeduplicator(MAX_AGE, clock)
    for number in range(MANY):
        clock.now += 0.1
        is_duplicate(events, str(number))
    assert len(events._answered) <= (MAX_AGE + MARGIN_SECONDS) / 0.1 + 1


def test_count_is_bounded_as_a_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EVENTS >= 2000 * (MAX_AGE + MARGIN_SECONDS)
    monkeypatch.setattr(answered, "MAX_EVENTS", 100)
    events = EventDeduplicator(MAX_AGE, Clock())
    for number in range(101):
        is_duplicate(events, str(number))
    assert is_duplicate(events, "1")
    assert not is_duplicate(events, "0")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 60), st.booleans())))
def test_events_are_answered_once_within_their_age(deliveries: list[tuple[str, float, bool]]) -> None:
    clock = Clock()
    events = EventDeduplicator(MAX_AGE, clock)
    answers: dict[str, float] = {}
    for key, pause, over in deliveries:
        clock.now += pause
        known = key in answers and clock.now - answers[key] <= MAX_AGE + MARGIN_SECONDS
        assert is_duplicate(events, key, over=over) == known
        if over and not known:
            answers[key] = clock.now


def test_delivery_waits_for_an_earlier_one() -> None:
    events = EventDeduplicator(MAX_AGE)
    begun, goes_on = threading.Event(), threading.Event()

    def answer() -> None:
        with events.turn("key", Deadline(20)) as turn:
            begun.set()
            assert goes_on.wait(20)
            turn.is_over = True

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(answer)
        assert begun.wait(20)
        with pytest.raises(TransientError), events.turn("key", Deadline(0.01)):
            pass
        second = pool.submit(is_duplicate, events, "key")
        goes_on.set()
        first.result(20)
        assert second.result(20)
