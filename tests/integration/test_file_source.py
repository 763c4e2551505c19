"""Firmware in a folder of the function's: `spec.firmware.file`."""

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.files import become_fifo
from tests.support.firmware import random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.images import metadata
from tests.support.signer import Signer
from tests.support.statuses import begin, blocks, in_sync, midway, post, told, update


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "firmware"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def function(environment: dict[str, str], folder: Path) -> Iterator[Function]:
    with running({**environment, "FIRMWARE_REGISTRY": "", "FIRMWARE_DIR": str(folder)}) as function:
        yield function


def put(folder: Path, name: str, version: str = "1", **described: object) -> bytes:
    """Puts a firmware into the folder, and describes it, truly unless told otherwise."""
    content = random_bytes(3000, (name, version))
    (folder / f"{name}.bin").write_bytes(content)
    (folder / f"{name}.json").write_text(metadata(content, version, **described))
    return content


def desire(drogue: Drogue, device: str, name: object) -> None:
    drogue.put("example", device, spec={"firmware": {"file": {"name": name}}})


def failed(answer: Answer) -> str:
    assert (answer.status, answer.json["outcome"]) == (422, "failed"), answer.body
    return answer.reason


def test_a_device_goes_through_a_whole_update(function: Function, drogue: Drogue, folder: Path, device: str) -> None:
    content = put(folder, device, "0.2.0")
    desire(drogue, device, device)
    assert update(function, drogue, device) == ("0.2.0", content)
    assert told(drogue, device)[-1][1][2].hex() == json.loads((folder / f"{device}.json").read_text())["checksum"]
    assert post(function, device, in_sync("0.2.0")).outcome == "sync"


def test_the_application_names_the_file_of_devices_that_name_none(
    function: Function, drogue: Drogue, folder: Path, device: str
) -> None:
    put(folder, device)
    drogue.put(device, spec={"firmware": {"file": {"name": device}}})
    drogue.put(device, "thing", spec={})
    assert function.post(event("thing", device), b'{"version": "0"}').outcome.startswith("write")


def test_another_firmware_of_the_name_takes_over_midway(
    function: Function, drogue: Drogue, folder: Path, device: str
) -> None:
    put(folder, device, "1")
    desire(drogue, device, device)
    begin(function, device)
    assert post(function, device, midway("1", 512)).outcome.startswith('write; version="1"; offset=512')
    content = put(folder, device, "2")
    assert post(function, device, midway("1", 1024)).outcome.startswith('write; version="2"; offset=0')
    assert blocks(drogue, device)[-1] == (0, content[:512])


def test_a_checksum_may_name_its_algorithm(function: Function, drogue: Drogue, folder: Path, device: str) -> None:
    content = put(folder, device, "1")
    put(folder, device, "1", checksum=f"sha256:{hashlib.sha256(content).hexdigest()}")
    desire(drogue, device, device)
    assert update(function, drogue, device) == ("1", content)


@pytest.mark.parametrize("container", [{"image": "pump:1"}, {"image": "pump", "version": "1.x"}])
def test_a_container_fails_without_a_registry(
    function: Function, drogue: Drogue, device: str, container: dict[str, str]
) -> None:
    drogue.put("example", device, spec={"firmware": {"container": container}})
    reason = failed(post(function, device, in_sync("1")))
    assert reason == "FIRMWARE_REGISTRY is not set, so there are no container images: set it, or name a file"


