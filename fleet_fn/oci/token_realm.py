"""Fetching tokens from the realm that an OCI registry names.

They are fetched according to the distribution project's "Token Authentication Specification"
(https://distribution.github.io/distribution/spec/auth/token/). Every registry that asks for tokens implements it.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from urllib.parse import quote, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.http.bearer_tokens import Token, read_token
from fleet_fn.http.messages import Answer
from fleet_fn.oci.challenges import Challenge
from fleet_fn.oci.docker_config import Credentials

#: GETs a URL with headers if the address policy permits it; returns any answer but 429 and 5xx.
Fetch: TypeAlias = Callable[[str, Mapping[str, str], Deadline], Answer]

REFUSED: Final = "our credentials were refused"
NONE_CONFIGURED: Final = "access denied: no credentials are configured"

#: An absolute URL without user information, whose host no two URL parsers read differently.
_REALM: Final = re.compile(
    r"(?P<url>(?P<scheme>https?)://(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:[/?][!\"$-~]*+)?)(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)


class TokenRealm:
    """The realm that issues tokens for one registry, named in each challenge.

    It is safe to use from several threads.
    """

    def __init__(self, host: str, name: str, fetch: Fetch, clock: Callable[[], float]) -> None:
        """Create the realm of the registry on `host`, without port.

        Reasons call the registry `name`.
        """
        self._host = _normalize_host(host)
        self._name = name
        self._fetch = fetch
        self._clock = clock

    def fetch_token(
        self, challenge: Challenge, credentials: Credentials | None, repository: str, deadline: Deadline
    ) -> Token:
        """Fetch a new token from the realm that a challenge names.

        A realm that uses https gets the configured credentials, on any host: many registries have their realm on
        another one. A realm that uses http gets them only on the registry's own host, for which the operator has
        allowed plain HTTP.

        Raises:
            PermanentError: the realm refuses the credentials, or its URL or answer is malformed.
            TransientError: the realm does not answer in time.

        """
        realm = _REALM.fullmatch(challenge.parameters["realm"])
        if not realm:
            raise self._error("the token realm is no http or https URL")
        scheme, host = realm["scheme"].lower(), realm["host"].lower()
        headers = {"Accept": "application/json"}
        if_refused, besides = NONE_CONFIGURED, ""
        if credentials and (scheme == "https" or _normalize_host(host) == self._host):
            headers["Authorization"] = credentials.header
            if_refused = REFUSED
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

    def _error(self, problem: str) -> PermanentError:
        return PermanentError(f"{self._name}: {problem}")


def _normalize_host(host: str) -> str:
    return host.lower().strip("[]")


def _token_url(url: str, challenge: Challenge, repository: str) -> str:
    """Return the realm's URL with service and scopes appended to its query."""
    query = [("scope", scope) for scope in _scopes(challenge.parameters.get("scope", ""), repository)]
    if service := challenge.parameters.get("service"):
        query.insert(0, ("service", service))
    # Our HTTP client decodes header fields as ISO 8859-1; encoding them so restores the registry's octets.
    encoded = urlencode(query, quote_via=quote, safe="", encoding="iso-8859-1", errors="replace")
    return f"{url}{'&' if '?' in url else '?'}{encoded}"


def _scopes(challenged: str, repository: str) -> list[str]:
    """Return the scopes of a challenge that allow a pull, reduced to `pull`.

    Some registries name `push` in each challenge, and others refuse clients that request it. If a challenge names no
    repository to pull from (ECR Public: `aws`), the scope is the one that `docker pull` requests.
    """
    pulled = {}
    for scope in challenged.split():
        resource, _, actions = scope.rpartition(":")
        if resource.startswith("repository:") and "pull" in actions.split(","):
            pulled[f"{resource}:pull"] = True
    return list(pulled) or [f"repository:{repository}:pull"]
