"""The file store reads two files for each firmware, and no file outside its folder."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.file_store import FileStore, file_reference
from fleet_fn.firmware.store import Firmware
from fleet_fn.firmware.verified import VerifiedFiles
from tests.support.files import later
from tests.support.firmware import read_all

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "firmware"
    folder.mkdir()
    put(folder, "pump", "1.2.3", CONTENT)
    return folder


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(folder, VerifiedFiles(SingleFlight(), later))


def put(folder: Path, name: str, version: str, content: bytes) -> None:
    (folder / f"{name}.bin").write_bytes(content)
    metadata = {"version": version, "size": len(content), "checksum": hashlib.sha256(content).hexdigest()}
    (folder / f"{name}.json").write_text(json.dumps(metadata))


def find(store: FileStore, name: str = "pump") -> Firmware:
    return store.resolve(file_reference(name), Deadline(10))


def reason(store: FileStore, name: str = "pump") -> str:
    with pytest.raises(PermanentError) as caught:
        read_all(find(store, name))
    return caught.value.reason


@pytest.mark.parametrize("name", ["pump", "Pump v2 (north)", "pümpe", ".hidden", "a..b", "x" * 250])
def test_a_firmware_is_what_its_description_says(store: FileStore, folder: Path, name: str) -> None:
    put(folder, name, "4.5.6", CONTENT[::-1])
    firmware = find(store, name)
    assert (firmware.shape, firmware.version, firmware.size) == ("file", "4.5.6", len(CONTENT))
    assert read_all(firmware) == CONTENT[::-1]


def test_a_firmware_that_is_replaced_is_the_new_one(store: FileStore, folder: Path) -> None:
    assert read_all(find(store)) == CONTENT
    put(folder, "pump", "2", b"other")
    assert (find(store).version, read_all(find(store))) == ("2", b"other")


@pytest.mark.parametrize("name", ["", ".", "..", "../firmware/pump", "a/b", "/etc/passwd", "a\0b", "a\nb", "x" * 251])
def test_a_name_is_one_component_of_a_path(name: str) -> None:
    with pytest.raises(PermanentError, match=r"^invalid file name '"):
        file_reference(name)


@given(st.text())
def test_no_name_leads_out_of_a_folder(name: str) -> None:
    try:
        file_reference(name)
    except PermanentError as error:
        assert error.reason.isprintable()
        return
    assert os.path.normpath(f"/folder/{name}.bin") == f"/folder/{name}.bin"


@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_missing_file_is_named(store: FileStore, folder: Path, suffix: str) -> None:
    firmware = find(store)
    (folder / f"pump.{suffix}").unlink()
    assert reason(store) == f"no file pump.{suffix} in FIRMWARE_DIR"
    if suffix == "bin":
        with pytest.raises(PermanentError, match=r"^no file pump\.bin"):
            read_all(firmware)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "pump.json: not JSON"),
        (b"[]", "pump.json is not a JSON object"),
        (b"{}", "pump.json has no version"),
        (b'{"version": "1", "size": 1}', "pump.json has no checksum that is a SHA-256 in hexadecimal"),
        (
            b'{"version": "1", "size": 1024, "checksum": "sha512:%s"}' % (b"0" * 128),
            "pump.json has a checksum with 'sha512' before the colon: only sha256 is taken",
        ),
        (
            b'{"version": "1", "size": 1024, "checksum": "sha256:%s"}' % (b"0" * 62),
            "pump.json has no checksum that is a SHA-256 in hexadecimal",
        ),
        (b'{"version": "1", "size": 1024, "checksum": "sha256:%s"}' % (b"0" * 64), "digest mismatch: "),
        (b" " * 65537, "pump.json is larger than 65536 bytes"),
        (b'{"version": "1", "size": 0, "checksum": "%s"}' % (b"0" * 64), "a firmware of 0 bytes: from 1 to "),
        (b'{"version": "1", "size": 1024, "checksum": "%s"}' % (b"0" * 64), "digest mismatch: "),
        (b'{"version": "1", "size": 1025, "checksum": "%s"}' % (b"0" * 64), "size mismatch: 1024 bytes, expected"),
    ],
)
def test_a_description_that_is_malformed_or_wrong_fails(
    store: FileStore, folder: Path, content: bytes, told: str
) -> None:
    (folder / "pump.json").write_bytes(content)
    assert reason(store).startswith(told)


def test_a_checksum_may_name_its_algorithm(store: FileStore, folder: Path) -> None:
    described = json.loads((folder / "pump.json").read_text())
    described["checksum"] = f"sha256:{described['checksum']}"
    (folder / "pump.json").write_text(json.dumps(described))
    assert read_all(find(store)) == CONTENT


@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_a_link_within_the_folder_is_followed_as_volumes_need_it(store: FileStore, folder: Path, suffix: str) -> None:
    (folder / "..data").mkdir()
    (folder / f"pump.{suffix}").rename(folder / "..data" / f"pump.{suffix}")
    (folder / f"pump.{suffix}").symlink_to(Path("..data", f"pump.{suffix}"))
    assert read_all(find(store)) == CONTENT


@pytest.mark.parametrize("suffix", ["json", "bin"])
@pytest.mark.parametrize("target", ["../outside", "{}/outside"])
def test_a_link_out_of_the_folder_is_refused(store: FileStore, folder: Path, suffix: str, target: str) -> None:
    file = folder / f"pump.{suffix}"
    file.rename(folder.parent / "outside")
    file.symlink_to(target.format(folder.parent))
    assert reason(store) == f"pump.{suffix} is a link out of FIRMWARE_DIR"


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    assert read_all(find(FileStore(link, VerifiedFiles(SingleFlight())))) == CONTENT


@pytest.mark.parametrize(
    ("become", "told"),
    [
        (lambda path: path.mkdir(), "is a directory|not a regular file"),
        (os.mkfifo, "not JSON|not a regular file"),
        (lambda path: path.symlink_to(path.name), "loop of links|no file pump|Too many levels"),
        (lambda path: path.symlink_to("nowhere"), "no file pump"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "bin"])
@pytest.mark.timeout(20)
def test_path_that_is_no_regular_file_fails(
    store: FileStore, folder: Path, suffix: str, become: Callable[[Path], object], told: str
) -> None:
    path = folder / f"pump.{suffix}"
    path.unlink()
    become(path)
    with pytest.raises(PermanentError, match=rf"(?i){told}"):
        read_all(find(store))


def test_missing_folder_is_named(store: FileStore, folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    assert reason(store) == "FIRMWARE_DIR: No such file or directory"
