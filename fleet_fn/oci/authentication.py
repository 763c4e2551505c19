"""Authorization of requests to an OCI registry: answers to its challenges, and the tokens for them.

Tokens are fetched according to the distribution project's "Token Authentication Specification"
(https://distribution.github.io/distribution/spec/auth/token/). Every registry that asks for tokens implements it.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from urllib.parse import quote, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, UpstreamError
from fleet_fn.http.authorization import basic
from fleet_fn.http.bearer_tokens import BearerTokens, Token, read_token
from fleet_fn.http.client import Answer
from fleet_fn.oci.challenges import Challenge, parse_challenges
from fleet_fn.oci.docker_config import Credentials

#: Repositories whose tokens are cached; the oldest goes first.
_MAX_REPOSITORIES: Final = 1024
_REFUSED: Final = "our credentials were refused"
_NONE_CONFIGURED: Final = "access denied: no credentials are configured"
#: Other schemes that reasons may name. No other word of a challenge is repeated: it may be a secret.
_OTHER_SCHEMES: Final = frozenset({"digest", "negotiate", "ntlm"})

#: An absolute URL without user information, whose host no two URL parsers read differently.
_REALM: Final = re.compile(
    r"(?P<url>(?P<scheme>https?)://(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:[/?][!\"$-~]*+)?)(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)


class Authorization:
    """Authorization for one registry: anonymous, Basic, or Bearer with a token per repository.

    Credentials are sent only after a challenge asked for them. Safe to use from several threads.

    A caller sends `header` with the first request. After a 401 it sends `answer_challenge` with a second one. If that
    is refused, too, with 401 or 403, `refusal` gives the reason.
    """

    def __init__(
        self,
        host: str,
        credentials: Callable[[str], Credentials | None],
        fetch: Callable[[str, Mapping[str, str], Deadline], Answer],
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str | None = None,
    ) -> None:
        """Create the authorization for one registry.

        Args:
            host: the registry's own host, without port.
            credentials: returns the credentials configured for a repository; called each time, because they may
                change. It may raise PermanentError.
            fetch: GETs a URL with headers if the address policy permits it; returns any answer but 429 and 5xx.
            clock: monotonic seconds.
            name: the registry's name in reasons; `OCI registry HOST` by default.

        """
        self._name = name or f"OCI registry {host}"
        self._host = _normalize_host(host)
        self._credentials = credentials
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, BearerTokens] = OrderedDict()
        #: Scheme for sending the configured credentials themselves; None until the registry has asked for them.
        self._scheme: str | None = None

    def header(self, repository: str) -> str | None:
        """Return the `Authorization` for a first request, or None for an anonymous one. Does not block.

        A token for the repository that has not expired comes first. Without one, the configured credentials are sent if
        the registry has asked for them before, for any repository.

        Raises:
            PermanentError: `credentials` raised it.

        """
        tokens = self._tokens.get(repository)
        if tokens and (token := tokens.valid()):
            return token.header
        credentials = self._credentials(repository) if self._scheme else None
        return _header_value(credentials) if credentials and _scheme(credentials) == self._scheme else None

    def answer_challenge(
        self, repository: str, refused: str | None, challenges: Sequence[str], deadline: Deadline
    ) -> str:
        """Return the `Authorization` for a second request, after a 401 to the first.

        Threads that ask for the same repository at the same time share one token. A refused token counts as revoked or
        expired early; it is renewed once for all threads that sent it.

        Args:
            repository: the repository of the request.
            refused: the `Authorization` of the first request.
            challenges: all values of `WWW-Authenticate` in the answer.
            deadline: bounds the request for a token.

        Raises:
            PermanentError: no credentials are configured, or they were refused, or the challenges or the realm's
                answer are malformed.
            TransientError: the realm does not answer in time.

        """
        tokens = self._tokens_for(repository)
        with tokens.turn(refused, deadline) as known:
            if known:
                return known.header
            return self._answer(tokens, repository, refused, parse_challenges(challenges), deadline)

    def refusal(self, repository: str, refused: str | None) -> PermanentError:
        """Return the error for a request that the registry refused, given the `Authorization` that it carried."""
        tokens = self._tokens.get(repository)
        if tokens and (token := tokens.last) and token.header == refused:
            return self._error(token.if_refused)
        return self._error(_REFUSED if refused else "access denied, and no credentials were asked for")

    def _error(self, problem: str) -> PermanentError:
        return PermanentError(f"{self._name}: {problem}")

    def _tokens_for(self, repository: str) -> BearerTokens:
        with self._lock:
            tokens = self._tokens.setdefault(repository, BearerTokens(self._name, _negative_ttl, self._clock))
            if len(self._tokens) > _MAX_REPOSITORIES:
                self._tokens.popitem(last=False)
            return tokens

    def _answer(
        self, tokens: BearerTokens, repository: str, refused: str | None, offered: list[Challenge], deadline: Deadline
    ) -> str:
        schemes = {challenge.scheme for challenge in offered}
        if not schemes & {"bearer", "basic"}:
            told = [*sorted(schemes & _OTHER_SCHEMES), *(["something else"] if schemes - _OTHER_SCHEMES else [])]
            what = ", ".join(told) or "nothing"
            raise self._error(f"asks for {what}, not for Basic or Bearer credentials")
        credentials = self._credentials(repository)
        if credentials and _scheme(credentials) == "bearer" and "bearer" in schemes:
            return self._use_configured(credentials, refused)
        if bearer := next((c for c in offered if c.scheme == "bearer" and c.parameters.get("realm")), None):
            self._scheme = None
            return tokens.renew(lambda: self._fetch_token(bearer, credentials, repository, deadline)).header
        if "basic" not in schemes:
            raise self._error("asks for a token, but does not say where to get one")
        if credentials is None:
            raise self._error(_NONE_CONFIGURED)
        if _scheme(credentials) != "basic":
            raise self._error("asks for a user name and a password, but only a token is configured")
        return self._use_configured(credentials, refused)

    def _use_configured(self, credentials: Credentials, refused: str | None) -> str:
        value = _header_value(credentials)
        if value == refused:
            raise self._error(_REFUSED)
        self._scheme = _scheme(credentials)
        return value

    def _fetch_token(
        self, challenge: Challenge, credentials: Credentials | None, repository: str, deadline: Deadline
    ) -> Token:
        """Fetch a new token from the realm that a challenge names.

        A realm that uses https gets the configured credentials, on any host: many registries have their realm on
        another one. A realm that uses http gets them only on the registry's own host, for which the operator has
        allowed plain HTTP.
        """
        realm = _REALM.fullmatch(challenge.parameters["realm"])
        if not realm:
            raise self._error("the token realm is no http or https URL")
        scheme, host = realm["scheme"].lower(), realm["host"].lower()
        headers = {"Accept": "application/json"}
        if_refused, besides = _NONE_CONFIGURED, ""
        if credentials and (scheme == "https" or _normalize_host(host) == self._host):
            headers["Authorization"] = _header_value(credentials)
            if_refused = _REFUSED
        elif credentials:
            where = f"{scheme}://{host}, which is neither https nor the registry's own host"
            if_refused = f"access denied: our credentials were not sent to {where}"
            besides = f"; our credentials were not sent to {where}"
        since = self._clock()
        answer = self._fetch(_token_url(realm["url"], challenge, repository), headers, deadline)
        if answer.status in (401, 403):
            raise self._error(if_refused)
        if answer.status != 200:
            raise self._error(f"token realm answered {answer.status}{besides}")
        # `issued_at` is ignored: it is a reading of the realm's clock, not of ours.
        token, members = read_token(answer.body, f"{self._name}: the token realm's answer", ["token", "access_token"])
        return Token.issued(token, members.get("expires_in"), since, if_refused)


def _negative_ttl(error: UpstreamError) -> float | None:
    """Return 0 if callers that waited for a token share the error.

    A time-out is not shared: the deadline was that of one caller.
    """
    return 0.0 if isinstance(error, PermanentError | RateLimitedError) else None


def _scheme(credentials: Credentials) -> str:
    return "bearer" if credentials.user is None else "basic"


def _header_value(credentials: Credentials) -> str:
    if credentials.user is None:
        return f"Bearer {credentials.secret}"
    return basic(credentials.user, credentials.secret)


def _normalize_host(host: str) -> str:
    return host.lower().strip("[]")


def _token_url(url: str, challenge: Challenge, repository: str) -> str:
    """Return the realm's URL with service and scopes appended to its query."""
    query = [("scope", scope) for scope in _scopes(challenge.parameters.get("scope", ""), repository)]
    if service := challenge.parameters.get("service"):
        query.insert(0, ("service", service))
    # http.client decodes header fields as ISO 8859-1; encoding them so restores the registry's octets.
    encoded = urlencode(query, quote_via=quote, safe="", encoding="iso-8859-1", errors="replace")
    return f"{url}{'&' if '?' in url else '?'}{encoded}"


def _scopes(challenged: str, repository: str) -> list[str]:
    """Return the scopes to request: those of a challenge that allow a pull, reduced to `pull`.

    Some registries name `push` in each challenge, and others refuse clients that request it. If a challenge names no
    repository to pull from (ECR Public: `aws`), the scope is the one that `docker pull` requests.
    """
    pulled = {}
    for scope in challenged.split():
        resource, _, actions = scope.rpartition(":")
        if resource.startswith("repository:") and "pull" in actions.split(","):
            pulled[f"{resource}:pull"] = True
    return list(pulled) or [f"repository:{repository}:pull"]
