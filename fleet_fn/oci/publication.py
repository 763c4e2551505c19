"""Content of a publication to a registry or a layout: padded firmware, manifest."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.artifact import FIRMWARE_LAYER, FIRMWARE_TITLE, read_artifact
from fleet_fn.oci.manifest import (
    HARDWARE_ANNOTATION,
    MANIFEST,
    REQUIRES_ANNOTATION,
    TITLE_ANNOTATION,
    VERSION_ANNOTATION,
    Manifest,
    digest_of,
    read_manifest,
)
from fleet_fn.protocol.dialects import EMBEDDED_VERSION_BYTES
from fleet_fn.protocol.step import FLASH_WORD_BYTES

#: Marks the manifest as an artifact, not an image (OCI image specification, "Guidelines for Artifact Usage").
_ARTIFACT_TYPE: Final = "application/vnd.drogue.firmware.v1"
#: What keeps a firmware from some devices.
_CONDITIONS: Final = {"hardware": HARDWARE_ANNOTATION, "requires": REQUIRES_ANNOTATION}
EMPTY_CONFIG_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG: Final = b"{}"
#: Erased flash memory reads as this byte.
_PADDING: Final = b"\xff"
_CHUNK_BYTES: Final = 64 * 1024
#: Part of the reason if the registry wants credentials, but none are configured.
WANTS_CREDENTIALS: Final = "wants credentials"


@dataclass(frozen=True, slots=True)
class Published:
    """The result of a publication."""

    #: Digest of the manifest.
    digest: str
    #: Size of the firmware in bytes, padding included.
    size: int
    #: SHA-256 of the firmware in hexadecimal.
    sha256: str
    #: Tags under which the same version has other bytes; a registry's are checked only in part.
    conflicting_tags: tuple[str, ...]
    #: Media type of each attached document, and the digest of the manifest that attaches it.
    attached: tuple[tuple[str, str], ...] = ()


class Content:
    """The bytes of a firmware, padded with 0xff to a multiple of `pad_to`.

    They come from a file, from its current position on. They can be iterated more than once, and are never in memory as
    a whole.
    """

    def __init__(self, file: BinaryIO, pad_to: int = 1) -> None:
        self._file = file
        self._start = file.tell()
        self._in_file = file.seek(0, os.SEEK_END) - self._start
        file.seek(self._start)
        self.size = self._in_file + -self._in_file % pad_to

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        """Yield the bytes in chunks.

        Raises:
            PermanentError: the file cannot be read, or has become shorter.

        """
        try:
            self._file.seek(self._start)
            left = self._in_file
            while chunk := self._file.read(min(left, _CHUNK_BYTES)):
                left -= len(chunk)
                yield chunk
        except OSError as error:
            raise PermanentError(f"the firmware cannot be read: {error.strerror}") from error
        if left:
            raise PermanentError("the firmware's file has become shorter meanwhile")
        yield _PADDING * (self.size - self._in_file)

    def sha256(self) -> str:
        """Return the SHA-256 of all bytes, in hexadecimal.

        Raises:
            PermanentError: see `__iter__`.

        """
        digest = hashlib.sha256()
        for chunk in self:
            digest.update(chunk)
        return digest.hexdigest()


def firmware_warnings(version: str, size: int) -> list[str]:
    """Warn of firmware that some devices in the field cannot take.

    Each warning says what to do.
    """
    warnings = []
    length = len(version.encode(errors="replace"))
    if length > EMBEDDED_VERSION_BYTES:
        warnings.append(
            f"the version has {length} bytes; devices built with Drogue Device hold {EMBEDDED_VERSION_BYTES}, and are "
            "not sent a longer one"
        )
    if words := [str(word) for word in FLASH_WORD_BYTES if size % word]:
        shown = f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else words[0]
        warnings.append(
            f"the size, {size} bytes, is no multiple of {FLASH_WORD_BYTES[-1]}; a device whose flash word is {shown} "
            f"bytes may refuse the last block for ever: publish with --pad-to {FLASH_WORD_BYTES[-1]}"
        )
    return warnings


def compact_json(value: object) -> bytes:
    """Encode `value` as JSON without spaces.

    A manifest's digest is computed over these bytes.
    """
    return json.dumps(value, separators=(",", ":")).encode()


def make_manifest(size: int, sha256: str, annotations: Mapping[str, str]) -> bytes:
    """Return the manifest of an artifact with one layer: firmware of `size` bytes."""
    return compact_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": _ARTIFACT_TYPE,
            "config": describe(EMPTY_CONFIG_TYPE, EMPTY_CONFIG),
            "layers": [
                {
                    "mediaType": FIRMWARE_LAYER,
                    "digest": f"sha256:{sha256}",
                    "size": size,
                    "annotations": {TITLE_ANNOTATION: FIRMWARE_TITLE},
                }
            ],
            "annotations": dict(annotations),
        }
    )


def describe(media_type: str, content: bytes) -> dict[str, Any]:
    """Return the descriptor of a blob or a manifest."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def conflicts(manifest: bytes, tag: str, sha256: str, annotations: Mapping[str, str]) -> bool:
    """Return whether a tag's manifest has the version to publish, but other bytes."""
    with suppress(PermanentError):  # a manifest of another kind
        artifact = read_artifact(manifest, tag)
        return artifact.version == annotations.get(VERSION_ANNOTATION) and artifact.layer.checksum.hex() != sha256
    return False


def refuse_to_move(manifest: bytes, tag: str | None, sha256: str, annotations: Mapping[str, str]) -> None:
    """Check that a tag may move from its manifest to the one to be published.

    The bytes have to be the same, and so has what keeps them from some devices: an option that is forgotten would send
    them to others.

    Raises:
        PermanentError: the tag has other bytes, hardware or requirements, or is no firmware artifact.

    """
    other = ["bytes"]
    with suppress(PermanentError):  # a manifest of another kind
        if read_artifact(manifest, tag).layer.checksum.hex() == sha256:
            before = _annotations_of(manifest)
            other = [
                name
                for name, annotation in _CONDITIONS.items()
                if before.get(annotation, "") not in ("", annotations.get(annotation))
            ]
    if other:
        raise PermanentError(
            f"tag {tag} has other {' and '.join(other)} already: publish another version, or move it with --force"
        )


def _annotations_of(manifest: bytes) -> Mapping[str, str]:
    read = read_manifest(manifest)
    return read.annotations if isinstance(read, Manifest) else {}
