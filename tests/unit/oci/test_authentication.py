"""Authorization: recipients of credentials, lifetimes of tokens, and threads that share one token."""

import base64
import json
import logging
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPMessage
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, RateLimitedError, TransientError
from fleet_fn.http.authorization import basic
from fleet_fn.http.client import Answer
from fleet_fn.oci.authentication import Authorization
from fleet_fn.oci.challenges import parse_challenges
from fleet_fn.oci.docker_config import Credentials
from tests.support.http import Request, Response, Server
from tests.support.timing import Clock

ADA = Credentials("ada", "pass")
TOKEN_ONLY = Credentials(None, "s3cret")
BEARER = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:acme/pump:pull"'
BASIC = 'Basic realm="registry"'

NAME = "OCI registry registry.example"
REFUSED = f"{NAME}: our credentials were refused"
NONE_CONFIGURED = f"{NAME}: access denied: no credentials are configured"


def answered(status: int = 200, body: bytes = b"") -> Answer:
    return Answer(status, HTTPMessage(), body)


@dataclass
class Realm:
    """Answers with tokens that are numbered, or as it is told."""

    clock: Clock = field(default_factory=Clock)
    #: Seconds that an answer takes.
    takes: float = 0.0
    #: What an answer has besides the token.
    more: Mapping[str, object] = field(default_factory=dict)
    answer: Callable[[], Answer] | None = None
    asked: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def __call__(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:  # noqa: ARG002
        self.asked.append((url, headers))
        number = len(self.asked)
        self.clock.now += self.takes
        if self.answer:
            return self.answer()
        return answered(body=json.dumps({"token": f"token{number}", **self.more}).encode())

    @property
    def query(self) -> list[tuple[str, str]]:
        """What the last request asked for."""
        return parse_qsl(urlsplit(self.asked[-1][0]).query, keep_blank_values=True, strict_parsing=True)

    @property
    def was_shown(self) -> str | None:
        """The credentials that the last request carried."""
        return self.asked[-1][1].get("Authorization")


@dataclass
class Configured:
    """Credentials that can be changed, and whether anybody needed them."""

    credentials: Credentials | None = None
    read: list[str] = field(default_factory=list)

    def __call__(self, repository: str) -> Credentials | None:
        self.read.append(repository)
        return self.credentials


def authorization(
    realm: Realm, credentials: Credentials | Configured | None = None, host: str = "registry.example"
) -> Authorization:
    configured = credentials if isinstance(credentials, Configured) else Configured(credentials)
    return Authorization(host, configured, realm, realm.clock)


def answer_challenge(
    authorization: Authorization, *challenges: str, refused: str | None = None, repository: str = "acme/pump"
) -> str:
    return authorization.answer_challenge(repository, refused, challenges or [BEARER], Deadline(5))


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(PermanentError) as caught:
        call()
    return caught.value.reason


# --- Who is shown what ------------------------------------------------------------------------------------------------


def test_no_credentials_are_read_or_sent_before_a_challenge() -> None:
    configured = Configured(ADA)
    assert authorization(Realm(), configured).header("acme/pump") is None
    assert not configured.read


@pytest.mark.parametrize("credentials", [None, ADA])
def test_a_token_is_fetched_with_what_is_configured_and_used_from_then_on(credentials: Credentials | None) -> None:
    realm, configured = Realm(), Configured(credentials)
    ours = authorization(realm, configured)
    assert answer_challenge(ours) == "Bearer token1"
    assert realm.was_shown == (basic("ada", "pass") if credentials else None)
    assert configured.read == ["acme/pump"]
    assert ours.header("acme/pump") == "Bearer token1"
    assert len(realm.asked) == 1


def test_a_token_serves_one_repository() -> None:
    realm = Realm()
    ours = authorization(realm)
    answer_challenge(ours, repository="acme/pump")
    assert ours.header("acme/valve") is None
    assert answer_challenge(ours, repository="acme/valve") == "Bearer token2"
    assert ours.header("acme/pump") == "Bearer token1"


def test_basic_credentials_are_shown_to_a_registry_that_asks_and_then_for_all_its_repositories() -> None:
    configured = Configured(ADA)
    ours = authorization(Realm(), configured)
    assert answer_challenge(ours, BASIC) == basic("ada", "pass")
    assert ours.header("acme/pump") == ours.header("acme/valve") == basic("ada", "pass")
    configured.credentials = Credentials("ada", "new")
    assert ours.header("acme/pump") == basic("ada", "new")
    configured.credentials = None
    assert ours.header("acme/pump") is None


def test_a_configured_token_is_shown_to_a_registry_that_asks_for_one_and_never_to_a_realm() -> None:
    realm = Realm()
    ours = authorization(realm, TOKEN_ONLY)
    for challenge in (BEARER, "Bearer"):
        assert answer_challenge(ours, challenge) == "Bearer s3cret"
    assert ours.header("acme/valve") == "Bearer s3cret"
    assert not realm.asked


def test_registry_that_changes_its_scheme_gets_the_new_one() -> None:
    ours = authorization(Realm(), ADA)
    shown = answer_challenge(ours, BASIC)
    assert answer_challenge(ours, BEARER, refused=shown) == "Bearer token1"
    assert ours.header("acme/valve") is None
    ours = authorization(Realm(), configured := Configured(TOKEN_ONLY))
    answer_challenge(ours, BEARER)
    configured.credentials = ADA
    assert ours.header("acme/pump") is None  # Basic was never asked for


@pytest.mark.parametrize(
    "challenges", [[BASIC, BEARER], [f"{BASIC}, {BEARER}"], [BEARER, BASIC], ["Bearer", BASIC, BEARER]]
)
@pytest.mark.parametrize(("credentials", "shown"), [(ADA, "Bearer token1"), (TOKEN_ONLY, "Bearer s3cret")])
def test_a_token_is_preferred_to_basic(challenges: list[str], credentials: Credentials, shown: str) -> None:
    assert answer_challenge(authorization(Realm(), credentials), *challenges) == shown


def test_where_nothing_says_where_to_get_a_token_basic_will_do() -> None:
    assert answer_challenge(authorization(Realm(), ADA), 'Bearer service="x"', BASIC) == basic("ada", "pass")


@pytest.mark.parametrize(
    ("challenges", "credentials", "told"),
    [
        ([BASIC], None, NONE_CONFIGURED),
        (
            [BASIC],
            TOKEN_ONLY,
            f"{NAME}: asks for a user name and a password, but only a token is configured",
        ),
        ([], ADA, f"{NAME}: asks for nothing, not for Basic or Bearer credentials"),
        (["@@@"], ADA, f"{NAME}: asks for nothing, not for Basic or Bearer credentials"),
        (
            ["Negotiate, Digest qop=x"],
            ADA,
            f"{NAME}: asks for digest, negotiate, not for Basic or Bearer credentials",
        ),
        (
            ["s3cret"],
            ADA,
            f"{NAME}: asks for something else, not for Basic or Bearer credentials",
        ),
        (
            ["NTLM, s3cret x=y"],
            ADA,
            f"{NAME}: asks for ntlm, something else, not for Basic or Bearer credentials",
        ),
        (
            ["x" * 65536],
            ADA,
            f"{NAME}: asks for something else, not for Basic or Bearer credentials",
        ),
        (["Bearer"], ADA, f"{NAME}: asks for a token, but does not say where to get one"),
        (
            ['Bearer realm=""'],
            None,
            f"{NAME}: asks for a token, but does not say where to get one",
        ),
    ],
)
def test_unanswerable_challenge_fails(challenges: list[str], credentials: Credentials | None, told: str) -> None:
    ours = authorization(Realm(), credentials)
    assert reason(lambda: ours.answer_challenge("acme/pump", None, challenges, Deadline(5))) == told


def test_credentials_that_cannot_be_read_are_a_failure() -> None:
    broken = True

    def credentials(_: str) -> Credentials:
        if broken:
            raise PermanentError("OCI registry credentials: DOCKER_CONFIG: no")
        return ADA

    ours = Authorization("registry.example", credentials, Realm())
    for challenge in (BASIC, BEARER):
        with pytest.raises(PermanentError, match="DOCKER_CONFIG: no"):
            answer_challenge(ours, challenge)
    broken = False
    answer_challenge(ours, BASIC)
    broken = True
    with pytest.raises(PermanentError, match="DOCKER_CONFIG: no"):
        ours.header("acme/pump")


# --- What a realm is asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("realm", "asked"),
    [
        ("https://auth.example/token", "https://auth.example/token?"),
        ("https://auth.example", "https://auth.example?"),
        ("HTTPS://Auth.Example:8443/a/b%2Fc/", "HTTPS://Auth.Example:8443/a/b%2Fc/?"),
        ("https://auth.example/token?scope=repository:x:pull,push&a=%20b", "https://auth.example/token?scope=repository:x:pull,push&a=%20b&"),
        ("https://auth.example?account=ada", "https://auth.example?account=ada&"),
        ("https://auth.example/token#part", "https://auth.example/token?"),
        ("https://[::1]:5001/token", "https://[::1]:5001/token?"),
    ],
)  # fmt: skip
def test_token_query_is_appended_to_the_realms_query(realm: str, asked: str) -> None:
    upstream = Realm()
    answer_challenge(authorization(upstream), f'Bearer realm="{realm}",service="s"')
    assert upstream.asked[0][0] == f"{asked}service=s&scope=repository%3Aacme%2Fpump%3Apull"


