"""Shapes of firmware in a repository.

They are artifact, labelled image, image with `firmware.json`, and an index of these.

Written once against `Repository`, for registries and image layouts. `publish`, `oras push` and other projects create
artifacts. The first firmware server of Drogue IoT built the two kinds of image with buildah.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Final, Protocol

from fleet_fn.concurrency.single_flight import SingleFlight, StillRunningError
from fleet_fn.concurrency.ttl_cache import TTLCache
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.conditions import read_conditions
from fleet_fn.firmware.metadata import MAX_METADATA_BYTES, Metadata, read_metadata
from fleet_fn.firmware.store import KEPT_FOR_WAIT, Firmware, NotReadyError, Reader, Signed
from fleet_fn.oci.artifact import FIRMWARE_LAYER, IMAGE_CONFIGS, NoFirmwareError, artifact_in
from fleet_fn.oci.attached import find_attached
from fleet_fn.oci.layer import OPAQUE_WHITEOUT, WHITEOUT_PREFIX, Allowance, Entry, Readable, root_entries
from fleet_fn.oci.manifest import (
    AUTHORS_ANNOTATION,
    CREATED_ANNOTATION,
    MANIFESTS,
    REVISION_ANNOTATION,
    SOURCE_ANNOTATION,
    Descriptor,
    Index,
    Manifest,
    digest_of,
    media_type_of,
    read_descriptor,
    read_json_object,
    read_manifest,
)
from fleet_fn.oci.reference import Reference
from fleet_fn.oci.referrers import Attachments
from fleet_fn.oci.signature_search import find_signatures

_LABEL: Final = "io.drogue.metadata"
_FIRMWARE_FILE: Final = "firmware.bin"
_METADATA_FILE: Final = "firmware.json"
#: Upper bounds for other content in an image's layers, and for the number of layers, against archive bombs.
_MAX_OTHER_BYTES: Final = 256 * 1024 * 1024
_MAX_LAYERS: Final = 128
#: Upper bound for the manifests of an index that are read.
_MAX_MANIFESTS: Final = 64
_CHUNK_BYTES: Final = 64 * 1024
#: Of each annotation that is only shown; a manifest may be 4 MiB long.
_MAX_SHOWN_CHARS: Final = 200
_ORIGIN: Final = (SOURCE_ANNOTATION, REVISION_ANNOTATION, CREATED_ANNOTATION)
#: Names of the firmware in a labelled image. If a layer has both, its first entry counts.
_FIRMWARE_FILES: Final = frozenset(("firmware", _FIRMWARE_FILE))
_NAME_ONE: Final = "name one in spec.firmware.container.platform"
#: Effectively unbounded: the search runs once per image, in the background.
_SEARCH_TIMEOUT_SECONDS: Final = 3600.0
#: Bound of the cached descriptions.
_MAX_DESCRIPTIONS: Final = 4096


class Repository(Attachments, Protocol):
    """Content by digest, in a registry or in an image layout."""

    def open(self, blob: Descriptor, deadline: Deadline) -> AbstractContextManager[Reader]:
        """Open a firmware that is a blob, verified; see `Firmware.open`."""

    def stream(self, blob: Descriptor) -> AbstractContextManager[Readable]:
        """Open a blob for reading its bytes as they arrive, unverified.

        At most as many bytes come as its descriptor says.

        Raises:
            PermanentError, TransientError: see `manifest`; reads raise them, too.

        """


class Shapes:
    """Finds the firmware in manifests and indexes of any shape."""

    def __init__(self, cache: Cache, single_flight: SingleFlight) -> None:
        self._cache = cache
        self._single_flight = single_flight
        #: Content of `firmware.json` by repository and layers' digests; b"" if there is none.
        self._descriptions: TTLCache[str, bytes] = TTLCache(_MAX_DESCRIPTIONS)

    def firmware(self, content: bytes, reference: Reference, repository: Repository, deadline: Deadline) -> Firmware:
        """Return the firmware in a manifest or an index.

        Args:
            content: the manifest or index, verified against its digest.
            reference: the reference that named it; its tag is the version if nothing else gives one.
            repository: the repository that has it.
            deadline: bounds the search.

        Raises:
            NotReadyError: searching an image's layers takes longer than the deadline; the search goes on.
            PermanentError: there is no firmware in it, or several, or something is malformed; the reason says which.
            TransientError: the repository is unavailable.

        """
        manifest, digest = read_manifest(content), digest_of(content)
        if isinstance(manifest, Index):
            chosen, firmware = self._in_index(manifest, reference, repository, deadline)
            digests: tuple[str, ...] = (digest, chosen.digest)
        else:
            firmware, digests = self._in_manifest(manifest, reference, repository, deadline), (digest,)
        signed = Signed(
            repository.name,
            digests,
            partial(find_signatures, repository, digests),
            partial(find_attached, repository, digests),
        )
        return replace(firmware, manifest=digest, signed=signed)

    def _in_index(
        self, index: Index, reference: Reference, repository: Repository, deadline: Deadline
    ) -> tuple[Descriptor, Firmware]:
        entries = [
            read_descriptor(entry, f"manifest {number} of the index")
            for number, entry in enumerate(index.manifests)
            if media_type_of(entry) in MANIFESTS
        ]
        if not entries:
            raise NoFirmwareError("no manifest in the index")
        chosen = {entry.digest: entry for entry in entries if _matches(entry, reference.platform)}
        if not chosen:
            raise PermanentError(
                f"no manifest for the platform {reference.platform!r} in the index: it has {_list_manifests(entries)}"
            )
        if len(chosen) > _MAX_MANIFESTS:
            raise PermanentError(f"index of {len(chosen)} manifests; at most {_MAX_MANIFESTS} are read: {_NAME_ONE}")
        found: list[tuple[Descriptor, Firmware]] = []
        none: NoFirmwareError | None = None
        for digest, entry in chosen.items():
            try:
                content = repository.manifest(digest, deadline)
                if len(content) != entry.size:
                    raise PermanentError(
                        f"size mismatch: manifest {digest} has {len(content)} bytes, expected {entry.size}"
                    )
                manifest = read_manifest(content)
                if isinstance(manifest, Manifest):
                    found.append((entry, self._in_manifest(manifest, reference, repository, deadline)))
            except NoFirmwareError as error:
                none = error
        if len(found) > 1:
            raise PermanentError(
                f"ambiguous index: firmware for {_list_manifests(entry for entry, _ in found)}; {_NAME_ONE}"
            )
        if not found:
            raise none or NoFirmwareError("no manifest in the index")
        return found[0]

    def _in_manifest(
        self, manifest: Manifest, reference: Reference, repository: Repository, deadline: Deadline
    ) -> Firmware:
        if artifact := artifact_in(manifest, None if reference.digest else reference.tag):
            layer = artifact.layer
            firmware = Firmware(
                artifact.version,
                layer.size,
                layer.checksum,
                "artifact",
                partial(repository.open, layer),
                has_own_version=artifact.has_own_version,
            )
        else:
            firmware = self._in_image(manifest, repository, deadline)
        return _with_annotations(firmware, manifest.annotations)

    def _in_image(self, manifest: Manifest, repository: Repository, deadline: Deadline) -> Firmware:
        if media_type_of(manifest.config) not in IMAGE_CONFIGS:
            raise NoFirmwareError(f"no firmware: no layer of media type {FIRMWARE_LAYER}, and no image")
        layers = _tar_layers(manifest)
        config = read_descriptor(manifest.config, "config")
        described = read_json_object(repository.config(config, deadline), "image config")
        if label := _read_label(described):
            metadata, names, shape = read_metadata(label.encode(), f"label {_LABEL}"), _FIRMWARE_FILES, "labelled image"
        else:
            metadata = self._metadata_in_layers(layers, repository, deadline)
            names, shape = frozenset((_FIRMWARE_FILE,)), f"image with {_METADATA_FILE}"
        fill = partial(_unpack, layers, repository, names, metadata)
        source = _layers_key(layers, repository)
        opener = partial(self._cache.open, metadata.size, metadata.checksum, source, fill, is_claim=True)
        created = described.get("created")
        origin = {CREATED_ANNOTATION: created[:_MAX_SHOWN_CHARS]} if isinstance(created, str) else {}
        return Firmware(metadata.version, metadata.size, metadata.checksum, shape, opener, origin=origin)

    def _metadata_in_layers(self, layers: Sequence[Descriptor], repository: Repository, deadline: Deadline) -> Metadata:
        """Return the content of `firmware.json`.

        It is cached for good, because the layers' digests fix it.
        """
        key = f"{_METADATA_FILE} in {_layers_key(layers, repository)}"

        def look() -> bytes:
            return self._descriptions.get(key, math.inf, find, Deadline(_SEARCH_TIMEOUT_SECONDS))

        def find() -> bytes:
            # Noted for other processes, and for times when the registry is unavailable.
            found = self._cache.small_files.load_note(key, MAX_METADATA_BYTES)
            if found is None:
                found = _find_description(layers, repository, self._cache.bound)
                self._cache.small_files.save_note(key, found, Deadline(_SEARCH_TIMEOUT_SECONDS))
            return found

        description = self._descriptions.peek(key)
        if description is None:
            try:
                description = self._single_flight.result(key, look, deadline.leave(KEPT_FOR_WAIT), keeps_error=True)
            except StillRunningError as error:
                raise NotReadyError(f"looking for {_METADATA_FILE} in the image's layers") from error
        if not description:
            raise NoFirmwareError(f"no firmware: neither a label {_LABEL} nor a file {_METADATA_FILE} in the image")
        return read_metadata(description, _METADATA_FILE)


def _with_annotations(firmware: Firmware, annotations: Mapping[str, str]) -> Firmware:
    """Return a firmware with what the annotations of its manifest say of it.

    Raises:
        PermanentError: one that keeps it from devices is empty, or too long to be remembered.

    """
    hardware, requires = read_conditions(annotations)
    return replace(
        firmware,
        authors=annotations.get(AUTHORS_ANNOTATION, "")[:_MAX_SHOWN_CHARS],
        origin={
            **firmware.origin,
            **{name: annotations[name][:_MAX_SHOWN_CHARS] for name in _ORIGIN if name in annotations},
        },
        hardware=hardware,
        requires=requires,
    )


# --- Images -----------------------------------------------------------------------------------------------------------


def _tar_layers(manifest: Manifest) -> list[Descriptor]:
    """Return the layers that are tar archives, compressed or not, the lowest first."""
    if len(manifest.layers) > _MAX_LAYERS:
        raise PermanentError(f"image of {len(manifest.layers)} layers; at most {_MAX_LAYERS} are read")
    return [
        read_descriptor(layer, f"layer {number}")
        for number, layer in enumerate(manifest.layers)
        if ".tar" in str(media_type_of(layer))
    ]


def _read_label(config: Mapping[str, Any]) -> str | None:
    """Return the label that describes firmware from an image's `config.Labels`."""
    section = config.get("config")
    labels = section.get("Labels") if isinstance(section, dict) else None
    label = labels.get(_LABEL) if isinstance(labels, dict) else None
    if label is not None and not isinstance(label, str):
        raise PermanentError(f"label {_LABEL} is not a string")
    return label


