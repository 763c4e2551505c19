"""Where a rollout stands, and what its next stage needs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_fn.drogue.update_record import timestamp
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.progress import Progress, Standing, assess, describe_time, round_percent
from fleet_fn.fleet.rollout_numbers import RolloutNumbers

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def numbers(in_sync: int = 0, rolled_back: int = 0, failed: int = 0, drawn: int = 100) -> RolloutNumbers:
    return RolloutNumbers("2", 10, 1000, drawn, in_sync, rolled_back, failed)


def look(
    stages: Sequence[object] | None,
    stage: int = 0,
    count: RolloutNumbers | None = None,
    *,
    policy: dict[str, Any] | None = None,
    in_full: bool = False,
    since: datetime | None = NOW - HOUR,
    **status: Any,
) -> Progress:
    """Where a rollout of version 2 stands; without `count`, no device may be counted."""

    def counted() -> RolloutNumbers:
        assert count is not None, "the devices were counted for nothing"
        return count

    rollout = {"version": "2", "stage": stage, **({"since": timestamp(since)} if since else {}), **status}
    firmware = {"container": {"image": "x"}, "rollout": {**({"stages": stages} if stages else {}), **(policy or {})}}
    found = {"metadata": {}, "spec": {"firmware": firmware}, "status": {"firmware": {"rollout": rollout}}}
    return assess(Application.read(found), "2", NOW, counted, in_full=in_full)


def test_a_stage_without_conditions_is_ready() -> None:
    assert look([{"percent": 1}, {"percent": 2}]).standing is Standing.READY


@pytest.mark.parametrize(
    ("stage", "standing", "message"),
    [
        ({"after": "1h"}, Standing.READY, "after: passed at 2026-11-29T12:00:00Z"),
        (
            {"after": "61m"},
            Standing.WAITING,
            "after: the stage is not over until 2026-11-29T12:01:00Z",
        ),
        ({"over": "1h"}, Standing.READY, "over: passed at 2026-11-29T12:00:00Z"),
        (
            {"over": "3h"},
            Standing.WAITING,
            "over: the share still grows until 2026-11-29T14:00:00Z",
        ),
        ({"approval": True}, Standing.WAITING, "approval: not given (rollout approve)"),
    ],
)
def test_times_and_approval_hold_a_stage(stage: dict[str, Any], standing: Standing, message: str) -> None:
    progress = look([{"percent": 1, **stage}, {"percent": 2}])
    assert (progress.standing, progress.message) == (standing, message)


def test_approval_is_of_this_stage() -> None:
    assert look([{"percent": 1, "approval": True}, {"percent": 2}], approved=True).standing is Standing.READY


def test_an_unknown_time_has_not_passed() -> None:
    progress = look([{"percent": 1, "after": "1s"}, {"percent": 2}], since=None)
    assert progress.standing is Standing.WAITING
    assert progress.message == "after: the time when the stage began is not recorded"


@pytest.mark.parametrize(
    ("count", "standing"),
    [
        (numbers(drawn=0), Standing.READY),
        (numbers(), Standing.WAITING),
        (numbers(99, 1), Standing.READY),
        (numbers(98, 1, 1), Standing.FAILING),
        (numbers(0, 1), Standing.FAILING),
        (numbers(1), Standing.READY),
    ],
)
def test_success_is_of_the_devices_with_a_result(count: RolloutNumbers, standing: Standing) -> None:
    assert look([{"percent": 1, "success": 99}, {"percent": 2}], count=count).standing is standing


def test_devices_are_counted_only_if_nothing_else_is_missing() -> None:
    stages = [{"percent": 1, "after": "2h", "success": 99}, {"percent": 2}]
    assert look(stages).standing is Standing.WAITING
    assert [each.key for each in look(stages).requirements] == ["after"]
    full = look(stages, count=numbers(0, 1), in_full=True)
    assert full.standing is Standing.FAILING
    assert [(each.key, each.is_met) for each in full.requirements] == [("after", False), ("success", False)]


def test_the_last_stage_is_complete_once_its_share_has_grown() -> None:
    stages = [{"percent": 1}, {"percent": 100, "over": "2h", "success": 99, "approval": True, "after": "9d"}]
    assert look(stages, 1).standing is Standing.WAITING
    assert look(stages, 1, since=NOW - 2 * HOUR).standing is Standing.COMPLETE
    assert look([{"percent": 1}], 7).standing is Standing.COMPLETE


def test_a_version_that_is_not_recorded_is_new() -> None:
    assert look([{"percent": 1}, {"percent": 2}], version="1").standing is Standing.NEW


def test_without_stages_there_is_nothing_to_move() -> None:
    assert look(None).message == "there are no stages; 100 % of devices are let in"
    assert look(None, policy={"percent": 2.5}).message == "there are no stages; 2.5 % of devices are let in"
    selected = look(None, policy={"labels": {"ring": "a"}}).message
    assert selected == "there are no stages; 100 % of devices with its labels are let in"
    assert look([{"percent": 1}, {"percent": 2}], complete=True).standing is Standing.COMPLETE


@pytest.mark.parametrize(
    ("policy", "status", "standing"),
    [
        ({"paused": True}, {}, Standing.PAUSED),
        ({"maxFailed": 3}, {"failed": {"2": {"count": 2}}}, Standing.READY),
        ({"maxFailed": 2}, {"failed": {"1": {"count": 2}}}, Standing.READY),
        ({"maxFailed": 2, "paused": True}, {"failed": {"2": {"count": 2}}}, Standing.HALTED),
        ({}, {"failed": {"2": {"count": 2}}}, Standing.READY),
        ({"paused": True}, {"aborted": ["2"]}, Standing.ABORTED),
        ({}, {"aborted": ["1"]}, Standing.READY),
    ],
)
def test_a_stop_comes_first(policy: dict[str, Any], status: dict[str, Any], standing: Standing) -> None:
    assert look([{"percent": 1}, {"percent": 2}], policy=policy, **status).standing is standing


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min 59 s"), (90_000, "1 d 1 h"), (7_200, "2 h"), (-5, "0 s")],
)
def test_durations_have_two_units(seconds: int, text: str) -> None:
    assert describe_time(timedelta(seconds=seconds)) == text


def test_a_percentage_does_not_look_like_the_limit_that_it_misses() -> None:
    assert round_percent(98.96, 99) == "98.96"
    assert round_percent(98.5, 99) == "98.5"
    assert round_percent(99.96) == "100.0"
