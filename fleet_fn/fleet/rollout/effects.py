"""Say in words what an operator's change does."""

from datetime import datetime
from typing import Final

from fleet_fn.drogue.spec_policy import REFUSE
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.update.stages import Position

#: How soon functions know of a change.
_SOON: Final = "within SPEC_TTL_SECONDS (10 if not set)"


def effect_of_start(application: Application, version: str, now: datetime) -> str:
    """Return which devices get a version that was started."""
    who = "devices with the label" if SELECTION_LABEL in (application.policy.labels or {}) else "devices"
    policy, rollout = application.policy, application.rollout
    if rollout.of(version).complete:
        return f"{version} goes to all {who}"
    if policy.stages:
        position = Position.of(policy.stages, rollout, version)
        then = "" if position.is_last else "; rollout advance moves it on"
        return f"{version} goes to {position.percent_at(now):.15g} % of the {who}, {position.describe()}{then}"
    if policy.percent not in (None, 100):
        return f"{version} goes to {policy.percent:.15g} % of the {who}"
    return f"{version} goes to all {who}"


def share_of_selection(application: Application, version: str, now: datetime) -> float | None:
    """Return the percentage of the selected devices that may start.

    It is None if all may, or none is selected.
    """
    policy, rollout = application.policy, application.rollout
    if SELECTION_LABEL not in (policy.labels or {}) or rollout.of(version).complete:
        return None
    percent = Position.of(policy.stages, rollout, version).percent_at(now) if policy.stages else policy.percent
    return None if percent in (None, 100) else percent


def effect_of_pause() -> str:
    """Return what a pause does."""
    return f"no device gets a block or a swap, {_SOON}; rollout resume ends that"


def effect_of_resume(application: Application, version: str | None) -> str:
    """Return what the end of a pause, or of a version's halt, does."""
    limit = application.policy.max_failed
    if version is None:
        return f"updates go on, {_SOON}"
    again = f", and halts again once {limit} devices fail" if limit is not None else ""
    return f"{version} goes on, {_SOON}{again}; rollout retry --failed lets devices that gave it up try again"


def effect_of_approval(application: Application, version: str) -> str:
    """Return what an approval does."""
    stages = application.policy.stages or ()
    position = Position.of(stages, application.rollout, version)
    following = stages[min(position.index + 1, len(stages) - 1)].percent
    return f"rollout advance lets in {following:.15g} % of the devices, once all else that this stage needs is there"


def effect_of_abort(application: Application) -> str:
    """Return what an abort does."""
    aborted = application.rollout.aborted[-1] if application.rollout.aborted else "the aborted version"
    effect = f"all devices go back to {application.rollout.version}, and none gets anything of {aborted}, {_SOON}"
    if application.policy.downgrades == REFUSE:
        return f"{effect}; but devices that run {aborted} stay there, because downgrades is refuse"
    return effect