def _unpack(
    layers: Sequence[Descriptor],
    repository: Repository,
    names: frozenset[str],
    metadata: Metadata,
    write: Callable[[bytes], object],
) -> None:
    """Write the firmware of an image.

    It is the file with one of `names` in the root of the topmost layer that has one.

    Raises:
        PermanentError: there is none, or its size differs from the metadata; or a layer is malformed.
        TransientError: the repository is unavailable.

    """
    visible = _VisibleFiles(names, _MAX_OTHER_BYTES + metadata.size)
    for layer in reversed(layers):
        if not visible.names:
            break
        with repository.stream(layer) as stream:
            for entry in visible.entries(stream):
                if entry.size != metadata.size:
                    raise PermanentError(
                        f"size mismatch: {entry.name} has {entry.size} bytes, expected {metadata.size}"
                    )
                while piece := entry.read(_CHUNK_BYTES):
                    write(piece)
                return
    raise PermanentError(f"no file {' or '.join(sorted(names))} in the root of the image's layers")


def _find_description(layers: Sequence[Descriptor], repository: Repository, max_firmware: int) -> bytes:
    """Return the file `firmware.json` of an image, or b"" if there is none.

    Each layer is read to its end, to verify it against its digest.

    Raises:
        PermanentError: the file or a layer is malformed.
        TransientError: the repository is unavailable.

    """
    visible = _VisibleFiles({_METADATA_FILE}, _MAX_OTHER_BYTES + max_firmware)
    for layer in reversed(layers):
        if not visible.names:
            break
        content: bytes | None = None
        with repository.stream(layer) as stream:
            hashed = _HashingStream(stream)
            for entry in visible.entries(hashed):
                content = _read_small(entry)
        if hashed.digest.digest() != layer.checksum:
            raise PermanentError(f"digest mismatch: layer {layer.digest} has other bytes")
        if content is not None:
            return content
    return b""


