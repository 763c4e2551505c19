"""Changes of a rollout, as functions from an application to its changed object.

Each returns None if there is nothing to change, and raises `RefusedError` if the change makes no sense. None of them
reads or writes anything, so that a change can be made again when the object has changed meanwhile.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from fleet_fn.drogue.spec_source import IMAGE_SOURCES, Image
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.fleet.rollout.application import Application, Previous, RefusedError, with_rollout_policy
from fleet_fn.oci.reference import parse_reference
from fleet_fn.update.stages import Position

#: Label of the devices that a rollout begins with, if an operator selects some.
SELECTION_LABEL: Final = "fleet-rollout"
#: Aborted versions that are kept.
_MAX_ABORTED: Final = 16
#: The keys of `status.firmware.rollout` that are about one version.
_OF_VERSION: Final = ("version", "stage", "since", "approved", "complete", "image", "previous")

Object = dict[str, Any]


class Actor(NamedTuple):
    """The operator who changes a rollout, and when."""

    #: The Drogue user; empty if unknown.
    user: str
    now: datetime


class Target(NamedTuple):
    """The firmware that a source names now."""

    version: str
    #: `name@sha256:…`, by which it can be named even after its tag has moved; None for a file.
    image: str | None = None
    #: What the firmware asks of a device; empty for a recorded target, and if it asks for nothing.
    hardware: tuple[str, ...] = ()
    requires: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """A rollout to begin, or to change."""

    #: Reference for `container.image`, and the firmware that it names.
    image: str
    target: Target
    #: The source that the application had when `before` was resolved, and its firmware; None if it is not known.
    source: tuple[str, Mapping[str, Any]] | None = None
    before: Target | None = None
    #: Replace a source of another kind: `file` or `hawkbit`.
    replaces_source: bool = False
    #: The label's value of the devices that begin; None for all devices.
    selection: str | None = None
    #: Other policy; None leaves it.
    percent: float | None = None
    stages: Sequence[Mapping[str, Any]] | None = None
    max_failed: int | None = None


def start(application: Application, wanted: Start, actor: Actor) -> Object | None:
    """Make a firmware the application's target, and begin its rollout.

    If the rollout is of this version already, it goes on where it is. But if a selection of devices ends, or there were
    no stages so far, it begins anew: its stage and its time are not those of the whole fleet.
    """
    if application.source_section != wanted.source:
        raise RefusedError("the application's firmware has changed meanwhile; look at it, and start again")
    firmware = _with_policy(_with_image(application, wanted), wanted)
    status = _begin(application, wanted.target, _previous(application, wanted), actor.now)
    if begins_anew(application, wanted):
        status = _with(status, "approved", None) | {"stage": 0, "since": timestamp(actor.now)}
    aborted = [version for version in application.rollout.aborted if version != wanted.target.version]
    status = _with_aborted(status, aborted)
    return _finish(application, firmware, status, "start", actor)


def begin(application: Application, target: Target, actor: Actor) -> Object | None:
    """Record a version that came without `start`: its tag has moved, for instance."""
    status = _begin(application, target, _replaced(application, target), actor.now)
    return _finish(application, application.firmware, status, "advance", actor)


def advance(application: Application, version: str, stage: int, actor: Actor) -> Object | None:
    """Move the rollout of a version on from a stage; None if it has left that."""
    rollout, stages = application.rollout, application.policy.stages
    if not stages or rollout.version != version:
        return None
    position = Position.of(stages, rollout, version)
    if position.index != stage or position.is_last:
        return None
    status = {key: value for key, value in application.status.items() if key != "approved"}
    status |= {"stage": position.index + 1, "since": timestamp(actor.now)}
    return _finish(application, application.firmware, status, "advance", actor)


def pause(application: Application, actor: Actor) -> Object | None:
    """Stop all updates."""
    if application.policy.paused:
        return None
    return _finish(
        application, with_rollout_policy(application.firmware, paused=True), application.status, "pause", actor
    )


def resume(application: Application, version: str | None, actor: Actor) -> Object | None:
    """End a pause, and clear the halt and the abort of a version.

    Other versions stay halted: a device midway in one of them must not finish it.
    """
    firmware, status = application.firmware, dict(application.status)
    if application.policy.paused:
        firmware = with_rollout_policy(firmware, paused=False)
    if version is not None:
        status = _without_halt(application, status, version)
        status = _with_aborted(status, [aborted for aborted in application.rollout.aborted if aborted != version])
    return _finish(application, firmware, status, "resume", actor)


def approve(application: Application, target: Target, stage: int, actor: Actor) -> Object | None:
    """Let the rollout leave a stage that asks for approval."""
    stages = application.policy.stages
    if not stages:
        raise RefusedError("there is nothing to approve: spec.firmware.rollout has no stages")
    position = Position.of(stages, application.rollout, target.version)
    if position.index != stage:
        raise RefusedError(f"the rollout has moved to {position.describe()} meanwhile; look at it first")
    if position.is_last:
        raise RefusedError(f"there is nothing to approve: {position.describe()} is the last")
    if not position.stage.approval:
        raise RefusedError(f"there is nothing to approve: {position.describe()} asks for no approval")
    if position.approved:
        return None
    status = _begin(application, target, _replaced(application, target), actor.now)
    return _finish(application, application.firmware, {**status, "approved": True}, "approve", actor)


def abort(application: Application, target: Target | None, previous_version: str | None, actor: Actor) -> Object | None:
    """Go back to the firmware from before the rollout, on all devices.

    Args:
        application: the application.
        target: its firmware now; None if only the application's object tells. If a tag has moved to another version
            since the rollout was recorded, that one is aborted.
        previous_version: version of the previous firmware, if the application's object does not tell it.
        actor: the operator.

    """
    previous, version = application.previous, application.rollout.version
    if target is not None and version not in (None, target.version):
        previous, version = _replaced(application, target), target.version
    if previous is None or version is None:
        raise RefusedError(
            "no previous firmware is recorded, because the rollout was not begun with `rollout start`, or went back "
            "already: pause it, or start the firmware that devices should have"
        )
    back_to = previous.version or previous_version
    if back_to is None:
        raise RefusedError(
            "the version of the previous firmware is not known: start it by its name, or set FIRMWARE_REGISTRY"
        )
    if back_to == version:
        raise RefusedError(
            f"the previous firmware's tag names {version} by now: start the firmware that you want by its name"
        )
    firmware = with_rollout_policy(
        _with_source(application, previous.kind, previous.source), labels=_labels(application)
    )
    if application.policy.paused:
        firmware = with_rollout_policy(firmware, paused=False)
    status = {key: value for key, value in application.status.items() if key not in _OF_VERSION}
    status |= {"version": back_to, "stage": 0, "since": timestamp(actor.now), "complete": True}
    if (image := previous.source.get("image")) and "@" in image:
        status["image"] = image
    status = _without_halt(application, status, back_to)  # else the devices could not go back
    aborted = [name for name in application.rollout.aborted if name not in (version, back_to)]
    return _finish(application, firmware, _with_aborted(status, [*aborted, version]), "abort", actor)


def begins_anew(application: Application, wanted: Start) -> bool:
    """Return whether a start of the same version begins at the first stage again."""
    was_selected = SELECTION_LABEL in (application.policy.labels or {})
    had_stages = application.policy.stages is not None
    return (was_selected and wanted.selection is None) or (wanted.stages is not None and not had_stages)


def is_halted(application: Application, version: str) -> bool:
    """Return whether as many devices failed with a version as may."""
    return application.rollout.failed_too_often(version, application.policy.max_failed)


def halted_versions(application: Application) -> list[str]:
    """Return the versions that are halted or aborted."""
    halted = [version for version in application.rollout.failed if is_halted(application, version)]
    return sorted({*halted, *application.rollout.aborted})


def _begin(application: Application, target: Target, previous: Previous | None, now: datetime) -> Object:
    """Return the status of a version's rollout, which may be under way already."""
    if application.rollout.version == target.version:
        return _with(dict(application.status), "image", target.image)
    status = {key: value for key, value in application.status.items() if key not in _OF_VERSION}
    status |= {"version": target.version, "stage": 0, "since": timestamp(now)}
    status = _with(status, "image", target.image)
    earlier = application.previous
    if previous and earlier and previous.version in halted_versions(application) and earlier.version != target.version:
        previous = earlier  # no operator wants to go back to a version that failed
    return _with(status, "previous", previous.to_json() if previous else None)


