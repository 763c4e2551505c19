"""Access tokens for the sandbox's APIs, from an OpenID provider's token endpoint of its own."""

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

#: Seconds for which a token is good.
LIFETIME: Final = 300


class Tokens:
    """Gives tokens to clients (RFC 6749, section 4.4), and knows them again. Safe to use from several threads."""

    def __init__(self, clients: Mapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        """Give tokens to clients, which are users of the APIs, by their secrets."""
        self._clients = clients
        self._clock = clock
        self._lock = threading.Lock()
        #: The users of tokens, and until when they are good.
        self._given: dict[str, tuple[str, float]] = {}

    def give(self, request: Request) -> Answer:
        """Answer as the token endpoint."""
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
            self._given[token] = client, now + LIFETIME
        return Answer.json({"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME})

    def user(self, token: str) -> str | None:
        """Return whose a token is, if it was given out and is still good."""
        with self._lock:
            user, until = self._given.get(token, (None, 0.0))
            return user if self._clock() < until else None


def _client(authorization: str | None, form: dict[str, str]) -> str:
    """`CLIENT:SECRET`, from the header, both form-encoded there, or from the body (RFC 6749, section 2.3.1)."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return f"{form.get('client_id', '')}:{form.get('client_secret', '')}"
    try:
        client, _, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"{unquote_plus(client)}:{unquote_plus(secret)}"
