"""The state of a device's update, read from its object."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.status_report import FAILED, IN_SYNC, PROGRESS, UNKNOWN, Condition, HoldReport, Report
from fleet_fn.drogue.update_record import FailedVersion, LastAnswered, Record
from fleet_fn.fleet.rows import STALLED_AFTER, Row, read_row
from fleet_fn.fleet.states import State

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SYNC = Condition(IN_SYNC, "True")
BEHIND = Condition(IN_SYNC, "False")
BYTES, OTHER_BYTES = "ab" * 32, "cd" * 32


def minutes(count: float) -> timedelta:
    return timedelta(minutes=count)


def read(section: object, now: datetime = NOON, stalled_after: timedelta = STALLED_AFTER) -> Row:
    """The row of a device with this `status.firmware`."""
    return read_row(Device("lamp", {"firmware": section}), now, stalled_after)


def section(target: str, *conditions: Condition, current: str = "0.1.0", **more: Any) -> dict[str, Any]:
    """What the function writes at noon."""
    return Report(current, target, conditions, **more).merge_into(None, NOON)


def reported(
    target: str, *conditions: Condition, after: timedelta = timedelta(), current: str = "0.1.0", **more: Any
) -> Row:
    """The row of a device, some time after the function has written this."""
    return read(section(target, *conditions, current=current, **more), NOON + after)


def halfway(percent: str = "37.50") -> Condition:
    return Condition(PROGRESS, "Unknown", message=percent)


def held(reason: str, message: str = "for people") -> Condition:
    return Condition(IN_SYNC, "False", reason, message)


def record(version: str = "0.1.1", **fields: Any) -> Record:
    return Record(version, BYTES, **fields)


def failed(version: str = "0.1.1", checksum: str = BYTES, attempts: int = 1) -> FailedVersion:
    return FailedVersion(version, checksum, attempts, NOON - minutes(5))


# --- States -----------------------------------------------------------------------------------------------------------


def test_device_that_runs_its_target_is_in_sync() -> None:
    row = reported("0.1.1", SYNC, current="0.1.1")
    assert row == Row(
        "lamp",
        State.IN_SYNC,
        since=NOON,
        current="0.1.1",
        target="0.1.1",
        in_sync=True,
        last_change=NOON,
        reported=NOON,
        seen=NOON,
    )


def test_device_with_blocks_of_its_target_is_updating() -> None:
    row = reported("0.1.1", BEHIND, halfway())
    assert (row.state, row.reason, row.message) == (State.UPDATING, "writing", "37.50 % written")
    assert (row.in_sync, row.progress, row.held) == (False, 37.5, None)


def test_device_that_has_nothing_of_its_target_yet_is_updating_too() -> None:
    row = reported("0.1.1", BEHIND)
    assert (row.state, row.progress, row.message) == (State.UPDATING, None, "nothing written yet")


def test_device_that_was_told_to_swap_says_so() -> None:
    row = reported("0.1.1", BEHIND, halfway("100.00"), record=record(swapped="2026-11-23T11:50:00Z"))
    assert (row.state, row.reason, row.message) == (State.UPDATING, "swapped", "told to swap")
    assert row.since == NOON - minutes(10)


@pytest.mark.parametrize("reason", ["paused", "halted", "rollout", "approval", "window", "backoff"])
def test_device_that_policy_keeps_where_it_is_is_held(reason: str) -> None:
    row = reported("0.1.1", held(reason), halfway())
    assert (row.state, row.held, row.progress, row.last_error) == (State.HELD, reason, 37.5, None)
    assert (row.reason, row.message, row.detail) == (reason, "for people", f"{reason}: for people")


def test_end_of_a_hold_is_known() -> None:
    hold = HoldReport("window", "for people", NOON + minutes(30))
    row = reported("0.1.1", held("window"), hold=hold)
    assert row.held_until == NOON + minutes(30)
    assert reported("0.1.1", SYNC, hold=hold).held_until is None


@pytest.mark.parametrize("reason", ["finishing", "confirming", "settling"])
def test_device_on_its_way_by_a_detour_is_updating(reason: str) -> None:
    row = reported("0.1.1", held(reason), halfway())
    assert (row.state, row.held, row.progress, row.last_error) == (State.UPDATING, None, 37.5, None)
    assert (row.reason, row.message) == (reason, "for people")


def test_device_that_refuses_a_block_has_failed_and_says_which() -> None:
    row = reported("0.1.1", held("block-refused"), halfway())
    assert (row.state, row.held, row.last_error) == (State.FAILED, None, "block-refused: for people")
    assert row.gave_up is False


def test_device_whose_target_was_given_up_has_failed_and_is_held() -> None:
    message = "0.1.1 did not come up, attempts: 3"
    row = reported("0.1.1", held("attempts"), Condition(FAILED, "True", "attempts", message), record=record(attempts=3))
    assert (row.state, row.held, row.last_error) == (State.FAILED, "attempts", message)
    assert (row.reason, row.detail, row.gave_up, row.since) == ("attempts", message, True, NOON)


def test_given_up_target_stays_a_failure_while_its_version_is_halted() -> None:
    row = reported("0.1.1", held("halted"), Condition(FAILED, "True", "attempts", "given up"))
    assert (row.state, row.held) == (State.FAILED, "halted")


def test_device_with_an_error_has_failed_and_says_why() -> None:
    row = reported(UNKNOWN, Condition(IN_SYNC, "False", "device-offset", "power-cycle it"))
    assert (row.state, row.target, row.held) == (State.FAILED, "Unknown", None)
    assert row.last_error == row.detail == "device-offset: power-cycle it"


def test_error_without_a_message_is_its_reason() -> None:
    row = reported(UNKNOWN, Condition(IN_SYNC, "False", "version-too-long"))
    assert row.last_error == row.detail == "version-too-long"
    assert reported(UNKNOWN, BEHIND).detail == "the target is unknown"


@pytest.mark.parametrize("status", ["False", "Unknown", ""])
def test_update_that_has_not_failed_is_no_failure(status: str) -> None:
    row = reported("0.1.1", BEHIND, Condition(FAILED, status, "attempts", "long ago"))
    assert (row.state, row.last_error) == (State.UPDATING, None)


@pytest.mark.parametrize("status", ["True", "Unknown"])
@pytest.mark.parametrize("target", ["0.1.1", UNKNOWN])
def test_device_that_is_not_said_to_be_out_of_sync_is_neither_held_nor_failed(status: str, target: str) -> None:
    row = reported(target, Condition(IN_SYNC, status, "rollout", "for people"))
    assert row.state is (State.IN_SYNC if status == "True" else State.UNKNOWN)
    assert (row.held, row.last_error) == (None, None)


# --- Rollbacks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "reason", "detail"),
    [
        (held("backoff", "0.1.1 did not come up, attempts: 1 of 3"), "backoff", "attempts: 1 of 3"),
        (held("halted", "3 devices failed"), "halted", "attempts: 1; halted: 3 devices failed"),
        (held("paused", ""), "paused", "attempts: 1; paused"),
        (BEHIND, "writing", "attempts: 1; nothing written yet"),
    ],
)
def test_device_that_rolled_back_is_rolled_back_whatever_it_does_now(
    condition: Condition, reason: str, detail: str
) -> None:
    row = reported("0.1.1", condition, record=record(attempts=1, failed=(failed(),)))
    assert (row.state, row.reason, row.since) == (State.ROLLED_BACK, reason, NOON - minutes(5))
    assert row.detail == f"0.1.1 did not come up, {detail}"


def test_device_that_gets_its_target_again_is_rolled_back_still() -> None:
    again = record(attempts=1, failed=(failed(),), swapped="2026-11-23T11:58:00Z")
    row = reported("0.1.1", BEHIND, halfway("100.00"), record=again)
    assert (row.state, row.reason) == (State.ROLLED_BACK, "swapped")
    assert row.detail == "0.1.1 did not come up, attempts: 1; told to swap"


def test_rollback_is_known_by_attempts_alone() -> None:
    row = reported("0.1.1", held("backoff"), record=record(attempts=2))
    assert (row.state, row.since) == (State.ROLLED_BACK, NOON)


def test_rollback_is_known_after_its_attempts_were_reset() -> None:
    row = reported("0.1.1", BEHIND, halfway(), record=record(failed=(failed(attempts=3),)))
    assert (row.state, row.attempts) == (State.ROLLED_BACK, 0)
    assert row.detail == "0.1.1 did not come up, attempts: 3; 37.50 % written"


def test_device_in_sync_is_in_sync_whatever_failed_earlier() -> None:
    row = reported("0.1.1", SYNC, current="0.1.1", record=record(attempts=2, failed=(failed(attempts=2),)))
    assert (row.state, row.attempts, row.failed) == (State.IN_SYNC, 2, (failed(attempts=2),))


@pytest.mark.parametrize("other", [failed("0.1.0"), failed(checksum=OTHER_BYTES)], ids=["version", "bytes"])
def test_failure_of_another_target_is_no_rollback(other: FailedVersion) -> None:
    row = reported("0.1.1", BEHIND, halfway(), record=record(failed=(other,)))
    assert (row.state, row.failed) == (State.UPDATING, (other,))


def test_attempts_are_those_at_the_target_that_is_shown() -> None:
    tried = record(attempts=2)
    assert reported("0.1.1", BEHIND, record=tried).attempts == 2
    assert reported("0.1.1", SYNC, record=tried, current="0.1.1").attempts == 2
    assert reported("0.1.2", BEHIND, record=tried).attempts == 0
    assert reported(UNKNOWN, held("no-such-tag"), record=tried).attempts == 0


# --- Silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "update", "reason"),
    [
        ((BEHIND, halfway()), record(), "writing"),
        ((BEHIND, halfway("100.00")), record(swapped="2026-11-23T11:50:00Z"), "swapped"),
        ((BEHIND,), record(started="2026-11-23T11:50:00Z"), "writing"),
        ((held("finishing"), halfway()), record(), "finishing"),
    ],
)
def test_update_that_has_begun_stalls_after_silence(
    conditions: tuple[Condition, ...], update: Record, reason: str
) -> None:
    assert reported("0.1.1", *conditions, record=update, after=minutes(59.9)).state is State.UPDATING
    row = reported("0.1.1", *conditions, record=update, after=minutes(60))
    assert (row.state, row.reason, row.since) == (State.STALLED, reason, NOON)


@pytest.mark.parametrize(
    "conditions",
    [
        (BEHIND,),
        (held("window"), halfway("100.00")),
        (SYNC,),
        (Condition(IN_SYNC, "False", "no-such-tag"), Condition(FAILED, "True", "attempts")),
    ],
    ids=["not begun", "held", "in sync", "failed"],
)
def test_silence_of_other_devices_is_no_stall(conditions: tuple[Condition, ...]) -> None:
    assert reported("0.1.1", *conditions, after=timedelta(days=9)).state is not State.STALLED


def test_silence_of_a_device_that_rolled_back_is_a_rollback() -> None:
    row = reported("0.1.1", BEHIND, halfway(), record=record(attempts=1), after=timedelta(days=9))
    assert row.state is State.ROLLED_BACK


@pytest.mark.parametrize("sign", ["reported", "seen", "update"])
def test_each_sign_of_a_device_ends_its_silence(sign: str) -> None:
    answered = LastAnswered(("x",), NOON + minutes(30))
    written = section("0.1.1", BEHIND, halfway(), record=replace(record(), answered=answered))
    old = {**written, "reported": "2026-11-23T12:00:00Z", "seen": "2026-11-23T12:00:00Z", "update": record().to_json()}
    later = written["update"] if sign == "update" else "2026-11-23T12:30:00Z"
    assert read(old, NOON + minutes(60)).state is State.STALLED
    assert read({**old, sign: later}, NOON + minutes(60)).state is State.UPDATING
    assert read({**old, sign: later}, NOON + minutes(90)).state is State.STALLED


def test_silence_may_be_as_long_as_is_asked_for() -> None:
    written = section("0.1.1", BEHIND, halfway())
    assert read(written, NOON + minutes(90), timedelta(hours=2)).state is State.UPDATING
    assert read(written, NOON + minutes(2), timedelta(minutes=1)).state is State.STALLED


def test_device_whose_object_has_no_time_does_not_stall() -> None:
    conditions = [{"type": IN_SYNC, "status": "False"}, {"type": PROGRESS, "status": "Unknown", "message": "7"}]
    row = read({"current": "0.1.0", "target": "0.1.1", "conditions": conditions})
    assert (row.state, row.since) == (State.UPDATING, None)


# --- Times ------------------------------------------------------------------------------------------------------------


def test_hold_and_error_begin_when_they_were_written() -> None:
    for target, condition in (("0.1.1", held("rollout")), (UNKNOWN, held("no-such-tag"))):
        written = section(target, condition)
        assert read({**written, "reported": "2026-11-23T12:07:00Z"}).since == NOON + minutes(7)
        del written["reported"]  # as older functions wrote it
        assert read(written).since == NOON


@pytest.mark.parametrize("latest", ["started", "swapped"])
def test_last_change_may_be_that_an_update_started_or_a_swap_went_out(latest: str) -> None:
    update = {"version": "0.1.1", "checksum": BYTES, latest: "2026-11-23T13:30:00Z"}
    row = reported("0.1.1", BEHIND, record=Record.read(update))
    assert row.last_change == row.since == NOON + minutes(90)


def test_last_change_is_the_latest_of_our_conditions_in_utc_and_of_no_other() -> None:
    times = {
        IN_SYNC: "2026-11-23T12:00:00Z",
        PROGRESS: "2026-11-23T15:00:00.123+02:00",
        "Ready": "2026-11-23T23:00:00Z",
        FAILED: "tomorrow",
    }
    conditions = [{"type": kind, "status": "False", "lastTransitionTime": time} for kind, time in times.items()]
    change = read({"conditions": conditions}).last_change
    assert change
    assert change.isoformat() == "2026-11-23T13:00:00.123000+00:00"


@pytest.mark.parametrize("time", [7, "2026-11-23T12:00:00", "0001-01-01T00:00:00+14:00", "", None, ["x"]])
def test_malformed_time_is_not_shown(time: object) -> None:
    conditions = [{"type": IN_SYNC, "status": "False", "lastTransitionTime": time}]
    row = read({"conditions": conditions, "reported": time, "seen": time})
    assert (row.last_change, row.reported, row.seen, row.since) == (None, None, None, None)


# --- Malformed parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", ["", "half", "nan", "inf", "100.01", "-1", "1e1", "37.50 %", "٣"])
def test_malformed_percentage_is_not_shown(message: str) -> None:
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
def test_nothing_is_known_of_a_device_without_a_report(status: object) -> None:
    assert read_row(Device("lamp", status), NOON) == Row("lamp", message="never reported")