def _previous(application: Application, wanted: Start) -> Previous | None:
    """Return the firmware so far, in a form that names the same bytes later."""
    section, before = wanted.source, wanted.before
    if section is None:
        return None
    kind, source = section
    if before is None or before.version == wanted.target.version:
        # The tag is gone, or has been moved to the new firmware already.
        return _replaced(application, wanted.target) or (None if before else Previous(kind, source))
    pinned = before.image if _moves(application) else None
    return Previous(kind, _with_reference(source, pinned) if pinned else source, before.version)


def _replaced(application: Application, target: Target) -> Previous | None:
    """Return the recorded firmware if a target of the same source replaces it."""
    section, known = application.source_section, application.rollout.version
    if section is None or application.image is None or known in (None, target.version):
        return None
    kind, source = section
    return Previous(kind, _with_reference(source, application.image), known)


def _moves(application: Application) -> bool:
    """Return whether the application's image is expected to name other firmware later.

    A reference with a range of versions has no tag, so it counts as `latest`.
    """
    source = application.source
    return isinstance(source, Image) and parse_reference(source.reference).tag == "latest"


def _with_reference(source: Mapping[str, Any], image: str) -> Object:
    """Return a source with another image, in the place of any range."""
    return {key: value for key, value in source.items() if key != "version"} | {"image": image}


