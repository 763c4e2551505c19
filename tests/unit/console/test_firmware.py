"""The page with an application's firmware: what a repository has, who runs it, and what its signatures are worth."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from fleet_fn.console.next_command import NO_REGISTRY
from fleet_fn.deadline import Deadline
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.sandbox.cloud import Sandbox
from tests.support.console import Browser, browsing, environment_of
from tests.support.devices import Object, behind, condition, device
from tests.support.fake_registry import FakeRegistry
from tests.support.firmware import random_bytes
from tests.support.html import Element, read_html
from tests.support.http import Request, Response
from tests.support.images import OCTETS, ImageLayout, metadata
from tests.support.signer import MANIFEST, Attacher, Signer
from tests.support.timing import Gate

PAGE: Final = "/applications/pumps/firmware"
HOSTILE: Final = "<script>alert('x')</script>"
#: Seconds that a page may take, whatever the registry does.
PAGE_SECONDS: Final = 3.0


def application(firmware: Object | None = None, **status: Any) -> Object:
    sections = {"spec": {"firmware": firmware}} if firmware else {}
    return {"metadata": {"name": "pumps"}, **sections, "status": {"firmware": {"rollout": status}} if status else {}}


def image(name: str = "pump:1.2.0", **more: Any) -> Object:
    return {"container": {"image": name, **more}}


def publish(folder: Path, version: str, tag: str = "", size: int = 4096, **annotations: str) -> str:
    """Publish a firmware into the layout `pump`; return the digest of its manifest."""
    told = {"org.opencontainers.image.version": version}
    for key, value in annotations.items():
        ours = "io.drogue.firmware" if key in ("hardware", "requires") else "org.opencontainers.image"
        told[f"{ours}.{key}"] = value
    reference = layout_reference(f"oci-layout:{folder / 'pump'}:{tag or version}")
    return publish_to_layout(reference, io.BytesIO(random_bytes(size, version)), told, force=True).digest


@contextmanager
def looking(objects: list[Object], **variables: str) -> Iterator[Browser]:
    with Sandbox(objects) as sandbox, browsing(environment_of(sandbox.url, **variables)) as browser:
        yield browser


def page_of(browser: Browser, path: str = PAGE) -> Element:
    """The page once the repository and the devices were read."""
    html = browser.wait(path, lambda html: ("data-reading" not in html and "counts" in html) or "notice" in html)
    return read_html(html)


def versions(page: Element) -> list[str]:
    return [row.one("td", class_="name").one("b").text for row in rows(page)]


def rows(page: Element) -> list[Element]:
    return [row for table in page.all("table", class_="firmware") for row in table.one("tbody").all("tr")]


def cell(page: Element, version: str, name: str) -> Element:
    (row,) = [row for row in rows(page) if row.one("td", class_="name").one("b").text == version]
    return row.one("td", class_=name)


# --- What a repository has --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Element:
    folder = tmp_path_factory.mktemp("layouts")
    publish(folder, "1.9.0")
    publish(folder, "1.10.0", created="2026-11-23T06:00:00Z", revision="0123456789abcdef", source="https://x.test/pump")
    publish(folder, "1.10.0-rc.1", hardware="rev-b,rev-c", requires=">=1.9")
    publish(folder, "1.11.0-beyond-sixteen-bytes")
    target = publish(folder, "1.2.0")
    publish(folder, "1.2.0", "latest")
    publish(folder, "1.2.0", "stable")
    layout = ImageLayout(folder / "other")
    layout.tag(layout.manifest(layout.blob(b"{}", "application/json"), [layout.blob(b"x", OCTETS)] * 2), "broken")
    fleet = [
        device("one", [condition("InSync", "True")], current="1.2.0"),
        device("two", behind(), current="1.9.0"),
        device("three", behind(), current="1.9.0"),
    ]
    status = {"version": "1.2.0", "image": f"pump@{target}", "aborted": ["1.9.0"]}
    with looking(
        [application(image("pump:stable"), **status), *fleet], FIRMWARE_REGISTRY=f"oci-layout:{folder}"
    ) as browser:
        browser.wait("/applications/pumps", lambda html: "three" in html)
        return page_of(browser)


def test_the_highest_version_comes_first(page: Element) -> None:
    assert versions(page) == ["1.11.0-beyond-sixteen-bytes", "1.10.0", "1.10.0-rc.1", "1.9.0", "1.2.0"]


def test_tags_of_one_manifest_share_a_row(page: Element) -> None:
    assert {label.text for label in cell(page, "1.2.0", "name").all(class_="label")} == {"latest", "stable"}


def test_target_is_marked(page: Element) -> None:
    assert "target" in cell(page, "1.2.0", "name").text
    assert "target" not in cell(page, "1.9.0", "name").text
    assert not cell(page, "1.2.0", "action").all("a")


def test_halted_versions_are_marked(page: Element) -> None:
    assert "halted" in cell(page, "1.9.0", "name").text


def test_origin_size_and_conditions_are_told(page: Element) -> None:
    assert cell(page, "1.10.0", "created").text == "2026-11-23 06:00 UTC from 0123456789ab"
    assert cell(page, "1.10.0", "size").text == "4.1 kB"
    assert cell(page, "1.10.0", "size").attributes["title"] == "4,096 bytes"
    assert cell(page, "1.10.0-rc.1", "for").text == "rev-b, rev-cdevices on >=1.9"
    assert cell(page, "1.10.0", "for").text == "any"


def test_devices_are_counted(page: Element) -> None:
    assert cell(page, "1.9.0", "counts").text == "2 run it"
    assert cell(page, "1.9.0", "counts").one("a").attributes["href"] == "/applications/pumps?version=1.9.0"
    assert cell(page, "1.2.0", "counts").text == "1 run it3 should run it"
    assert cell(page, "1.10.0", "counts").text == "none"


def test_a_version_can_be_rolled_out(page: Element) -> None:
    link = cell(page, "1.10.0", "action").one("a")
    assert link.attributes["href"] == "/applications/pumps/rollout/start?image=pump%3A1.10.0&edit=1"
    assert link.text == "Roll out 1.10.0"


def test_a_long_version_can_too(page: Element) -> None:
    assert cell(page, "1.11.0-beyond-sixteen-bytes", "action").all("a")  # the documented dialect holds it


def test_digests_can_be_copied(page: Element) -> None:
    button = cell(page, "1.10.0", "digest").one("button")
    assert button.attributes["data-copy"].startswith("sha256:")
    assert cell(page, "1.10.0", "digest").one("code").text == button.attributes["data-copy"][7:19]


def test_signatures_without_keys_are_not_checked(page: Element) -> None:
    assert cell(page, "1.10.0", "verdict").text == "not checked"
    assert "Signatures are not checked: FIRMWARE_VERIFY_KEYS is not set." in page.text


def test_command_line_is_told(page: Element) -> None:
    assert page.one("p", class_="copy").one("code").text.startswith("fleet-fn inspect oci-layout:")


def test_search_narrows_the_rows(tmp_path: Path) -> None:
    publish(tmp_path, "1.0.0", hardware="rev-b")
    publish(tmp_path, "1.2.0")
    with looking([application(image())], FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}") as browser:
        assert versions(page_of(browser)) == ["1.2.0", "1.0.0"]
        assert versions(page_of(browser, f"{PAGE}?q=REV-B")) == ["1.0.0"]
        assert "Nothing in the repository has “x<y” in it." in page_of(browser, f"{PAGE}?q=x%3Cy").text


def test_range_marks_the_versions_in_it(tmp_path: Path) -> None:
    for version in ("1.0.0", "1.5.0", "2.0.0"):
        publish(tmp_path, version)
    with looking([application(image("pump", version="<2"))], FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}") as browser:
        page = read_html(browser.wait(PAGE, lambda html: "in range" in html and ">target<" in html))
        assert "in range" in cell(page, "1.0.0", "name").text
        assert "in range" not in cell(page, "2.0.0", "name").text
        assert "target" in cell(page, "1.5.0", "name").text


def test_signatures_are_judged_as_the_function_does(tmp_path: Path) -> None:
    mine, other = Signer(), Signer()
    (tmp_path / "release.pub").write_bytes(mine.public)
    digests = {version: publish(tmp_path, version) for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0")}
    attacher = Attacher(tmp_path / "pump")
    attacher.sign(mine, digests["1.0.0"])
    attacher.sign(other, digests["1.1.0"])
    attacher.sign(mine, digests["1.3.0"])
    (tmp_path / "denied").write_text(digests["1.3.0"] + "\n")
    variables = {
        "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}",
        "FIRMWARE_VERIFY_KEYS": str(tmp_path / "release.pub"),
        "FIRMWARE_DENY": str(tmp_path / "denied"),
    }
    with looking([application(image("pump:1.0.0"))], **variables) as browser:
        page = page_of(browser)
        assert cell(page, "1.0.0", "verdict").text == "good by release.pub"
        assert cell(page, "1.1.0", "verdict").text == "not trusted signed by another key"
        assert cell(page, "1.2.0", "verdict").text == "not trusted no signature"
        assert cell(page, "1.3.0", "verdict").text == "denied FIRMWARE_DENY lists it"
        assert not any(cell(page, version, "action").all("a") for version in ("1.1.0", "1.2.0", "1.3.0"))


def test_nothing_in_a_repository_is_markup(tmp_path: Path) -> None:
    publish(tmp_path, HOSTILE, "1", hardware=HOSTILE, revision=HOSTILE, source=HOSTILE, created=HOSTILE)
    publish(tmp_path, "1", "2", requires=HOSTILE)
    layout = ImageLayout(tmp_path / "evil")
    artifact = layout.artifact(b"x", HOSTILE, mediaType=HOSTILE)
    layout.tag(artifact, "1")
    for repository in ("pump", "evil"):
        with looking([application(image(f"{repository}:1"))], FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}") as browser:
            page = read_html(browser.wait(PAGE, lambda html: "data-reading" not in html))
            assert [script.attributes["src"] for script in page.all("script")] == ["/static/console.js"]
            assert HOSTILE in page.text
            assert not [each for each in page.all() if {"style", "onclick", "onerror"} & {*each.attributes}]


def test_tags_without_firmware_have_their_reason(tmp_path: Path) -> None:
    publish(tmp_path, "1.2.0")
    attacher = Attacher(tmp_path / "pump")
    entry = attacher.put(b'{"schemaVersion": 2, "layers": [], "config": {}}', MANIFEST)
    attacher.enter({**entry, "annotations": {"org.opencontainers.image.ref.name": "odd"}})
    with looking([application(image())], FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}") as browser:
        others = page_of(browser).one("details", class_="others")
        assert "1 tag without firmware that could be used" in others.text
        assert "no firmware: no layer of media type" in others.text


def test_only_so_many_tags_are_looked_at(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path / "pump")
    artifact = layout.artifact(b"firmware", None)
    for number in range(120):
        layout.tag(artifact, f"1.0.{number}")
    with looking([application(image("pump:1.0.1"))], FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}") as browser:
        page = page_of(browser)
        assert len(rows(page)) == 100
        assert versions(page)[0] == "1.0.119"
        assert "And 20 more tags, which are not looked at." in page.text


# --- Other sources ----------------------------------------------------------------------------------------------------


def words_of(firmware: Object | None, **variables: str) -> str:
    with looking([application(firmware)], **variables) as browser:
        return read_html(browser.wait(PAGE, lambda html: "data-reading" not in html)).text


def test_without_a_registry_the_variable_is_named() -> None:
    assert NO_REGISTRY in words_of(image())


def test_without_a_source_a_rollout_is_proposed(tmp_path: Path) -> None:
    text = words_of(None, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert "The application names no firmware. Roll out a version to name one." in text
    assert "Roll out a version" in text


def test_the_default_image_is_shown(tmp_path: Path) -> None:
    publish(tmp_path, "1.2.0")
    text = words_of(None, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}", FIRMWARE_DEFAULT_IMAGE="pump:1.2.0")
    assert "The application names no firmware, so devices get FIRMWARE_DEFAULT_IMAGE." in text
    assert "1.2.0" in text


@pytest.mark.parametrize(
    ("firmware", "words"),
    [
        ({"hawkbit": {"controller": "x"}}, "HawkBit assigns the application's firmware, to each device its own"),
        ({"container": {"image": "Pump!"}}, "Invalid reference 'Pump!'"),
        ({"container": {"imagee": "pump"}}, "did you mean image"),
        ({"container": {"image": "absent:1"}}, "No image layout absent in"),
        ({"file": {"name": "pump"}}, "set FIRMWARE_DIR"),
    ],
)
def test_sources_that_cannot_be_used_are_explained(tmp_path: Path, firmware: Object, words: str) -> None:
    assert words in words_of(firmware, FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")


def test_a_file_has_one_version(tmp_path: Path) -> None:
    content = random_bytes(64)
    (tmp_path / "pump.bin").write_bytes(content)
    (tmp_path / "pump.json").write_text(metadata(content, "1.2.0"))
    variables = {"FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "FIRMWARE_DIR": str(tmp_path)}
    with looking([application({"file": {"name": "pump"}})], **variables) as browser:
        page = read_html(browser.wait(PAGE, lambda html: "1.2.0" in html))
        assert versions(page) == ["1.2.0"]
        assert "pump.bin in FIRMWARE_DIR" in page.text
        assert not cell(page, "1.2.0", "action").all("a")


def test_files_are_shown_without_a_registry(tmp_path: Path) -> None:
    content = random_bytes(64)
    (tmp_path / "pump.bin").write_bytes(content)
    (tmp_path / "pump.json").write_text(metadata(content, "1.2.0"))
    assert "1.2.0" in words_of({"file": {"name": "pump"}}, FIRMWARE_DIR=str(tmp_path))
    assert "FIRMWARE_REGISTRY is not set, so there are no container images" in words_of(
        image(), FIRMWARE_DIR=str(tmp_path)
    )


# --- Registries -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[FakeRegistry]:
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(tmp_path, version)
    with FakeRegistry(tmp_path) as registry:
        yield registry


def test_a_registry_is_read_once_for_several_looks(registry: FakeRegistry) -> None:
    with looking([application(image())], **registry.environment) as browser:
        assert versions(page_of(browser)) == ["1.2.0", "1.1.0", "1.0.0"]
        for _ in range(5):
            page_of(browser)
        assert len([asked for asked in registry.asked("pump") if "tags/list" in asked]) == 1


def test_only_the_named_repository_is_asked_for(registry: FakeRegistry) -> None:
    with looking([application(image())], **registry.environment) as browser:
        page_of(browser)
        browser.get(f"{PAGE}?q=other")
        assert {request.path.split("/")[2] for request in registry.requests} == {"pump"}
        assert browser.get("/applications/others/firmware").status_code == 404


def test_a_hanging_registry_does_not_hang_the_page(registry: FakeRegistry) -> None:
    gate = Gate(Response(503))
    registry.answers["pump"] = gate
    with looking([application(image())], **registry.environment) as browser:
        limit = Deadline(PAGE_SECONDS)
        response = browser.get(PAGE)
        assert limit.remaining
        assert "data-reading" in response.text
        assert "Reading the repository" in response.text
        gate.opened.set()
        text = read_html(browser.wait(PAGE, lambda html: "notice bad" in html)).text
        assert "answered 503" in text


def test_what_is_read_already_is_shown_at_once(registry: FakeRegistry) -> None:
    released, reached = threading.Event(), threading.Event()

    def wait(request: Request) -> Response:
        reached.set()
        released.wait(30)
        return registry.honest(request)

    registry.answers["pump/manifests/1.0.0"] = wait
    with looking([application(image())], **registry.environment) as browser:
        page = read_html(browser.wait(PAGE, lambda html: html.count("Roll out") + html.count(">target<") >= 2))
        assert versions(page) == ["1.2.0", "1.1.0"]
        assert "2 of 3 tags so far" in page.text
        assert page.all("p", class_="freshness", data_reading="")
        assert reached.is_set()
        released.set()
        assert versions(page_of(browser)) == ["1.2.0", "1.1.0", "1.0.0"]


def test_credentials_that_are_missing_are_named(registry: FakeRegistry) -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="tests"'}
    registry.answers["pump"] = lambda _: Response(401, headers=challenge)
    with looking([application(image())], **registry.environment) as browser:
        text = page_of(browser).text
        assert "set FIRMWARE_REGISTRY_USER and FIRMWARE_REGISTRY_TOKEN, or name the folder" in text
        assert "--" not in text  # no options of a command


def test_a_registry_that_lists_no_tags_still_has_the_target(registry: FakeRegistry) -> None:
    registry.answers["pump/tags"] = lambda _: Response(403)
    with looking([application(image())], **registry.environment) as browser:
        page = page_of(browser)
        assert versions(page) == ["1.2.0"]
        assert "The tags cannot be listed" in page.text


def test_last_versions_stay_while_the_registry_is_down(registry: FakeRegistry) -> None:
    with looking([application(image())], **registry.environment) as browser:
        assert len(rows(page_of(browser))) == 3
        registry.answers["pump"] = lambda _: Response(503)
        repositories = browser.parts.repositories
        assert repositories
        for kept in repositories._kept.values():
            kept.due = 0.0
        page = read_html(browser.wait(PAGE, lambda html: "answered 503" in html))
        assert versions(page) == ["1.2.0", "1.1.0", "1.0.0"]
