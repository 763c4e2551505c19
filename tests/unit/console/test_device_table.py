"""The table of devices: what it shows, in which order, and how fast."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.cli.main import main
from fleet_fn.console.device_table import COLUMNS, NEEDS_ATTENTION, PAGE_DEVICES, TableQuery, order, read_page, select
from fleet_fn.console.snapshot import Entry
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import ATTENTION, State
from fleet_fn.fleet.totals import version_key

NOON: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
VERSIONS: Final = ("1.9.0", "1.10.0", "1.10", "", "nightly")
SITES: Final = ("oslo", "OSLO", "graz")

times = st.none() | st.integers(0, 3).map(lambda hours: NOON - timedelta(hours=hours))
versions = st.none() | st.sampled_from(VERSIONS)
rows = st.builds(
    Row,
    st.text("abAB-1", min_size=1, max_size=3),
    st.sampled_from(State),
    since=times,
    current=versions,
    target=versions,
    seen=times,
)
entries = st.builds(Entry, rows, st.dictionaries(st.just("site"), st.sampled_from(SITES)), st.booleans(), st.booleans())
fleets = st.lists(entries, max_size=160)
queries = st.builds(
    TableQuery,
    st.sampled_from(("", "a", "AB", "-1")),
    st.sampled_from(("", NEEDS_ATTENTION, *State)),
    st.sampled_from(("", *VERSIONS)),
    st.sampled_from(("", "site", "site=oslo", "ring", "site=")),
    st.sampled_from([*COLUMNS, *(f"-{column}" for column in COLUMNS)]),
    st.integers(1, 5),
)


def is_wanted(entry: Entry, query: TableQuery) -> bool:
    states = ATTENTION if query.state == NEEDS_ATTENTION else (query.state,)
    key, separator, value = query.label.partition("=")
    return (
        query.text.lower() in entry.row.device.lower()
        and (not query.state or entry.row.state in states)
        and (not query.version or entry.row.current == query.version)
        and (not query.label or (entry.labels.get(key) == value if separator else key in entry.labels))
    )


def rank(entry: Entry, column: str) -> Any:
    value = COLUMNS[column](entry)
    if column == "state":
        return list(State).index(value)
    return (version_key(value), value) if column in ("current", "target") else value


@given(fleets, queries)
def test_page_is_a_slice_of_what_is_selected_in_order(fleet: list[Entry], query: TableQuery) -> None:
    whole = order(select(fleet, query), query)
    page = read_page(fleet, query)
    assert page.total == len(whole)
    assert page.pages == max(1, (len(whole) + PAGE_DEVICES - 1) // PAGE_DEVICES)
    assert page.number == min(query.page, page.pages)
    start = PAGE_DEVICES * (page.number - 1)
    assert list(page.entries) == list(whole[start : start + PAGE_DEVICES])
    assert (page.first, page.last) == ((start + 1, start + len(page.entries)) if whole else (0, 0))


@given(fleets, queries)
def test_filter_leaves_what_meets_all_of_it(fleet: list[Entry], query: TableQuery) -> None:
    assert list(select(fleet, query)) == [entry for entry in fleet if is_wanted(entry, query)]


@given(fleets, queries)
def test_order_goes_by_the_column_then_by_name_and_the_unknown_last(fleet: list[Entry], query: TableQuery) -> None:
    found = order(fleet, query)
    assert sorted(map(id, found)) == sorted(map(id, fleet))
    known = [entry for entry in found if COLUMNS[query.column](entry) is not None]
    assert found[: len(known)] == known
    for one, other in pairwise(known):
        first, second = rank(one, query.column), rank(other, query.column)
        assert first >= second if query.descends else first <= second
        assert first != second or query.column == "name" or one.row.device <= other.row.device


@given(queries)
def test_query_string_says_the_same(query: TableQuery) -> None:
    arguments = {key: str(value) for key, value in query.arguments(page=query.page).items()}
    assert TableQuery.read(arguments) == query


def test_another_filter_or_order_begins_at_the_first_page() -> None:
    query = TableQuery(text="lamp", sort="-since", page=7)
    assert query.arguments(sort="state") == {
        "q": "lamp",
        "state": "",
        "version": "",
        "label": "",
        "sort": "state",
        "page": "",
    }
    assert query.arguments(page=8)["page"] == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"state": "broken"},
        {"sort": "password"},
        {"sort": "--name"},
        {"page": "0"},
        {"page": "-1"},
        {"page": "1e3"},
        {"page": "9" * 5000},
        {"page": "²"},
    ],
)
def test_query_string_that_makes_no_sense_counts_as_missing(arguments: dict[str, str]) -> None:
    assert TableQuery.read(arguments) == TableQuery()


def test_a_version_longer_than_what_is_counted_is_found_by_its_beginning() -> None:
    entry = Entry(Row("lamp", current="1" * 300), {}, False, False)
    assert select([entry], TableQuery(version="1" * 255)) == [entry]


# --- The same on the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "command"),
    [
        (TableQuery(), "fleet-fn fleet --application shop"),
        (TableQuery(state="failed"), "fleet-fn fleet --application shop --state failed"),
        (
            TableQuery(state=NEEDS_ATTENTION),
            "fleet-fn fleet --application shop --state failed --state rolled-back --state stalled",
        ),
        (
            TableQuery(label="site=oslo", version="1.0; rm"),
            "fleet-fn fleet --application shop --labels site=oslo --version '1.0; rm'",
        ),
        (TableQuery(text="it's"), """fleet-fn fleet --application shop | grep -iF -- 'it'"'"'s'"""),
        (TableQuery(label="site=a b"), ""),
        (TableQuery(label="site in (a)"), ""),
    ],
)
def test_command_line_is_quoted(query: TableQuery, command: str) -> None:
    assert query.command("shop") == command


@pytest.mark.parametrize("state", [NEEDS_ATTENTION, *State])
def test_command_line_has_options_that_there_are(state: str) -> None:
    words = TableQuery(state=state, label="site=oslo", version="-1").command("shop").split()[1:]
    result = CliRunner().invoke(main, words, env={"DROGUE_API_URL": ""})
    assert "DROGUE_API_URL is not set" in result.output  # so the options are right


# --- Speed ------------------------------------------------------------------------------------------------------------


def make_entries(count: int) -> list[Entry]:
    labels = [{"site": site} for site in SITES]
    states = list(State)
    return [
        Entry(
            Row(
                f"device-{number:06}",
                states[number % 7],
                since=NOON - timedelta(seconds=number * 7919 % 90_000),
                current=f"1.{number % 13}.0" if number % 11 else None,
                target="1.13.0",
                seen=NOON - timedelta(seconds=number % 977),
            ),
            labels[number % 3],
            False,
            False,
        )
        for number in range(count)
    ]


def fastest(fleet: Sequence[Entry], query: TableQuery) -> float:
    """Seconds of processor time of the fastest of five pages: the machine may have other work."""
    seconds = []
    for _ in range(5):
        began = time.thread_time()
        read_page(fleet, query)
        seconds.append(time.thread_time() - began)
    return min(seconds)


#: For a page of 10,000 devices, of CPU time; it takes a tenth. `make bench` measures larger fleets.
MOST_SECONDS = 0.05


def test_pages_of_large_fleets_are_fast() -> None:
    fleet = make_entries(10_000)
    for column in COLUMNS:
        for sort in (column, f"-{column}"):
            assert fastest(fleet, TableQuery(sort=sort)) < MOST_SECONDS, sort
    filtered = TableQuery("1", NEEDS_ATTENTION, "1.1.0", "site=oslo", "-since", 2)
    assert fastest(fleet, filtered) < MOST_SECONDS
