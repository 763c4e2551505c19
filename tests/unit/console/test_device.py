"""The page of a device: each state in words, with what to do; nothing that a device says does anything."""

import json
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import pytest

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.devices import SHA, Object, ago, behind, condition, device, update
from tests.support.fleets import HOSTILE as HOSTILE_NAMES
from tests.support.html import Element, read_html
from tests.support.http import Request, Response, Server

HOSTILE: Final = "<script>alert('x')</script>"
APPLICATION: Final[Object] = {
    "metadata": {"name": "pumps"},
    "spec": {"firmware": {"container": {"image": "pump:1.2.0"}, "maxAttempts": 5}},
}


FAILED: Final = [{"version": "1.2.0", "checksum": SHA, "attempts": 5, "at": ago(minutes=9)}]
GIVEN_UP: Final = "1.2.0 did not come up, attempts: 5; a new version, or fleet-fn rollout retry, starts afresh"
DEVICES: Final = (
    device("fine", [condition("InSync", "True")], current="1.2.0"),
    device("writing", behind(percent="37.50"), update=update(started=ago(minutes=4))),
    device(
        "silent",
        behind(percent="60.00", minutes=300),
        update=update(started=ago(minutes=300)),
        reported=ago(minutes=240),
        seen=ago(minutes=240),
    ),
    device("back", behind("backoff", "1.2.0 did not come up, attempts: 1 of 5"), update=update(attempts=1)),
    device(
        "beyond",
        [*behind("attempts", GIVEN_UP), condition("UpdateFailed", "True", "attempts", GIVEN_UP)],
        update=update(attempts=5, failed=FAILED),
    ),
    device(
        "waiting",
        behind("window", "the window opens at 2030-01-01T22:00+01:00"),
        {"firmware": {"rollout": {"window": {"from": "22:00", "to": "04:00"}}, "hardware": "rev-b"}},
        hold={"reason": "window", "message": "the window opens", "until": "2030-01-01T21:00:00Z"},
    ),
    device("other", behind("hardware", "1.2.0 is built for rev-b"), target="Unknown"),
    device("misspelt", behind("x"), {"firmware": {"rolout": {}}}, target="Unknown"),
    device("off", [condition("InSync", "True")], {"core": {"disabled": True}}, current="1.2.0"),
    device("new", []),
    {
        **device(HOSTILE, behind(HOSTILE, HOSTILE), {"gatewaySelector": {"matchNames": [HOSTILE]}}, current=HOSTILE),
        "metadata": {"application": "pumps", "name": HOSTILE, "labels": {HOSTILE: HOSTILE}},
    },
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Sandbox([APPLICATION, *DEVICES]) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        yield browser


def path_of(name: str, application: str = "pumps") -> str:
    return f"/applications/{application}/device?name={quote(name, safe='')}"


def page_of(browser: Browser, name: str, application: str = "pumps", status: int = 200) -> Element:
    response = browser.get(path_of(name, application))
    assert response.status_code == status, response.text
    return read_html(response.text)


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("fine", "in sync", []),
        ("writing", "updating", ["37.50 % written", "block by block"]),
        ("silent", "stalled", ["60.00 % written", "Look at its power and its connection."]),
        ("back", "rolled back", ["attempts: 1 of 5", "It gets the update again after a pause", "Nothing yet."]),
        ("beyond", "failed", ["did not come up, attempts: 5", "If the device was to blame, let it try again."]),
        (
            "waiting",
            "held",
            ["window: the window opens", "until 2030-01-01 21:00 UTC", "Wait, or change rollout.window"],
        ),
        ("other", "failed", ["1.2.0 is built for rev-b", "Correct spec.firmware.hardware"]),
        ("misspelt", "failed", ["contains rolout (did you mean rollout?)", "Correct that key."]),
        ("new", "never reported", ["Check that it is connected"]),
    ],
)
def test_each_state_is_told_in_words(browser: Browser, name: str, state: str, words: list[str]) -> None:
    page = page_of(browser, name)
    assert page.one("h1").text == name
    assert page.all("span", class_="badge")[0].text == state
    for each in words:
        assert each in page.text


