"""The list of applications: those with trouble first, each with its numbers."""

from typing import Any

from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.html import Element, read_html
from tests.unit.console.conftest import DEVICES


def rows_of(browser: Browser, path: str = "/") -> dict[str, Element]:
    page = read_html(browser.wait(path))
    return {row.one("td", class_="name").text: row for row in page.one("tbody").all("tr")}


def test_applications_with_trouble_come_first(fleets: Browser) -> None:
    names = list(rows_of(fleets))
    assert sorted(names) == sorted(DEVICES)
    assert names[0] == "lights"  # halted
    assert names[-1] == "bare"


def test_order_by_name_is_there(fleets: Browser) -> None:
    assert list(rows_of(fleets, "/?sort=name")) == sorted(DEVICES)


def test_each_application_has_its_numbers(fleets: Browser) -> None:
    for name, row in rows_of(fleets).items():
        assert row.one(class_="count").text == f"{DEVICES[name]}"
        bars = row.all("svg", class_="bar")
        assert len(bars) == (1 if DEVICES[name] else 0)
        assert all(bar.attributes["aria-label"].startswith("Devices by state: ") for bar in bars)


def test_standing_of_each_rollout_is_a_word(fleets: Browser) -> None:
    standings = {name: row.one("td", class_="standing").text for name, row in rows_of(fleets).items()}
    assert standings == {
        "lights": "halted",
        "hostile": "paused",
        "thermostats": "waiting",
        "vending": "no stages",
        "bare": "",
    }


def test_trouble_leads_to_its_devices(fleets: Browser) -> None:
    links = [link for row in rows_of(fleets).values() for link in row.one(class_="trouble").all("a")]
    assert links
    for link in links:
        count, _, state = link.text.partition(" ")
        page = read_html(fleets.wait(link.attributes["href"].partition("#")[0]))
        assert f"of {count} device" in page.one("span", id="shown").text
        assert {badge.text for badge in page.one("tbody").all(class_="badge")} >= {state}


def test_what_is_not_known_has_its_reason(fleets: Browser) -> None:
    assert "set FIRMWARE_REGISTRY" in rows_of(fleets)["bare"].one(class_="problem").text


def test_totals_are_of_all_applications(fleets: Browser) -> None:
    for path in ("/", "/?q=lights"):
        page = read_html(fleets.wait(path))
        figure = f"{sum(DEVICES.values())} devices in {len(DEVICES)} applications"
        assert page.one(class_="figure").text.startswith(figure)
        counts = [int(each.text) for each in page.one("ul", class_="legend").all("b")]
        assert sum(counts) == sum(DEVICES.values())


def test_search_is_for_a_part_of_the_name(fleets: Browser) -> None:
    assert list(rows_of(fleets, "/?q=LIGHT")) == ["lights"]
    page = read_html(fleets.wait("/?q=nowhere"))
    assert "No application has “nowhere” in its name." in page.text
    assert page.one("input", name="q").attributes["value"] == "nowhere"


def test_first_look_says_that_devices_are_read() -> None:
    with Sandbox([{"metadata": {"name": "shop"}}]) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        assert "data-reading" in browser.get("/").text
        assert rows_of(browser)["shop"].one(class_="count").text == "0"


def test_malformed_applications_come_before_those_that_run() -> None:
    objects: list[dict[str, Any]] = [
        {"metadata": {"name": "a"}, "spec": {}},
        {"metadata": {"name": "b"}, "spec": {"firmware": {"file": "light.bin"}}},
    ]
    with Sandbox(objects) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        assert list(rows_of(browser)) == ["b", "a"]  # the other names no firmware, as it may
        assert "it must be a map" in rows_of(browser)["b"].one(class_="problem").text


def test_an_outage_is_told_once_with_the_age_of_the_devices() -> None:
    halted = {
        "metadata": {"name": "b"},
        "spec": {"firmware": {"container": {"image": "b:1"}, "rollout": {"maxFailed": 1}}},
        "status": {"firmware": {"rollout": {"version": "1", "failed": {"1": {"count": 1, "devices": []}}}}},
    }
    objects: list[dict[str, Any]] = [{"metadata": {"name": "a"}}, halted, {"metadata": {"name": "c"}}]
    with Sandbox(objects) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        assert "Devices as of" in browser.wait("/")
        sandbox.stop()
        page = read_html(browser.wait("/", lambda html: "No news since" in html))
        (notice,) = page.one("main").all("p", class_="bad")
        assert "connection refused" in notice.text
        rows = page.one("tbody").all("tr")
        assert [row.one("td", class_="name").text for row in rows] == ["b", "a", "c"]  # what is known still counts
        assert not any("connection refused" in row.text for row in rows)


def test_a_user_without_applications_is_told() -> None:
    with Sandbox([]) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        assert "You may see no application." in browser.get("/").text
