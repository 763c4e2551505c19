"""Publishing to OCI image layouts, and references to them: `oci-layout:DIR:TAG`."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fleet_fn.errors import PermanentError
from fleet_fn.oci.attachment import Attachment, Maker, attach, has_entry
from fleet_fn.oci.layout import LAYOUT_FILE, LAYOUT_VERSION, TAG_ANNOTATION, Layout, tag_of
from fleet_fn.oci.manifest import INDEX, MANIFEST, digest_of
from fleet_fn.oci.publication import (
    EMPTY_CONFIG,
    Content,
    Published,
    compact_json,
    conflicts,
    describe,
    make_manifest,
    refuse_to_move,
)
from fleet_fn.oci.reference import LAYOUT_SCHEME, Reference, is_digest, is_tag


def layout_reference(text: str, default_tag: str | None = None) -> Reference:
    """Parse `oci-layout:DIR[:TAG|@DIGEST]`.

    Raises:
        PermanentError: `text` has another form.

    """
    rest = text.removeprefix(LAYOUT_SCHEME)
    folder, at, digest = rest.partition("@")
    tag = "" if at else default_tag or ""
    head, colon, tail = folder.rpartition(":")
    if colon and "/" not in tail:
        folder, tag = head, tail
    if not folder or (colon and not tail):
        raise PermanentError(f"{text!r}: expected {LAYOUT_SCHEME}DIR:TAG")
    # The operator chose the folder, so it may have any name; tag and digest follow the OCI grammar.
    if tag and not is_tag(tag):
        raise PermanentError(f"invalid reference {text!r}: not a tag after the colon")
    if at and not is_digest(digest):
        raise PermanentError(f"invalid reference {text!r}: not a sha256 digest after the @")
    path = Path(folder).absolute()
    return Reference(f"{path.parent}/", path.name, tag or (None if at else "latest"), digest or None)


def publish_to_layout(
    reference: Reference,
    firmware: BinaryIO,
    annotations: Mapping[str, str],
    *,
    pad_to: int = 1,
    latest: bool = False,
    force: bool = False,
    documents: Sequence[Maker] = (),
) -> Published:
    """Publish a firmware under the tag of `reference`; create a missing layout.

    Concurrent readers see the layout either as it was before or as it is afterwards.

    Args:
        reference: a layout and a tag.
        firmware: a file, read from its current position.
        annotations: annotations of the manifest.
        pad_to: pad the firmware with 0xff bytes to a multiple of this.
        latest: move the tag `latest`, too.
        force: move the tag even from other bytes, hardware or requirements.
        documents: make the documents to attach.

    Raises:
        PermanentError: the tag may not move, or the layout cannot be read.
        OSError: the layout cannot be written.

    """
    layout = Layout(Path(reference.prefix, reference.name))
    blobs = layout.folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    with _lock(layout.folder):
        _make_if_missing(
            layout.folder / "index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": list[Any]()}
        )
        _make_if_missing(layout.folder / LAYOUT_FILE, {"imageLayoutVersion": LAYOUT_VERSION})
        entries = layout.index()  # fails before anything is written if the folder is no layout
        is_new = force or reference.tag == "latest" or reference.tag not in map(tag_of, entries)
        content = Content(firmware, pad_to)
        sha256 = _store_firmware(layout, content, None if is_new else reference, annotations)
        _store(layout, EMPTY_CONFIG)
        manifest = make_manifest(content.size, sha256, annotations)
        attachments = [attach(make(digest_of(manifest)), manifest) for make in documents]
        conflicting_tags = tuple(_conflicting_tags(layout, reference, entries, sha256, annotations))
        _store(layout, manifest)
        for attachment in attachments:
            for blob in (*attachment.blobs, attachment.manifest):
                _store(layout, blob)
        tags = {reference.tag, "latest"} if latest else {reference.tag}
        _tag(layout, describe(MANIFEST, manifest), {tag for tag in tags if tag}, attachments)
    attached = tuple((attachment.document.media_type, attachment.digest) for attachment in attachments)
    return Published(digest_of(manifest), content.size, sha256, conflicting_tags, attached)


def _conflicting_tags(
    layout: Layout, reference: Reference, entries: Iterable[object], sha256: str, annotations: Mapping[str, str]
) -> Iterator[str]:
    """Yield the tags under which the same version has other bytes."""
    for tag in filter(None, map(tag_of, entries)):
        with suppress(PermanentError):  # a manifest of another kind
            tagged = Reference(reference.prefix, reference.name, str(tag), None)
            if conflicts(layout.manifest(tagged), str(tag), sha256, annotations):
                yield str(tag)


def _tag(layout: Layout, manifest: Mapping[str, Any], tags: set[str], attachments: Sequence[Attachment]) -> None:
    """Write the tags of a manifest, and entries without a tag of its attachments."""
    index = json.loads((layout.folder / "index.json").read_bytes())
    kept = [entry for entry in index["manifests"] if tag_of(entry) not in tags]
    added = [{**manifest, "annotations": {TAG_ANNOTATION: tag}} for tag in sorted(tags)]
    added += [attachment.entry for attachment in attachments if not has_entry(kept, attachment.digest)]
    _write(layout.folder / "index.json", compact_json({**index, "manifests": kept + added}))


def _store(layout: Layout, content: bytes) -> None:
    digest = digest_of(content)
    if not _has(layout, digest):
        _write(layout.blob(digest), content)


def _store_firmware(layout: Layout, content: Content, same_as: Reference | None, annotations: Mapping[str, str]) -> str:
    """Store the firmware and return its SHA-256 in hexadecimal.

    Raises:
        PermanentError: the tag `same_as` may not move; then nothing is stored.

    """
    digest = hashlib.sha256()
    with _replace_atomically(layout.folder / "blobs" / "sha256") as (target, move_to):
        for chunk in content:
            target.write(chunk)
            digest.update(chunk)
        name = f"sha256:{digest.hexdigest()}"
        if same_as:
            refuse_to_move(layout.manifest(same_as), same_as.tag, digest.hexdigest(), annotations)
        if not _has(layout, name):
            move_to(layout.blob(name))
    return digest.hexdigest()


def _has(layout: Layout, digest: str) -> bool:
    """Return whether the layout has the whole blob.

    An intact blob is not replaced: another process may read it.
    """
    try:
        with layout.blob(digest).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    except FileNotFoundError:
        return False


def _make_if_missing(path: Path, content: object) -> None:
    if not path.exists():
        _write(path, compact_json(content))


def _write(path: Path, content: bytes) -> None:
    with _replace_atomically(path.parent) as (file, move_to):
        file.write(content)
        move_to(path)


@contextmanager
def _replace_atomically(folder: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """Yield a temporary file in `folder`, and a function that renames it atomically.

    The caller calls the function once the file is complete.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as file:
        temporary = Path(file.name)

        def move_to(path: Path) -> None:
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)

        try:
            yield file, move_to  # type: ignore[misc]
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the writers' lock of a layout; readers need no lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
