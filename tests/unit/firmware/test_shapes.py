"""Firmware is found in manifests of each shape; if there is none, the reason says why."""

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, NotReadyError, Reader
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.artifact import NoFirmwareError
from fleet_fn.oci.layer import Readable
from fleet_fn.oci.manifest import Descriptor
from fleet_fn.oci.reference import Reference
from tests.support.firmware import read_all

FIRMWARE = bytes(range(256)) * 5
OCTETS = "application/octet-stream"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def described(firmware: bytes = FIRMWARE, version: object = "1.2.3", **other: object) -> dict[str, Any]:
    described = {"version": version, "size": len(firmware), "checksum": hashlib.sha256(firmware).hexdigest()}
    return described | other


class Folder:
    """A repository in memory."""

    name = "ghcr.io/acme/pump"

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.streamed: list[str] = []
        self.gate: threading.Event | None = None

    def tagged(self, *_: object) -> bytes | None:
        return None

    def referrers(self, *_: object) -> list[Descriptor]:
        return []

    def put(self, content: bytes, media_type: str, **members: object) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **members}

    def artifact(
        self, *layers: object, config: object = None, media_type: str = OCI_MANIFEST, **members: object
    ) -> bytes:
        content = {"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers, **members}
        return json.dumps(content).encode()

    def layer(
        self, files: Mapping[str, bytes | None], media_type: str = OCI_LAYER, *, is_gzip: bool = False
    ) -> dict[str, Any]:
        """A layer of files; None is a directory."""
        content = self.tar(files)
        return self.put(gzip.compress(content) if is_gzip else content, media_type)

    @staticmethod
    def tar(files: Mapping[str, bytes | None]) -> bytes:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                if content is None:
                    member.type = tarfile.DIRTYPE
                else:
                    member.size = len(content)
                tar.addfile(member, io.BytesIO(content or b""))
        return archive.getvalue()

    def image(
        self, *layers: object, label: object = None, media_type: str = OCI_MANIFEST, config_type: str = OCI_CONFIG
    ) -> bytes:
        labels = {} if label is None else {"io.drogue.metadata": label}
        config = self.put(json.dumps({"config": {"Labels": labels}}).encode(), config_type)
        return self.artifact(*layers, config=config, media_type=media_type)

    def index(self, *manifests: Mapping[str, Any], media_type: str = OCI_INDEX) -> bytes:
        return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()

    # What `Repository` asks for.

    def manifest(self, digest: str, deadline: Deadline) -> bytes:
        if digest not in self.blobs:
            raise PermanentError(f"no {digest}, with {deadline.remaining} s left")
        return self.blobs[digest]

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:
        return self.manifest(blob.digest, deadline)

    def open(self, blob: Descriptor, deadline: Deadline) -> AbstractContextManager[Reader]:
        @contextmanager
        def opened() -> Iterator[Reader]:
            yield Bytes(self.config(blob, deadline))

        return opened()

    @contextmanager
    def stream(self, blob: Descriptor) -> Iterator[Readable]:
        if self.gate:
            self.gate.wait(30)
        self.streamed.append(blob.digest)
        if blob.digest not in self.blobs:
            raise TransientError("registry: connection refused")
        yield io.BytesIO(self.blobs[blob.digest])


class Bytes:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


@pytest.fixture
def folder() -> Folder:
    return Folder()


@pytest.fixture
def shapes(tmp_path: Path) -> Shapes:
    return make_shapes(tmp_path)


def make_shapes(path: Path) -> Shapes:
    single_flight = SingleFlight()
    return Shapes(Cache(path / "cache", 1024 * 1024, VerifiedFiles(single_flight), single_flight), single_flight)


def find(
    shapes: Shapes, folder: Folder, manifest: bytes, tag: str | None = "1", platform: str | None = None
) -> Firmware:
    reference = Reference("ghcr.io/acme/", "pump", tag, None if tag else "sha256:" + "0" * 64, platform)
    return shapes.firmware(manifest, reference, folder, Deadline(10))


def reason(shapes: Shapes, folder: Folder, manifest: bytes, platform: str | None = None) -> str:
    with pytest.raises(PermanentError) as caught:
        read_all(find(shapes, folder, manifest, platform=platform))
    return caught.value.reason


# --- Artifacts --------------------------------------------------------------------------------------------------------


def test_an_artifact_is_its_layer(shapes: Shapes, folder: Folder) -> None:
    firmware = find(shapes, folder, folder.artifact(folder.put(FIRMWARE, OCTETS)))
    assert (firmware.shape, firmware.version, firmware.size) == ("artifact", "1", len(FIRMWARE))
    assert read_all(firmware) == FIRMWARE


def test_version_of_a_digest_is_no_tag(shapes: Shapes, folder: Folder) -> None:
    firmware = find(shapes, folder, folder.artifact(folder.put(FIRMWARE, OCTETS)), tag=None)
    assert firmware.version == hashlib.sha256(FIRMWARE).hexdigest()[:12]


def test_an_artifact_is_one_even_in_an_image_with_a_label(shapes: Shapes, folder: Folder) -> None:
    config = folder.put(json.dumps({"config": {"Labels": {"io.drogue.metadata": "{"}}}).encode(), OCI_CONFIG)
    assert find(shapes, folder, folder.artifact(folder.put(FIRMWARE, OCTETS), config=config)).shape == "artifact"


def test_manifest_of_another_kind_has_no_firmware(shapes: Shapes, folder: Folder) -> None:
    config = folder.put(b"{}", "application/vnd.oci.empty.v1+json")
    manifest = folder.artifact(folder.put(b"{}", "application/spdx+json"), config=config)
    assert reason(shapes, folder, manifest) == "no firmware: application/spdx+json is a document about one"
    manifest = folder.artifact(config=config)
    assert reason(shapes, folder, manifest) == f"no firmware: no layer of media type {OCTETS}, and no image"


def annotated(folder: Folder, **annotations: str) -> bytes:
    manifest = json.loads(folder.artifact(folder.put(FIRMWARE, OCTETS)))
    named = {f"io.drogue.firmware.{name}": value for name, value in annotations.items()}
    return json.dumps({**manifest, "annotations": named}).encode()


def test_annotations_tell_whom_a_firmware_is_for(shapes: Shapes, folder: Folder) -> None:
    firmware = find(shapes, folder, annotated(folder, hardware=" rev-a,rev-b ,", requires=">=1.2 <2"))
    assert (firmware.hardware, firmware.requires) == (("rev-a", "rev-b"), ">=1.2 <2")


@pytest.mark.parametrize(
    ("annotations", "told"),
    [
        ({"hardware": ""}, "annotation io.drogue.firmware.hardware names no hardware"),
        ({"hardware": " ,"}, "annotation io.drogue.firmware.hardware names no hardware"),
        ({"hardware": "a," * 1000}, "annotation io.drogue.firmware.hardware has 2000 characters; at most 1024 count"),
        ({"requires": ""}, "annotation io.drogue.firmware.requires is empty; * stands for any release"),
        ({"requires": " "}, "annotation io.drogue.firmware.requires is empty; * stands for any release"),
        ({"requires": ">1 " * 500}, "annotation io.drogue.firmware.requires has 1500 characters; at most 1024 count"),
    ],
)
def test_annotations_that_tell_nothing_are_no_permission(
    shapes: Shapes, folder: Folder, annotations: dict[str, str], told: str
) -> None:
    assert reason(shapes, folder, annotated(folder, **annotations)) == told


# --- Labelled images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["firmware", "firmware.bin", "./firmware", "./firmware.bin"])
@pytest.mark.parametrize(
    ("types", "is_gzip"),
    [
        ((OCI_MANIFEST, OCI_CONFIG, OCI_LAYER), False),
        ((OCI_MANIFEST, OCI_CONFIG, f"{OCI_LAYER}+gzip"), True),
        ((DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER), True),
    ],
)
def test_labelled_image_has_the_firmware_of_its_label(
    shapes: Shapes, folder: Folder, name: str, types: tuple[str, str, str], is_gzip: bool
) -> None:
    manifest_type, config_type, layer_type = types
    files = {"./": None, "etc/firmware": b"other", name: FIRMWARE, "etc/firmware.bin": b"other"}
    layer = folder.layer(files, layer_type, is_gzip=is_gzip)
    image = folder.image(layer, label=json.dumps(described()), media_type=manifest_type, config_type=config_type)
    firmware = find(shapes, folder, image)
    assert (firmware.shape, firmware.version) == ("labelled image", "1.2.3")
    assert read_all(firmware) == FIRMWARE
    streamed = len(folder.streamed)
    assert read_all(firmware) == FIRMWARE
    assert len(folder.streamed) == streamed == 1


@pytest.mark.parametrize(
    ("created", "annotations", "told"),
    [
        ("2026-11-23T06:00:00Z", {}, "2026-11-23T06:00:00Z"),
        ("2026-11-23T06:00:00Z", {"org.opencontainers.image.created": "2026-11-24"}, "2026-11-24"),
        (17, {}, None),
        ("x" * 1000, {}, "x" * 200),
    ],
)
def test_an_image_tells_when_it_was_made(
    shapes: Shapes, folder: Folder, created: object, annotations: dict[str, str], told: str | None
) -> None:
    labels = {"io.drogue.metadata": json.dumps(described())}
    config = folder.put(json.dumps({"created": created, "config": {"Labels": labels}}).encode(), OCI_CONFIG)
    image = folder.artifact(folder.layer({"firmware": FIRMWARE}), config=config, annotations=annotations)
    assert find(shapes, folder, image).origin.get("org.opencontainers.image.created") == told


def test_the_last_layer_that_has_it_wins_and_the_others_are_not_fetched(shapes: Shapes, folder: Folder) -> None:
    base = folder.layer({"firmware": b"x" * len(FIRMWARE)})
    image = folder.image(base, folder.layer({"firmware": FIRMWARE}), label=json.dumps(described()))
    assert read_all(find(shapes, folder, image)) == FIRMWARE
    assert base["digest"] not in folder.streamed


def test_a_later_layer_without_it_hides_nothing(shapes: Shapes, folder: Folder) -> None:
    layers = [folder.layer({"firmware": FIRMWARE}), folder.layer({"README": b"", ".wh.other": b""})]
    assert read_all(find(shapes, folder, folder.image(*layers, label=json.dumps(described())))) == FIRMWARE


@pytest.mark.parametrize("whiteouts", [(".wh.firmware", ".wh.firmware.bin"), (".wh..wh..opq",)])
def test_file_deleted_by_a_later_layer_is_gone(shapes: Shapes, folder: Folder, whiteouts: tuple[str, ...]) -> None:
    layers = [folder.layer({"firmware": FIRMWARE}), folder.layer(dict.fromkeys(whiteouts, b""))]
    image = folder.image(*layers, label=json.dumps(described()))
    assert reason(shapes, folder, image) == "no file firmware or firmware.bin in the root of the image's layers"


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ("{", "label io.drogue.metadata: not JSON"),
        ("[]", "label io.drogue.metadata is not a JSON object"),
        ("{}", "label io.drogue.metadata has no version"),
        (described(version=""), "label io.drogue.metadata has no version"),
        (described(version=5), "label io.drogue.metadata has no version"),
        (described(size="1280"), "label io.drogue.metadata has no size"),
        (described(size=True), "label io.drogue.metadata has no size"),
        (described(size=-1), "label io.drogue.metadata has no size"),
        (described(checksum="0"), "label io.drogue.metadata has no checksum that is a SHA-256 in hexadecimal"),
        (described(checksum=None), "label io.drogue.metadata has no checksum that is a SHA-256 in hexadecimal"),
        (described(size=0), "a firmware of 0 bytes: from 1 to 4294967295 can be sent"),
        (described(size=2**32), "a firmware of 4294967296 bytes: from 1 to 4294967295 can be sent"),
        (described(size=2**21), "firmware of 2097152 bytes is larger than the cache (FIRMWARE_CACHE_BYTES=1048576)"),
        (described(size=1281), "size mismatch: firmware has 1280 bytes, expected 1281"),
        (described(FIRMWARE[:-1]), "size mismatch: firmware has 1280 bytes, expected 1279"),
        (
            described(bytes(reversed(FIRMWARE))),
            "digest mismatch: the bytes have another SHA-256 than they should",
        ),
        ({**described(), "version": "x", "extra": [1]}, None),
    ],
)
def test_a_label_that_disagrees_or_makes_no_sense_fails(
    shapes: Shapes, folder: Folder, label: object, told: str | None
) -> None:
    text = label if isinstance(label, str) else json.dumps(label)
    image = folder.image(folder.layer({"firmware": FIRMWARE}), label=text)
    if told is None:
        assert read_all(find(shapes, folder, image)) == FIRMWARE
    else:
        assert reason(shapes, folder, image).startswith(told)


