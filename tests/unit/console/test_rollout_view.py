"""What a page shows of a rollout: its stages, its brake, and its previous firmware."""

from typing import Any

import pytest

from fleet_fn.console.rollout_view import Reach, RolloutView
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.overview import Overview
from fleet_fn.fleet.rollout.progress import assess
from fleet_fn.fleet.rollout.target import find_target
from tests.support.fleets import NOON


def view_of(rollout: dict[str, Any], status: dict[str, Any] | None = None) -> RolloutView:
    """The view of a rollout of 2.0.0 without devices."""
    firmware = {"container": {"image": "pump:2.0.0"}, "rollout": rollout}
    recorded = {"version": "2.0.0", "since": "2026-11-23T09:00:00Z", **(status or {})}
    application = Application.read(
        {"metadata": {"name": "pumps"}, "spec": {"firmware": firmware}, "status": {"firmware": {"rollout": recorded}}}
    )
    progress = assess(application, "2.0.0", NOON, lambda: pytest.fail("counts devices"))
    return RolloutView.of(Overview(application, NOON, find_target(application, None).target, progress, None))


def stages(count: int) -> list[dict[str, Any]]:
    return [{"percent": number, "after": "1h", "approval": True} for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "reached", "before", "percents", "after"),
    [
        (1, 0, 0, [1], 0),
        (8, 7, 0, [*range(1, 9)], 0),
        (9, 0, 0, [*range(1, 9)], 1),
        (100, 50, 48, [*range(49, 57)], 44),
        (100, 99, 92, [*range(93, 101)], 0),
    ],
)
def test_stages_around_the_reached_one_are_shown(
    count: int, reached: int, before: int, percents: list[int], after: int
) -> None:
    view = view_of({"stages": stages(count)}, {"stage": reached})
    assert (view.stages_before, [stage.percent for stage in view.stages], view.stages_after) == (
        before,
        percents,
        after,
    )
    assert [stage.percent for stage in view.stages if stage.reach is Reach.CURRENT] == [reached + 1]


def test_stages_of_a_complete_rollout_are_all_passed() -> None:
    view = view_of({"stages": stages(20)}, {"stage": 3, "complete": True})
    assert {stage.reach for stage in view.stages} == {Reach.PASSED}
    assert (view.stages_before, view.stages_after) == (12, 0)


def test_only_the_reached_stage_has_a_time_and_an_approval() -> None:
    view = view_of({"stages": stages(3)}, {"stage": 1, "approved": True})
    assert [stage.since is not None for stage in view.stages] == [False, True, False]
    assert [stage.approved for stage in view.stages] == [False, True, False]
    assert [stage.reach for stage in view.stages] == [Reach.PASSED, Reach.CURRENT, Reach.NEXT]
    assert view.stages[0].conditions == ["approval", "after 1h"]


def test_failures_of_the_version_and_of_others_are_apart() -> None:
    failed = {"2.0.0": {"count": 30, "devices": [f"pump{number}" for number in range(12)]}, "1.9.0": {"count": 4}}
    view = view_of({"maxFailed": 40, "labels": {"site": "oslo"}}, {"failed": failed})
    assert (view.failed, len(view.failed_names), view.max_failed) == (30, 10, 40)
    assert view.other_failures == [("1.9.0", 4)]
    assert view.labels == ["site=oslo"]
    assert 'width="75.000%"' in view.meters["brake"]


def test_previous_firmware_is_told_with_its_version() -> None:
    assert view_of({}, {"previous": {"file": {"name": "pump.bin"}}}).previous == "file pump.bin, version unknown"
    assert view_of({}).previous == ""
