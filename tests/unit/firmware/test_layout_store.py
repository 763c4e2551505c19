"""The layout store finds firmware in image layouts, and says why a layout is malformed."""

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.layout_store import LayoutStore
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, NotReadyError
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.reference import parse_reference
from tests.support.files import become_fifo, later
from tests.support.firmware import Published, blob_path, publish, random_bytes, read_all

CONTENT = random_bytes(2048)
U32_MAX = 2**32 - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def published(folder: Path) -> Published:
    return publish(folder, "pump", "0.1.1", CONTENT)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory) -> LayoutStore:
    single_flight = SingleFlight()
    files = VerifiedFiles(single_flight, later)
    cache = Cache(tmp_path_factory.mktemp("cache"), 1024 * 1024, files, single_flight)
    return LayoutStore(files, Shapes(cache, single_flight))


def resolve(store: LayoutStore, folder: Path, reference: str) -> Firmware:
    return store.resolve(parse_reference(reference, f"{folder}/"), Deadline(10))


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "pump" / "index.json"
    index = json.loads(path.read_bytes())
    edit(index)
    path.write_text(json.dumps(index))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> str:
    """Puts a changed manifest into the layout in place of the only one; returns its digest."""
    index = json.loads((folder / "pump" / "index.json").read_bytes())
    blobs = folder / "pump" / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"].removeprefix("sha256:")).read_bytes())
    edit(manifest)
    content = json.dumps(manifest).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    edit_index(folder, lambda i: i["manifests"][0].update(digest=f"sha256:{digest}", size=len(content)))
    return f"sha256:{digest}"


# --- Found ------------------------------------------------------------------------------------------------------------


def test_a_tag_leads_to_the_firmware(folder: Path, store: LayoutStore, published: Published) -> None:
    firmware = resolve(store, folder, "pump:0.1.1")
    assert (firmware.version, firmware.size, firmware.checksum) == ("0.1.1", 2048, published.checksum)
    assert (firmware.shape, firmware.manifest) == ("artifact", published.digest)
    assert read_all(firmware) == CONTENT


def test_manifest_is_found_by_digest_without_a_tag(folder: Path, store: LayoutStore, published: Published) -> None:
    publish(folder, "pump", "0.1.2", b"newer", tag="0.1.1")
    assert resolve(store, folder, "pump:0.1.1").version == "0.1.2"
    assert resolve(store, folder, f"pump@{published.digest}").version == "0.1.1"
    assert resolve(store, folder, f"pump:0.1.1@{published.digest}").size == 2048


def test_without_a_tag_it_is_latest(folder: Path, store: LayoutStore, published: Published) -> None:
    with pytest.raises(PermanentError, match=r"^no tag latest in the layout pump$"):
        resolve(store, folder, "pump")
    publish(folder, "pump", "0.1.2", b"newer", tag="latest")
    assert resolve(store, folder, "pump").version == "0.1.2"
    assert resolve(store, folder, "pump:0.1.1").checksum == published.checksum


def test_a_tag_that_moves_leads_elsewhere(folder: Path, store: LayoutStore, published: Published) -> None:
    assert resolve(store, folder, "pump:0.1.1").checksum == published.checksum
    moved = publish(folder, "pump", "0.1.1", b"other bytes")
    assert read_all(resolve(store, folder, "pump:0.1.1")) == moved.content


def test_layouts_may_lie_deeper(folder: Path, store: LayoutStore) -> None:
    publish(folder, "site/north/pump", "1", b"north")
    assert read_all(resolve(store, folder, "site/north/pump:1")) == b"north"


def test_several_entries_of_one_tag_and_one_digest_are_one(
    folder: Path, store: LayoutStore, published: Published
) -> None:
    edit_index(folder, lambda index: index["manifests"].append(index["manifests"][0]))
    assert resolve(store, folder, "pump:0.1.1").checksum == published.checksum


@pytest.mark.usefixtures("published")
def test_unsupported_entries_of_other_tags_are_ignored(folder: Path, store: LayoutStore) -> None:
    other = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:" + "0" * 64, "size": 5}
    edit_index(folder, lambda index: index["manifests"].insert(0, other))
    assert resolve(store, folder, "pump:0.1.1").version == "0.1.1"


