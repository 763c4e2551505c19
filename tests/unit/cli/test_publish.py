"""`publish` and `inspect`: their output, and the layout afterwards."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.cli.checkout import Checkout
from fleet_fn.cli.main import main
from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.publication import firmware_warnings
from fleet_fn.oci.reference import parse_reference
from fleet_fn.oci.signature_keys import read_keys
from fleet_fn.oci.signatures import check_bundle
from fleet_fn.parts import make_image_store
from fleet_fn.protocol.messages import Write
from fleet_fn.sandbox.simulated_device import FirmwareManagerDevice, Outcome
from fleet_fn.settings import Settings
from tests.support.images import ImageLayout

CONTENT = bytes(range(256)) * 4
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Layout:
    """A folder for a layout, a firmware beside it, and what can be done with them."""

    folder: Path
    file: Path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, arguments)

    def publish(self, version: str = "0.1.1", *options: str, reference: str | None = None) -> Result:
        if reference is None:
            reference = f"oci-layout:{self.folder}:{version}"
        return self.run("publish", str(self.file), reference, "--version", version, *options)

    def inspect(self, tag: str) -> dict[str, str]:
        result = self.run("inspect", f"oci-layout:{self.folder}{tag}")
        assert (result.exit_code, result.stderr) == (0, "")
        return lines(result)

    def index(self) -> dict[str, Any]:
        index: dict[str, Any] = json.loads((self.folder / "index.json").read_bytes())
        return index

    def tags(self) -> dict[str, str]:
        name = "org.opencontainers.image.ref.name"
        return {entry["annotations"][name]: entry["digest"] for entry in self.index()["manifests"]}

    def blob(self, digest: str) -> bytes:
        return (self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()

    def manifest(self, tag: str) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.blob(self.tags()[tag]))
        return manifest


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    file = tmp_path / "build.bin"
    file.write_bytes(CONTENT)
    return Layout(tmp_path / "pump", file)


@pytest.fixture(autouse=True)
def _same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795413600")


def lines(result: Result) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def assert_refused(result: Result, command: str = "publish", code: int = 1) -> str:
    """The reason of a refusal, which is one line; the code 2 is for wrong usage."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code
    assert result.stdout == ""
    line = result.stderr.removesuffix("\n")
    assert line.isprintable()
    assert line.startswith(f"{command}: ")
    return line.removeprefix(f"{command}: ")


# --- Publishing -------------------------------------------------------------------------------------------------------


def test_what_was_published_is_told_and_found_by_inspect(layout: Layout) -> None:
    result = layout.publish()
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines(result) == {
        "reference": f"oci-layout:{layout.folder}:0.1.1",
        "digest": layout.tags()["0.1.1"],
        "version": "0.1.1",
        "size": "1024",
        "sha256": SHA256,
    }
    expected = {
        "shape": "artifact",
        "digest": layout.tags()["0.1.1"],
        "version": "0.1.1",
        "size": "1024",
        "sha256": f"{SHA256} (verified)",
        "created": "2026-11-23T06:00:00+00:00",
        "signature": "none",
    }
    assert layout.inspect(":0.1.1") == expected
    assert layout.inspect(f"@{layout.tags()['0.1.1']}") == expected


