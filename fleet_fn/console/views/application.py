"""The page of one application."""

from flask import Blueprint, Response, g

from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import render

blueprint = Blueprint("application", __name__)


@blueprint.get("/applications/<name>")
def show(name: str) -> Response:
    """Show an application's rollout and its devices."""
    parts().access.check(g.user, name)
    snapshot = parts().snapshots.look(g.user, name)
    return render("application.html", name=name, snapshot=snapshot)