def test_service_is_encoded_in_the_token_query() -> None:
    realm = Realm()
    answer_challenge(authorization(realm), r'Bearer realm="https://auth.example/token",service="a&b=c d+e%20#\"é,:"')
    query = urlsplit(realm.asked[0][0]).query
    assert parse_qsl(query, encoding="iso-8859-1")[0] == ("service", 'a&b=c d+e%20#"é,:')
    assert re.fullmatch(r"[A-Za-z0-9%=&._~-]*", query)


def test_without_a_service_none_is_asked_for() -> None:
    realm = Realm()
    for challenge in (
        'Bearer realm="https://auth.example/token"',
        'Bearer realm="https://auth.example/token",service=""',
    ):
        answer_challenge(authorization(realm), challenge)
        assert realm.query == [("scope", "repository:acme/pump:pull")]


@pytest.mark.parametrize(
    ("challenged", "asked"),
    [
        # Docker Hub, GHCR, Quay, Harbor, GAR, ACR, GitLab, zot.
        ("repository:library/pump:pull", ["repository:library/pump:pull"]),
        # What stands before the registry may call the repository something else.
        ("repository:registry.example:5000/other:pull", ["repository:registry.example:5000/other:pull"]),
        # nvcr.io wants to see a push, and GHCR refuses whoever asks for one.
        ("repository:acme/pump:pull,push", ["repository:acme/pump:pull"]),
        ("repository:acme/pump:delete,pull", ["repository:acme/pump:pull"]),
        (" repository:a:pull  repository:b:push,pull ", ["repository:a:pull", "repository:b:pull"]),
        ("repository:a:pull repository:a:pull,push registry:catalog:*", ["repository:a:pull"]),
        # OCIR, GitLab's dependency proxy, ECR Public.
        ("", ["repository:acme/pump:pull"]),
        ("aws", ["repository:acme/pump:pull"]),
        ("registry:catalog:*", ["repository:acme/pump:pull"]),
        ("registry:catalog:pull", ["repository:acme/pump:pull"]),
        ("repository:acme/pump:push", ["repository:acme/pump:pull"]),
        ("repository:acme/pump:pullover", ["repository:acme/pump:pull"]),
        ("::", ["repository:acme/pump:pull"]),
    ],
)
def test_a_token_is_asked_for_to_pull_and_for_nothing_more(challenged: str, asked: list[str]) -> None:
    realm = Realm()
    answer_challenge(
        authorization(realm), f'Bearer realm="https://auth.example/token",service="s",scope="{challenged}"'
    )
    assert realm.query == [("service", "s"), *(("scope", scope) for scope in asked)]