def test_image_that_claims_bytes_of_another_is_not_served(shapes: Shapes, folder: Folder) -> None:
    label = json.dumps(described())
    assert read_all(find(shapes, folder, folder.image(folder.layer({"firmware": FIRMWARE}), label=label))) == FIRMWARE
    for files in ({"firmware": FIRMWARE[::-1]}, {"firmware": b"other"}, {"README": b""}, {"firmware": None}):
        with pytest.raises(PermanentError):
            read_all(find(shapes, folder, folder.image(folder.layer(files), label=label)))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (b"[]", "image config is not a JSON object"),
        (b"<html>", "image config: not JSON"),
        (b'{"config": {"Labels": {"io.drogue.metadata": 5}}}', "label io.drogue.metadata is not a string"),
    ],
)
def test_a_config_that_makes_no_sense_fails(shapes: Shapes, folder: Folder, config: bytes, told: str) -> None:
    image = folder.artifact(folder.layer({"firmware": FIRMWARE}), config=folder.put(config, OCI_CONFIG))
    assert reason(shapes, folder, image).startswith(told)


def test_a_firmware_that_is_no_file_fails(shapes: Shapes, folder: Folder) -> None:
    image = folder.image(folder.layer({"firmware": None}), label=json.dumps(described()))
    assert reason(shapes, folder, image) == "firmware in the image is not a regular file"


