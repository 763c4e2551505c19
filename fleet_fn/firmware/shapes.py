"""The shapes in which a repository may hold a firmware: artifact, labelled image, image with firmware.json, index.

Written once against `Repository`, for registries and for image layouts alike. An artifact is what `publish` and `oras
push` make of a firmware; the two images are what the first firmware server of Drogue IoT built with buildah.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, Protocol

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.metadata import Metadata, read_metadata
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotReadyError, Reader
from fleet_fn.oci.artifact import FIRMWARE_LAYER, artifact_in
from fleet_fn.oci.layer import OPAQUE_WHITEOUT, WHITEOUT_PREFIX, Allowance, Entry, Readable, root_entries
from fleet_fn.oci.manifest import (
    MANIFESTS,
    Descriptor,
    Index,
    Manifest,
    media_type_of,
    read_descriptor,
    read_json_object,
    read_manifest,
)
from fleet_fn.oci.reference import Reference

_LABEL: Final = "io.drogue.metadata"
_FIRMWARE_FILE: Final = "firmware.bin"
_METADATA_FILE: Final = "firmware.json"
_IMAGE_CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_MAX_METADATA: Final = 64 * 1024
#: Bytes that layers may hold besides the firmware, and layers; more than that is no firmware's image, or a bomb.
_MAX_BESIDES: Final = 256 * 1024 * 1024
_MAX_LAYERS: Final = 128
#: Manifests of an index that are looked into.
_MAX_MANIFESTS: Final = 64
_CHUNK: Final = 64 * 1024
#: A labelled image's firmware: where a layer has both names, the one that comes first.
_FIRMWARE_FILES: Final = frozenset(("firmware", _FIRMWARE_FILE))
_NAME_ONE: Final = "name one in spec.firmware.container.platform"
#: Seconds; nobody else looks through the same image at the same time.
_PATIENCE: Final = 3600.0
#: Images whose files have been looked through, and are remembered with what was found.
_REMEMBERED: Final = 4096


class Repository(Protocol):
    """Content by digest, in a registry or in an image layout."""

    @property
    def name(self) -> str:
        """What tells it from all others."""

    def manifest(self, digest: str, deadline: Deadline) -> bytes:
        """The verified bytes of a manifest or an index, 4 MiB at most.

        Raises:
            PermanentError: it is not there, or is something else.
            TransientError: the place is not there.

        """

    def config(self, blob: Descriptor, deadline: Deadline) -> bytes:
        """The verified bytes of a small blob, 4 MiB at most.

        Raises:
            PermanentError, TransientError: as with `manifest`.

        """

    def open(self, blob: Descriptor, deadline: Deadline) -> AbstractContextManager[Reader]:
        """The verified bytes of a firmware that is a blob; see `Firmware.open`."""

    def stream(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """The bytes of a blob as they come, never more than its descriptor says, and not verified.

        Raises:
            PermanentError, TransientError: as with `manifest`; when reading, too.

        """


class NoFirmwareError(PermanentError):
    """A manifest has none of the shapes."""


class Shapes:
    """Tells the shape of what a repository holds, and gets the firmware out of it."""

    def __init__(self, cache: Cache, background: SingleFlight) -> None:
        self._cache = cache
        self._background = background
        #: By repository and digests of layers: `firmware.json`, or nothing where there is none.
        self._descriptions: TTLCache[str, bytes] = TTLCache(_REMEMBERED)

    def firmware(self, content: bytes, reference: Reference, repository: Repository, deadline: Deadline) -> Firmware:
        """The firmware in a manifest or an index.

        Args:
            content: the manifest or index, verified against its digest.
            reference: what led to it; its tag is the version where nothing else tells it.
            repository: where it lies.
            deadline: for finding out.

        Raises:
            NotReadyError: an image's layers have to be looked through first, which goes on.
            PermanentError: there is no firmware in it, or several, or something is malformed; the reason tells.
            TransientError: the repository is not there.

        """
        manifest = read_manifest(content)
        if isinstance(manifest, Index):
            return self._in_index(manifest, reference, repository, deadline)
        return self._in_manifest(manifest, reference, repository, deadline)

    def _in_index(self, index: Index, reference: Reference, repository: Repository, deadline: Deadline) -> Firmware:
        entries = [
            read_descriptor(entry, f"manifest {number} of the index")
            for number, entry in enumerate(index.manifests)
            if media_type_of(entry) in MANIFESTS
        ]
        if not entries:
            raise NoFirmwareError("no manifest in the index")
        chosen = {entry.digest: entry for entry in entries if _suits(entry, reference.platform)}
        if not chosen:
            raise PermanentError(
                f"no manifest for the platform {reference.platform!r} in the index: it has {_told(entries)}"
            )
        if len(chosen) > _MAX_MANIFESTS:
            raise PermanentError(
                f"index of {len(chosen)} manifests; at most {_MAX_MANIFESTS} are looked into: {_NAME_ONE}"
            )
        found: list[tuple[Descriptor, Firmware]] = []
        none: NoFirmwareError | None = None
        for digest, entry in chosen.items():
            try:
                content = repository.manifest(digest, deadline)
                if len(content) != entry.size:
                    raise PermanentError(
                        f"size mismatch: manifest {digest} has {len(content)} bytes where there should be {entry.size}"
                    )
                manifest = read_manifest(content)
                if isinstance(manifest, Manifest):
                    found.append((entry, self._in_manifest(manifest, reference, repository, deadline)))
            except NoFirmwareError as error:
                none = error
        if len(found) > 1:
            raise PermanentError(f"ambiguous index: firmware for {_told(entry for entry, _ in found)}; {_NAME_ONE}")
        if not found:
            raise none or NoFirmwareError("no manifest in the index")
        return found[0][1]

    def _in_manifest(
        self, manifest: Manifest, reference: Reference, repository: Repository, deadline: Deadline
    ) -> Firmware:
        if artifact := artifact_in(manifest, None if reference.digest else reference.tag):
            layer = artifact.layer
            return Firmware(artifact.version, layer.size, layer.checksum, "artifact", partial(repository.open, layer))
        if media_type_of(manifest.config) not in _IMAGE_CONFIGS:
            raise NoFirmwareError(f"no firmware: no layer of media type {FIRMWARE_LAYER}, and no image")
        layers = _tar_layers(manifest)
        config = read_descriptor(manifest.config, "config")
        if label := _label(repository.config(config, deadline)):
            metadata, names, shape = read_metadata(label.encode(), f"label {_LABEL}"), _FIRMWARE_FILES, "labelled image"
        else:
            metadata = self._metadata_in_layers(layers, repository, deadline)
            names, shape = frozenset((_FIRMWARE_FILE,)), f"image with {_METADATA_FILE}"
        fill = partial(_unpack, layers, repository, names, metadata)
        source = _told_layers(layers, repository)
        opener = partial(self._cache.open, metadata.size, metadata.checksum, source, fill, is_claim=True)
        return Firmware(metadata.version, metadata.size, metadata.checksum, shape, opener)

    def _metadata_in_layers(self, layers: Sequence[Descriptor], repository: Repository, deadline: Deadline) -> Metadata:
        """What the file `firmware.json` says, which is as immutable as the layers' digests."""
        key = f"{_METADATA_FILE} in {_told_layers(layers, repository)}"

        def look() -> bytes:
            return self._descriptions.get(key, math.inf, find, Deadline(_PATIENCE))

        def find() -> bytes:
            # Noted for other processes, and for when the registry is away.
            found = self._cache.noted(key, _MAX_METADATA)
            if found is None:
                found = _find_description(layers, repository, self._cache.bound)
                self._cache.note(key, found, Deadline(_PATIENCE))
            return found

        description = self._descriptions.peek(key)
        if description is None:
            try:
                description = self._background.result(key, look, deadline.leaving(KEPT_FOR_WAIT), keeps_error=True)
            except TimeoutError as error:
                raise NotReadyError(f"looking for {_METADATA_FILE} in the image's layers") from error
        if not description:
            raise NoFirmwareError(f"no firmware: neither a label {_LABEL} nor a file {_METADATA_FILE} in the image")
        return read_metadata(description, _METADATA_FILE)


