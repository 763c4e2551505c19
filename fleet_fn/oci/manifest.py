"""Manifests, indexes and descriptors (OCI image spec 1.1) from untrusted JSON."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.oci.reference import is_digest
from fleet_fn.strict_json import parse_json

#: Upper bound for a manifest, an index or an image's config; registries accept no larger manifest either.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS: Final = (MANIFEST, DOCKER_MANIFEST)
INDEXES: Final = (INDEX, DOCKER_INDEX)
VERSION_ANNOTATION: Final = "org.opencontainers.image.version"
TITLE_ANNOTATION: Final = "org.opencontainers.image.title"
#: Who published the firmware, in any words.
AUTHORS_ANNOTATION: Final = "org.opencontainers.image.authors"
#: The repository that a firmware was built from, the commit, and the time (RFC 3339).
SOURCE_ANNOTATION: Final = "org.opencontainers.image.source"
REVISION_ANNOTATION: Final = "org.opencontainers.image.revision"
CREATED_ANNOTATION: Final = "org.opencontainers.image.created"
#: Hardware that a firmware is built for, separated by commas.
HARDWARE_ANNOTATION: Final = "io.drogue.firmware.hardware"
#: Range that a device's version must be in before it gets the firmware.
REQUIRES_ANNOTATION: Final = "io.drogue.firmware.requires"


class Descriptor(NamedTuple):
    """A descriptor of a blob or manifest.

    See the OCI image specification, "OCI Content Descriptors".
    """

    media_type: str
    #: `sha256:…`
    digest: str
    #: Bytes.
    size: int
    annotations: Mapping[str, str]
    #: `os/architecture` or `os/architecture/variant`, in the entries of an index.
    platform: str | None = None
    #: Kind of artifact that a manifest is, in the entries of an index; empty if unknown.
    artifact_type: str = ""

    @property
    def checksum(self) -> bytes:
        """SHA-256 in the digest, 32 bytes."""
        return checksum_of(self.digest)


class Manifest(NamedTuple):
    """A manifest of an image or an artifact."""

    #: Parsed JSON, checked when it is used: parts that nothing uses may be malformed.
    config: object
    layers: Sequence[object]
    annotations: Mapping[str, str]
    #: Descriptor of the manifest that this one is attached to, checked when it is used.
    subject: object = None
    #: Kind of artifact: `artifactType`, or else the media type of its config; empty if neither is a text.
    artifact_type: str = ""


class Index(NamedTuple):
    """An index: several manifests, told apart by platform or annotations."""

    #: Parsed JSON, checked when it is used.
    manifests: Sequence[object]


def digest_of(content: bytes) -> str:
    """Return the digest of `content`: `sha256:…`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def checksum_of(digest: str) -> bytes:
    """Return the 32 bytes of `sha256:…`."""
    return bytes.fromhex(digest.partition(":")[2])


def read_manifest(content: bytes) -> Manifest | Index:
    """Parse a manifest or an index.

    The caller has verified `content` against its digest.

    Raises:
        PermanentError: `content` is neither; the reason says why.

    """
    value = read_json_object(content, "manifest")
    media_type = value.get("mediaType")
    layers, manifests = value.get("layers"), value.get("manifests")
    if "mediaType" not in value:
        # OCI leaves it optional. Different readers take a document with both lists for different things
        # (CVE-2021-41190).
        if layers is not None and manifests is not None:
            raise PermanentError("manifest has layers and manifests, but no media type")
        media_type = INDEX if manifests is not None else MANIFEST
    if media_type in INDEXES:
        if not isinstance(manifests, list):
            raise PermanentError("index has no list of manifests")
        return Index(manifests)
    if media_type not in MANIFESTS:
        raise PermanentError(f"{str(media_type)[:100]} is not supported, only images, artifacts and indexes of them")
    if not isinstance(layers, list):
        raise PermanentError("manifest has no list of layers")
    kind = value.get("artifactType") or media_type_of(value.get("config"))
    return Manifest(
        value.get("config"),
        layers,
        _annotations(value, "manifest"),
        value.get("subject"),
        kind if isinstance(kind, str) else "",
    )


def read_descriptor(value: object, what: str) -> Descriptor:
    """Read a descriptor from parsed JSON; `what` names it in reasons.

    Raises:
        PermanentError: `value` is no descriptor, or its digest is not a SHA-256.

    """
    if not isinstance(value, dict):
        raise PermanentError(f"{what} is no descriptor")
    media_type, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(media_type, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise PermanentError(f"{what} has no media type, digest or size")
    if not is_digest(digest):
        raise PermanentError(f"{what} has a digest that is not a sha256")
    kind = value.get("artifactType")
    return Descriptor(
        media_type,
        digest,
        size,
        _annotations(value, what),
        _platform(value.get("platform"), what),
        kind if isinstance(kind, str) else "",
    )


def media_type_of(value: object) -> object:
    """Return the media type of a descriptor that may be malformed, or None."""
    return value.get("mediaType") if isinstance(value, dict) else None


def read_json_object(content: bytes, what: str) -> dict[str, Any]:
    """Parse a JSON object; `what` names it in reasons.

    Raises:
        PermanentError: `content` is no JSON object.

    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise PermanentError(f"{what}: {error}") from error
    if not isinstance(value, dict):
        raise PermanentError(f"{what} is not a JSON object")
    return value


def _annotations(value: Mapping[str, Any], what: str) -> Mapping[str, str]:
    annotations = value.get("annotations")
    if annotations is None:
        return {}
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise PermanentError(f"{what} has annotations that are no map of strings")
    return annotations


def _platform(value: object, what: str) -> str | None:
    if value is None:
        return None
    parts = [value.get(key) for key in ("os", "architecture", "variant")] if isinstance(value, dict) else []
    if not parts or not all(part is None or isinstance(part, str) for part in parts):
        raise PermanentError(f"{what} has a platform that is no map of strings")
    return "/".join(part for part in parts if part) or None