def test_page_tells_versions_and_progress(browser: Browser) -> None:
    page = page_of(browser, "writing")
    assert [version.text for version in page.all(class_="version")] == ["1.1.0", "1.2.0"]
    assert page.all(class_="version")[0].attributes["href"] == "/applications/pumps?version=1.1.0"
    assert page.one("progress").attributes["value"] == "37.5"
    assert not page_of(browser, "fine").all("progress")


def test_page_tells_attempts_of_the_policy(browser: Browser) -> None:
    # Once the application was read.
    page = read_html(browser.wait(path_of("beyond"), lambda html: "5 of 5" in html))
    (row,) = page.one("tbody").all("tr")
    assert [cell.text for cell in row.all("td")][::2] == ["1.2.0", "5"]
    assert [button.attributes["data-copy"] for button in row.all("button")] == [SHA]


@pytest.mark.parametrize(("name", "count"), [("beyond", 2), ("back", 1), ("fine", 0), ("writing", 0), ("other", 0)])
def test_retry_is_offered_where_it_helps(browser: Browser, name: str, count: int) -> None:
    links = page_of(browser, name).all("a", href=f"/applications/pumps/rollout/retry?device={name}")
    assert len(links) == count


def test_page_shows_what_the_device_has_of_its_own(browser: Browser) -> None:
    own = page_of(browser, "waiting").one("pre", class_="own").text
    assert '"hardware": "rev-b"' in own
    assert not page_of(browser, "fine").all("pre", class_="own")


def test_a_disabled_device_is_marked(browser: Browser) -> None:
    assert "device disabled" in page_of(browser, "off").text


def test_nothing_that_a_device_says_is_markup(browser: Browser) -> None:
    page = page_of(browser, HOSTILE)
    assert [script.attributes["src"] for script in page.all("script")] == ["/static/console.js"]
    assert page.one("h1").text == HOSTILE
    assert f"{HOSTILE}={HOSTILE}" in page.text
    assert page.text.count(HOSTILE) >= 6
    assert not [each for each in page.all() if {"style", "onclick", "onerror"} & {*each.attributes}]


def test_unknown_devices_are_no_page(browser: Browser) -> None:
    assert "no such device" in page_of(browser, "nobody", status=404).text
    assert "names no device" in browser.get("/applications/pumps/device").text


def test_devices_of_unknown_applications_are_no_page(browser: Browser) -> None:
    page_of(browser, "fine", application="others", status=404)


def test_fragment_is_the_live_part_alone(browser: Browser) -> None:
    response = browser.get(path_of("fine"), Fragment="1")
    assert "<html" not in response.text
    assert "<h1>fine</h1>" in response.text


def test_an_outage_shows_the_last_snapshot() -> None:
    with Sandbox([APPLICATION, *DEVICES]) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        browser.wait("/applications/pumps", lambda html: "beyond" in html)
        sandbox.stop()
        page = page_of(browser, "back")
        assert page.one("h1").text == "back"
        assert "No news: Device registry: connection refused." in page.text
        assert "It gets the update again after a pause" in page.text
        page_of(browser, "unheard of", status=503)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_each_name_has_a_page(name: str) -> None:
    objects = [APPLICATION, {"metadata": {"application": "pumps", "name": name}}]
    with Sandbox(objects) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        html = browser.wait("/applications/pumps", lambda html: "device?name=" in html)
        links = [a.attributes["href"] for a in read_html(html).all("a") if "device?name=" in a.attributes["href"]]
        page = read_html(browser.get(links[0]).text)
        assert page.one("h1").text == " ".join(name.split())


def test_texts_that_are_not_unicode_are_shown() -> None:
    """The registry's JSON may spell lone surrogates, which no page can have."""
    odd = device("odd", behind("\ud800"), current="1\udc00")

    def answer(request: Request) -> Response:
        if request.path.endswith("/apps/pumps"):
            return Response(200, json.dumps(APPLICATION).encode())
        return Response(200, json.dumps([odd]).encode()) if "/devices?" in request.path else Response(503)

    with Server(answer) as server, browsing(environment_of(server.url)) as browser:
        browser.wait("/applications/pumps", lambda html: "odd" in html)
        page = page_of(browser, "odd")
        assert page.all(class_="version")[0].text == "1?"
