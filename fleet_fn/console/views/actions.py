"""Pause, resume, approve and abort."""

from typing import Final

from flask import Blueprint, g, request
from werkzeug.wrappers import Response

from fleet_fn.console.command_line import command_line
from fleet_fn.console.parts import parts
from fleet_fn.console.views.changing import ActionPage, Wording, find_target
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rollout.plans import Plan, plan_abort, plan_approval, plan_pause, plan_resume

blueprint = Blueprint("actions", __name__)

WORDINGS: Final = {
    "pause": Wording(
        "Pause all updates",
        "Pause",
        "No device of the application gets a block or a swap any more, those midway included, until you resume.",
        is_grave=True,
    ),
    "resume": Wording(
        "Resume updates",
        "Resume",
        "Ends a pause. If the version is halted or aborted, its failures are forgotten and it goes on. Devices that "
        "have given up get it only after a retry.",
    ),
    "approve": Wording(
        "Approve the stage",
        "Approve",
        "Lets the rollout leave its stage. It moves on with the next advance, once all else that the stage asks for is "
        "there.",
    ),
    "abort": Wording(
        "Abort the rollout",
        "Abort and go back",
        "All devices get the previous firmware, whatever stages and percentages say. None gets anything of the aborted "
        "version, those midway in it included.",
        is_grave=True,
    ),
}


@blueprint.route("/applications/<name>/rollout/<any(pause, resume, approve, abort):action>", methods=["GET", "POST"])
def change(name: str, action: str) -> Response:
    """Show a change of the application's rollout, or make the one that was shown."""
    parts().access.check(g.user, name)
    version = request.values.get("version") or None
    page = ActionPage(
        name,
        WORDINGS[action],
        command_line("rollout", action, application=name, version=version if action == "resume" else None),
    )
    return page.answer(lambda application: _plan(action, application, version))


def _plan(action: str, application: Application, version: str | None) -> Plan:
    if action == "pause":
        return plan_pause()
    if action == "resume":
        return plan_resume(application, find_target, version)
    if action == "approve":
        return plan_approval(application, find_target)
    finder = parts().firmware.quick_finder(application.name)
    return plan_abort(application, find_target, (lambda source: finder.target(source).version) if finder else None)
