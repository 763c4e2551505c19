"""Store of firmware in OCI image layouts below one folder, each a repository."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.files import open_without_waiting
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.layer import Readable
from fleet_fn.oci.layout import Layout, tag_of
from fleet_fn.oci.manifest import Descriptor
from fleet_fn.oci.reference import Reference, is_tag
from fleet_fn.oci.referrers import fallback_tag, of_type, read_fallback


class LayoutStore:
    """Serves firmware from image layouts.

    Only firmware that has to be unpacked is copied into the cache.
    """

    def __init__(self, files: VerifiedFiles, shapes: Shapes) -> None:
        self._files = files
        self._shapes = shapes

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:  # noqa: ARG002 - it is cheap to look again
        """Return the firmware that `reference` names in the layout of the same name.

        Raises:
            NotReadyError: searching the image's layers takes longer than the deadline; the search goes on.
            PermanentError: no such layout, tag or digest, or something in it is malformed.

        """
        layout = _layout(reference)
        content = layout.manifest(reference)
        return self._shapes.firmware(content, reference, _Repository(layout, self._files), deadline)

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:  # noqa: ARG002 - local files
        """Return the tags of the layout that `reference` names; see `ImageStore.tags`."""
        tags = map(tag_of, _layout(reference).index())
        return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""


def _layout(reference: Reference) -> Layout:
    return Layout(Path(reference.prefix + reference.name))


class _Repository:
    """Content by digest in an image layout."""

    def __init__(self, layout: Layout, files: VerifiedFiles) -> None:
        #: Unique name of the repository.
        self.name = str(layout.folder)
        self._layout = layout
        self._files = files

    def manifest(self, digest: str, deadline: Deadline) -> bytes:  # noqa: ARG002 - local files
        """Return the verified bytes of a manifest or an index; see `Repository.manifest`."""
        return self._layout.content(digest)

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:  # noqa: ARG002 - local files
        """Return the verified bytes of a small blob; see `Repository.config`."""
        return self._layout.content(blob.digest)

    def tagged(self, tag: str, deadline: Deadline) -> bytes | None:  # noqa: ARG002 - local files
        """Return the manifest or index that a tag names now; see `Attachments.tagged`."""
        return self._layout.tagged(tag)

    def referrers(self, digest: str, artifact_type: str, deadline: Deadline) -> list[Descriptor]:  # noqa: ARG002 - local files
        """Return what is attached to a manifest; see `Attachments.referrers`.

        They stand in the layout's index, or in one under the fallback tag, if it was copied out of a registry. Such a
        layout may have both: what is published into it later goes into the index.
        """
        listed = [
            *self._layout.referrers(digest, artifact_type),
            *read_fallback(self._layout.tagged(fallback_tag(digest)), digest),
        ]
        found = {entry.digest: entry for entry in reversed(listed)}
        return of_type(reversed(found.values()), artifact_type)

    @contextmanager
    def open(self, blob: Descriptor, deadline: Deadline) -> Iterator[Reader]:
        """Open a firmware that is a blob, verified; see `Firmware.open`."""
        try:
            with self._files.open(self._layout.blob(blob.digest), blob.size, blob.checksum, deadline) as file:
                yield file
        except FileNotFoundError as error:
            raise PermanentError(f"blob {blob.digest} is missing from the layout") from error

    @contextmanager
    def stream(self, blob: Descriptor) -> Iterator[Readable]:
        """Open a blob for reading once, unverified; see `Repository.stream`."""
        file = _Blob(self._layout.blob(blob.digest), blob)
        try:
            yield file
        finally:
            file.close()


class _Blob:
    """The file of a blob, read from its beginning to its end."""

    def __init__(self, path: Path, blob: Descriptor) -> None:
        self._digest = blob.digest
        try:
            self._file = open(path, "rb", buffering=0, opener=open_without_waiting)  # noqa: SIM115 - see `close`
        except FileNotFoundError as error:
            raise PermanentError(f"blob {blob.digest} is missing from the layout") from error
        except OSError as error:
            raise PermanentError(f"blob {blob.digest}: {error.strerror}") from error
        size = os.fstat(self._file.fileno()).st_size
        if size != blob.size:
            self._file.close()
            raise PermanentError(f"size mismatch: blob {blob.digest} has {size} bytes, expected {blob.size}")

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; b"" at the end.

        Raises:
            PermanentError: the file cannot be read.

        """
        try:
            return self._file.read(size) or b""
        except OSError as error:
            raise PermanentError(f"blob {self._digest}: {error.strerror}") from error

    def close(self) -> None:
        self._file.close()
