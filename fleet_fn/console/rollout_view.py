"""A rollout as the page of its application shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from markupsafe import Markup

from fleet_fn.console.charts import draw_meter
from fleet_fn.drogue.firmware_spec import Malformed
from fleet_fn.drogue.rollout_status import Failures
from fleet_fn.drogue.spec_policy import NONE, Policy
from fleet_fn.drogue.spec_source import Image
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.overview import Overview, failures_of
from fleet_fn.fleet.rollout.wording import describe_conditions, describe_firmware, describe_source

#: Names of failed devices, and other versions that failed, that are shown.
_MAX_NAMES: Final = 10
_MAX_VERSIONS: Final = 5
#: Stages that are shown at most, and those before the one that is reached if there are more.
_MAX_STAGES: Final = 8
_STAGES_BEFORE: Final = 2


class Reach(StrEnum):
    """How a stage lies to the one that the rollout has reached."""

    PASSED = "passed"
    CURRENT = "current"
    NEXT = "next"
    LATER = "later"


@dataclass(frozen=True, slots=True)
class StageView:
    """A stage of the rollout, for people."""

    percent: float
    reach: Reach
    #: What it asks for before the next one begins.
    conditions: Sequence[str]
    since: datetime | None = None
    approved: bool = False


@dataclass(frozen=True, slots=True)
class RolloutView:
    """What a page shows of a rollout, besides its overview."""

    #: The firmware's source in words; empty if it is malformed.
    firmware: str
    #: The firmware before; empty if it is not recorded.
    previous: str
    #: The stages around the one that is reached, and how many there are before and after these.
    stages: Sequence[StageView]
    stages_before: int
    stages_after: int
    is_paused: bool
    #: The devices on which the version failed, names of the first ones, and the number that halts it.
    failed: int
    failed_names: Sequence[str]
    max_failed: int | None
    #: Other versions that failed, and on how many devices.
    other_failures: Sequence[tuple[str, int]]
    #: Percent of the devices with a result that the stage wants in sync; None if it wants none.
    least_success: float | None
    #: Labels of the devices that the rollout is about.
    labels: Sequence[str]
    #: A start selected these devices, and the same start without a selection lets the others follow.
    begins_with_some: bool
    #: Thin bars: `in_sync`, `success`, and `brake`.
    meters: Mapping[str, Markup]

    @classmethod
    def of(cls, overview: Overview) -> "RolloutView":
        """Return the view of a rollout."""
        application, version = overview.application, overview.version or ""
        policy = _policy(overview)
        failures = application.rollout.failed.get(version, Failures())
        position = overview.progress.position if overview.progress else None
        least = position.stage.success if position else None
        previous = application.previous
        stages = _stages(overview)
        window = _window(stages)
        return cls(
            _describe_firmware(application),
            f"{describe_source(previous.kind, previous.source)}, version {previous.version or 'unknown'}"
            if previous
            else "",
            stages[window],
            window.start,
            len(stages) - window.stop,
            is_paused(overview),
            failures.count,
            failures.devices[:_MAX_NAMES],
            policy.max_failed,
            [(other, each.count) for other, each in failures_of(application) if other != version][:_MAX_VERSIONS],
            least,
            [f"{key}={value}" for key, value in (policy.labels or {}).items()],
            SELECTION_LABEL in (policy.labels or {}) and isinstance(application.spec.source, Image),
            _draw_meters(overview, failures.count, policy.max_failed, least),
        )


def is_paused(overview: Overview) -> bool:
    """Return whether an operator paused all updates."""
    return bool(_policy(overview).paused)


def _policy(overview: Overview) -> Policy:
    """Return the application's policy, or none if it is malformed."""
    policy = overview.application.spec.policy
    return NONE if isinstance(policy, Malformed) else policy


def _describe_firmware(application: Application) -> str:
    try:
        return describe_firmware(application)
    except RefusedError:  # `overview.problem` says why
        return ""


def _stages(overview: Overview) -> list[StageView]:
    progress = overview.progress
    position = progress.position if progress else None
    if position is None:
        return []
    rollout = overview.application.rollout.of(overview.version or "")
    reached = len(position.stages) if rollout.complete else position.index
    found = []
    for index, stage in enumerate(overview.application.rollout_policy("stages") or ()):
        is_current = index == reached
        found.append(
            StageView(
                position.stages[index].percent,
                _reach(index - reached),
                describe_conditions(stage),
                position.since if is_current else None,
                is_current and position.approved,
            )
        )
    return found


def _window(stages: Sequence[StageView]) -> slice:
    """Return the stages to show: all, or those around the one that is reached."""
    if len(stages) <= _MAX_STAGES:
        return slice(0, len(stages))
    reached = next((index for index, stage in enumerate(stages) if stage.reach is Reach.CURRENT), len(stages))
    start = min(max(reached - _STAGES_BEFORE, 0), len(stages) - _MAX_STAGES)
    return slice(start, start + _MAX_STAGES)


def _reach(distance: int) -> Reach:
    if distance < 0:
        return Reach.PASSED
    return {0: Reach.CURRENT, 1: Reach.NEXT}.get(distance, Reach.LATER)


def _draw_meters(
    overview: Overview, failed: int, max_failed: int | None, least_success: float | None
) -> dict[str, Markup]:
    meters = {"brake": draw_meter(failed / max_failed, "failed")} if max_failed else {}
    if numbers := overview.numbers:
        meters["in_sync"] = draw_meter(numbers.in_sync / numbers.drawn if numbers.drawn else 0.0, "in-sync")
        success, wanted = numbers.success or 0.0, least_success or 0.0
        is_low = numbers.success is not None and success < wanted
        meters["success"] = draw_meter(success / 100, "failed" if is_low else "in-sync", wanted / 100)
    return meters
