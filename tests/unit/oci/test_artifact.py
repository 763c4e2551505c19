"""Artifacts: the firmware that a manifest names, and the reasons if it names none."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError
from fleet_fn.oci.artifact import Artifact, NoFirmwareError, read_artifact
from fleet_fn.oci.manifest import Descriptor, read_descriptor

OCTETS = "application/octet-stream"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
IMAGE = "application/vnd.docker.container.image.v1+json"
SHA256 = hashlib.sha256(b"firmware").hexdigest()


def layer(media_type: str = OCTETS, title: str | None = None, **members: object) -> dict[str, object]:
    annotations = {} if title is None else {"annotations": {"org.opencontainers.image.title": title}}
    return {"mediaType": media_type, "digest": f"sha256:{SHA256}", "size": 8, **annotations, **members}


def manifest(*layers: object, version: object = "1.2.3", **members: object) -> bytes:
    annotations = {} if version is None else {"annotations": {"org.opencontainers.image.version": version}}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers, **annotations, **members}).encode()


def test_the_firmware_is_the_layer_of_octets() -> None:
    others = [layer("application/vnd.oci.image.layer.v1.tar+gzip"), layer("application/spdx+json", "firmware.bin")]
    artifact = read_artifact(manifest(others[0], layer(), others[1]), "tag")
    assert artifact == Artifact(Descriptor(OCTETS, f"sha256:{SHA256}", 8, {}), "1.2.3")
    assert artifact.layer.checksum == hashlib.sha256(b"firmware").digest()


@pytest.mark.parametrize(
    ("annotation", "tag", "version"),
    [
        ("1.2.3", "other", "1.2.3"),
        ("1.2.3", None, "1.2.3"),
        ("latest", "1.2.3", "latest"),
        (None, "1.2.3", "1.2.3"),
        (None, "latest", SHA256[:12]),
        (None, None, SHA256[:12]),
    ],
)
def test_the_version_is_the_annotations_else_the_tags_else_the_checksums(
    annotation: str | None, tag: str | None, version: str
) -> None:
    assert read_artifact(manifest(layer(), version=annotation), tag).version == version


def test_of_several_layers_it_is_the_one_that_is_called_firmware_bin() -> None:
    named = layer(title="firmware.bin", size=5)
    assert read_artifact(manifest(layer(title="a.bin"), named, layer(title="b.bin")), None).layer.size == 5


def test_a_single_layer_may_have_any_title() -> None:
    assert read_artifact(manifest(layer(title="pump.img")), None).layer.size == 8


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.espressif.esp32.firmware.v1+binary",  # OtaFlux
        "application/vnd.esp32.firmware.bin",
        "application/vnd.oci.image.layer.v1.tar",  # what oras takes for a file without a media type
        "application/x-tar",
        "application/wasm",
        "text/plain",
        "x",
    ],
)
@pytest.mark.parametrize("config", [EMPTY, "application/vnd.unknown.config.v1+json", "application/vnd.acme.board+json"])
def test_a_single_layer_of_any_media_type_is_a_firmware(media_type: str, config: str) -> None:
    content = manifest(layer(media_type, "pump.bin"), config=layer(config))
    assert read_artifact(content, None).layer.media_type == media_type


def test_a_single_layer_that_is_no_archive_is_one_in_an_image_too() -> None:
    assert read_artifact(manifest(layer("application/x-firmware"), config=layer(IMAGE)), None).layer.size == 8


def test_archives_in_an_image_are_no_firmware_themselves() -> None:
    archive = layer("application/vnd.oci.image.layer.v1.tar+gzip", "firmware.bin")
    for layers in ([archive], [archive, layer("application/x-firmware", "firmware.bin")]):
        with pytest.raises(PermanentError, match=r"^no firmware: "):
            read_artifact(manifest(*layers, config=layer(IMAGE)), None)


def test_of_several_layers_of_other_types_only_one_that_is_called_firmware_bin_is_a_firmware() -> None:
    named = layer("application/x-firmware", "firmware.bin", size=5)
    others = [layer("application/x-bootloader", "boot.bin"), layer("application/spdx+json", "firmware.bin")]
    assert read_artifact(manifest(others[0], named, others[1]), None).layer.size == 5
    for layers, names in (
        ([others[0], others[1]], "two layers, not one of them titled firmware.bin: boot.bin, firmware.bin"),
        ([others[0]] * 4, f"4 layers, not one of them titled firmware.bin: {', '.join(['boot.bin'] * 4)}"),
        ([named, named], "two layers, not one of them titled firmware.bin: firmware.bin, firmware.bin"),
        ([others[0], layer("x/y")], f"two layers, not one of them titled firmware.bin: boot.bin, sha256:{SHA256}"),
    ):
        with pytest.raises(NoFirmwareError) as caught:
            read_artifact(manifest(*layers), None)
        assert caught.value.reason == names


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "application/vnd.dev.sigstore.bundle.v0.3+json",
        "application/vnd.dsse.envelope.v1+json",
        "application/vnd.in-toto+json",
        "application/jose+json",
        "application/cose",
        "application/spdx+json",
        "text/spdx",
        "text/spdx+json",
        "application/vnd.cyclonedx+json",
        "application/vnd.cyclonedx+xml",
        "Application/JSON; charset=utf-8",
        EMPTY,
    ],
)
@pytest.mark.parametrize("config", [EMPTY, "application/vnd.oci.image.config.v1+json"])
def test_a_document_about_another_manifest_is_no_firmware(media_type: str, config: str) -> None:
    with pytest.raises(PermanentError, match=r"^no firmware: "):
        read_artifact(manifest(layer(media_type, "firmware.bin"), config=layer(config)), None)


def test_a_folder_that_was_packed_is_no_firmware() -> None:
    folder = layer("application/x-tar", annotations={"io.deis.oras.content.unpack": "true"})
    with pytest.raises(PermanentError, match=r"^no firmware: "):
        read_artifact(manifest(folder), None)


@pytest.mark.parametrize("subject", [layer(MANIFEST), {}, 5, False])
def test_a_manifest_that_is_attached_to_another_is_no_firmware(subject: object) -> None:
    with pytest.raises(NoFirmwareError, match=r"^no firmware: the manifest is attached to another one$"):
        read_artifact(manifest(layer(), subject=subject), None)
    assert read_artifact(manifest(layer(), subject=None), None).layer.size == 8


def test_a_manifest_without_a_media_type_is_taken_for_one() -> None:
    content = json.loads(manifest(layer()))
    del content["mediaType"]
    assert read_artifact(json.dumps(content).encode(), None).version == "1.2.3"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (manifest(), f"no firmware: no layer of media type {OCTETS}"),
        (manifest(layer("application/spdx+json")), "no firmware: application/spdx+json is a document about one"),
        (manifest(layer(title="a.bin"), layer(title="b.bin")), "two firmware layers: a.bin, b.bin"),
        (manifest(*(layer(title=f"{n}.bin") for n in "abc")), "three firmware layers: a.bin, b.bin, c.bin"),
        (
            manifest(*(layer(title=f"{n}.bin") for n in "abcd")),
            "4 firmware layers: a.bin, b.bin, c.bin, d.bin",
        ),
        (
            manifest(layer(title="firmware.bin"), layer(title="firmware.bin")),
            "two firmware layers: firmware.bin, firmware.bin",
        ),
        (manifest(layer(), layer()), f"two firmware layers: sha256:{SHA256}, sha256:{SHA256}"),
        (manifest(layer(), version=""), "annotation org.opencontainers.image.version is empty"),
        (manifest(layer(), version=5), "manifest has annotations that are no map of strings"),
        (manifest(layer(), annotations=[]), "manifest has annotations that are no map of strings"),
        (
            manifest(layer(), mediaType="application/vnd.oci.image.index.v1+json"),
            "index has no list of manifests",
        ),
        (
            manifest(layer(), mediaType="application/vnd.docker.distribution.manifest.v1+json"),
            "application/vnd.docker.distribution.manifest.v1+json is not supported, "
            "only images, artifacts and indexes of them",
        ),
        (manifest(layer(), mediaType=None), "None is not supported, only images, artifacts and indexes of them"),
        (manifest(layers=None), "manifest has no list of layers"),
        (manifest(layers={}), "manifest has no list of layers"),
        (b"{}", "manifest has no list of layers"),
        (b"[]", "manifest is not a JSON object"),
        (manifest(5, {}), "no firmware: no layer of media type application/octet-stream"),
        (manifest(layer(size="8")), "layer 0 has no media type, digest or size"),
        (manifest(layer(size=True)), "layer 0 has no media type, digest or size"),
        (manifest(layer(size=8.0)), "layer 0 has no media type, digest or size"),
        (manifest(layer(size=-1)), "layer 0 has no media type, digest or size"),
        (manifest(layer(digest=None)), "layer 0 has no media type, digest or size"),
        (manifest(layer(digest="md5:0")), "layer 0 has a digest that is not a sha256"),
        (manifest(layer(digest=f"sha256:{SHA256}\n")), "layer 0 has a digest that is not a sha256"),
        (manifest(layer(digest=f"sha256:{SHA256.upper()}")), "layer 0 has a digest that is not a sha256"),
        (manifest(layer(digest=f"sha256:../../{SHA256[6:]}")), "layer 0 has a digest that is not a sha256"),
        (manifest(layer(annotations={"x": 5})), "layer 0 has annotations that are no map of strings"),
    ],
)
def test_a_manifest_that_names_no_one_firmware_fails(content: bytes, reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        read_artifact(content, "tag")
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff", "UTF-8"),
        (b'{"layers": [], "layers": []}', "twice"),
        (b'{"layers": NaN}', "NaN"),
        (b'{"layers": "\\ud800"}', "Unicode"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_manifest_that_is_not_strict_json_fails(content: bytes, reason: str) -> None:
    with pytest.raises(PermanentError, match=rf"^manifest: .*{reason}"):
        read_artifact(content, None)


def test_a_reason_is_one_line_whatever_the_titles_are() -> None:
    with pytest.raises(PermanentError, match=r"^two firmware layers: ") as caught:
        read_artifact(manifest(layer(title="a\nFAKE LOG LINE"), layer(title="b\x1b[2J")), None)
    assert caught.value.reason.isprintable()


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from([OCTETS, f"sha256:{SHA256}"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["layers", "mediaType", "digest", "size", "annotations", "schemaVersion", "x"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(values, st.none() | st.text(max_size=5))
def test_any_manifest_is_a_firmware_or_a_failure(content: object, tag: str | None) -> None:
    try:
        artifact = read_artifact(json.dumps(content).encode(), tag)
    except PermanentError as error:
        assert error.reason.isprintable()
        return
    assert artifact.version
    assert len(artifact.layer.checksum) == 32


@given(values)
def test_any_descriptor_is_read_or_fails(value: object) -> None:
    try:
        descriptor = read_descriptor(value, "it")
    except PermanentError as error:
        assert error.reason.startswith("it ")
        return
    assert len(descriptor.checksum) == 32
    assert descriptor.size >= 0
