"""From the bytes of an OCI image layer to what stands in the layer's root.

A layer comes from an untrusted place: whatever it holds, it is read in little memory, and in a time that is bounded by
its length and by what it may expand to.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from fleet_fn.errors import PermanentError

#: What begins the name of an entry that removes what the rest of its name tells (OCI image specification, "Whiteouts").
WHITEOUT_PREFIX: Final = ".wh."
#: The entry that removes whatever lower layers have in its folder ("Opaque Whiteout").
OPAQUE_WHITEOUT: Final = ".wh..wh..opq"

#: Entries of a layer, and members of its gzip stream, that are read.
_MAX_ENTRIES: Final = 100_000
#: Records that are read in all pax headers of a layer together: five bytes can make one.
_MAX_RECORDS: Final = 1_000_000
#: Bytes of a header that extends the one after it.
_MAX_EXTENSION: Final = 1024 * 1024
#: Bytes of a name with its folders: what Linux takes.
_MAX_PATH: Final = 4096

_CHUNK: Final = 64 * 1024
_BLOCK: Final = 512
_ZEROS: Final = bytes(_BLOCK)
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
#: Has zlib read gzip's header and trailer, and check the CRC and the length in the trailer.
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS

_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS: Final = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
#: Links, devices, folders and FIFOs: whatever size their headers tell, no content follows.
_HEADER_ONLY: Final = (b"1", b"2", b"3", b"4", b"5", b"6")
#: Any of them tells a sparse file; its `path`, if it has one, is not its name.
_SPARSE: Final = (b"GNU.sparse.name", b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, b"" at the end. What it raises is passed on."""


class Entry:
    """What a layer has under one name in its root."""

    __slots__ = ("_left", "_position", "_tar", "is_file", "name", "size")

    def __init__(self, name: str, size: int, is_file: bool, tar: "_Tar") -> None:
        #: One component, of whatever characters; bytes that are not UTF-8 are surrogates, as in Python's file names.
        self.name: Final = name
        #: Bytes; 0 for what is no file.
        self.size: Final = size
        #: Whether it is a regular file: no folder, link or device, nor a sparse file, which a layer has only parts of.
        self.is_file: Final = is_file
        self._tar = tar
        self._position = tar.position
        self._left = size

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes of the content, b"" at its end.

        Raises:
            PermanentError: the layer is malformed or cut short.
            UpstreamError: what reading the layer raises.
            ValueError: the iterator that gave this entry has gone on; or `size` is negative.

        """
        if size < 0:
            raise ValueError("a negative size")
        if self._tar.position != self._position:
            raise ValueError("an entry is read after its turn")
        if not size or not self._left:
            return b""
        piece = self._tar.read_some(min(size, self._left))
        self._position += len(piece)
        self._left -= len(piece)
        return piece


class Allowance:
    """Bytes that layers may expand to, altogether."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Negative when there was more.
        self.left = limit


def root_entries(layer: Readable, allowance: Allowance) -> Iterator[Entry]:
    """The entries in the root of a layer, in its order: files, whiteouts and whatever else has a name there.

    Names in folders are skipped, and so are those that leave the root. A name can come again. Where the iterator ends,
    `layer` has been read to its end; before that, nothing vouches for what was read: neither the checksums that the
    layer has itself, nor its digest. Whoever stops earlier leaves the rest unread.

    Args:
        layer: a tar or a gzipped tar: its first bytes tell which. Its own length is the caller's to bound.
        allowance: what it may expand to; it is used up as that is unpacked.

    Raises:
        PermanentError: it is malformed, cut short, or more than is read; the reason tells.
        UpstreamError: what reading `layer` raises.

    """
    tar = _Tar(_unpacked(layer), allowance)
    for number, header in enumerate(_headers(tar)):
        if number == _MAX_ENTRIES:
            raise PermanentError(f"layer: more than {_MAX_ENTRIES} entries")
        if header.size > tar.left:
            raise tar.too_large()
        end = tar.position + header.size + -header.size % _BLOCK
        name = _root_name(header.path)
        if name:
            yield Entry(name, header.size if header.is_file else 0, header.is_file, tar)
        tar.skip(end - tar.position)
    while tar.read(_CHUNK):
        pass


