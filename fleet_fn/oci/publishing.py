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
    make_manifest,
    mixes,
    refuse_to_move,
)
from fleet_fn.oci.reference import Reference

if TYPE_CHECKING:
    from fleet_fn.oci.upload import PushClient


#: Manifests that are looked at for the sake of a warning.
_MAX_LOOKS: Final = 10


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
    """Puts a firmware under the tag of `reference`, and makes sure that it is there.

    Args:
        reference: a repository and a tag.
        firmware: a file to be read from where it stands.
        annotations: the manifest's.
        access: how the registry is talked to.
        pad_to: the firmware is filled up with 0xff bytes to a multiple of this.
        latest: the tag `latest` is moved, too, once the other one is where it should be.
        force: the tag may be moved from other bytes.

    Raises:
        PermanentError: the tag has other bytes, or the registry does not take the firmware; the reason tells why.
        TransientError: the registry is not there.

    """
    assert reference.tag  # noqa: S101 - `registry_reference` gave it one
    # Slow to import, and most commands do without.
    from fleet_fn.oci.upload import PushClient

    content = Content(firmware, pad_to)
    sha256 = content.sha256()
    manifest = make_manifest(content.size, sha256, annotations)
    with PushClient(reference.prefix.rstrip("/"), reference.name, access) as client:
        if not force and reference.tag != "latest" and (there := client.manifest(reference.tag)) is not None:
            refuse_to_move(there, reference.tag, sha256)
        client.upload(f"sha256:{sha256}", content)
        client.upload(digest_of(EMPTY_CONFIG), EMPTY_CONFIG)
        mixed = tuple(_mixed(client, reference.tag, sha256, annotations))
        client.tag(reference.tag, manifest)
        if latest and reference.tag != "latest":
            client.tag("latest", manifest)
    return Published(digest_of(manifest), content.size, sha256, mixed)


def _mixed(client: "PushClient", tag: str, sha256: str, annotations: Mapping[str, str]) -> Iterator[str]:
    """Tags where the version has other bytes.

    A courtesy: only tags that look like it are looked at, and not many; nor does it matter what goes wrong.
    """
    with suppress(UpstreamError):
        version = annotations.get(VERSION_ANNOTATION, tag)
        alike = sorted((other for other in client.tags() if version in other), key=len)
        for other in list(dict.fromkeys([tag, "latest", *alike]))[:_MAX_LOOKS]:
            if (manifest := client.manifest(other)) and mixes(manifest, other, sha256, annotations):
                yield other
