"""Reader of OCI image layers, plain or gzipped tar: the entries in their root.

Layers are untrusted. Reading one takes little memory, and time bounded by its length and by its allowed expanded size.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from fleet_fn.errors import PermanentError

#: Prefix of an entry that hides the file named by the rest of its name (OCI image specification, "Whiteouts").
WHITEOUT_PREFIX: Final = ".wh."
#: Entry that hides all files of lower layers in its folder ("Opaque Whiteout").
OPAQUE_WHITEOUT: Final = ".wh..wh..opq"

#: Upper bound for the entries of a layer, and for the members of its gzip stream.
_MAX_ENTRIES: Final = 100_000
#: Upper bound for the records in all pax headers of a layer: five bytes suffice for one record.
_MAX_RECORDS: Final = 1_000_000
#: Upper bound for the body of an extension header.
_MAX_EXTENSION_BYTES: Final = 1024 * 1024
#: Upper bound for a path; Linux's PATH_MAX.
_MAX_PATH_BYTES: Final = 4096

_CHUNK_BYTES: Final = 64 * 1024
_BLOCK_BYTES: Final = 512
_ZEROS: Final = bytes(_BLOCK_BYTES)
_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
#: Makes zlib read gzip's header and trailer, and check the CRC and the length in the trailer.
_GZIP_FORMAT: Final = 16 + zlib.MAX_WBITS

_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS: Final = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_REGULAR: Final = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
#: Links, devices, folders and FIFOs: no content follows, even if the header gives a size.
_HEADER_ONLY: Final = (b"1", b"2", b"3", b"4", b"5", b"6")
#: Each of them marks a sparse file, whose `path` record, if there is one, is not its name.
_SPARSE: Final = (b"GNU.sparse.name", b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size")


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, b"" at the end. Its errors are passed on."""


class Entry:
    """An entry in the root of a layer."""

    __slots__ = ("_left", "_position", "_tar", "is_file", "name", "size")

    def __init__(self, name: str, size: int, is_file: bool, tar: "_Tar") -> None:
        #: One path component. Bytes that are not UTF-8 are surrogates, as in Python's file names.
        self.name: Final = name
        #: Bytes; 0 if this is no file.
        self.size: Final = size
        #: Whether this is a regular file. A sparse file is not: a layer holds only parts of it.
        self.is_file: Final = is_file
        self._tar = tar
        self._position = tar.position
        self._left = size

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes of the content, b"" at its end.

        Raises:
            PermanentError: the layer is malformed or cut short.
            UpstreamError: reading the layer raised it.
            ValueError: the iterator that yielded this entry has moved on; or `size` is negative.

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
    """Total of bytes to which layers may expand."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        #: Bytes left; negative once the limit was exceeded.
        self.left = limit


def root_entries(layer: Readable, allowance: Allowance) -> Iterator[Entry]:
    """Yield the entries in a layer's root, in order: files, whiteouts, folders, links.

    Entries in folders are skipped, and so are those whose path leaves the root. A name can occur more than once. When
    the iterator ends, `layer` has been read to its end. Before that nothing is verified, neither by the checksums in
    the layer nor by its digest. A caller that stops earlier leaves the rest unread.

    Args:
        layer: a tar or a gzipped tar, told apart by its first bytes. The caller bounds its length.
        allowance: bounds the expanded size; reduced by each byte that is expanded.

    Raises:
        PermanentError: the layer is malformed, cut short, or exceeds a bound; the reason says which.
        UpstreamError: reading `layer` raised it.

    """
    tar = _Tar(_decompress(layer), allowance)
    for number, header in enumerate(_read_headers(tar)):
        if number == _MAX_ENTRIES:
            raise PermanentError(f"layer: more than {_MAX_ENTRIES} entries")
        if header.size > tar.left:
            raise tar.too_large()
        end = tar.position + header.size + -header.size % _BLOCK_BYTES
        name = _root_name(header.path)
        if name:
            yield Entry(name, header.size if header.is_file else 0, header.is_file, tar)
        tar.skip(end - tar.position)
    while tar.read(_CHUNK_BYTES):
        pass


# --- tar --------------------------------------------------------------------------------------------------------------
#
# tarfile parses only the header's block. The rest of tarfile is unfit for hostile archives. It keeps all members, all
# global pax records and the whole map of a sparse file in memory. It reads consecutive extension headers by recursion.
# It takes a malformed header for the archive's end. If POSIX leaves a choice, this reader follows Go's archive/tar,
# with which container engines unpack layers.


class _Header(NamedTuple):
    """An entry's header, merged with the extension headers before it."""

    path: bytes
    #: Bytes of content after the header.
    size: int
    is_file: bool


