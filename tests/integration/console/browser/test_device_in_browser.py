"""A device's page in each state, as a browser shows it; and its firmware, as a real registry has it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.axe import check_wide_and_narrow
from tests.support.chromium import PACE, PATIENCE_MILLISECONDS
from tests.support.console import browsing, environment_of
from tests.support.devices import SHA, Object, ago, behind, condition, device, update
from tests.support.firmware import publish, random_bytes
from tests.support.registry import PASSWORD, USER, DockerRegistry, Skopeo, need
from tests.support.served_console import console as served

expect.set_options(timeout=PATIENCE_MILLISECONDS)
FAILED = [{"version": "1.2.0", "checksum": SHA, "attempts": 3, "at": ago(minutes=9)}]
GAVE_UP = "1.2.0 did not come up, attempts: 3; a new version, or fleet-fn rollout retry, starts afresh"
OWN = {"firmware": {"rollout": {"labels": {"site": "bergen"}}, "hardware": "rev-b"}}
DEVICES = (
    device("fine", [condition("InSync", "True")], current="1.2.0"),
    device("writing", behind(percent="37.50"), update=update(started=ago(minutes=4))),
    device("silent", behind(percent="60.00", minutes=300), reported=ago(minutes=240), seen=ago(minutes=240)),
    device("back", behind("backoff", "1.2.0 did not come up, attempts: 1 of 3"), update=update(attempts=1)),
    device(
        "beyond",
        [*behind("attempts", GAVE_UP), condition("UpdateFailed", "True", "attempts", GAVE_UP)],
        update=update(attempts=3, failed=FAILED),
    ),
    device("waiting", behind("rollout", "its labels are not site=bergen"), OWN),
    device("other", behind("hardware", "1.2.0 is built for rev-b"), target="Unknown"),
    device("new", []),
)
NAMES = [each["metadata"]["name"] for each in DEVICES]


def application(image: str = "pump:1.2.0") -> Object:
    return {"metadata": {"name": "pumps"}, "spec": {"firmware": {"container": {"image": image}}}}


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("firmware")
    publish(folder, "pump", "1.2.0", random_bytes(4096))
    with Sandbox([application(), *DEVICES]) as sandbox:
        settings = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{folder}")
        with served(lambda _: settings, tmp_path_factory.mktemp("console"), pace=PACE) as running:
            yield f"{running.url}/applications/pumps"


@pytest.mark.parametrize("name", NAMES)
def test_each_state_is_accessible_and_fits(console: str, kept_page: Page, name: str) -> None:
    kept_page.goto(f"{console}/device?name={quote(name)}")
    expect(kept_page.get_by_role("heading", level=1)).to_have_text(name)
    check_wide_and_narrow(kept_page)


def test_digest_and_command_are_copied(console: str, page: Page) -> None:
    page.goto(f"{console}/device?name=beyond")
    page.get_by_role("button", name="Copy SHA-256 of 1.2.0").click()
    assert page.evaluate("navigator.clipboard.readText()") == SHA
    page.locator("p.copy button").click()
    command = "fleet-fn rollout retry --application pumps --device beyond"
    assert page.evaluate("navigator.clipboard.readText()") == command


def test_a_device_is_retried_from_its_page(console: str, page: Page) -> None:
    page.goto(f"{console}/device?name=beyond")
    page.get_by_role("link", name="Retry this device").first.click()
    expect(page.get_by_label("Difference")).to_contain_text("retry")


def test_news_come_by_themselves_and_leave_open_what_is_open(tmp_path: Path, page: Page) -> None:
    publish(tmp_path, "pump", "1.2.0", random_bytes(4096))
    with Sandbox([application(), device("lamp", behind())]) as sandbox:
        settings = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
        with served(lambda _: settings, tmp_path, pace=PACE) as running:
            page.goto(f"{running.url}/applications/pumps/device?name=lamp")
            page.get_by_text("Assumed; nothing is sent").click()
            expect(page.get_by_text("WRITE 512 bytes at 0 of 1.2.0")).to_be_visible()
            sandbox.put(device("lamp", [condition("InSync", "True")], current="1.2.0"))
            expect(page.get_by_text("in sync", exact=True)).to_be_visible()
            expect(page.get_by_text("SYNC 1.2.0, report again in 5 min")).to_be_visible()
            expect(page.get_by_text("have their defaults")).to_be_visible()


def test_versions_of_a_real_registry_are_listed(tmp_path: Path) -> None:
    need("docker-registry")
    need("skopeo")
    for version in ("1.2.0", "1.10.0"):
        publish(tmp_path, "pump", version, random_bytes(4096, version))
    with DockerRegistry(protected=True) as registry, Sandbox([application("acme/pump:1.2.0")]) as sandbox:
        for version in ("1.2.0", "1.10.0"):
            Skopeo(tmp_path).copy(tmp_path / "pump", version, registry, f"acme/pump:{version}")
        variables = {**registry.environment, "FIRMWARE_REGISTRY_USER": USER, "FIRMWARE_REGISTRY_TOKEN": PASSWORD}
        page = "/applications/pumps/firmware"
        with browsing(environment_of(sandbox.url, **variables)) as browser:
            html = browser.wait(page, lambda html: "1.10.0" in html and "1.2.0</b>" in html)
            assert html.index("<b>1.10.0</b>") < html.index("<b>1.2.0</b>")
            assert "image=acme%2Fpump%3A1.10.0" in html
        with browsing(environment_of(sandbox.url, **registry.environment)) as browser:
            html = browser.wait(page, lambda html: "notice bad" in html)
            assert "set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN" in html