# --- Images -----------------------------------------------------------------------------------------------------------


def _tar_layers(manifest: Manifest) -> list[Descriptor]:
    """The layers that are tar archives, compressed or not, in the order in which they are laid over each other."""
    if len(manifest.layers) > _MAX_LAYERS:
        raise PermanentError(f"image of {len(manifest.layers)} layers; at most {_MAX_LAYERS} are read")
    return [
        read_descriptor(layer, f"layer {number}")
        for number, layer in enumerate(manifest.layers)
        if ".tar" in str(media_type_of(layer))
    ]


def _label(config: bytes) -> str | None:
    """The label that describes the firmware, from an image's config ("OCI Image Configuration", `config.Labels`)."""
    section = read_json_object(config, "image config").get("config")
    labels = section.get("Labels") if isinstance(section, dict) else None
    label = labels.get(_LABEL) if isinstance(labels, dict) else None
    if label is not None and not isinstance(label, str):
        raise PermanentError(f"label {_LABEL} is no text")
    return label


def _unpack(
    layers: Sequence[Descriptor],
    repository: Repository,
    names: frozenset[str],
    metadata: Metadata,
    write: Callable[[bytes], object],
) -> None:
    """Writes the firmware in an image's layers: the file of one of `names` in the root of the last layer that has it.

    Raises:
        PermanentError: there is none, or it has another size than it should; or a layer is malformed.
        TransientError: the repository is not there.

    """
    visible = _Visible(names, _MAX_BESIDES + metadata.size)
    for layer in reversed(layers):
        if not visible.names:
            break
        with repository.stream(layer) as stream:
            for entry in visible.entries(stream):
                if entry.size != metadata.size:
                    raise PermanentError(
                        f"size mismatch: {entry.name} has {entry.size} bytes where there should be {metadata.size}"
                    )
                while piece := entry.read(_CHUNK):
                    write(piece)
                return
    raise PermanentError(f"no file {' or '.join(sorted(names))} in the root of the image's layers")


