"""Firmware in OCI image layouts: folders below one folder, each of them a repository."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import Failed
from fleet_fn.firmware.files import open_without_waiting, read_small
from fleet_fn.firmware.layer import Readable
from fleet_fn.firmware.manifest import MAX_MANIFEST, Descriptor, digest_of, read_descriptor, read_json_object
from fleet_fn.firmware.reference import Reference
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.firmware.verified import VerifiedFiles

#: The annotation of an index's entry that names its tag (OCI image layout specification, "index.json file").
TAG_ANNOTATION: Final = "org.opencontainers.image.ref.name"
LAYOUT_FILE: Final = "oci-layout"
LAYOUT_VERSION: Final = "1.0.0"


class LayoutStore:
    """Reads firmware where it lies; only what has to be unpacked is copied, into the cache."""

    def __init__(self, files: VerifiedFiles, shapes: Shapes) -> None:
        self._files = files
        self._shapes = shapes

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:  # noqa: ARG002 - it is cheap to look again
        """The firmware that `reference` names in the layout of its name.

        Raises:
            NotHere: an image has to be looked through first, which goes on.
            Failed: no such layout, tag or digest, or something in it is malformed.

        """
        layout = Layout(Path(reference.prefix, reference.name))
        content = layout.manifest(reference)
        firmware = self._shapes.firmware(content, reference, _Repository(layout, self._files), deadline)
        return replace(firmware, manifest=digest_of(content))


class _Repository:
    """Content by digest, where it lies."""

    def __init__(self, layout: "Layout", files: VerifiedFiles) -> None:
        #: What tells it from all others.
        self.name = str(layout.folder)
        self._layout = layout
        self._files = files

    def manifest(self, digest: str, deadline: Deadline) -> bytes:  # noqa: ARG002 - local files
        """The verified bytes of a manifest or an index; see `Repository.manifest`."""
        return self._layout.content(digest)

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:  # noqa: ARG002 - local files
        """The verified bytes of a small blob; see `Repository.config`."""
        return self._layout.content(blob.digest)

    @contextmanager
    def open(self, blob: Descriptor, deadline: Deadline) -> Iterator[Reader]:
        """The verified bytes of a firmware that is a blob; see `Firmware.open`."""
        try:
            with self._files.open(self._layout.blob(blob.digest), blob.size, blob.checksum, deadline) as file:
                yield file
        except FileNotFoundError as error:
            raise Failed(f"blob {blob.digest} is missing from the layout") from error

    @contextmanager
    def stream(self, blob: Descriptor) -> Iterator[Readable]:
        """The bytes of a blob; see `Repository.stream`."""
        file = _Blob(self._layout.blob(blob.digest), blob)
        try:
            yield file
        finally:
            file.close()


class _Blob:
    """A blob's file, to be read from its beginning to its end."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self._digest = blob.digest
        try:
            self._file = open(path, "rb", buffering=0, opener=open_without_waiting)  # noqa: SIM115 - see `close`
        except FileNotFoundError as error:
            raise Failed(f"blob {blob.digest} is missing from the layout") from error
        except OSError as error:
            raise Failed(f"blob {blob.digest}: {error.strerror}") from error
        size = os.fstat(self._file.fileno()).st_size
        if size != blob.size:
            self._file.close()
            raise Failed(f"size mismatch: blob {blob.digest} has {size} bytes where there should be {blob.size}")

    def read(self, size: int, /) -> bytes:
        """What comes next, at most `size` bytes; none at the end.

        Raises:
            Failed: the file cannot be read.

        """
        try:
            return self._file.read(size) or b""
        except OSError as error:
            raise Failed(f"blob {self._digest}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()


class Layout:
    """One image layout (OCI image layout specification 1.1)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, digest: str) -> Path:
        """Where the blob of a digest lies."""
        algorithm, _, encoded = digest.partition(":")
        return self.folder.joinpath("blobs", algorithm, encoded)

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
        """The verified bytes of the manifest or the index that a reference names.

        Raises:
            Failed: there is none, or its bytes are not what its descriptor says.

        """
        tagged = [entry for entry in self.index() if tag_of(entry) == reference.tag]
        if reference.digest:
            # It need not be in the layout's index: a manifest that lost its tag is still in the layout.
            return self.content(reference.digest)
        descriptors = {d.digest: d for d in (read_descriptor(entry, f"tag {reference.tag}") for entry in tagged)}
        if not descriptors:
            raise Failed(f"no tag {reference.tag} in the layout {reference.name}")
        if len(descriptors) > 1:
            raise Failed(f"tag {reference.tag} stands at {len(descriptors)} manifests in the layout {reference.name}")
        (descriptor,) = descriptors.values()
        content = self.content(descriptor.digest)
        if len(content) != descriptor.size:
            raise Failed(
                f"manifest {descriptor.digest} has {len(content)} bytes where there should be {descriptor.size}"
            )
        return content

    def content(self, digest: str) -> bytes:
        """The verified bytes of a small blob.

        Raises:
            Failed: it is not there, is larger than `MAX_MANIFEST`, or has other bytes than its digest says.

        """
        content = self._read(self.blob(digest))
        if digest_of(content) != digest:
            raise Failed(f"blob {digest} has another digest than its name")
        return content

    def _read(self, path: Path) -> bytes:
        what = path.relative_to(self.folder)
        try:
            return read_small(path, MAX_MANIFEST, f"{what} in the layout {self.folder.name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = f"no {what} in the layout" if path.name != LAYOUT_FILE else "no image layout"
            raise Failed(f"{reason} {self.folder.name}") from error
        except OSError as error:
            raise Failed(f"{what} in the layout {self.folder.name}: {error.strerror}") from error


def tag_of(entry: object) -> object:
    """The tag of an index's entry, or None."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(TAG_ANNOTATION) if isinstance(annotations, dict) else None
