"""An operator in a browser: a rollout goes wrong and halts, its fix is started, and reaches all devices."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from fleet_fn.sandbox import demo_rollout as demo
from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.sandbox.demo_rollout import RolloutDemo
from tests.support.chromium import PACE, PATIENCE_MILLISECONDS, page_of
from tests.support.console import environment_of
from tests.support.firmware import publish
from tests.support.function import running
from tests.support.served_console import console

PASSWORD = "password"
expect.set_options(timeout=PATIENCE_MILLISECONDS)


@dataclass
class Street:
    """A sandbox with the function, 20 lights that report when told to, and a console."""

    url: str
    sandbox: Sandbox
    lights: RolloutDemo

    @property
    def application(self) -> str:
        return f"{self.url}/applications/{demo.APPLICATION}"


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    for version in demo.VERSIONS:
        publish(tmp_path, demo.IMAGE, version, hashlib.shake_256(version.encode()).digest(demo.SIZE_BYTES))
    with Sandbox(demo.objects({"credentials": [{"pass": PASSWORD}]})) as sandbox:
        settings = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}", SPEC_TTL_SECONDS="0")
        settings |= {"FIRMWARE_CACHE_DIR": str(tmp_path / "cache")}
        with running(settings) as function, console(lambda _: settings, tmp_path, pace=PACE) as served:
            sandbox.sink = function.url
            yield Street(served.url, sandbox, RolloutDemo(sandbox, PASSWORD, settings, lambda _: None))
            sandbox.sink = None


def start(page: Page, version: str, stages: tuple[str, ...] = (), max_failed: str = "") -> None:
    """Start a version from the application's page."""
    page.get_by_role("link", name="Start a rollout").click()
    page.get_by_label("Firmware").fill(f"{demo.IMAGE}:{version}")
    if stages:
        page.get_by_role("radio", name="In stages").check()
        for number in range(1, 4):
            page.get_by_label(f"Percent of stage {number}", exact=True).fill("")
        for number, percent in enumerate(stages, 1):
            page.get_by_label(f"Percent of stage {number}", exact=True).fill(percent)
    page.get_by_label("Halt once").fill(max_failed)
    page.get_by_role("button", name="Check, and show the change").click()
    expect(page.get_by_text("verified")).to_be_visible()
    expect(page.get_by_label("Difference")).to_contain_text(f'+      "image": "{demo.IMAGE}:{version}"')
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page).to_have_url(page.url.partition("/rollout")[0])


def change(page: Page, action: str, button: str) -> None:
    """Make a change from the application's page, and come back to it."""
    page.get_by_role("link", name=action, exact=True).click()
    page.get_by_role("button", name=button, exact=True).click()
    expect(page.locator("p.notice.good")).to_be_visible()


def test_a_bad_rollout_halts_and_its_fix_reaches_all_devices(street: Street, page: Page) -> None:
    page.goto(street.url)
    page.get_by_role("link", name=demo.APPLICATION).click()
    start(page, demo.BAD_VERSION, max_failed=str(demo.MAX_FAILED))
    expect(page.get_by_text(f"{demo.BAD_VERSION} goes to all devices.")).to_be_visible()

    street.lights.report(demo.BAD_VERSION)
    # The page tells by itself.
    halted = f"{demo.BAD_VERSION} failed on"
    expect(page.get_by_text(halted).first).to_be_visible()
    trouble = page.get_by_role("heading", name="Needs attention")
    expect(trouble).to_be_visible()
    page.locator("section", has=trouble).get_by_role("link", name="light").first.click()
    expect(page.get_by_text("failed", exact=True).first).to_be_visible()
    page.go_back()
    expect(page).to_have_url(street.application)

    start(page, demo.FIXED_VERSION, ("25", "100"))
    expect(page.get_by_text("stage 1 of 2").first).to_be_visible()
    street.lights.report(demo.FIXED_VERSION)
    change(page, "Approve", "Approve")
    change(page, "Advance", "Advance")
    street.lights.report(demo.FIXED_VERSION)
    expect(page.get_by_text("complete", exact=True)).to_be_visible()
    in_sync = page.get_by_label("The rollout in numbers").get_by_text("20 of 20 let in")
    expect(in_sync).to_be_visible()


def test_two_users_in_conflict(street: Street, page: Page, browser: Browser) -> None:
    page.goto(f"{street.application}/rollout/start?image={demo.IMAGE}:{demo.BAD_VERSION}&max_failed=3")
    confirm = page.get_by_role("button", name="Start", exact=True)
    expect(confirm).to_be_visible()
    with page_of(browser) as other:
        other.goto(f"{street.application}/rollout/start?image={demo.IMAGE}:{demo.BAD_VERSION}&max_failed=5")
        other.get_by_role("button", name="Start", exact=True).click()
        expect(other).to_have_url(street.application)
    confirm.click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was changed")
    firmware = street.sandbox.get(demo.APPLICATION)["spec"]["firmware"]
    assert firmware["rollout"]["maxFailed"] == 5
    # The page shows the change that it would be now.
    expect(page.get_by_label("Difference")).to_contain_text('-      "maxFailed": 5')
    confirm.click()
    expect(page).to_have_url(street.application)
    assert street.sandbox.get(demo.APPLICATION)["spec"]["firmware"]["rollout"]["maxFailed"] == 3


def test_pages_work_without_scripts(street: Street, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(PATIENCE_MILLISECONDS)
    page = context.new_page()
    page.goto(f"{street.application}/rollout/pause")
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("No device gets a block or a swap").first).to_be_visible()
    assert street.sandbox.get(demo.APPLICATION)["spec"]["firmware"]["rollout"]["paused"] is True
    page.get_by_label("Name").fill("light0")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_role("link", name="light09")).to_be_visible()
    expect(page.get_by_role("link", name="light10")).not_to_be_visible()
    context.close()