def test_a_layer_that_is_no_archive_fails(shapes: Shapes, folder: Folder) -> None:
    image = folder.image(folder.put(b"<html>" * 1000, OCI_LAYER), label=json.dumps(described()))
    assert reason(shapes, folder, image).startswith("layer: ")


def test_a_bomb_costs_neither_memory_nor_time(shapes: Shapes, folder: Folder) -> None:
    header = tarfile.TarInfo("padding")
    header.size = 2**40
    bomb = gzip.compress(header.tobuf()) + gzip.compress(bytes(16 * 1024 * 1024)) * 256
    image = folder.image(folder.put(bomb, f"{OCI_LAYER}+gzip"), label=json.dumps(described()))
    began = time.process_time()
    assert reason(shapes, folder, image).startswith("layer: expands to more than ")
    assert time.process_time() - began < 5


def test_a_bomb_in_many_layers_is_one_bomb(shapes: Shapes, folder: Folder) -> None:
    layer = folder.put(gzip.compress(folder.tar({"padding": bytes(96 * 1024 * 1024)})), f"{OCI_LAYER}+gzip")
    image = folder.image(*[layer] * 100, label=json.dumps(described()))
    assert reason(shapes, folder, image).startswith("layer: expands to more than ")
    assert len(folder.streamed) == 3
    layers = [folder.layer({})] * 129
    assert reason(shapes, folder, folder.image(*layers)) == "image of 129 layers; at most 128 are read"


