"""Sign-in and sign-out in a real browser, which checks cookies and the Content-Security-Policy itself."""

import re
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.chromium import PATIENCE_MILLISECONDS, page_of
from tests.support.http import Request
from tests.support.openid import OpenIdProvider
from tests.support.served_console import Console, signing_in

expect.set_options(timeout=PATIENCE_MILLISECONDS)


@pytest.fixture(scope="module")
def console(shared_provider: OpenIdProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with signing_in(shared_provider, tmp_path_factory.mktemp("console")) as running:
        yield running


def sign_in(page: Page, provider: OpenIdProvider, name: str) -> None:
    """Fill in the provider's form, once it is there."""
    expect(page).to_have_url(re.compile(re.escape(provider.issuer)))
    page.get_by_label("Name").fill(name)
    page.get_by_role("button", name="Sign in").click()


def test_a_user_signs_in_looks_and_signs_out(console: Console, provider: OpenIdProvider, page: Page) -> None:
    page.goto(f"{console.url}/applications/example?state=unknown")
    sign_in(page, provider, "manager")
    expect(page).to_have_url(f"{console.url}/applications/example?state=unknown")
    expect(page.get_by_text("manager", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{console.url}/signed-out")
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    page.get_by_role("link", name="Sign in").click()
    sign_in(page, provider, "reader")  # signed out at the provider, too
    expect(page).to_have_url(f"{console.url}/")
    expect(page.get_by_text("reader", exact=True)).to_be_visible()


def test_an_open_page_does_not_end_the_way_out(console: Console, provider: OpenIdProvider, page: Page) -> None:
    released = threading.Event()

    def stall(asked: Request) -> None:
        if asked.path.split("?")[0].endswith("/logout"):
            released.wait(PATIENCE_MILLISECONDS / 1000)

    page.goto(f"{console.url}/applications/example")
    sign_in(page, provider, "owner")
    expect(page).to_have_url(f"{console.url}/applications/example")
    provider.knobs.answer_instead = stall
    with page.expect_response(lambda response: response.status == 401):
        page.get_by_role("button", name="Sign out").click(no_wait_after=True)
    released.set()
    expect(page).to_have_url(f"{console.url}/signed-out")


def test_an_open_page_comes_back_after_its_session_was_lost(
    console: Console, provider: OpenIdProvider, page: Page
) -> None:
    url = f"{console.url}/applications/example"
    page.goto(url)
    sign_in(page, provider, "owner")
    expect(page).to_have_url(url)
    asked = len(provider.asked("/auth"))
    page.context.clear_cookies(name="fleet")  # as when the console was restarted
    with page.expect_response(lambda response: response.url.startswith(f"{console.url}/sign-in/callback")):
        pass
    expect(page).to_have_url(url)
    expect(page.get_by_text("owner", exact=True)).to_be_visible()
    assert len(provider.asked("/auth")) == asked + 1


def test_an_open_page_asks_to_sign_in_when_the_provider_ended_the_session(
    console: Console, provider: OpenIdProvider, page: Page
) -> None:
    provider.knobs.lifetime = 1
    url = f"{console.url}/applications/example"
    page.goto(url)
    sign_in(page, provider, "owner")
    expect(page).to_have_url(url)
    provider.memory.end_sessions()
    sign_in(page, provider, "reader")
    expect(page).to_have_url(url)
    expect(page.get_by_text("reader", exact=True)).to_be_visible()


def test_users_in_two_browsers_are_two_users(
    console: Console, provider: OpenIdProvider, browser: Browser, page: Page
) -> None:
    page.goto(console.url)
    sign_in(page, provider, "owner")
    with page_of(browser) as other:
        other.goto(f"{console.url}/applications/example")
        sign_in(other, provider, "stranger")
        expect(other.get_by_role("heading", name="Not available to you")).to_be_visible()
        other.goto(console.url)
        expect(other.get_by_text("You may see no application.")).to_be_visible()
    expect(page.get_by_role("link", name="example")).to_be_visible()


def test_a_provider_that_lets_no_user_in_is_a_page_with_a_way_on(
    console: Console, provider: OpenIdProvider, page: Page
) -> None:
    provider.knobs.refuses_with = "access_denied"
    page.goto(f"{console.url}/applications/example")
    expect(page.get_by_text("it did not let you in (access_denied)")).to_be_visible()
    provider.knobs.refuses_with = None
    page.get_by_role("link", name="Sign in").click()
    sign_in(page, provider, "owner")
    expect(page).to_have_url(f"{console.url}/applications/example")
