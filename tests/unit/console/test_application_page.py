"""The page of an application: what it says about a rollout, and how its table finds devices."""

import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.console.app import make_console
from fleet_fn.console.parts import open_parts
from fleet_fn.console.settings import ConsoleSettings
from fleet_fn.console.snapshots import Snapshots
from fleet_fn.fleet.states import ATTENTION, State
from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import PATIENCE, Browser, browsing, environment_of
from tests.support.fleets import HOSTILE, Story, make_fleet
from tests.support.html import Element, read_html
from tests.unit.console.conftest import DEVICES

PAGE: Final = "/applications/thermostats"
APPLICATIONS: Final = tuple(DEVICES)


def page_of(browser: Browser, path: str = PAGE) -> Element:
    return read_html(browser.wait(path))


def names_of(page: Element) -> list[str]:
    """Names of the devices in the table."""
    return [cell.one("a").text for cell in page.all("td", class_="name")]


def shown(page: Element) -> str:
    return page.one("span", id="shown").text


def rows(first: int, last: int, total: int) -> str:
    """How the table's caption begins."""
    return f"{first}\N{EN DASH}{last} of {total} device"


def notice_of(page: Element, kind: str) -> str:
    """The text of the first notice of a kind."""
    return page.one("main").all("p", class_=kind)[0].text


def tile(page: Element, title: str) -> str:
    (found,) = (each for each in page.all(class_="tile") if each.one("h2").text == title)
    return found.text


def actions(page: Element) -> dict[str, str]:
    """Labels of the actions, and their kind."""
    buttons = page.one("nav", aria_label="Actions").all("a")
    return {button.text: button.attributes["class"].removeprefix("button").strip() for button in buttons}


# --- The rollout ------------------------------------------------------------------------------------------------------


def test_head_says_what_is_rolled_out_and_how_that_stands(fleets: Browser) -> None:
    page = page_of(fleets)
    assert page.one(class_="title").one(class_="badge").text == "waiting"
    assert tile(page, "Target").startswith("Target 1.5.0 thermostat:1.5.0")
    assert "50 % of 260 devices may have it" in tile(page, "In sync")
    assert "the stage needs 97 %" in tile(page, "Success")
    facts = page.one("dl", class_="facts").text
    assert "thermostat:1.4.2, version 1.4.2" in facts
    assert "advance by cron" in facts


def test_stages_say_what_is_reached_and_what_the_next_one_needs(fleets: Browser) -> None:
    stages = page_of(fleets).one("ol", class_="stages")
    found = [each for each in stages.children if isinstance(each, Element)]
    assert [each.attributes["class"] for each in found] == ["passed", "passed", "current", "next"]
    assert [each.one("b").text if not each.all("ul") else "50 %" for each in found] == ["1 %", "10 %", "50 %", "100 %"]
    assert found[2].attributes["aria-current"] == "step"
    assert found[3].text.endswith("next: over 6h")
    needs = {each.attributes["class"]: each.text for each in found[2].one("ul").all("li")}
    assert "Approval: not given (Approve)." in found[2].text
    assert needs["open"]
    assert found[2].one("ul").all("time")  # when the stage is over


