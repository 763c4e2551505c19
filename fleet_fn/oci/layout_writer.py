"""Writing OCI image layouts, and naming what is in them: `oci-layout:DIR:TAG`."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fleet_fn.errors import PermanentError
from fleet_fn.oci.layout import LAYOUT_FILE, LAYOUT_VERSION, TAG_ANNOTATION, Layout, tag_of
from fleet_fn.oci.manifest import INDEX, MANIFEST, digest_of
from fleet_fn.oci.publication import (
    EMPTY_CONFIG,
    Content,
    Published,
    compact_json,
    describe,
    make_manifest,
    mixes,
    refuse_to_move,
)
from fleet_fn.oci.reference import LAYOUT_SCHEME, Reference, parse_reference


def layout_reference(text: str, default_tag: str | None = None) -> Reference:
    """The reference that `oci-layout:DIR[:TAG|@DIGEST]` spells.

    Raises:
        PermanentError: it spells none.

    """
    rest = text.removeprefix(LAYOUT_SCHEME)
    folder, at, digest = rest.partition("@")
    tag = "" if at else default_tag or ""
    head, colon, tail = folder.rpartition(":")
    if colon and "/" not in tail:
        folder, tag = head, tail
    if not folder or (colon and not tail):
        raise PermanentError(f"{text!r}: expected {LAYOUT_SCHEME}DIR:TAG")
    # The folder is the caller's own and may have any name; tag and digest are checked as everywhere.
    checked = parse_reference(f"name{f':{tag}' if tag else ''}{f'@{digest}' if at else ''}")
    path = Path(folder).absolute()
    return Reference(f"{path.parent}/", path.name, checked.tag, checked.digest)


def publish_to_layout(
    reference: Reference,
    firmware: BinaryIO,
    annotations: Mapping[str, str],
    *,
    pad_to: int = 1,
    latest: bool = False,
    force: bool = False,
) -> Published:
    """Puts a firmware under the tag of `reference`, into a layout that is made where there is none.

    Whoever reads the layout meanwhile sees it as it was before or as it is afterwards.

    Args:
        reference: a layout and a tag.
        firmware: a file to be read from where it stands.
        annotations: the manifest's.
        pad_to: the firmware is filled up with 0xff bytes to a multiple of this.
        latest: the tag `latest` is moved, too.
        force: the tag may be moved from other bytes.

    Raises:
        PermanentError: the tag has other bytes, or the layout cannot be read.
        OSError: the layout cannot be written.

    """
    layout = Layout(Path(reference.prefix, reference.name))
    blobs = layout.folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    with _locked(layout.folder):
        _make_if_missing(
            layout.folder / "index.json", {"schemaVersion": 2, "mediaType": INDEX, "manifests": list[Any]()}
        )
        _make_if_missing(layout.folder / LAYOUT_FILE, {"imageLayoutVersion": LAYOUT_VERSION})
        entries = layout.index()  # so that nothing is written into what is no layout
        is_new = force or reference.tag == "latest" or reference.tag not in map(tag_of, entries)
        content = Content(firmware, pad_to)
        sha256 = _store_firmware(layout, content, None if is_new else reference)
        _store(layout, EMPTY_CONFIG)
        manifest = make_manifest(content.size, sha256, annotations)
        mixed = tuple(_mixed(layout, reference, entries, sha256, annotations))
        _store(layout, manifest)
        tags = {reference.tag, "latest"} if latest else {reference.tag}
        _tag(layout, describe(MANIFEST, manifest), {tag for tag in tags if tag})
    return Published(digest_of(manifest), content.size, sha256, mixed)


def _mixed(
    layout: Layout, reference: Reference, entries: Iterable[object], sha256: str, annotations: Mapping[str, str]
) -> Iterator[str]:
    """Tags where the version has other bytes."""
    for tag in filter(None, map(tag_of, entries)):
        with suppress(PermanentError):  # a manifest of another kind
            tagged = Reference(reference.prefix, reference.name, str(tag), None)
            if mixes(layout.manifest(tagged), str(tag), sha256, annotations):
                yield str(tag)


def _tag(layout: Layout, manifest: Mapping[str, Any], tags: set[str]) -> None:
    index = json.loads((layout.folder / "index.json").read_bytes())
    kept = [entry for entry in index["manifests"] if tag_of(entry) not in tags]
    added = [{**manifest, "annotations": {TAG_ANNOTATION: tag}} for tag in sorted(tags)]
    _write(layout.folder / "index.json", compact_json({**index, "manifests": kept + added}))


def _store(layout: Layout, content: bytes) -> None:
    digest = digest_of(content)
    if not _has(layout, digest):
        _write(layout.blob(digest), content)


def _store_firmware(layout: Layout, content: Content, same_as: Reference | None) -> str:
    """The SHA-256 of the firmware, stored; where it is to be the `same_as` a tag's, nothing else is stored."""
    digest = hashlib.sha256()
    with _replacing(layout.folder / "blobs" / "sha256") as (target, move_to):
        for chunk in content:
            target.write(chunk)
            digest.update(chunk)
        name = f"sha256:{digest.hexdigest()}"
        if same_as:
            refuse_to_move(layout.manifest(same_as), same_as.tag, digest.hexdigest())
        if not _has(layout, name):
            move_to(layout.blob(name))
    return digest.hexdigest()


def _has(layout: Layout, digest: str) -> bool:
    """Whether the layout has the blob, whole: one that somebody may be reading is left alone."""
    try:
        with layout.blob(digest).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    except FileNotFoundError:
        return False


def _make_if_missing(path: Path, content: object) -> None:
    if not path.exists():
        _write(path, compact_json(content))


def _write(path: Path, content: bytes) -> None:
    with _replacing(path.parent) as (file, move_to):
        file.write(content)
        move_to(path)


@contextmanager
def _replacing(folder: Path) -> Iterator[tuple[BinaryIO, Any]]:
    """A new file in `folder`, and a function that gives it its name at once with all its bytes."""
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
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time; readers need no lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
