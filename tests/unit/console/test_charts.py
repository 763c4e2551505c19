"""Charts: each device counts once, nothing is too small to be seen, and texts say the same."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.console.charts import Curve, Part, draw_bar, draw_curve, draw_meter, nice_top, trace
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from tests.support.html import read_html

NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
BEGAN: Final = NOON - timedelta(hours=12)
HOSTILE: Final = '"><script>alert(1)</script>'

counts = st.lists(st.integers(0, 10**6), max_size=9)


def parts_of(counts: list[int]) -> list[Part]:
    return [Part(f"part {index}", count, "held") for index, count in enumerate(counts)]


@given(counts)
def test_parts_of_a_bar_fill_it_one_after_the_other(counts: list[int]) -> None:
    rectangles = read_html(draw_bar(parts_of(counts), "Devices")).all("rect")
    assert len(rectangles) == sum(count > 0 for count in counts)
    end = 0.0
    for rectangle in rectangles:
        assert float(rectangle.attributes["x"].removesuffix("%")) == pytest.approx(end, abs=0.01)
        width = float(rectangle.attributes["width"].removesuffix("%"))
        assert width > 0.5
        end += width
    assert not rectangles or end == pytest.approx(100, abs=0.01)


def test_bar_says_in_words_what_it_shows() -> None:
    bar = read_html(
        draw_bar([Part("in sync", 1200, "in-sync"), Part("held", 0, "held"), Part("failed", 1, "failed")], "States")
    )
    svg = bar.one("svg", role="img")
    assert svg.attributes["aria-label"] == "States: 1,200 in sync, 1 failed"
    assert [title.text for title in bar.all("title")] == ["in sync: 1,200", "failed: 1"]
    assert read_html(draw_bar([], "States")).one("svg").attributes["aria-label"] == "States: no devices"


def test_names_in_a_bar_are_no_markup() -> None:
    bar = read_html(draw_bar([Part(HOSTILE, 1, "held")], HOSTILE))
    assert not bar.all("script")
    assert bar.one("svg").attributes["aria-label"] == f"{HOSTILE}: 1 {HOSTILE}"


@pytest.mark.parametrize(("share", "width"), [(0.0, "0.000%"), (0.5, "50.000%"), (3.0, "100.000%"), (-1.0, "0.000%")])
def test_meter_stays_in_its_frame(share: float, width: str) -> None:
    _, filled = read_html(draw_meter(share, "failed")).all("rect")
    assert filled.attributes["width"] == width


# --- Curves -----------------------------------------------------------------------------------------------------------


def in_sync(hours: float) -> Row:
    return Row("lamp", State.IN_SYNC, since=NOON - timedelta(hours=hours), current="2", target="2")


def rolled_back(hours: float) -> Row:
    return Row("lamp", State.ROLLED_BACK, since=NOON - timedelta(hours=hours), current="1", target="2")


def curve_of(*rows: Row, began: datetime | None = BEGAN) -> Curve:
    curve = trace(rows, "2", began, NOON)
    assert curve
    return curve


def test_curve_counts_devices_by_their_own_times() -> None:
    curve = curve_of(in_sync(12), in_sync(6), in_sync(6), in_sync(0), rolled_back(3))
    middle = len(curve.in_sync) // 2
    assert (curve.in_sync[0], curve.in_sync[middle - 1], curve.in_sync[middle], curve.in_sync[-1]) == (1, 1, 3, 4)
    assert (curve.failed[middle], curve.failed[-1]) == (0, 1)
    assert (curve.began, curve.ended, curve.top) == (BEGAN, NOON, 5)


def test_curve_begins_with_what_there_was_before() -> None:
    assert curve_of(in_sync(400), in_sync(1)).in_sync[0] == 1


def test_curve_ends_with_clocks_that_are_ahead() -> None:
    assert curve_of(in_sync(-2)).in_sync[-2:] == [0, 1]


def test_curve_has_only_results_of_its_version() -> None:
    others = (
        Row("a", State.IN_SYNC, since=NOON, current="1", target="1"),
        Row("b", State.ROLLED_BACK, since=NOON, current="1", target="3"),
        Row("c", State.FAILED, since=NOON, current="1", target="2"),  # an error, but it has not given up
        Row("d", State.HELD, since=NOON, current="1", target="2"),
        Row("e", State.IN_SYNC, current="2", target="2"),  # since when is not known
    )
    assert trace(others, "2", BEGAN, NOON) is None
    gave_up = Row("f", State.FAILED, since=NOON, current="1", target="2", gave_up=True)
    assert curve_of(*others, gave_up).failed[-1] == 1


def test_without_a_beginning_the_first_devices_set_it() -> None:
    assert curve_of(in_sync(5), in_sync(1), began=None).began == NOON - timedelta(hours=5)
    # But not one board in a laboratory.
    early = [in_sync(4000), *(in_sync(5 - number / 100) for number in range(200))]
    assert curve_of(*early, began=None).began >= NOON - timedelta(hours=5)


def test_curve_of_a_rollout_that_begins_now_has_a_width() -> None:
    curve = curve_of(in_sync(0), began=NOON)
    assert curve.ended - curve.began == timedelta(minutes=1)


@given(st.lists(st.floats(-1, 30), min_size=1, max_size=50), st.lists(st.floats(-1, 30), max_size=20))
def test_curve_never_falls_and_ends_with_all(good: list[float], bad: list[float]) -> None:
    curve = curve_of(*map(in_sync, good), *map(rolled_back, bad))
    assert (curve.in_sync[-1], curve.failed[-1]) == (len(good), len(bad))
    assert list(curve.in_sync) == sorted(curve.in_sync)
    assert list(curve.failed) == sorted(curve.failed)


@given(st.lists(st.floats(0, 12), min_size=1, max_size=20), st.integers(0, 1000))
def test_drawing_stays_in_its_frame(hours: list[float], drawn: int) -> None:
    drawing = read_html(draw_curve(curve_of(*map(in_sync, hours)), drawn))
    for path in drawing.all("path"):
        numbers = [float(text) for text in re.findall(r"[\d.]+", path.attributes["d"])]
        assert all(0 <= number <= 120 for number in numbers)
    label = drawing.all("svg", role="img")[0].attributes["aria-label"]
    assert label == f"{len(hours):,} devices in sync, 0 rolled back or failed, {drawn:,} let in by the rollout"


@pytest.mark.parametrize(
    ("hours", "places"), [(12, []), (6, ["50.00%"]), (0, []), (-1, []), (100, [])], ids=lambda value: str(value)
)
def test_beginning_of_a_stage_is_marked_within_the_frame(hours: float, places: list[str]) -> None:
    drawing = read_html(draw_curve(curve_of(in_sync(1)), 1, NOON - timedelta(hours=hours)))
    assert [line.attributes["x1"] for line in drawing.all("line", class_="line-stage")] == places


@given(st.integers(0, 10**9))
def test_top_of_an_axis_is_even_and_near(number: int) -> None:
    top = nice_top(number)
    assert number <= top
    assert top <= max(2, 2 * number)
    assert top % 2 == 0