def test_the_layout_is_what_the_standard_says(layout: Layout) -> None:
    layout.publish()
    assert json.loads((layout.folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = layout.index()["manifests"]
    assert layout.index()["schemaVersion"] == 2
    assert entry["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert entry["size"] == len(layout.blob(entry["digest"]))
    assert layout.manifest("0.1.1") == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.drogue.firmware.v1",
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
            "size": 2,
        },
        "layers": [
            {
                "mediaType": "application/octet-stream",
                "digest": f"sha256:{SHA256}",
                "size": 1024,
                "annotations": {"org.opencontainers.image.title": "firmware.bin"},
            }
        ],
        "annotations": {
            "org.opencontainers.image.version": "0.1.1",
            "org.opencontainers.image.created": "2026-11-23T06:00:00+00:00",
        },
    }


def test_every_blob_has_the_bytes_of_its_name_and_nothing_else_is_left(layout: Layout) -> None:
    layout.publish("0.1.1", "--latest")
    layout.publish("0.1.2", "--pad-to", "4096")
    blobs = list((layout.folder / "blobs" / "sha256").iterdir())
    assert len(blobs) == 5
    for blob in blobs:
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
        assert blob.stat().st_mode & 0o777 == 0o644
    assert {path.name for path in layout.folder.iterdir()} == {"oci-layout", "index.json", "blobs"}


def test_without_a_tag_the_version_is_the_tag(layout: Layout) -> None:
    assert layout.publish("0.1.1", reference=f"oci-layout:{layout.folder}").exit_code == 0
    assert set(layout.tags()) == {"0.1.1"}


def test_a_relative_folder_is_told_as_an_absolute_one(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(layout.folder.parent)
    result = layout.publish(reference="oci-layout:pump:0.1.1")
    assert lines(result)["reference"] == f"oci-layout:{layout.folder}:0.1.1"


def test_publishing_the_same_again_changes_nothing(layout: Layout) -> None:
    first = layout.publish()
    before = layout.index()
    assert layout.publish().stdout == first.stdout
    assert layout.index() == before


def test_annotations_are_the_manifests(layout: Layout) -> None:
    layout.publish("0.1.1", "--annotation", "a=b=c", "--annotation", "empty=")
    annotations = layout.manifest("0.1.1")["annotations"]
    assert (annotations["a"], annotations["empty"]) == ("b=c", "")


def test_the_function_finds_what_was_published(layout: Layout) -> None:
    layout.publish()
    single_flight = SingleFlight()
    settings = Settings(
        drogue_api_url="http://unused",
        firmware_registry=f"oci-layout:{layout.folder.parent}",
        firmware_cache_dir=str(layout.folder.parent / "cache"),
    )
    store = make_image_store(settings, VerifiedFiles(single_flight), single_flight)
    firmware = store.resolve(parse_reference("pump:0.1.1", settings.firmware_prefix), Deadline(10))
    with firmware.open(Deadline(10)) as reader:
        assert reader.read(0, 1024) == CONTENT


# --- Tags -------------------------------------------------------------------------------------------------------------


def test_a_tag_is_not_moved_to_other_bytes_unless_it_is_forced(layout: Layout) -> None:
    layout.publish()
    before = layout.index()
    layout.file.write_bytes(CONTENT * 2)
    reason = "tag 0.1.1 has other bytes already: publish another version, or move it with --force"
    assert assert_refused(layout.publish()) == reason
    assert assert_refused(layout.publish("0.1.1", "--latest")) == reason
    assert layout.index() == before
    assert layout.publish("0.1.1", "--force").exit_code == 0
    assert layout.inspect(":0.1.1")["size"] == "2048"
    assert len(layout.index()["manifests"]) == 1


def test_a_tag_that_stands_at_an_image_is_not_moved_either(layout: Layout) -> None:
    image = ImageLayout(layout.folder)
    image.tag(image.labelled_image(CONTENT, "0.1.1"), "0.1.1")
    before = layout.index()
    assert assert_refused(layout.publish()).startswith("tag 0.1.1 has other bytes already: ")
    assert layout.index() == before
    assert layout.publish("0.1.1", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        (["--hardware", "rev-a"], [], "hardware"),
        (["--hardware", "rev-a"], ["--hardware", "rev-b"], "hardware"),
        (["--requires", ">=1"], ["--hardware", "rev-a"], "requires"),
        (["--requires", ">=1", "--hardware", "rev-a"], ["--requires", ">=2"], "hardware and requires"),
    ],
)
def test_a_tag_keeps_what_keeps_its_firmware_from_devices(
    layout: Layout, before: list[str], after: list[str], named: str
) -> None:
    """An option that is forgotten would send the firmware to devices that it is not for."""
    assert layout.publish("0.1.1", *before).exit_code == 0
    there = layout.index()
    reason = f"tag 0.1.1 has other {named} already: publish another version, or move it with --force"
    assert assert_refused(layout.publish("0.1.1", *after)) == reason
    assert layout.index() == there
    assert layout.publish("0.1.1", *before).exit_code == 0
    assert layout.publish("0.1.1", "--force", *after).exit_code == 0
    assert layout.index() != there


def test_a_tag_may_name_hardware_later(layout: Layout) -> None:
    layout.publish()
    assert layout.publish("0.1.1", "--hardware", "rev-a", "--requires", ">=0.1").exit_code == 0
    assert layout.inspect(":0.1.1")["hardware"] == "rev-a"


def test_padding_makes_other_bytes(layout: Layout) -> None:
    layout.publish()
    assert "has other bytes already" in assert_refused(layout.publish("0.1.1", "--pad-to", "4096"))


def test_latest_moves_along_and_the_other_tags_stay(layout: Layout) -> None:
    layout.publish("0.1.1", "--latest")
    assert layout.tags()["latest"] == layout.tags()["0.1.1"]
    layout.file.write_bytes(CONTENT * 2)
    layout.publish("0.1.2")
    assert layout.inspect("")["version"] == "0.1.1"
    layout.publish("0.1.2", "--latest")
    assert layout.inspect("")["version"] == "0.1.2"
    assert layout.inspect(":0.1.1")["sha256"] == f"{SHA256} (verified)"
    assert set(layout.tags()) == {"0.1.1", "0.1.2", "latest"}


def test_latest_itself_may_be_published_to_again_and_again(layout: Layout) -> None:
    for version in ("0.1.1", "0.1.2"):
        layout.file.write_bytes(CONTENT + version.encode().ljust(32))
        assert layout.publish(version, reference=f"oci-layout:{layout.folder}:latest").exit_code == 0
    assert layout.inspect("")["version"] == "0.1.2"


def test_entries_that_others_made_are_kept(layout: Layout) -> None:
    layout.publish()
    index = layout.index()
    others = [
        {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:" + "1" * 64, "size": 5, "x": [1]},
        {"mediaType": "a/b", "digest": "sha256:" + "2" * 64, "size": 5, "annotations": {"x": "y"}},
    ]
    (layout.folder / "index.json").write_text(json.dumps(index | {"manifests": index["manifests"] + others, "y": 1}))
    layout.publish("0.1.2")
    assert layout.index()["y"] == 1
    assert [entry for entry in layout.index()["manifests"] if entry in others] == others
    assert layout.inspect(":0.1.1")["version"] == "0.1.1"


def test_publishers_at_the_same_time_do_not_lose_each_others_tags(layout: Layout) -> None:
    def publish(number: int) -> int:
        file = layout.file.with_name(f"{number}.bin")
        file.write_bytes(CONTENT + number.to_bytes(32))
        command = [sys.executable, "-m", "fleet_fn", "publish", str(file), f"oci-layout:{layout.folder}"]
        return subprocess.run([*command, "--version", f"1.{number}", "--latest"], capture_output=True).returncode

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(publish, range(12))) == [0] * 12
    assert set(layout.tags()) == {f"1.{number}" for number in range(12)} | {"latest"}
    for number in range(12):
        assert layout.inspect(f":1.{number}")["version"] == f"1.{number}"


# --- Padding and warnings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "pad_to", "padded"), [(1000, 32, 1024), (1024, 32, 1024), (1, 4096, 4096), (1023, 1, 1023), (7, 3, 9)]
)
def test_padding_fills_up_with_what_erased_flash_reads_as(layout: Layout, size: int, pad_to: int, padded: int) -> None:
    layout.file.write_bytes(CONTENT[:size])
    result = layout.publish("0.1.1", "--pad-to", str(pad_to))
    expected = CONTENT[:size] + b"\xff" * (padded - size)
    assert lines(result)["size"] == str(padded)
    assert lines(result)["sha256"] == hashlib.sha256(expected).hexdigest()
    assert layout.blob(layout.manifest("0.1.1")["layers"][0]["digest"]) == expected


