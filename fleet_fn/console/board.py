"""What the page of an application shows above its devices."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from fleet_fn.console.charts import Curve, Part, trace
from fleet_fn.console.rendering import STATE_NAMES, action_url, application_url
from fleet_fn.console.rollout_view import is_paused
from fleet_fn.console.snapshot import Devices, Snapshot
from fleet_fn.drogue.status_report import BLOCK_REFUSED, GIVEN_UP, UNKNOWN
from fleet_fn.fleet.rollout.overview import Overview
from fleet_fn.fleet.rollout.progress import Standing
from fleet_fn.fleet.rows import SWAPPED, WRITING
from fleet_fn.fleet.states import ATTENTION, State
from fleet_fn.fleet.totals import Totals

#: Versions that a bar shows by themselves.
_MAX_VERSIONS: Final = 6
#: Groups of devices that need attention.
_MAX_REASONS: Final = 8
#: Where the table of devices is in its page.
DEVICES: Final = "#devices"
#: Standings in words, and the badge of each.
STANDINGS: Final[Mapping[Standing, tuple[str, str]]] = {
    Standing.ABORTED: ("aborted", "failed"),
    Standing.HALTED: ("halted", "failed"),
    Standing.PAUSED: ("paused", "held"),
    Standing.NO_STAGES: ("no stages", "unknown"),
    Standing.COMPLETE: ("complete", "in-sync"),
    Standing.NEW: ("begins", "updating"),
    Standing.WAITING: ("waiting", "updating"),
    Standing.FAILING: ("failing", "failed"),
    Standing.READY: ("ready for the next stage", "in-sync"),
}


@dataclass(frozen=True, slots=True)
class Action:
    """A change of the rollout that makes sense now."""

    label: str
    url: str
    #: `primary` for the one that the rollout waits for, `danger` for the one that goes back, or empty.
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ReasonGroup:
    """Devices that need attention for one reason."""

    state: State
    #: The reason, in words if it is one word of the function's.
    words: str
    count: int


def actions_of(snapshot: Snapshot) -> list[Action]:
    """Return the changes that make sense now, the most likely first."""
    overview, name = snapshot.overview, snapshot.application
    if overview is None:
        return []
    progress = overview.progress
    standing = progress.standing if progress else None
    position = progress.position if progress else None
    is_stopped = standing in (Standing.ABORTED, Standing.HALTED)
    paused = is_paused(overview)
    failed = _needing_retry(snapshot.devices.totals) if snapshot.devices else 0
    offered: tuple[tuple[str, str, object], ...] = (
        ("resume", "Resume", paused or is_stopped),
        ("advance", "Advance", standing in (Standing.READY, Standing.NEW)),
        ("approve", "Approve", position and position.waits_for_approval and not is_stopped),
        ("start", "Start a rollout", True),
        ("pause", "Pause", not paused),
        ("retry", f"Retry {failed:,} failed", failed),
        ("abort", "Abort", overview.application.previous and standing is not Standing.ABORTED),
    )
    found = [(action, label) for action, label, makes_sense in offered if makes_sense]
    # A halted rollout needs a fix rather than to go on.
    awaited = "start" if is_stopped else found[0][0] if found[0][0] != "start" else ""
    found.sort(key=lambda each: each[0] != awaited)
    kinds = {awaited: "primary", "abort": "danger"}
    return [Action(label, action_url(name, action), kinds.get(action, "")) for action, label in found]


def _needing_retry(totals: Totals) -> int:
    """Return how many devices rolled back, or gave their target up."""
    return totals.states[State.ROLLED_BACK] + totals.reasons[State.FAILED, GIVEN_UP]


def state_parts(application: str, totals: Totals) -> list[Part]:
    """Return the parts of a bar of states, the good one first."""
    return [_part(application, totals, state) for state in _BAR_STATES]


def _part(application: str, totals: Totals, state: State) -> Part:
    return Part(STATE_NAMES[state], totals.states[state], state.value, _filtered(application, state=state.value))


#: From left to right: a bar fills from the left while a rollout goes well.
_BAR_STATES: Final = (
    State.IN_SYNC,
    State.UPDATING,
    State.HELD,
    State.STALLED,
    State.ROLLED_BACK,
    State.FAILED,
    State.UNKNOWN,
)


def attention_parts(application: str, totals: Totals) -> list[Part]:
    """Return how many devices are in each state that an operator should look at."""
    return [_part(application, totals, state) for state in ATTENTION if totals.states[state]]


def reasons_of(totals: Totals) -> list[ReasonGroup]:
    """Return why devices need attention, the worst and most frequent reasons first."""
    groups = [
        ReasonGroup(state, _REASONS.get(reason, reason), count)
        for state in ATTENTION
        for reason, count in totals.reasons_of(state)
    ]
    return groups[:_MAX_REASONS]


_REASONS: Final = {
    "backoff": "will try again after a pause",
    "halted": "the version is halted or aborted",
    "paused": "updates are paused",
    "rollout": "not among the devices let in",
    "approval": "the stage waits for approval",
    "window": "outside the window for updates",
    GIVEN_UP: "all attempts are used up",
    WRITING: "silent for an hour while it got blocks",
    SWAPPED: "silent for an hour after it was told to swap",
    BLOCK_REFUSED: "refuses a block, or never gets it",
    UNKNOWN: "its target is not known",
}


def version_parts(application: str, totals: Totals, target: str | None) -> list[Part]:
    """Return the parts of a bar of versions.

    The target comes first, then the most frequent, then all others as one.
    """
    counts = totals.current
    frequent = sorted(counts, key=lambda version: (version != target, -counts[version], version))
    shown, rest = frequent[:_MAX_VERSIONS], frequent[_MAX_VERSIONS:]
    others = (kind for kind in (f"version-{number}" for number in range(1, _MAX_VERSIONS + 1)))
    parts = [
        Part(
            version or "(empty)",
            counts[version],
            "target" if version == target else next(others),
            _filtered(application, version=version) if version else "",
        )
        for version in shown
    ]
    if rest:
        noun = "version" if len(rest) == 1 else "versions"
        parts.append(Part(f"{len(rest):,} other {noun}", sum(counts[version] for version in rest), "version-rest"))
    if unknown := totals.devices - counts.total():
        parts.append(Part("not known", unknown, "unknown"))
    return parts


def curve_of(devices: Devices, overview: Overview) -> Curve | None:
    """Return the curve of the rollout's version; None if there is none."""
    version = overview.version
    if devices.entries is None or version is None:
        return None
    last = overview.application.last
    began = last.at if last and last.action == "start" else None
    return devices.remember(("curve", version, began), lambda: _trace(devices, version, began))


def _trace(devices: Devices, version: str, began: datetime | None) -> Curve | None:
    rows = (entry.row for entry in devices.entries or () if not entry.has_own_firmware)
    return trace(rows, version, began, devices.at)


def _filtered(application: str, **query: Any) -> str:
    return application_url(application, **query) + DEVICES
