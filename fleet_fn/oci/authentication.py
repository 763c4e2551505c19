"""Authorization of requests to an OCI registry.

The registry's challenges are answered with credentials or a token.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, UpstreamError
from fleet_fn.http.bearer_tokens import BearerTokens
from fleet_fn.oci.challenges import Challenge, parse_challenges
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.token_realm import NONE_CONFIGURED, REFUSED, Fetch, TokenRealm

#: Repositories whose tokens are cached; the oldest goes first.
_MAX_REPOSITORIES: Final = 1024
#: Other schemes that reasons may name. No other word of a challenge is repeated: it may be a secret.
_OTHER_SCHEMES: Final = frozenset({"digest", "negotiate", "ntlm"})


class Authorization:
    """Authorization for one registry: anonymous, Basic or Bearer.

    Bearer tokens are for one repository each. Credentials are sent only after a challenge asked for them. Safe to use
    from several threads.

    A caller sends `header` with the first request. After a 401 it sends `answer_challenge` with a second one. If that
    is refused, too, with 401 or 403, `refusal` gives the reason.
    """

    def __init__(
        self,
        host: str,
        credentials: Callable[[str], Credentials | None],
        fetch: Fetch,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str | None = None,
    ) -> None:
        """Create the authorization for one registry.

        Args:
            host: the registry's own host, without port.
            credentials: returns the credentials configured for a repository; called each time, because they may
                change. It may raise PermanentError.
            fetch: asks a token realm; see `Fetch`.
            clock: monotonic seconds.
            name: the registry's name in reasons; `OCI registry HOST` by default.

        """
        self._name = name or f"OCI registry {host}"
        self._realm = TokenRealm(host, self._name, fetch, clock)
        self._credentials = credentials
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str, BearerTokens] = OrderedDict()
        #: Scheme for sending the configured credentials themselves; None until the registry has asked for them.
        self._scheme: str | None = None

    def header(self, repository: str) -> str | None:
        """Return the `Authorization` for a first request, or None for an anonymous one.

        This does not block. A token for the repository that has not expired comes first. Without one, the configured
        credentials are sent if the registry has asked for them before, for any repository.

        Raises:
            PermanentError: `credentials` raised it.

        """
        tokens = self._tokens.get(repository)
        if tokens and (token := tokens.valid()):
            return token.header
        credentials = self._credentials(repository) if self._scheme else None
        return credentials.header if credentials and credentials.scheme == self._scheme else None

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
        """Return the error for a refused request, given the `Authorization` it carried."""
        tokens = self._tokens.get(repository)
        if tokens and (token := tokens.last) and token.header == refused:
            return self._error(token.if_refused)
        return self._error(REFUSED if refused else "access denied, and no credentials were asked for")

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
            raise self._error(_describe_unsupported(schemes))
        credentials = self._credentials(repository)
        if credentials and credentials.scheme == "bearer" and "bearer" in schemes:
            return self._use_configured(credentials, refused)
        if bearer := next((c for c in offered if c.scheme == "bearer" and c.parameters.get("realm")), None):
            self._scheme = None
            return tokens.renew(lambda: self._realm.fetch_token(bearer, credentials, repository, deadline)).header
        if "basic" not in schemes:
            raise self._error("asks for a token, but does not say where to get one")
        if credentials is None:
            raise self._error(NONE_CONFIGURED)
        if credentials.scheme != "basic":
            raise self._error("asks for a user name and a password, but only a token is configured")
        return self._use_configured(credentials, refused)

    def _use_configured(self, credentials: Credentials, refused: str | None) -> str:
        value = credentials.header
        if value == refused:
            raise self._error(REFUSED)
        self._scheme = credentials.scheme
        return value


def _describe_unsupported(schemes: AbstractSet[str]) -> str:
    if not schemes:
        return "answered 401 without asking for Basic or Bearer credentials"
    others = [*sorted(schemes & _OTHER_SCHEMES), *(["another scheme"] if schemes - _OTHER_SCHEMES else [])]
    return f"asks for {' or '.join(others)}, but only Basic and Bearer credentials are supported"


def _negative_ttl(error: UpstreamError) -> float | None:
    """Return 0 if callers that waited for a token share the error.

    A time-out is not shared: the deadline was that of one caller.
    """
    return 0.0 if isinstance(error, PermanentError | RateLimitedError) else None