def _find_description(layers: Sequence[Descriptor], repository: Repository, max_firmware: int) -> bytes:
    """The file `firmware.json` in an image's layers, or nothing where there is none.

    Each layer is read to its end, because its digest vouches for it.

    Raises:
        PermanentError: the file or a layer is malformed.
        TransientError: the repository is not there.

    """
    visible = _Visible({_METADATA_FILE}, _MAX_BESIDES + max_firmware)
    for layer in reversed(layers):
        if not visible.names:
            break
        content: bytes | None = None
        with repository.stream(layer) as stream:
            hashed = _Hashed(stream)
            for entry in visible.entries(hashed):
                content = _small(entry)
        if hashed.digest.digest() != layer.checksum:
            raise PermanentError(f"digest mismatch: layer {layer.digest} has other bytes")
        if content is not None:
            return content
    return b""


def _told_layers(layers: Sequence[Descriptor], repository: Repository) -> str:
    """What tells layers in a repository from all others."""
    return " ".join((repository.name, *(layer.digest for layer in layers)))


def _small(entry: Entry) -> bytes:
    if entry.size > _MAX_METADATA:
        raise PermanentError(f"{entry.name} has {entry.size} bytes; at most {_MAX_METADATA} are read")
    content = b""
    while piece := entry.read(_CHUNK):
        content += piece
    return content


class _Visible:
    """Which of the files that are looked for can be seen in a layer: those that no layer above it hides."""

    def __init__(self, names: Iterable[str], max_unpacked: int) -> None:
        #: What may still be seen further below.
        self.names = set(names)
        self._allowance = Allowance(max_unpacked)

    def entries(self, layer: Readable) -> Iterator[Entry]:
        """The files in the next layer below those that were looked through."""
        hidden: set[str] = set()
        for entry in root_entries(layer, self._allowance):
            if entry.name == OPAQUE_WHITEOUT:
                hidden |= self.names
            elif entry.name.startswith(WHITEOUT_PREFIX):
                hidden.add(entry.name.removeprefix(WHITEOUT_PREFIX))
            elif entry.name in self.names:
                if not entry.is_file:
                    raise PermanentError(f"{entry.name} in the image is not a regular file")
                yield entry
        self.names -= hidden


class _Hashed:
    """A stream that is hashed as it passes."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self.digest.update(piece)
        return piece


# --- Indexes ----------------------------------------------------------------------------------------------------------


def _suits(manifest: Descriptor, platform: str | None) -> bool:
    """Whether `platform` names a manifest of an index.

    It may be `os/architecture`, with or without `/variant`; an annotation's value; or `name=value` of an annotation.
    """
    if platform is None or f"{manifest.platform}/".startswith(f"{platform}/"):
        return True
    return any(platform in (value, f"{name}={value}") for name, value in manifest.annotations.items())


def _told(manifests: Iterable[Descriptor]) -> str:
    """What tells manifests apart, for people."""
    return ", ".join(
        manifest.platform or " ".join(f"{n}={v}" for n, v in manifest.annotations.items()) or manifest.digest
        for manifest in manifests
    )
