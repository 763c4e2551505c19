"""Firmware in OCI registries: what a reference stands at, and its bytes by way of the cache."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
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
from fleet_fn.oci.registry_client import RegistryClient

#: Bytes of a download that are received at once.
_CHUNK: Final = 256 * 1024


class RegistryStore:
    """Reads firmware from one registry, and keeps what it read in the cache."""

    def __init__(self, registry: RegistryClient, shapes: Shapes, cache: Cache) -> None:
        self._registry = registry
        self._shapes = shapes
        self._cache = cache

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        """The firmware that `reference` names right now; `known` is it again if its tag has not moved.

        Raises:
            NotReadyError: an image has to be looked through first, which goes on.
            PermanentError: no such tag or digest, or something in it is malformed, or the registry does not let us see
                it.
            TransientError: the registry does not answer in time.

        """
        path = _path(reference)
        repository = _Repository(self._registry, path, self._cache)
        digest = reference.digest
        if digest is None and known is not None:
            digest = self._registry.digest(path, _tag(reference), deadline)
            if digest is not None and digest == known.manifest:
                return known
        if digest is not None:
            content = repository.manifest(digest, deadline)
            return replace(self._shapes.firmware(content, reference, repository, deadline), manifest=digest)
        digest, content = self._registry.resolve_tag(path, _tag(reference), deadline)
        firmware = self._shapes.firmware(content, reference, repository, deadline)
        # So that by its digest it is served for ever; only now, because it could have been anything.
        repository.keep(digest, content, deadline)
        return replace(firmware, manifest=digest)


class _Repository:
    """Content by digest, from the cache or else from the registry."""

    def __init__(self, registry: RegistryClient, path: str, cache: Cache) -> None:
        #: What tells it from all others.
        self.name = f"{registry.url}/{path}"
        self._registry = registry
        self._path = path
        self._cache = cache

    def manifest(self, digest: str, deadline: Deadline) -> bytes:
        """The verified bytes of a manifest or an index; see `Repository.manifest`."""
        return self._kept(digest, lambda: self._registry.manifest(self._path, digest, deadline), deadline)

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:
        """The verified bytes of a small blob; see `Repository.config`."""
        return self._kept(blob.digest, lambda: self._registry.blob(self._path, blob, deadline), deadline)

    def open(self, blob: Descriptor, deadline: Deadline) -> AbstractContextManager[Reader]:
        """The verified bytes of a firmware that is a blob; see `Firmware.open`."""
        return self._cache.open(blob.size, blob.checksum, self.name, partial(self._fill, blob), deadline)

    def stream(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The bytes of a blob as they come; see `Repository.stream`."""
        return self._registry.stream(self._path, blob)

    def _fill(self, blob: Descriptor, write: Callable[[bytes], object]) -> None:
        with self.stream(blob) as download:
            while piece := download.read(_CHUNK):
                write(piece)

    def keep(self, digest: str, content: bytes, deadline: Deadline) -> None:
        """Keeps a manifest or a config in the cache."""
        self._cache.save(self._key(digest), content, deadline)

    def _kept(self, digest: str, fetch: Callable[[], bytes], deadline: Deadline) -> bytes:
        """A manifest or a config from the cache, or else what `fetch` returns, which is kept there."""
        content = self._cache.load(self._key(digest), checksum_of(digest), MAX_MANIFEST_BYTES)
        if content is None:
            content = fetch()
            self.keep(digest, content, deadline)
        return content

    def _key(self, digest: str) -> str:
        # With the repository: whoever may not read there must not get it by its digest from somewhere else.
        return f"{self.name}@{digest}"


def _path(reference: Reference) -> str:
    """What the registry calls the repository."""
    name = reference.prefix.partition("/")[2] + reference.name
    if not is_name(name):
        raise PermanentError(f"invalid reference {str(reference)!r}: {name[:300]!r} is no name of a repository")
    return name


def _tag(reference: Reference) -> str:
    return reference.tag or "latest"
