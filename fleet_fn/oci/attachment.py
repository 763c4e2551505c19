"""Documents to attach to a manifest when it is published: signatures, SBOMs.

Each is a manifest of its own that names the other as its `subject` (OCI image specification 1.1, "Guidelines for
Artifact Usage"). `fleet_fn.oci.referrers` finds them again.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import INDEX, MANIFEST, TITLE_ANNOTATION, digest_of, read_json_object
from fleet_fn.oci.publication import EMPTY_CONFIG, EMPTY_CONFIG_TYPE, compact_json, describe
from fleet_fn.oci.referrers import MAX_REFERRERS

#: Tags of documents about a manifest: the list of its referrers, and cosign's older forms.
_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}(\.(sig|att|sbom))?")


def is_attachment_tag(tag: str) -> bool:
    """Return whether a tag names documents about a manifest, by its form."""
    return _TAG.fullmatch(tag) is not None


@dataclass(frozen=True, slots=True)
class Document:
    """A document about a manifest."""

    #: Media type of the document, and the type of the artifact that it becomes.
    media_type: str
    content: bytes
    #: Annotations of the artifact's manifest, which lists of referrers repeat.
    annotations: Mapping[str, str] = field(default_factory=dict)
    #: Name of its file; empty if it has none.
    title: str = ""


#: Makes the document about the manifest with a digest.
Maker = Callable[[str], Document]


class Attachment(NamedTuple):
    """A manifest that attaches a document to another manifest."""

    document: Document
    manifest: bytes

    @property
    def digest(self) -> str:
        """Digest of the manifest."""
        return digest_of(self.manifest)

    @property
    def blobs(self) -> Sequence[bytes]:
        """Blobs that the manifest names."""
        return EMPTY_CONFIG, self.document.content

    @property
    def entry(self) -> dict[str, Any]:
        """Entry in a list of referrers.

        See the OCI distribution specification 1.1, "Listing Referrers".
        """
        entry = {**describe(MANIFEST, self.manifest), "artifactType": self.document.media_type}
        return {**entry, "annotations": dict(self.document.annotations)} if self.document.annotations else entry


def attach(document: Document, subject: bytes) -> Attachment:
    """Return the attachment of a document to a manifest, which is given by its bytes."""
    title = {"annotations": {TITLE_ANNOTATION: document.title}} if document.title else {}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": document.media_type,
        "config": describe(EMPTY_CONFIG_TYPE, EMPTY_CONFIG),
        "layers": [{**describe(document.media_type, document.content), **title}],
        "subject": describe(MANIFEST, subject),
        **({"annotations": dict(document.annotations)} if document.annotations else {}),
    }
    return Attachment(document, compact_json(manifest))


def add_to_list(content: bytes | None, subject: str, added: Attachment) -> bytes:
    """Return the list of referrers with one more.

    Registries that keep no lists themselves need it (OCI distribution specification 1.1, "Referrers Tag Schema").

    Args:
        content: the list so far; None if there is none.
        subject: digest of the manifest that the list is about.
        added: the new referrer.

    Raises:
        PermanentError: the list is something else, or is full.

    """
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
    if content is not None and digest_of(content) != subject:  # GitLab answers with the subject itself
        index = read_json_object(content, "list of referrers")
        if index.get("mediaType", INDEX) != INDEX or not isinstance(index.get("manifests"), list):
            raise PermanentError("list of referrers: its tag names something else, which is not replaced")
    entries = index["manifests"]
    if has_entry(entries, added.digest):
        return content or b""
    if len(entries) >= MAX_REFERRERS:
        raise PermanentError(f"list of referrers: it has {MAX_REFERRERS} already; the function reads no more")
    return compact_json({**index, "manifests": [*entries, added.entry]})


def has_entry(entries: Sequence[object], digest: str) -> bool:
    """Return whether a list has an entry with a digest."""
    return any(isinstance(entry, dict) and entry.get("digest") == digest for entry in entries)
