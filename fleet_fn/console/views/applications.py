"""The first page: all applications that the user may see."""

from flask import Blueprint, Response, g, request

from fleet_fn.console.application_list import BY_NAME, Listed, Outage, Trouble, arrange, total_of
from fleet_fn.console.board import state_parts
from fleet_fn.console.charts import Part, draw_bar
from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import render

blueprint = Blueprint("applications", __name__)


@blueprint.get("/")
def show() -> Response:
    """Show one row for each application."""
    found = parts().access.applications(g.user)
    sought, sort = request.args.get("q", "").strip(), request.args.get("sort", "")
    snapshots = [parts().snapshots.look(g.user, name) for name in found.names]
    outage = Outage.of(snapshots)
    all_listed = [Listed.of(snapshot, outage) for snapshot in snapshots]
    totals = total_of(snapshots)
    states = [Part(part.name, part.count, part.kind) for part in state_parts("", totals)]
    return render(
        "applications.html",
        listed=arrange(all_listed, sought, sort),
        outage=outage,
        oldest=min((snapshot.at for snapshot in snapshots if snapshot.at), default=None),
        total=len(all_listed),
        devices=totals.devices,
        troubled=sum(each.trouble <= Trouble.DEVICES for each in all_listed),
        unread=sum(each.snapshot.devices is None for each in all_listed),
        states=states,
        state_bar=draw_bar(states, "Devices of all applications by state"),
        bar_of=_bar_of,
        sought=sought,
        by_name=sort == BY_NAME,
        problem=found.problem,
    )


def _bar_of(listed: Listed) -> str:
    devices = listed.snapshot.devices
    if devices is None or not devices.totals.devices:
        return ""
    return draw_bar(state_parts(listed.name, devices.totals), "Devices by state")
