"""A user's access token, renewed by refresh tokens that hold only once."""

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from fleet_fn.console.sign_in.client import Client, GrantRefusedError, Tokens
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, negative_ttl
from fleet_fn.http.bearer_tokens import BearerTokens, Token
from fleet_fn.openid.provider import PROVIDER

#: How long the provider may take for new tokens.
_REFRESH_SECONDS: Final = 5.0
#: Drogue Cloud answers 403 both to expired tokens and to missing rights. A younger token has not expired, unless it is
#: due for replacement.
_MIN_REFUSED_AGE_SECONDS: Final = 10.0


_SIGNED_OUT: Final = "you are signed out; sign in again"


class SignedOutError(PermanentError):
    """The user has to sign in again."""


class UserToken:
    """An `Authorization` for `HttpClient` with a user's access token.

    The token is replaced shortly before it expires, by one thread at a time. Safe to use from several threads.
    """

    def __init__(self, client: Client, tokens: Tokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._refresh_token = tokens.refresh
        self._tokens = BearerTokens(PROVIDER, negative_ttl, clock)
        self._tokens.last = tokens.access
        #: A token that replaced a refused one. If it is refused, too, the user lacks rights.
        self._replacement: Token | None = None
        self._is_over = False

    def header(self, deadline: Deadline) -> str:
        """Return the value of `Authorization`, with a valid token.

        Raises:
            SignedOutError: the provider gives the user no more tokens.
            TransientError: the provider is unavailable.
            PermanentError: the provider's answer is malformed, or it refuses the console itself.

        """
        if self._is_over:
            raise SignedOutError(_SIGNED_OUT)
        token = self._tokens.valid()
        return token.header if token else self._renew(None, deadline)

    def refresh(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """Return another `Authorization` after a refusal; None if no retry would help.

        Raises:
            SignedOutError, TransientError, PermanentError: as with `header`.

        """
        last = self._tokens.last
        if last and last.header == refused and self._clock() < last.until:
            is_young = self._clock() - last.since < _MIN_REFUSED_AGE_SECONDS
            if last is self._replacement or (status == HTTPStatus.FORBIDDEN and is_young):
                return None
        return self._renew(refused, deadline)

    def end(self) -> str | None:
        """Give out no token any more.

        Return the refresh token, which the provider should forget.
        """
        self._is_over = True
        token, self._refresh_token = self._refresh_token, None
        return token

    def close(self) -> None:
        """Do nothing: the provider's connections serve other users, too."""

    def _renew(self, refused: str | None, deadline: Deadline) -> str:
        with self._tokens.turn(refused, deadline) as known:
            if known is None:
                known = self._tokens.renew(lambda: self._fetch(deadline.within(_REFRESH_SECONDS)))
                self._replacement = known if refused else None
            return known.header

    def _fetch(self, deadline: Deadline) -> Token:
        refresh_token = self._refresh_token
        if self._is_over or refresh_token is None:
            self.end()
            raise SignedOutError(_SIGNED_OUT)
        try:
            tokens = self._client.refresh(refresh_token, deadline)
        except GrantRefusedError:
            self.end()
            raise SignedOutError(_SIGNED_OUT) from None
        if not self._is_over:
            self._refresh_token = tokens.refresh
        return tokens.access