class _Tar:
    """The bytes of a tar, bounded by an allowance."""

    def __init__(self, unpacked: Readable, allowance: Allowance) -> None:
        self._stream = unpacked
        self._allowance = allowance
        #: Upper bound for the bytes of this tar.
        self._limit = allowance.left
        self._chunk = b""
        self._offset = 0
        #: Bytes read so far.
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes left up to the limit."""
        return self._limit - self.position

    def too_large(self) -> PermanentError:
        return PermanentError(f"layer: expands to more than {self._allowance.limit} bytes")

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end."""
        if self._offset == len(self._chunk):
            self._chunk, self._offset = self._next_chunk(), 0
        piece = self._chunk[self._offset : self._offset + size]
        self._offset += len(piece)
        self.position += len(piece)
        return piece

    def read_some(self, size: int) -> bytes:
        """Return one to `size` bytes; raise `PermanentError` at the end."""
        piece = self.read(size)
        if not piece:
            raise PermanentError("layer: tar is cut short")
        return piece

    def read_all(self, size: int) -> bytes:
        """Return exactly `size` bytes; raise `PermanentError` if there are fewer."""
        content = bytearray()
        while len(content) < size:
            content += self.read_some(size - len(content))
        return bytes(content)

    def read_block(self) -> bytes:
        """Return one block, b"" at the end."""
        block = self.read(_BLOCK_BYTES)
        return block + self.read_all(_BLOCK_BYTES - len(block)) if block else b""

    def skip(self, size: int) -> None:
        while size:
            size -= len(self.read_some(size))

    def _next_chunk(self) -> bytes:
        if self._allowance.left >= 0:
            chunk = self._stream.read(min(_CHUNK_BYTES, self._allowance.left + 1))
            self._allowance.left -= len(chunk)
        if self._allowance.left < 0:
            raise self.too_large()
        return chunk


def _read_headers(tar: _Tar) -> Iterator[_Header]:
    """Yield the headers of all entries.

    The caller skips the content after each header before it takes the next.
    """
    extensions: set[bytes] = set()
    records: dict[bytes, bytes] = {}
    number_of_records = 0
    while block := _read_header_block(tar):
        kind, size = block[156:157], _read_size(block)
        if kind not in _EXTENSIONS:
            yield _read_header(tar, block, kind, size, records)
            extensions, records = set(), {}
            continue
        if kind in extensions:
            raise PermanentError("layer: two extension headers of one kind for one entry")
        if size > _MAX_EXTENSION_BYTES:
            raise PermanentError(f"layer: an extension header of more than {_MAX_EXTENSION_BYTES} bytes")
        extensions.add(kind)
        body = tar.read_all(size)
        tar.skip(-size % _BLOCK_BYTES)
        if kind == tarfile.GNUTYPE_LONGNAME:
            records[kind] = body.partition(b"\0")[0]
        elif kind in _PAX:
            for keyword, value in _read_pax_records(body):
                number_of_records += 1
                if number_of_records > _MAX_RECORDS:
                    raise PermanentError(f"layer: more than {_MAX_RECORDS} pax records")
                if keyword in (b"path", b"size", *_SPARSE):
                    records[keyword] = value
    if extensions - {tarfile.XGLTYPE}:
        raise PermanentError("layer: tar is cut short")


def _read_header_block(tar: _Tar) -> bytes:
    """Return the next header, b"" at the end of the archive.

    The end is marked by two blocks of zeros; some writers leave out one or both.
    """
    block = tar.read_block()
    if block != _ZEROS:
        return block
    if tar.read_block() not in (_ZEROS, b""):
        raise PermanentError("layer: a block of zeros between entries")
    return b""


def _read_size(block: bytes) -> int:
    """Return the size in a header after checking the header's checksum."""
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.TarError as error:
        raise PermanentError(f"layer: tar header: {error}") from error
    # Other spellings are negative, or different readers take them for different sizes.
    if not re.fullmatch(rb" *[0-7]*[ \0]*|\x80.*", block[124:136], re.DOTALL):
        raise PermanentError("layer: tar header: malformed size")
    return size


