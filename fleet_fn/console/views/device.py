"""The page of one device."""

from http import HTTPStatus

from flask import Blueprint, Response, abort, g, request

from fleet_fn.console.advice import ACTIONS, Advice, advise, advise_on
from fleet_fn.console.device import KnownDevice, ReadDevice, core_is_disabled, find_in, read_now
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import action_url, firmware_url, render
from fleet_fn.errors import TransientError
from fleet_fn.fleet.rollout.devices import needs_retry

blueprint = Blueprint("device", __name__)


@blueprint.get("/applications/<name>/device")
def show(name: str) -> Response:
    """Show a device as it is now; if the cloud does not answer, as it was."""
    parts().access.check(g.user, name)
    device = request.args.get("name", "")
    if not device:
        abort(HTTPStatus.NOT_FOUND, "The address names no device.")
    snapshot = parts().snapshots.look(g.user, name)
    application = snapshot.overview.application if snapshot.overview else None
    read: ReadDevice | None = None
    known: KnownDevice | None = None
    try:
        read = read_now(parts().access, g.user, name, device)
    except TransientError as error:
        known = find_in(snapshot, device, error)
    shown = read or known
    assert shown is not None  # noqa: S101 - else an error was raised
    row, advice = shown.row, advise_on(shown.row)
    return render(
        "device.html",
        name=name,
        device=device,
        row=row,
        read=read,
        known=known,
        labels=sorted((read.device.labels if read else known.labels if known else {}).items()),
        disabled=read.device.disabled if read else known is not None and known.disabled,
        application_disabled=core_is_disabled(application),
        advice=advice,
        action=_link(advice, name, device) if advice.action != "retry" or needs_retry(row) else None,
        problems=[(reason, advise(reason)) for reason in (read.problems if read else ())],
        needs_retry=needs_retry(row),
        max_attempts=read.max_attempts(application) if read else None,
    )


def _link(advice: Advice, application: str, device: str) -> tuple[str, str] | None:
    """Return address and text of the page that may help; None if none may."""
    if not advice.action:
        return None
    if advice.action == "firmware":
        return firmware_url(application), ACTIONS[advice.action]
    query = {"device": device} if advice.action == "retry" else {}
    return action_url(application, advice.action, **query), ACTIONS[advice.action]