@pytest.mark.usefixtures("published")
def test_the_largest_firmware_that_can_be_sent_is_taken(folder: Path, store: LayoutStore) -> None:
    edit_manifest(folder, lambda manifest: manifest["layers"][0].update(size=U32_MAX))
    assert resolve(store, folder, "pump:0.1.1").size == U32_MAX


def test_firmware_whose_verification_outlasts_the_deadline_is_not_here_yet(folder: Path, store: LayoutStore) -> None:
    publish(folder, "pump", "large", bytes(16 * 1024 * 1024))
    firmware = resolve(store, folder, "pump:large")
    with pytest.raises(NotReadyError, match=r"^verifying$"), firmware.open(Deadline(0)):
        pass
    assert read_all(firmware) == bytes(16 * 1024 * 1024)


# --- Missing and malformed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("other:0.1.1", "no image layout other"),
        ("pump/below:0.1.1", "no image layout below"),
        ("pump:0.1.2", "no tag 0.1.2 in the layout pump"),
        (f"pump@sha256:{'0' * 64}", f"no blobs/sha256/{'0' * 64} in the layout pump"),
    ],
)
@pytest.mark.usefixtures("published")
def test_missing_content_is_named(folder: Path, store: LayoutStore, reference: str, reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        resolve(store, folder, reference)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "^(no image layout pump|no index.json in the layout pump)$"),
        (b"", "^{}: not JSON"),
        (b"\xff", "^{}: text that is not UTF-8$"),
        (b"[]", "^{} is not a JSON object$"),
        (b"{}", "^(image layout of version None, not 1.0.0|index.json has no list of manifests)$"),
        (b'{"manifests": [], "manifests": []}', "^{}: a key stands twice"),
        (b" " * (4 * 1024 * 1024 + 1), "^{} in the layout pump is larger than 4194304 bytes$"),
    ],
)
@pytest.mark.usefixtures("published")
def test_a_layout_without_its_files_is_none(
    folder: Path, store: LayoutStore, name: str, content: bytes | None, reason: str
) -> None:
    path = folder / "pump" / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PermanentError, match=reason.format(name)):
        resolve(store, folder, "pump:0.1.1")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda i: i.update(manifests={}), "index.json has no list of manifests"),
        (lambda i: i.update(manifests=[5, {}, {"annotations": 5}]), "no tag 0.1.1 in the layout pump"),
        (lambda i: i["manifests"][0].pop("size"), "tag 0.1.1 has no media type, digest or size"),
        (
            lambda i: i["manifests"][0].update(digest="sha256:../../../../etc/passwd"),
            "tag 0.1.1 has a digest that is not a sha256",
        ),
        (lambda i: i["manifests"][0].update(annotations=None), "no tag 0.1.1 in the layout pump"),
        (
            lambda i: i["manifests"].append(i["manifests"][0] | {"digest": "sha256:" + "0" * 64}),
            "tag 0.1.1 names 2 manifests in the layout pump",
        ),
    ],
)
@pytest.mark.usefixtures("published")
def test_an_index_that_makes_no_sense_fails(
    folder: Path, store: LayoutStore, edit: Callable[[dict[str, Any]], object], reason: str
) -> None:
    edit_index(folder, edit)
    with pytest.raises(PermanentError) as caught:
        resolve(store, folder, "pump:0.1.1")
    assert caught.value.reason == reason


def test_entries_of_unknown_kinds_are_ignored(folder: Path, store: LayoutStore, published: Published) -> None:
    others = [5, {}, {"mediaType": "x", "digest": "sha512:0", "size": 1, "annotations": {"a": None}}]
    edit_index(folder, lambda index: index["manifests"].extend(others))
    for reference in ("pump:0.1.1", f"pump@{published.digest}"):
        assert resolve(store, folder, reference).checksum == published.checksum