# --- tar --------------------------------------------------------------------------------------------------------------
#
# Only the header's block is left to tarfile. The rest of it is not made for hostile archives: all members, all global
# pax records and the whole map of a sparse file stay in memory; an extension header is read by a recursion from the one
# before it; and a malformed header counts as the archive's end. Where POSIX leaves a choice, it is made as Go's
# archive/tar does, by which container engines unpack layers.


class _Header(NamedTuple):
    """An entry's header, together with the extension headers before it."""

    path: bytes
    #: Bytes of content that follow.
    size: int
    is_file: bool


class _Tar:
    """The bytes of a tar, no more than are allowed."""

    def __init__(self, unpacked: Readable, allowance: Allowance) -> None:
        self._unpacked = unpacked
        self._allowance = allowance
        #: Bytes that it may have.
        self._limit = allowance.left
        self._chunk = b""
        self._offset = 0
        #: Bytes that were read.
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes to the limit."""
        return self._limit - self.position

    def too_large(self) -> PermanentError:
        return PermanentError(f"layer: expands to more than {self._allowance.limit} bytes")

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, b"" at the end."""
        if self._offset == len(self._chunk):
            self._chunk, self._offset = self._next_chunk(), 0
        piece = self._chunk[self._offset : self._offset + size]
        self._offset += len(piece)
        self.position += len(piece)
        return piece

    def read_some(self, size: int) -> bytes:
        """One to `size` bytes."""
        piece = self.read(size)
        if not piece:
            raise PermanentError("layer: tar is cut short")
        return piece

    def read_all(self, size: int) -> bytes:
        """`size` bytes."""
        content = bytearray()
        while len(content) < size:
            content += self.read_some(size - len(content))
        return bytes(content)

    def read_block(self) -> bytes:
        """One block, b"" at the end."""
        block = self.read(_BLOCK)
        return block + self.read_all(_BLOCK - len(block)) if block else b""

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.read_some(size))

    def _next_chunk(self) -> bytes:
        if self._allowance.left >= 0:
            chunk = self._unpacked.read(min(_CHUNK, self._allowance.left + 1))
            self._allowance.left -= len(chunk)
        if self._allowance.left < 0:
            raise self.too_large()
        return chunk


def _headers(tar: _Tar) -> Iterator[_Header]:
    """The headers of all entries. Whoever iterates goes on when the content that follows the last one is skipped."""
    extensions: set[bytes] = set()
    records: dict[bytes, bytes] = {}
    number_of_records = 0
    while block := _header_block(tar):
        kind, size = block[156:157], _size(block)
        if kind not in _EXTENSIONS:
            yield _header(tar, block, kind, size, records)
            extensions, records = set(), {}
            continue
        if kind in extensions:
            raise PermanentError("layer: two extension headers of one kind for one entry")
        if size > _MAX_EXTENSION:
            raise PermanentError(f"layer: an extension header of more than {_MAX_EXTENSION} bytes")
        extensions.add(kind)
        body = tar.read_all(size)
        tar.skip(-size % _BLOCK)
        if kind == tarfile.GNUTYPE_LONGNAME:
            records[kind] = body.partition(b"\0")[0]
        elif kind in _PAX:
            for keyword, value in _pax_records(body):
                number_of_records += 1
                if number_of_records > _MAX_RECORDS:
                    raise PermanentError(f"layer: more than {_MAX_RECORDS} pax records")
                if keyword in (b"path", b"size", *_SPARSE):
                    records[keyword] = value
    if extensions - {tarfile.XGLTYPE}:
        raise PermanentError("layer: tar is cut short")


def _header_block(tar: _Tar) -> bytes:
    """The next header, b"" at the end of the archive: two blocks of zeros, or, as some leave them out, one or none."""
    block = tar.read_block()
    if block != _ZEROS:
        return block
    if tar.read_block() not in (_ZEROS, b""):
        raise PermanentError("layer: a block of zeros between entries")
    return b""


def _size(block: bytes) -> int:
    """The size in a header, whose checksum is right."""
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.TarError as error:
        raise PermanentError(f"layer: tar header: {error}") from error
    # Anything else is negative, or readers understand it differently.
    if not re.fullmatch(rb" *[0-7]*[ \0]*|\x80.*", block[124:136], re.DOTALL):
        raise PermanentError("layer: tar header: malformed size")
    return size


