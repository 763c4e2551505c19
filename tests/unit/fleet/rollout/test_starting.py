"""What an operator is told once a rollout has begun."""

from datetime import UTC, datetime
from typing import Any

import pytest

from fleet_fn.fleet.rollout.actions import SELECTION_LABEL
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.starting import start_notes

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def notes(**rollout: Any) -> str:
    spec = {"firmware": {"container": {"image": "sensor:1.1.0"}, "rollout": rollout}}
    failed = {"1.1.0": {"count": 2, "devices": ["a", "b"]}}
    found = {"metadata": {"name": "shop"}, "spec": spec, "status": {"firmware": {"rollout": {"failed": failed}}}}
    return "\n".join(start_notes(Application.read(found), "1.1.0", NOW))


def test_nothing_is_said_of_a_careful_rollout() -> None:
    stages = [{"percent": 1, "approval": True}, {"percent": 10, "after": "1h", "success": 99}, {"percent": 100}]
    assert notes(stages=stages, maxFailed=3) == ""


@pytest.mark.parametrize("after", [{}, {"after": "0s"}])
def test_success_without_time_for_results_is_warned_of(after: dict[str, str]) -> None:
    stages = [{"percent": 1, "success": 99, **after}, {"percent": 10, "success": 99, "after": "1h"}, {"percent": 100}]
    assert notes(stages=stages).startswith("success without after (1 %): the first results decide")


def test_stages_that_hold_selected_devices_back_are_told() -> None:
    told = notes(stages=[{"percent": 30, "approval": True}, {"percent": 100}], labels={SELECTION_LABEL: "1.1.0"})
    assert "30 % of them may start now; --percent 100 lets in all of them" in told
    assert notes(percent=100, labels={SELECTION_LABEL: "1.1.0"}) == ""
    assert notes(percent=10, labels={"ring": "canary"}) == ""


def test_conditions_of_the_last_stage_a_pause_and_a_halt_are_told() -> None:
    told = notes(stages=[{"percent": 100, "success": 99}], paused=True, maxFailed=2)
    assert "those of the last one have no effect" in told
    assert "updates are paused" in told
    assert "1.1.0 is halted: it failed on 2 devices" in told
