"""Equal values of many devices are one object, and take little memory."""

import json
import re
import tracemalloc
from datetime import UTC, datetime
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.console.sharing import MAX_VALUES, Sharing
from fleet_fn.console.snapshot import DeviceCollector
from fleet_fn.drogue.listing import read_device
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from tests.support.fleets import NOON, Story, make_fleet
from tests.support.function import ROOT

DEVICES: Final = 4000
PAGE: Final = (ROOT / "docs" / "console.md").read_text()

texts = st.none() | st.text("ab", max_size=2)
times = st.none() | st.datetimes(timezones=st.just(UTC))
names = st.lists(st.text("ab", max_size=2), max_size=2).map(tuple)
rows = st.builds(
    Row,
    st.text("ab"),
    st.sampled_from(State),
    message=texts,
    since=times,
    current=texts,
    target=texts,
    in_sync=st.booleans(),
    attempts=st.integers(0, 1),
    seen=times,
    gateways=names,
)


@given(st.lists(rows))
def test_rows_stay_equal(found: list[Row]) -> None:
    known = Sharing()
    for row in found:
        shared = known.row(row)
        assert shared == row
        assert [type(getattr(shared, name)) for name in Row.__slots__] == [
            type(getattr(row, name)) for name in Row.__slots__
        ]


@given(st.lists(st.dictionaries(st.text("ab", max_size=1), st.text("ab", max_size=1))), st.lists(rows))
def test_labels_stay_equal(found: list[dict[str, str]], others: list[Row]) -> None:
    known = Sharing()
    for row in others:
        known.row(row)
    for labels in found:
        assert known.labels(labels) == labels
        assert isinstance(known.labels(labels), dict)


def test_labels_that_are_no_texts_are_left_out() -> None:
    assert Sharing().labels({"site": "oslo", "ring": 1, "rack": None}) == {"site": "oslo"}


def test_equal_values_are_one_object() -> None:
    known = Sharing()
    moments = [datetime(2026, 1, 1, tzinfo=UTC) for _ in "ab"]
    one, other = (known.row(Row("a", message=f"at {moment}", since=moment)) for moment in moments)
    assert one.message is other.message
    assert one.since is other.since
    assert known.labels({"site": "oslo"}) is known.labels({"site": "oslo"})


def test_different_values_are_kept_up_to_a_bound() -> None:
    known = Sharing()
    for number in range(MAX_VALUES + 10):
        known.row(Row("a", message=str(number)))
    assert len(known) == MAX_VALUES
    assert known.row(Row("a", message="-1")).message == "-1"


def test_a_device_takes_no_more_memory_than_is_told() -> None:
    told = re.search(r"A device takes ([\d.]+) KB of memory", PAGE)
    assert told
    application, *objects = make_fleet(Story(devices=DEVICES))
    lines = [json.dumps(each) for each in objects]
    del objects
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    collector = DeviceCollector.of(application, NOON)
    for line in lines:
        collector.add([read_device(json.loads(line), "thermostats")])
    devices = collector.finish(1.0)
    del collector
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(devices.entries or ()) == DEVICES
    assert (after - before) / DEVICES < 1000 * float(told[1])
