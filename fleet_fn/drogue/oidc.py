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

#: Lifetime of tokens whose answer states none (RFC 6749, section 5.1): a common default. Too short does no harm.
_DEFAULT_LIFETIME_SECONDS: Final = 60
_MAX_LIFETIME_SECONDS: Final = 24 * 60 * 60
#: Time before its end at which a token is replaced; a quarter of its lifetime if that is less.
_RENEWAL_SECONDS: Final = 10.0
#: Time after a refusal for which the token endpoint is not asked again.
_REFUSAL_TTL_SECONDS: Final = 10.0
#: Drogue Cloud answers 403 both to expired tokens and to missing rights. A token of this age counts as expired.
_MIN_EXPIRED_AGE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Token:
    """An access token, with times on the clock of `ClientCredentials`."""

    header: str = field(repr=False)
    #: When it was requested.
    since: float
    #: When it has to be replaced.
    until: float


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
        self._turn = threading.Lock()
        self._token: _Token | None = None
        #: The last failure, with its time.
        self._failure: tuple[float, UpstreamError] | None = None

    def header(self, deadline: Deadline) -> str:
        """Return the value of `Authorization`, with a valid token.

        Raises:
            PermanentError: the token endpoint refuses the credentials, or its answer is malformed.
            TransientError: the token endpoint is unavailable.

        """
        token = self._token
        return token.header if token and self._clock() < token.until else self._renew(None, deadline)

    def refresh(self, refused: str, status: int, deadline: Deadline) -> str | None:
        """Return another value of `Authorization` after a refusal; None if a retry would not help.

        Raises:
            PermanentError, TransientError: as with `header`.

        """
        token = self._token
        is_current = token is not None and token.header == refused
        if is_current and token and status == 403 and self._clock() - token.since < _MIN_EXPIRED_AGE_SECONDS:
            return None
        other = self._renew(refused, deadline)
        return None if other == refused else other  # some providers return the same token until it expires

    def _renew(self, refused: str | None, deadline: Deadline) -> str:
        """Return a token other than the refused one; concurrent callers share one fetch, or its failure."""
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
                # The copy has no traceback, which would keep all frames in memory.
                self._failure = self._clock(), copy(error)
                raise
            return token.header
        finally:
            self._turn.release()

    def _raise_failure(self, asked: float) -> None:
        """Raise the last failure again if it is too recent for another attempt."""
        if self._failure:
            since, error = self._failure
            if since > asked - (error.negative_ttl if isinstance(error, TransientError) else _REFUSAL_TTL_SECONDS):
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
        return _Token(f"Bearer {token}", since, since + lifetime - min(_RENEWAL_SECONDS, lifetime / 4))


def _read_answer(body: bytes) -> tuple[str, int]:
    """Return the token in an answer, and its lifetime in seconds (RFC 6749, section 5.1)."""
    found: object
    try:
        found = parse_json(body)
    except ValueError:
        found = None  # without the error, which may quote the token
    if not isinstance(found, dict):
        raise PermanentError("token endpoint: the answer is no JSON object")
    token, kind, lifetime = found.get("access_token"), found.get("token_type", "Bearer"), found.get("expires_in")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,65536}", token):
        raise PermanentError("token endpoint: the answer has no access_token that a header can carry")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise PermanentError("token endpoint: the token is not of type Bearer")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or lifetime < 1:
        lifetime = _DEFAULT_LIFETIME_SECONDS
    return token, min(int(lifetime), _MAX_LIFETIME_SECONDS)
