"""The next command on a device's page: what the function itself would tell, within a bounded time, without effects."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import cbor2
import pytest
from werkzeug.test import Client

from fleet_fn.app import create_app
from fleet_fn.console.next_command import DECISION_SECONDS, NO_REGISTRY
from fleet_fn.deadline import Deadline
from fleet_fn.sandbox.cloud import Sandbox
from fleet_fn.settings import Settings
from tests.support.console import Browser, browsing, environment_of
from tests.support.devices import Object, ago, behind, condition, device, update
from tests.support.drogue import Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import event
from tests.support.html import Element, read_html
from tests.support.http import Response, Server
from tests.support.timing import Gate

SIZE: Final = 40_000
#: What the machine may add to the time that a page takes.
SLACK_SECONDS: Final = 3.0
ONE_DEVICE: Final = (
    {"metadata": {"name": "pumps"}, "spec": {"firmware": {"container": {"image": "pump:1.2.0"}}}},
    device("begins", behind()),
)


def objects(firmware: Mapping[str, Published]) -> list[Object]:
    """An application with devices that are told each kind of command."""

    def recorded(version: str = "1.2.0", **record: Any) -> Object:
        published = firmware[version]
        origin = {"image": f"pump@{published.digest}"}
        return update(version=version, checksum=published.checksum.hex(), origin=origin, **record)

    spec = {"firmware": {"container": {"image": "pump:1.2.0"}, "rollout": {"window": {"from": "00:00", "to": "24:00"}}}}
    night = {"firmware": {"rollout": {"percent": 0}}}
    rev_c = {"firmware": {"container": {"image": "pump:1.3.0"}, "hardware": "rev-c"}}
    longer = {"firmware": {"container": {"image": "pump:1.0.0-of-sixteen-and-more"}}}
    return [
        {"metadata": {"name": "pumps"}, "spec": spec},
        device("fine", [condition("InSync", "True")], current="1.2.0"),
        device("begins", behind()),
        device("midway", behind(percent="37.50"), update=recorded(started=ago(minutes=4))),
        device("written", behind(percent="100.00"), update=recorded(started=ago(minutes=4))),
        device("swapped", behind(percent="100.00"), update=recorded(started=ago(minutes=4), swapped=ago(minutes=1))),
        device("anew", behind(), update=recorded(started=ago(minutes=9), restart={"sent": 512, "midway": 2048})),
        device(
            "stuck",
            behind("device-offset"),
            update=recorded(started=ago(minutes=9), restart={"sent": 512, "midway": 2048, "stuck": True}),
        ),
        device("numbers", behind(), update=recorded(started=ago(minutes=9), correlates=True)),
        device("waits", behind("rollout"), night),
        device("beyond", behind("attempts"), update=recorded(attempts=3)),
        device("other", behind(), rev_c),
        device("absent", behind(), {"firmware": {"container": {"image": "pump:9.9.9"}}}),
        device("misspelt", behind(), {"firmware": {"rolout": {}}}),
        device("too long", behind(), longer),
        device("documented", behind(), longer, current="0.9.0-of-seventeen"),
        device("off", [condition("InSync", "True")], {"core": {"disabled": True}}, current="1.2.0"),
        device("new", []),
    ]


def publish_all(folder: Path) -> dict[str, Published]:
    """Firmware in the layout `pump`."""
    found = {version: publish(folder, "pump", version, random_bytes(SIZE, version)) for version in ("1.1.0", "1.2.0")}
    found["1.3.0"] = publish(folder, "pump", "1.3.0", random_bytes(SIZE, 3), hardware="rev-b")
    publish(folder, "pump", "1.0.0-of-sixteen-and-more", random_bytes(SIZE, 4))
    return found


@dataclass
class Bench:
    """A sandbox with these devices, a console, and the environment of both console and function."""

    sandbox: Sandbox
    browser: Browser
    environment: dict[str, str]
    log: list[str] = field(default_factory=list)

    def next(self, name: str) -> Element:
        """What the page of a device says about its next command."""
        response = self.browser.get(path_of(name))
        assert response.status_code == 200
        return read_html(response.text).one("section", class_="next")

    def commands(self, name: str) -> list[str]:
        return [command.text for command in self.next(name).all("code", class_="command")]


def path_of(name: str) -> str:
    return f"/applications/pumps/device?name={quote(name, safe='')}"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("layouts")
    log: list[str] = []
    with Sandbox(objects(publish_all(folder)), log=log.append) as sandbox:
        environment = environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{folder}")
        with browsing(environment) as browser:
            yield Bench(sandbox, browser, environment, log)


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("fine", ["SYNC 1.2.0, report again in 5 min"]),
        ("begins", ["WRITE 512 bytes at 0 of 1.2.0"]),
        ("midway", ["WRITE 512 bytes at 15,000 of 1.2.0", "WRITE 512 bytes at 0 of 1.2.0"]),
        ("written", ["SWAP to 1.2.0", "WRITE 512 bytes at 0 of 1.2.0"]),
        ("swapped", ["SYNC 1.2.0, report again in 5 min", "SYNC 1.1.0, report again in 10 min"]),
        ("anew", ["WRITE 512 bytes at 512 of 1.2.0", "WRITE 512 bytes at 0 of 1.2.0"]),
        ("stuck", ["SYNC 1.1.0, report again in 5 min", "WRITE 512 bytes at 0 of 1.2.0"]),
        ("waits", ["SYNC 1.1.0, report again in 5 min"]),
        ("beyond", ["SYNC 1.1.0, report again in 5 min"]),
        ("other", ["WAIT, report again in 5 min"]),
        ("absent", ["WAIT, report again in 5 min"]),
        ("misspelt", ["WAIT, report again in 5 min"]),
        ("too long", ["WAIT, report again in 5 min"]),
        ("documented", ["WRITE 512 bytes at 0 of 1.0.0-of-sixteen-and-more"]),
        ("off", ["no command"]),
        ("new", []),
    ],
)
def test_each_command_is_told(bench: Bench, name: str, commands: list[str]) -> None:
    assert bench.commands(name) == commands


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fine", "It runs its target, and is told to keep it."),
        ("begins", "Nothing holds it back, so its update begins."),
        ("midway", "It goes on at about 37.5 %, as last reported: some 15,000 of 40,000 bytes"),
        ("midway", "It has lost its progress, and reports that it runs 1.1.0"),
        ("written", "It has all 40,000 bytes of 1.2.0"),
        ("swapped", "It comes up with 1.2.0"),
        ("swapped", "backoff: 1.2.0 did not come up, attempts: 1 of 3"),
        ("anew", "It has begun anew, at byte 512"),
        ("stuck", "device-offset: power-cycle it"),
        ("waits", "rollout: not among the 0 % of devices"),
        ("beyond", "attempts: 1.2.0 did not come up, attempts: 3"),
        ("other", "hardware: 1.3.0 is built for rev-b, and the device's hardware is rev-c"),
        ("absent", "no tag 9.9.9 in the layout pump"),
        ("misspelt", "contains rolout (did you mean rollout?)"),
        ("too long", "version-too-long"),
        ("off", "device disabled"),
        ("new", "The device has never reported, so its version is not known."),
        ("begins", "Its dialect is not recorded, and taken for packed"),
        ("numbers", "It speaks the packed or the named dialect"),
        ("documented", "It speaks the documented dialect"),
    ],
)
def test_reasons_and_assumptions_are_in_words(bench: Bench, name: str, words: str) -> None:
    assert words in bench.next(name).text


@pytest.mark.parametrize("name", ["fine", "begins", "waits", "beyond", "other", "absent", "misspelt", "too long"])
def test_it_is_what_the_function_previews(bench: Bench, name: str, tmp_path: Path) -> None:
    settings = Settings.from_environment({**bench.environment, "FIRMWARE_CACHE_DIR": str(tmp_path)})
    status = {0: bench.sandbox.get("pumps", name)["status"]["firmware"]["current"].encode()}
    headers = {
        ("content-type" if key == "datacontenttype" else f"ce-{key}"): value
        for key, value in event(name, "pumps", datacontenttype="application/cbor").items()
    }
    headers["ce-deviceuid"] = bench.sandbox.get("pumps", name)["metadata"]["uid"]
    answer = Client(create_app(settings)).post("/preview", data=cbor2.dumps(status), headers=headers)
    preview = json.loads(answer.text)
    section = bench.next(name)
    assert preview["outcome"] in section.one("code", class_="command").attributes["class"].split()
    assert (preview["reason"] or "") in section.text
    command = preview["command"]
    assert section.one("code", class_="command").text.startswith(command["op"])
    for value in (command.get("version", ""), str(command.get("size", "")), str(command.get("offset", ""))):
        assert value in section.text


def test_pages_write_nothing_and_send_nothing(bench: Bench) -> None:
    names = [each["metadata"]["name"] for each in objects({v: _none(v) for v in ("1.1.0", "1.2.0", "1.3.0")})[1:]]
    before = json.dumps([bench.sandbox.get("pumps"), *(bench.sandbox.get("pumps", name) for name in names)])
    for name in names:
        assert bench.browser.get(path_of(name)).status_code == 200
        assert bench.browser.get(path_of(name), Fragment="1").status_code == 200
    after = json.dumps([bench.sandbox.get("pumps"), *(bench.sandbox.get("pumps", name) for name in names)])
    assert after == before  # resource versions included
    assert not [line for line in bench.log if " command " in line]


def _none(version: str) -> Published:
    return Published(version, b"", "sha256:" + "0" * 64)


def test_the_cloud_is_only_read(tmp_path: Path) -> None:
    publish(tmp_path, "pump", "1.2.0", random_bytes(SIZE))
    with Drogue() as drogue:
        drogue.put_image("pumps", None, "pump:1.2.0")
        drogue.put("pumps", "begins", status=device("begins", behind())["status"])
        environment = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
        with browsing(environment) as browser:
            browser.wait(path_of("begins"), lambda html: "WRITE 512 bytes" in html)
        assert drogue.reads
        assert not drogue.writes
        assert not drogue.commands


def test_device_is_read_once_for_a_page(tmp_path: Path) -> None:
    publish(tmp_path, "pump", "1.2.0", random_bytes(SIZE))
    with Drogue() as drogue:
        drogue.put_image("pumps", None, "pump:1.2.0")
        drogue.put("pumps", "begins", status=device("begins", behind())["status"])
        environment = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
        with browsing(environment) as browser:
            assert "WRITE 512 bytes" in browser.get(path_of("begins")).text
        assert drogue.reads_of("pumps", "begins") == 1


def test_bytes_are_not_fetched(tmp_path: Path) -> None:
    published = publish(tmp_path, "pump", "1.2.0", random_bytes(SIZE))
    (tmp_path / "pump" / "blobs" / "sha256" / published.checksum.hex()).unlink()
    with (
        Sandbox(ONE_DEVICE) as sandbox,
        browsing(environment_of(sandbox.url, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")) as browser,
    ):
        assert "WRITE 512 bytes at 0 of 1.2.0" in browser.get(path_of("begins")).text


def test_without_a_registry_the_variable_is_named() -> None:
    with Sandbox(ONE_DEVICE) as sandbox, browsing(environment_of(sandbox.url)) as browser:
        assert NO_REGISTRY in read_html(browser.get(path_of("begins")).text).text


def test_a_hanging_registry_does_not_hang_the_page() -> None:
    gate = Gate(Response(503))
    with Sandbox(ONE_DEVICE) as sandbox, Server(gate) as server:
        variables = {"FIRMWARE_REGISTRY": f"127.0.0.1:{server.port}/", "FIRMWARE_REGISTRY_INSECURE": "true"}
        with browsing(environment_of(sandbox.url, **variables)) as browser:
            limit = Deadline(DECISION_SECONDS + SLACK_SECONDS)
            text = read_html(browser.get(path_of("begins")).text).text
            assert limit.remaining
            assert "It cannot be told now: a server did not answer the console in time." in text
            assert "no answer in time" in text
            limit = Deadline(DECISION_SECONDS / 2)
            browser.get(path_of("begins"))  # it is remembered for a while, so that polls do not take all threads
            assert limit.remaining
            gate.opened.set()
