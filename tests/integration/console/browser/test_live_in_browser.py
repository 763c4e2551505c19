"""Pages that renew themselves: news come in, what stays is left alone, and all works without a script."""

import time
from collections.abc import Iterator
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.chromium import PACE, PATIENCE_MILLISECONDS
from tests.support.console import environment_of
from tests.support.drogue import Drogue
from tests.support.fleets import Story, make_fleet
from tests.support.http import Response
from tests.support.served_console import console as served

expect.set_options(timeout=PATIENCE_MILLISECONDS)
APPLICATION = "/applications/pumps"
_IN_SYNC = {"type": "InSync", "status": "True", "lastTransitionTime": "2026-11-23T12:00:00Z"}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    # The version does not come up on half of the devices, so that more need attention than are shown at first.
    with Sandbox(make_fleet(Story("pumps", 120, failing=0.5, max_failed=None, now=datetime.now(UTC)))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def console(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("console")
    with served(lambda _: environment_of(sandbox.url), folder, pace=PACE) as running:
        yield running.url


def open_page(page: Page, url: str) -> None:
    page.goto(url)
    expect(page.locator("[data-reading]")).to_have_count(0)


def names(page: Page) -> list[str]:
    return page.locator("table .name a").all_inner_texts()


def test_typing_filters_without_loading_the_page_again(console: str, page: Page) -> None:
    open_page(page, console + APPLICATION)
    page.evaluate("window.isStillThere = true")
    field = page.get_by_label("Name", exact=True)
    field.press_sequentially("OSLO-1")
    expect(page.locator("table .name a").first).to_contain_text("oslo-1")
    assert all("oslo-1" in name for name in names(page))
    assert page.url == f"{console}{APPLICATION}?q=OSLO-1"
    field.fill("no such device")
    expect(page.locator("#shown")).to_have_text("No device matches")
    expect(field).to_be_focused()
    assert page.evaluate("window.isStillThere")
    page.go_back()  # past all that was typed
    expect(page).to_have_url(console + APPLICATION)
    expect(page.locator("#shown")).to_contain_text("of 120 devices")
    expect(field).to_have_value("")


def test_news_come_in_and_leave_the_rest_alone(console: str, sandbox: Sandbox, page: Page) -> None:
    open_page(page, f"{console}{APPLICATION}?q=bergen")
    name = names(page)[0]
    page.locator("#more-attention summary").click()
    link = page.locator("table .name a").nth(1)
    link.focus()
    focused = link.inner_text()
    device: dict[str, Any] = deepcopy(sandbox.get("pumps", name))
    device["status"] = {"firmware": {"current": "9.9.9", "target": "9.9.9", "conditions": [_IN_SYNC]}}
    sandbox.put(device)
    expect(page.locator("table tr", has_text=name)).to_contain_text("9.9.9")
    assert page.locator("#more-attention").get_attribute("open") is not None
    expect(page.locator("table .name a", has_text=focused)).to_be_focused()
    expect(page.get_by_label("Name", exact=True)).to_have_value("bergen")


def test_an_unchanged_section_is_not_replaced(console: str, page: Page) -> None:
    open_page(page, console + APPLICATION)
    page.locator("section.fleet").evaluate("section => { section.isTheSame = true }")
    before = page.locator(".freshness time").get_attribute("datetime")
    expect(page.locator(".freshness time")).not_to_have_attribute("datetime", before or "")  # read again
    assert page.locator("section.fleet").evaluate("section => section.isTheSame") is True


def test_pages_work_without_a_script(console: str, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    end = time.monotonic() + PATIENCE_MILLISECONDS / 1000
    while not (page.goto(console + APPLICATION) and page.locator("[data-reading]").count() == 0):
        assert time.monotonic() < end
    assert len(names(page)) == 50
    page.locator("select[name=state]").select_option("held")
    page.get_by_role("button", name="Filter").click()
    assert "state=held" in page.url
    assert set(page.locator("table .badge").all_inner_texts()) == {"held"}
    page.get_by_role("link", name="last seen").click()
    assert {"state=held", "sort=seen"} == set(urlsplit(page.url).query.split("&"))
    expect(page.locator("th[aria-sort=ascending]")).to_contain_text("last seen")
    name = names(page)[0]
    page.locator("table .name a").first.click()
    expect(page.locator("h1")).to_have_text(name)
    context.close()


def test_page_comes_once_the_cloud_answers(tmp_path: Path, page: Page) -> None:
    with Drogue() as cloud:
        cloud.put("shop", "lamp")
        cloud.put("shop")
        cloud.roles["shop"] = None
        with served(lambda _: cloud.environment, tmp_path, pace=PACE) as console:
            page.goto(f"{console.url}/applications/shop")
            expect(page.locator("h1")).to_have_text("Not available to you")
            cloud.roles["shop"] = "reader"
            expect(page.locator("h1")).to_have_text("shop")
            expect(page.locator("table .name")).to_have_text("lamp")
            cloud.put("other")
            cloud.registry_answers["other",] = lambda _: Response(503)
            page.goto(f"{console.url}/applications/other")
            expect(page.locator("h1")).to_have_text("No answer")
            expect(page.locator("#connection")).to_be_hidden()
            del cloud.registry_answers["other",]
            expect(page.locator("h1")).to_have_text("other")


def test_page_of_a_user_who_may_not_see_it_any_more_says_so(tmp_path: Path, page: Page) -> None:
    with Drogue() as cloud:
        cloud.put("shop")
        with served(lambda _: cloud.environment, tmp_path, pace=PACE) as console:
            open_page(page, f"{console.url}/applications/shop")
            cloud.roles["shop"] = None
            expect(page.locator("h1")).to_have_text("Not available to you", timeout=2 * PATIENCE_MILLISECONDS)
