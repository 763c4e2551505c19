"""What a registry says of an image, before anything of it is fetched: manifests, artifacts, metadata.

What must hold:

- Each reader gives what the JSON says, or is `PermanentError`, with a reason of one line that is not long.
- An artifact's layer is one of the manifest's, and its version is that of the annotation where there is one.
- Written in another order and with other white space, the same JSON is read as the same.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from fleet_fn.errors import PermanentError
from fleet_fn.firmware.metadata import Metadata, read_metadata
from fleet_fn.oci.artifact import FIRMWARE_LAYER, Artifact, read_artifact
from fleet_fn.oci.manifest import (
    INDEXES,
    MANIFESTS,
    VERSION_ANNOTATION,
    Descriptor,
    Index,
    Manifest,
    read_descriptor,
    read_manifest,
)
from fleet_fn.oci.reference import is_digest
from tests.fuzz.bounds import bounded

T = TypeVar("T")
_TAGS = (None, "latest", "1.0.0")


def one_input(data: bytes) -> None:
    outcomes = _outcomes(data)
    manifest, metadata, *artifacts = outcomes
    if all(isinstance(outcome, str) for outcome in outcomes):
        return
    value = json.loads(data)
    if isinstance(manifest, Manifest | Index):
        _check_manifest(manifest, value)
    if isinstance(metadata, Metadata):
        _check_metadata(metadata, value)
    for tag, artifact in zip(_TAGS, artifacts, strict=True):
        if isinstance(artifact, Artifact):
            _check_artifact(artifact, value, tag)
    assert _outcomes(json.dumps(dict(reversed(value.items())), indent=1).encode()) == outcomes


def _outcomes(content: bytes) -> list[object]:
    return [
        _read(lambda: read_manifest(content)),
        _read(lambda: read_metadata(content, "firmware.json")),
        *(_read(lambda tag=tag: read_artifact(content, tag)) for tag in _TAGS),  # type: ignore[misc]
    ]


def _read(read: Callable[[], T]) -> T | str:
    """What is read, or why nothing is."""
    try:
        with bounded():
            return read()
    except PermanentError as failed:
        assert failed.reason
        assert failed.reason.isprintable()
        assert len(failed.reason) < 1100
        return failed.reason


def _check_manifest(manifest: Manifest | Index, value: dict[str, Any]) -> None:
    is_index = isinstance(manifest, Index)
    if "mediaType" in value:
        assert value["mediaType"] in (INDEXES if is_index else MANIFESTS)
    else:
        assert value.get("layers" if is_index else "manifests") is None
    told = manifest.manifests if isinstance(manifest, Index) else manifest.layers
    assert told == value["manifests" if is_index else "layers"]
    for entry in told:
        descriptor = _read(lambda entry=entry: read_descriptor(entry, "an entry"))  # type: ignore[misc]
        if isinstance(descriptor, Descriptor):
            _check_descriptor(descriptor, entry)


def _check_descriptor(descriptor: Descriptor, told: Any) -> None:
    assert (descriptor.media_type, descriptor.digest, descriptor.size) == (
        told["mediaType"],
        told["digest"],
        told["size"],
    )
    assert is_digest(descriptor.digest)
    assert descriptor.size >= 0
    assert len(descriptor.checksum) == 32
    assert descriptor.annotations == (told.get("annotations") or {})
    assert descriptor.platform is None or descriptor.platform.startswith(
        tuple(part for part in told["platform"].values() if part and isinstance(part, str))
    )


def _check_metadata(metadata: Metadata, value: dict[str, Any]) -> None:
    assert (metadata.version, metadata.size) == (value["version"], value["size"])
    assert metadata.version
    assert metadata.size >= 0
    assert metadata.checksum.hex() == value["checksum"].lower()


def _check_artifact(artifact: Artifact, value: dict[str, Any], tag: str | None) -> None:
    assert artifact.layer in [
        _read(lambda layer=layer: read_descriptor(layer, "layer"))  # type: ignore[misc]
        for layer in value["layers"]
    ]
    types = [layer.get("mediaType") for layer in value["layers"] if isinstance(layer, dict)]
    assert artifact.layer.media_type == FIRMWARE_LAYER or FIRMWARE_LAYER not in types
    assert value.get("subject") is None
    annotated = (value.get("annotations") or {}).get(VERSION_ANNOTATION)
    unnamed = artifact.layer.digest.removeprefix("sha256:")[:12]
    assert artifact.version == (annotated or (tag if tag == "1.0.0" else unnamed))