@pytest.mark.parametrize(
    ("size", "warned"), [(1024, None), (992, None), (1020, "8, 16 or 32"), (1008, "32"), (1022, "4, 8, 16 or 32")]
)
def test_a_size_that_some_flash_word_does_not_divide_is_warned_of(
    layout: Layout, size: int, warned: str | None
) -> None:
    layout.file.write_bytes(CONTENT[:size])
    warning = (
        f"warning: the size, {size} bytes, is no multiple of 32; a device whose flash word is {warned} bytes may "
        "refuse the last block for ever: publish with --pad-to 32\n"
    )
    published = layout.publish()
    inspected = layout.run("inspect", f"oci-layout:{layout.folder}:0.1.1")
    for result in (published, inspected):
        assert (result.exit_code, result.stderr) == (0, warning if warned else "")
    assert layout.publish("0.1.2", "--pad-to", "32").stderr == ""


@given(
    size=st.integers(1, 200),
    word=st.sampled_from([4, 8, 16, 32]),
    mtu=st.sampled_from([32, 64, 96]),
)
def test_a_size_without_a_warning_reaches_every_device(size: int, word: int, mtu: int) -> None:
    device = FirmwareManagerDevice(b"0.1.0", mtu=mtu, flash_word=word)
    reached = [device.handle(Write(b"0.1.1", offset, bytes(min(mtu, size - offset)))) for offset in range(0, size, mtu)]
    refused = reached[-1].outcome is Outcome.FAILED
    warnings = firmware_warnings("0.1.1", size)
    assert warnings or not refused
    if refused:
        assert f"{word}" in warnings[0].partition("flash word is ")[2].partition(" bytes")[0]


@pytest.mark.parametrize(
    ("version", "warned"), [("1" * 16, False), ("1" * 17, True), ("é" * 8, False), ("é" * 9, True)]
)
def test_a_version_of_more_than_16_bytes_is_warned_of(layout: Layout, version: str, warned: bool) -> None:
    result = layout.publish(version, reference=f"oci-layout:{layout.folder}:tag")
    assert result.exit_code == 0
    assert ("warning: the version has " in result.stderr) is warned


