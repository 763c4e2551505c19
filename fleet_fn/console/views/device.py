"""The page of one device."""

from http import HTTPStatus

from flask import Blueprint, Response, abort, g, request

from fleet_fn.console.advice import ACTIONS, Advice, advise, advise_on
from fleet_fn.console.command_line import command_line
from fleet_fn.console.device import KnownDevice, ReadDevice, core_is_disabled, find_in, read_now
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import action_url, firmware_url, render
from fleet_fn.drogue.update_record import parse_timestamp
from fleet_fn.errors import TransientError
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.devices import needs_retry
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State

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
        forecast=parts().next_commands.forecast(g.user, name, read) if read else None,
        equivalent=command_line("rollout", "retry", application=name, device=device) if needs_retry(row) else "",
        facts=_facts(row, read, application),
    )


def _facts(row: Row, read: ReadDevice | None, application: Application | None) -> list[tuple[str, str, object]]:
    """Return facts about the update: term, kind, and value."""
    record = read.record if read else None
    most = f" of {read.max_attempts(application)}" if read else ""
    facts: list[tuple[str, str, object]] = [
        ("Attempts", "text", f"{row.attempts}{most}" if row.state is not State.IN_SYNC and row.target else ""),
        ("Last change", "time", row.last_change),
    ]
    if record:
        facts += [
            ("Version of the record", "text", record.version if record.version != row.target else ""),
            ("Began", "time", parse_timestamp(record.started)),
            ("Told to swap", "time", parse_timestamp(record.swapped)),
            ("Told to keep it", "time", record.synced_at()),
            ("SHA-256", "digest", record.checksum),
        ]
    if record and record.origin:
        image = record.origin.image or ""
        facts.append(("From", "image" if "@" in image else "text", image or record.origin.file))
    return [fact for fact in facts if fact[2]]


def _link(advice: Advice, application: str, device: str) -> tuple[str, str] | None:
    """Return address and text of the page that may help; None if none may."""
    if not advice.action:
        return None
    if advice.action == "firmware":
        return firmware_url(application), ACTIONS[advice.action]
    query = {"device": device} if advice.action == "retry" else {}
    return action_url(application, advice.action, **query), ACTIONS[advice.action]
