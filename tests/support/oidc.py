"""An OpenID provider that gives access tokens to one client, and a Drogue Cloud that wants to see them."""

import base64
import itertools
import json
import ssl
import time
from collections.abc import Callable
from urllib.parse import parse_qs

from tests.support.http import Request, Response, Server

CLIENT, SECRET = "fleet:manager", "s3cret & more"  # what form encoding is for
TOKEN_BEGINS = "t0ken-"


class Provider:
    """Gives out tokens, each valid for `lifetime` seconds; with a `tls` context, by https."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.lifetime: float | None = 300
        #: What to answer instead.
        self.answer_instead: Callable[[Request], Response | None] | None = None
        #: Requests to Drogue Cloud whose tokens were no good.
        self.refused: list[Request] = []
        self.server = Server(self._answer, tls)
        self._numbers = itertools.count(1)
        self._valid: dict[str, float] = {}

    def __enter__(self) -> "Provider":
        self.server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DROGUE_OIDC_TOKEN_URL": f"{self.server.url}/realms/drogue/token/",
            "DROGUE_OIDC_CLIENT_ID": CLIENT,
            "DROGUE_OIDC_CLIENT_SECRET": SECRET,
        }

    @property
    def asked(self) -> int:
        return len(self.server.requests)

    def revoke(self) -> None:
        """All tokens given out so far are no good any more."""
        self._valid.clear()

    def accepts(self, request: Request) -> bool:
        """Whether a request carries a token that is valid."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        is_valid = time.monotonic() < self._valid.get(token, 0)
        if not is_valid:
            self.refused.append(request)
        return is_valid

    def _answer(self, request: Request) -> Response | None:
        if self.answer_instead:
            return self.answer_instead(request)
        expected = "Basic " + base64.b64encode(b"fleet%3Amanager:s3cret+%26+more").decode()
        if request.headers.get("Authorization") != expected:
            return Response(401, b'{"error": "invalid_client"}')
        assert request.path == "/realms/drogue/token/"
        assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
        if parse_qs(request.body.decode()) != {"grant_type": ["client_credentials"]}:
            return Response(400, b'{"error": "unsupported_grant_type"}')
        token = f"{TOKEN_BEGINS}{next(self._numbers)}"
        self._valid[token] = time.monotonic() + (self.lifetime or 300)
        answer = {"access_token": token, "token_type": "bearer", "expires_in": self.lifetime}
        return Response(200, json.dumps({key: value for key, value in answer.items() if value is not None}).encode())