@pytest.mark.parametrize(
    ("version", "tag", "warned"),
    [
        ("1.2.3", "1.2.3", False),
        ("1.2.3", "1.2.4", True),
        ("1.2.3", "v1.2.3", True),
        ("1.2.3", "latest", False),  # a tag that moves from version to version
        ("1.2.3+b1", "1.2.3_b1", False),  # no tag has a plus
        ("1.2.3+b1", "1.2.3", True),
    ],
)
def test_a_tag_that_differs_from_the_version_is_warned_of(layout: Layout, version: str, tag: str, warned: bool) -> None:
    result = layout.publish(version, reference=f"oci-layout:{layout.folder}:{tag}")
    warning = (
        f"warning: the tag {tag} differs from the version {version}; spec.firmware names the tag, and devices report "
        f"the version: publish it as {version.replace('+', '_')}\n"
    )
    assert (result.exit_code, result.stderr) == (0, warning if warned else "")


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("pump:1", "'pump:1': expected HOST/NAME:TAG or oci-layout:DIR:TAG"),
        ("oci-layout:", "'oci-layout:': expected oci-layout:DIR:TAG"),
        ("oci-layout::1", "'oci-layout::1': expected oci-layout:DIR:TAG"),
        ("oci-layout:{}:", "'oci-layout:{}:': expected oci-layout:DIR:TAG"),
        ("oci-layout:{}:-1", "invalid reference 'oci-layout:{}:-1': not a tag after the colon"),
        ("oci-layout:{}:bad tag", "invalid reference 'oci-layout:{}:bad tag': not a tag after the colon"),
        ("oci-layout:{}@sha256:0", "invalid reference 'oci-layout:{}@sha256:0': not a sha256 digest after the @"),
        (
            "oci-layout:{}@sha256:" + "0" * 64,
            "'oci-layout:{}@sha256:" + "0" * 64 + "': name a tag, oci-layout:DIR:TAG",
        ),
    ],
)
def test_what_cannot_be_published_to_is_refused(layout: Layout, reference: str, reason: str) -> None:
    result = layout.publish(reference=reference.format(layout.folder))
    assert assert_refused(result, code=2) == reason.format(layout.folder)
    assert not layout.folder.exists()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("1.0.0+b1", "version '1.0.0+b1' cannot be a tag (it has a '+'): name one, e.g. oci-layout:{}:1.0.0_b1"),
        ("a b", "version 'a b' cannot be a tag (it has a ' '): name one, e.g. oci-layout:{}:a_b"),
        (".1", "version '.1' cannot be a tag (it begins with '.'): name one, e.g. oci-layout:{}:_1"),
        ("1" * 129, f"version '{'1' * 129}' cannot be a tag (it has more than 128 characters): name one"),
        ("", "the version '' is empty, or has characters that cannot be shown"),
    ],
)
def test_a_version_that_no_tag_can_be_is_refused_without_a_tag(layout: Layout, version: str, reason: str) -> None:
    told = assert_refused(layout.publish(version, reference=f"oci-layout:{layout.folder}"), code=2)
    assert told.startswith(reason.format(layout.folder))
    assert not layout.folder.exists()


@pytest.mark.parametrize("version", ["", "1\n2", "1\x1b[2J", "1\udcff"])
def test_a_version_that_cannot_be_shown_is_refused(layout: Layout, version: str) -> None:
    refused = layout.publish(version, reference=f"oci-layout:{layout.folder}:tag")
    assert "the version " in assert_refused(refused, code=2)


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("x", "--annotation 'x': expected KEY=VALUE"),
        ("=x", "--annotation '=x': expected KEY=VALUE"),
        ("", "--annotation '': expected KEY=VALUE"),
        (
            "org.opencontainers.image.version=2",
            "--annotation 'org.opencontainers.image.version=2': that is what --version says",
        ),
        ("a=\udcff", "--annotation 'a=\\udcff': has characters that cannot be shown"),
    ],
)
def test_annotations_that_are_none_are_refused(layout: Layout, annotation: str, reason: str) -> None:
    assert assert_refused(layout.publish("0.1.1", "--annotation", annotation), code=2) == reason