# --- Images with firmware.json ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_gzip", [False, True])
def test_firmware_json_describes_the_firmware_bin_beside_it(shapes: Shapes, folder: Folder, is_gzip: bool) -> None:
    files = {"./firmware.bin": FIRMWARE, "./firmware.json": json.dumps(described()).encode()}
    image = folder.image(folder.layer(files, is_gzip=is_gzip))
    for _ in range(3):
        firmware = find(shapes, folder, image)
        assert (firmware.shape, firmware.version) == ("image with firmware.json", "1.2.3")
        assert read_all(firmware) == FIRMWARE
    assert len(folder.streamed) == 2, "once for the description, once for the firmware"


def test_metadata_in_layers_is_shared_between_processes_and_outlives_the_registry(
    tmp_path: Path, folder: Folder
) -> None:
    layer = folder.layer({"firmware.json": json.dumps(described()).encode(), "firmware.bin": FIRMWARE})
    image = folder.image(layer)
    assert read_all(find(make_shapes(tmp_path), folder, image)) == FIRMWARE
    del folder.blobs[layer["digest"]]
    assert read_all(find(make_shapes(tmp_path), folder, image)) == FIRMWARE
    folder.name = "ghcr.io/acme/other"
    with pytest.raises(TransientError):
        find(make_shapes(tmp_path), folder, image)


