"""How requests to a registry are authorized: its challenges, and the tokens that answer them.

Challenges are HTTP's (RFC 9110, section 11). Tokens are fetched as the distribution project's "Token Authentication
Specification" says (https://distribution.github.io/distribution/spec/auth/token/), which all registries implement that
ask for any.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote, urlencode

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError
from fleet_fn.http.client import Answer, basic
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.protocol.strict_json import parse_json

#: Repositories whose tokens are remembered.
_REMEMBERED: Final = 1024
#: Seconds for which a token is valid whose realm does not say (token specification, `expires_in`), and at most.
_LIFETIME: Final = 60
_MAX_LIFETIME: Final = 24 * 60 * 60
#: Seconds before its end at which a token is not used any more; of short lives, a quarter.
_MARGIN: Final = 10.0
_REFUSED: Final = "our credentials were refused"
_NONE_CONFIGURED: Final = "access denied: no credentials are configured"
#: Schemes that registries are seen to ask for besides. No other word of a challenge is repeated: it may be a secret.
_OTHER_SCHEMES: Final = frozenset({"digest", "negotiate", "ntlm"})

#: Characters of challenges that are read of one answer.
_MAX_CHALLENGES: Final = 64 * 1024
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # noqa: S105 - HTTP's token (RFC 9110, section 5.6.2)
#: One element of the list that `WWW-Authenticate` is: a challenge with its first parameter or token68, or a further
#: parameter of the challenge before (RFC 9110, section 11.6.1). No group gives back what it matched, so that matching
#: takes linear time.
_ELEMENT: Final = re.compile(
    rf"""
    [ \t]*+
    (?: (?P<scheme>{_TOKEN}) (?![ \t]*+=) (?: [ \t]++ | (?=,|\Z) ) )?+
    (?: (?P<name>{_TOKEN}) [ \t]*+ = [ \t]*+ (?: (?P<token>{_TOKEN})
            | "(?P<quoted>(?: [\t !#-\[\]-~\x80-\xff] | \\[\t -~\x80-\xff] )*+)" )
      | [0-9A-Za-z._~+/-]++ =*+ )?+
    [ \t]*+ (?:,|\Z)
    """,
    re.VERBOSE,
)
#: What is none, up to where the next may begin.
_MALFORMED: Final = re.compile(rf"[ \t]*+(?:(?P<scheme>{_TOKEN})[ \t]++(?!=))?+[^,]*+,?")

#: An absolute URL without user information, in which the host is what every reader takes for it.
_REALM: Final = re.compile(
    r"(?P<url>(?P<scheme>https?)://(?P<host>[a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
    r"(?:[/?][!\"$-~]*+)?)(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a server wants to be shown (RFC 9110, section 11.3)."""

    #: In lower case, as the parameters' names are.
    scheme: str
    #: Not in `repr`: a realm's query is nobody's business.
    parameters: Mapping[str, str] = field(repr=False)


def parse_challenges(values: Sequence[str]) -> list[Challenge]:
    """The challenges in the values of an answer's `WWW-Authenticate` fields, in their order.

    What is malformed is skipped, and of a parameter that stands twice in a challenge the first counts. A token68, which
    no scheme for registries has, is skipped too. Values are read until there are more than 64 KiB of them.
    """
    found: list[tuple[str, dict[str, str]]] = []
    left = _MAX_CHALLENGES
    for value in values:
        left -= len(value)
        if left < 0:
            break
        position = 0
        while position < len(value):
            element = _ELEMENT.match(value, position)
            # A malformed challenge still ends the one before: what follows is not that one's.
            rest = element or _MALFORMED.match(value, position)
            assert rest  # noqa: S101 - anything is malformed
            if scheme := rest["scheme"]:
                found.append((scheme.lower(), {}))
            if element and found and (name := element["name"]):
                unquoted = re.sub(r"\\(.)", r"\1", element["quoted"] or "")
                found[-1][1].setdefault(name.lower(), element["token"] or unquoted)
            position = rest.end()
    return [Challenge(scheme, parameters) for scheme, parameters in found]


@dataclass(frozen=True, slots=True)
class _Token:
    """A bearer token, and what is known of it."""

    #: As an `Authorization` header has it.
    value: str = field(repr=False)
    #: The moments at which it was asked for, and from which on it is not used.
    since: float
    until: float
    #: The reason to give should the registry refuse it.
    if_refused: str