@pytest.mark.parametrize("by_digest", [False, True], ids=["by tag", "by digest"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.unlink(), "no blobs/sha256/"),
        (lambda p: p.write_bytes(p.read_bytes().replace(b"0.1.1", b"9.9.9")), "has another digest than its name"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1]), "bytes, expected|has another digest than its name"),
        (
            lambda p: p.write_bytes(p.read_bytes() + b" "),
            "bytes, expected|has another digest than its name",
        ),
        (lambda p: p.write_bytes(b""), "has 0 bytes, expected|has another digest than its name"),
        (lambda p: p.write_bytes(bytes(4 * 1024 * 1024 + 1)), "is larger than 4194304 bytes"),
        (lambda p: (p.unlink(), p.mkdir()), "Is a directory"),
        (become_fifo, "has 0 bytes, expected|has another digest than its name"),
        (lambda p: (p.unlink(), p.symlink_to(p.name)), "Too many levels of symbolic links"),
    ],
)
@pytest.mark.timeout(20)
def test_a_damaged_manifest_fails(
    folder: Path,
    store: LayoutStore,
    published: Published,
    by_digest: bool,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    damage(folder / "pump" / "blobs" / "sha256" / published.digest.removeprefix("sha256:"))
    with pytest.raises(PermanentError, match=reason):
        resolve(store, folder, f"pump@{published.digest}" if by_digest else "pump:0.1.1")


def test_the_digest_of_the_firmware_is_none_of_a_manifest(
    folder: Path, store: LayoutStore, published: Published
) -> None:
    with pytest.raises(PermanentError, match=r"^manifest: "):
        resolve(store, folder, f"pump@sha256:{published.checksum.hex()}")


@pytest.mark.parametrize("size", [0, U32_MAX + 1, 2**64])
@pytest.mark.usefixtures("published")
def test_a_firmware_of_a_size_that_cannot_be_sent_fails_when_it_is_resolved(
    folder: Path, store: LayoutStore, size: int
) -> None:
    edit_manifest(folder, lambda manifest: manifest["layers"][0].update(size=size))
    with pytest.raises(PermanentError) as caught:
        resolve(store, folder, "pump:0.1.1")
    assert caught.value.reason == f"a firmware of {size} bytes: from 1 to 4294967295 can be sent"


# --- The firmware itself ----------------------------------------------------------------------------------------------


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("warm", [False, True], ids=["unseen", "verified before"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (corrupt, "digest mismatch"),
        (lambda p: p.write_bytes(CONTENT[:-4]), "size mismatch: 2044 bytes, expected 2048"),
        (lambda p: p.write_bytes(CONTENT + b"\xff" * 4), "size mismatch: 2052 bytes, expected 2048"),
        (lambda p: p.unlink(), "is missing from the layout"),
        (lambda p: (p.unlink(), p.mkdir()), "not a regular file"),
        (become_fifo, "not a regular file"),
    ],
)
@pytest.mark.timeout(20)
def test_a_damaged_firmware_fails_and_not_a_byte_of_it_is_served(
    folder: Path, store: LayoutStore, published: Published, warm: bool, damage: Callable[[Path], object], reason: str
) -> None:
    firmware = resolve(store, folder, "pump:0.1.1")
    if warm:
        assert read_all(firmware) == CONTENT
    damage(blob_path(folder, "pump", published))
    for _ in range(2):
        with pytest.raises(PermanentError, match=reason):
            read_all(firmware)


@pytest.mark.usefixtures("published")
def test_a_manifest_that_lies_about_the_size_fails(folder: Path, store: LayoutStore) -> None:
    edit_manifest(folder, lambda manifest: manifest["layers"][0].update(size=2044))
    with pytest.raises(PermanentError, match=r"^size mismatch: 2048 bytes, expected 2044$"):
        read_all(resolve(store, folder, "pump:0.1.1"))


def test_a_firmware_that_is_mended_is_served_again(folder: Path, store: LayoutStore, published: Published) -> None:
    firmware = resolve(store, folder, "pump:0.1.1")
    corrupt(blob_path(folder, "pump", published))
    with pytest.raises(PermanentError):
        read_all(firmware)
    publish(folder, "pump", "0.1.1", CONTENT)
    assert read_all(firmware) == CONTENT


def test_a_folder_that_may_not_be_read_fails_and_says_so(
    folder: Path, store: LayoutStore, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(*_: object, **__: object) -> None:  # root may read everything, so nobody can take it away for real
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fleet_fn.files.open", deny, raising=False)
    monkeypatch.setattr(Path, "stat", deny)
    for reference in ("pump:0.1.1", f"pump@{published.digest}"):
        with pytest.raises(PermanentError, match=r"^oci-layout in the layout pump: Permission denied$"):
            resolve(store, folder, reference)
