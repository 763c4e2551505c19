"""The page of one application."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from flask import Blueprint, Response, g, request

from fleet_fn.console.board import (
    DEVICES,
    STANDINGS,
    actions_of,
    curve_of,
    reasons_of,
    state_parts,
    version_parts,
)
from fleet_fn.console.charts import draw_bar, draw_curve, top_of
from fleet_fn.console.command_line import command_line
from fleet_fn.console.device_table import TableQuery, read_page
from fleet_fn.console.jobs import Job
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import application_url, render
from fleet_fn.console.rollout_view import RolloutView
from fleet_fn.console.snapshot import Devices, Snapshot
from fleet_fn.fleet.rollout.overview import Overview
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
        "job": _job(snapshot),
    }
    if snapshot.overview:
        values |= {"view": RolloutView.of(snapshot.overview)} | _curve(snapshot.devices, snapshot.overview)
    if snapshot.devices:
        values |= _fleet(snapshot, snapshot.devices)
    return render("application.html", name=name, snapshot=snapshot, **values, **_table(snapshot, query))


def _job(snapshot: Snapshot) -> Job | None:
    """Return the change of many devices that goes on, or that has ended lately.

    If all went well, it is of no interest any more after the next change of the rollout.
    """
    job = parts().jobs.last(snapshot.application)
    if job is None or job.ended is None:
        return job
    last = snapshot.overview.application.last if snapshot.overview else None
    is_superseded = last is not None and last.at is not None and last.at > job.ended
    is_done = is_superseded and not job.has_failed and not job.problem_count
    return None if is_done or datetime.now(UTC) - job.ended > _JOB_SHOWN else job


def _curve(devices: Devices | None, overview: Overview) -> dict[str, Any]:
    numbers = overview.numbers
    curve = curve_of(devices, overview) if devices and numbers else None
    if curve is None or numbers is None:
        return {"curve": None}
    position = overview.progress.position if overview.progress else None
    since = position.since if position and position.index else None
    return {
        "curve": curve,
        "curve_chart": draw_curve(curve, numbers.drawn, since),
        "curve_top": top_of(curve, numbers.drawn),
        "stage_since": since,
    }


def _fleet(snapshot: Snapshot, devices: Devices) -> dict[str, Any]:
    name, totals = snapshot.application, devices.totals
    states = state_parts(name, totals)
    versions = version_parts(name, totals, snapshot.overview.version if snapshot.overview else None)
    return {
        "state_parts": states,
        "state_bar": draw_bar(states, "Devices by state"),
        "version_parts": versions,
        "version_bar": draw_bar(versions, "Devices by version"),
        "reasons": reasons_of(totals),
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
