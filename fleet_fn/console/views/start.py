"""Begin a rollout: choose a firmware and stages, and see what is checked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, g, redirect, request
from werkzeug.wrappers import Response

from fleet_fn.console.jobs import Job
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import application_url, render
from fleet_fn.console.selected import Selected
from fleet_fn.console.start_form import Form, describe_rows
from fleet_fn.console.views.changing import (
    SHOWN,
    ActionPage,
    NotReadYetError,
    UnfitFirmwareError,
    Wording,
    all_devices,
    naming_firmware,
)
from fleet_fn.drogue.spec_source import Image, Source
from fleet_fn.errors import PermanentError
from fleet_fn.fleet.rollout.actions import SELECTION_LABEL, Start
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.devices import edit_devices, label_value, with_label
from fleet_fn.fleet.rollout.plans import Plan, plan_start
from fleet_fn.fleet.rollout.review import ChangedMeanwhileError, fingerprint, only_as_shown
from fleet_fn.fleet.rollout.session import RolloutSession
from fleet_fn.fleet.rollout.stage_list import write_stage
from fleet_fn.fleet.rollout.starting import Candidate, start_notes
from fleet_fn.fleet.states import State

blueprint = Blueprint("start", __name__)

#: Names of devices that a page lists.
_MAX_NAMES: Final = 200
_WORDING: Final = Wording(
    "Start a rollout",
    "Start",
    "Makes a firmware the application's target. First it is checked as the function would check it, bytes included.",
)


@blueprint.route("/applications/<name>/rollout/start", methods=["GET", "POST"])
def start(name: str) -> Response:
    """Let the user choose a firmware and stages, show the exact change, or make it."""
    parts().access.check(g.user, name)
    form = Form.read(request.form if request.method == "POST" else request.args)
    without_command = ActionPage(name, _WORDING, "")
    if not form.image or "edit" in request.args:
        return without_command.guard(lambda: _show_form(name, form))
    try:
        form.check_choice()
        equivalent = form.equivalent(name)
    except RefusedError as error:
        reason = error.reason
        return without_command.guard(lambda: _show_form(name, form, reason))
    page = ActionPage(name, _WORDING, equivalent, {"choices": form.url(name)}, "start.html")
    return page.guard(lambda: _answer(page, form))


def _show_form(name: str, form: Form, problem: str = "") -> Response:
    """Return the form, or the reason why there is none."""
    return ActionPage(name, _WORDING, "").guard(lambda: _render_form(name, form, problem))


def _render_form(name: str, form: Form, problem: str) -> Response:
    """Return the form, with the application's policy as it is now."""
    application = parts().session(name).read()
    source = application.source
    devices = parts().snapshots.look(g.user, name).devices
    rows = form.stage_rows(application.rollout_policy("stages"))
    return render(
        "start_form.html",
        HTTPStatus.BAD_REQUEST if problem else HTTPStatus.OK,
        name=name,
        wording=_WORDING,
        form=form,
        image=form.image or (source.reference if isinstance(source, Image) else ""),
        problem=problem,
        policy=_describe_policy(application),
        rows=rows,
        offered=form.get("offered") if problem else describe_rows(rows),
        replaces=source is not None and not isinstance(source, Image),
        states=list(State),
        versions=devices.totals.versions if devices else (),
        images=_known_images(name, source),
    )


def _known_images(application: str, source: Source | None) -> list[str]:
    """Return the firmware in an application's repository, as far as it was read."""
    repositories = parts().repositories
    if repositories is None or not isinstance(source, Image):
        return []
    try:
        listing = repositories.look(application, source, waits=False)
    except PermanentError:
        return []
    served = [entry for entry in listing.entries if entry.verdict and entry.verdict.is_served]
    return [f"{listing.reference.name}:{entry.tagged.tag}" for entry in served]


def _describe_policy(application: Application) -> str:
    """Return whom the application's policy lets in, in words."""
    policy = application.policy
    stages = [write_stage(stage) for stage in application.rollout_policy("stages") or ()]
    shares = f"stages {'; '.join(stages)}" if stages else f"{100 if policy.percent is None else policy.percent:.15g} %"
    brake = "no limit of failures" if policy.max_failed is None else f"halts at {policy.max_failed} failures"
    return f"{shares}; {brake}"


