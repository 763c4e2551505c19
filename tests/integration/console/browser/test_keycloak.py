"""Sign-in at the real Keycloak, in a real browser: what docs/console.md tells operators to set up works."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from fleet_fn.openid.provider import Provider
from fleet_fn.sandbox import Sandbox
from fleet_fn.sandbox.openid import OpenIdUsers
from tests.support.chromium import PATIENCE_MILLISECONDS
from tests.support.keycloak import CONFIDENTIAL, PASSWORD, PUBLIC, SECRET, Keycloak, running_keycloak
from tests.support.served_console import console

expect.set_options(timeout=PATIENCE_MILLISECONDS)
pytestmark = pytest.mark.timeout(600)
#: Access tokens that a page's polls have to use up.
_TOKENS = 3


class Watched(OpenIdUsers):
    """Remembers the tokens with which Drogue Cloud was asked."""

    def __init__(self, issuer: str, client_id: str) -> None:
        super().__init__(Provider(issuer, ca_file=None), client_id)
        self.tokens: set[str] = set()

    def user(self, token: str) -> str | None:
        self.tokens.add(token)
        return super().user(token)


@pytest.fixture(scope="module")
def keycloak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    with running_keycloak(tmp_path_factory.mktemp("keycloak")) as found:
        found.make_realm("owner", "reader")
        yield found


def sign_in(page: Page, keycloak: Keycloak, name: str) -> None:
    expect(page).to_have_url(re.compile(re.escape(keycloak.issuer)))
    page.locator("#username").fill(name)
    page.locator("#password").fill(PASSWORD)
    page.locator("#kc-login").click()


@pytest.mark.parametrize(
    ("client_id", "secret"), [(PUBLIC, ""), (CONFIDENTIAL, SECRET)], ids=["public", "confidential"]
)
def test_a_user_signs_in_stays_signed_in_and_signs_out(
    keycloak: Keycloak, page: Page, tmp_path: Path, client_id: str, secret: str
) -> None:
    users = Watched(keycloak.issuer, client_id)
    objects = [{"metadata": {"name": "example"}}]
    with Sandbox(objects, user="owner", members={"reader": "reader"}, openid=users) as sandbox:
        settings = {
            "DROGUE_API_URL": sandbox.url,
            "CONSOLE_OIDC_ISSUER": keycloak.issuer,
            "CONSOLE_OIDC_CLIENT_ID": client_id,
            "CONSOLE_OIDC_CLIENT_SECRET": secret,
            "CONSOLE_SECRET_KEY": "k3y of cookies, with enough characters",
        }
        with console(lambda url: {**settings, "CONSOLE_URL": url}, tmp_path) as running:
            application = f"{running.url}/applications/example"
            page.goto(application)
            sign_in(page, keycloak, "owner")
            expect(page).to_have_url(application)
            while len(users.tokens) < _TOKENS:  # the page polls, and its tokens expire; the test's timeout ends it
                page.wait_for_timeout(500)
                assert page.url == application
            page.get_by_role("button", name="Sign out").click()
            expect(page).to_have_url(re.compile(re.escape(f"{running.url}/signed-out")))
            page.get_by_role("link", name="Sign in").click()
            sign_in(page, keycloak, "reader")
            expect(page.get_by_text("reader", exact=True)).to_be_visible()
            page.goto(application)
            keycloak.end_sessions("reader")
            expect(page).to_have_url(re.compile(re.escape(keycloak.issuer)))
            assert not [token for token in users.tokens if token in running.output]
