"""Pages as a browser shows them: to keyboards, screen readers, small screens, and with hostile names."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.axe import check_wide_and_narrow
from tests.support.chromium import PATIENCE_MILLISECONDS, page_of
from tests.support.console import environment_of
from tests.support.console_process import serving_console
from tests.support.firmware import publish, random_bytes
from tests.support.fleets import HOSTILE, Story, make_fleet

expect.set_options(timeout=PATIENCE_MILLISECONDS)
APPLICATION = "/applications/pumps"
ROLLOUT = f"{APPLICATION}/rollout"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("firmware")
    story = Story(application="pumps", devices=120, hostile=True, now=datetime.now(UTC))
    for version in (story.version, story.before):
        publish(folder, story.application, version, random_bytes(4096, version))
    with Sandbox(make_fleet(story)) as sandbox:
        settings = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{folder}", NO_PROXY="127.0.0.1")
        with serving_console({**os.environ, **settings}) as url:
            yield url


def open_page(page: Page, url: str) -> None:
    """Open a page and wait until it has what it reads."""
    page.goto(url)
    expect(page.locator("[data-reading]")).to_have_count(0)


@pytest.fixture(scope="module")
def asked() -> list[str]:
    """The URLs that the watched page asks for."""
    return []


@pytest.fixture(scope="module")
def watched_page(kept_page: Page, asked: list[str]) -> Page:
    kept_page.on("dialog", lambda dialog: pytest.fail(f"code of others ran: {dialog.message}"))
    kept_page.on("request", lambda request: asked.append(request.url))
    return kept_page


PAGES = {
    "applications": "/",
    "application": APPLICATION,
    "filtered": f"{APPLICATION}?state=attention&sort=since",
    "device": f"{APPLICATION}/device?name={quote(HOSTILE[0], safe='')}",
    "firmware": f"{APPLICATION}/firmware",
    "start": f"{ROLLOUT}/start",
    "pause": f"{ROLLOUT}/pause",
    "retry": f"{ROLLOUT}/retry",
    "error": "/nowhere",
}


@pytest.mark.parametrize("path", PAGES.values(), ids=PAGES)
def test_a_page_is_accessible_fits_and_runs_no_code_of_others(
    console: str, watched_page: Page, asked: list[str], path: str
) -> None:
    asked.clear()
    open_page(watched_page, console + path)
    assert watched_page.locator("img[src='x'], script:not([src])").count() == 0
    check_wide_and_narrow(watched_page)
    assert asked
    assert not [url for url in asked if not url.startswith((console, "data:"))]


def test_hostile_names_are_shown_as_they_are(console: str, page: Page) -> None:
    for name in HOSTILE:
        open_page(page, f"{console}{APPLICATION}/device?name={quote(name, safe='')}")
        assert name.strip() in page.locator("h1").evaluate("element => element.textContent")


def test_times_are_local_and_utc_on_hover(console: str, page: Page) -> None:
    open_page(page, console + APPLICATION)
    time = page.locator("time:not([data-age])").first
    assert (time.get_attribute("title") or "").endswith(" UTC")
    expect(time).not_to_contain_text("UTC")


def test_filters_make_urls_that_can_be_shared_and_gone_back_from(console: str, page: Page, browser: Browser) -> None:
    open_page(page, console + APPLICATION)
    page.locator("select[name=state]").select_option("held")
    expect(page.locator("table .badge").first).to_have_text("held")
    assert page.url == f"{console}{APPLICATION}?state=held"
    assert set(page.locator("table .badge").all_inner_texts()) == {"held"}
    with page_of(browser) as other:
        open_page(other, page.url)
        assert set(other.locator("table .badge").all_inner_texts()) == {"held"}
    page.go_back()
    expect(page).to_have_url(console + APPLICATION)


def test_a_command_is_copied(console: str, page: Page) -> None:
    open_page(page, f"{console}{ROLLOUT}/pause")
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "fleet-fn rollout pause --application pumps"


def test_the_keyboard_reaches_content_and_actions(console: str, page: Page) -> None:
    open_page(page, console + APPLICATION)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    action = page.get_by_role("navigation", name="Actions").get_by_role("link").first
    expect(action).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).not_to_have_text("pumps")


def test_news_leave_the_focus_and_what_is_typed_alone(console: str, page: Page) -> None:
    open_page(page, console + APPLICATION)
    field = page.get_by_label("Name", exact=True)
    field.fill("half a na")
    with page.expect_response(lambda response: response.request.headers.get("fragment") == "1"):
        pass
    expect(field).to_have_value("half a na")
    expect(field).to_be_focused()
