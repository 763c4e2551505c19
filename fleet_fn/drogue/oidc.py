"""Credentials for Drogue Cloud from an OpenID provider: the client credentials grant (RFC 6749, section 4.4)."""

import re
import threading
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote_plus, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError, UpstreamError
from fleet_fn.http.authorization import basic
from fleet_fn.http.client import HttpClient
from fleet_fn.protocol.strict_json import parse_json

#: Seconds for which a token is used whose provider does not say: the lifetime that many have by default, and less than
#: that does no harm (RFC 6749, section 5.1, leaves it to be documented otherwise). And at most.
_LIFETIME: Final = 60
_MAX_LIFETIME: Final = 24 * 60 * 60
#: Seconds before its end at which a token is not used any more; of short lives, a quarter.
_MARGIN: Final = 10.0
#: Seconds for which a provider that refused us is not asked again.
_FAILED_AGE: Final = 10.0
#: Seconds that a token must have lived for a 403 to be taken for its end: Drogue Cloud answers 403 to tokens that it
#: does not accept, and to those that may not do what they ask for.
_YOUNG: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token, and the moments at which it was asked for and from which on it is not used."""

    header: str = field(repr=False)
    since: float
    until: float


class ClientCredentials:
    """Access tokens for a client: kept until shortly before they expire, one fetched at a time.

    An `Authorization` for `HttpClient`; safe to use from several threads.
    """

    def __init__(
        self,
        provider: HttpClient,
        path: str,
        client_id: str,
        client_secret: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Credentials of a client.

        Args:
            provider: who gives out tokens,
            path: at this token endpoint.
            client_id: the client's identifier,
            client_secret: and its password.
            clock: seconds, never stepping.

        """
        self._provider = provider
        self._path = path
        # Both are form-encoded before they are put together (RFC 6749, section 2.3.1).
        self._basic = basic(quote_plus(client_id), quote_plus(client_secret))
        self._clock = clock
        self._turn = threading.Lock()
        self._token: _Token | None = None
        #: What went wrong last, and when.
        self._failure: tuple[float, UpstreamError] | None = None

    def header(self, deadline: Deadline) -> str:
        """The `Authorization` with a token that is valid for a while.

        Raises:
            PermanentError: the provider refuses us, or its answer makes no sense.
            TransientError: it does not answer in time.

        """
        token = self._token
        return token.header if token and self._clock() < token.until else self._fetched(None, deadline)

    def refresh(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """The `Authorization` with another token than the one that was refused, where that is worth a try.

        Raises:
            PermanentError, TransientError: as with `header`.

        """
        token = self._token
        is_current = token is not None and token.header == refused
        if is_current and token and status == 403 and self._clock() - token.since < _YOUNG:
            return None
        other = self._fetched(refused, deadline)
        return None if other == refused else other  # some providers give the same token again until it expires

    def _fetched(self, refused: str | None, deadline: Deadline) -> str:
        """A token that is not the one refused; those who want one at the same time share it, or its failure."""
        asked = self._clock()
        if not self._turn.acquire(timeout=deadline.remaining):
            raise TransientError("token endpoint: an earlier request for a token has not ended")
        try:
            token = self._token
            if token and token.header != refused and self._clock() < token.until:
                return token.header
            self._raise_failure(asked)
            try:
                self._token = token = self._fetch(deadline)
            except UpstreamError as error:
                # A copy leaves behind the frames, and whatever these hold.
                self._failure = self._clock(), copy(error)
                raise
            return token.header
        finally:
            self._turn.release()

    def _raise_failure(self, asked: float) -> None:
        """Raises what went wrong since somebody asked, or so shortly before that it would again."""
        if self._failure:
            since, error = self._failure
            if since > asked - (error.quiet if isinstance(error, TransientError) else _FAILED_AGE):
                raise copy(error)

    def _fetch(self, deadline: Deadline) -> _Token:
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
            raise PermanentError("token endpoint: our credentials were refused")
        if answer.status != 200:
            raise PermanentError(f"token endpoint: answered {answer.status}")
        token, lifetime = _read_answer(answer.body)
        return _Token(f"Bearer {token}", since, since + lifetime - min(_MARGIN, lifetime / 4))


def _read_answer(body: bytes) -> tuple[str, int]:
    """The token in an answer (RFC 6749, section 5.1), and the seconds for which it is valid."""
    found: object
    try:
        found = parse_json(body)
    except ValueError:
        found = None  # and the error is dropped: it may quote the token
    if not isinstance(found, dict):
        raise PermanentError("token endpoint: the answer is no JSON object")
    token, kind, lifetime = found.get("access_token"), found.get("token_type", "Bearer"), found.get("expires_in")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,65536}", token):
        raise PermanentError("token endpoint: the answer has no access_token that a header can carry")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise PermanentError("token endpoint: the token is not of type Bearer")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or lifetime < 1:
        lifetime = _LIFETIME
    return token, min(int(lifetime), _MAX_LIFETIME)
