"""Let devices try again that rolled back, or gave a version up."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final

from flask import Blueprint, g, redirect, request
from werkzeug.wrappers import Response

from fleet_fn.console.command_line import command_line
from fleet_fn.console.jobs import Job
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import STATE_NAMES, application_url, device_url, notify
from fleet_fn.console.selected import fingerprint_of
from fleet_fn.console.views.changing import SHOWN, ActionPage, Wording, all_devices, warn_untold
from fleet_fn.deadline import Deadline
from fleet_fn.drogue.listing import read_device
from fleet_fn.drogue.update_record import parse_timestamp, timestamp
from fleet_fn.errors import UpstreamError
from fleet_fn.fleet.rollout import actions
from fleet_fn.fleet.rollout.actions import Object
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import edit_devices, needs_retry, tell_retry, with_retry
from fleet_fn.fleet.rollout.review import ChangedMeanwhileError, fingerprint
from fleet_fn.fleet.rollout.session import Change, RolloutSession
from fleet_fn.fleet.rows import read_row

blueprint = Blueprint("retry", __name__)

#: Time for reading a device.
_DEVICE_SECONDS: Final = 5.0
#: Devices of which one must be changeable, before a change of all is shown.
_MAX_TRIED: Final = 5
#: Names that a page lists.
_MAX_NAMES: Final = 200
_WORDING: Final = Wording(
    "Retry failed devices",
    "Let them try again",
    "Devices that rolled back, or gave the version up, forget their attempts and try again. It sets "
    "spec.firmware.retry of each.",
)


@blueprint.route("/applications/<name>/rollout/retry", methods=["GET", "POST"])
def retry(name: str) -> Response:
    """Show which devices would try again, or let them."""
    parts().access.check(g.user, name)
    device = request.values.get("device")
    token = _token()
    equivalent = command_line("rollout", "retry", application=name, device=device, failed=device is None)
    page = ActionPage(name, _WORDING, equivalent, {"fields": [("token", token)]}, "retry.html")
    if device is not None:
        title = f"Retry {device}"
        page = replace(page, wording=replace(_WORDING, title=title, button="Let it try again"))
        return page.guard(lambda: _retry_one(page, device, token))
    return page.guard(lambda: _retry_failed(page, token))


def _token() -> str:
    """Return the new value of `spec.firmware.retry`.

    It is the time when the page was first shown.
    """
    shown = parse_timestamp(request.form.get("token"))
    return timestamp(shown or datetime.now(UTC))


# --- One device -------------------------------------------------------------------------------------------------------


def _retry_one(page: ActionPage, device: str, token: str) -> Response:
    session = parts().session(page.name, dry_run=request.method != "POST")
    found, _ = session.api.fetch((page.name, device), Deadline(_DEVICE_SECONDS))
    row = read_row(read_device(found, page.name), session.now())
    if not needs_retry(row):
        return page.refuse(f"device {device} is {STATE_NAMES[row.state]}: there is nothing to retry")
    if session.dry_run:
        return _show_one(page, device, token, row.target)

    def retry_as_shown(found: Object) -> Object | None:
        changed = with_retry(found, token)
        if changed is not None and _print_of(found, changed, page.name) != request.form.get(SHOWN):
            raise ChangedMeanwhileError("by now the change is another one, because the device has changed")
        return changed

    try:
        made = session.edit((page.name, device), f"device {device}", retry_as_shown)
    except ChangedMeanwhileError as error:
        return _show_one(page, device, token, row.target, error.reason)
    if not made.is_made:
        return page.refuse(f"nothing to change: device {device} has been told to try again")
    warn_untold(tell_retry(session, [device], token))
    notify(f"device {device} will try {row.target} again", "good")
    return redirect(device_url(page.name, device), HTTPStatus.SEE_OTHER)


def _show_one(page: ActionPage, device: str, token: str, target: str | None, conflict: str = "") -> Response:
    session = parts().session(page.name, dry_run=True)
    change = session.edit((page.name, device), f"device {device}", lambda found: with_retry(found, token))
    if not change.is_made:
        return page.refuse(f"nothing to change: device {device} has been told to try again")
    warned = replace(page, values={**page.values, "warnings": _warnings(session, {device: target})})
    shown = _print_of(change.before, change.after, page.name)
    return warned.show_change(change, f"device {device} will try {target} again", conflict, shown)


def _print_of(before: Mapping[str, Any], after: Mapping[str, Any], application: str) -> str:
    """Return a text that is equal for equal changes of a device with equal targets."""
    target = read_row(read_device(before, application), datetime.now(UTC)).target
    return f"{fingerprint(before, after)}.{fingerprint_of([target or ''])}"


# --- All that failed --------------------------------------------------------------------------------------------------


def _retry_failed(page: ActionPage, token: str) -> Response:
    failed = _failed(page.name)
    if not failed:
        return page.refuse("No device rolled back or gave up.")
    shown = fingerprint_of(json.dumps(each) for each in failed.items())
    if request.method == "POST" and request.form.get(SHOWN) == shown:
        session = parts().session(page.name)
        names = list(failed)
        title = f"Retry of {len(names):,} devices"
        parts().jobs.start(page.name, title, g.user.name, len(names), lambda job: _run(job, session, names, token))
        return redirect(application_url(page.name), HTTPStatus.SEE_OTHER)
    session = parts().session(page.name, dry_run=True)
    conflict = "other devices have failed by now, or with another version" if request.method == "POST" else ""
    first = _first_change(session, list(failed), token)
    values = {
        **page.values,
        "warnings": _warnings(session, failed),
        "names": list(failed)[:_MAX_NAMES],
        "count": len(failed),
    }
    effect = f"{len(failed):,} device{'' if len(failed) == 1 else 's'} will try again"
    return replace(page, values=values).show_change(first, effect, conflict, shown)


def _failed(application: str) -> dict[str, str | None]:
    """Return the devices that rolled back or gave up, with their targets.

    Raises:
        NotReadYetError, RefusedError: see `all_devices`.

    """
    return {entry.row.device: entry.row.target for entry in all_devices(application) if needs_retry(entry.row)}


def _first_change(session: RolloutSession, names: Sequence[str], token: str) -> Change:
    """Return the change of the first device that can be changed; nothing is written.

    Raises:
        RefusedError: none of the first can be changed.

    """
    for edit in edit_devices(session, names[:_MAX_TRIED], lambda device: with_retry(device, token)):
        if edit.change:
            return edit.change
        problem = edit.problem
    raise RefusedError(f"no device can be changed: {problem}")


def _run(job: Job, session: RolloutSession, names: Sequence[str], token: str) -> str:
    """Let devices try again; return what came of it."""
    made, stopped = [], ""
    try:
        for edit in edit_devices(session, names, lambda device: with_retry(device, token)):
            job.done += 1
            if edit.change is None:
                job.add_problem(edit.device, edit.problem)
            elif edit.change.is_made:
                made.append(edit.device)
    except UpstreamError as error:
        stopped = f"{error.reason}; "
    if not made:
        raise RefusedError(f"{stopped}none of the devices could be changed")
    problem = tell_retry(session, made, token)
    untold = f"; no event of it was sent: {problem}" if problem else ""
    result = f"{stopped}{len(made):,} of {len(names):,} devices will try again{untold}"
    if stopped:
        raise RefusedError(result)
    return result


def _warnings(session: RolloutSession, failed: Mapping[str, str | None]) -> list[str]:
    halted = {*actions.halted_versions(session.read())} & {*failed.values()}
    return [f"{version} is halted: its devices get it only after Resume." for version in sorted(filter(None, halted))]