@dataclass(slots=True)
class _Repository:
    """One repository's token, and whose turn it is to fetch another."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    token: _Token | None = None
    #: The last that went wrong with fetching one, and when.
    failure: tuple[float, PermanentError | RateLimitedError] | None = None


class Authorization:
    """How requests to one registry are authorized: anonymous, Basic, or Bearer with tokens per repository.

    Nothing is shown that was not asked for. Safe to use from several threads.

    An exchange asks `header` what to send, and after a 401 once `answer_to` what to send instead. What else is refused
    after that, with 401 or 403, `refusal` has the reason for.
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
        """Authorization for one registry.

        Args:
            host: the registry's own host, without port.
            credentials: gives what is configured for a repository, perhaps something else each time. It may
                raise PermanentError.
            fetch: GETs a URL with headers, wherever requests may go; answers with any status but 429 and 5xx.
            clock: seconds, never stepping.
            name: the registry's name in reasons; `OCI registry HOST` by default.

        """
        self._name = name or f"OCI registry {host}"
        self._host = _folded(host)
        self._credentials = credentials
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._repositories: OrderedDict[str, _Repository] = OrderedDict()
        #: The scheme under which the registry wants the configured credentials themselves, once it has said so.
        self._scheme: str | None = None

    def header(self, repository: str) -> str | None:
        """The `Authorization` of a first try; None is anonymous. Waits for nobody.

        It is the repository's token, if there is one that has not expired; else the configured credentials, if the
        registry has asked for these before, for whichever repository.

        Raises:
            PermanentError: what `credentials` raises.

        """
        known = self._repositories.get(repository)
        if known and (token := self._current(known)):
            return token.value
        credentials = self._credentials(repository) if self._scheme else None
        return _value(credentials) if credentials and _scheme(credentials) == self._scheme else None

    def answer_to(self, repository: str, refused: str | None, challenges: Sequence[str], deadline: Deadline) -> str:
        """The `Authorization` of a second try, after a 401 to the first.

        Those who ask for the same repository at the same time share one token. A token that is refused counts as
        expired early or revoked, and is renewed: once for all who showed it.

        Args:
            repository: what the request was for.
            refused: the `Authorization` that it carried.
            challenges: all values of `WWW-Authenticate` in the answer.
            deadline: when the token, if there has to be one, has to be here.

        Raises:
            PermanentError: there is nothing to show, or it was refused, or the challenges or the realm's answer make
                no sense.
            TransientError: the realm does not answer in time.

        """
        asked = self._clock()
        known = self._known(repository)
        if not known.turn.acquire(timeout=deadline.remaining):
            raise TransientError(f"{self._name}: an earlier request for a token has not ended")
        try:
            if (token := self._current(known)) and token.value != refused:
                return token.value
            if known.failure and known.failure[0] > asked:
                raise copy(known.failure[1])
            return self._answer(known, repository, refused, parse_challenges(challenges), deadline)
        finally:
            known.turn.release()

    def refusal(self, repository: str, refused: str | None) -> PermanentError:
        """Why the registry does not let us have what a repository has, by the `Authorization` that it refused."""
        known = self._repositories.get(repository)
        if known and known.token and known.token.value == refused:
            return self._failed(known.token.if_refused)
        return self._failed(_REFUSED if refused else "access denied, and no credentials were asked for")

    def _failed(self, problem: str) -> PermanentError:
        return PermanentError(f"{self._name}: {problem}")

    def _known(self, repository: str) -> _Repository:
        with self._lock:
            known = self._repositories.setdefault(repository, _Repository())
            if len(self._repositories) > _REMEMBERED:
                self._repositories.popitem(last=False)
            return known

    def _current(self, known: _Repository) -> _Token | None:
        token = known.token
        return token if token and self._clock() < token.until else None

    def _answer(
        self, known: _Repository, repository: str, refused: str | None, offered: list[Challenge], deadline: Deadline
    ) -> str:
        schemes = {challenge.scheme for challenge in offered}
        if not schemes & {"bearer", "basic"}:
            told = [*sorted(schemes & _OTHER_SCHEMES), *(["something else"] if schemes - _OTHER_SCHEMES else [])]
            what = ", ".join(told) or "nothing"
            raise self._failed(f"asks for {what}, not for Basic or Bearer credentials")
        credentials = self._credentials(repository)
        if credentials and _scheme(credentials) == "bearer" and "bearer" in schemes:
            return self._configured(credentials, refused)
        if bearer := next((c for c in offered if c.scheme == "bearer" and c.parameters.get("realm")), None):
            self._scheme = None
            try:
                known.token = self._token(bearer, credentials, repository, deadline)
            except (PermanentError, RateLimitedError) as error:
                known.failure = self._clock(), copy(error)  # a copy leaves behind the frames, and whatever these hold
                raise
            return known.token.value
        if "basic" not in schemes:
            raise self._failed("asks for a token, but does not say where to get one")
        if credentials is None:
            raise self._failed(_NONE_CONFIGURED)
        if _scheme(credentials) != "basic":
            raise self._failed("asks for a user name and a password, but only a token is configured")
        return self._configured(credentials, refused)

    def _configured(self, credentials: Credentials, refused: str | None) -> str:
        value = _value(credentials)
        if value == refused:
            raise self._failed(_REFUSED)
        self._scheme = _scheme(credentials)
        return value

    def _token(
        self, challenge: Challenge, credentials: Credentials | None, repository: str, deadline: Deadline
    ) -> _Token:
        """A new token from the realm that a challenge names.

        The configured credentials go to realms that use https, wherever these are, because many registries have theirs
        on another host; without it only to the registry's own host, which the operator has allowed to be without.
        """
        realm = _REALM.fullmatch(challenge.parameters["realm"])
        if not realm:
            raise self._failed("the token realm is no http or https URL")
        scheme, host = realm["scheme"].lower(), realm["host"].lower()
        headers = {"Accept": "application/json"}
        if_refused, besides = _NONE_CONFIGURED, ""
        if credentials and (scheme == "https" or _folded(host) == self._host):
            headers["Authorization"] = _value(credentials)
            if_refused = _REFUSED
        elif credentials:
            where = f"{scheme}://{host}, which is neither https nor the registry's own host"
            if_refused = f"access denied: our credentials were not sent to {where}"
            besides = f"; our credentials were not sent to {where}"
        since = self._clock()
        answer = self._fetch(_with_query(realm["url"], challenge, repository), headers, deadline)
        if answer.status in (401, 403):
            raise self._failed(if_refused)
        if answer.status != 200:
            raise self._failed(f"token realm answered {answer.status}{besides}")
        token, lifetime = _read_token(answer.body, self._name)
        return _Token(f"Bearer {token}", since, since + lifetime - min(_MARGIN, lifetime / 4), if_refused)


