"""The console's composition root: settings become parts, and parts a Flask app."""

import secrets
from http import HTTPStatus
from typing import Any, Final

from flask import Flask, g, redirect, request
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response

from fleet_fn import __version__
from fleet_fn.console import rendering
from fleet_fn.console.parts import Parts
from fleet_fn.console.protection import protect
from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.console.sign_in.user_token import SignedOutError
from fleet_fn.console.sign_in.users import OidcUsers
from fleet_fn.console.sign_in.views import make_blueprint
from fleet_fn.console.views import actions, advance, application, applications, device, firmware, retry, start
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.fleet.cures import cure_of_drogue

#: Endpoints that need no user.
_OPEN: tuple[str, ...] = ("static", "health")
#: The title of a page about a change that was not made.
_UNCHANGED: Final = "Nothing was changed"


def make_console(settings: ConsoleSettings, parts: Parts) -> Flask:
    """Return the app of the console that the settings describe."""
    app = Flask(__name__)
    app.secret_key = settings.sign_in.secret_key if settings.sign_in else secrets.token_bytes(32)
    app.extensions["fleet"] = parts
    rendering.register(app)
    users = parts.users
    if settings.sign_in and isinstance(users, OidcUsers):
        protect(app, settings, users.client.sign_out_origins)
        app.register_blueprint(make_blueprint(users, settings.sign_in.issuer))
    else:
        protect(app, settings)

    @app.before_request
    def require_user() -> Response | None:
        if request.endpoint is None or request.endpoint in _OPEN or request.endpoint.startswith("sign_in."):
            return None
        user = users.current()
        if user is None:
            return _ask_to_sign_in()
        g.user = user
        return None

    @app.template_filter("with_cure")
    def add_cure(reason: str) -> str:
        """Return a reason, and its cure if the user can set the console's variables."""
        return reason if users.has_sessions else reason + cure_of_drogue(reason, settings.operator)

    @app.context_processor
    def add_values() -> dict[str, Any]:
        return {"user": g.get("user"), "has_sessions": users.has_sessions, "version": __version__}

    @app.get("/healthz", endpoint="health")
    def report_health() -> Response:
        return Response("ok\n", mimetype="text/plain")

    app.register_error_handler(HTTPException, _show_http_error)
    app.register_error_handler(CSRFError, _show_forgery)
    app.register_error_handler(UpstreamError, _show_upstream_error)
    app.register_error_handler(SignedOutError, lambda _: _ask_to_sign_in())
    for view in (applications, application, device, firmware, start, advance, actions, retry):
        app.register_blueprint(view.blueprint)
    return app


def _ask_to_sign_in() -> Response:
    """Return the answer for a user without a session.

    That for a fragment makes the script load the page again.
    """
    if rendering.is_fragment():
        return Response("sign in again", HTTPStatus.UNAUTHORIZED)
    back = request.full_path.rstrip("?") if request.method == "GET" else "/"
    return redirect(rendering.sign_in_url(back), HTTPStatus.SEE_OTHER)


def _show_http_error(error: HTTPException) -> Any:
    status, reason = HTTPStatus(error.code or 500), error.description
    if reason == NotFound.description:
        reason = "There is no such page."
    return rendering.render("error.html", status, title=status.phrase, reason=reason)


def _show_forgery(error: CSRFError) -> Any:
    """Return the page for a form without a valid token, which an old page has."""
    reason = "The form was of an earlier session, or more than a day old. Open it again, and look before you confirm."
    application = (request.view_args or {}).get("name")
    status = HTTPStatus(error.code or 400)
    return rendering.render("error.html", status, title=_UNCHANGED, reason=reason, application=application)


def _show_upstream_error(error: UpstreamError) -> Any:
    """Return the page for a failure of Drogue Cloud, or of the OCI registry."""
    is_change = request.method == "POST"
    note = ""
    if isinstance(error, PermanentError):
        status = HTTPStatus.FORBIDDEN if is_change else HTTPStatus.NOT_FOUND
        title = _UNCHANGED if is_change else "Not available to you"
    else:
        status, title = HTTPStatus.SERVICE_UNAVAILABLE, "No answer"
        note = "The change may have been made all the same: look before you try again." if is_change else ""
    # A user who may not change an application may see it.
    application = (request.view_args or {}).get("name") if is_change else None
    values = {"title": title, "reason": error.reason, "note": note, "waits": not is_change, "application": application}
    return rendering.render("error.html", status, **values)
