"""Firmware that the devices of `device/` can start, and what of it somebody has published."""

import hashlib
import threading
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Final

from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import VERSION_ANNOTATION
from fleet_fn.oci.reference import LAYOUT_SCHEME

_MAGIC: Final = b"PEER"
_VERSION_BYTES: Final = 16
#: Bytes before a firmware's content: see `device/src/image.rs`.
HEADER: Final = 26


@dataclass(frozen=True)
class Firmware:
    """One version's bytes, with a header as the devices read it."""

    version: str
    size: int
    #: It crashes before it reports anything, so it never marks itself good.
    crashes: bool = False
    #: Tells apart different bytes of one version.
    build: int = 0

    @cached_property
    def content(self) -> bytes:
        """The firmware's bytes."""
        name = self.version.encode()
        header = b"".join(
            (
                _MAGIC,
                bytes((self.crashes, len(name))),
                name.ljust(_VERSION_BYTES, b"\0"),
                self.size.to_bytes(4, "little"),
            )
        )
        return header + hashlib.shake_256(repr(self).encode()).digest(self.size - HEADER)

    @cached_property
    def sha256(self) -> str:
        """The checksum, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def started(self) -> str:
        """What a device says when it starts this firmware."""
        return f"{self.version} {self.size} {self.sha256}"


class Shelf:
    """Image layouts in a folder, into which each firmware goes once."""

    def __init__(self, folder: Path) -> None:
        """An empty shelf at `folder`."""
        self._folder = folder
        self._lock = threading.Lock()
        self._references: dict[Firmware, str] = {}

    def publish(self, firmware: Firmware) -> str:
        """Publish `firmware` unless it is there; return its reference for `spec.firmware`."""
        with self._lock:
            reference = self._references.get(firmware)
            if reference is None:
                crashes = "-crashes" if firmware.crashes else ""
                reference = f"size-{firmware.size}-build-{firmware.build}{crashes}:{firmware.version}"
                self.put(reference, firmware)
                self._references[firmware] = reference
        return reference

    def put(self, reference: str, firmware: Firmware) -> None:
        """Put `firmware` at `reference`, whatever was there before."""
        layout = layout_reference(f"{LAYOUT_SCHEME}{self._folder}/{reference}")
        publish_to_layout(layout, BytesIO(firmware.content), {VERSION_ANNOTATION: firmware.version}, force=True)
