"""Whole updates from every shape of firmware: out of a real registry, and out of image layouts."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import Function
from tests.support.images import EMPTY, Descriptor, ImageLayout, metadata
from tests.support.registry import DockerRegistry, Skopeo
from tests.support.statuses import in_sync, post, told, update

FIRMWARE = random_bytes(5000, "shapes")
OTHER = random_bytes(5000, "other")

_TITLE = "org.opencontainers.image.title"
_VERSION = {"org.opencontainers.image.version": "1.0.0"}

Shape = Callable[[ImageLayout], Descriptor]


def index_of_two(layout: ImageLayout) -> Descriptor:
    return layout.index(
        {"linux/arm/v7": layout.artifact(OTHER, "9.9.9"), "linux/arm64": layout.labelled_image(FIRMWARE)}
    )


def index_with_attestation(layout: ImageLayout) -> Descriptor:
    attestation = layout.manifest(layout.config(), [layout.blob(b"{}", "application/vnd.in-toto+json")])
    return layout.index({"linux/arm64": layout.labelled_image(FIRMWARE), "unknown/unknown": attestation})


def artifact_of_espressif(layout: ImageLayout) -> Descriptor:
    """An artifact as OtaFlux takes them."""
    layer = layout.blob(FIRMWARE, "application/vnd.espressif.esp32.firmware.v1+binary")
    return layout.manifest(
        layout.blob(b"{}", "application/vnd.espressif.esp32.firmware.config.v1+json"), [layer], annotations=_VERSION
    )


def artifact_of_several(layout: ImageLayout) -> Descriptor:
    layers = [
        layout.blob(OTHER, "application/x-bootloader", annotations={_TITLE: "bootloader.bin"}),
        layout.blob(FIRMWARE, "application/x-firmware", annotations={_TITLE: "firmware.bin"}),
    ]
    return layout.manifest(layout.blob(b"{}", EMPTY), layers, annotations=_VERSION)


def index_with_referrer(layout: ImageLayout) -> Descriptor:
    """An index with a firmware, and with one that is attached to it."""
    firmware = layout.artifact(FIRMWARE)
    return layout.index([firmware, layout.artifact(OTHER, "9.9.9", subject=firmware)])


def index_with_documents(layout: ImageLayout) -> Descriptor:
    """An index as buildx makes it of an image with an SBOM and provenance."""
    documents = [layout.blob(name.encode(), "application/vnd.in-toto+json") for name in ("sbom", "provenance")]
    attestation = layout.manifest(layout.config(), documents)
    annotations = {"vnd.docker.reference.type": "attestation-manifest"}
    entry = {**attestation, "annotations": annotations, "platform": {"os": "unknown", "architecture": "unknown"}}
    return layout.index([layout.artifact(FIRMWARE), entry])


def layers_upon_layers(layout: ImageLayout) -> Descriptor:
    below = layout.layer({"firmware": OTHER, "etc/os-release": b"NAME=x"}, gzipped=True)
    above = layout.layer({"usr/share/doc/firmware": OTHER}, gzipped=True)
    return layout.labelled_image(FIRMWARE, below=[below], above=[above], gzipped=True)


SHAPES: dict[str, Shape] = {
    "artifact": lambda layout: layout.artifact(FIRMWARE),
    "labelled": lambda layout: layout.labelled_image(FIRMWARE),
    "labelled-gzip": lambda layout: layout.labelled_image(FIRMWARE, name="./firmware.bin", gzipped=True),
    "layers": layers_upon_layers,
    "described": lambda layout: layout.image_with_manifest_file(FIRMWARE),
    "described-gzip": lambda layout: layout.image_with_manifest_file(FIRMWARE, prefix="./", gzipped=True),
    "index": lambda layout: layout.index({"linux/arm64": layout.artifact(FIRMWARE)}),
    "index-of-two": index_of_two,
    "index-with-attestation": index_with_attestation,
    "index-with-documents": index_with_documents,
    "index-with-referrer": index_with_referrer,
    "espressif": artifact_of_espressif,
    "several": artifact_of_several,
}
PLATFORMS = {"index-of-two": "linux/arm64"}
#: Which of them Docker's formats have, too.
DOCKERS = ("labelled-gzip", "layers", "described-gzip")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageLayout]:
    """All shapes, each tagged `1` in a layout that is called as the shape is."""
    folder = tmp_path_factory.mktemp("shapes")
    layouts = {name: ImageLayout(folder / name) for name in SHAPES}
    for name, layout in layouts.items():
        layout.tag(SHAPES[name](layout), "1")
    return layouts


@pytest.fixture(scope="module")
def from_registry(
    drogue: Drogue, docker_registry: DockerRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    cache = {"FIRMWARE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    with Function({**drogue.environment, **docker_registry.environment, **cache}) as function:
        yield function


@pytest.fixture(scope="module")
def from_layouts(
    drogue: Drogue, layouts: dict[str, ImageLayout], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Function]:
    folder = layouts["artifact"].folder.parent
    cache = {"FIRMWARE_CACHE_DIR": str(tmp_path_factory.mktemp("cache"))}
    with Function({**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{folder}", **cache}) as function:
        yield function


def is_updated(function: Function, drogue: Drogue, device: str, image: str, shape: str) -> None:
    """Asserts that a device ends with the right bytes, and is told that all is well then."""
    platform = {"platform": PLATFORMS[shape]} if shape in PLATFORMS else {}
    drogue.put_image("example", device, image, **platform)
    assert update(function, drogue, device, mtu=2048) == ("1.0.0", FIRMWARE)
    _, swap = told(drogue, device)[-1]
    assert swap[2] == hashlib.sha256(FIRMWARE).digest()
    assert post(function, device, in_sync("1.0.0")).outcome == "sync"


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_that_skopeo_copies_into_a_registry_updates_a_device(
    from_registry: Function,
    drogue: Drogue,
    device: str,
    layouts: dict[str, ImageLayout],
    docker_registry: DockerRegistry,
    skopeo: Skopeo,
    shape: str,
) -> None:
    skopeo.copy(layouts[shape].folder, "1", docker_registry, f"shapes/{shape}:1", "--all")
    is_updated(from_registry, drogue, device, f"shapes/{shape}:1", shape)
    by_digest = f"shapes/{shape}@{docker_registry.digest(f'shapes/{shape}', '1')}"
    if "labelled" in shape or "described" in shape:  # where the tag is not what the version is told by
        is_updated(from_registry, drogue, device, by_digest, shape)


@pytest.mark.parametrize("shape", DOCKERS)
def test_dockers_media_types_are_read_too(
    from_registry: Function,
    drogue: Drogue,
    device: str,
    layouts: dict[str, ImageLayout],
    docker_registry: DockerRegistry,
    skopeo: Skopeo,
    shape: str,
) -> None:
    skopeo.copy(layouts[shape].folder, "1", docker_registry, f"docker/{shape}:1", "--format", "v2s2")
    stored = docker_registry.manifest(f"docker/{shape}", "1").json
    assert stored["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    is_updated(from_registry, drogue, device, f"docker/{shape}:1", shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_in_an_image_layout_updates_a_device(
    from_layouts: Function, drogue: Drogue, device: str, shape: str
) -> None:
    is_updated(from_layouts, drogue, device, f"{shape}:1", shape)


MALFORMED: dict[str, tuple[Shape, str]] = {
    "two": (
        lambda layout: layout.manifest(
            layout.config(),
            [
                layout.blob(name.encode(), "application/octet-stream", annotations={_TITLE: name})
                for name in ("a.bin", "b.bin")
            ],
        ),
        "two firmware layers: a.bin, b.bin",
    ),
    "two-others": (
        lambda layout: layout.manifest(
            layout.blob(b"{}", EMPTY),
            [layout.blob(name.encode(), "application/x", annotations={_TITLE: name}) for name in ("a.bin", "b.bin")],
        ),
        "two layers, not one of them titled firmware.bin: a.bin, b.bin",
    ),
    "attached": (
        lambda layout: layout.artifact(OTHER, subject=layout.artifact(FIRMWARE)),
        "no firmware: the manifest is attached to another one",
    ),
    "signature": (
        lambda layout: layout.manifest(
            layout.config(), [layout.blob(b"{}", "application/vnd.dev.cosign.simplesigning.v1+json")]
        ),
        "no firmware: application/vnd.dev.cosign.simplesigning.v1+json is a document about one",
    ),
    "nothing": (
        lambda layout: layout.image([layout.layer({"README": b"x"})]),
        "no firmware: neither a label io.drogue.metadata nor a file firmware.json in the image",
    ),
    "other-size": (
        lambda layout: layout.labelled_image(OTHER, label=metadata(OTHER, size=4999)),
        "size mismatch: firmware has 5000 bytes, expected 4999",
    ),
    "other-bytes": (
        lambda layout: layout.image_with_manifest_file(FIRMWARE, described=metadata(OTHER)),
        "digest mismatch: the bytes have another SHA-256 than they should",
    ),
    "ambiguous": (
        index_of_two,
        "ambiguous index: firmware for linux/arm/v7, linux/arm64; name one in spec.firmware.container.platform",
    ),
    "huge": (
        lambda layout: layout.labelled_image(FIRMWARE, label=metadata(FIRMWARE, size=2**32)),
        "a firmware of 4294967296 bytes: from 1 to 4294967295 can be sent",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
@pytest.mark.parametrize("where", ["registry", "layout"])
def test_what_is_malformed_is_refused_with_a_reason_that_names_it(
    request: pytest.FixtureRequest,
    drogue: Drogue,
    device: str,
    layouts: dict[str, ImageLayout],
    what: str,
    where: str,
) -> None:
    make, reason = MALFORMED[what]
    function: Function = request.getfixturevalue(f"from_{'registry' if where == 'registry' else 'layouts'}")
    folder: Path = layouts["artifact"].folder.parent / f"{where}-{what}"
    layout = ImageLayout(folder)
    layout.tag(make(layout), "1")
    if where == "registry":
        registry: Any = request.getfixturevalue("docker_registry")
        request.getfixturevalue("skopeo").copy(folder, "1", registry, f"{where}-{what}:1", "--all")
    drogue.put_image("example", device, f"{where}-{what}:1")
    answer = post(function, device)
    assert (answer.status, answer.reason) == (422, reason)
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]
