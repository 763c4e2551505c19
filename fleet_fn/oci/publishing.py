"""Publishing to OCI registries."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from fleet_fn.errors import TransientError, UpstreamError
from fleet_fn.oci.access import Access
from fleet_fn.oci.attachment import Attachment, Maker, add_to_list, attach, is_attachment_tag
from fleet_fn.oci.manifest import VERSION_ANNOTATION, digest_of
from fleet_fn.oci.publication import (
    EMPTY_CONFIG,
    Content,
    Published,
    conflicts,
    make_manifest,
    refuse_to_move,
)
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.referrers import fallback_tag

if TYPE_CHECKING:
    from fleet_fn.oci.upload import PushClient


#: Upper bound for the requests that only serve a warning.
_MAX_MANIFEST_REQUESTS: Final = 10
#: Times that a list of referrers is changed, if others change it at the same time.
_MAX_LIST_CHANGES: Final = 5


def publish_to_registry(
    reference: Reference,
    firmware: BinaryIO,
    annotations: Mapping[str, str],
    *,
    access: Access,
    pad_to: int = 1,
    latest: bool = False,
    force: bool = False,
    documents: Sequence[Maker] = (),
) -> Published:
    """Publish a firmware under the tag of `reference`, and check that it is there.

    Documents are attached before the tag names the firmware: devices get only what is signed, if the function asks for
    signatures.

    Args:
        reference: a repository and a tag.
        firmware: a file, read from its current position.
        annotations: annotations of the manifest.
        access: connection options for the registry.
        pad_to: pad the firmware with 0xff bytes to a multiple of this.
        latest: move the tag `latest`, too, after the other tag.
        force: move the tag even from other bytes, hardware or requirements.
        documents: make the documents to attach.

    Raises:
        PermanentError: the tag may not move, or the registry refuses the firmware; the reason says why.
        TransientError: the registry is unavailable.

    """
    assert reference.tag  # noqa: S101 - `registry_reference` gave it one
    # Imported here because it is slow to import, and most commands do not need it.
    from fleet_fn.oci.upload import PushClient

    content = Content(firmware, pad_to)
    sha256 = content.sha256()
    manifest = make_manifest(content.size, sha256, annotations)
    attachments = [attach(make(digest_of(manifest)), manifest) for make in documents]
    with PushClient(reference.prefix.rstrip("/"), reference.name, access) as client:
        if not force and reference.tag != "latest" and (there := client.manifest(reference.tag)) is not None:
            refuse_to_move(there, reference.tag, sha256, annotations)
        client.upload(f"sha256:{sha256}", content)
        client.upload(digest_of(EMPTY_CONFIG), EMPTY_CONFIG)
        conflicting_tags = tuple(_conflicting_tags(client, reference.tag, sha256, annotations))
        if attachments:
            client.put(manifest)
        for attachment in attachments:
            _attach(client, attachment, digest_of(manifest))
        client.tag(reference.tag, manifest)
        if latest and reference.tag != "latest":
            client.tag("latest", manifest)
    attached = tuple((attachment.document.media_type, attachment.digest) for attachment in attachments)
    return Published(digest_of(manifest), content.size, sha256, conflicting_tags, attached)


def _attach(client: "PushClient", attachment: Attachment, subject: str) -> None:
    """Upload an attachment, and list it if the registry does not do so itself.

    Two publishers may change a list at the same time, and registries do not notice. So it is read again, which makes
    the loss of an entry unlikely; no registry can rule it out without the referrers API.

    Raises:
        PermanentError, TransientError: see `publish_to_registry`.

    """
    for blob in attachment.blobs:
        client.upload(digest_of(blob), blob)
    if client.put(attachment.manifest) == subject:
        return
    tag = fallback_tag(subject)
    for _ in range(_MAX_LIST_CHANGES):
        content = client.manifest(tag)
        listed = add_to_list(content, subject, attachment)
        if listed == content:
            return
        client.replace(tag, listed)
    raise TransientError(f"the list of referrers, tag {tag}, is being changed by other publishers: try again")


def _conflicting_tags(client: "PushClient", tag: str, sha256: str, annotations: Mapping[str, str]) -> Iterator[str]:
    """Yield tags under which the same version has other bytes.

    They only serve a warning. So only a few tags with similar names are checked, and errors end the search.
    """
    with suppress(UpstreamError):
        version = annotations.get(VERSION_ANNOTATION, tag)
        alike = sorted((other for other in client.tags() if version in other and not is_attachment_tag(other)), key=len)
        for other in list(dict.fromkeys([tag, "latest", *alike]))[:_MAX_MANIFEST_REQUESTS]:
            if (manifest := client.manifest(other)) and conflicts(manifest, other, sha256, annotations):
                yield other