def test_each_file_comes_from_the_last_layer_that_has_it(shapes: Shapes, folder: Folder) -> None:
    layers = [
        folder.layer({"firmware.json": json.dumps(described(b"old")).encode(), "firmware.bin": b"old"}),
        folder.layer({"firmware.bin": FIRMWARE}),
        folder.layer({"firmware.json": json.dumps(described()).encode(), "firmware": b"not this one"}),
    ]
    assert read_all(find(shapes, folder, folder.image(*layers))) == FIRMWARE


def test_a_label_counts_before_firmware_json(shapes: Shapes, folder: Folder) -> None:
    layer = folder.layer({"firmware.json": b"{", "firmware.bin": FIRMWARE})
    assert find(shapes, folder, folder.image(layer, label=json.dumps(described()))).shape == "labelled image"


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"firmware.bin": FIRMWARE}, "no firmware: neither a label io.drogue.metadata nor a file firmware.json in"),
        ({"firmware.json": b"{"}, "firmware.json: not JSON"),
        ({"firmware.json": b" " * 65537}, "firmware.json has 65537 bytes; at most 65536 are read"),
        ({"firmware.json": None}, "firmware.json in the image is not a regular file"),
        ({"firmware.json": json.dumps(described()).encode()}, "no file firmware.bin in the root of"),
        (
            {"firmware.json": json.dumps(described()).encode(), "firmware.bin": b"other"},
            "size mismatch: firmware.bin has 5 bytes, expected 1280",
        ),
        (
            {"firmware.json": json.dumps(described()).encode(), "firmware.bin": bytes(len(FIRMWARE))},
            "digest mismatch: ",
        ),
    ],
)
def test_an_image_without_a_sound_firmware_json_fails(
    shapes: Shapes, folder: Folder, files: Mapping[str, bytes | None], told: str
) -> None:
    assert reason(shapes, folder, folder.image(folder.layer(files))).startswith(told)


def test_a_layer_whose_bytes_are_others_is_not_believed(shapes: Shapes, folder: Folder) -> None:
    layer = folder.layer({"firmware.json": json.dumps(described()).encode(), "firmware.bin": FIRMWARE})
    forged = folder.layer({"firmware.json": json.dumps(described(b"evil!")).encode(), "firmware.bin": b"evil!"})
    folder.blobs[layer["digest"]] = folder.blobs[forged["digest"]]
    assert reason(shapes, folder, folder.image(layer)).startswith("digest mismatch: layer sha256:")


def test_looking_through_an_image_for_long_goes_on_and_is_found_later(shapes: Shapes, folder: Folder) -> None:
    image = folder.image(folder.layer({"firmware.json": json.dumps(described()).encode(), "firmware.bin": FIRMWARE}))
    folder.gate = threading.Event()
    reference = Reference("ghcr.io/acme/", "pump", "1", None)
    began = time.monotonic()
    with pytest.raises(NotReadyError, match=r"^looking for firmware\.json in the image's layers$"):
        shapes.firmware(image, reference, folder, Deadline(2))
    assert time.monotonic() - began < 2, "there is time left for telling the device to wait"
    with pytest.raises(NotReadyError):
        shapes.firmware(image, reference, folder, Deadline(0))
    folder.gate.set()
    assert find(shapes, folder, image).version == "1.2.3"


