"""The rows, totals and displays of `fleet`."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.cli.fleet_display import Document, Table
from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.status_report import FAILED, IN_SYNC, PROGRESS, UNKNOWN, Condition, Report
from fleet_fn.drogue.update_record import Record
from fleet_fn.fleet.rows import Row, State, Totals, read_row

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SYNC = Condition(IN_SYNC, "True")
BEHIND = Condition(IN_SYNC, "False")


def reported(target: str, *conditions: Condition, record: Record | None = None, current: str = "0.1.0") -> Row:
    """The row of a device of which the function has reported this, at noon."""
    report = Report(current, target, conditions, record=record)
    return read_row(Device("lamp", {"firmware": report.merge_into(None, NOON)}))


def halfway(percent: str = "37.50") -> Condition:
    return Condition(PROGRESS, "Unknown", message=percent)


def held(reason: str) -> Condition:
    return Condition(IN_SYNC, "False", reason, "for people")


# --- A device's row ---------------------------------------------------------------------------------------------------


def test_a_device_that_runs_its_target_is_in_sync() -> None:
    row = reported("0.1.1", SYNC, current="0.1.1")
    assert row == Row("lamp", State.IN_SYNC, "0.1.1", "0.1.1", True, last_change="2026-11-23T12:00:00Z")


def test_a_device_with_blocks_of_its_target_is_updating() -> None:
    row = reported("0.1.1", BEHIND, halfway())
    assert (row.state, row.in_sync, row.progress, row.held) == (State.UPDATING, False, 37.5, None)


def test_a_device_that_has_nothing_of_its_target_yet_is_updating_too() -> None:
    row = reported("0.1.1", BEHIND)
    assert (row.state, row.progress) == (State.UPDATING, None)


@pytest.mark.parametrize("reason", ["paused", "rollout", "window", "backoff"])
def test_a_device_that_policy_keeps_where_it_is_is_held_back(reason: str) -> None:
    row = reported("0.1.1", held(reason), halfway())
    assert (row.state, row.held, row.progress, row.last_error) == (State.HELD, reason, 37.5, None)


@pytest.mark.parametrize("reason", ["finishing", "confirming", "settling"])
def test_a_device_on_its_way_by_a_detour_is_updating(reason: str) -> None:
    row = reported("0.1.1", held(reason), halfway())
    assert (row.state, row.held, row.progress, row.last_error) == (State.UPDATING, None, 37.5, None)


def test_a_device_that_refuses_a_block_has_failed_and_says_which() -> None:
    row = reported("0.1.1", held("block-refused"), halfway())
    assert (row.state, row.held, row.last_error) == (State.FAILED, None, "block-refused: for people")


def test_a_device_whose_target_was_given_up_has_failed_and_is_held_back() -> None:
    message = "0.1.1 did not come up, attempts: 3"
    row = reported("0.1.1", held("attempts"), Condition(FAILED, "True", "attempts", message))
    assert (row.state, row.held, row.last_error) == (State.FAILED, "attempts", message)


def test_a_device_with_an_error_has_failed_and_says_why() -> None:
    row = reported(UNKNOWN, Condition(IN_SYNC, "False", "device-offset", "power-cycle it"))
    assert (row.state, row.target, row.held) == (State.FAILED, "Unknown", None)
    assert row.last_error == "device-offset: power-cycle it"


def test_an_error_without_a_message_is_its_reason() -> None:
    row = reported(UNKNOWN, Condition(IN_SYNC, "False", "version-too-long"))
    assert row.last_error == "version-too-long"


@pytest.mark.parametrize("status", ["False", "Unknown", ""])
def test_an_update_that_has_not_failed_is_no_failure(status: str) -> None:
    row = reported("0.1.1", BEHIND, Condition(FAILED, status, "attempts", "long ago"))
    assert (row.state, row.last_error) == (State.UPDATING, None)


@pytest.mark.parametrize("status", ["True", "Unknown"])
@pytest.mark.parametrize("target", ["0.1.1", UNKNOWN])
def test_a_device_that_is_not_said_to_be_out_of_sync_is_neither_held_back_nor_failed(status: str, target: str) -> None:
    row = reported(target, Condition(IN_SYNC, status, "rollout", "for people"))
    assert row.state is (State.IN_SYNC if status == "True" else State.UNKNOWN)
    assert (row.held, row.last_error) == (None, None)


def test_attempts_are_those_at_the_target_that_is_shown() -> None:
    tried = Record("0.1.1", "ab" * 32, attempts=2)
    assert reported("0.1.1", BEHIND, record=tried).attempts == 2
    assert reported("0.1.1", SYNC, record=tried, current="0.1.1").attempts == 2
    assert reported("0.1.2", BEHIND, record=tried).attempts == 0
    assert reported(UNKNOWN, held("no-such-tag"), record=tried).attempts == 0


@pytest.mark.parametrize("latest", ["started", "swapped"])
def test_the_last_change_may_be_that_an_update_started_or_a_swap_went_out(latest: str) -> None:
    update = {"version": "0.1.1", "checksum": "ab" * 32, latest: "2026-11-23T13:30:00Z"}
    row = reported("0.1.1", BEHIND, record=Record.read(update))
    assert row.last_change == "2026-11-23T13:30:00Z"


def test_the_last_change_is_the_latest_of_our_conditions_in_utc_and_of_no_other() -> None:
    times = {
        IN_SYNC: "2026-11-23T12:00:00Z",
        PROGRESS: "2026-11-23T15:00:00.123456789+02:00",
        "Ready": "2026-11-23T23:00:00Z",
        FAILED: "tomorrow",
    }
    conditions = [{"type": kind, "status": "False", "lastTransitionTime": time} for kind, time in times.items()]
    assert read_row(Device("lamp", {"firmware": {"conditions": conditions}})).last_change == "2026-11-23T13:00:00Z"


@pytest.mark.parametrize("time", [7, "2026-11-23T12:00:00", "0001-01-01T00:00:00+14:00", "", None, ["x"]])
def test_a_time_that_is_none_is_not_shown(time: object) -> None:
    conditions = [{"type": IN_SYNC, "status": "False", "lastTransitionTime": time}]
    assert read_row(Device("lamp", {"firmware": {"conditions": conditions}})).last_change is None


@pytest.mark.parametrize("message", ["", "half", "nan", "inf", "100.01", "-1", "1e1", "37.50 %", "٣"])
def test_a_percentage_that_is_none_is_not_shown(message: str) -> None:
    assert reported("0.1.1", BEHIND, halfway(message)).progress is None


@pytest.mark.parametrize(
    "status",
    [
        None,
        {},
        {"firmware": None},
        {"firmware": {}},
        {"firmware": {"conditions": [{"type": IN_SYNC, "status": "Perhaps"}]}},
        {"firmware": {"current": 7, "target": ["x"], "conditions": {"type": IN_SYNC}, "update": "done"}},
        "nothing",
    ],
)
def test_of_a_device_without_a_report_nothing_is_known(status: object) -> None:
    assert read_row(Device("lamp", status)) == Row("lamp")


#: What a JSON text can spell: lone surrogates, too.
ANY_TEXT = st.text(st.characters(codec=None))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT | st.sampled_from(["True", "False", UNKNOWN]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
NEARLY_CONDITIONS = st.lists(
    JSON
    | st.fixed_dictionaries(
        {"type": st.sampled_from([IN_SYNC, PROGRESS, FAILED]) | JSON},
        optional=dict.fromkeys(("status", "reason", "message", "lastTransitionTime"), JSON),
    ),
    max_size=4,
)
NEARLY_RECORD = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("version", "checksum", "started", "swapped", "attempts", "restart", "previous"), JSON)
)
NEARLY_FIRMWARE = st.fixed_dictionaries(
    {},
    optional={
        "current": JSON,
        "target": JSON,
        "conditions": NEARLY_CONDITIONS | JSON,
        "update": NEARLY_RECORD | JSON,
    },
)


@given(ANY_TEXT, JSON | st.fixed_dictionaries({"firmware": NEARLY_FIRMWARE | JSON}))
def test_whatever_stands_in_a_status_gives_a_row_in_one_line_and_in_json(name: str, status: object) -> None:
    row = read_row(Device(name, status))
    lines = table(row)
    assert len(lines) >= 4
    assert all(line.isprintable() for line in lines)
    [member] = document(row)["devices"]
    assert member["device"] == name


# --- The table --------------------------------------------------------------------------------------------------------


def table(*rows: Row, width: int = 200, pages: Sequence[Sequence[Row]] = ()) -> list[str]:
    """The lines of a table with these rows, or these pages of rows."""
    lines: list[str] = []
    shown, totals = Table(lines.append, width=width), Totals()
    for page in pages or [rows]:
        shown.show(page)
        totals.add(page)
    shown.end(totals)
    return lines


def test_a_table_is_aligned_and_has_totals_below() -> None:
    rows = [
        Row("lamp", State.IN_SYNC, "0.1.1", "0.1.1", True, last_change="2026-11-23T12:00:00Z"),
        Row("gate", State.UPDATING, "0.1.0", "0.1.1", False, 37.5, None, 1, "2026-11-23T12:00:00Z"),
        Row("till", State.HELD, "0.1.0", "0.1.1", False, 100.0, "paused", 0, "2026-11-23T12:00:00Z"),
        Row("door", State.FAILED, "0.1.0", UNKNOWN, False, None, None, 0, "2026-11-23T12:00:00Z", "no tag"),
        Row("new"),
    ]
    assert table(*rows) == [
        "DEVICE        CURRENT   TARGET    IN SYNC  PROGRESS                ATTEMPTS  LAST CHANGE           LAST ERROR",
        "lamp          0.1.1     0.1.1     yes                                        2026-11-23T12:00:00Z",
        "gate          0.1.0     0.1.1     no       37.50 %                 1         2026-11-23T12:00:00Z",
        "till          0.1.0     0.1.1     no       held: paused, 100.00 %            2026-11-23T12:00:00Z",
        "door          0.1.0     Unknown   no                                         2026-11-23T12:00:00Z  no tag",
        "new           -         -         -        -                       -         -                     -",
        "",
        "5 devices: 1 in sync, 1 updating, 1 held back, 1 failed, 1 unknown",
        "0.1.1: 1 device (target of 3)",
        "0.1.0: 3 devices",
    ]


def test_a_longer_name_on_a_later_page_pushes_its_row_and_is_not_cut() -> None:
    lines = table(pages=[[Row("lamp")], [Row("l" * 60), Row("gate")]])
    assert lines[2].startswith("l" * 60 + "  -  ")
    assert lines[3].index("-") == lines[1].index("-")


def test_a_column_does_not_grow_without_end() -> None:
    lines = table(Row("l" * 250), Row("gate"))
    assert lines[1].startswith("l" * 250 + "  -")
    assert lines[2].index("-") == 42


def test_a_name_of_wide_characters_and_marks_is_aligned() -> None:
    lines = table(Row("温度計"), Row("ku\N{COMBINING DIAERESIS}che"), Row("gate"))
    assert [line.index("-") for line in lines[1:4]] == [11, 15, 14]


def test_only_an_error_is_cut_to_what_fits() -> None:
    failed = Row("lamp", State.FAILED, "0.1.0", UNKNOWN, False, last_error="x" * 300)
    assert len(table(failed, width=150)[1]) == 150
    assert table(failed, width=150)[1].endswith("x…")
    assert table(failed, width=80)[1].endswith("  " + "x" * 19 + "…")


def test_control_characters_do_not_reach_the_terminal() -> None:
    evil = "a\x1b[2Jb\nc\x9b\u202e"
    lines = table(Row(evil, State.FAILED, evil, evil, False, 1.0, evil, 0, "2026-11-23T12:00:00Z", evil))
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith("a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c")


def test_versions_stand_in_the_order_in_which_people_count_them() -> None:
    rows = [Row(version, current=version) for version in ("0.9.0", "0.10.0", "0.10", "0.2.0", "0.10.0-rc1")]
    assert [line.partition(":")[0] for line in table(*rows)[-5:]] == ["0.10.0-rc1", "0.10.0", "0.10", "0.9.0", "0.2.0"]


def test_versions_of_any_length_are_counted_by_what_they_begin_with() -> None:
    totals = Totals()
    totals.add(Row("lamp", current="9" * 60_000 + str(number), target="7" * 60_000) for number in range(9))
    assert totals.versions == ["9" * 255, "7" * 255]
    assert table(Row("lamp", current="9" * 60_000))[-1] == "9" * 255 + ": 1 device"


def test_an_application_without_devices_has_a_table_too() -> None:
    assert table()[1:] == ["", "0 devices: 0 in sync, 0 updating, 0 held back, 0 failed, 0 unknown"]


# --- Gateways ---------------------------------------------------------------------------------------------------------


def updating(name: str, *gateways: str) -> Row:
    return Row(name, State.UPDATING, "0.1.0", "0.1.1", False, 37.5, gateways=gateways)


def held_back(name: str, progress: float | None, *gateways: str) -> Row:
    return Row(name, State.HELD, "0.1.0", "0.1.1", False, progress, "window", gateways=gateways)


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
    ],
)
def test_a_gateway_and_a_device_behind_it_that_update_at_the_same_time_are_a_warning(rows: list[Row]) -> None:
    for pages in ([rows], [rows[:1], rows[1:]]):
        assert table(pages=pages)[-1] == WARNING.format("lamp")
    assert document(*rows)["gatewayConflicts"] == [{"gateway": "hub", "devices": ["lamp"], "count": 1}]


@pytest.mark.parametrize(
    "rows",
    [
        [updating("hub"), updating("lamp")],
        [updating("hub"), Row("lamp", State.IN_SYNC, gateways=("hub",))],
        [Row("hub", State.IN_SYNC), updating("lamp", "hub"), updating("till", "hub")],
        [updating("hub"), held_back("lamp", None, "hub")],
        [Row("hub", State.FAILED), updating("lamp", "hub")],
        [updating("hub", "hub")],
        [updating("lamp", "gone")],
    ],
)
def test_there_is_no_warning_unless_both_sides_update(rows: list[Row]) -> None:
    assert not any("warning" in line for line in table(*rows))
    assert document(*rows)["gatewayConflicts"] == []


def test_a_warning_names_some_of_many_devices_and_steers_no_terminal() -> None:
    rows = [updating("hub"), *(updating(f"{number:02}\n", "hub") for number in range(15))]
    line = table(*rows)[-1]
    assert line.isprintable()
    assert "as 00\N{REPLACEMENT CHARACTER}, 01" in line
    assert "09\N{REPLACEMENT CHARACTER} and 5 more behind it" in line


# --- JSON -------------------------------------------------------------------------------------------------------------


def document(*rows: Row) -> Any:
    pieces: list[str] = []
    shown, totals = Document("shop", pieces.append), Totals()
    shown.show(rows)
    totals.add(rows)
    shown.end(totals)
    return json.loads("".join(pieces))


def test_a_document_has_the_devices_and_their_totals() -> None:
    row = Row("lamp", State.HELD, "0.1.0", "0.1.1", False, 37.5, "paused", 1, "2026-11-23T12:00:00Z", None)
    assert document(row, Row("gate")) == {
        "application": "shop",
        "devices": [
            {
                "device": "lamp",
                "current": "0.1.0",
                "target": "0.1.1",
                "inSync": False,
                "progress": 37.5,
                "held": "paused",
                "attempts": 1,
                "lastChange": "2026-11-23T12:00:00Z",
                "lastError": None,
            },
            {
                "device": "gate",
                "current": None,
                "target": None,
                "inSync": None,
                "progress": None,
                "held": None,
                "attempts": 0,
                "lastChange": None,
                "lastError": None,
            },
        ],
        "totals": {
            "devices": 2,
            "inSync": 0,
            "updating": 0,
            "held": 1,
            "failed": 0,
            "unknown": 1,
            "versions": {"0.1.0": {"current": 1, "target": 0}, "0.1.1": {"current": 0, "target": 1}},
        },
        "gatewayConflicts": [],
    }


def test_a_document_without_devices_is_one_too() -> None:
    assert document()["devices"] == []


def test_a_document_that_breaks_off_is_whole_and_says_why() -> None:
    pieces: list[str] = []
    shown = Document("shop", pieces.append)
    shown.break_off("not even begun")
    assert pieces == []
    shown.show([Row("lamp"), Row("gate")])
    shown.break_off("registry: gone")
    broken = json.loads("".join(pieces))
    assert [device["device"] for device in broken["devices"]] == ["lamp", "gate"]
    assert broken["error"] == "registry: gone"
    assert "totals" not in broken


def test_a_document_has_one_device_a_line() -> None:
    pieces: list[str] = []
    shown = Document("shop", pieces.append)
    shown.show([Row("lamp")])
    shown.show([Row("a\nb")])
    shown.end(Totals())
    lines = "".join(pieces).splitlines()
    assert [json.loads(line.rstrip(","))["device"] for line in lines[1:3]] == ["lamp", "a\nb"]
    assert len(lines) == 4
