"""Artifacts: manifests with a firmware layer, made by `publish` or `oras push`."""

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

#: Media type of the firmware layer; a manifest with such a layer is a firmware artifact.
FIRMWARE_LAYER: Final = "application/octet-stream"
#: Title annotation that selects one of several such layers.
FIRMWARE_TITLE: Final = "firmware.bin"


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
        PermanentError: there are several firmware layers, or a descriptor is malformed; the reason says which.

    """
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
    candidates = [
        read_descriptor(layer, f"layer {number}")
        for number, layer in enumerate(manifest.layers)
        if media_type_of(layer) == FIRMWARE_LAYER
    ]
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    titled = [layer for layer in candidates if layer.annotations.get(TITLE_ANNOTATION) == FIRMWARE_TITLE]
    if len(titled) == 1:
        return titled[0]
    number = {2: "two", 3: "three"}.get(len(candidates), str(len(candidates)))
    names = ", ".join(layer.annotations.get(TITLE_ANNOTATION, layer.digest) for layer in candidates)
    raise PermanentError(f"{number} firmware layers: {names}")
