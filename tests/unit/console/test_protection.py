"""What the console refuses, and what it tells browsers."""

import re
from collections.abc import Iterator

import pytest

from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.setting_table import SettingsError
from tests.support.console import Browser, browsing, environment_of

SIGN_IN = {
    "CONSOLE_OIDC_ISSUER": "https://sso.example/realms/drogue",
    "CONSOLE_OIDC_CLIENT_ID": "fleet",
    "CONSOLE_OIDC_CLIENT_SECRET": "s3cr3t",
    "CONSOLE_SECRET_KEY": "0123456789abcdef0123456789abcdef",
    "CONSOLE_URL": "https://fleet.example",
}
REQUIRED = [variable for variable in SIGN_IN if variable != "CONSOLE_OIDC_CLIENT_SECRET"]
DROGUE = {"DROGUE_API_URL": "https://api.example"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Sandbox([{"metadata": {"name": "shop"}}]) as sandbox, browsing(environment_of(sandbox.url)) as found:
        yield found


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "10.0.0.1", "[2001:db8::1]"]
)
def test_another_name_than_this_machines_is_refused(browser: Browser, host: str) -> None:
    response = browser.client.get("/", headers={"Host": host})
    assert response.status_code == 421
    assert "shop" not in response.text


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:8090", "[::1]:8090"])
def test_names_of_this_machine_are_taken(browser: Browser, host: str) -> None:
    assert browser.client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/applications/shop", "/static/console.js", "/nowhere", "/healthz"])
def test_each_answer_forbids_code_and_content_of_others(browser: Browser, path: str) -> None:
    response = browser.get(path)
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/applications/shop", "/applications/shop/rollout/pause"])
def test_no_page_has_code_or_styles_of_its_own_or_asks_others(browser: Browser, path: str) -> None:
    html = browser.get(path).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)
    assert not re.findall(r'(?:src|href|action)="(?!/|#|\?)[^"]*"', html)


def test_pages_are_not_kept_by_browsers(browser: Browser) -> None:
    assert browser.get("/").headers["Cache-Control"] == "no-store"


def test_a_form_that_is_too_large_is_refused(browser: Browser) -> None:
    assert browser.post("/applications/shop/rollout/pause", {"shown": "x" * 100_000}).status_code in (400, 413)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fleet.example"])
def test_other_addresses_need_sign_in(host: str) -> None:
    with pytest.raises(SettingsError, match="so others could act with your credentials") as caught:
        ConsoleSettings.from_environment(DROGUE, host)
    assert all(variable in str(caught.value) for variable in REQUIRED)
    assert ConsoleSettings.from_environment(DROGUE | SIGN_IN, host).sign_in


@pytest.mark.parametrize("missing", REQUIRED)
def test_sign_in_needs_all_its_settings(missing: str) -> None:
    environment = {key: value for key, value in SIGN_IN.items() if key != missing}
    with pytest.raises(SettingsError, match=f"^{missing} is not set"):
        ConsoleSettings.from_environment(DROGUE | environment)


def test_a_public_client_has_no_secret() -> None:
    environment = {key: SIGN_IN[key] for key in REQUIRED}
    settings = ConsoleSettings.from_environment(DROGUE | environment)
    assert settings.sign_in
    assert settings.sign_in.client_secret is None
    with pytest.raises(SettingsError, match=r"^CONSOLE_OIDC_ISSUER is not set"):
        ConsoleSettings.from_environment(DROGUE | {"CONSOLE_OIDC_CLIENT_SECRET": "s3cr3t"})


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("CONSOLE_URL", "http://fleet.example", "is not https, and not of this machine"),
        ("CONSOLE_OIDC_ISSUER", "http://sso.example/realms/drogue", "is not https, and not of this machine"),
        ("CONSOLE_OIDC_ISSUER", "sso.example", "is not an http:// or https:// URL"),
        ("CONSOLE_URL", "https://fleet.example/console", "has a path"),
        ("CONSOLE_URL", "fleet.example", "is not an http:// or https:// URL"),
        ("CONSOLE_SECRET_KEY", "short", "has fewer than 32 characters"),
    ],
)
def test_settings_that_are_unsafe_are_refused(variable: str, value: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        ConsoleSettings.from_environment(DROGUE | SIGN_IN | {variable: value})


def test_users_who_sign_in_bring_their_own_credentials() -> None:
    with pytest.raises(SettingsError, match="DROGUE_TOKEN is set, although CONSOLE_OIDC_ISSUER is") as caught:
        ConsoleSettings.from_environment(DROGUE | SIGN_IN | {"DROGUE_TOKEN": "t0ken"})
    assert "t0ken" not in str(caught.value)


def test_secrets_are_kept_out_of_the_representation() -> None:
    shown = repr(ConsoleSettings.from_environment(DROGUE | SIGN_IN))
    assert SIGN_IN["CONSOLE_OIDC_CLIENT_SECRET"] not in shown
    assert SIGN_IN["CONSOLE_SECRET_KEY"] not in shown


def test_the_operator_is_told_what_to_set(browser: Browser) -> None:
    with browsing({"DROGUE_API_URL": browser.parts.operator.drogue_api_url}) as anonymous:
        page = anonymous.get("/applications/shop")
    assert page.status_code == 404
    assert "no DROGUE_TOKEN is set: set it and DROGUE_USER" in page.text


@pytest.mark.parametrize(
    "name", ["a%2Fb", "..%2Fshop", "%00", "shop%00", "%ff", "%ed%a0%80", "x" * 1000, "shop%20", "%0A", "."]
)
@pytest.mark.parametrize(
    "page", ["", "/device?name=x", "/firmware", "/rollout/pause", "/rollout/start", "/rollout/retry"]
)
def test_odd_names_are_no_application(browser: Browser, name: str, page: str) -> None:
    assert browser.get(f"/applications/{name}{page}").status_code in (400, 404)


@pytest.mark.parametrize("name", ["%2F", "%2E%2E", "%00", "%ff", "x" * 1000, "..%2Fshop"])
@pytest.mark.parametrize("page", ["device?name=", "rollout/retry?device="])
def test_odd_names_are_no_device(browser: Browser, name: str, page: str) -> None:
    assert browser.get(f"/applications/shop/{page}{name}").status_code in (400, 404)
