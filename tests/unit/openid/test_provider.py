"""What is read of an OpenID provider, how often, and which of its tokens count."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from authlib.oauth2.claims import JWTClaims
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.openid.provider import Provider
from fleet_fn.openid.verification import check_claims, read_signed
from tests.support.http import Request, Response
from tests.support.openid import OpenIdProvider
from tests.support.openid.models import Session, User
from tests.support.timing import Clock


@pytest.fixture(scope="module")
def shared() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        yield provider


@pytest.fixture
def real(shared: OpenIdProvider) -> Iterator[OpenIdProvider]:
    knobs = shared.knobs
    shared.knobs = type(knobs)()
    yield shared
    shared.knobs = knobs


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(real: OpenIdProvider, clock: Clock) -> Iterator[Provider]:
    provider = Provider(real.issuer, ca_file=None, clock=clock)
    yield provider
    provider.close()


def soon() -> Deadline:
    return Deadline(5)


def sign(real: OpenIdProvider) -> str:
    return real.make_access_token(Session(User("alice")))


def test_metadata_is_read_once_until_it_is_old(real: OpenIdProvider, provider: Provider, clock: Clock) -> None:
    before = len(real.asked("/openid-configuration"))
    for _ in range(3):
        assert provider.metadata(soon()).token_endpoint == f"{real.issuer}/protocol/openid-connect/token"
    assert len(real.asked("/openid-configuration")) == before + 1
    clock.now += 901
    provider.metadata(soon())
    assert len(real.asked("/openid-configuration")) == before + 2


def test_old_metadata_serves_while_the_provider_is_down(real: OpenIdProvider, provider: Provider, clock: Clock) -> None:
    known = provider.metadata(soon())
    real.knobs.answer_instead = lambda _: Response(503)
    clock.now += 901
    assert provider.metadata(soon()) == known


def test_a_provider_that_was_down_is_asked_again(real: OpenIdProvider, provider: Provider, clock: Clock) -> None:
    real.knobs.answer_instead = lambda _: Response(503)
    for _ in range(2):
        with pytest.raises(TransientError, match="OpenID provider: answered 503"):
            provider.metadata(soon())
    real.knobs.answer_instead = None
    clock.now += 2
    assert provider.metadata(soon())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: {**found, "issuer": found["issuer"] + "/"}, "of another issuer"),
        (lambda found: {**found, "token_endpoint": None}, "no valid token_endpoint"),
        (lambda found: {**found, "jwks_uri": "file:///etc/passwd"}, "no valid jwks_uri"),
        (lambda found: {**found, "authorization_endpoint": "javascript:alert(1)"}, "no valid authorization_endpoint"),
        (lambda found: {**found, "end_session_endpoint": "https://user@sso.example.com/"}, "no valid end_session"),
        (lambda found: {**found, "revocation_endpoint": "https://sso.example.com/\n"}, "no valid revocation"),
    ],
)
def test_a_discovery_document_that_is_wrong_is_refused(
    real: OpenIdProvider, provider: Provider, change: Callable[[Any], Any], reason: str
) -> None:
    real.knobs.metadata = change
    with pytest.raises(PermanentError, match=reason):
        provider.metadata(soon())


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (Response(404), "answered 404 for its discovery document"),
        (Response(200, b"<html>"), "is malformed"),
        (Response(200, b"[]"), "is no JSON object"),
    ],
)
def test_an_answer_that_is_no_document_is_refused(
    real: OpenIdProvider, provider: Provider, response: Response, reason: str
) -> None:
    real.knobs.answer_instead = lambda _: response
    with pytest.raises(PermanentError, match=reason):
        provider.metadata(soon())


def test_an_https_issuer_has_no_http_endpoints() -> None:
    provider = Provider("https://sso.example.com/realms/drogue", ca_file=None)
    found = {"token_endpoint": "http://sso.example.com/token", "jwks_uri": "https://keys.example.com/certs"}
    with pytest.raises(PermanentError, match="no valid token_endpoint"):
        provider._endpoint(found, "token_endpoint")
    assert provider._endpoint(found, "jwks_uri") == "https://keys.example.com/certs"


def test_a_new_key_is_found_but_unknown_ones_are_not_searched_all_the_time(
    real: OpenIdProvider, provider: Provider, clock: Clock
) -> None:
    assert read_signed(provider, sign(real), "the token", soon()).claims["preferred_username"] == "alice"
    real.use_new_key("ES256")
    before = len(real.asked("/certs"))
    for _ in range(3):
        with pytest.raises(PermanentError, match="its key is not the provider's"):
            read_signed(provider, sign(real), "the token", soon())
    assert len(real.asked("/certs")) == before
    clock.now += 11
    assert read_signed(provider, sign(real), "the token", soon())
    assert len(real.asked("/certs")) == before + 1


def test_a_withdrawn_key_counts_no_longer_than_keys_are_kept(
    real: OpenIdProvider, provider: Provider, clock: Clock
) -> None:
    token = sign(real)
    read_signed(provider, token, "the token", soon())
    real.use_new_key(real.algorithm)
    assert read_signed(provider, token, "the token", soon())
    clock.now += 901
    with pytest.raises(PermanentError, match="its key is not the provider's"):
        read_signed(provider, token, "the token", soon())


@pytest.mark.parametrize("keys", [b'{"keys": []}', b"{}", b'{"keys": [{"kty": "oct", "k": "c2VjcmV0"}, 7, {}]}'])
def test_keys_that_prove_nothing_are_refused(real: OpenIdProvider, provider: Provider, keys: bytes) -> None:
    def answer(asked: Request) -> Response | None:
        return Response(200, keys) if asked.path.endswith("/certs") else None

    real.knobs.answer_instead = answer
    with pytest.raises(PermanentError, match="has none that can be used"):
        provider.keys(soon())


@pytest.mark.parametrize(
    "token", ["", "a", "a.b.c", "....", "e30.e30.", "W10.W10.W10", "eyJhbGciOiJub25lIn0.e30.", "é.é.é"]
)
def test_a_malformed_token_is_refused(provider: Provider, token: str) -> None:
    with pytest.raises(PermanentError, match="the token is not acceptable"):
        read_signed(provider, token, "the token", soon())


def test_a_shared_secret_proves_nothing(provider: Provider) -> None:
    token = jwt.encode({"alg": "HS256"}, {"sub": "alice"}, OctKey.generate_key(256))
    with pytest.raises(PermanentError, match="unsupported algorithm"):
        read_signed(provider, token, "the token", soon())


def test_a_changed_token_is_refused(real: OpenIdProvider, provider: Provider) -> None:
    head, claims, signature = sign(real).split(".")
    other = RSAKey.generate_key(2048)
    forged = jwt.encode({"alg": "RS256", "kid": real.key.kid or ""}, {"sub": "alice"}, other)
    for token in (f"{head}.{claims[:-4]}AAAA.{signature}", f"{head}.{claims}.AAAA", forged):
        with pytest.raises(PermanentError, match="the token is not acceptable"):
            read_signed(provider, token, "the token", soon())


def test_clocks_may_differ_by_a_minute() -> None:
    now = int(time.time())

    def check(**claims: object) -> None:
        check_claims(JWTClaims(claims, {}, {}), "the token", now)

    check(exp=now - 59, iat=now + 59, nbf=now + 59)
    for claims in ({"exp": now - 61}, {"iat": now + 62}, {"nbf": now + 62}, {"exp": "soon"}):
        with pytest.raises(PermanentError, match="the token is not acceptable"):
            check(**claims)
