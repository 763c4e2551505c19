"""The state of a session's subscriptions, on a clock of the test's."""

from collections.abc import Iterable

from fleet_fn.subscription.filters import Filters

NOT_AUTHORIZED, INVALID_FILTER, UNSPECIFIED = 0x87, 0x8F, 0x80


class Clock:
    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def asked(filters: Filters, wanted: Iterable[str]) -> list[str]:
    return [topic for _, topic in filters.to_subscribe(wanted)]


def test_an_application_is_asked_for_once() -> None:
    filters = Filters("group", Clock())
    assert asked(filters, ["a", "b"]) == ["$share/group/app/a", "$share/group/app/b"]
    filters.accept("a")
    assert asked(filters, ["a", "b"]) == []


def test_a_refused_application_is_asked_for_again_after_a_growing_pause() -> None:
    clock = Clock()
    filters = Filters("group", clock)
    for bound in (2, 4, 8):
        assert len(asked(filters, ["a"])) == 1
        assert filters.refuse("a", NOT_AUTHORIZED) is (bound == 2), "it is told once"
        clock.seconds += bound / 2 - 0.01
        assert asked(filters, ["a"]) == []
        clock.seconds += bound / 2 + 0.02
    assert len(asked(filters, ["a"])) == 1
    filters.accept("a")
    assert asked(filters, ["a"]) == []


def test_the_old_prefix_is_tried_at_once_if_the_new_one_may_be_unknown() -> None:
    for reason in (INVALID_FILTER, UNSPECIFIED):
        filters = Filters("group", Clock())
        asked(filters, ["a"])
        assert filters.refuse("a", reason) is False
        assert asked(filters, ["a"]) == ["$shared/group/app/a"]
        filters.accept("a")
        assert asked(filters, ["a", "b"]) == ["$shared/group/app/b"]


def test_the_old_prefix_is_not_tried_on_a_broker_that_knows_the_new_one() -> None:
    """Some brokers take it for the first part of a topic, to which nothing is ever published."""
    filters = Filters("group", Clock())
    asked(filters, ["a", "b"])
    filters.accept("a")
    assert filters.refuse("b", UNSPECIFIED) is True
    assert asked(filters, ["a", "b"]) == []


def test_both_prefixes_are_tried_again_if_both_were_refused() -> None:
    clock = Clock()
    filters = Filters("group", clock)
    asked(filters, ["a"])
    filters.refuse("a", UNSPECIFIED)
    asked(filters, ["a"])
    assert filters.refuse("a", UNSPECIFIED) is True
    clock.seconds += 60
    assert asked(filters, ["a"]) == ["$share/group/app/a"]


def test_unwanted_applications_are_unsubscribed_in_both_forms() -> None:
    filters = Filters("group", Clock())
    asked(filters, ["a", "b"])
    filters.accept("a")
    filters.refuse("b", NOT_AUTHORIZED)
    assert filters.to_unsubscribe(["a", "b"]) == []
    assert filters.to_unsubscribe([]) == ["$share/group/app/a", "app/a"]
    assert filters.to_unsubscribe([]) == []
    filters.accept("a")  # a late answer
    assert filters.refuse("a", NOT_AUTHORIZED) is False
    assert asked(filters, []) == []


def test_a_broker_that_does_not_answer_is_late() -> None:
    clock = Clock()
    filters = Filters("group", clock)
    asked(filters, ["a"])
    clock.seconds += 29
    assert not filters.is_late()
    clock.seconds += 1
    assert filters.is_late()
    filters.accept("a")
    assert not filters.is_late()
