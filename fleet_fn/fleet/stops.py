"""Whether the rollout of a version has stopped, and what an operator may do then."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fleet_fn.drogue.rollout_status import RolloutStatus
from fleet_fn.drogue.spec_policy import Policy


class StopKind(StrEnum):
    """Why no device gets anything of a version."""

    #: An operator aborted it.
    ABORTED = "aborted"
    #: It failed on as many devices as `maxFailed` says.
    HALTED = "halted"
    #: An operator paused all updates.
    PAUSED = "paused"


_WAYS_OUT: Final = {
    StopKind.ABORTED: "rollout start or resume takes it again",
    StopKind.HALTED: "rollout start takes a fix, rollout abort goes back, rollout resume lets it go on",
    StopKind.PAUSED: "rollout resume ends that",
}


@dataclass(frozen=True, slots=True)
class Stop:
    """The reason for which no device gets a version."""

    kind: StopKind
    message: str

    @property
    def ways_out(self) -> str:
        """What an operator may do."""
        return _WAYS_OUT[self.kind]

    def describe(self) -> str:
        """Return the stop and the ways out of it, for people."""
        return f"{self.kind}: {self.message} ({self.ways_out})"


def find_stop(policy: Policy, rollout: RolloutStatus, version: str) -> Stop | None:
    """Return why no device gets `version`; None if devices may."""
    if version in rollout.aborted:
        return Stop(StopKind.ABORTED, f"{version} was aborted")
    if rollout.halts(version, policy.max_failed):
        count = rollout.failed[version].count
        devices = "1 device" if count == 1 else f"{count} devices"
        return Stop(StopKind.HALTED, f"{version} failed on {devices}, and maxFailed is {policy.max_failed}")
    return Stop(StopKind.PAUSED, "updates are paused") if policy.paused else None
