"""Writing OCI image layouts, and naming what is in them: `oci-layout:DIR:TAG`."""

import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from fleet_fn.errors import Failed
from fleet_fn.firmware.artifact import (
    FIRMWARE_LAYER,
    FIRMWARE_TITLE,
    INDEX,
    MANIFEST,
    TITLE_ANNOTATION,
    read_artifact,
)
from fleet_fn.firmware.layout import LAYOUT_FILE, LAYOUT_VERSION, TAG_ANNOTATION, Layout, tag_of
from fleet_fn.firmware.reference import Reference, parse_reference
from fleet_fn.settings import LAYOUT_SCHEME

#: What makes the manifest an artifact rather than an image (OCI image specification, "Guidelines for Artifact Usage").
_ARTIFACT_TYPE: Final = "application/vnd.drogue.firmware.v1"
_EMPTY_CONFIG: Final = "application/vnd.oci.empty.v1+json"
_CHUNK: Final = 1024 * 1024
#: What erased flash memory reads as.
_PADDING: Final = b"\xff"


@dataclass(frozen=True, slots=True)
class Published:
    """What a publication put where."""

    #: The manifest's.
    digest: str
    #: Of the firmware: bytes, and the SHA-256 in hexadecimal.
    size: int
    sha256: str


def layout_reference(text: str, default_tag: str | None = None) -> Reference:
    """The reference that `oci-layout:DIR[:TAG|@DIGEST]` spells.

    Raises:
        Failed: it spells none.

    """
    rest = text.removeprefix(LAYOUT_SCHEME)
    folder, at, digest = rest.partition("@")
    tag = "" if at else default_tag or ""
    head, colon, tail = folder.rpartition(":")
    if colon and "/" not in tail:
        folder, tag = head, tail
    if not folder or (colon and not tail):
        raise Failed(f"{text!r}: expected {LAYOUT_SCHEME}DIR:TAG")
    # The folder is the caller's own and may have any name; tag and digest are checked as everywhere.
    checked = parse_reference(f"name{f':{tag}' if tag else ''}{f'@{digest}' if at else ''}")
    path = Path(folder).absolute()
    return Reference(f"{path.parent}/", path.name, checked.tag, checked.digest)


def other_tags_of_version(reference: Reference, version: str) -> list[tuple[str, str]]:
    """The tags in the layout of `reference` whose firmware has `version` already, each with its SHA-256."""
    layout, found = Layout(Path(reference.prefix, reference.name)), []
    with suppress(Failed):  # no layout yet, or one that publishing will complain of
        for tag in filter(None, map(tag_of, layout.index())):
            with suppress(Failed):  # a manifest of another kind
                tagged = Reference(reference.prefix, reference.name, str(tag), None)
                artifact = read_artifact(layout.manifest(tagged), tagged.tag)
                if artifact.version == version:
                    found.append((str(tag), artifact.layer.checksum.hex()))
    return found


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
        Failed: the tag has other bytes, or the layout cannot be read.
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
        layer = _store_file(layout, firmware, pad_to, None if is_new else reference)
        config = _store_bytes(layout, _EMPTY_CONFIG, b"{}")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": _ARTIFACT_TYPE,
            "config": config,
            "layers": [{**layer, "annotations": {TITLE_ANNOTATION: FIRMWARE_TITLE}}],
            "annotations": dict(annotations),
        }
        entry = _store_bytes(layout, MANIFEST, _json(manifest))
        tags = {reference.tag, "latest"} if latest else {reference.tag}
        _tag(layout, entry, {tag for tag in tags if tag})
    return Published(entry["digest"], layer["size"], layer["digest"].partition(":")[2])


def _tag(layout: Layout, manifest: Mapping[str, Any], tags: set[str]) -> None:
    index = json.loads((layout.folder / "index.json").read_bytes())
    kept = [entry for entry in index["manifests"] if tag_of(entry) not in tags]
    added = [{**manifest, "annotations": {TAG_ANNOTATION: tag}} for tag in sorted(tags)]
    _write(layout.folder / "index.json", _json({**index, "manifests": kept + added}))


def _store_bytes(layout: Layout, media_type: str, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    if not _has(layout, digest):
        _write(layout.blob(digest), content)
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _store_file(layout: Layout, source: BinaryIO, pad_to: int, same_as: Reference | None) -> dict[str, Any]:
    """The descriptor of the firmware, stored; where it is to be the `same_as` a tag's, nothing else is stored."""
    digest, size = hashlib.sha256(), 0
    with _replacing(layout.folder / "blobs" / "sha256") as (target, move_to):
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        padding = _PADDING * (-size % pad_to)
        target.write(padding)
        digest.update(padding)
        name = f"sha256:{digest.hexdigest()}"
        if same_as and read_artifact(layout.manifest(same_as), same_as.tag).layer.digest != name:
            raise Failed(f"tag {same_as.tag} has other bytes already: publish another version, or move it with --force")
        if not _has(layout, name):
            move_to(layout.blob(name))
    return {"mediaType": FIRMWARE_LAYER, "digest": name, "size": size + len(padding)}


def _has(layout: Layout, digest: str) -> bool:
    """Whether the layout has the blob, whole: one that somebody may be reading is left alone."""
    try:
        with layout.blob(digest).open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    except FileNotFoundError:
        return False


def _make_if_missing(path: Path, content: object) -> None:
    if not path.exists():
        _write(path, _json(content))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


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
