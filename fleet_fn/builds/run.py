"""A run of a build: its state, as its PipelineRun says."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Self

from fleet_fn.builds.labels import APPLICATION, DEVICE, read_name


class State(StrEnum):
    """How far a run is."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"

    @property
    def is_over(self) -> bool:
        """Return whether the run has ended."""
        return self not in (State.PENDING, State.RUNNING)


#: The Pipeline's Tasks, in their order.
TASKS: Final = ("clone", "build", "publish")
#: Reasons of the condition Succeeded, by Tekton 0.44 to 1.15: a run that did not fail by itself.
_CANCELLED: Final = frozenset(("Cancelled", "PipelineRunCancelled", "StoppedRunFinally", "CancelledRunFinally"))
_TIMED_OUT: Final = frozenset(("PipelineRunTimeout",))
_PENDING: Final = "PipelineRunPending"


@dataclass(frozen=True, slots=True)
class Run:
    """A PipelineRun."""

    name: str
    #: Empty if it was created by hand.
    application: str
    device: str
    state: State
    #: One word, and a sentence; Tekton's own.
    reason: str
    message: str
    created: datetime | None
    started: datetime | None
    ended: datetime | None
    params: Mapping[str, str]
    results: Mapping[str, str]
    #: The Task that runs, or that ran last; empty if none began.
    task: str

    @classmethod
    def read(cls, found: object) -> Self:
        """Read a PipelineRun; what is missing or malformed in it is empty."""
        run = _map(found)
        metadata, spec, status = _map(run.get("metadata")), _map(run.get("spec")), _map(run.get("status"))
        condition = _condition(status)
        return cls(
            name=_text(metadata.get("name")),
            application=read_name(metadata, APPLICATION),
            device=read_name(metadata, DEVICE),
            state=_state(condition, spec),
            reason=_text(condition.get("reason")),
            message=_text(condition.get("message")),
            created=_time(metadata.get("creationTimestamp")),
            started=_time(status.get("startTime")),
            ended=_time(status.get("completionTime")),
            params=_texts(spec.get("params")),
            results=_texts(status.get("results")),
            task=_last_task(status),
        )

    @property
    def revision(self) -> str:
        """The commit that was built, or else the revision that is asked for."""
        return self.results.get("commit") or self.params.get("GIT_REVISION", "")

    @property
    def version(self) -> str:
        """The version of the firmware, once it is known."""
        return self.results.get("version") or self.params.get("VERSION", "")

    @property
    def image(self) -> str:
        """The firmware as it was published, with its digest; or else its repository."""
        reference, digest = self.results.get("reference", ""), self.results.get("digest", "")
        if reference:
            return f"{reference}@{digest}" if digest else reference
        registry, image = self.params.get("REGISTRY", ""), self.params.get("IMAGE", "")
        return f"{registry.rstrip('/')}/{image}" if registry and image else image

    def age(self, now: datetime) -> timedelta | None:
        """Return the time since it was created; None if that is not known."""
        return max(now - self.created, timedelta()) if self.created else None

    def duration(self, now: datetime) -> timedelta | None:
        """Return how long it ran, or has been running; None if it has not begun."""
        if self.started is None:
            return None
        return max((self.ended or now) - self.started, timedelta())


def _state(condition: Mapping[str, Any], spec: Mapping[str, Any]) -> State:
    status, reason = condition.get("status"), condition.get("reason")
    if status == "True":
        return State.SUCCEEDED
    if status == "False":
        if reason in _CANCELLED:
            return State.CANCELLED
        return State.TIMED_OUT if reason in _TIMED_OUT else State.FAILED
    if not condition or reason == _PENDING or spec.get("status") == _PENDING:
        return State.PENDING
    return State.RUNNING


def _condition(status: Mapping[str, Any]) -> Mapping[str, Any]:
    conditions = status.get("conditions")
    for condition in conditions if isinstance(conditions, list) else []:
        if isinstance(condition, dict) and condition.get("type") == "Succeeded":
            return condition
    return {}


def _last_task(status: Mapping[str, Any]) -> str:
    """Return the Task that began last: the Pipeline runs one after the other."""
    children = status.get("childReferences")
    names = [_text(_map(child).get("pipelineTaskName")) for child in (children if isinstance(children, list) else [])]
    return max(names, key=lambda name: TASKS.index(name) if name in TASKS else len(TASKS), default="")


def _texts(entries: object) -> dict[str, str]:
    """Return the texts of a list of names and values."""
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        name, value = _map(entry).get("name"), _map(entry).get("value")
        if isinstance(name, str) and isinstance(value, str):
            found[name] = value
    return found


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
