"""What is published, wherever it goes: a firmware's bytes and padding, and the manifest that names them."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from fleet_fn.errors import PermanentError
from fleet_fn.oci.artifact import FIRMWARE_LAYER, FIRMWARE_TITLE, read_artifact
from fleet_fn.oci.manifest import MANIFEST, TITLE_ANNOTATION, VERSION_ANNOTATION, digest_of
from fleet_fn.protocol.dialects import EMBEDDED_VERSION_BYTES

#: What makes the manifest an artifact rather than an image (OCI image specification, "Guidelines for Artifact Usage").
_ARTIFACT_TYPE: Final = "application/vnd.drogue.firmware.v1"
_EMPTY_CONFIG_TYPE: Final = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG: Final = b"{}"
#: What erased flash memory reads as.
_PADDING: Final = b"\xff"
#: Bytes that the flash memories of devices write at once; most of them 4. A longer block has to be a multiple.
_FLASH_WORDS: Final = (4, 8, 16, 32)
_CHUNK: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication put where."""

    #: The manifest's.
    digest: str
    #: Of the firmware: bytes, and the SHA-256 in hexadecimal.
    size: int
    sha256: str
    #: Tags where the same version had other bytes, as far as was looked.
    mixed: tuple[str, ...]


class Content:
    """The bytes of a firmware: a file's from where it stands, filled up with 0xff to a multiple of `pad_to`.

    It can be iterated over again and again, and is never in memory as a whole.
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
        """The bytes in chunks.

        Raises:
            PermanentError: the file cannot be read, or has become shorter.

        """
        try:
            self._file.seek(self._start)
            left = self._in_file
            while chunk := self._file.read(min(left, _CHUNK)):
                left -= len(chunk)
                yield chunk
        except OSError as error:
            raise PermanentError(f"the firmware cannot be read: {error.strerror}") from error
        if left:
            raise PermanentError("the firmware's file has become shorter meanwhile")
        yield _PADDING * (self.size - self._in_file)

    def sha256(self) -> str:
        """The SHA-256 of all bytes, in hexadecimal.

        Raises:
            PermanentError: as with iterating.

        """
        digest = hashlib.sha256()
        for chunk in self:
            digest.update(chunk)
        return digest.hexdigest()


def firmware_warnings(version: str, size: int) -> list[str]:
    """Warn of firmware that some devices in the field cannot take; each warning says what to do."""
    warnings = []
    length = len(version.encode(errors="replace"))
    if length > EMBEDDED_VERSION_BYTES:
        warnings.append(
            f"the version has {length} bytes; devices built with Drogue Device hold {EMBEDDED_VERSION_BYTES}, and are "
            "not sent a longer one"
        )
    if words := [str(word) for word in _FLASH_WORDS if size % word]:
        shown = f"{', '.join(words[:-1])} or {words[-1]}" if words[1:] else words[0]
        warnings.append(
            f"the size, {size} bytes, is no multiple of {_FLASH_WORDS[-1]}; a device whose flash word is {shown} bytes "
            f"may refuse the last block for ever: publish with --pad-to {_FLASH_WORDS[-1]}"
        )
    return warnings


def compact_json(value: object) -> bytes:
    """`value` as it is stored and sent; a manifest's digest is of these bytes."""
    return json.dumps(value, separators=(",", ":")).encode()


def make_manifest(size: int, sha256: str, annotations: Mapping[str, str]) -> bytes:
    """The manifest of an artifact: its only layer is a firmware of `size` bytes."""
    return compact_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": _ARTIFACT_TYPE,
            "config": describe(_EMPTY_CONFIG_TYPE, EMPTY_CONFIG),
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
    """The descriptor of a blob or a manifest."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def mixes(manifest: bytes, tag: str, sha256: str, annotations: Mapping[str, str]) -> bool:
    """Whether the manifest at a tag has other bytes for the version that is to be published."""
    with suppress(PermanentError):  # a manifest of another kind
        artifact = read_artifact(manifest, tag)
        return artifact.version == annotations.get(VERSION_ANNOTATION) and artifact.layer.checksum.hex() != sha256
    return False


def refuse_to_move(manifest: bytes, tag: str | None, sha256: str) -> None:
    """Checks that the manifest at a tag has the very bytes that are to be published under it.

    Raises:
        PermanentError: it has others, or none that could be compared.

    """
    with suppress(PermanentError):  # a manifest of another kind
        if read_artifact(manifest, tag).layer.checksum.hex() == sha256:
            return
    raise PermanentError(f"tag {tag} has other bytes already: publish another version, or move it with --force")