@pytest.mark.parametrize(
    ("realm", "host", "is_shown"),
    [
        ("https://auth.example/token", "registry.example", True),
        ("http://registry.example/token", "registry.example", True),
        ("http://REGISTRY.example:5001/token", "Registry.Example", True),
        ("http://127.0.0.1:5001/token", "127.0.0.1", True),
        ("http://[::1]:5001/token", "::1", True),
        ("http://[::1]:5001/token", "[::1]", True),
        ("http://auth.registry.example/token", "registry.example", False),
        ("http://registry.example.evil/token", "registry.example", False),
        ("http://evil/registry.example", "registry.example", False),
    ],
)
def test_credentials_are_only_shown_over_https_or_to_the_registrys_own_host(
    realm: str, host: str, is_shown: bool
) -> None:
    upstream = Realm()
    ours = authorization(upstream, ADA, host)
    assert answer_challenge(ours, f'Bearer realm="{realm}"') == "Bearer token1"
    assert upstream.was_shown == (basic("ada", "pass") if is_shown else None)


def test_refusal_says_that_credentials_were_not_sent() -> None:
    realm = Realm()
    ours = authorization(realm, ADA)
    challenge = 'Bearer realm="http://Auth.example:5001/token?key=S3cr3t"'
    where = "not sent to http://auth.example, which is neither https nor the registry's own host"
    told = f"{NAME}: access denied: our credentials were {where}"
    shown = answer_challenge(ours, challenge)  # an anonymous token, with which nothing is allowed
    assert ours.refusal("acme/pump", shown).reason == told
    realm.clock.now += 600
    for status in (401, 403):
        realm.answer = lambda status=status: answered(status)
        assert reason(lambda: answer_challenge(ours, challenge)) == told
    realm.answer = lambda: answered(400)
    assert (
        reason(lambda: answer_challenge(ours, challenge))
        == f"{NAME}: token realm answered 400; our credentials were {where}"
    )


