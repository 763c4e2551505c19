"""Firmware in image layouts."""

import hashlib
import io
import random
from dataclasses import dataclass, field
from pathlib import Path

from fleet_fn.deadline import Deadline
from fleet_fn.firmware.store import Firmware
from fleet_fn.oci.layout_writer import layout_reference, publish_to_layout
from fleet_fn.oci.manifest import VERSION_ANNOTATION


@dataclass(frozen=True)
class Published:
    """A firmware that devices can be updated to."""

    version: str
    content: bytes = field(repr=False)
    #: The manifest's.
    digest: str

    @property
    def checksum(self) -> bytes:
        return hashlib.sha256(self.content).digest()


def random_bytes(size: int, seed: object = 0) -> bytes:
    return random.Random(repr(seed)).randbytes(size)


def publish(
    folder: Path, name: str, version: str, content: bytes, tag: str | None = None, **annotations: str
) -> Published:
    """Publishes into the layout `name` below `folder`; the tag is the version unless another is given.

    The annotations are `hardware` and `requires`.
    """
    reference = layout_reference(f"oci-layout:{folder / name}:{tag or version}")
    ours = {f"io.drogue.firmware.{key}": value for key, value in annotations.items()}
    published = publish_to_layout(reference, io.BytesIO(content), {VERSION_ANNOTATION: version, **ours}, force=True)
    return Published(version, content, published.digest)


def read_all(firmware: Firmware) -> bytes:
    """All bytes of a firmware, verified."""
    with firmware.open(Deadline(10)) as reader:
        return reader.read(0, firmware.size)


def blob_path(folder: Path, name: str, firmware: Published) -> Path:
    return folder / name / "blobs" / "sha256" / firmware.checksum.hex()