def test_halted_rollout_says_why_and_what_to_do(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/lights")
    notice = notice_of(page, "bad")
    assert notice.startswith("Halted: 1.1.0 failed on ")
    assert "Start takes a fix, Abort goes back" in notice
    assert "the brake is on" in tile(page, "Brake")
    assert actions(page)["Start a rollout"] == "primary"


def test_brake_names_the_devices_that_failed(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/lights")
    facts = page.one("dl", class_="facts")
    failed = facts.all("dd")[0]
    links = failed.all("a")
    assert len(links) == 10
    assert failed.text.endswith("more")
    for link in links[:3]:
        device = read_html(fleets.get(link.attributes["href"]).text)
        assert device.one("h1").text == link.text
        assert device.all("span", class_="badge")[0].text in ("rolled back", "failed")


@pytest.mark.parametrize(
    ("application", "offered"),
    [
        ("thermostats", {"Approve": "primary", "Start a rollout": "", "Pause": "", "Abort": "danger"}),
        ("lights", {"Resume": "", "Start a rollout": "primary", "Pause": "", "Abort": "danger"}),
        ("hostile", {"Resume": "primary", "Approve": "", "Start a rollout": "", "Abort": "danger"}),
        ("vending", {"Start a rollout": "", "Pause": "", "Abort": "danger"}),
        ("bare", {"Start a rollout": "", "Pause": ""}),
    ],
)
def test_actions_are_those_that_make_sense(fleets: Browser, application: str, offered: dict[str, str]) -> None:
    found = actions(page_of(fleets, f"/applications/{application}"))
    assert found.pop("Firmware") == ""
    assert {label: kind for label, kind in found.items() if not label.startswith("Retry")} == offered
    assert "primary" not in list(found.values())[1:]


def test_each_action_leads_to_its_page(fleets: Browser) -> None:
    for application in APPLICATIONS:
        for button in page_of(fleets, f"/applications/{application}").one("nav", aria_label="Actions").all("a"):
            if button.text != "Firmware":
                assert fleets.get(button.attributes["href"]).status_code == 200, button.attributes["href"]


def test_retry_counts_the_devices_that_it_is_for(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/lights")
    (label,) = (label for label in actions(page) if label.startswith("Retry"))
    link = next(button for button in page.all("a", class_="button") if button.text == label)
    assert f"{label.split()[1]} devices" in read_html(fleets.wait(link.attributes["href"])).text


def test_curve_ends_with_the_devices_that_have_a_result(fleets: Browser) -> None:
    page = page_of(fleets)
    words = page.one("svg", class_="curve").attributes["aria-label"]
    in_sync = tile(page, "In sync").split()[2]
    assert words.startswith(f"{in_sync} devices in sync, ")
    assert page.one(class_="plot").one(class_="axis").all("time")[0].attributes["datetime"] != ""


def test_application_without_stages_or_brake_says_so(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/vending")
    assert "There are no stages; 100 % of devices are let in." in page.text
    assert "nothing halts it: maxFailed is not set" in tile(page, "Brake")
    assert not page.all("ol", class_="stages")


def test_application_without_anything_has_a_page(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/bare")
    assert "set FIRMWARE_REGISTRY" in notice_of(page, "bad")
    assert shown(page).startswith("No devices")


# --- The fleet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("application", ["thermostats", "lights", "hostile", "vending"])
def test_legends_lead_to_as_many_devices_as_they_say(fleets: Browser, application: str) -> None:
    fleet = page_of(fleets, f"/applications/{application}").one(class_="fleet")
    assert fleet.one("h2").text == f"{DEVICES[application]} devices"
    for legend in fleet.all("ul", class_="legend"):
        counts = [int(item.one("b").text.replace(",", "")) for item in legend.all("li")]
        assert sum(counts) == DEVICES[application]
        for item, count in zip(legend.all("li"), counts, strict=True):
            for link in item.all("a"):
                found = shown(page_of(fleets, link.attributes["href"].partition("#")[0]))
                assert f"of {count} device" in found, link.attributes["href"]


def test_target_is_the_first_of_the_versions(fleets: Browser) -> None:
    for application, version in (("thermostats", "1.5.0"), ("lights", "1.1.0")):
        _, versions = page_of(fleets, f"/applications/{application}").one(class_="fleet").all("ul", class_="legend")
        assert versions.all("li")[0].one("a").text == version


def test_attention_shows_the_worst_first_and_leads_to_all(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/lights")
    rows = [row for part in page.all("ul", class_="attention") for row in part.all("li")]
    states = [row.one(class_="badge").attributes["class"].removeprefix("badge ") for row in rows]
    assert len(rows) == 20
    assert states == sorted(states, key=[state.value for state in ATTENTION].index)
    assert any("did not come up" in row.text for row in rows)
    heading = next(each for each in page.all("h2") if each.text.startswith("Needs attention"))
    link = heading.one("a")
    assert f"of {link.text} device" in shown(page_of(fleets, link.attributes["href"].partition("#")[0]))


def test_attention_is_told_by_reason(fleets: Browser) -> None:
    page = page_of(fleets, "/applications/lights")
    groups = page.one("p", class_="reasons")
    counts = [int(group.text.split()[0]) for group in groups.all(class_="badge")]
    heading = next(each for each in page.all("h2") if each.text.startswith("Needs attention"))
    assert sum(counts) == int(heading.one("a").text)
    assert "all attempts are used up" in groups.text


def test_gateways_that_are_updated_with_their_devices_are_told() -> None:
    now = Story().now
    application, *devices = make_fleet(Story("shop", 40, stages=None, failing=0, now=now))
    busy = [each for each in devices if each.get("status", {}).get("firmware", {}).get("update", {}).get("started")]
    gateway = busy[0]["metadata"]["name"]
    behind = {**busy[0], "metadata": {**busy[0]["metadata"], "name": "behind"}}
    behind["spec"] = {"gatewaySelector": {"matchNames": [gateway]}}
    for each in (busy[0], behind):
        firmware = each["status"]["firmware"]
        firmware |= {
            "current": "1.4.2",
            "conditions": [
                {"type": "InSync", "status": "False"},
                {"type": "UpdateProgress", "status": "Unknown", "message": "3.00"},
            ],
        }
    with Sandbox([application, *devices, behind]) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        notice = notice_of(page_of(browser, "/applications/shop"), "warning")
        assert notice.startswith(f"gateway {gateway} is being updated at the same time as behind behind it")


# --- The table --------------------------------------------------------------------------------------------------------


def test_pages_show_each_device_once(fleets: Browser) -> None:
    page, names = page_of(fleets), []
    assert shown(page).startswith(rows(1, 50, 260))
    while True:
        names += names_of(page)
        following = page.all("a", rel="next")
        if not following:
            break
        page = page_of(fleets, following[0].attributes["href"].partition("#")[0])
    assert shown(page).startswith(rows(251, 260, 260))
    assert len(names) == len(set(names)) == 260
    assert names == sorted(names)
    assert [link.attributes["rel"] for link in page.one("nav", class_="pages").all("a")] == ["first", "prev"]


def test_a_page_beyond_the_last_is_the_last(fleets: Browser) -> None:
    assert shown(page_of(fleets, f"{PAGE}?page=999")).startswith(rows(251, 260, 260))


def test_headers_sort_and_say_so(fleets: Browser) -> None:
    def header(page: Element, title: str) -> Element:
        return next(each for each in page.all("th") if each.all("a") and each.text.startswith(title))

    page = page_of(fleets, f"{PAGE}?q=oslo")
    assert header(page, "device").attributes["aria-sort"] == "ascending"
    for title in ("state", "runs", "should run", "since", "last seen"):
        assert header(page, title).attributes["aria-sort"] == "none"
        for direction in ("ascending", "descending"):
            page = page_of(fleets, header(page, title).one("a").attributes["href"].partition("#")[0])
            assert header(page, title).attributes["aria-sort"] == direction
            assert page.one("input", name="q").attributes["value"] == "oslo"  # the filter stays


@pytest.mark.parametrize(
    ("query", "is_wanted"),
    [
        ("q=OSLO", lambda entry: "oslo" in entry.row.device),
        ("state=held", lambda entry: entry.row.state is State.HELD),
        ("state=attention", lambda entry: entry.row.state in ATTENTION),
        ("version=1.5.0&state=in-sync", lambda entry: entry.row.current == "1.5.0"),
        ("label=site%3Dgraz", lambda entry: entry.labels["site"] == "graz"),
        ("label=ring%3D1&q=oslo", lambda entry: entry.labels == {"site": "oslo", "ring": "1"}),
        ("label=nothing", lambda _: False),
        ("state=nonsense&sort=nonsense&page=nonsense", lambda _: True),
    ],
)
def test_filter_is_in_the_address(fleets: Browser, query: str, is_wanted: Callable[..., bool]) -> None:
    snapshot = fleets.parts.snapshots.look(fleets.parts.users.current(), "thermostats")  # type: ignore[arg-type]
    assert snapshot.devices
    wanted = [entry.row.device for entry in snapshot.devices.entries or () if is_wanted(entry)]
    page = page_of(fleets, f"{PAGE}?{query}")
    assert names_of(page) == sorted(wanted)[:50]
    expected = rows(1, min(len(wanted), 50), len(wanted)) if wanted else "No device matches"
    assert shown(page).startswith(expected)


def test_form_shows_what_the_address_asks_for(fleets: Browser) -> None:
    query = "q=a%22b&state=held&version=9.9&label=x%3D%3Cy%3E&sort=-seen"
    form = page_of(fleets, f"{PAGE}?{query}").one("form", role="search")
    assert form.one("input", name="q").attributes["value"] == 'a"b'
    assert form.one("input", name="label").attributes["value"] == "x=<y>"
    assert [option.attributes["value"] for option in form.all("option", selected="")] == ["held", "9.9", "-seen"]
    assert "site=oslo" in [option.attributes["value"] for option in form.one("datalist").all("option")]


def test_progress_is_a_bar_with_a_number(fleets: Browser) -> None:
    page = page_of(fleets, f"{PAGE}?state=stalled")
    for row in page.one("tbody").all("tr"):
        (bar,) = row.all("progress")
        assert f"{float(bar.attributes['value']):.0f} %" in row.text


@pytest.mark.parametrize("query", ["", "?state=attention", "?state=in-sync", "?state=stalled&label=site%3Doslo"])
def test_command_line_to_copy_shows_the_same_devices(fleets: Browser, query: str) -> None:
    page = page_of(fleets, f"{PAGE}{query}")
    command = page.one("p", class_="over").one("button").attributes["data-copy"]
    program, *arguments = shlex.split(command)
    assert program == "fleet-fn"
    environment = environment_of(fleets.parts.operator.drogue_api_url)
    output = CliRunner().invoke(main, arguments, env=environment).stdout
    first = output.splitlines()[1 : 1 + len(names_of(page))]
    assert [line.split()[0] for line in first] == names_of(page)


# --- What others wrote ------------------------------------------------------------------------------------------------


def test_each_hostile_name_is_found_by_its_address(fleets: Browser) -> None:
    for name in HOSTILE:
        page = page_of(fleets, f"/applications/hostile?q={quote(name.strip(), safe='')}")
        links = {cell.one("a").attributes["href"]: cell.one("a") for cell in page.all("td", class_="name")}
        path = f"/applications/hostile/device?name={quote(name, safe='')}"
        assert links[path].text == " ".join(name.split()), name
        assert read_html(fleets.get(path).text).one("h1").text == " ".join(name.split())


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/applications/hostile",
        "/applications/hostile?page=2&sort=-name",
        "/applications/hostile?state=attention",
        "/applications/hostile?" + "&".join(f"{key}={quote(HOSTILE[1])}" for key in ("q", "version", "label", "sort")),
        "/applications/hostile?" + "&".join(f"{key}={quote(HOSTILE[0])}" for key in ("state", "page", "q")),
        "/?q=" + quote(HOSTILE[1]),
    ],
)
def test_nothing_that_others_wrote_is_markup(fleets: Browser, path: str) -> None:
    text = fleets.wait(path)
    page = read_html(text)
    assert [script.attributes["src"] for script in page.all("script")] == ["/static/console.js"]
    assert [image.attributes["src"] for image in page.all("img")] == ["/static/icon.svg"]
    for element in page.all():
        assert not [name for name in element.attributes if name.startswith("on") or name == "style"], element
        for name in ("href", "src", "action"):
            assert element.attributes.get(name, "/").startswith(("/", "#")), element.attributes
    assert not page.all("b", onclick="") or "alert" not in text.partition("<body>")[0]


# --- Polling ----------------------------------------------------------------------------------------------------------


def test_fragment_is_sent_again_only_if_it_changed(fleets: Browser) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        first = fleets.get(PAGE, Fragment="1")
        assert first.status_code == 200
        assert "<html" not in first.text
        parts = [child for child in read_html(first.text).children if isinstance(child, Element)]
        assert [part.attributes["id"] for part in parts] == ["live", "live-more"]
        again = fleets.get(PAGE, Fragment="1", If_None_Match=first.headers["ETag"])
        if again.status_code == 304:
            break
        assert time.monotonic() < end  # the console has read the application between the two
    assert not again.data
    other = fleets.get(f"{PAGE}?q=oslo", Fragment="1", If_None_Match=first.headers["ETag"])
    assert other.status_code == 200


def test_live_parts_have_no_field_to_type_in(fleets: Browser) -> None:
    for path in (PAGE, "/"):
        fragment = read_html(fleets.get(path, Fragment="1").text)
        assert not [each for tag in ("form", "input", "select") for each in fragment.all(tag)]


# --- Before and after -------------------------------------------------------------------------------------------------


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox([*make_fleet(Story("one", 30)), *make_fleet(Story("two", 30))]) as sandbox:
        yield sandbox


def test_first_look_says_that_the_devices_are_read(sandbox: Sandbox) -> None:
    with browsing(environment_of(sandbox.url)) as browser:
        first = read_html(browser.get("/applications/one").text)
        assert any("data-reading" in each.attributes for each in first.all("p"))
        assert "Reading the devices" in first.text
        assert len(names_of(page_of(browser, "/applications/one"))) == 30


def test_devices_that_made_room_are_read_again(sandbox: Sandbox, tmp_path: Path) -> None:
    settings = ConsoleSettings.from_environment(environment_of(sandbox.url))
    with open_parts(settings, str(tmp_path)) as opened:
        parts = replace(opened, snapshots=Snapshots(opened.firmware.find_target, max_devices=40))
        browser = Browser(make_console(settings, parts).test_client(), parts)
        for name in ("one", "two"):
            assert names_of(page_of(browser, f"/applications/{name}"))
        browser.get("/applications/two")
        page = read_html(browser.get("/applications/one").text)
        assert "made room for other applications" in page.text
        assert page.one(class_="fleet").one("h2").text == "30 devices"  # the numbers stay
        assert names_of(page_of(browser, "/applications/one"))
        parts.snapshots.close()


def test_outage_shows_the_last_devices_and_the_reason(sandbox: Sandbox) -> None:
    with browsing(environment_of(sandbox.url)) as browser:
        assert names_of(page_of(browser, "/applications/one"))
        sandbox.stop()
        page = read_html(browser.wait("/applications/one", lambda html: "No news" in html))
        assert "connection refused" in notice_of(page, "bad")
        assert len(names_of(page)) == 30