@pytest.mark.parametrize(
    "realm",
    [
        "/token",
        "auth.example/token",
        "//auth.example/token",
        "ftp://auth.example/token",
        "file:///etc/passwd",
        "https:///token",
        "https://",
        "https:auth.example",
        "https://ada@auth.example/token",
        "https://ada:S3cr3t@auth.example/token",
        "https://evil.example\\\\@registry.example/token",
        "https://auth.example:port/token",
        "https://auth.example:123456/token",
        "https://auth.example /token",
        "https://auth.example/to ken",
        "https://auth.exämple/token",
        "https://auth%2Eexample/token",
        f"https://{'a' * 254}/token",
        " https://auth.example/token",
        "https://auth.example/token\t",
    ],
)
def test_a_realm_that_two_readers_could_understand_differently_is_not_asked(realm: str) -> None:
    upstream = Realm()
    ours = authorization(upstream, ADA)
    told = reason(lambda: answer_challenge(ours, f'Bearer realm="{realm}"'))
    assert told == f"{NAME}: the token realm is no http or https URL"
    assert not upstream.asked


def test_a_realm_is_asked_over_the_wire_as_it_says() -> None:
    def issue(request: Request) -> Response:
        return Response(200 if request.headers.get("Authorization") == basic("ada", "pass") else 401, b'{"token": "t"}')

    def fetch(url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        parts = urlsplit(url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=deadline.remaining)
        connection.request("GET", f"{parts.path}?{parts.query}", headers=dict(headers))
        response = connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        connection.close()
        return answer

    with Server(issue) as server:
        ours = Authorization("127.0.0.1", Configured(ADA), fetch)
        assert (
            answer_challenge(ours, f'Bearer realm="{server.url}/token",service="zot",scope="repository:pump:pull"')
            == "Bearer t"
        )
        assert [request.path for request in server.requests] == ["/token?service=zot&scope=repository%3Apump%3Apull"]
        assert reason(
            lambda: answer_challenge(Authorization("127.0.0.1", Configured(), fetch), f'Bearer realm="{server.url}"')
        )


# --- What a realm answers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"token": "t"},
        {"access_token": "t"},
        {"token": "t", "access_token": "other"},
        {"token": "", "access_token": "t"},
        {"token": None, "access_token": "t", "refresh_token": [], "issued_at": 5, "scope": {}},
    ],
)
def test_a_token_has_one_of_two_names(body: object) -> None:
    realm = Realm(answer=lambda: answered(body=json.dumps(body).encode()))
    assert answer_challenge(authorization(realm)) == "Bearer t"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("credentials", "told"), [(ADA, REFUSED), (None, NONE_CONFIGURED)])
def test_a_realm_that_refuses_is_a_failure_that_says_what(
    status: int, credentials: Credentials | None, told: str
) -> None:
    ours = authorization(Realm(answer=lambda: answered(status, b'{"token": "t"}')), credentials)
    assert reason(lambda: answer_challenge(ours)) == told