def _with_image(application: Application, wanted: Start) -> Object:
    """Return the `spec.firmware` with another image; its other keys stay."""
    section = application.source_section
    kind, source = section or ("container", {})
    if kind not in IMAGE_SOURCES:
        if not wanted.replaces_source:
            raise RefusedError(
                f"the application's firmware comes from {kind}, not from an image: --replace-source replaces it"
            )
        kind, source = "container", {}
    return _with_source(application, kind, _with_reference(source, wanted.image))


def _with_source(application: Application, kind: str, source: Mapping[str, Any]) -> Object:
    """Return the `spec.firmware` with another source."""
    section = application.source_section
    firmware = {key: value for key, value in application.firmware.items() if section is None or key != section[0]}
    return {**firmware, kind: dict(source)}


def _with_policy(firmware: Mapping[str, Any], wanted: Start) -> Object:
    """Return a `spec.firmware` with the policy of a start."""
    policy = firmware.get("rollout")
    labels = dict((policy.get("labels") if isinstance(policy, dict) else None) or {})
    labels.pop(SELECTION_LABEL, None)
    if wanted.selection is not None:
        labels[SELECTION_LABEL] = wanted.selection
    changed = with_rollout_policy(firmware, labels=labels or None)
    if wanted.percent is not None:
        changed = with_rollout_policy(changed, percent=wanted.percent, stages=None)
    if wanted.stages is not None:
        changed = with_rollout_policy(changed, stages=[dict(stage) for stage in wanted.stages], percent=None)
    if wanted.max_failed is not None:
        changed = with_rollout_policy(changed, maxFailed=wanted.max_failed)
    return changed


def _labels(application: Application) -> Object | None:
    """Return the policy's labels without the selection; None if there are none."""
    labels = {key: value for key, value in (application.policy.labels or {}).items() if key != SELECTION_LABEL}
    return labels or None


def _without_halt(application: Application, status: Object, version: str) -> Object:
    """Return a status without the failures of a version that is halted by them."""
    if not is_halted(application, version):
        return status
    return _with(status, "failed", {name: entry for name, entry in status["failed"].items() if name != version})


def _with_aborted(status: Object, aborted: Sequence[str]) -> Object:
    return _with(status, "aborted", list(aborted[-_MAX_ABORTED:]))


def _with(status: Object, key: str, value: object) -> Object:
    """Return a status with a value; without the key if the value is empty."""
    rest = {name: each for name, each in status.items() if name != key}
    return {**rest, key: value} if value else rest


def _finish(
    application: Application, firmware: Mapping[str, Any], status: Mapping[str, Any], action: str, actor: Actor
) -> Object | None:
    """Return the changed object, with the action in it; None if nothing changes."""
    if application.changed(firmware, status) is None:
        return None
    last = {"action": action, **({"user": actor.user} if actor.user else {}), "at": timestamp(actor.now)}
    return application.changed(firmware, {**status, "last": last})
