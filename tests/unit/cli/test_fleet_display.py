"""The displays of `fleet` for pipes and for programs."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.cli.fleet_display import Document, Lines, SummaryLines
from fleet_fn.cli.fleet_terminal import TerminalTable
from fleet_fn.cli.fleet_view import Display, Selection, describe_age, describe_rollout
from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.status_report import FAILED, IN_SYNC, PROGRESS, UNKNOWN
from fleet_fn.drogue.update_record import FailedVersion
from fleet_fn.fleet.rollout_numbers import RolloutNumbers
from fleet_fn.fleet.rows import Row, read_row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.stops import Stop, StopKind
from fleet_fn.fleet.survey import Summary
from fleet_fn.fleet.totals import Totals
from fleet_fn.fleet.wording import describe_percent

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
TIME = "2026-11-23T12:00:00Z"
ALL = Selection("shop")
ROLLOUT = RolloutNumbers("0.1.1", 10.0, 5000, 509, 280, 73, 12, 1, 3)


def show(display: Display, pages: Sequence[Sequence[Row]], selection: Selection = ALL, **more: Any) -> None:
    """Give a display these pages of rows, and their numbers."""
    totals = Totals()
    for page in pages:
        display.show([row for row in page if selection.shows(row)])
        totals.add(page)
    display.end(Summary(totals, **more))


def lines(*rows: Row, pages: Sequence[Sequence[Row]] = (), selection: Selection = ALL, **more: Any) -> list[str]:
    """The lines of these rows, or these pages of rows."""
    shown: list[str] = []
    show(Lines(selection, shown.append), pages or [rows], selection, **more)
    return shown


def summary(*rows: Row, selection: Selection = ALL, most_rows: int = 0, **more: Any) -> list[str]:
    shown: list[str] = []
    show(SummaryLines(selection, shown.append, most_rows=most_rows), [rows], selection, **more)
    return shown


def document(*rows: Row, selection: Selection = ALL, has_devices: bool = True, **more: Any) -> Any:
    pieces: list[str] = []
    show(Document(selection, pieces.append, has_devices=has_devices), [rows], selection, **more)
    return json.loads("".join(pieces))


def row(name: str, state: State, reason: str | None = None, message: str | None = None, **more: Any) -> Row:
    fields = {"since": NOON, "current": "0.1.0", "target": "0.1.1", "in_sync": state is State.IN_SYNC, **more}
    return Row(name, state, reason, message, **fields)


ROWS = [
    row("lamp", State.IN_SYNC, current="0.1.1"),
    row("gate", State.UPDATING, "writing", "37.50 % written", progress=37.5),
    row("till", State.HELD, "paused", "updates are paused", progress=100.0, held="paused"),
    row("sink", State.ROLLED_BACK, "backoff", "0.1.1 did not come up, attempts: 1 of 3", held="backoff", attempts=1),
    row("bell", State.STALLED, "swapped", "told to swap"),
    row("door", State.FAILED, "no-such-tag", "publish it", target=UNKNOWN),
    Row("new", message="never reported"),
]


# --- Lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_aligned_and_have_numbers_below() -> None:
    assert lines(*ROWS) == [
        "DEVICE        STATE        CURRENT   TARGET    PROGRESS  ATTEMPTS  SINCE                 DETAILS",
        f"lamp          in-sync      0.1.1     0.1.1     -         0         {TIME}  -",
        f"gate          updating     0.1.0     0.1.1     37.50%    0         {TIME}  37.50 % written",
        f"till          held         0.1.0     0.1.1     100.00%   0         {TIME}  paused: updates are paused",
        f"sink          rolled-back  0.1.0     0.1.1     -         1         {TIME}  "
        "0.1.1 did not come up, attempts: 1 of 3",
        f"bell          stalled      0.1.0     0.1.1     -         0         {TIME}  told to swap",
        f"door          failed       0.1.0     Unknown   -         0         {TIME}  no-such-tag: publish it",
        "new           unknown      -         -         -         0         -                     never reported",
        "",
        "7 devices: 1 failed, 1 rolled-back, 1 stalled, 1 held, 1 updating, 1 in-sync, 1 unknown",
        "0.1.1: 1 device (target of 5)",
        "0.1.0: 5 devices",
    ]


def test_lines_say_how_many_of_all_devices_are_shown() -> None:
    selection = Selection("shop", states=frozenset([State.HELD, State.FAILED]))
    shown = lines(*ROWS, selection=selection)
    assert [line.split()[0] for line in shown[1:3]] == ["till", "door"]
    assert shown[3:6] == ["", "2 of 7 devices shown", lines(*ROWS)[9]]


@pytest.mark.parametrize(
    ("versions", "names"),
    [
        (("0.1.1",), ["lamp", "gate", "till", "sink", "bell"]),
        (("0.1.0", "9"), ["gate", "till", "sink", "bell", "door"]),
        (("9",), []),
    ],
)
def test_versions_select_devices_that_run_them_or_should(versions: tuple[str, ...], names: list[str]) -> None:
    selection = Selection("shop", versions=versions)
    assert [row.device for row in ROWS if selection.shows(row)] == names


def test_state_and_version_select_together() -> None:
    selection = Selection("shop", states=frozenset([State.HELD, State.FAILED]), versions=("0.1.1",))
    assert [row.device for row in ROWS if selection.shows(row)] == ["till"]


def test_rollout_is_a_sentence() -> None:
    assert lines(rollout=ROLLOUT)[-1] == (
        "rollout of 0.1.1 to 10 %, stage 2 of 3: 509 of 5000 devices drawn; of these 280 in-sync, 73 rolled-back, "
        "12 failed, success 76.71 %"
    )
    plain = RolloutNumbers("1\n2", 12.5, 1, 0, 0, 0, 0)
    assert describe_rollout(plain) == (
        "rollout of 1\N{REPLACEMENT CHARACTER}2 to 12.5 %: 0 of 1 device drawn; of these 0 in-sync, 0 rolled-back, "
        "0 failed"
    )


@pytest.mark.parametrize("shown", [lines, summary])
def test_stop_of_the_rollout_stands_before_its_numbers(shown: Callable[..., list[str]]) -> None:
    stopped = replace(ROLLOUT, stop=Stop(StopKind.HALTED, "0.1.1 failed\non 5 devices"))
    *_, stop, numbers = shown(rollout=stopped)
    assert stop == (
        "rollout halted: 0.1.1 failed\N{REPLACEMENT CHARACTER}on 5 devices (rollout start takes a fix, rollout abort "
        "goes back, rollout resume lets it go on)"
    )
    assert numbers.startswith("rollout of 0.1.1 to 10 %")


def test_problem_of_the_rollout_is_a_warning() -> None:
    assert lines(rollout_problem="gone\n")[-1] == "warning: no numbers of the rollout: gone\N{REPLACEMENT CHARACTER}"


def test_longer_name_on_a_later_page_pushes_its_line_and_is_not_cut() -> None:
    shown = lines(pages=[[Row("lamp")], [Row("l" * 60), Row("gate")]])
    assert shown[2].startswith("l" * 60 + "  unknown")
    assert shown[3].index("unknown") == shown[1].index("unknown")


def test_column_does_not_grow_without_end() -> None:
    shown = lines(Row("l" * 250), Row("gate"))
    assert shown[1].startswith("l" * 250 + "  unknown")
    assert shown[2].index("unknown") == 42


def test_name_of_wide_characters_and_marks_is_aligned() -> None:
    shown = lines(Row("温度計"), Row("ku\N{COMBINING DIAERESIS}che"), Row("gate"))
    assert [line.index("unknown") for line in shown[1:4]] == [11, 15, 14]


def test_details_are_never_cut() -> None:
    assert lines(row("lamp", State.FAILED, "x" * 3000))[1].endswith("x" * 3000)


EVIL = "a\x1b[2Jb\nc\x9b\u202e\u2066[red]"


def test_control_characters_do_not_reach_the_output() -> None:
    evil = row(EVIL, State.FAILED, EVIL, EVIL, current=EVIL, target=EVIL)
    for shown in (lines(evil), summary(evil, most_rows=9, selection=Selection(EVIL, labels=EVIL))):
        assert all(line.isprintable() for line in shown)
    assert lines(evil)[1].startswith("a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c")


def test_versions_stand_in_the_order_in_which_people_count_them() -> None:
    rows = [Row(version, current=version) for version in ("0.9.0", "0.10.0", "0.10", "0.2.0", "0.10.0-rc1")]
    assert [line.partition(":")[0] for line in lines(*rows)[-5:]] == ["0.10.0-rc1", "0.10.0", "0.10", "0.9.0", "0.2.0"]


def test_versions_of_any_length_are_counted_by_what_they_begin_with() -> None:
    totals = Totals()
    totals.add(Row("lamp", current="9" * 60_000 + str(number), target="7" * 60_000) for number in range(9))
    assert totals.versions == ["9" * 255, "7" * 255]
    assert lines(Row("lamp", current="9" * 60_000))[-1] == "9" * 255 + ": 1 device"


def test_application_without_devices_has_numbers_too() -> None:
    none = "0 devices: 0 failed, 0 rolled-back, 0 stalled, 0 held, 0 updating, 0 in-sync, 0 unknown"
    assert lines()[1:] == ["", none]
    assert summary()[0] == "0 devices of shop"


# --- The summary ------------------------------------------------------------------------------------------------------


def test_summary_has_numbers_and_reasons_by_state() -> None:
    rows = [*ROWS, row("sink2", State.ROLLED_BACK, "paused"), row("sink3", State.ROLLED_BACK, "backoff")]
    assert summary(*rows, selection=Selection("shop", labels="a=b"), rollout=ROLLOUT) == [
        "9 devices of shop with the labels a=b",
        "failed             1  11.11 %  no-such-tag 1",
        "rolled-back        3  33.33 %  backoff 2, paused 1",
        "stalled            1  11.11 %  swapped 1",
        "held               1  11.11 %  paused 1",
        "updating           1  11.11 %",
        "in-sync            1  11.11 %",
        "unknown            1  11.11 %",
        "version 0.1.1: current of 1, target of 7",
        "version 0.1.0: current of 7, target of 0",
        describe_rollout(ROLLOUT),
    ]


def test_summary_names_the_most_frequent_reasons_and_memory_is_bounded() -> None:
    totals = Totals()
    totals.add(row("x", State.FAILED, f"reason {number}") for number in range(3000))
    totals.add([row("x", State.FAILED, "reason 7")])
    assert totals.reasons_of(State.FAILED)[0] == ("reason 7", 2)
    assert len(totals.reasons) == 1000
    reasons = [row("x", State.FAILED, f"reason {number}") for number in range(9)]
    assert summary(*reasons)[1].endswith("reason 0 1, reason 1 1, reason 2 1, reason 3 1, reason 4 1, …")


def test_watched_summary_shows_the_devices_that_need_attention() -> None:
    shown = summary(*ROWS, most_rows=9)
    assert [line.split()[0] for line in shown[shown.index("") + 1 :]] == ["DEVICE", "door", "sink", "bell"]
    assert summary(*ROWS, most_rows=2)[-1] == "and 1 more"
    assert "" not in summary(ROWS[0], most_rows=9)


def test_watched_summary_shows_the_devices_of_the_states_that_are_asked_for() -> None:
    shown = summary(*ROWS, most_rows=9, selection=Selection("shop", states=frozenset([State.HELD])))
    assert [line.split()[0] for line in shown[shown.index("") + 1 :]] == ["DEVICE", "till"]
    shown = summary(*ROWS, most_rows=9, selection=Selection("shop", versions=("0.1.1",)))
    assert [line.split()[0] for line in shown[shown.index("") + 1 :]] == ["DEVICE", "sink", "bell"]


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d"), (9e8, "10416d")],
)
def test_age_has_one_unit(seconds: float, age: str) -> None:
    assert describe_age(NOON - timedelta(seconds=seconds), NOON) == age
    assert describe_age(None, NOON) == ""


def test_only_all_devices_are_100_percent() -> None:
    assert describe_percent(100) == "100 %"
    assert describe_percent(99.9999) == "99.99 %"
    assert describe_percent(0.1 * 3) == "0.3 %"


# --- Gateways ---------------------------------------------------------------------------------------------------------


def updating(name: str, *gateways: str) -> Row:
    return row(name, State.UPDATING, progress=37.5, gateways=gateways)


def held_back(name: str, progress: float | None, *gateways: str) -> Row:
    return row(name, State.HELD, progress=progress, held="window", gateways=gateways)


WARNING = (
    "warning: gateway hub is being updated at the same time as {} behind it, and may take their blocks for its own: "
    "pause one side (docs/gateways.md)"
)


@pytest.mark.parametrize(
    "rows",
    [
        [updating("hub"), updating("lamp", "hub")],
        [updating("lamp", "other", "hub", "hub"), updating("hub", "hub")],
        [held_back("hub", 100.0), updating("lamp", "hub")],
        [updating("hub"), held_back("lamp", 37.5, "hub")],
        [row("hub", State.STALLED), row("lamp", State.ROLLED_BACK, gateways=("hub",))],
    ],
)
def test_gateway_and_a_device_behind_it_that_update_at_the_same_time_are_a_warning(rows: list[Row]) -> None:
    for pages in ([rows], [rows[:1], rows[1:]]):
        assert lines(pages=pages)[-1] == WARNING.format("lamp")
    assert document(*rows)["gatewayConflicts"] == [{"gateway": "hub", "devices": ["lamp"], "count": 1}]


@pytest.mark.parametrize(
    "rows",
    [
        [updating("hub"), updating("lamp")],
        [updating("hub"), Row("lamp", State.IN_SYNC, gateways=("hub",))],
        [Row("hub", State.IN_SYNC), updating("lamp", "hub"), updating("till", "hub")],
        [updating("hub"), held_back("lamp", None, "hub")],
        [updating("hub"), row("lamp", State.ROLLED_BACK, held="backoff", gateways=("hub",))],
        [Row("hub", State.FAILED), updating("lamp", "hub")],
        [updating("hub", "hub")],
        [updating("lamp", "gone")],
    ],
)
def test_there_is_no_warning_unless_both_sides_update(rows: list[Row]) -> None:
    assert not any("warning" in line for line in lines(*rows))
    assert document(*rows)["gatewayConflicts"] == []


def test_warning_names_some_of_many_devices_and_steers_no_terminal() -> None:
    rows = [updating("hub"), *(updating(f"{number:02}\n", "hub") for number in range(15))]
    line = lines(*rows)[-1]
    assert line.isprintable()
    assert "as 00\N{REPLACEMENT CHARACTER}, 01" in line
    assert "09\N{REPLACEMENT CHARACTER} and 5 more behind it" in line


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_document_has_the_devices_and_their_numbers() -> None:
    held = row(
        "lamp",
        State.HELD,
        "window",
        "closed",
        progress=37.5,
        held="window",
        held_until=NOON + timedelta(hours=1),
        failed=(FailedVersion("0.0.9", "ab", 2, NOON),),
        last_change=NOON,
        reported=NOON,
        seen=NOON,
        gateways=("hub",),
    )
    selection = Selection("shop", "a=b")
    assert document(
        held,
        Row("gate"),
        selection=selection,
        rollout=replace(ROLLOUT, stop=Stop(StopKind.PAUSED, "updates are paused")),
    ) == {
        "application": "shop",
        "devices": [
            {
                "device": "lamp",
                "state": "held",
                "reason": "window",
                "message": "closed",
                "since": TIME,
                "current": "0.1.0",
                "target": "0.1.1",
                "inSync": False,
                "progress": 37.5,
                "held": "window",
                "heldUntil": "2026-11-23T13:00:00Z",
                "attempts": 0,
                "failedVersions": [{"version": "0.0.9", "checksum": "ab", "attempts": 2, "at": TIME}],
                "lastChange": TIME,
                "lastError": None,
                "reported": TIME,
                "seen": TIME,
                "gateways": ["hub"],
            },
            {
                "device": "gate",
                "state": "unknown",
                "reason": None,
                "message": None,
                "since": None,
                "current": None,
                "target": None,
                "inSync": None,
                "progress": None,
                "held": None,
                "heldUntil": None,
                "attempts": 0,
                "failedVersions": [],
                "lastChange": None,
                "lastError": None,
                "reported": None,
                "seen": None,
                "gateways": [],
            },
        ],
        "selection": {"labels": "a=b", "states": [], "versions": [], "stalledAfterSeconds": 3600.0, "shown": 2},
        "totals": {
            "devices": 2,
            "failed": 0,
            "rolled-back": 0,
            "stalled": 0,
            "held": 1,
            "updating": 0,
            "in-sync": 0,
            "unknown": 1,
            "reasons": {"held": {"window": 1}},
            "versions": {"0.1.0": {"current": 1, "target": 0}, "0.1.1": {"current": 0, "target": 1}},
        },
        "rollout": {
            "version": "0.1.1",
            "percent": 10.0,
            "stage": 1,
            "stages": 3,
            "devices": 5000,
            "drawn": 509,
            "withResult": 365,
            "in-sync": 280,
            "rolled-back": 73,
            "failed": 12,
            "success": 28000 / 365,
            "stopped": {"reason": "paused", "message": "updates are paused"},
        },
        "rolloutProblem": None,
        "gatewayConflicts": [],
    }


def test_document_of_numbers_has_no_devices() -> None:
    found = document(*ROWS, has_devices=False, rollout_problem="gone")
    assert "devices" not in found
    assert (found["totals"]["devices"], found["selection"]["shown"]) == (7, 0)
    assert (found["rollout"], found["rolloutProblem"]) == (None, "gone")


def test_document_says_which_devices_it_has() -> None:
    selection = Selection("shop", None, frozenset([State.HELD, State.FAILED]), ("0.1.0",), timedelta(minutes=5))
    found = document(*ROWS, selection=selection)
    assert [device["device"] for device in found["devices"]] == ["till", "door"]
    assert found["selection"] == {
        "labels": None,
        "states": ["failed", "held"],
        "versions": ["0.1.0"],
        "stalledAfterSeconds": 300.0,
        "shown": 2,
    }
    assert found["totals"]["devices"] == 7


def test_document_without_devices_is_one_too() -> None:
    assert document()["devices"] == []


def test_document_that_breaks_off_is_whole_and_says_why() -> None:
    pieces: list[str] = []
    shown = Document(ALL, pieces.append)
    shown.break_off("not even begun")
    assert pieces == []
    shown.show([Row("lamp"), Row("gate")])
    shown.break_off("registry: gone")
    broken = json.loads("".join(pieces))
    assert [device["device"] for device in broken["devices"]] == ["lamp", "gate"]
    assert broken["error"] == "registry: gone"
    assert "totals" not in broken


def test_document_has_one_device_a_line() -> None:
    pieces: list[str] = []
    shown = Document(ALL, pieces.append)
    shown.show([Row("lamp")])
    shown.show([Row("a\nb")])
    shown.end(Summary(Totals()))
    texts = "".join(pieces).splitlines()
    assert [json.loads(text.rstrip(","))["device"] for text in texts[1:3]] == ["lamp", "a\nb"]
    assert len(texts) == 4


# --- Anything that a status may hold ----------------------------------------------------------------------------------

#: What a JSON text can spell: lone surrogates, too.
ANY_TEXT = st.text(st.characters(codec=None))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from(["True", "False", UNKNOWN]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
TIMES = JSON | st.just(TIME)
NEARLY_CONDITIONS = st.lists(
    JSON
    | st.fixed_dictionaries(
        {"type": st.sampled_from([IN_SYNC, PROGRESS, FAILED]) | JSON},
        optional={**dict.fromkeys(("status", "reason", "message"), JSON), "lastTransitionTime": TIMES},
    ),
    max_size=4,
)
NEARLY_FAILED = st.lists(
    st.fixed_dictionaries({}, optional={**dict.fromkeys(("version", "checksum", "attempts"), JSON), "at": TIMES}),
    max_size=4,
)
NEARLY_RECORD = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("version", "checksum", "attempts", "restart", "answered"), JSON),
        **dict.fromkeys(("started", "swapped"), TIMES),
        "failed": NEARLY_FAILED | JSON,
    },
)
NEARLY_FIRMWARE = st.fixed_dictionaries(
    {},
    optional={
        "current": JSON,
        "target": JSON,
        "conditions": NEARLY_CONDITIONS | JSON,
        "update": NEARLY_RECORD | JSON,
        "hold": st.fixed_dictionaries({}, optional=dict.fromkeys(("reason", "message", "until"), JSON)) | JSON,
        "reported": TIMES,
        "seen": TIMES,
    },
)


def each_line(row: Row) -> Iterator[str]:
    yield from lines(row)
    texts: list[str] = []
    show(TerminalTable(ALL, texts.append, now=NOON), [[row]])
    for text in texts:
        yield from text.split("\n")


@given(ANY_TEXT, JSON | st.fixed_dictionaries({"firmware": NEARLY_FIRMWARE | JSON}))
def test_whatever_stands_in_a_status_gives_lines_and_json(name: str, status: object) -> None:
    found = read_row(Device(name, status), NOON)
    shown = list(each_line(found))
    assert len(shown) >= 8
    assert all(line.isprintable() for line in shown)
    [member] = document(found)["devices"]
    assert member["device"] == name
