"""Pages for signing in and out."""

import re
from http import HTTPStatus
from typing import Final

from flask import Blueprint, redirect, request
from werkzeug.wrappers import Response

from fleet_fn.console import rendering
from fleet_fn.console.sign_in import cookie
from fleet_fn.console.sign_in.client import SIGNED_OUT_PATH, Client
from fleet_fn.console.sign_in.users import PROVIDER_SECONDS, OidcUsers
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, UpstreamError
from fleet_fn.observability.log import logger
from fleet_fn.openid.provider import PROVIDER

#: How long a sign-out waits for the provider to forget the refresh token.
_REVOCATION_SECONDS: Final = 2.0
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,60}")
_NOT_BEGUN: Final = "This sign-in did not begin in this browser, or it took too long."


def make_blueprint(users: OidcUsers, issuer: str) -> Blueprint:
    """Return the pages for users of an issuer."""
    blueprint = Blueprint("sign_in", __name__)
    client = users.client

    @blueprint.get("/sign-in")
    def sign_in() -> Response:
        path = cookie.local_path(request.args.get("next", "/"))
        if users.current():
            return redirect(path, HTTPStatus.SEE_OTHER)
        try:
            url = client.authorization_url(cookie.begin_attempt(path), Deadline(PROVIDER_SECONDS))
        except UpstreamError as error:
            return _fail(error, path)
        return redirect(url, HTTPStatus.SEE_OTHER)

    @blueprint.get("/sign-in/callback")
    def call_back() -> Response:
        return _call_back(users, issuer)

    @blueprint.post("/sign-out")
    def sign_out() -> Response:
        return _sign_out(users, client)

    @blueprint.get(SIGNED_OUT_PATH)
    def signed_out() -> Response:
        return rendering.render("sign_in.html", title="Signed out", notice="You are signed out.", path="/")

    return blueprint


def _call_back(users: OidcUsers, issuer: str) -> Response:
    """Sign in the user whom the provider sends back."""
    asked = request.args
    begun = cookie.end_attempt(asked.get("state", ""))
    if begun is None:
        # Browsers repeat the last URL, e.g. after a restart.
        return redirect("/", HTTPStatus.SEE_OTHER) if users.current() else _refuse(HTTPStatus.BAD_REQUEST, _NOT_BEGUN)
    attempt, path = begun
    if asked.get("iss", issuer) != issuer:  # RFC 9207: another provider's answer
        return _refuse(HTTPStatus.BAD_REQUEST, _NOT_BEGUN, path)
    if refused := asked.get("error"):
        return _refuse(HTTPStatus.FORBIDDEN, _refusal(refused), path)
    code = asked.get("code")
    if not code:
        return _refuse(HTTPStatus.BAD_REQUEST, f"{PROVIDER}: sent no code.", path)
    try:
        tokens, identity = users.client.exchange(code, attempt, Deadline(PROVIDER_SECONDS))
    except UpstreamError as error:
        return _fail(error, path)
    users.begin(identity, tokens)
    logger.info("signed in", extra={"fields": {"user": identity.name}})
    return redirect(path, HTTPStatus.SEE_OTHER)


def _sign_out(users: OidcUsers, client: Client) -> Response:
    """End the session here, then at the provider as far as it answers."""
    ended = users.end()
    url = None
    if ended:
        session, refresh_token = ended
        logger.info("signed out", extra={"fields": {"user": session.user.name}})
        deadline = Deadline(_REVOCATION_SECONDS)
        try:
            url = client.sign_out_url(session.id_token, deadline)
            if refresh_token:
                client.revoke(refresh_token, deadline)
        except UpstreamError as error:
            logger.warning("sign-out at the provider failed", extra={"fields": {"reason": error.reason}})
    return redirect(url or SIGNED_OUT_PATH, HTTPStatus.SEE_OTHER)


def _refusal(error: str) -> str:
    """Return the sentence for an error code in the provider's redirect.

    Others than the provider could have written the code.
    """
    if error == "access_denied":
        return f"{PROVIDER}: it did not let you in (access_denied)."
    return f"{PROVIDER}: sign-in failed{f' ({error})' if _ERROR_CODE.fullmatch(error) else ''}."


def _fail(error: UpstreamError, path: str) -> Response:
    logger.warning("sign-in failed", extra={"fields": {"reason": error.reason}})
    status = HTTPStatus.BAD_GATEWAY if isinstance(error, PermanentError) else HTTPStatus.SERVICE_UNAVAILABLE
    return _refuse(status, f"{error.reason}.", path)


def _refuse(status: HTTPStatus, reason: str, path: str = "/") -> Response:
    return rendering.render("sign_in.html", status, title="Not signed in", reason=reason, path=path)
