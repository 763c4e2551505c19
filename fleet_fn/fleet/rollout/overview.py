"""All about one rollout: what `rollout show` tells."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fleet_fn.drogue.rollout_status import Failures
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.errors import UpstreamError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.fleet.rollout.actions import Target
from fleet_fn.fleet.rollout.advancing import count_devices
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.progress import Progress, Requirement, assess
from fleet_fn.fleet.rollout.session import RolloutSession
from fleet_fn.fleet.rollout_numbers import RolloutNumbers


@dataclass(frozen=True, slots=True)
class Overview:
    """A rollout as it stands."""

    application: Application
    now: datetime
    #: None if it is not known; then `problem` says why.
    target: Target | None
    progress: Progress | None
    numbers: RolloutNumbers | None
    problem: str = ""

    @property
    def version(self) -> str | None:
        """The target's version; None if it is not known."""
        return self.target.version if self.target else None

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        application, progress = self.application, self.progress
        last = application.last
        return {
            "application": application.name,
            "source": {kind: source for kind, source in [application.source_section or ("none", None)] if source},
            "version": self.version,
            "hardware": list(self.target.hardware) if self.target else [],
            "requires": (self.target.requires or None) if self.target else None,
            "problem": self.problem or None,
            "standing": progress.standing if progress else None,
            "message": progress.message if progress else None,
            "paused": bool(application.policy.paused),
            "percent": application.policy.percent,
            "maxFailed": application.policy.max_failed,
            "stages": application.rollout_policy("stages"),
            "stage": progress.position.index if progress and progress.position else None,
            "since": _time(progress.position.since if progress and progress.position else None),
            "requirements": [_requirement(each) for each in (progress.requirements if progress else ())],
            "labels": dict(application.policy.labels or {}),
            "failed": {version: entry.to_json() for version, entry in application.rollout.failed.items()},
            "aborted": list(application.rollout.aborted),
            "previous": application.previous.to_json() if application.previous else None,
            "last": {"action": last.action, "user": last.user, "at": _time(last.at)} if last else None,
            "devices": self.numbers.to_json() if self.numbers else None,
        }


def read_overview(
    session: RolloutSession,
    find_target: Callable[[Application], Target],
    seen: Callable[[int], object] = lambda _: None,
) -> Overview:
    """Read an application and its devices.

    Args:
        session: of the application.
        find_target: finds the application's firmware.
        seen: is called after each page of devices with their number so far.

    Raises:
        PermanentError, TransientError: the application or its devices cannot be read.

    """
    application = session.read()
    now = session.now()
    try:
        target = find_target(application)
    except (UpstreamError, NotReadyError) as error:
        return Overview(application, now, None, None, None, error.reason)
    try:
        numbers = count_devices(session, application, target.version, seen)
    except RefusedError as error:
        return Overview(application, now, target, None, None, error.reason)
    progress = assess(application, target.version, now, lambda: numbers, in_full=True)
    return Overview(application, now, target, progress, numbers)


def failures_of(application: Application) -> list[tuple[str, Failures]]:
    """Return the versions that failed, the one with the most devices first."""
    return sorted(application.rollout.failed.items(), key=lambda entry: (-entry[1].count, entry[0]))


def _requirement(requirement: Requirement) -> dict[str, Any]:
    return {"key": requirement.key, "met": requirement.is_met, "message": requirement.message}


def _time(time: datetime | None) -> str | None:
    return timestamp(time) if time else None