@pytest.mark.parametrize("status", [201, 204, 302, 400, 404, 405, 418])
def test_another_answer_of_a_realm_is_a_failure(status: int) -> None:
    ours = authorization(Realm(answer=lambda: answered(status, b'{"token": "t"}')), ADA)
    assert reason(lambda: answer_challenge(ours)) == f"{NAME}: token realm answered {status}"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "is no JSON object"),
        (b"<html>Log in</html>", "is no JSON object"),
        (b"\xff", "is no JSON object"),
        (b'{"token": "a", "token": "b"}', "is no JSON object"),
        (b"[" * 100_000, "is no JSON object"),
        (b'{"token": "t", "expires_in": ' + b"9" * 5000 + b"}", "is no JSON object"),
        (b"[]", "is no JSON object"),
        (b'"t"', "is no JSON object"),
        (b"{}", "has no token that a header can carry"),
        (b'{"token": ""}', "has no token that a header can carry"),
        (b'{"token": 5}', "has no token that a header can carry"),
        (b'{"token": ["t"]}', "has no token that a header can carry"),
        (b'{"token": "two words"}', "has no token that a header can carry"),
        (b'{"token": "t\\r\\nHost: evil"}', "has no token that a header can carry"),
        (b'{"token": "t\\n"}', "has no token that a header can carry"),
        ('{"token": "é"}'.encode(), "has no token that a header can carry"),
        (b'{"token": "' + b"t" * 65537 + b'"}', "has no token that a header can carry"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_failure(body: bytes, told: str) -> None:
    ours = authorization(Realm(answer=lambda: answered(body=body)))
    assert reason(lambda: answer_challenge(ours)) == f"{NAME}: the token realm's answer {told}"
    assert ours.header("acme/pump") is None


def test_transient_errors_are_passed_on_and_not_remembered() -> None:
    def is_down() -> Answer:
        raise RateLimitedError(f"{NAME}: answered 429", 7)

    realm = Realm(answer=is_down)
    ours = authorization(realm)
    with pytest.raises(RateLimitedError) as caught:
        answer_challenge(ours)
    assert caught.value.retry_after == 7
    realm.answer = None
    assert answer_challenge(ours) == "Bearer token2"


# --- How long a token serves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "seconds"),
    [
        ({}, 50),
        ({"expires_in": None}, 50),
        ({"expires_in": 300}, 290),
        ({"expires_in": 300, "issued_at": "2009-11-10T23:00:00Z"}, 290),
        ({"expires_in": 41}, 31),
        # Realms should not, and do: then most of what there is.
        ({"expires_in": 20}, 15),
        ({"expires_in": 1}, 0.75),
        # What says nothing is as if nothing were said.
        ({"expires_in": 0}, 50),
        ({"expires_in": -1}, 50),
        ({"expires_in": "300"}, 50),
        ({"expires_in": 300.5}, 50),
        ({"expires_in": True}, 50),
        ({"expires_in": 10**400}, 86390),
    ],
)
def test_a_token_serves_until_a_little_before_it_expires(more: Mapping[str, object], seconds: float) -> None:
    realm = Realm(takes=0.5, more=more)
    ours = authorization(realm)
    asked = realm.clock.now
    shown = answer_challenge(ours)
    realm.clock.now = asked + seconds - 0.01
    assert ours.header("acme/pump") == shown
    realm.clock.now = asked + seconds
    assert ours.header("acme/pump") is None
    assert answer_challenge(ours) == "Bearer token2"


def test_a_token_that_is_refused_before_its_time_is_renewed_once() -> None:
    realm = Realm(more={"expires_in": 300})
    ours = authorization(realm)
    shown = answer_challenge(ours)
    realm.clock.now += 5
    assert answer_challenge(ours, refused=shown) == "Bearer token2"
    # Whoever comes late with the old one gets the new one.
    assert answer_challenge(ours, refused=shown) == answer_challenge(ours, refused=None) == "Bearer token2"
    assert len(realm.asked) == 2


@pytest.mark.parametrize(("credentials", "told"), [(ADA, REFUSED), (None, NONE_CONFIGURED)])
def test_a_token_that_is_refused_has_a_reason_by_what_it_was_fetched_with(
    credentials: Credentials | None, told: str
) -> None:
    ours = authorization(Realm(more={"expires_in": 300}), credentials)
    shown = answer_challenge(ours)
    assert ours.refusal("acme/pump", shown).reason == told
    assert answer_challenge(ours, refused=shown) == "Bearer token2", "however young it was: it may have been revoked"


