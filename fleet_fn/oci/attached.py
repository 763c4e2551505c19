"""List what is attached to a manifest, for people: signatures, SBOMs and others.

Nothing here is verified; `fleet_fn.oci.signature_search` does that.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import Descriptor, Manifest, media_type_of, read_descriptor, read_manifest
from fleet_fn.oci.referrers import MAX_REFERRER_BYTES, Attachments, is_attached
from fleet_fn.oci.signatures import BUNDLE, may_sign

#: Media types of SBOMs: those of the two standards in JSON, then their other serializations.
SPDX: Final = "application/spdx+json"
CYCLONEDX: Final = "application/vnd.cyclonedx+json"
SPDX_TAG_VALUE: Final = "text/spdx"
CYCLONEDX_XML: Final = "application/vnd.cyclonedx+xml"
_SBOMS: Final = frozenset((SPDX, CYCLONEDX, SPDX_TAG_VALUE, CYCLONEDX_XML))
#: Attached manifests that are looked at.
MAX_ATTACHED: Final = 100
_NOTATION: Final = "application/vnd.cncf.notary.signature"
_ATTESTATIONS: Final = ("application/vnd.in-toto+json", "application/vnd.dsse.envelope.v1+json")


class Attached(NamedTuple):
    """A document that is attached to a manifest."""

    #: `signature`, `attestation`, `SBOM` or `other`.
    kind: str
    #: Type of the artifact; empty if it has none.
    media_type: str
    #: Digest of the manifest that attaches it.
    digest: str
    #: Bytes of the document.
    size: int


def find_attached(repository: Attachments, digests: Sequence[str], deadline: Deadline) -> list[Attached]:
    """Return what is attached to manifests, at most `MAX_ATTACHED` documents.

    Lists may leave out types and annotations, so each manifest is read. One that is unreadable is left out.

    Raises:
        PermanentError, TransientError: the lists cannot be had, or the repository is unavailable.

    """
    entries = [(digest, entry) for digest in digests for entry in repository.referrers(digest, "", deadline)]
    found = (_read(repository, entry, digest, deadline) for digest, entry in entries[:MAX_ATTACHED])
    return [attached for attached in found if attached]


def _read(repository: Attachments, entry: Descriptor, digest: str, deadline: Deadline) -> Attached | None:
    if entry.size > MAX_REFERRER_BYTES:
        return None
    try:
        manifest = read_manifest(repository.manifest(entry.digest, deadline))
        if not isinstance(manifest, Manifest) or not is_attached(manifest, digest):
            return None
        layers = [read_descriptor(layer, "layer") for layer in manifest.layers]
    except PermanentError:
        return None
    # Without a type of its own, it is of its config's (OCI image specification, "Guidelines for Artifact Usage").
    media_type = manifest.artifact_type or str(media_type_of(manifest.config) or "")
    size = sum(layer.size for layer in layers)
    return Attached(_kind(media_type, manifest, layers), media_type, entry.digest, size)


def _kind(media_type: str, manifest: Manifest, layers: Sequence[Descriptor]) -> str:
    if media_type == BUNDLE:
        return "signature" if may_sign(manifest.annotations) else "attestation"
    if media_type == _NOTATION:
        return "signature"
    if media_type in _ATTESTATIONS:
        return "attestation"
    # Publishers may have types of their own for the artifact.
    return "SBOM" if _SBOMS & {media_type, *(layer.media_type for layer in layers)} else "other"
