"""The share of devices that a rollout's stages let in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from fleet_fn.drogue.rollout_status import RolloutStatus
from fleet_fn.drogue.spec_policy import Stage


@dataclass(frozen=True, slots=True)
class Position:
    """The stage that a rollout has reached."""

    stages: Sequence[Stage]
    #: Index of the stage.
    index: int
    #: When the rollout reached it; None if unknown.
    since: datetime | None
    approved: bool

    @classmethod
    def of(cls, stages: Sequence[Stage], status: RolloutStatus, version: str) -> "Position":
        """Return the position of the rollout of `version`.

        Stages may have been removed since it was recorded.
        """
        status = status.of(version)
        return cls(stages, min(status.stage, len(stages) - 1), status.since, status.approved)

    @property
    def stage(self) -> Stage:
        """The stage itself."""
        return self.stages[self.index]

    @property
    def is_last(self) -> bool:
        """No stage follows."""
        return self.index == len(self.stages) - 1

    @property
    def waits_for_approval(self) -> bool:
        """The next stage needs an approval that is not there."""
        return self.stage.approval and not self.approved and not self.is_last

    @property
    def percent_before(self) -> float:
        """Percentage of the stage before, from which this one grows."""
        return self.stages[self.index - 1].percent if self.index else 0.0

    def percent_at(self, now: datetime) -> float:
        """Return the percentage of devices that are let in."""
        stage = self.stage
        if not stage.over:
            return stage.percent
        # A time ahead of our clock counts as now, and a missing one too: the share must not be too large.
        passed = max(now - self.since, timedelta()) if self.since else timedelta()
        return self.percent_before + (stage.percent - self.percent_before) * min(passed / stage.over, 1.0)

    def lets_in_at(self, percent: float) -> datetime | None:
        """Return when the growing share reaches `percent`; None if unknown or never."""
        stage = self.stage
        if not stage.over or self.since is None or not self.percent_before <= percent < stage.percent:
            return None
        passed = stage.over * ((percent - self.percent_before) / (stage.percent - self.percent_before))
        return self.since + passed + timedelta.resolution  # the product is rounded, perhaps down

    def describe(self) -> str:
        """Return the stage for people."""
        grows = "up to " if self.stage.over else ""
        return f"stage {self.index + 1} of {len(self.stages)} ({grows}{self.stage.percent:.15g} % of devices)"