@dataclass(frozen=True, slots=True)
class _Review:
    """All that the user is to see, and to confirm."""

    form: Form
    candidate: Candidate
    plan: Plan
    #: The devices that begin; None if all do.
    selected: Selected | None

    def fingerprint(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
        """Return a text for the change, and for the devices that are labeled."""
        return f"{fingerprint(before, after)}.{self.selected.fingerprint if self.selected else ''}"


def _answer(page: ActionPage, form: Form) -> Response:
    session = parts().session(page.name, dry_run=request.method != "POST")
    application = session.read()
    try:
        review = _review(page.name, application, form, session)
    except UnfitFirmwareError as error:
        return _show_form(page.name, form, error.reason)
    if request.method != "POST":
        return _show(page, review)
    change, _, devices = request.form.get(SHOWN, "").partition(".")
    if devices != (review.selected.fingerprint if review.selected else ""):
        return _show(page, review, "other devices are selected by now")
    plan = replace(review.plan, make=only_as_shown(review.plan.make, change))
    try:
        if review.selected:
            parts().session(page.name, dry_run=True).change(plan.action, plan.make)  # before any device is labeled
            return _begin_job(page, review, plan, session)
        made = session.change(plan.action, plan.make)
    except ChangedMeanwhileError as error:
        return _show(page, review, error.reason)
    return page.finish(made, plan) if made.is_made else page.refuse(plan.nothing)


def _review(name: str, application: Application, form: Form, session: RolloutSession) -> _Review:
    """Check the firmware, and what is to be changed.

    Raises:
        NotReadYetError: the check, or the reading of the devices, goes on.
        UnfitFirmwareError: the function would refuse the firmware.
        RefusedError, NotReadyError, TransientError: it cannot be begun.

    """
    finder = parts().firmware.finder(name)
    if finder is None or not finder.settings.has_images:
        raise RefusedError("FIRMWARE_REGISTRY is not set. Set it as the function has it, e.g. ghcr.io/acme/")
    with naming_firmware():
        candidate = parts().checks.check(finder, application, form.image, anew=request.method == "POST")
    if candidate is None:
        raise NotReadYetError(f"{form.image} is being downloaded and verified, as the function would")
    version, selection = candidate.target.version, form.selection
    label = label_value(version) if selection else None
    wanted = Start(
        candidate.reference,
        candidate.target,
        application.source_section,
        candidate.before,
        replaces_source=bool(form.get("replace_source")),
        selection=label,
        percent=form.percent(),
        stages=form.stages(),
        max_failed=form.max_failed(),
    )
    selected = Selected.of(all_devices(name), selection, label) if label else None
    return _Review(form, candidate, plan_start(wanted, session.now()), selected)


def _show(page: ActionPage, review: _Review, conflict: str = "") -> Response:
    """Return the page with the checks and the exact change."""
    session, candidate, selected = parts().session(page.name, dry_run=True), review.candidate, review.selected
    found = session.change("start", review.plan.make)
    if not found.is_made and (selected is None or not selected.unlabelled):
        return page.refuse(review.plan.nothing)
    changed = Application.read(found.after)
    notes = start_notes(changed, candidate.target.version, session.now())
    if selected and selected.own:
        notes.append(f"left out, because they name their own firmware: {len(selected.own):,} devices")
    values = {
        **page.values,
        "candidate": candidate,
        "selected": selected,
        "names": selected.names[:_MAX_NAMES] if selected else (),
        "label": SELECTION_LABEL,
        "warnings": [*candidate.warnings, *notes],
        "fields": sorted(review.form.values.items()),
    }
    shown = review.fingerprint(found.before, found.after)
    return replace(page, values=values).show_change(found, review.plan.effect(changed), conflict, shown)


def _begin_job(page: ActionPage, review: _Review, plan: Plan, session: RolloutSession) -> Response:
    selected = review.selected
    assert selected is not None  # noqa: S101 - the caller has looked
    label, version = label_value(review.candidate.target.version), review.candidate.target.version
    title = f"Start of {version} on {len(selected.names):,} devices"

    def run(job: Job) -> str:
        labeled = len(selected.names) - len(selected.unlabelled)
        for edit in edit_devices(session, selected.unlabelled, lambda device: with_label(device, label)):
            job.done += 1
            labeled += edit.change is not None
            if edit.change is None:
                job.add_problem(edit.device, edit.problem)
        if not labeled:
            raise RefusedError("none of the selected devices could be labeled")
        made = session.change(plan.action, plan.make)
        snapshots.put(session.name, made.after)
        untold = f"; no event of it was sent: {made.sink_problem}" if made.sink_problem else ""
        return f"{plan.effect(Application.read(made.after))}; {labeled:,} devices are labeled{untold}"

    snapshots = parts().snapshots
    parts().jobs.start(page.name, title, g.user.name, len(selected.unlabelled), run)
    return redirect(application_url(page.name), HTTPStatus.SEE_OTHER)
