"""Publishing to OCI registries."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final

from fleet_fn.errors import UpstreamError
from fleet_fn.oci.access import Access
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

if TYPE_CHECKING:
    from fleet_fn.oci.upload import PushClient


#: Upper bound for the requests that only serve a warning.
_MAX_MANIFEST_REQUESTS: Final = 10


def publish_to_registry(
    reference: Reference,
    firmware: BinaryIO,
    annotations: Mapping[str, str],
    *,
    access: Access,
    pad_to: int = 1,
    latest: bool = False,
    force: bool = False,
) -> Published:
    """Publish a firmware under the tag of `reference`, and check that it is there.

    Args:
        reference: a repository and a tag.
        firmware: a file, read from its current position.
        annotations: annotations of the manifest.
        access: connection options for the registry.
        pad_to: pad the firmware with 0xff bytes to a multiple of this.
        latest: move the tag `latest`, too, after the other tag.
        force: move the tag even if it names other bytes.

    Raises:
        PermanentError: the tag names other bytes, or the registry refuses the firmware; the reason says why.
        TransientError: the registry is unavailable.

    """
    assert reference.tag  # noqa: S101 - `registry_reference` gave it one
    # Imported here because it is slow to import, and most commands do not need it.
    from fleet_fn.oci.upload import PushClient

    content = Content(firmware, pad_to)
    sha256 = content.sha256()
    manifest = make_manifest(content.size, sha256, annotations)
    with PushClient(reference.prefix.rstrip("/"), reference.name, access) as client:
        if not force and reference.tag != "latest" and (there := client.manifest(reference.tag)) is not None:
            refuse_to_move(there, reference.tag, sha256)
        client.upload(f"sha256:{sha256}", content)
        client.upload(digest_of(EMPTY_CONFIG), EMPTY_CONFIG)
        conflicting_tags = tuple(_conflicting_tags(client, reference.tag, sha256, annotations))
        client.tag(reference.tag, manifest)
        if latest and reference.tag != "latest":
            client.tag("latest", manifest)
    return Published(digest_of(manifest), content.size, sha256, conflicting_tags)


def _conflicting_tags(client: "PushClient", tag: str, sha256: str, annotations: Mapping[str, str]) -> Iterator[str]:
    """Yield tags under which the same version has other bytes.

    They only serve a warning. So only a few tags with similar names are checked, and errors end the search.
    """
    with suppress(UpstreamError):
        version = annotations.get(VERSION_ANNOTATION, tag)
        alike = sorted((other for other in client.tags() if version in other), key=len)
        for other in list(dict.fromkeys([tag, "latest", *alike]))[:_MAX_MANIFEST_REQUESTS]:
            if (manifest := client.manifest(other)) and conflicts(manifest, other, sha256, annotations):
                yield other
