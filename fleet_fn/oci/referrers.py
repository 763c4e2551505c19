"""Manifests that are attached to another one: signatures, SBOMs.

They name it as their `subject` (OCI image specification 1.1). The registry lists them; or, where it cannot, an index
under the fallback tag does (OCI distribution specification 1.1, "Listing Referrers", "Referrers Tag Schema").
"""

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.oci.manifest import Descriptor, Index, Manifest, digest_of, read_descriptor, read_manifest

#: Bound on the attached manifests that are looked at.
MAX_REFERRERS: Final = 1000
#: Bound on each of these manifests, which only name a document.
MAX_REFERRER_BYTES: Final = 64 * 1024


class Attachments(Protocol):
    """A repository, with what is attached to its manifests."""

    @property
    def name(self) -> str:
        """Unique name of the repository."""

    def manifest(self, digest: str, deadline: Deadline) -> bytes:
        """Return the verified bytes of a manifest or an index, 4 MiB at most.

        Raises:
            PermanentError: it is missing, or does not match its digest.
            TransientError: the repository is unavailable.

        """

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:
        """Return the verified bytes of a small blob, 4 MiB at most.

        Raises:
            PermanentError, TransientError: see `manifest`.

        """

    def tagged(self, tag: str, deadline: Deadline) -> bytes | None:
        """Return the manifest or index that a tag names now; None if there is no such tag.

        Raises:
            PermanentError, TransientError: see `manifest`.

        """

    def referrers(self, digest: str, artifact_type: str, deadline: Deadline) -> list[Descriptor]:
        """Return the manifests that are attached to the one with `digest`.

        They are `MAX_REFERRERS` at most. Nothing that they say was checked, not even whether they are attached.

        Args:
            digest: the manifest's.
            artifact_type: the only type that is wanted; empty for all.
            deadline: bounds the search.

        Raises:
            PermanentError, TransientError: see `manifest`.

        """


def fallback_tag(digest: str) -> str:
    """Return the tag of the index that lists what is attached to a manifest."""
    return digest.replace(":", "-")


def read_fallback(content: bytes | None, digest: str) -> list[Descriptor]:
    """Return what the index under the fallback tag of `digest` lists.

    Some registries answer with the manifest itself (GitLab does): then nothing is attached.

    Raises:
        PermanentError: the content is malformed.

    """
    if content is None or digest_of(content) == digest:
        return []
    index = read_manifest(content)
    return list(read_entries(index.manifests)) if isinstance(index, Index) else []


def read_entries(entries: Iterable[object]) -> Iterator[Descriptor]:
    """Yield the descriptors in a list of referrers; malformed ones are left out."""
    for entry in entries:
        try:
            yield read_descriptor(entry, "referrer")
        except PermanentError:
            continue


def of_type(referrers: Iterable[Descriptor], artifact_type: str) -> list[Descriptor]:
    """Return the referrers of a type, or of none: registries need not filter."""
    wanted = [entry for entry in referrers if not artifact_type or entry.artifact_type in ("", artifact_type)]
    return wanted[:MAX_REFERRERS]


def is_attached(manifest: Manifest, digest: str) -> bool:
    """Return whether a manifest names the one with `digest` as its subject."""
    try:
        return read_descriptor(manifest.subject, "subject").digest == digest
    except PermanentError:
        return False
