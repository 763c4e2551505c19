"""Artifacts: manifests with a firmware layer, by `publish`, `oras push` or others.

A manifest's media types say what its publisher thinks of, not what is in it: other projects have types of their own for
firmware. So one single layer counts as a firmware, unless its type is that of a document about another manifest.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import (
    TITLE_ANNOTATION,
    VERSION_ANNOTATION,
    Descriptor,
    Manifest,
    media_type_of,
    read_descriptor,
    read_manifest,
)

#: Media type of the firmware layer that `publish` makes; a manifest with such a layer is a firmware artifact.
FIRMWARE_LAYER: Final = "application/octet-stream"
#: Title annotation that selects one of several such layers.
FIRMWARE_TITLE: Final = "firmware.bin"
#: Media types of the configs of images, OCI's and Docker's.
IMAGE_CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
#: Media types of documents about other manifests: signatures, SBOMs and attestations. Most of them are JSON: cosign's,
#: in-toto's, Notary's, SPDX's, CycloneDX's, and OCI's empty layer.
_DOCUMENT: Final = re.compile(
    r".*\+(json|xml)|application/(json|xml|cose|pgp-signature|pkcs7-signature)|text/(spdx|xml)", re.IGNORECASE
)
#: Annotation by which `oras push` marks a folder that it packed into an archive.
_FOLDER_ANNOTATION: Final = "io.deis.oras.content.unpack"


class NoFirmwareError(PermanentError):
    """A manifest or an index has no firmware in any of the shapes."""


class Artifact(NamedTuple):
    """The firmware layer of a manifest, and the firmware's version."""

    layer: Descriptor
    version: str
    #: The manifest tells the version, rather than the tag, which no signature covers.
    has_own_version: bool = True


def artifact_in(manifest: Manifest, tag: str | None) -> Artifact | None:
    """Return a manifest's firmware layer and its version, or None without the layer.

    Args:
        manifest: an artifact or any other manifest.
        tag: the tag that named the manifest; None if a digest did. It is the version if no annotation gives one.

    Raises:
        NoFirmwareError: the manifest is attached to another one, or none of its layers can be told from the others.
        PermanentError: there are several firmware layers, or a descriptor is malformed; the reason says which.

    """
    if manifest.subject is not None:
        raise NoFirmwareError("no firmware: the manifest is attached to another one")
    layer = _firmware_layer(manifest)
    if layer is None:
        return None
    version = manifest.annotations.get(VERSION_ANNOTATION)
    if version is None and tag not in (None, "latest"):
        return Artifact(layer, tag, has_own_version=False)
    if version is None:
        version = layer.checksum.hex()[:12]
    if not version:
        raise PermanentError(f"annotation {VERSION_ANNOTATION} is empty")
    return Artifact(layer, version)


def read_artifact(content: bytes, tag: str | None) -> Artifact:
    """Return the artifact in the JSON of a manifest; see `artifact_in`.

    Raises:
        PermanentError: the manifest has no firmware layer, or is malformed.

    """
    manifest = read_manifest(content)
    artifact = artifact_in(manifest, tag) if isinstance(manifest, Manifest) else None
    if artifact is None:
        raise PermanentError(f"no firmware: no layer of media type {FIRMWARE_LAYER}")
    return artifact


def _firmware_layer(manifest: Manifest) -> Descriptor | None:
    if typed := _layers(manifest, lambda media_type: media_type == FIRMWARE_LAYER):
        if (layer := typed[0] if len(typed) == 1 else _titled(typed)) is None:
            raise PermanentError(f"{_number(typed)} firmware layers: {_names(typed)}")
        return layer
    if _is_image(manifest):
        return None
    layers = _layers(manifest, _may_be_firmware)
    if not layers:
        if documents := _layers(manifest, lambda _: True):
            raise NoFirmwareError(f"no firmware: {documents[0].media_type[:100]} is a document about one")
        return None
    is_only = len(manifest.layers) == 1
    if (layer := layers[0] if is_only else _titled(layers)) is None:
        layers = _layers(manifest, lambda _: True)
        raise NoFirmwareError(f"{_number(layers)} layers, not one of them titled {FIRMWARE_TITLE}: {_names(layers)}")
    return None if _FOLDER_ANNOTATION in layer.annotations else layer


def _layers(manifest: Manifest, is_wanted: Callable[[str], bool]) -> list[Descriptor]:
    """Return the layers with a media type that is wanted; others may be malformed."""
    return [
        read_descriptor(layer, f"layer {number}")
        for number, layer in enumerate(manifest.layers)
        if isinstance(media_type := media_type_of(layer), str) and is_wanted(media_type)
    ]


def _is_image(manifest: Manifest) -> bool:
    """Return whether the firmware would be a file in the layers, which are archives."""
    has_archives = any(".tar" in str(media_type_of(layer)) for layer in manifest.layers)
    return has_archives and media_type_of(manifest.config) in IMAGE_CONFIGS


def _may_be_firmware(media_type: str) -> bool:
    return not _DOCUMENT.fullmatch(media_type.partition(";")[0].strip())


def _titled(layers: Sequence[Descriptor]) -> Descriptor | None:
    """Return the only layer that is titled as the firmware, or None."""
    titled = [layer for layer in layers if _title(layer) == FIRMWARE_TITLE]
    return titled[0] if len(titled) == 1 else None


def _title(layer: Descriptor) -> str:
    return layer.annotations.get(TITLE_ANNOTATION, layer.digest)


def _number(layers: Sequence[Descriptor]) -> str:
    return {2: "two", 3: "three"}.get(len(layers), str(len(layers)))


def _names(layers: Sequence[Descriptor]) -> str:
    return ", ".join(map(_title, layers))