def _scheme(credentials: Credentials) -> str:
    return "bearer" if credentials.user is None else "basic"


def _value(credentials: Credentials) -> str:
    if credentials.user is None:
        return f"Bearer {credentials.secret}"
    return basic(credentials.user, credentials.secret)


def _folded(host: str) -> str:
    return host.lower().strip("[]")


def _with_query(url: str, challenge: Challenge, repository: str) -> str:
    """A realm's URL with what it is asked for, after whatever query it has already."""
    query = [("scope", scope) for scope in _scopes(challenge.parameters.get("scope", ""), repository)]
    if service := challenge.parameters.get("service"):
        query.insert(0, ("service", service))
    # To http.client, header fields are ISO 8859-1, whatever their octets mean.
    encoded = urlencode(query, quote_via=quote, safe="", encoding="iso-8859-1", errors="replace")
    return f"{url}{'&' if '?' in url else '?'}{encoded}"


def _scopes(challenged: str, repository: str) -> list[str]:
    """The scopes to ask for: of those that a challenge names, to pull, and nothing more.

    Some registries ask for a push with every pull, and others refuse whoever asks for one. Where a challenge names no
    repository, or nothing that can be pulled (ECR Public: `aws`), it is what `docker pull` asks all registries for.
    """
    pulled = {}
    for scope in challenged.split():
        resource, _, actions = scope.rpartition(":")
        if resource.startswith("repository:") and "pull" in actions.split(","):
            pulled[f"{resource}:pull"] = True
    return list(pulled) or [f"repository:{repository}:pull"]


def _read_token(body: bytes, registry: str) -> tuple[str, int]:
    """The token in a realm's answer, and the seconds from when it was asked for in which it is valid.

    `issued_at` is not read: it is told by another's clock.
    """
    found: object = None
    with suppress(ValueError):  # and nothing is raised from there: the error may quote the token
        found = parse_json(body)
    if not isinstance(found, dict):
        raise PermanentError(f"{registry}: the token realm's answer is no JSON object")
    token, lifetime = found.get("token") or found.get("access_token"), found.get("expires_in")
    if not isinstance(token, str) or not re.fullmatch(r"[!-~]{1,65536}", token):
        raise PermanentError(f"{registry}: the token realm's answer has no token that a header can carry")
    if not isinstance(lifetime, int) or isinstance(lifetime, bool) or lifetime < 1:
        lifetime = _LIFETIME
    return token, min(lifetime, _MAX_LIFETIME)