@pytest.mark.parametrize("epoch", ["x", "1.5", "9" * 30])
def test_a_source_date_epoch_that_is_none_is_refused(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert assert_refused(layout.publish(), code=2).startswith(f"SOURCE_DATE_EPOCH '{epoch}'")


def test_an_empty_firmware_is_refused(layout: Layout) -> None:
    layout.file.write_bytes(b"")
    reason = "a firmware of 0 bytes cannot be sent: from 1 to 4294967295 can"
    assert assert_refused(layout.publish()) == reason
    assert assert_refused(layout.publish("0.1.1", "--pad-to", "32")) == reason


@pytest.mark.parametrize(("size", "options"), [(2**32, []), (2**32 - 1, ["--pad-to", "2"])])
def test_a_firmware_that_is_too_large_is_refused_before_it_is_copied(
    layout: Layout, size: int, options: Sequence[str]
) -> None:
    os.truncate(layout.file, size)  # a sparse file
    reason = "a firmware of 4294967296 bytes cannot be sent: from 1 to 4294967295 can"
    assert assert_refused(layout.publish("0.1.1", *options)) == reason
    assert not layout.folder.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "index.json").write_text("{}"),
        lambda folder: (folder / "index.json").write_text('{"name": "a web site"}'),
        lambda folder: (folder / "index.json").write_text("no JSON"),
        lambda folder: (folder / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}'),
    ],
)
@pytest.mark.parametrize("options", [[], ["--force"], ["--latest"]])
def test_what_is_no_layout_is_left_as_it_is(
    layout: Layout, spoil: Callable[[Path], object], options: Sequence[str]
) -> None:
    layout.folder.mkdir()
    spoil(layout.folder)
    before = {path.name: path.read_bytes() for path in layout.folder.iterdir()}
    assert_refused(layout.publish("0.1.1", *options))
    for name, content in before.items():
        assert (layout.folder / name).read_bytes() == content


def test_an_index_whose_marker_was_lost_keeps_its_tags(layout: Layout) -> None:
    layout.publish("0.1.1")
    (layout.folder / "oci-layout").unlink()
    assert layout.publish("0.1.2").exit_code == 0
    assert set(layout.tags()) == {"0.1.1", "0.1.2"}


def test_a_folder_that_cannot_be_made_is_refused(layout: Layout) -> None:
    refusal = assert_refused(layout.publish(reference=f"oci-layout:{layout.file}/below:1"))
    assert refusal == f"{layout.file}/below/blobs/sha256: Not a directory"


def test_a_folder_that_vanished_is_told_in_plain_words(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = layout.folder.with_name("gone")
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert assert_refused(layout.publish(reference="oci-layout:pump:1")) == "No such file or directory"


def test_a_version_that_is_no_tag_needs_one_beside_it(layout: Layout) -> None:
    reference = f"oci-layout:{layout.folder}"
    assert "name one, e.g." in assert_refused(layout.publish("1.0+5", reference=reference), code=2)
    assert not layout.folder.exists()
    assert layout.publish("1.0+5", reference=f"{reference}:five").exit_code == 0
    assert set(layout.tags()) == {"five"}


def test_a_folder_that_no_reference_can_name_is_warned_of(layout: Layout) -> None:
    result = layout.publish("0.1.1", reference=f"oci-layout:{layout.folder.parent / 'Pump'}:0.1.1")
    assert result.exit_code == 0
    assert "'Pump', is none that a reference can have" in result.stderr


def test_a_version_whose_bytes_change_is_warned_of(layout: Layout) -> None:
    layout.publish("0.1.1")
    reference = f"oci-layout:{layout.folder}:latest"
    assert layout.publish("0.1.1", reference=reference).stderr == ""
    layout.file.write_bytes(b"other bytes!")
    result = layout.publish("0.1.1", reference=reference)
    assert result.exit_code == 0
    assert "version 0.1.1 had other bytes, at the tag 0.1.1;" in result.stderr
    assert "at the tag latest;" in result.stderr


def test_a_refused_firmware_is_not_stored(layout: Layout) -> None:
    layout.publish("0.1.1")
    before = sorted(layout.folder.rglob("*"))
    layout.file.write_bytes(b"other bytes!".ljust(32))
    assert_refused(layout.publish("0.1.1"))
    assert sorted(layout.folder.rglob("*")) == before


def test_a_firmware_can_come_out_of_a_pipe(layout: Layout) -> None:
    content = layout.file.read_bytes()
    command = [sys.executable, "-m", "fleet_fn", "publish", "-", f"oci-layout:{layout.folder}:1", "--version", "1"]
    ended = subprocess.run(command, input=content, capture_output=True, check=True)
    assert hashlib.sha256(content).hexdigest() in ended.stdout.decode()


def test_a_file_that_is_not_there_is_a_mistake_in_the_command(layout: Layout) -> None:
    layout.file.unlink()
    result = layout.publish()
    assert result.exit_code == 2
    assert "No such file or directory" in result.stderr


# --- Inspecting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "reason", "code"),
    [
        ("pump:1", "'pump:1': expected HOST/NAME:TAG or oci-layout:DIR:TAG", 2),
        ("oci-layout:{}:0.1.2", "no tag 0.1.2 in the layout pump", 1),
        ("oci-layout:{}:latest", "no tag latest in the layout pump", 1),
        ("oci-layout:{}@sha256:0", "invalid reference 'oci-layout:{}@sha256:0': not a sha256 digest after the @", 2),
        ("oci-layout:{}:", "'oci-layout:{}:': expected oci-layout:DIR:TAG", 2),
    ],
)
def test_what_is_not_there_is_told_in_one_line(layout: Layout, reference: str, reason: str, code: int) -> None:
    layout.publish()
    result = layout.run("inspect", reference.format(layout.folder))
    assert assert_refused(result, "inspect", code) == reason.format(layout.folder)


