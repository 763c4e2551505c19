"""Access tokens for the sandbox's APIs, and the token endpoint that issues them."""

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from fleet_fn.sandbox.server import Answer, Request

#: Validity of a token.
LIFETIME_SECONDS: Final = 300


class Tokens:
    """Issues tokens to clients (RFC 6749, section 4.4), and checks them.

    It is safe to use from several threads.
    """

    def __init__(self, clients: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        """Issue tokens to clients, given as secrets by client name.

        The clients are users of the APIs.
        """
        self._clients = clients
        self._clock = clock
        self._lock = threading.Lock()
        #: User and end of validity by token.
        self._given: dict[str, tuple[str, float]] = {}

    def give(self, request: Request) -> Answer:
        """Answer a request to the token endpoint."""
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        client, _, secret = _client(request.authorization, form).partition(":")
        if not hmac.compare_digest(secret.encode(), self._clients.get(client, "").encode()) or not secret:
            challenge = {"WWW-Authenticate": 'Basic realm="sandbox"'}
            return Answer.json({"error": "invalid_client"}, HTTPStatus.UNAUTHORIZED, challenge)
        if form.get("grant_type") != "client_credentials":
            return Answer.json({"error": "unsupported_grant_type"}, HTTPStatus.BAD_REQUEST)
        token = secrets.token_urlsafe()
        now = self._clock()
        with self._lock:
            self._given = {known: given for known, given in self._given.items() if given[1] > now}
            self._given[token] = client, now + LIFETIME_SECONDS
        return Answer.json({"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME_SECONDS})

    def user(self, token: str) -> str | None:
        """Return the user of a valid token; None for any other."""
        with self._lock:
            user, until = self._given.get(token, (None, 0.0))
            return user if self._clock() < until else None


def _client(authorization: str | None, form: dict[str, str]) -> str:
    """Return `CLIENT:SECRET` from the header or the body (RFC 6749, section 2.3.1).

    In the header, both are form-encoded.
    """
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return f"{form.get('client_id', '')}:{form.get('client_secret', '')}"
    try:
        client, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"{unquote_plus(client)}:{unquote_plus(secret)}"