def _read_header(tar: _Tar, block: bytes, kind: bytes, size: int, records: dict[bytes, bytes]) -> _Header:
    path = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0]
    magic = block[257:265]
    # With GNU's magic number this field may hold times, or folders if Go before 1.8 wrote it. Without a magic number it
    # may hold anything: the format had no prefix before POSIX.
    if prefix and (magic.startswith(b"ustar\0") or (magic == b"ustar  \0" and not prefix.isdigit())):
        path = prefix + b"/" + path
    # An empty record leaves the header's own value in force.
    path = records.get(tarfile.GNUTYPE_LONGNAME) or records.get(b"GNU.sparse.name") or records.get(b"path") or path
    if length := records.get(b"size"):
        size = _parse_decimal(length)
    # Before POSIX, a trailing slash marked a folder.
    is_folder = path.endswith(b"/")
    if kind in _HEADER_ONLY or (is_folder and kind == tarfile.AREGTYPE):
        size = 0
    if kind == tarfile.GNUTYPE_SPARSE:
        # Further blocks of the sparse map follow while a flag is set.
        more = block[482]
        while more:
            more = tar.read_all(_BLOCK_BYTES)[504]
    is_file = kind in _REGULAR and not is_folder and records.keys().isdisjoint(_SPARSE)
    return _Header(path, size, is_file)


def _read_pax_records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records of a pax header: "LENGTH KEYWORD=VALUE" and a line feed.

    See POSIX.1, "pax Extended Header".
    """
    start = 0
    while start < len(body):
        length = body[start : start + 20].partition(b" ")[0]
        end = start + _parse_decimal(length)
        keyword, equals, value = body[start + len(length) + 1 : end - 1].partition(b"=")
        if not keyword or not equals or body[end - 1 : end] != b"\n":
            raise PermanentError("layer: malformed pax header")
        yield keyword, value
        start = end


def _parse_decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise PermanentError("layer: malformed pax header")
    return int(digits)


def _root_name(path: bytes) -> str | None:
    """Return the name in the root to which `path` leads, or None.

    None stands for a path that leads elsewhere, or to the root itself.
    """
    if len(path) > _MAX_PATH_BYTES:
        raise PermanentError(f"layer: a name of more than {_MAX_PATH_BYTES} bytes")
    folder, _, name = path.rstrip(b"/").rpartition(b"/")
    components = set(folder.split(b"/"))
    if path.startswith(b"/") or not components <= {b"", b"."} or name in (b"", b".", b".."):
        return None
    return name.decode("utf-8", "surrogateescape")


# --- gzip -------------------------------------------------------------------------------------------------------------


def _decompress(layer: Readable) -> Readable:
    """Return the tar in a plain or gzipped layer."""
    packed = _PeekStream(layer, len(_ZSTD))
    if packed.head.startswith(_ZSTD):
        raise PermanentError("layer: zstd layers are not read, only plain and gzipped ones")
    return _GunzipStream(packed) if packed.head.startswith(_GZIP) else packed


class _PeekStream:
    """A stream whose first bytes can be inspected before they are read."""

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


class _GunzipStream:
    """The expanded bytes of a gzip stream of one or more members.

    Like Python's gzip module, it accepts zeros after a member; after the zeros only another member.
    """

    def __init__(self, packed: Readable) -> None:
        self._packed = packed
        self._member = zlib.decompressobj(_GZIP_FORMAT)
        self._members = 1
        #: Compressed bytes that are not expanded yet.
        self._chunk = b""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, b"" at the end.

        `size` must not be 0, which zlib takes for no limit.
        """
        while True:
            if self._member.eof and not self._next_member():
                return b""
            try:
                # Called without input, too: earlier input can expand to more.
                piece = self._member.decompress(self._chunk, size)
            except zlib.error as error:
                raise PermanentError(f"layer: gzip: {error}") from error
            self._chunk = self._member.unconsumed_tail
            if piece:
                return piece
            if not self._member.eof:
                self._chunk = self._packed.read(_CHUNK_BYTES)
                if not self._chunk:
                    raise PermanentError("layer: gzip stream is cut short")

    def _next_member(self) -> bool:
        rest = self._member.unused_data.lstrip(b"\0")
        while not rest:
            chunk = self._packed.read(_CHUNK_BYTES)
            if not chunk:
                return False
            rest = chunk.lstrip(b"\0")
        if self._members == _MAX_ENTRIES:
            raise PermanentError(f"layer: more than {_MAX_ENTRIES} gzip members")
        self._members += 1
        self._member, self._chunk = zlib.decompressobj(_GZIP_FORMAT), rest
        return True
