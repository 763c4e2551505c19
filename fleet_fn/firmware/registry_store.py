"""Store of firmware in an OCI registry.

It resolves references, and fetches bytes through the cache.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.store import Firmware, Reader
from fleet_fn.oci.layer import Readable
from fleet_fn.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, checksum_of
from fleet_fn.oci.reference import Reference, is_name
from fleet_fn.oci.referrers import fallback_tag, of_type, read_fallback
from fleet_fn.oci.registry_client import RegistryClient

#: Size of each read from a download.
_CHUNK_BYTES: Final = 256 * 1024


class RegistryStore:
    """Serves firmware from one registry, through the cache."""

    def __init__(self, registry: RegistryClient, shapes: Shapes, cache: Cache) -> None:
        self._registry = registry
        self._shapes = shapes
        self._cache = cache

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        """Return the firmware that `reference` names; `known` if the tag has not moved.

        Raises:
            NotReadyError: searching the image's layers takes longer than the deadline; the search goes on.
            PermanentError: no such tag or digest, or something in it is malformed, or the registry denies access.
            TransientError: the registry does not answer in time.

        """
        path = _repository_name(reference)
        repository = _Repository(self._registry, path, self._cache)
        digest = reference.digest
        if digest is None and known is not None:
            digest = self._registry.digest(path, _tag(reference), deadline)
            if digest is not None and digest == known.manifest:
                return known
        if digest is not None:
            content = repository.manifest(digest, deadline)
            return self._shapes.firmware(content, reference, repository, deadline)
        digest, content = self._registry.resolve_tag(path, _tag(reference), deadline)
        firmware = self._shapes.firmware(content, reference, repository, deadline)
        # Kept so that references by digest need no registry; only after it proved to be a firmware's manifest.
        repository.keep(digest, content, deadline)
        return firmware

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:
        """Return the tags of the repository that `reference` names; see `ImageStore.tags`."""
        return self._registry.tags(_repository_name(reference), deadline, whole=whole)

    def close(self) -> None:
        """Close idle connections to the registry; a later call opens new ones."""
        self._registry.close()


class _Repository:
    """Content by digest, from the cache or else from the registry."""

    def __init__(self, registry: RegistryClient, path: str, cache: Cache) -> None:
        #: Unique name of the repository.
        self.name = f"{registry.url}/{path}"
        self._registry = registry
        self._repository_name = path
        self._cache = cache

    def manifest(self, digest: str, deadline: Deadline) -> bytes:
        """Return the verified bytes of a manifest or an index; see `Repository.manifest`."""
        return self._load_or_fetch(
            digest, lambda: self._registry.manifest(self._repository_name, digest, deadline), deadline
        )

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:
        """Return the verified bytes of a small blob; see `Repository.config`."""
        return self._load_or_fetch(
            blob.digest, lambda: self._registry.blob(self._repository_name, blob, deadline), deadline
        )

    def tagged(self, tag: str, deadline: Deadline) -> bytes | None:
        """Return the manifest or index that a tag names now; see `Attachments.tagged`."""
        return self._registry.find(self._repository_name, tag, deadline)

    def referrers(self, digest: str, artifact_type: str, deadline: Deadline) -> list[Descriptor]:
        """Return what is attached to a manifest; see `Attachments.referrers`.

        Where the registry cannot list them, or does so in a way of its own, the fallback tag does. Only if that has
        nothing, a refused list is an error: whether there is a signature is not known then.
        """
        refusal: PermanentError | None = None
        try:
            found = self._registry.referrers(self._repository_name, digest, artifact_type, deadline)
        except PermanentError as error:
            found, refusal = None, error
        if found is None:
            found = of_type(read_fallback(self.tagged(fallback_tag(digest), deadline), digest), artifact_type)
        if refusal and not found:
            raise refusal
        return found

    def open(self, blob: Descriptor, deadline: Deadline) -> AbstractContextManager[Reader]:
        """Open a firmware that is a blob, verified; see `Firmware.open`."""
        return self._cache.open(blob.size, blob.checksum, self.name, partial(self._fill, blob), deadline)

    def stream(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """Open a blob for reading once, unverified; see `Repository.stream`."""
        return self._registry.stream(self._repository_name, blob)

    def _fill(self, blob: Descriptor, write: Callable[[bytes], object]) -> None:
        with self.stream(blob) as download:
            while piece := download.read(_CHUNK_BYTES):
                write(piece)

    def keep(self, digest: str, content: bytes, deadline: Deadline) -> None:
        """Save a manifest or a config in the cache."""
        self._cache.small_files.save(self._key(digest), content, deadline)

    def _load_or_fetch(self, digest: str, fetch: Callable[[], bytes], deadline: Deadline) -> bytes:
        """Return a manifest or config from the cache; fetch and save it if it is missing."""
        content = self._cache.small_files.load(self._key(digest), checksum_of(digest), MAX_MANIFEST_BYTES)
        if content is None:
            content = fetch()
            self.keep(digest, content, deadline)
        return content

    def _key(self, digest: str) -> str:
        # Contains the repository: a digest must not give access to content of a repository that denies it.
        return f"{self.name}@{digest}"


def _repository_name(reference: Reference) -> str:
    """Return the registry's name of the repository."""
    name = reference.prefix.partition("/")[2] + reference.name
    if not is_name(name):
        raise PermanentError(f"invalid reference {str(reference)!r}: {name[:300]!r} is no name of a repository")
    return name


def _tag(reference: Reference) -> str:
    return reference.tag or "latest"
