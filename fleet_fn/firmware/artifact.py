"""From an OCI manifest to the firmware in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet_fn.errors import Failed
from fleet_fn.protocol.strict_json import parse_json

#: Bytes of a manifest or an index that are read (what registries accept, too).
MAX_MANIFEST: Final = 4 * 1024 * 1024
#: The media type of a firmware's layer, which makes a manifest an artifact of ours.
FIRMWARE_LAYER: Final = "application/octet-stream"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
VERSION_ANNOTATION: Final = "org.opencontainers.image.version"
TITLE_ANNOTATION: Final = "org.opencontainers.image.title"
#: The title that singles out one of several layers.
FIRMWARE_TITLE: Final = "firmware.bin"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest or an index says of a blob (OCI image specification, "OCI Content Descriptors")."""

    media_type: str
    #: `sha256:…`
    digest: str
    #: Bytes.
    size: int
    annotations: Mapping[str, str]

    @property
    def checksum(self) -> bytes:
        """The digest's 32 bytes."""
        return bytes.fromhex(self.digest.partition(":")[2])


@dataclass(frozen=True, slots=True)
class Artifact:
    """A manifest with a firmware in it: its layer, and the version that it has."""

    layer: Descriptor
    version: str


def read_descriptor(value: object, what: str) -> Descriptor:
    """The descriptor that `value`, a piece of JSON called `what`, holds.

    Raises:
        Failed: it is none, or its digest is not a SHA-256.

    """
    if not isinstance(value, dict):
        raise Failed(f"{what} is no descriptor")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise Failed(f"{what} has no media type, digest or size")
    if not re.fullmatch(r"sha256:[a-f0-9]{64}", digest):
        raise Failed(f"{what} has a digest that is not a sha256")
    return Descriptor(media_type, digest, size, _annotations(value, what))


def read_json_object(content: bytes, what: str) -> dict[str, Any]:
    """The JSON object that `content` is.

    Raises:
        Failed: it is none.

    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise Failed(f"{what}: {error}") from error
    if not isinstance(value, dict):
        raise Failed(f"{what} is not a JSON object")
    return value


def read_artifact(content: bytes, tag: str | None) -> Artifact:
    """The firmware that a manifest names.

    Args:
        content: the manifest, verified against its digest by whoever fetched it.
        tag: the tag that led to it, which is the version where no annotation tells it; None where a digest did.

    Raises:
        Failed: the manifest has no firmware, several, or is malformed; the reason tells.

    """
    manifest = read_json_object(content, "manifest")
    media_type = manifest.get("mediaType", MANIFEST)
    if media_type != MANIFEST:
        raise Failed(f"{media_type} is not read, only {MANIFEST}")
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise Failed("manifest has no list of layers")
    layer = _firmware_layer(
        [
            read_descriptor(layer, f"layer {number}")
            for number, layer in enumerate(layers)
            if isinstance(layer, dict) and layer.get("mediaType") == FIRMWARE_LAYER
        ]
    )
    version = _annotations(manifest, "manifest").get(VERSION_ANNOTATION)
    if version is None:
        version = tag if tag not in (None, "latest") else layer.digest.partition(":")[2][:12]
    if not version:
        raise Failed(f"annotation {VERSION_ANNOTATION} is empty")
    return Artifact(layer, version)


def _firmware_layer(candidates: list[Descriptor]) -> Descriptor:
    if not candidates:
        raise Failed(f"no firmware: no layer of media type {FIRMWARE_LAYER}")
    if len(candidates) == 1:
        return candidates[0]
    titled = [layer for layer in candidates if layer.annotations.get(TITLE_ANNOTATION) == FIRMWARE_TITLE]
    if len(titled) == 1:
        return titled[0]
    number = {2: "two", 3: "three"}.get(len(candidates), str(len(candidates)))
    names = ", ".join(layer.annotations.get(TITLE_ANNOTATION, layer.digest) for layer in candidates)
    raise Failed(f"{number} firmware layers: {names}")


def _annotations(value: Mapping[str, Any], what: str) -> Mapping[str, str]:
    annotations = value.get("annotations")
    if annotations is None:
        return {}
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise Failed(f"{what} has annotations that are no map of texts")
    return annotations
