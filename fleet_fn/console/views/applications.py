"""The first page: all applications that the user may see."""

from dataclasses import dataclass

from flask import Blueprint, Response, g, request

from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import render
from fleet_fn.console.snapshot import Snapshot

blueprint = Blueprint("applications", __name__)


@dataclass(frozen=True, slots=True)
class _Listed:
    name: str
    snapshot: Snapshot


@blueprint.get("/")
def show() -> Response:
    """Show one row for each application."""
    found = parts().access.applications(g.user)
    sought = request.args.get("q", "").strip().lower()
    names = [name for name in found.names if sought in name]
    listed = [_Listed(name, parts().snapshots.look(g.user, name)) for name in names]
    return render("applications.html", listed=listed, total=len(found.names), sought=sought, problem=found.problem)
