"""TokenRealm: requests for tokens, recipients of credentials, and what an answer has to be."""

import json
import re
from collections.abc import Callable, Mapping
from http.client import HTTPConnection
from urllib.parse import parse_qsl, urlsplit

import pytest

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.http.authorization import basic
from fleet_fn.http.bearer_tokens import Token
from fleet_fn.http.head import Head
from fleet_fn.http.messages import Answer
from fleet_fn.oci.challenges import Challenge, parse_challenges
from fleet_fn.oci.docker_config import Credentials
from fleet_fn.oci.token_realm import TokenRealm
from tests.support.http import Request, Response, Server
from tests.support.timing import Clock
from tests.support.token_realm import FakeRealm, answered

ADA = Credentials("ada", "pass")
BEARER = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:acme/pump:pull"'
NAME = "OCI registry registry.example"
REFUSED = f"{NAME}: our credentials were refused"
NONE_CONFIGURED = f"{NAME}: access denied: no credentials are configured"


def fetch_token(
    realm: FakeRealm, challenge: str = BEARER, credentials: Credentials | None = None, host: str = "registry.example"
) -> Token:
    (parsed,) = parse_challenges([challenge])
    return TokenRealm(host, NAME, realm, realm.clock).fetch_token(parsed, credentials, "acme/pump", Deadline(5))


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(PermanentError) as caught:
        call()
    return caught.value.reason


# --- Requests ---------------------------------------------------------------------------------------------------------


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
    upstream = FakeRealm()
    fetch_token(upstream, f'Bearer realm="{realm}",service="s"')
    assert upstream.asked[0][0] == f"{asked}service=s&scope=repository%3Aacme%2Fpump%3Apull"


def test_service_is_encoded_in_the_token_query() -> None:
    realm = FakeRealm()
    fetch_token(realm, r'Bearer realm="https://auth.example/token",service="a&b=c d+e%20#\"é,:"')
    query = urlsplit(realm.asked[0][0]).query
    assert parse_qsl(query, encoding="iso-8859-1")[0] == ("service", 'a&b=c d+e%20#"é,:')
    assert re.fullmatch(r"[A-Za-z0-9%=&._~-]*", query)


def test_without_a_service_none_is_asked_for() -> None:
    realm = FakeRealm()
    for challenge in (
        'Bearer realm="https://auth.example/token"',
        'Bearer realm="https://auth.example/token",service=""',
    ):
        fetch_token(realm, challenge)
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
    realm = FakeRealm()
    fetch_token(realm, f'Bearer realm="https://auth.example/token",service="s",scope="{challenged}"')
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
    upstream = FakeRealm()
    assert fetch_token(upstream, f'Bearer realm="{realm}"', ADA, host).header == "Bearer token1"
    assert upstream.was_shown == (basic("ada", "pass") if is_shown else None)


def test_refusal_says_that_credentials_were_not_sent() -> None:
    realm = FakeRealm()
    challenge = 'Bearer realm="http://Auth.example:5001/token?key=S3cr3t"'
    where = "not sent to http://auth.example, which is neither https nor the registry's own host"
    told = f"access denied: our credentials were {where}"
    # An anonymous token, with which nothing is allowed.
    assert fetch_token(realm, challenge, ADA).if_refused == told
    for status in (401, 403):
        realm.answer = lambda status=status: answered(status)
        assert reason(lambda: fetch_token(realm, challenge, ADA)) == f"{NAME}: {told}"
    realm.answer = lambda: answered(400)
    assert (
        reason(lambda: fetch_token(realm, challenge, ADA))
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
    upstream = FakeRealm()
    told = reason(lambda: fetch_token(upstream, f'Bearer realm="{realm}"', ADA))
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
        answer = Answer(response.status, Head(), response.read())
        connection.close()
        return answer

    with Server(issue) as server:
        realm = TokenRealm("127.0.0.1", NAME, fetch, Clock())
        challenge = Challenge(
            "bearer", {"realm": f"{server.url}/token", "service": "zot", "scope": "repository:pump:pull"}
        )
        assert realm.fetch_token(challenge, ADA, "acme/pump", Deadline(5)).header == "Bearer t"
        assert [request.path for request in server.requests] == ["/token?service=zot&scope=repository%3Apump%3Apull"]
        assert reason(lambda: realm.fetch_token(challenge, None, "acme/pump", Deadline(5))) == NONE_CONFIGURED


# --- Answers ----------------------------------------------------------------------------------------------------------


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
    realm = FakeRealm(answer=lambda: answered(body=json.dumps(body).encode()))
    assert fetch_token(realm).header == "Bearer t"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("credentials", "told"), [(ADA, REFUSED), (None, NONE_CONFIGURED)])
def test_a_realm_that_refuses_is_a_failure_that_says_what(
    status: int, credentials: Credentials | None, told: str
) -> None:
    realm = FakeRealm(answer=lambda: answered(status, b'{"token": "t"}'))
    assert reason(lambda: fetch_token(realm, credentials=credentials)) == told


@pytest.mark.parametrize("status", [201, 204, 302, 400, 404, 405, 418])
def test_another_answer_of_a_realm_is_a_failure(status: int) -> None:
    realm = FakeRealm(answer=lambda: answered(status, b'{"token": "t"}'))
    assert reason(lambda: fetch_token(realm, credentials=ADA)) == f"{NAME}: token realm answered {status}"


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
    realm = FakeRealm(answer=lambda: answered(body=body))
    assert reason(lambda: fetch_token(realm)) == f"{NAME}: the token realm's answer {told}"
