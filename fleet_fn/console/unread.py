"""Stores whose firmware is described, and whose bytes are never fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fleet_fn.deadline import Deadline
from fleet_fn.firmware.store import Firmware, ImageStore, Reader, Store
from fleet_fn.oci.reference import Reference
from fleet_fn.parts import Stores


class _Blank:
    """Bytes that stand for those of a block."""

    def read(self, offset: int, size: int) -> bytes:  # noqa: ARG002 - as `Reader` has it
        return bytes(size)


@contextmanager
def _open_blank(_: Deadline) -> Iterator[Reader]:
    yield _Blank()


class _Described:
    """A store whose firmware is known, but not fetched."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def resolve(self, reference: Reference, deadline: Deadline, known: Firmware | None = None) -> Firmware:
        """Return the firmware that a reference names; see `Store.resolve`."""
        return replace(self._store.resolve(reference, deadline, known), opener=_open_blank)

    def close(self) -> None:
        """Do nothing: the store belongs to others."""


class _DescribedImages(_Described):
    """The same for a store with tags."""

    def __init__(self, images: ImageStore) -> None:
        super().__init__(images)
        self._images = images

    def tags(self, reference: Reference, deadline: Deadline, *, whole: bool = False) -> list[str]:
        """Return the tags of a repository; see `ImageStore.tags`."""
        return self._images.tags(reference, deadline, whole=whole)


def without_bytes(stores: Stores) -> Stores:
    """Return stores of the same firmware, in which each byte is 0."""
    return Stores(_DescribedImages(stores.images), _Described(stores.files) if stores.files else None, stores.trust)