@pytest.mark.parametrize("missing", ["json", "bin"])
def test_a_file_that_is_not_there_fails(
    function: Function, drogue: Drogue, folder: Path, device: str, missing: str
) -> None:
    put(folder, device)
    (folder / f"{device}.{missing}").unlink()
    desire(drogue, device, device)
    assert failed(post(function, device)) == f"no file {device}.{missing} in FIRMWARE_DIR"
    assert told(drogue, device) == [("wait", {0: None, 1: 300})]


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no version"),
        ('{"version": "1", "version": "2"}', "a key stands twice"),
        ('{"version": 1, "size": 3000, "checksum": "CHECKSUM"}', "has no version"),
        ('{"version": "", "size": 3000, "checksum": "CHECKSUM"}', "has no version"),
        ('{"version": "1", "size": "3000", "checksum": "CHECKSUM"}', "has no size"),
        ('{"version": "1", "size": -1, "checksum": "CHECKSUM"}', "has no size"),
        ('{"version": "1", "size": true, "checksum": "CHECKSUM"}', "has no size"),
        ('{"version": "1", "size": 3e3, "checksum": "CHECKSUM"}', "has no size"),
        ('{"version": "1", "size": 3000, "checksum": "md5:CHECKSUM"}', "has a checksum with 'md5' before the colon"),
        ('{"version": "1", "size": 3000, "checksum": ""}', "has no checksum"),
        ('{"version": "1", "size": 3000}', "has no checksum"),
        ('{"version": "1", "size": 0, "checksum": "CHECKSUM"}', "a firmware of 0 bytes"),
        ('{"version": "1", "size": 4294967296, "checksum": "CHECKSUM"}', "a firmware of 4294967296 bytes"),
        ('{"version": "1", "size": 2999, "checksum": "CHECKSUM"}', "size mismatch"),
        ('{"version": "1", "size": 3001, "checksum": "CHECKSUM"}', "size mismatch"),
        ('{"version": "1", "size": 3000, "checksum": "' + "0" * 64 + '"}', "digest mismatch"),
        (" " * 70_000, "is larger than 65536 bytes"),
    ],
)
def test_a_description_that_is_malformed_or_not_true_fails(
    function: Function, drogue: Drogue, folder: Path, device: str, description: str, reason: str
) -> None:
    put(folder, device)
    path = folder / f"{device}.json"
    path.write_text(description.replace("CHECKSUM", json.loads(path.read_text())["checksum"]))
    desire(drogue, device, device)
    assert reason in failed(post(function, device))
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]


def test_a_checksum_may_be_written_in_capitals(function: Function, drogue: Drogue, folder: Path, device: str) -> None:
    content = put(folder, device)
    put(folder, device, checksum=hashlib.sha256(content).hexdigest().upper())
    desire(drogue, device, device)
    assert post(function, device).outcome.startswith("write")


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".", "/etc/passwd", "x/y", "./x", "x/", "x\0y", "x\ny", "a" * 300, "ä" * 200]
)
def test_a_name_that_is_not_one_component_of_a_path_fails(
    function: Function, drogue: Drogue, folder: Path, device: str, name: str
) -> None:
    put(folder.parent, "outside")
    desire(drogue, device, name)
    assert failed(post(function, device)).startswith("invalid file name")


@pytest.mark.parametrize("name", ["gerät 7", "日本", "a.b", "-x", "x?y#z%2f", "X"])
def test_any_other_name_will_do(function: Function, drogue: Drogue, folder: Path, device: str, name: str) -> None:
    content = put(folder, name)
    desire(drogue, device, name)
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, content[:512])]


@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_a_link_out_of_the_folder_is_refused(
    function: Function, drogue: Drogue, folder: Path, device: str, suffix: str
) -> None:
    put(folder, device)
    put(folder.parent, device)
    path = folder / f"{device}.{suffix}"
    path.unlink()
    path.symlink_to(folder.parent / path.name)
    desire(drogue, device, device)
    assert failed(post(function, device)) == f"{path.name} is a link out of FIRMWARE_DIR"


def test_a_link_within_the_folder_is_followed(function: Function, drogue: Drogue, folder: Path, device: str) -> None:
    (folder / "releases").mkdir(exist_ok=True)
    content = put(folder / "releases", f"{device}-1.0")
    for suffix in ("json", "bin"):
        (folder / f"{device}.{suffix}").symlink_to(f"releases/{device}-1.0.{suffix}")
    desire(drogue, device, device)
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, content[:512])]


def in_a_circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("turn_into", [in_a_circle, a_folder, become_fifo])
@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_what_is_no_file_fails(
    function: Function, drogue: Drogue, folder: Path, device: str, suffix: str, turn_into: Callable[[Path], None]
) -> None:
    put(folder, device)
    turn_into(folder / f"{device}.{suffix}")
    desire(drogue, device, device)
    assert failed(post(function, device))
    assert not blocks(drogue, device)