def _layers_key(layers: Sequence[Descriptor], repository: Repository) -> str:
    """Return a unique key for these layers in this repository."""
    return " ".join((repository.name, *(layer.digest for layer in layers)))


def _read_small(entry: Entry) -> bytes:
    if entry.size > MAX_METADATA_BYTES:
        raise PermanentError(f"{entry.name} has {entry.size} bytes; at most {MAX_METADATA_BYTES} are read")
    content = b""
    while piece := entry.read(_CHUNK_BYTES):
        content += piece
    return content


class _VisibleFiles:
    """The wanted files of an image that no whiteout in a layer above hides."""

    def __init__(self, names: Iterable[str], max_unpacked: int) -> None:
        #: Names that no layer so far has hidden.
        self.names = set(names)
        self._allowance = Allowance(max_unpacked)

    def entries(self, layer: Readable) -> Iterator[Entry]:
        """Yield the visible files of the next lower layer."""
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


class _HashingStream:
    """A stream that hashes the bytes that are read from it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        piece = self._stream.read(size)
        self.digest.update(piece)
        return piece


# --- Indexes ----------------------------------------------------------------------------------------------------------


def _matches(manifest: Descriptor, platform: str | None) -> bool:
    """Return whether `platform` selects a manifest of an index.

    It may be `os/architecture`, with or without `/variant`; an annotation's value; or `name=value` of an annotation.
    """
    if platform is None or f"{manifest.platform}/".startswith(f"{platform}/"):
        return True
    return any(platform in (value, f"{name}={value}") for name, value in manifest.annotations.items())


def _list_manifests(manifests: Iterable[Descriptor]) -> str:
    """Return a list of manifests for people, by platform, annotations or digest."""
    return ", ".join(
        manifest.platform or " ".join(f"{n}={v}" for n, v in manifest.annotations.items()) or manifest.digest
        for manifest in manifests
    )
