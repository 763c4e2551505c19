"""When a session asks for its filter, on a clock of the test's."""

import pytest

from fleet_fn.subscription.filter import Filter, Sharing

NOT_AUTHORIZED, INVALID_FILTER, UNSPECIFIED = 0x87, 0x8F, 0x80
NEW, OLD = "$share/group/app/a", "$shared/group/app/a"


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def filter_of(clock: Clock | None = None, sharing: Sharing | None = None) -> Filter:
    return Filter("group", "a", sharing or Sharing(), clock or Clock())


def test_an_application_is_asked_for_once() -> None:
    filter_ = filter_of()
    assert [filter_.ask(), filter_.ask()] == [NEW, None]
    filter_.accept()
    assert filter_.ask() is None


def test_a_refused_application_is_asked_for_again_after_a_growing_pause() -> None:
    clock = Clock()
    filter_ = filter_of(clock)
    for bound in (2, 4, 8):
        assert filter_.ask() == NEW
        assert filter_.refuse(NOT_AUTHORIZED) is (bound == 2), "it is told once"
        clock.seconds += bound / 2 - 0.01
        assert filter_.ask() is None
        clock.seconds += bound / 2 + 0.02
    assert filter_.ask() == NEW
    filter_.accept()
    assert filter_.ask() is None


@pytest.mark.parametrize("reason", [INVALID_FILTER, UNSPECIFIED])
def test_the_old_prefix_is_tried_at_once_if_the_new_one_may_be_unknown(reason: int) -> None:
    sharing = Sharing()
    filter_ = filter_of(sharing=sharing)
    filter_.ask()
    assert filter_.refuse(reason) is False
    assert filter_.ask() == OLD
    filter_.accept()
    assert filter_of(sharing=sharing).ask() == OLD


def test_the_old_prefix_is_not_tried_on_a_broker_that_knows_the_new_one() -> None:
    """Some brokers take it for the first part of a topic, to which nothing is ever published."""
    sharing = Sharing()
    one, other = filter_of(sharing=sharing), filter_of(sharing=sharing)
    one.ask()
    other.ask()
    one.accept()
    assert other.refuse(UNSPECIFIED) is True
    assert other.ask() is None


def test_both_prefixes_are_tried_again_if_both_were_refused() -> None:
    clock = Clock()
    filter_ = filter_of(clock)
    filter_.ask()
    filter_.refuse(UNSPECIFIED)
    filter_.ask()
    assert filter_.refuse(UNSPECIFIED) is True
    clock.seconds += 60
    assert filter_.ask() == NEW


def test_a_broker_that_does_not_answer_is_late() -> None:
    clock = Clock()
    filter_ = filter_of(clock)
    filter_.ask()
    clock.seconds += 29
    assert not filter_.is_late()
    clock.seconds += 1
    assert filter_.is_late()
    filter_.accept()
    assert not filter_.is_late()