def test_a_file_that_changes_while_it_is_served_is_not_served(
    function: Function, drogue: Drogue, folder: Path, device: str
) -> None:
    content = put(folder, device)
    desire(drogue, device, device)
    begin(function, device)
    path = folder / f"{device}.bin"
    times = path.stat()
    path.write_bytes(b"x" * 3000)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    answer = post(function, device, midway("1", 512))
    assert failed(answer) == "digest mismatch: the bytes have another SHA-256 than they should"
    path.write_bytes(content)
    assert post(function, device, midway("1", 512)).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, content[:512]), (512, content[512:1024])]


def test_a_folder_that_is_not_there_fails(
    drogue: Drogue, environment: dict[str, str], tmp_path: Path, device: str
) -> None:
    desire(drogue, device, "x")
    folder = tmp_path / "firmware"
    folder.mkdir()
    with running(environment | {"FIRMWARE_DIR": str(folder)}) as function:
        assert function.request("GET", "/readyz").status == 200
        folder.rmdir()
        assert failed(post(function, device)) == "FIRMWARE_DIR: No such file or directory"
        folder.mkdir()
        put(folder, "y")
        desire(drogue, device, "y")
        function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
        assert post(function, device).outcome.startswith("write")


# --- Signatures -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture(scope="module")
def careful(
    environment: dict[str, str], folder: Path, signer: Signer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    """A function that serves only what is signed."""
    key = tmp_path_factory.mktemp("keys") / "release.pub"
    key.write_bytes(signer.public)
    with running(environment | {"FIRMWARE_DIR": str(folder), "FIRMWARE_VERIFY_KEYS": str(key)}) as function:
        yield function


@pytest.mark.parametrize("of", ["json", "bin"])
@pytest.mark.parametrize("form", ["raw", "base64", "lines"])
def test_a_detached_signature_counts(
    careful: Function, drogue: Drogue, folder: Path, device: str, signer: Signer, of: str, form: str
) -> None:
    content = put(folder, device)
    signature = signer.sign((folder / f"{device}.{of}").read_bytes())
    # `base64` breaks lines after 76 characters; Windows ends them in its own way.
    text = base64.encodebytes(signature).replace(b"\n", b"\r\n") if form == "lines" else base64.b64encode(signature)
    (folder / f"{device}.sig").write_bytes(signature if form == "raw" else text + b"\n")
    desire(drogue, device, device)
    assert update(careful, drogue, device) == ("1", content)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no signature"),
        (b"", "signed by another key, or of other content"),
        (b"x" * 3000, "signature of more than 2048 bytes"),
        (b"{}", "bundle without a signature of a file"),
        (b"x" * 200_000, "is larger than 131072 bytes"),
    ],
)
def test_a_file_without_a_good_signature_is_not_served(
    careful: Function, drogue: Drogue, folder: Path, device: str, content: bytes | None, problem: str
) -> None:
    put(folder, device)
    if content is not None:
        (folder / f"{device}.sig").write_bytes(content)
    desire(drogue, device, device)
    reason = failed(post(careful, device))
    assert reason.startswith("not signed by a trusted key: ")
    assert problem in reason


def test_a_signature_of_another_description_does_not_count(
    careful: Function, drogue: Drogue, folder: Path, device: str, signer: Signer
) -> None:
    content = put(folder, device)
    (folder / f"{device}.sig").write_bytes(signer.sign((folder / f"{device}.json").read_bytes()))
    (folder / f"{device}.json").write_text(metadata(content, "99"))
    desire(drogue, device, device)
    assert "of other content" in failed(post(careful, device))


def test_a_signature_is_no_link_out_of_the_folder(
    careful: Function, drogue: Drogue, folder: Path, device: str, signer: Signer, tmp_path: Path
) -> None:
    put(folder, device)
    (tmp_path / "sig").write_bytes(signer.sign((folder / f"{device}.json").read_bytes()))
    (folder / f"{device}.sig").symlink_to(tmp_path / "sig")
    desire(drogue, device, device)
    assert "is a link out of FIRMWARE_DIR" in failed(post(careful, device))
