"""Credentials for Drogue Cloud from an OpenID provider.

They come by the client credentials grant (RFC 6749, section 4.4).
"""

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote_plus, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.drogue.refusals import TOKEN_ENDPOINT
from fleet_fn.errors import PermanentError, negative_ttl
from fleet_fn.http.authorization import basic
from fleet_fn.http.bearer_tokens import BearerTokens, Token, read_token
from fleet_fn.http.client import HttpClient

#: Drogue Cloud answers 403 both to expired tokens and to missing rights. A token of this age counts as expired.
_MIN_EXPIRED_AGE_SECONDS: Final = 10.0


class ClientCredentials:
    """An `Authorization` for `HttpClient` with access tokens of a client.

    A token is used until shortly before it expires, and one is fetched at a time. Safe to use from several threads.
    """

    def __init__(
        self,
        provider: HttpClient,
        path: str,
        client_id: str,
        client_secret: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create credentials without a token.

        Args:
            provider: the OpenID provider.
            path: path of its token endpoint.
            client_id: the client's identifier.
            client_secret: the client's password.
            clock: seconds, never stepping.

        """
        self._provider = provider
        self._path = path
        # Both are form-encoded before they are joined (RFC 6749, section 2.3.1).
        self._basic = basic(quote_plus(client_id), quote_plus(client_secret))
        self._clock = clock
        self._tokens = BearerTokens(TOKEN_ENDPOINT, negative_ttl, clock)

    def header(self, deadline: Deadline) -> str:
        """Return the value of `Authorization`, with a valid token.

        Raises:
            PermanentError: the token endpoint refuses the credentials, or its answer is malformed.
            TransientError: the token endpoint is unavailable.

        """
        token = self._tokens.valid()
        return token.header if token else self._renew(None, deadline)

    def refresh(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """Return another `Authorization` after a refusal; None if no retry would help.

        Raises:
            PermanentError, TransientError: as with `header`.

        """
        token = self._tokens.last
        if status == 403 and token and token.header == refused and self._age(token) < _MIN_EXPIRED_AGE_SECONDS:
            return None
        other = self._renew(refused, deadline)
        return None if other == refused else other  # some providers return the same token until it expires

    def close(self) -> None:
        """Close idle connections to the provider; a later call opens new ones."""
        self._provider.close()

    def _age(self, token: Token) -> float:
        return self._clock() - token.since

    def _renew(self, refused: str | None, deadline: Deadline) -> str:
        """Return a token other than the refused one.

        Concurrent callers share one fetch, or its failure.
        """
        with self._tokens.turn(refused, deadline) as known:
            token = known or self._tokens.renew(lambda: self._fetch(deadline))
            return token.header

    def _fetch(self, deadline: Deadline) -> Token:
        since = self._clock()
        answer = self._provider.request(
            "POST",
            self._path,
            deadline,
            headers={"Authorization": self._basic},
            body=urlencode({"grant_type": "client_credentials"}).encode(),
            content_type="application/x-www-form-urlencoded",
        )
        if answer.status in (400, 401, 403):
            raise PermanentError(f"{TOKEN_ENDPOINT}: our credentials were refused")
        if answer.status != 200:
            raise PermanentError(f"{TOKEN_ENDPOINT}: answered {answer.status}")
        token, members = read_token(answer.body, f"{TOKEN_ENDPOINT}: the answer", ["access_token"])
        kind, lifetime = members.get("token_type", "Bearer"), members.get("expires_in")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise PermanentError(f"{TOKEN_ENDPOINT}: the token is not of type Bearer")
        # A JSON number may have a fraction.
        return Token.issued(token, int(lifetime) if isinstance(lifetime, float) else lifetime, since)