def test_a_repository_that_is_away_is_to_be_asked_again(shapes: Shapes, folder: Folder) -> None:
    layer = folder.layer({"firmware.json": json.dumps(described()).encode(), "firmware.bin": FIRMWARE})
    content = folder.blobs.pop(layer["digest"])
    with pytest.raises(TransientError, match="connection refused"):
        find(shapes, folder, folder.image(layer))
    folder.blobs[layer["digest"]] = content
    assert read_all(find(shapes, folder, folder.image(layer))) == FIRMWARE


# --- Indexes ----------------------------------------------------------------------------------------------------------


def entry(folder: Folder, version: str, platform: str | None = None, **annotations: str) -> dict[str, Any]:
    """An index's entry for an artifact of a version."""
    layer = folder.put(f"firmware {version}".encode(), OCTETS)
    manifest = folder.artifact(layer, annotations={"org.opencontainers.image.version": version})
    members: dict[str, Any] = {"annotations": annotations} if annotations else {}
    if platform:
        names = ("os", "architecture", "variant")
        members["platform"] = dict(zip(names, platform.split("/"), strict=False))
    return folder.put(manifest, OCI_MANIFEST, **members)


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_INDEX])
def test_an_index_stands_for_the_one_manifest_with_firmware(shapes: Shapes, folder: Folder, media_type: str) -> None:
    attestation = folder.put(
        folder.artifact(folder.put(b"{}", "application/vnd.in-toto+json"), config=folder.put(b"{}", "x")),
        OCI_MANIFEST,
        platform={"os": "unknown", "architecture": "unknown"},
    )
    index = folder.index(attestation, entry(folder, "1.0", "linux/arm64"), media_type=media_type)
    firmware = find(shapes, folder, index)
    assert (firmware.version, read_all(firmware)) == ("1.0", b"firmware 1.0")


@pytest.mark.parametrize(
    ("platform", "version"),
    [
        ("linux/arm64", "1"),
        ("linux/arm/v7", "2"),
        ("linux/arm", "2"),
        ("nrf52840", "3"),
        ("board=nrf52840", "3"),
        ("esp32", "4"),
    ],
)
def test_a_platform_or_an_annotation_tells_manifests_apart(
    shapes: Shapes, folder: Folder, platform: str, version: str
) -> None:
    index = folder.index(
        entry(folder, "1", "linux/arm64/v8"),
        entry(folder, "2", "linux/arm/v7"),
        entry(folder, "3", board="nrf52840"),
        entry(folder, "4", "linux/amd64", board="esp32"),
    )
    assert find(shapes, folder, index, platform=platform).version == version


def test_an_index_with_several_is_ambiguous(shapes: Shapes, folder: Folder) -> None:
    index = folder.index(entry(folder, "1", "linux/arm64"), entry(folder, "2", board="nrf52840"))
    told = "ambiguous index: firmware for linux/arm64, board=nrf52840; name one in spec.firmware.container.platform"
    assert reason(shapes, folder, index) == told
    index = folder.index(entry(folder, "1", "linux/arm/v6"), entry(folder, "2", "linux/arm/v7"))
    assert reason(shapes, folder, index, "linux/arm").startswith("ambiguous index: firmware for linux/arm/v6, ")


def test_missing_platform_is_reported_with_the_available_ones(shapes: Shapes, folder: Folder) -> None:
    index = folder.index(entry(folder, "1", "linux/arm64"), entry(folder, "2"))
    told = reason(shapes, folder, index, "linux/riscv64")
    assert told.startswith("no manifest for the platform 'linux/riscv64' in the index: it has linux/arm64, sha256:")
    assert reason(shapes, folder, index, "linux/arm").startswith("no manifest for the platform 'linux/arm'")


