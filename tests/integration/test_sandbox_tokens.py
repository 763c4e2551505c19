"""The sandbox's token endpoint: what a function with DROGUE_OIDC_… needs of an OpenID provider."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.server import Request
from fleet_fn.sandbox.tokens import LIFETIME_SECONDS, Tokens
from tests.support.function import Function, event
from tests.support.timing import Clock

CLIENT = ("fleet manager", "s3cret&")
GRANT = {"grant_type": "client_credentials"}
OBJECTS = [{"metadata": {"name": "example"}}, {"metadata": {"application": "example", "name": "device1"}}]


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(OBJECTS, user=CLIENT[0], token=CLIENT[1]) as sandbox:
        yield sandbox


def token(sandbox: Sandbox, data: dict[str, str], auth: tuple[str, str] | None = None) -> requests.Response:
    return requests.post(f"{sandbox.url}/auth/token", data=data, auth=auth, timeout=10)


def apps(sandbox: Sandbox, bearer: str) -> int:
    url = f"{sandbox.url}/api/registry/v1alpha1/apps"
    return requests.get(url, headers={"Authorization": f"Bearer {bearer}"}, timeout=10).status_code


def test_a_client_gets_a_token_that_the_apis_take(sandbox: Sandbox) -> None:
    for answer in (
        token(sandbox, GRANT, ("fleet+manager", "s3cret%26")),
        token(sandbox, {**GRANT, "client_id": CLIENT[0], "client_secret": CLIENT[1]}),
    ):
        assert (answer.status_code, answer.json()["token_type"], answer.json()["expires_in"]) == (200, "Bearer", 300)
        assert apps(sandbox, answer.json()["access_token"]) == 200
    assert apps(sandbox, "another") == 403


@pytest.mark.parametrize("auth", [None, ("fleet+manager", "wrong"), ("", "")])
def test_nobody_else_does(sandbox: Sandbox, auth: tuple[str, str] | None) -> None:
    answer = token(sandbox, GRANT, auth)
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})
    assert answer.headers["WWW-Authenticate"].startswith("Basic")


def test_there_is_no_other_grant(sandbox: Sandbox) -> None:
    answer = token(sandbox, {"grant_type": "password"}, ("fleet+manager", "s3cret%26"))
    assert (answer.status_code, answer.json()) == (400, {"error": "unsupported_grant_type"})


def test_a_token_expires() -> None:
    clock = Clock()
    tokens = Tokens({"a": "b"}, clock=clock)
    basic = "Basic " + base64.b64encode(b"a:b").decode()
    given = tokens.give(Request("POST", ("auth", "token"), {}, basic, None, b"grant_type=client_credentials"))
    bearer = given.body.decode().split('"')[3]
    assert tokens.user(bearer) == "a"
    clock.now += LIFETIME_SECONDS
    assert tokens.user(bearer) is None


def test_a_function_works_with_it(sandbox: Sandbox, tmp_path: Path) -> None:
    settings = {
        "DROGUE_API_URL": sandbox.url,
        "DROGUE_OIDC_TOKEN_URL": f"{sandbox.url}/auth/token",
        "DROGUE_OIDC_CLIENT_ID": CLIENT[0],
        "DROGUE_OIDC_CLIENT_SECRET": CLIENT[1],
        "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}",
    }
    with Function(settings) as function:
        assert function.post(event(), b'{"version": "1"}').outcome == 'withheld; reason="unmanaged"'
