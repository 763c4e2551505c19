"""A whole image layout, as whoever may write to the firmware's folder can make it: `LayoutStore` and `Shapes`.

The input is `index.json` and the blobs, with lines of `----` in between. `@N` stands for the digest of the N-th blob,
`$N` for that in hex, `"#N"` for its size: no fuzzer finds a blob's digest. Only later blobs can be named.
What must hold:

- There is firmware in it, or it is `PermanentError`, with a reason of one line.
- What is served has the size and the checksum that were told, and is one of the blobs, or a file that tarfile finds in
  one of them.
"""

import gzip
import hashlib
import io
import re
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.layout_store import LayoutStore
from fleet_fn.firmware.shapes import Shapes
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.oci.reference import Reference
from tests.fuzz.bounds import bounded

SEPARATOR = b"\n----\n"
_PLATFORMS = (None, "linux/arm64")
_SECONDS = 10.0


def one_input(data: bytes) -> None:
    index, *blobs = _resolved(data.split(SEPARATOR)[:10])
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        _write(folder / "pump", index, blobs)
        for platform in _PLATFORMS:
            served = _served(folder, platform)
            assert served is None or any(served == content for blob in blobs for content in _contents(blob))


def _resolved(parts: list[bytes]) -> list[bytes]:
    """The parts, with what stands for digests and sizes of later ones replaced."""
    for number in reversed(range(len(parts))):

        def told(match: re.Match[bytes], number: int = number) -> bytes:
            kind, other = match[0].strip(b'"')[:1], int(match[1] or match[2])
            if not number < other < len(parts):
                return match[0]
            digest = hashlib.sha256(parts[other]).hexdigest().encode()
            return {b"@": b"sha256:" + digest, b"$": digest, b"#": b"%d" % len(parts[other])}[kind]

        parts[number] = re.sub(rb'[@$]([0-9])|"#([0-9])"', told, parts[number])
    return parts


def _write(layout: Path, index: bytes, blobs: list[bytes]) -> None:
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (layout / "index.json").write_bytes(index)
    for blob in blobs:
        (layout / "blobs" / "sha256" / hashlib.sha256(blob).hexdigest()).write_bytes(blob)


def _served(folder: Path, platform: str | None) -> bytes | None:
    """The firmware that is served; None where there is none."""
    single_flight = SingleFlight()
    files = VerifiedFiles(single_flight, lambda: time.time() + 3600)
    cache = Cache(folder / "cache", 1024 * 1024, files, single_flight)
    store = LayoutStore(files, Shapes(cache, single_flight))
    reference = Reference(f"{folder}/", "pump", "1.0.0", None, platform)
    try:
        with bounded():
            firmware = store.resolve(reference, Deadline(_SECONDS))
            with firmware.open(Deadline(_SECONDS)) as reader:
                content = reader.read(0, firmware.size)
    except PermanentError as failed:
        assert failed.reason
        assert failed.reason.isprintable()
        return None
    assert firmware.version
    assert len(content) == firmware.size
    assert hashlib.sha256(content).digest() == firmware.checksum
    return content


def _contents(blob: bytes) -> Iterator[bytes]:
    """The blob, and the files in it."""
    yield blob
    try:
        plain = _unzipped(blob) if blob.startswith(b"\x1f\x8b") else blob
        with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() else None
                if content:
                    yield content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return


def _unzipped(blob: bytes) -> bytes:
    """What comes before the gzip stream breaks off: a file that is whole by then, and verified, is as good as any."""
    plain = bytearray()
    with gzip.open(io.BytesIO(blob)) as stream:
        try:
            while piece := stream.read(512):
                plain += piece
        except (OSError, EOFError, zlib.error):
            pass
    return bytes(plain)