def _header(tar: _Tar, block: bytes, kind: bytes, size: int, records: dict[bytes, bytes]) -> _Header:
    path = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    magic = block[257:265]
    # With GNU's magic number, times may stand there; but folders, too, in what Go wrote before 1.8. With none it may be
    # anything: there was no prefix before POSIX.
    if prefix and (magic.startswith(b"ustar\0") or (magic == b"ustar  \0" and not prefix.isdigit())):
        path = prefix + b"/" + path
    # An empty record leaves the header's own value.
    path = records.get(tarfile.GNUTYPE_LONGNAME) or records.get(b"GNU.sparse.name") or records.get(b"path") or path
    if length := records.get(b"size"):
        size = _decimal(length)
    # Before POSIX, a slash told a folder.
    is_folder = path.endswith(b"/")
    if kind in _HEADER_ONLY or (is_folder and kind == tarfile.AREGTYPE):
        size = 0
    if kind == tarfile.GNUTYPE_SPARSE:
        # More of its map follows in blocks of their own, as long as a flag tells so.
        more = block[482]
        while more:
            more = tar.read_all(_BLOCK)[504]
    is_file = kind in _REGULAR and not is_folder and records.keys().isdisjoint(_SPARSE)
    return _Header(path, size, is_file)


def _pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The records of a pax header, "LENGTH KEYWORD=VALUE" and a line feed each (POSIX.1, "pax Extended Header")."""
    start = 0
    while start < len(body):
        length = body[start : start + 20].partition(b" ")[0]
        end = start + _decimal(length)
        keyword, equals, value = body[start + len(length) + 1 : end - 1].partition(b"=")
        if not keyword or not equals or body[end - 1 : end] != b"\n":
            raise PermanentError("layer: malformed pax header")
        yield keyword, value
        start = end


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise PermanentError("layer: malformed pax header")
    return int(digits)


def _root_name(path: bytes) -> str | None:
    """The name that `path` is in the root; None where it leads elsewhere, or is the root."""
    if len(path) > _MAX_PATH:
        raise PermanentError(f"layer: a name of more than {_MAX_PATH} bytes")
    folder, _, name = path.rstrip(b"/").rpartition(b"/")
    components = set(folder.split(b"/"))
    if path.startswith(b"/") or not components <= {b"", b"."} or name in (b"", b".", b".."):
        return None
    return name.decode("utf-8", "surrogateescape")


# --- gzip -------------------------------------------------------------------------------------------------------------


def _unpacked(layer: Readable) -> Readable:
    """The tar that `layer` is, or that it has been compressed from."""
    packed = _Peeked(layer, len(_ZSTD))
    if packed.head.startswith(_ZSTD):
        raise PermanentError("layer: zstd layers are not read, only plain and gzipped ones")
    return _Gunzipped(packed) if packed.head.startswith(_GZIP) else packed


class _Peeked:
    """A stream whose first bytes are known before they are read."""

    def __init__(self, stream: Readable, size: int) -> None:
        self._stream = stream
        self.head = b""
        while len(self.head) < size and (piece := stream.read(size - len(self.head))):
            self.head += piece

    def read(self, size: int, /) -> bytes:
        if not self.head:
            return self._stream.read(size)
        piece, self.head = self.head[:size], self.head[size:]
        return piece


class _Gunzipped:
    """What a gzip stream of one or more members expands to.

    As Python's gzip module, it takes zeros after a member, and nothing else than another member after them.
    """

    def __init__(self, packed: Readable) -> None:
        self._packed = packed
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._members = 1
        #: What was read and is not expanded yet.
        self._chunk = b""

    def read(self, size: int, /) -> bytes:
        """One to `size` bytes, b"" at the end. `size` must not be 0, by which zlib means no limit."""
        while True:
            if self._member.eof and not self._next_member():
                return b""
            try:
                # Without input, too: what it was given before can expand to more.
                piece = self._member.decompress(self._chunk, size)
            except zlib.error as error:
                raise PermanentError(f"layer: gzip: {error}") from error
            self._chunk = self._member.unconsumed_tail
            if piece:
                return piece
            if not self._member.eof:
                self._chunk = self._packed.read(_CHUNK)
                if not self._chunk:
                    raise PermanentError("layer: gzip stream is cut short")

    def _next_member(self) -> bool:
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._packed.read(_CHUNK)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        if self._members == _MAX_ENTRIES:
            raise PermanentError(f"layer: more than {_MAX_ENTRIES} gzip members")
        self._members += 1
        self._member, self._chunk = zlib.decompressobj(_GZIP_FORMAT), rest
        return True