@pytest.mark.parametrize(("credentials", "challenge"), [(ADA, BASIC), (TOKEN_ONLY, BEARER)])
def test_configured_credentials_that_were_refused_are_shown_again_only_when_they_change(
    credentials: Credentials, challenge: str
) -> None:
    configured = Configured(credentials)
    ours = authorization(Realm(), configured)
    shown = answer_challenge(ours, challenge)
    assert reason(lambda: answer_challenge(ours, challenge, refused=shown)) == REFUSED
    assert ours.refusal("acme/pump", shown).reason == REFUSED
    configured.credentials = Credentials(credentials.user, "rotated")
    assert answer_challenge(ours, challenge, refused=shown) != shown


def test_a_refusal_without_a_question_says_so() -> None:
    told = f"{NAME}: access denied, and no credentials were asked for"
    assert authorization(Realm(), ADA).refusal("acme/pump", None).reason == told


def test_tokens_of_1024_repositories_are_remembered_and_the_oldest_is_forgotten() -> None:
    ours = authorization(Realm())
    for number in range(1025):
        answer_challenge(ours, repository=f"pump{number}")
    assert ours.header("pump0") is None
    assert ours.header("pump1") == "Bearer token2"
    assert ours.header("pump1024") == "Bearer token1025"


# --- Several at once --------------------------------------------------------------------------------------------------


class Counted(Deadline):
    """Tells that its owner is about to wait."""

    def __init__(self, seconds: float, waiting: threading.Semaphore) -> None:
        super().__init__(seconds)
        self._waiting = waiting

    @property
    def remaining(self) -> float:
        self._waiting.release()
        return super().remaining


class Held:
    """A realm that holds its first answer back."""

    def __init__(self, *answers: Answer | TransientError) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, url: str, _: Mapping[str, str], __: Deadline) -> Answer:
        self.asked.append(url)
        number = len(self.asked)
        if number == 1:
            self.reached.set()
            assert self.opened.wait(30)
        answer = self.answers[number - 1] if self.answers else answered(body=b'{"token": "token%d"}' % number)
        if isinstance(answer, TransientError):
            raise answer
        return answer


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def outcomes(realm: Held, threads: ThreadPoolExecutor) -> list[str]:
    """What eight get that ask at once, the one who asks first before the others."""
    ours, waiting = Authorization("registry.example", Configured(), realm), threading.Semaphore(0)

    def ask(deadline: Deadline) -> str:
        try:
            return ours.answer_challenge("acme/pump", None, [BEARER], deadline)
        except (PermanentError, TransientError) as error:
            return error.reason

    first = threads.submit(ask, Deadline(30))
    assert realm.reached.wait(30)
    others = [threads.submit(ask, Counted(30, waiting)) for _ in range(7)]
    for _ in others:
        assert waiting.acquire(timeout=30)
    realm.opened.set()
    return [result.result() for result in [first, *others]]


def test_those_who_need_a_token_at_once_share_it(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    assert outcomes(realm, threads) == ["Bearer token1"] * 8
    assert len(realm.asked) == 1


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (answered(403), NONE_CONFIGURED),
        (RateLimitedError(f"{NAME}: answered 429"), f"{NAME}: answered 429"),
    ],
)
def test_those_who_wait_for_a_token_share_its_failure(
    threads: ThreadPoolExecutor, answer: Answer | TransientError, told: str
) -> None:
    realm = Held(answer)
    assert outcomes(realm, threads) == [told] * 8
    assert len(realm.asked) == 1


def test_one_who_had_no_more_time_does_not_spoil_it_for_the_others(threads: ThreadPoolExecutor) -> None:
    realm = Held(TransientError(f"{NAME}: no answer in time"), answered(body=b'{"token": "t"}'))
    assert outcomes(realm, threads) == [f"{NAME}: no answer in time"] + ["Bearer t"] * 7
    assert len(realm.asked) == 2


def test_those_who_were_refused_at_once_share_the_renewed_token(threads: ThreadPoolExecutor) -> None:
    realm = Realm(more={"expires_in": 300})
    ours = authorization(realm)
    shown = answer_challenge(ours)
    realm.clock.now += 60
    together = threading.Barrier(8)

    def ask() -> str:
        together.wait(30)
        return answer_challenge(ours, refused=shown)

    assert {result.result() for result in [threads.submit(ask) for _ in range(8)]} == {"Bearer token2"}
    assert len(realm.asked) == 2