def test_a_layout_that_is_not_there_is_told_with_its_path(layout: Layout) -> None:
    result = layout.run("inspect", f"oci-layout:{layout.folder}-not:1")
    assert assert_refused(result, "inspect") == (
        f"no image layout pump-not in {layout.folder.parent}/: publish one there, or correct the folder"
    )


def test_a_firmware_of_other_bytes_is_told(layout: Layout) -> None:
    layout.publish()
    (layout.folder / "blobs" / "sha256" / SHA256).write_bytes(CONTENT[::-1])
    result = layout.run("inspect", f"oci-layout:{layout.folder}:0.1.1")
    assert assert_refused(result, "inspect") == "digest mismatch: the bytes have another SHA-256 than they should"


def test_both_run_as_processes(layout: Layout) -> None:
    reference = f"oci-layout:{layout.folder}:0.1.1"
    for arguments in (["publish", str(layout.file), reference, "--version", "0.1.1"], ["inspect", reference]):
        process = subprocess.run([sys.executable, "-m", "fleet_fn", *arguments], capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "")
        assert SHA256 in process.stdout
    process = subprocess.run(
        [sys.executable, "-m", "fleet_fn", "inspect", f"{reference}2"], capture_output=True, text=True
    )
    assert process.returncode == 1
    assert process.stderr == "inspect: no tag 0.1.12 in the layout pump\n"
    assert process.stdout == ""


# --- Listing ----------------------------------------------------------------------------------------------------------


def table(result: Result) -> list[list[str]]:
    """The words of each row below the header of a list of tags."""
    assert result.exit_code == 0, result.stderr
    told = result.stdout.splitlines()
    (header,) = [number for number, line in enumerate(told) if line.split() == ["TAG", "VERSION", "SIZE", "DIGEST"]]
    return [line.split() for line in told[header + 1 :]]


def test_a_bare_name_lists_the_versions(layout: Layout) -> None:
    for version, options in (("1.9.0", []), ("1.10.0-rc1", []), ("1.10.0", ["--latest"])):
        layout.file.write_bytes(CONTENT + version.encode().ljust(32))
        layout.publish(version, *options)
    result = layout.run("inspect", f"oci-layout:{layout.folder}")
    tags = layout.tags()
    assert lines(result)["version"] == "1.10.0"
    assert lines(result)["sha256"].endswith(" (verified)")
    assert table(result) == [
        ["latest", "1.10.0", "1056", tags["latest"]],
        ["1.10.0", "1.10.0", "1056", tags["1.10.0"]],
        ["1.10.0-rc1", "1.10.0-rc1", "1056", tags["1.10.0-rc1"]],
        ["1.9.0", "1.9.0", "1056", tags["1.9.0"]],
    ]
    assert result.stderr == ""


def test_a_tag_is_not_listed_with_the_others(layout: Layout) -> None:
    layout.publish("0.1.1", "--latest")
    assert "TAG" not in layout.run("inspect", f"oci-layout:{layout.folder}:latest").stdout


def test_a_list_without_latest_warns_of_that(layout: Layout) -> None:
    layout.publish("0.1.1")
    result = layout.run("inspect", f"oci-layout:{layout.folder}")
    assert [tag for tag, *_ in table(result)] == ["0.1.1"]
    assert result.stderr == "warning: no tag latest in pump: a device whose image names no tag finds nothing\n"


def test_a_list_tells_what_no_device_could_be_sent(layout: Layout) -> None:
    image = ImageLayout(layout.folder)
    images = {"linux/arm64": image.labelled_image(CONTENT), "linux/arm": image.labelled_image(CONTENT * 2)}
    image.tag(image.labelled_image(CONTENT, "0.1.0"), "labelled")
    image.tag(image.index(images), "all")
    layout.publish("0.1.1", "--latest")
    rows = {tag: rest for tag, *rest in table(layout.run("inspect", f"oci-layout:{layout.folder}"))}
    assert rows["labelled"][:2] == ["0.1.0", "1024"]
    assert rows["all"][:2] == ["-", "-"]
    assert "linux/arm64" in " ".join(rows["all"])


