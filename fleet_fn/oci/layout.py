"""Reader of OCI image layouts 1.1: folders, each of them one repository."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fleet_fn.errors import PermanentError
from fleet_fn.files import read_small
from fleet_fn.oci.manifest import (
    MANIFESTS,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Manifest,
    digest_of,
    read_descriptor,
    read_json_object,
    read_manifest,
)
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.referrers import MAX_REFERRER_BYTES, MAX_REFERRERS, is_attached, read_entries

#: Annotation with the tag of an index's entry (OCI image layout specification, "index.json file").
TAG_ANNOTATION: Final = "org.opencontainers.image.ref.name"
LAYOUT_FILE: Final = "oci-layout"
LAYOUT_VERSION: Final = "1.0.0"
#: Begins the reason if a folder is no layout.
NO_LAYOUT: Final = "no image layout"


class Layout:
    """One image layout (OCI image layout specification 1.1)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blob(self, digest: str) -> Path:
        """Return the path of the blob with a digest."""
        algorithm, _, encoded = digest.partition(":")
        return self.folder.joinpath("blobs", algorithm, encoded)

    def index(self) -> list[object]:
        """Return the entries of the layout's index as parsed JSON, unchecked.

        Raises:
            PermanentError: the folder is no layout, or its index is malformed.

        """
        marker = read_json_object(self._read(self.folder / LAYOUT_FILE), LAYOUT_FILE)
        if marker.get("imageLayoutVersion") != LAYOUT_VERSION:
            raise PermanentError(f"image layout of version {marker.get('imageLayoutVersion')!r}, not {LAYOUT_VERSION}")
        manifests = read_json_object(self._read(self.folder / "index.json"), "index.json").get("manifests")
        if not isinstance(manifests, list):
            raise PermanentError("index.json has no list of manifests")
        return manifests

    def manifest(self, reference: Reference) -> bytes:
        """Return the verified bytes of the manifest or index that a reference names.

        Raises:
            PermanentError: there is none, or its bytes do not match its descriptor.

        """
        tagged = [entry for entry in self.index() if tag_of(entry) == reference.tag]
        if reference.digest:
            # A manifest that lost its tag is no longer in the index, but still in the layout.
            return self.content(reference.digest)
        descriptors = {d.digest: d for d in (read_descriptor(entry, f"tag {reference.tag}") for entry in tagged)}
        if not descriptors:
            raise PermanentError(f"no tag {reference.tag} in the layout {reference.name}")
        if len(descriptors) > 1:
            raise PermanentError(
                f"tag {reference.tag} names {len(descriptors)} manifests in the layout {reference.name}"
            )
        (descriptor,) = descriptors.values()
        content = self.content(descriptor.digest)
        if len(content) != descriptor.size:
            raise PermanentError(f"manifest {descriptor.digest} has {len(content)} bytes, expected {descriptor.size}")
        return content

    def tagged(self, tag: str) -> bytes | None:
        """Return the verified bytes of a tag's manifest; None without the tag.

        Raises:
            PermanentError: see `manifest`.

        """
        if tag not in map(tag_of, self.index()):
            return None
        return self.manifest(Reference("", self.folder.name, tag, None))

    def referrers(self, digest: str, artifact_type: str) -> Iterator[Descriptor]:
        """Yield the manifests in the index that are attached to the one with `digest`.

        Only `MAX_REFERRERS` entries are looked at, those of large manifests are not. A layout has the entries of all
        its versions, so the latest are preferred, and those that tell their type: the tagged ones of firmware do not.

        Raises:
            PermanentError: the folder is no layout, or its index is malformed.

        """
        entries = [entry for entry in read_entries(self.index()) if entry.digest != digest]
        if artifact_type:
            entries = [entry for entry in entries if entry.artifact_type in ("", artifact_type)]
        preferred = sorted(range(len(entries)), key=lambda number: (not entries[number].artifact_type, -number))
        for entry in [entries[number] for number in sorted(preferred[:MAX_REFERRERS])]:
            if entry.media_type not in MANIFESTS or entry.size > MAX_REFERRER_BYTES:
                continue
            try:
                manifest = read_manifest(self.content(entry.digest))
            except PermanentError:  # whatever it is, nothing that was read is attached
                continue
            if isinstance(manifest, Manifest) and is_attached(manifest, digest):
                yield entry._replace(artifact_type=manifest.artifact_type, annotations=manifest.annotations)

    def content(self, digest: str) -> bytes:
        """Return the verified bytes of a small blob.

        Raises:
            PermanentError: the blob is missing, is larger than `MAX_MANIFEST_BYTES`, or does not match its digest.

        """
        content = self._read(self.blob(digest))
        if digest_of(content) != digest:
            raise PermanentError(f"blob {digest} has another digest than its name")
        return content

    def _read(self, path: Path) -> bytes:
        what = path.relative_to(self.folder)
        try:
            return read_small(path, MAX_MANIFEST_BYTES, f"{what} in the layout {self.folder.name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            reason = f"no {what} in the layout" if path.name != LAYOUT_FILE else NO_LAYOUT
            raise PermanentError(f"{reason} {self.folder.name}") from error
        except OSError as error:
            raise PermanentError(f"{what} in the layout {self.folder.name}: {error.strerror}") from error


def tag_of(entry: object) -> object:
    """Return the tag of an index's entry, or None."""
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    return annotations.get(TAG_ANNOTATION) if isinstance(annotations, dict) else None
