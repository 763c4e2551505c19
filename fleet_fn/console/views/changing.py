"""The page of one change of a rollout: it shows the exact change, and makes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from flask import g, redirect, request, url_for
from werkzeug.wrappers import Response

from fleet_fn.console.parts import parts
from fleet_fn.console.rendering import application_url, notify, render
from fleet_fn.console.snapshot import Entry
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.fleet.rollout.actions import Target
from fleet_fn.fleet.rollout.application import Application, RefusedError
from fleet_fn.fleet.rollout.plans import Plan
from fleet_fn.fleet.rollout.review import ChangedMeanwhileError, fingerprint, only_as_shown
from fleet_fn.fleet.rollout.session import Change

#: The form's field with the fingerprint of the change that was shown.
SHOWN: Final = "shown"


class NotReadYetError(RefusedError):
    """The console still reads what the change depends on.

    The page shows the change as soon as that is there.
    """


class UnfitFirmwareError(RefusedError):
    """The firmware cannot be had, and neither could the function have it."""


@contextmanager
def naming_firmware() -> Iterator[None]:
    """Tell failures of the firmware from those of Drogue Cloud.

    Raises:
        UnfitFirmwareError: in the place of a PermanentError.

    """
    try:
        yield
    except PermanentError as error:
        raise UnfitFirmwareError(error.reason) from error


@dataclass(frozen=True, slots=True)
class Wording:
    """How a page speaks of an action."""

    title: str
    button: str
    about: str
    #: It stops or reverts something.
    is_grave: bool = False


@dataclass(frozen=True, slots=True)
class ActionPage:
    """The page of one change."""

    name: str
    wording: Wording
    #: The same on the command line.
    equivalent: str
    #: Further values for the template: `fields` of the form, `warnings`, and `choices`, the address of the form before.
    values: Mapping[str, Any] = field(default_factory=dict)
    template: str = "change.html"

    def answer(self, make_plan: Callable[[Application], Plan]) -> Response:
        """Answer a GET with the change, and a POST by making it."""
        return self.guard(lambda: self._make(make_plan) if request.method == "POST" else self._show(make_plan))

    def guard(self, answer: Callable[[], Response]) -> Response:
        """Answer, or return the page with the reason why the change cannot be made."""
        try:
            return answer()
        except NotReadYetError as error:
            if request.method == "POST":
                return _show_again(error.reason)
            return render("waiting.html", name=self.name, wording=self.wording, reason=error.reason)
        except RefusedError as error:
            return self.refuse(error.reason)
        except NotReadyError as error:
            return self.refuse(error.reason, HTTPStatus.SERVICE_UNAVAILABLE)

    def _show(self, make_plan: Callable[[Application], Plan], conflict: str = "") -> Response:
        session = parts().session(self.name, dry_run=True)
        plan = make_plan(session.read())
        found = session.change(plan.action, plan.make)
        if not found.is_made:
            return self.refuse(plan.nothing)
        return self.show_change(found, plan.effect(Application.read(found.after)), conflict)

    def _make(self, make_plan: Callable[[Application], Plan]) -> Response:
        session = parts().session(self.name)
        plan = make_plan(session.read())
        try:
            made = session.change(plan.action, only_as_shown(plan.make, request.form.get(SHOWN, "")))
        except ChangedMeanwhileError as error:
            return self._show(make_plan, error.reason)
        if not made.is_made:
            return self.refuse(plan.nothing)
        return self.finish(made, plan)

    def finish(self, made: Change, plan: Plan) -> Response:
        """Show the application after a change."""
        notify(plan.effect(Application.read(made.after)), "good")
        warn_untold(made.sink_problem)
        parts().snapshots.put(self.name, made.after)
        return redirect(application_url(self.name), HTTPStatus.SEE_OTHER)

    def show_change(self, found: Change, effect: str, conflict: str = "", shown: str = "") -> Response:
        """Return the page with a change, to be confirmed.

        Args:
            found: the change, which was only tried.
            effect: what it does, in words.
            conflict: why the change that was shown before was not made; empty if none was.
            shown: the fingerprint of all that is shown; empty for that of the change.

        """
        return render(
            self.template,
            HTTPStatus.CONFLICT if conflict else HTTPStatus.OK,
            name=self.name,
            wording=self.wording,
            equivalent=self.equivalent,
            diff=found.diff(),
            effect=effect,
            shown=shown or fingerprint(found.before, found.after),
            conflict=conflict,
            **self.values,
        )

    def refuse(self, reason: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
        """Return the page with the reason why the change cannot be made."""
        if request.method == "POST" and status is HTTPStatus.OK:
            status = HTTPStatus.CONFLICT
        choices = self.values.get("choices")
        return render("refused.html", status, name=self.name, wording=self.wording, reason=reason, choices=choices)


def _show_again(reason: str) -> Response:
    """Lead to the page of the change, which waits.

    The result of a form cannot be loaded again.
    """
    notify(f"Nothing was changed yet, because {reason}. Look at the change again, and confirm it", "warning")
    path = url_for(request.endpoint or "", **(request.view_args or {}))
    query = request.query_string.decode("ascii", "replace")
    return redirect(f"{path}?{query}" if query else path, HTTPStatus.SEE_OTHER)


def warn_untold(problem: str) -> None:
    """Tell the user why no event of a change was sent; nothing if one was."""
    if problem:
        notify(f"The change is made, but no event of it was sent: {problem}", "warning")


def find_target(application: Application) -> Target:
    """Return an application's firmware; tell the user if it may be another by now."""
    with naming_firmware():
        found = parts().firmware.find_target(application)
    if found.problem:
        notify(f"{found.problem}; going by the recorded version, {found.target.version}", "warning")
    return found.target


def all_devices(application: str) -> Sequence[Entry]:
    """Return the devices of the snapshot.

    Raises:
        NotReadYetError: they are being read.
        RefusedError: they cannot be read, or are too many.

    """
    snapshot = parts().snapshots.look(g.user, application)
    if snapshot.devices is None or snapshot.devices.entries is None:
        if snapshot.problem:
            raise RefusedError(f"the devices cannot be read: {snapshot.problem}")
        raise NotReadYetError("the devices are being read")
    if left_out := snapshot.devices.left_out:
        raise RefusedError(f"the console has no room for {left_out:,} of the devices: use the command line")
    return snapshot.devices.entries
