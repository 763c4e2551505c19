"""Users of one console: what one has open is nothing that another one sees, sends, or is taken for."""

from collections.abc import Iterator

import pytest
import requests

from tests.support.console import Form
from tests.support.openid import OpenIdProvider
from tests.support.served_console import Browser, Console, signing_in

APPLICATION = "/applications/example"
ACTIONS = ("start", "pause", "resume", "approve", "advance", "abort", "retry")
PAGES = [
    APPLICATION,
    f"{APPLICATION}?q=device1",
    f"{APPLICATION}/device?name=device1",
    f"{APPLICATION}/firmware",
    f"{APPLICATION}/rollout/retry?device=device1",
    f"{APPLICATION}/rollout/start?image=example:1&state=failed",
    *[f"{APPLICATION}/rollout/{action}" for action in ACTIONS],
]
PAUSE = f"{APPLICATION}/rollout/pause"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with OpenIdProvider() as provider, signing_in(provider, tmp_path_factory.mktemp("console")) as running:
        yield running
        assert "Traceback" not in running.output, running.output


@pytest.fixture(scope="module")
def owner(running: Console) -> Browser:
    """A user who has all pages open."""
    found = Browser(running)
    found.sign_in("owner")
    for page in PAGES:
        found.get(page)
    return found


def signed_in(running: Console, name: str) -> Browser:
    found = Browser(running)
    found.sign_in(name)
    return found


def send(browser: Browser, path: str, fields: dict[str, str], **headers: str) -> requests.Response:
    url = browser.console.url + path
    return browser.session.post(url, data=fields, headers=headers, allow_redirects=False, timeout=30)


@pytest.mark.parametrize("is_fragment", [False, True])
def test_a_stranger_sees_no_page_that_another_user_has_open(
    running: Console, owner: Browser, is_fragment: bool
) -> None:
    etag = owner.get(APPLICATION, fragment=True).headers["ETag"]
    stranger = signed_in(running, "stranger")
    stranger.session.headers["If-None-Match"] = etag
    for page in PAGES:
        answer = stranger.get(page, fragment=is_fragment, follow=False)
        assert answer.status_code == 404, page
        assert "device1" not in answer.text.replace(page, ""), page
    assert "example" not in stranger.get("/").text.replace(running.url, "")


def test_a_form_of_another_user_is_refused(running: Console, owner: Browser) -> None:
    form = Form(owner.get(PAUSE).text).fields
    manager = signed_in(running, "manager")
    assert send(manager, PAUSE, form).status_code == 400
    signed_out = Browser(running)
    assert send(signed_out, PAUSE, form).status_code == 400
    assert "Updates are paused" not in owner.get(PAUSE).text


def test_a_reader_changes_nothing(running: Console, owner: Browser) -> None:
    reader = signed_in(running, "reader")
    for action in ("pause", "retry?device=device1"):
        page = f"{APPLICATION}/rollout/{action}"
        fields = Form(reader.get(page).text).fields
        assert send(reader, page, fields).status_code in (403, 409)
    assert "shown" in Form(owner.get(PAUSE).text).fields  # it can still be paused


def test_only_a_form_changes_anything(running: Console, owner: Browser) -> None:
    form = Form(owner.get(PAUSE).text).fields
    url, session = running.url + PAUSE, owner.session
    for method in ("GET", "HEAD"):
        answer = session.request(method, url, params={**form, "_method": "POST"}, timeout=30)
        assert answer.status_code == 200
    override = {"X-HTTP-Method-Override": "POST", "X-HTTP-Method": "POST", "X-Method-Override": "POST"}
    assert session.get(url, data=form, headers=override, timeout=30).status_code == 200
    for method in ("PUT", "PATCH", "DELETE", "TRACE"):
        assert session.request(method, url, data=form, timeout=30).status_code in (400, 405, 501), method
    assert send(owner, PAUSE, form, **{"Content-Type": "application/json"}).status_code == 400
    assert send(owner, PAUSE, form, **{"Sec-Fetch-Site": "same-site"}).status_code == 403
    assert owner.session.get(f"{running.url}/sign-out", timeout=30).status_code == 405
    assert "shown" in Form(owner.get(PAUSE).text).fields


def test_another_name_of_the_console_is_refused_whatever_a_proxy_says(running: Console, owner: Browser) -> None:
    for headers in ({"Host": "evil.example"}, {"Host": "localhost"}, {"Host": ""}):
        assert owner.session.get(running.url + APPLICATION, headers=headers, timeout=30).status_code in (400, 421)
    forwarded = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example", "X-Forwarded-Proto": "https"}
    page = owner.session.get(running.url + APPLICATION, headers=forwarded, timeout=30)
    assert page.status_code == 200
    assert "evil.example" not in page.text
    script = {"Script-Name": "/evil", "SCRIPT_NAME": "/evil", "X-Forwarded-Prefix": "//evil.example"}
    there = Browser(running).session.get(running.url, headers=script, allow_redirects=False, timeout=30)
    assert "evil" not in there.headers.get("Location", "")


def test_a_change_has_the_name_of_the_user_who_made_it(running: Console) -> None:
    manager = signed_in(running, "manager")
    assert send(manager, PAUSE, Form(manager.get(PAUSE).text).fields).status_code == 303
    assert "pause by manager" in manager.get(APPLICATION).text
    resume = f"{APPLICATION}/rollout/resume"
    assert send(manager, resume, Form(manager.get(resume).text).fields).status_code == 303