def test_a_long_list_is_cut(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_fn.cli.tag_list.MAX_TAGS", 2)
    for version in ("0.1.1", "0.1.2", "0.1.3"):
        layout.publish(version, "--latest", "--force")
    rows = table(layout.run("inspect", f"oci-layout:{layout.folder}"))
    assert [row[0] for row in rows[:2]] == ["latest", "0.1.3"]
    assert rows[2:] == [["and", "2", "more"]]


# --- Hardware, requirements and origin --------------------------------------------------------------------------------


def test_the_manifest_tells_hardware_requirements_and_origin(layout: Layout) -> None:
    options = ["--hardware", "rev-a, rev-b", "--hardware", "rev-c", "--hardware", "rev-a", "--requires", ">=1.4 <2"]
    origin = ["--revision", "4f9c2d1", "--source", "https://git.example/acme/pump"]
    result = layout.publish("2.0.0", *options, *origin)
    assert layout.manifest("2.0.0")["annotations"] == {
        "io.drogue.firmware.hardware": "rev-a,rev-b,rev-c",
        "io.drogue.firmware.requires": ">=1.4 <2",
        "org.opencontainers.image.created": "2026-11-23T06:00:00+00:00",
        "org.opencontainers.image.revision": "4f9c2d1",
        "org.opencontainers.image.source": "https://git.example/acme/pump",
        "org.opencontainers.image.version": "2.0.0",
    }
    told = lines(result)
    assert (told["revision"], told["source"]) == ("4f9c2d1", "https://git.example/acme/pump")


def test_the_same_options_in_any_order_give_the_same_digest(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    first = lines(layout.publish("1", "--annotation", "a=1", "--annotation", "b=2", "--requires", "*"))["digest"]
    assert "org.opencontainers.image.created" not in layout.manifest("1")["annotations"]
    again = layout.publish("1", "--annotation", "b=2", "--requires", "*", "--annotation", "a=1")
    assert lines(again)["digest"] == first
    assert lines(layout.publish("1", "--force"))["digest"] != first


def test_git_tells_the_origin_unless_an_option_does(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = Checkout("4f9c2d1-dirty", 1_790_000_000, None)
    monkeypatch.setattr("fleet_fn.cli.publish_annotations.find_checkout", lambda _: checkout)
    created = "org.opencontainers.image.created"
    assert lines(layout.publish("1"))["revision"] == "4f9c2d1-dirty"
    assert layout.manifest("1")["annotations"][created] == "2026-11-23T06:00:00+00:00"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    layout.publish("2")
    assert layout.manifest("2")["annotations"][created] == "2026-09-21T14:13:20+00:00"
    for option in (
        ("--source", "https://git.example/pump"),
        ("--annotation", "org.opencontainers.image.source=https://git.example/pump"),
    ):
        told = lines(layout.publish("3", *option))
        assert told["source"] == "https://git.example/pump"
        assert "revision" not in told
    assert created not in layout.manifest("3")["annotations"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--hardware", "rev-a,,rev-b"), "--hardware '' is empty, or has characters that cannot be shown"),
        (("--hardware", ""), "--hardware '' is empty, or has characters that cannot be shown"),
        (("--hardware", "a\tb"), "--hardware 'a\\tb' is empty, or has characters that cannot be shown"),
        (("--requires", ""), "--requires '': it "),
        (("--requires", "newest"), "--requires 'newest': it contains"),
        (("--revision", ""), "--revision '' is empty, or has characters that cannot be shown"),
        (("--source", "https://jane:s3cret@git.example/"), "--source: the URL has a user name or a password in it"),
        (("--source", "https://ghp_s3cret@git.example/"), "--source: the URL has a user name or a password in it"),
        (("--source", "ssh://git:s3cret@git.example/"), "--source: the URL has a user name or a password in it"),
        (("--source", "https://[s3cret"), "--source: is no URL"),
        (("--annotation", "io.drogue.firmware.hardware=x"), "--annotation 'io.drogue.firmware.hardware=x': that is"),
        (("--annotation", "io.drogue.firmware.requires=x"), "--annotation 'io.drogue.firmware.requires=x': that is"),
    ],
)
def test_malformed_hardware_requirements_and_origin_are_refused(
    layout: Layout, options: tuple[str, str], reason: str
) -> None:
    refusal = assert_refused(layout.publish("1", *options), code=2)
    assert refusal.startswith(reason)
    assert "s3cret" not in refusal
    assert not layout.folder.exists()


def test_firmware_from_standard_input_has_no_origin(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet_fn.cli.publish_annotations.find_checkout", lambda _: pytest.fail("asked git"))
    reference = f"oci-layout:{layout.folder}:1"
    result = CliRunner().invoke(main, ["publish", "-", reference, "--version", "1"], input=CONTENT)
    assert result.exit_code == 0


# --- Signatures and SBOMs ---------------------------------------------------------------------------------------------


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem())
    return path


def private_pem(password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return PRIVATE_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


PRIVATE_KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC_KEY = PRIVATE_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def attached(layout: Layout, digest: str) -> tuple[dict[str, Any], bytes]:
    """The manifest of an attachment, and its document."""
    manifest = json.loads(layout.blob(digest))
    return manifest, layout.blob(manifest["layers"][0]["digest"])


def test_a_signature_is_attached(layout: Layout, key: Path) -> None:
    told = lines(layout.publish("1", "--sign-key", str(key)))
    manifest, bundle = attached(layout, told["signature"])
    assert manifest["subject"]["digest"] == told["digest"]
    (public,) = read_keys(PUBLIC_KEY, "it", "it")
    assert check_bundle(bundle, told["digest"], [public]) == public
    assert lines(layout.publish("1", "--sign-key", str(key))) == told
    assert [entry["digest"] for entry in layout.index()["manifests"]].count(told["signature"]) == 1


def test_a_signature_does_not_change_the_digest(layout: Layout, key: Path) -> None:
    unsigned = lines(layout.publish("1"))
    assert "signature" not in unsigned
    assert lines(layout.publish("1", "--sign-key", str(key)))["digest"] == unsigned["digest"]


def test_the_password_of_a_key_comes_from_the_environment(
    layout: Layout, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key.write_bytes(private_pem(b"s3cret"))
    refusal = assert_refused(layout.publish("1", "--sign-key", str(key)), code=2)
    assert refusal == f"{key}: the key is encrypted; set FIRMWARE_SIGN_KEY_PASSWORD to its password"
    monkeypatch.setenv("FIRMWARE_SIGN_KEY_PASSWORD", "not-it")
    refusal = assert_refused(layout.publish("1", "--sign-key", str(key)), code=2)
    assert refusal == f"{key}: no private key (PEM), or FIRMWARE_SIGN_KEY_PASSWORD is not its password"
    assert not layout.folder.exists()
    monkeypatch.setenv("FIRMWARE_SIGN_KEY_PASSWORD", "s3cret")
    assert "signature" in lines(layout.publish("1", "--sign-key", str(key)))


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        ({"bomFormat": "CycloneDX", "specVersion": "1.6"}, "application/vnd.cyclonedx+json"),
        ({"spdxVersion": "SPDX-2.3"}, "application/spdx+json"),
    ],
)
def test_an_sbom_is_attached(layout: Layout, document: dict[str, str], media_type: str) -> None:
    file = layout.file.with_name("sbom.json")
    file.write_text(json.dumps(document))
    told = lines(layout.publish("1", "--sbom", str(file)))
    manifest, content = attached(layout, told["sbom"])
    assert content == file.read_bytes()
    assert manifest["subject"]["digest"] == told["digest"]
    (layer,) = manifest["layers"]
    assert manifest["artifactType"] == layer["mediaType"] == media_type
    assert layer["annotations"] == {"org.opencontainers.image.title": "sbom.json"}


def test_what_is_no_sbom_and_no_key_is_refused(layout: Layout) -> None:
    for option, reason in (
        ("--sbom", "neither an SPDX nor a CycloneDX document"),
        ("--sign-key", "no private key (PEM)"),
    ):
        assert assert_refused(layout.publish("1", option, str(layout.file)), code=2) == f"{layout.file}: {reason}"
        missing = layout.publish("1", option, f"{layout.file}.missing")
        assert missing.exit_code == 2
        assert "does not exist" in missing.stderr
    assert not layout.folder.exists()


# --- Who published it


def test_publisher_is_recorded_and_shown(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROGUE_USER", "jane")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1795413600")
    first = lines(layout.publish("1"))["digest"]
    assert layout.inspect(":1")["authors"] == "jane"
    assert lines(layout.publish("1"))["digest"] == first
    monkeypatch.setenv("DROGUE_USER", "joe")
    assert lines(layout.publish("1"))["digest"] != first
    assert layout.inspect(":1")["authors"] == "joe"


def test_nothing_is_recorded_without_a_user(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for user in (None, ""):
        monkeypatch.setenv("DROGUE_USER", user or "")
        if user is None:
            monkeypatch.delenv("DROGUE_USER")
        assert layout.publish("1", "--force").exit_code == 0
        assert "authors" not in layout.inspect(":1")


def test_annotation_wins_over_the_user(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROGUE_USER", "jane")
    assert layout.publish("1", "--annotation", "org.opencontainers.image.authors=the pump team").exit_code == 0
    assert layout.inspect(":1")["authors"] == "the pump team"


def test_user_that_cannot_be_shown_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROGUE_USER", "jane\n")
    result = layout.publish("1")
    assert result.exit_code == 2
    assert "DROGUE_USER 'jane\\n': has characters that cannot be shown" in result.stderr
