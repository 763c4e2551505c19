"""An image's layer: `root_entries`.

The first byte's lowest bit asks for the checksums of tar headers to be mended, which no fuzzer guesses; the next one
for the rest to be gzipped. What must hold:

- A layer is read to its end, or is `PermanentError`, with a reason of one line.
- What comes out are names of one component, and contents of the sizes that were told.
- Of a layer that was read to its end, Python's gzip and tarfile give the same files.
"""

import gzip
import io
import tarfile

from fleet_fn.errors import PermanentError
from fleet_fn.oci.layer import Allowance, root_entries
from tests.fuzz.bounds import bounded

LIMIT = 1024 * 1024
_BLOCK = 512


def one_input(data: bytes) -> None:
    choice, layer = data[0] if data else 0, data[1:]
    if choice & 1:
        layer = _mended(layer)
    if choice & 2:
        layer = gzip.compress(layer, 1, mtime=0)
    wire, allowance, files = io.BytesIO(layer), Allowance(LIMIT), []
    try:
        with bounded():
            for entry in root_entries(wire, allowance):
                assert entry.name not in ("", ".", "..")
                assert "/" not in entry.name
                content = b"".join(iter(lambda read=entry.read: read(1000), b""))  # type: ignore[misc]
                assert len(content) == entry.size
                if entry.is_file:
                    files.append((entry.name, content))
    except PermanentError as failed:
        assert failed.reason.startswith("layer: ")
        assert failed.reason.isprintable()
        return
    assert not wire.read()
    plain = gzip.decompress(layer) if layer.startswith(b"\x1f\x8b") else layer
    assert allowance.left == LIMIT - len(plain)
    if not _is_read_differently(plain):
        assert files == _files(plain)


def _mended(tar: bytes) -> bytes:
    """The tar with the checksum that each header should have."""
    mended, position = bytearray(tar), 0
    while len(header := mended[position : position + _BLOCK]) == _BLOCK:
        if any(header):
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            mended[position : position + _BLOCK] = header
            position += _content(header)
        position += _BLOCK
    return bytes(mended)


def _content(header: bytearray) -> int:
    """Bytes of the blocks after a header, as far as it tells itself."""
    size = _told_size(header)
    return 0 if size < 0 or header[156:157] in b"123456" else size + -size % _BLOCK


def _is_read_differently(plain: bytes) -> bool:
    """Whether tarfile is known to understand a header otherwise than Go's archive/tar, which container engines use."""
    for position in range(0, len(plain), _BLOCK):
        header, content = plain[position : position + _BLOCK], plain[position + _BLOCK :]
        kind = header[156:157]
        # A sparse file's map matters to nobody who does not read the file. Global pax headers tell nothing.
        if kind in (tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE):
            return True
        # A long name of nothing is none, and none goes on beyond its size.
        if kind == tarfile.GNUTYPE_LONGNAME and content.find(b"\0") not in range(1, _told_size(header)):
            return True
        # Whether a slash told a folder before POSIX is seen in the name that an extension header gives it.
        if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME) and b"/\0" in content:
            return True
        # Folders stand before a name in POSIX's formats only; in GNU's it is times.
        if header[257:263] != b"ustar\0" and header[345:346] not in (b"", b"\0"):
            return True
    return False


def _told_size(header: bytes | bytearray) -> int:
    try:
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return 0


def _files(plain: bytes) -> list[tuple[str, bytes]]:
    """The files in the root of a tar, as tarfile reads it."""
    files: list[tuple[str, bytes]] = []
    if not plain:
        return files
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            in_root = not member.name.startswith("/") and {*folder.split("/")} <= {"", "."}
            # Any record of a sparse file makes it one for the function.
            is_file = member.isreg() and not any(key.startswith("GNU.sparse.") for key in member.pax_headers)
            if in_root and name not in ("", ".", "..") and is_file and not member.issparse():
                content = tar.extractfile(member)
                assert content
                files.append((name, content.read()))
    return files
