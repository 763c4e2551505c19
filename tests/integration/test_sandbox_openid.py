"""The sandbox takes an OpenID provider's access tokens, as Drogue Cloud does."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from fleet_fn.openid.provider import Provider
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.openid import OpenIdUsers
from tests.support.http import Response
from tests.support.openid import CLIENT, OpenIdProvider
from tests.support.openid.models import Session, User

OBJECTS: list[dict[str, Any]] = [{"metadata": {"name": "example"}}]


@pytest.fixture(scope="module")
def provider() -> Iterator[OpenIdProvider]:
    with OpenIdProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def sandbox(provider: OpenIdProvider) -> Iterator[Sandbox]:
    users = OpenIdUsers(Provider(provider.issuer, ca_file=None), CLIENT)
    with Sandbox(OBJECTS, user="owner", members={"reader": "reader"}, openid=users) as sandbox:
        yield sandbox


def status(sandbox: Sandbox, token: str, method: str = "GET") -> int:
    url = f"{sandbox.url}/api/registry/v1alpha1/apps/example"
    return requests.request(method, url, headers={"Authorization": f"Bearer {token}"}, timeout=10).status_code


def sign(provider: OpenIdProvider, name: str, change: Callable[[Any], Any] = lambda claims: claims) -> str:
    provider.knobs.access_token = change
    return provider.make_access_token(Session(User(name)))


def test_users_have_the_rights_of_their_names(sandbox: Sandbox, provider: OpenIdProvider) -> None:
    assert status(sandbox, sign(provider, "owner")) == 200
    assert status(sandbox, sign(provider, "reader")) == 200
    assert status(sandbox, sign(provider, "reader"), "DELETE") == 403
    assert status(sandbox, sign(provider, "stranger")) == 403
    assert status(sandbox, "sandbox") == 200  # the sandbox's own token


@pytest.mark.parametrize(
    "change",
    [
        lambda claims: {**claims, "iss": "https://sso.example.com"},
        lambda claims: {**claims, "aud": ["account"]},
        lambda claims: {**claims, "azp": "another-client"},
        lambda claims: {**claims, "exp": int(time.time()) - 1},
        lambda claims: {name: value for name, value in claims.items() if name != "exp"},
        lambda claims: {name: value for name, value in claims.items() if name != "aud"},
        lambda claims: {name: value for name, value in claims.items() if name != "preferred_username"},
    ],
)
def test_a_token_that_is_not_for_us_is_refused(
    sandbox: Sandbox, provider: OpenIdProvider, change: Callable[[Any], Any]
) -> None:
    assert status(sandbox, sign(provider, "owner", change)) == 403


def test_other_tokens_are_refused(sandbox: Sandbox) -> None:
    for token in ("x", "a.b.c", "eyJhbGciOiJub25lIn0.e30."):
        assert status(sandbox, token) == 403


def test_a_provider_that_is_down_is_told(provider: OpenIdProvider) -> None:
    provider.knobs.answer_instead = lambda _: Response(503)
    users = OpenIdUsers(Provider(provider.issuer, ca_file=None), CLIENT)
    with Sandbox(OBJECTS, openid=users) as sandbox:
        assert status(sandbox, "a.b.c") == 503
    provider.knobs.answer_instead = None
