"""Firmware in OCI image layouts: folders below one folder, each of them a repository."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.firmware.artifact import (
    MANIFEST,
    MAX_MANIFEST,
    read_artifact,
    read_descriptor,
    read_json_object,
)
from fleet_fn.firmware.reference import Reference
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.firmware.verified import VerifiedFiles, open_without_waiting

#: The annotation of an index's entry that names its tag (OCI image layout specification, "index.json file").
TAG_ANNOTATION: Final = "org.opencontainers.image.ref.name"
LAYOUT_FILE: Final = "oci-layout"
LAYOUT_VERSION: Final = "1.0.0"


class LayoutStore:
    """Reads firmware where it lies; nothing is copied."""

    def __init__(self, files: VerifiedFiles) -> None:
        self._files = files

    def resolve(self, reference: Reference, deadline: Deadline) -> Firmware:  # noqa: ARG002 - small local files
        """The firmware that `reference` names in the layout of its name.

        Raises:
            Failed: no such layout, tag or digest, or something in it is malformed.

        """
        layout = Layout(Path(reference.prefix, reference.name))
        manifest = layout.manifest(reference)
        artifact = read_artifact(manifest, None if reference.digest else reference.tag)
        try:
            return Firmware(
                artifact.version, artifact.layer.size, artifact.layer.checksum, layout.blob(artifact.layer.digest)
            )
        except ValueError as error:
            raise Failed(str(error)) from error

    @contextmanager
    def open(self, firmware: Firmware, deadline: Deadline) -> Iterator[Reader]:
        """The firmware's bytes, once they were verified; see `Store.open`."""
        try:
            with self._files.open(firmware.path, firmware.size, firmware.checksum, deadline) as file:
                yield file
        except FileNotFoundError as error:
            raise Failed(f"blob sha256:{firmware.checksum.hex()} is missing from the layout") from error


class Layout:
    """One image layout (OCI image layout specification 1.1)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, digest: str) -> Path:
        """Where the blob of a digest lies."""
        algorithm, _, encoded = digest.partition(":")
        return self.folder / "blobs" / algorithm / encoded

    def index(self) -> list[object]:
        """The entries of the layout's index, of whatever kind: some may be of none that is known here.

        Raises:
            Failed: this is no layout, or its index is malformed.

        """
        marker = read_json_object(self._read(self.folder / LAYOUT_FILE), LAYOUT_FILE)
        if marker.get("imageLayoutVersion") != LAYOUT_VERSION:
            raise Failed(f"image layout of version {marker.get('imageLayoutVersion')!r}, not {LAYOUT_VERSION}")
        manifests = read_json_object(self._read(self.folder / "index.json"), "index.json").get("manifests")
        if not isinstance(manifests, list):
            raise Failed("index.json has no list of manifests")
        return manifests

    def manifest(self, reference: Reference) -> bytes:
        """The verified bytes of the manifest that a reference names.

        Raises:
            Failed: there is none, or its bytes are not what its descriptor says.

        """
        tagged = [entry for entry in self.index() if tag_of(entry) == reference.tag]
        if reference.digest:
            # It need not be in the index: a manifest that lost its tag is still in the layout.
            return self._blob_content(reference.digest, None)
        descriptors = {d.digest: d for d in (read_descriptor(entry, f"tag {reference.tag}") for entry in tagged)}
        if not descriptors:
            raise Failed(f"no tag {reference.tag} in the layout {reference.name}")
        if len(descriptors) > 1:
            raise Failed(f"tag {reference.tag} stands at {len(descriptors)} manifests in the layout {reference.name}")
        (descriptor,) = descriptors.values()
        if descriptor.media_type != MANIFEST:
            raise Failed(f"{descriptor.media_type} is not read, only {MANIFEST}")
        return self._blob_content(descriptor.digest, descriptor.size)

    def _blob_content(self, digest: str, size: int | None) -> bytes:
        content = self._read(self.blob(digest))
        if size not in (None, len(content)):
            raise Failed(f"manifest {digest} has {len(content)} bytes where there should be {size}")
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise Failed(f"manifest {digest} has another digest than its name")
        return content

    def _read(self, path: Path) -> bytes:
        what = path.relative_to(self.folder)
        try:
            with open(path, "rb", opener=open_without_waiting) as file:
                content = file.read(MAX_MANIFEST + 1) or b""  # None from a FIFO
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = f"no {what} in the layout" if path.name != LAYOUT_FILE else "no image layout"
            raise Failed(f"{reason} {self.folder.name}") from error
        except OSError as error:
            raise Failed(f"{what} in the layout {self.folder.name}: {error.strerror}") from error
        if len(content) > MAX_MANIFEST:
            raise Failed(f"{what} in the layout {self.folder.name} is larger than {MAX_MANIFEST} bytes")
        return content


def tag_of(entry: object) -> object:
    """The tag of an index's entry, or None."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(TAG_ANNOTATION) if isinstance(annotations, dict) else None
