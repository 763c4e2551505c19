"""The page of one application."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flask import Blueprint, Response, g, request

from fleet_fn.console.board import (
    DEVICES,
    STANDINGS,
    actions_of,
    curve_of,
    is_paused,
    stages_of,
    state_parts,
    version_parts,
)
from fleet_fn.console.charts import draw_bar, draw_curve, draw_meter, top_of
from fleet_fn.console.command_line import command_line
from fleet_fn.console.device_table import TableQuery, read_page
from fleet_fn.console.jobs import Job
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import application_url, render
from fleet_fn.console.snapshot import Devices, Snapshot
from fleet_fn.drogue.firmware_spec import Malformed
from fleet_fn.drogue.rollout_status import Failures
from fleet_fn.drogue.spec_policy import NONE
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.overview import Overview, failures_of
from fleet_fn.fleet.rollout.wording import describe_firmware, describe_source
from fleet_fn.fleet.states import State

blueprint = Blueprint("application", __name__)

#: The columns of the table, by the names that its query string has for them.
_COLUMNS: Final = {
    "name": "device",
    "state": "state",
    "current": "runs",
    "target": "should run",
    "since": "since",
    "seen": "last seen",
}
#: Names of failed devices, and other versions that failed, that are shown.
_MAX_NAMES: Final = 10
_MAX_VERSIONS: Final = 5
#: How long the end of a change of many devices is shown.
_JOB_SHOWN: Final = timedelta(minutes=15)
#: Versions to choose from.
_MAX_CHOICES: Final = 200


@blueprint.get("/applications/<name>")
def show(name: str) -> Response:
    """Show an application's rollout and its devices."""
    parts().access.check(g.user, name)
    snapshot = parts().snapshots.look(g.user, name)
    query = TableQuery.read(request.args)
    values: dict[str, Any] = {
        "actions": actions_of(snapshot),
        "standings": STANDINGS,
        "job": parts().jobs.last(name),
    }
    if snapshot.overview:
        values |= _rollout(snapshot.overview) | _curve(snapshot.devices, snapshot.overview)
    if snapshot.devices:
        values |= _fleet(snapshot, snapshot.devices)
    values["job"] = _job(name)
    return render("application.html", name=name, snapshot=snapshot, **values, **_table(snapshot, query))


def _job(name: str) -> Job | None:
    """Return the change of many devices that goes on, or that has ended lately."""
    job = parts().jobs.last(name)
    return job if job and (job.ended is None or datetime.now(UTC) - job.ended < _JOB_SHOWN) else None


def _rollout(overview: Overview) -> dict[str, Any]:
    application, numbers = overview.application, overview.numbers
    policy = NONE if isinstance(application.spec.policy, Malformed) else application.spec.policy
    failures = application.rollout.failed.get(overview.version or "", Failures())
    position = overview.progress.position if overview.progress else None
    least = position.stage.success if position else None
    most = policy.max_failed
    others = [(version, other) for version, other in failures_of(application) if version != overview.version]
    previous = application.previous
    meters = {"brake": draw_meter(failures.count / most, "failed") if most else ""}
    if numbers:
        meters["in_sync"] = draw_meter(numbers.in_sync / numbers.drawn if numbers.drawn else 0.0, "in-sync")
        is_low = least is not None and numbers.success is not None and numbers.success < least
        meters["success"] = draw_meter(
            (numbers.success or 0) / 100, "failed" if is_low else "in-sync", (least or 0) / 100
        )
    return {
        "firmware": _firmware(application),
        "stages": stages_of(overview),
        "is_paused": is_paused(overview),
        "failures": failures,
        "shown_failures": len(failures.devices[:_MAX_NAMES]),
        "other_failures": others[:_MAX_VERSIONS],
        "max_failed": most,
        "least_success": least,
        "labels": [f"{key}={value}" for key, value in (policy.labels or {}).items()],
        "previous": f"{describe_source(previous.kind, previous.source)}, version {previous.version or 'unknown'}"
        if previous
        else "",
        "meters": meters,
    }


def _firmware(application: Application) -> str:
    try:
        return describe_firmware(application)
    except RefusedError:  # the notice above says why
        return ""


def _curve(devices: Devices | None, overview: Overview) -> dict[str, Any]:
    numbers = overview.numbers
    curve = curve_of(devices, overview) if devices and numbers else None
    if curve is None or numbers is None:
        return {"curve": None}
    return {"curve": curve, "curve_chart": draw_curve(curve, numbers.drawn), "curve_top": top_of(curve, numbers.drawn)}


def _fleet(snapshot: Snapshot, devices: Devices) -> dict[str, Any]:
    name, totals = snapshot.application, devices.totals
    states = state_parts(name, totals)
    versions = version_parts(name, totals, snapshot.overview.version if snapshot.overview else None)
    return {
        "state_parts": states,
        "state_bar": draw_bar(states, "Devices by state"),
        "version_parts": versions,
        "version_bar": draw_bar(versions, "Devices by version"),
        "conflicts": [conflict.describe() for conflict in totals.gateways.conflicts()],
    }


def _table(snapshot: Snapshot, query: TableQuery) -> dict[str, Any]:
    name, devices = snapshot.application, snapshot.devices
    versions = [version for version in devices.totals.versions if version][:_MAX_CHOICES] if devices else []
    if query.version and query.version not in versions:
        versions.append(query.version)
    return {
        "query": query,
        "columns": _COLUMNS,
        "states": list(State),
        "versions": versions,
        "label_choices": devices.labels if devices else [],
        "page": read_page(devices.entries, query) if devices and devices.entries is not None else None,
        "command": query.command(name),
        "show_command": command_line("rollout", "show", application=name),
        "table_url": lambda **changes: application_url(name, **query.arguments(**changes)) + DEVICES,
    }
