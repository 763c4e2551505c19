"""The devices to look at first, out of many."""

import random
from datetime import UTC, datetime, timedelta

from fleet_fn.fleet.attention import Attention
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def names(attention: Attention) -> list[str]:
    return [row.device for row in attention.rows]


def test_worse_states_come_first_then_later_changes() -> None:
    rows = [
        Row("stalled", State.STALLED, since=NOON),
        Row("old", State.FAILED, since=NOON - timedelta(hours=1)),
        Row("back", State.ROLLED_BACK, since=NOON),
        Row("new", State.FAILED, since=NOON),
        Row("some time", State.FAILED),
    ]
    attention = Attention(10)
    attention.add(rows)
    assert names(attention) == ["new", "old", "some time", "back", "stalled"]


def test_equal_rows_keep_their_order() -> None:
    attention = Attention(3)
    attention.add(Row(str(number), State.FAILED, since=NOON) for number in range(9))
    assert names(attention) == ["0", "1", "2"]


def test_best_rows_of_many_are_kept_and_all_are_counted() -> None:
    rows = [Row(str(number), State.FAILED, since=NOON + timedelta(seconds=number)) for number in range(1000)]
    random.Random(1).shuffle(rows)
    attention = Attention(5)
    attention.add(rows)
    assert (names(attention), attention.count) == (["999", "998", "997", "996", "995"], 1000)


def test_no_row_is_kept_if_none_is_asked_for() -> None:
    attention = Attention(0)
    attention.add([Row("a", State.FAILED)])
    assert (attention.rows, attention.count) == ([], 1)