def test_repositories_do_not_wait_for_each_other_nor_a_first_try_for_anything(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    ours = Authorization("registry.example", Configured(), realm)
    slowly = threads.submit(answer_challenge, ours, repository="one")
    assert realm.reached.wait(30)
    assert answer_challenge(ours, repository="other") == "Bearer token2"
    assert ours.header("one") is None
    assert ours.header("other") == "Bearer token2"
    realm.opened.set()
    assert slowly.result() == "Bearer token1"


def test_who_waits_for_the_token_of_another_waits_until_the_own_deadline(threads: ThreadPoolExecutor) -> None:
    realm = Held()
    ours = Authorization("registry.example", Configured(), realm)
    slowly = threads.submit(answer_challenge, ours)
    assert realm.reached.wait(30)
    deadline = Deadline(0.1)
    with pytest.raises(
        TransientError, match=r"^OCI registry registry\.example: an earlier request for a token has not ended$"
    ):
        ours.answer_challenge("acme/pump", None, [BEARER], deadline)
    assert deadline.elapsed < 2
    realm.opened.set()
    assert slowly.result() == "Bearer token1"


# --- Secrets ----------------------------------------------------------------------------------------------------------

SECRET = "S3cr3t"
secrets = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=8).map(lambda text: SECRET + text)
hidden = st.sampled_from(
    [b"%s", b"\xff%s", b'"%s', b'["%s"]', b'{"token": "%s"}', b'{"token": "%s\\n"}', b'{"token": "%s", "token": ""}',
     b'{"token": ["%s"]}', b'{"access_token": "%s", "token": "\\ud800"}', b'{"%s": 1e999}', b'{"token": "%s'],
)  # fmt: skip


def everything_told(thing: object) -> str:
    """Its texts, and those of what it comes from, shown in a traceback or not."""
    if not isinstance(thing, BaseException):
        return f"{thing!s} {thing!r}"
    sources = [source for source in (thing.__cause__, thing.__context__) if source]
    return " ".join([str(thing), repr(thing), *traceback.format_exception(thing), *map(everything_told, sources)])


@given(
    user=st.none() | st.just("ada"),
    secret=secrets,
    realm=st.sampled_from(["https://auth.example", "http://auth.example", "http://registry.example", "ftp://x", "x"]),
    path=st.sampled_from(["?key=", "/", "/#", "/\\\\", "/ ", "", ":", "@"]),
    schemes=st.lists(st.sampled_from(["Bearer", "Basic", "Digest"]), max_size=3),
    status=st.sampled_from([200, 200, 302, 400, 401, 403, 404]),
    body=hidden,
)
@example("ada", SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b'{"token": "%s"}')
@example("ada", SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b'\xff{"token": "%s"}')
@example(None, SECRET, "https://auth.example", "?key=", ["Bearer"], 200, b"")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_error_quotes_a_secret(
    caplog: pytest.LogCaptureFixture,
    user: str | None,
    secret: str,
    realm: str,
    path: str,
    schemes: list[str],
    status: int,
    body: bytes,
) -> None:
    caplog.set_level(logging.DEBUG)
    ours = authorization(
        Realm(answer=lambda: answered(status, body.replace(b"%s", secret.encode()))), Credentials(user, secret)
    )
    quoted = re.sub(r'(["\\])', r"\\\1", secret)
    challenges = [f'{scheme} realm="{realm}{path}{quoted}",service="{SECRET}"' for scheme in schemes]
    told: list[object] = [*parse_challenges(challenges), Credentials(user, secret)]
    refused = None
    try:
        for _ in range(3):  # what is shown is refused
            refused = ours.answer_challenge("acme/pump", refused, challenges, Deadline(5))
            told += [ours, *vars(ours)["_tokens"].values(), ours.refusal("acme/pump", refused)]
    except PermanentError as error:
        assert error.reason.startswith(f"{NAME}: ")
        told.append(error)
    told += caplog.records
    for form in (SECRET, base64.b64encode(SECRET.encode())[:7].decode(), basic("ada", SECRET)[6:16]):
        assert form not in " ".join(map(everything_told, told))