def test_one_manifest_that_stands_there_twice_is_one(shapes: Shapes, folder: Folder) -> None:
    index = folder.index(entry(folder, "1", "linux/arm/v6"), entry(folder, "1", "linux/arm/v7"))
    assert find(shapes, folder, index).version == "1"


def test_a_platform_does_not_matter_where_there_is_no_index(shapes: Shapes, folder: Folder) -> None:
    manifest = folder.artifact(folder.put(FIRMWARE, OCTETS))
    assert find(shapes, folder, manifest, platform="linux/arm64").size == len(FIRMWARE)


def test_an_index_without_manifests_of_ours_has_no_firmware(shapes: Shapes, folder: Folder) -> None:
    assert reason(shapes, folder, folder.index()) == "no manifest in the index"
    nested = folder.put(folder.index(entry(folder, "1")), OCI_INDEX)
    assert reason(shapes, folder, folder.index(nested)) == "no manifest in the index"
    disguised = {**nested, "mediaType": OCI_MANIFEST}
    assert reason(shapes, folder, folder.index(disguised)) == "no manifest in the index"
    config = folder.put(b"{}", "application/vnd.oci.empty.v1+json")
    other = folder.put(folder.artifact(config=config), OCI_MANIFEST)
    with pytest.raises(NoFirmwareError, match=r"^no firmware: no layer of media type"):
        find(shapes, folder, folder.index(other))


def test_a_malformed_manifest_in_an_index_is_not_passed_over(shapes: Shapes, folder: Folder) -> None:
    two = [folder.put(b"a", OCTETS), folder.put(b"b", OCTETS)]
    malformed = folder.put(folder.artifact(*two), OCI_MANIFEST)
    assert reason(shapes, folder, folder.index(malformed, entry(folder, "1"))).startswith("two firmware layers: ")


def test_an_index_of_more_manifests_than_anybody_has_platforms_is_not_looked_through(
    shapes: Shapes, folder: Folder
) -> None:
    many = folder.index(*(entry(folder, str(number)) for number in range(65)))
    assert reason(shapes, folder, many).startswith("index of 65 manifests; at most 64 are read: name one in")


def test_a_manifest_of_another_size_than_its_index_says_fails(shapes: Shapes, folder: Folder) -> None:
    index = folder.index(entry(folder, "1") | {"size": 5})
    assert re.match(r"size mismatch: manifest sha256:\w+ has \d+ bytes, expected 5$", reason(shapes, folder, index))


# --- All --------------------------------------------------------------------------------------------------------------

FILES = ("firmware", "firmware.bin", ".wh.firmware", ".wh.firmware.bin", ".wh..wh..opq", "other", "sub/firmware")


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(st.lists(st.sampled_from(FILES), max_size=4, unique=True), max_size=4))
def test_the_firmware_is_what_the_layers_laid_over_each_other_show(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[str]]
) -> None:
    folder, shapes = Folder(), make_shapes(tmp_path_factory.mktemp("shapes"))
    shown: dict[str, bytes] = {}
    made = []
    for number, names in enumerate(layers):
        files = {name: b"%2d %s" % (number, name.encode().ljust(20)) for name in names}
        if ".wh..wh..opq" in names:
            shown.clear()
        for name in names:
            shown.pop(name.removeprefix(".wh."), None)
        shown |= {name: content for name, content in files.items() if name in ("firmware", "firmware.bin")}
        made.append(folder.layer(files))
    # The uppermost counts, and where a layer has both names the one that comes first in it.
    top = max((int(content[:2]) for content in shown.values()), default=None)
    if top is None:
        image = folder.image(*made, label=json.dumps(described(bytes(23))))
        assert reason(shapes, folder, image).startswith("no file firmware or firmware.bin")
        return
    name = next(name for name in layers[top] if name in shown)
    image = folder.image(*made, label=json.dumps(described(shown[name])))
    assert read_all(find(shapes, folder, image)) == shown[name]
