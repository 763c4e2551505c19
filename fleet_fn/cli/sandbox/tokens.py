"""Access tokens for the sandbox's APIs, from an OpenID provider's token endpoint of its own."""

import base64
import binascii
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

from fleet_fn.cli.sandbox.server import Answer, Request

#: Seconds for which a token is good.
LIFETIME: Final = 300


class Tokens:
    """Gives tokens to one client (RFC 6749, section 4.4), and knows them again. Safe to use from several threads."""

    def __init__(self, client: str, secret: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = f"{client}:{secret}".encode()
        self._clock = clock
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def give(self, request: Request) -> Answer:
        """The answer of the token endpoint."""
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        if not hmac.compare_digest(_client(request.authorization, form).encode(), self._client):
            challenge = {"WWW-Authenticate": 'Basic realm="sandbox"'}
            return Answer.json({"error": "invalid_client"}, HTTPStatus.UNAUTHORIZED, challenge)
        if form.get("grant_type") != "client_credentials":
            return Answer.json({"error": "unsupported_grant_type"}, HTTPStatus.BAD_REQUEST)
        token = secrets.token_urlsafe()
        now = self._clock()
        with self._lock:
            self._until = {known: until for known, until in self._until.items() if until > now}
            self._until[token] = now + LIFETIME
        return Answer.json({"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME})

    def knows(self, token: str) -> bool:
        """Whether a token is one of those given out, and still good."""
        with self._lock:
            return self._clock() < self._until.get(token, 0)


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
