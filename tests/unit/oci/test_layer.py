"""Layers as tools write them, damaged layers, and hostile ones."""

import gzip
import hashlib
import io
import random
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.oci.layer import OPAQUE_WHITEOUT, WHITEOUT_PREFIX, Allowance, Entry, Readable
from fleet_fn.oci.layer import root_entries as root_entries_within

MIB = 1024 * 1024
LIMIT = 64 * MIB
Format = Literal[0, 1, 2]
FORMATS: list[Format] = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
ZEROS = bytes(512)
END = ZEROS * 2
FIRMWARE = bytes(range(256)) * 9 + b"the end"


def root_entries(layer: Readable, limit: int) -> Iterator[Entry]:
    return root_entries_within(layer, Allowance(limit))


class Wire:
    """A layer on its way here: in pieces of the given sizes, over and over; hashed as a caller would."""

    def __init__(self, layer: bytes, pieces: tuple[int, ...] = (1 << 20,)) -> None:
        self._layer = memoryview(layer)
        self._pieces = pieces
        self._reads = 0
        self.read_to_the_end = False
        self.position = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        assert size > 0
        size = min(size, self._pieces[self._reads % len(self._pieces)])
        piece = bytes(self._layer[self.position : self.position + size])
        self._reads += 1
        self.position += len(piece)
        self.sha256.update(piece)
        self.read_to_the_end = not piece
        return piece


class Endless:
    """A layer that repeats itself for as long as anybody reads."""

    def __init__(self, start: bytes, rest: bytes) -> None:
        self._start, self._rest = start, rest
        self.position = 0

    def read(self, size: int, /) -> bytes:
        if self._start:
            piece, self._start = self._start[:size], self._start[size:]
        else:
            piece = (self._rest * (size // len(self._rest) + 1))[:size]
            self._rest = self._rest[size % len(self._rest) :] + self._rest[: size % len(self._rest)]
        self.position += len(piece)
        return piece


def member(
    name: str,
    content: bytes = b"",
    kind: bytes = tarfile.REGTYPE,
    *,
    size: int | None = None,
    link: str = "",
    format: Format = tarfile.USTAR_FORMAT,
    pax: dict[str, str] | None = None,
) -> bytes:
    """A header that tells `size`, and the content, padded."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax or {}
    info.size = len(content) if size is None else size
    return info.tobuf(format, "utf-8", "surrogateescape") + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:512]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:] + header[512:]


def pax_record(keyword: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def archive(files: dict[str, bytes], format: Format = tarfile.PAX_FORMAT) -> bytes:
    """A tar as Python's tarfile writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def read_whole(entry: Entry, size: int = 1000) -> bytes:
    content = b""
    while piece := entry.read(size):
        assert len(piece) <= size
        content += piece
    return content


def contents(layer: bytes, limit: int = LIMIT) -> list[tuple[str, bytes | None]]:
    """Names and contents of the root's entries; None is the content of what is no file."""
    return [(entry.name, read_whole(entry) if entry.is_file else None) for entry in root_entries(Wire(layer), limit)]


def names(layer: bytes) -> list[str]:
    return [entry.name for entry in root_entries(Wire(layer), LIMIT)]


def sizes(layer: bytes, limit: int) -> list[int]:
    """How many bytes each of the root's entries gives, when none of them is kept."""
    return [sum(map(len, iter(partial(entry.read, 100_000), b""))) for entry in root_entries(Wire(layer), limit)]


def failure(layer: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(PermanentError) as caught:
        contents(layer, limit)
    assert caught.value.reason.startswith("layer: ")
    return caught.value.reason


@contextmanager
def in_memory(mebibytes: float) -> Iterator[None]:
    """Fails if what is done meanwhile takes more memory at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < mebibytes * MIB


def compress(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def repeated(pieces: int, piece: bytes) -> bytes:
    """A gzip of very many equal pieces, as fast as can be."""
    gzipping = zlib.compressobj(1, wbits=31)
    return b"".join([gzipping.compress(piece) for _ in range(pieces)]) + gzipping.flush()


# --- What tools write -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("pack", [bytes, compress])
def test_files_in_the_root_come_out_in_their_order(format: Format, pack: Callable[[bytes], bytes]) -> None:
    layer = pack(archive({"firmware.bin": FIRMWARE, "firmware.json": b"{}", "empty": b""}, format))
    assert contents(layer) == [("firmware.bin", FIRMWARE), ("firmware.json", b"{}"), ("empty", b"")]


NAMES = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1, max_size=120
).filter(lambda name: name not in (".", ".."))


@given(
    files=st.dictionaries(NAMES, st.binary(max_size=3000), max_size=8),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    cuts=st.none() | st.lists(st.floats(0, 1), max_size=5),
    padding=st.integers(0, 3),
    pieces=st.lists(st.integers(1, 70_000) | st.integers(1, 9), min_size=1, max_size=5),
    size=st.integers(1, 5000),
)
def test_files_of_a_layer_are_read_unchanged(
    files: dict[str, bytes], format: Format, cuts: list[float] | None, padding: int, pieces: list[int], size: int
) -> None:
    layer = tar = archive(files, format)
    if cuts is not None:
        bounds = [0, *sorted(int(cut * len(tar)) for cut in cuts), len(tar)]
        layer = b"".join(compress(tar[start:end]) + bytes(padding) for start, end in pairwise(bounds))
    wire = Wire(layer, tuple(pieces))
    found = [(entry.name, entry.size, entry.is_file, read_whole(entry, size)) for entry in root_entries(wire, len(tar))]
    assert found == [(name, len(content), True, content) for name, content in files.items()]
    assert wire.read_to_the_end
    assert wire.sha256.digest() == hashlib.sha256(layer).digest()


@given(st.dictionaries(st.text("abc.-_", min_size=1, max_size=99), st.binary(max_size=999), max_size=5))
def test_ustar_names_come_out_as_they_are(files: dict[str, bytes]) -> None:
    expected = [(name, content) for name, content in files.items() if name not in (".", "..")]
    assert contents(archive(files, tarfile.USTAR_FORMAT)) == expected


def test_an_entry_need_not_be_read_to_its_end_or_at_all() -> None:
    layer = compress(archive({"a": FIRMWARE, "b": FIRMWARE, "c": b"last"}))
    taken = [entry.read(size) for entry, size in zip(root_entries(Wire(layer), LIMIT), (0, 700, 10), strict=False)]
    assert [len(piece) for piece in taken] == [0, 700, 4]
    assert names(layer) == ["a", "b", "c"]


def test_an_entry_gives_nothing_after_its_end() -> None:
    for entry in root_entries(Wire(archive({"a": b"content"})), LIMIT):
        assert [entry.read(4), entry.read(100), entry.read(1), entry.read(1)] == [b"cont", b"ent", b"", b""]


@pytest.mark.parametrize("content", [b"", FIRMWARE])
def test_an_entry_cannot_be_read_after_its_turn(content: bytes) -> None:
    entries = root_entries(Wire(archive({"a": content, "b": content})), LIMIT)
    entry = next(entries)
    next(entries)
    with pytest.raises(ValueError, match="after its turn"):
        entry.read(1)


def test_an_entry_is_not_read_with_a_negative_size() -> None:
    for entry in root_entries(Wire(archive({"a": FIRMWARE})), LIMIT):
        with pytest.raises(ValueError, match="negative size"):
            entry.read(-1)
        assert read_whole(entry) == FIRMWARE


def test_the_last_entry_can_be_read_when_its_iterator_is_gone() -> None:
    assert read_whole(next(root_entries(Wire(archive({"a": FIRMWARE})), LIMIT))) == FIRMWARE


# --- Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["...", "./...", "././...", ".//...", "././/./..."])
@pytest.mark.parametrize("format", FORMATS)
def test_a_leading_dot_is_the_root(name: str, format: Format) -> None:
    assert contents(member(name, b"content", format=format) + END) == [("...", b"content")]


@pytest.mark.parametrize(
    "name",
    [
        *("/a", "//a", "../a", "./../a", "/./a", "..//a", "a/../../a", "sub/../a", "a/..", "a/.", "..", ".", "./", "/"),
        *("sub/a", "./sub/a", "a//b", ".../a", "./" * 1000 + "sub/a", "", "\0a", "./.."),
    ],
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_in_folders_or_outside_of_the_root_are_skipped(name: str, format: Format) -> None:
    assert names(member(name, FIRMWARE, format=format) + member("b") + END) == ["b"]


@pytest.mark.parametrize("format", FORMATS)
def test_long_names_in_folders_are_skipped_by_their_whole_length(format: Format) -> None:
    layer = member("folder/" * 20 + "a", FIRMWARE, format=format) + member("b", b"content") + END
    assert contents(layer) == [("b", b"content")]


@pytest.mark.parametrize("pax", [False, True])
@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[2J\n\r", "\u202egnp".encode(), b"\xed\xa0\x80", b"a\\b"])
def test_a_name_can_be_any_bytes(name: bytes, pax: bool) -> None:
    header = pax_record(b"path", name)
    layer = member("x", header, tarfile.XHDTYPE) + member("other") if pax else member(os_name(name))
    assert names(layer + END) == [os_name(name)]


def os_name(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def test_whiteouts_are_entries_like_others() -> None:
    layer = archive({"./.wh.firmware.bin": b"", "sub/.wh.b": b"", ".wh..wh..opq": b""})
    assert contents(layer) == [(f"{WHITEOUT_PREFIX}firmware.bin", b""), (OPAQUE_WHITEOUT, b"")]


def test_a_name_can_come_again() -> None:
    assert contents(member("a", b"old") + member("./a", b"new") + END) == [("a", b"old"), ("a", b"new")]


def test_a_name_that_no_file_can_have_fails() -> None:
    layer = member("./" * 2050 + "a", format=tarfile.GNU_FORMAT) + END
    assert failure(layer) == "layer: a name of more than 4096 bytes"


# --- Kinds of entries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"0", b"\0", b"7"])
def test_regular_files_of_all_formats_are_files(kind: bytes) -> None:
    assert contents(member("a", b"content", kind) + END) == [("a", b"content")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"5", b"6"])
@pytest.mark.parametrize("size", [0, 5000])
def test_links_devices_and_folders_are_no_files_and_have_no_content(kind: bytes, size: int) -> None:
    layer = member("a", kind=kind, size=size, link="/etc/shadow") + member("b", b"content") + END
    entry = next(root_entries(Wire(layer), LIMIT))
    assert (entry.name, entry.size, entry.is_file, entry.read(10)) == ("a", 0, False, b"")
    assert contents(layer) == [("a", None), ("b", b"content")]


@pytest.mark.parametrize("kind", [b"D", b"M", b"V", b"N", b"A", b"z", b"\xff", b" "])
def test_entries_of_unknown_kinds_are_no_files_and_their_content_is_skipped(kind: bytes) -> None:
    layer = member("a", FIRMWARE, kind) + member("b", b"content") + END
    entry = next(root_entries(Wire(layer), LIMIT))
    assert (entry.name, entry.size, entry.is_file, entry.read(10)) == ("a", 0, False, b"")
    assert contents(layer) == [("a", None), ("b", b"content")]


def test_a_name_with_a_slash_at_its_end_is_a_folder_as_before_posix() -> None:
    assert contents(member("a/", b"xyz") + member("b", b"content") + END) == [("a", None), ("b", b"content")]


@pytest.mark.parametrize("size", [0, 1, 512])
def test_a_folder_from_before_posix_has_no_content_whatever_its_size(size: int) -> None:
    folder = member("a/", kind=tarfile.AREGTYPE, size=size)
    assert contents(folder + member("b", b"content") + END) == [("a", None), ("b", b"content")]


def test_a_name_that_was_cut_at_a_slash_is_no_folder() -> None:
    layer = member("././" * 25 + "a", b"content", b"\0", format=tarfile.GNU_FORMAT) + END
    assert contents(layer) == [("a", b"content")]


def sparse_gnu(blocks: int) -> bytes:
    header = bytearray(member("./a", FIRMWARE, b"S", format=tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (4096, len(FIRMWARE))
    header[482] = 1 if blocks else 0
    header[483:495] = b"%011o\0" % 10**6
    extended = [bytes(504) + (b"\1" if more else b"\0") + bytes(7) for more in reversed(range(blocks))]
    return with_checksum(bytes(header[:512])) + b"".join(extended) + bytes(header[512:])


def sparse_pax(*records: tuple[bytes, bytes]) -> bytes:
    header = b"".join(pax_record(*record) for record in records)
    return member("x", header, tarfile.XHDTYPE) + member("GNUSparseFile.1/a", FIRMWARE)


@pytest.mark.parametrize(
    "sparse",
    [
        sparse_gnu(0),
        sparse_gnu(1),
        sparse_gnu(5),
        sparse_pax((b"path", b"a"), (b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"0")),
        sparse_pax((b"GNU.sparse.name", b"./a"), (b"GNU.sparse.map", b"4096,7")),
        sparse_pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"a")),
    ],
    ids=["gnu", "gnu-extended", "gnu-more-extended", "0.0", "0.1", "1.0"],
)
def test_sparse_files_are_no_files_and_have_their_names(sparse: bytes) -> None:
    assert contents(sparse + member("b", b"content") + END) == [("a", None), ("b", b"content")]


def test_a_sparse_file_of_an_endless_map_costs_no_memory() -> None:
    extended = b"00000000001\0" * 42 + b"\1" + bytes(7)
    layer = compress(sparse_gnu(1)[:512]) + repeated(21_000, extended)
    with in_memory(1):
        assert failure(layer, 10 * MIB) == f"layer: expands to more than {10 * MIB} bytes"


# --- Extension headers ------------------------------------------------------------------------------------------------


def test_a_pax_header_tells_name_and_size_of_the_next_entry_only() -> None:
    pax = pax_record(b"size", b"7") + pax_record(b"mtime", b"1.5") + pax_record(b"path", b"./a=b c")
    layer = member("x", pax, b"x") + member("other", b"content", size=0) + member("b", b"x") + END
    assert contents(layer) == [("a=b c", b"content"), ("b", b"x")]


def test_an_empty_pax_record_leaves_what_the_header_tells() -> None:
    pax = pax_record(b"size", b"") + pax_record(b"path", b"")
    assert contents(member("x", pax, b"x") + member("a", b"content") + END) == [("a", b"content")]


def test_global_pax_headers_tell_nothing() -> None:
    pax = member("g", pax_record(b"path", b"c") + pax_record(b"comment", b"1" * 600), b"g")
    assert contents(pax + member("a", b"1") + member("b", b"2") + pax + END) == [("a", b"1"), ("b", b"2")]


def with_prefix(prefix: bytes, format: Format) -> bytes:
    header = member("a", b"content", format=format)
    return with_checksum(header[:345] + prefix + header[345 + len(prefix) :]) + member("b") + END


@pytest.mark.parametrize(
    ("prefix", "format"),
    [(b"sub", tarfile.USTAR_FORMAT), (b"14774167000", tarfile.USTAR_FORMAT), (b"sub", tarfile.GNU_FORMAT)],
)
def test_a_prefix_is_a_folder(prefix: bytes, format: Format) -> None:
    assert names(with_prefix(prefix, format)) == ["b"]


def test_the_times_of_gnus_format_are_no_prefix() -> None:
    assert names(with_prefix(b"14774167000\00014774167000\0", tarfile.GNU_FORMAT)) == ["a", "b"]


@pytest.mark.parametrize("magic", [bytes(8), b"ustar  1", b"USTAR\x0000"])
def test_formats_before_posix_have_no_prefix(magic: bytes) -> None:
    header = with_prefix(b"folder", tarfile.USTAR_FORMAT)
    assert names(with_checksum(header[:257] + magic + header[265:])) == ["a", "b"]


@pytest.mark.parametrize(
    "pax",
    [b"x", b"5 x=", b"0 x=\n", b"5 x:\n", b"99 x=\n", b"-5 x=\n", b"5 x=\n6", b"4 =\n", b"9" * 5000 + b" x=\n"]
    + [b"5  x=\n", b"6 x=1 ", "\N{ARABIC-INDIC DIGIT FIVE} x=\n".encode(), b"5 x=\n0 x=\n", b"5 x=\n\0", b"\n"]
    + [pax_record(b"size", size) for size in (b"-1", b"1.0", b" 1", b"0x1", b"1" * 4000)],
)
def test_a_malformed_pax_header_fails(pax: bytes) -> None:
    assert failure(member("x", pax, b"x") + member("a", b"1") + END) == "layer: malformed pax header"


@pytest.mark.parametrize("kind", [b"x", b"X", b"L", b"K", b"g"])
def test_extension_headers_are_not_read_when_they_are_large(kind: bytes) -> None:
    wire = Endless(member("x", kind=kind, size=MIB + 1, format=tarfile.GNU_FORMAT), b"1")
    with in_memory(1), pytest.raises(PermanentError, match=r"^layer: an extension header of more than 1048576 bytes$"):
        next(root_entries(wire, LIMIT))
    assert wire.position < MIB


@pytest.mark.parametrize("kind", [b"x", b"X", b"L", b"K", b"g"])
def test_extension_headers_do_not_make_chains(kind: bytes) -> None:
    body = pax_record(b"comment", b"1" * (MIB - 18))
    layer = compress(member("x", body, kind)) * 60 + compress(member("a") + END)
    with in_memory(6):
        assert failure(layer) == "layer: two extension headers of one kind for one entry"


@pytest.mark.parametrize("kind", [b"x", b"X", b"L", b"K"])
def test_an_extension_header_of_nothing_is_cut_short(kind: bytes) -> None:
    for end in (b"", END):
        assert failure(member("a") + member("x", b"5 x=\n", kind) + end) == "layer: tar is cut short"


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_names_without_end_cost_little_memory(kind: bytes) -> None:
    body = pax_record(b"path", b"./" * (MIB // 2 - 10))
    layer = compress(member("x", body, kind) + member("a") + END)
    with in_memory(6):
        assert failure(layer) == "layer: a name of more than 4096 bytes"


def test_pax_records_without_end_come_to_an_end() -> None:
    pax = member("x", b"5 x=\n" * (MIB // 5), b"x") + member("a")
    assert failure(compress(pax) * 60) == "layer: more than 1000000 pax records"


def test_a_pax_header_of_many_records_costs_little_memory() -> None:
    pax = b"".join(pax_record(b"GNU.sparse.%d" % number, b"1") for number in range(40_000))
    layer = compress(member("x", pax, b"x") + member("a") + END)
    with in_memory(4):
        assert contents(layer) == [("a", b"")]


def test_a_pax_header_that_is_hard_to_tell_from_digits_costs_little_time() -> None:
    assert failure(compress(member("x", b"1" * MIB, b"x") + member("a") + END)) == "layer: malformed pax header"


# --- Damaged layers ---------------------------------------------------------------------------------------------------

TAR = archive({"a": b"", "b": FIRMWARE, "c" * 120: b"content"})[: 512 * 15]
HEADERS = [0, 512, 512 + 512 + 2560]


def test_the_tar_to_damage_is_what_it_should_be() -> None:
    assert [name for name, _ in contents(TAR)] == ["a", "b", "c" * 120]


@pytest.mark.parametrize("pack", [bytes, compress])
def test_a_tar_that_is_cut_fails_unless_it_is_cut_between_entries(pack: Callable[[bytes], bytes]) -> None:
    whole = contents(pack(TAR))
    tar = TAR.rstrip(b"\0")
    length = len(tar) + -len(tar) % 512
    for cut in {*range(0, length, 97), *range(0, length, 512), *range(511, length, 512), *range(1, length, 512)}:
        if cut in HEADERS:
            assert contents(pack(TAR[:cut])) == whole[: HEADERS.index(cut)]
        else:
            assert failure(pack(TAR[:cut])) == "layer: tar is cut short"


@pytest.mark.parametrize("end", [b"", ZEROS, END, ZEROS * 20, END + b"whatever" * 1000])
@pytest.mark.parametrize("pack", [bytes, compress])
def test_bytes_after_the_last_entry_are_read_and_ignored(end: bytes, pack: Callable[[bytes], bytes]) -> None:
    layer = pack(member("a", b"content") + end)
    wire = Wire(layer, (100,))
    assert [entry.name for entry in root_entries(wire, LIMIT)] == ["a"]
    assert wire.read_to_the_end
    assert wire.position == len(layer)


def test_one_block_of_zeros_does_not_hide_the_entries_after_it() -> None:
    assert failure(member("a") + ZEROS + member("b") + END) == "layer: a block of zeros between entries"


def test_a_malformed_header_does_not_hide_the_entries_after_it() -> None:
    header = bytearray(member("b"))
    header[0] += 1
    assert failure(member("a") + bytes(header) + member("c") + END) == "layer: tar header: bad checksum"


def with_size(field: bytes) -> bytes:
    header = member("a", b"content")
    return with_checksum(header[:124] + field + header[136:]) + END


@pytest.mark.parametrize(
    "field",
    [
        *((256**12 - 1).to_bytes(12, "big"), (256**12 - 512).to_bytes(12, "big"), b"-0000000007\0"),
        *(b"\x0000000000007", b"0000\x000000007", b"0o00000007\0\0", b"0_000000007\0"),
    ],
)
def test_a_size_that_is_negative_or_that_readers_understand_differently_fails(field: bytes) -> None:
    assert failure(with_size(field)) == "layer: tar header: malformed size"


@pytest.mark.parametrize(
    "field", [b"00000000007\0", b"000000000007", b"7" + bytes(11), b"          7 ", b"\x80" + b"\7".rjust(11, b"\0")]
)
def test_a_size_comes_in_several_notations(field: bytes) -> None:
    assert contents(with_size(field)) == [("a", b"content")]


def test_a_size_beyond_the_limit_fails_before_anything_is_read() -> None:
    for size in (LIMIT, 2**70):
        layer = member("a", size=size, format=tarfile.GNU_FORMAT)
        assert failure(layer) == f"layer: expands to more than {LIMIT} bytes"


@pytest.mark.parametrize("layer", [b"", compress(b""), compress(END), END])
def test_an_empty_layer_has_no_entries(layer: bytes) -> None:
    assert names(layer) == []


@pytest.mark.parametrize("layer", [b"\x1f", b"{}", b"<html>" * 1000, b"\x7fELF" + bytes(1000)])
def test_layer_that_is_no_tar_fails(layer: bytes) -> None:
    assert failure(layer).startswith("layer: tar ")


def test_zstd_is_not_read() -> None:
    assert failure(b"\x28\xb5\x2f\xfd" + b"1" * 100) == "layer: zstd layers are not read, only plain and gzipped ones"


def test_a_gzip_that_is_cut_fails() -> None:
    for layer in (compress(TAR), compress(TAR[:600]) + compress(TAR[600:])):
        for cut in range(2, len(layer)):
            reason = failure(layer[:cut])
            assert reason == "layer: gzip stream is cut short" or cut == len(compress(TAR[:600]))


@pytest.mark.parametrize("position", [-1, -4, -5, -8], ids=["length", "length", "crc", "crc"])
def test_a_gzip_with_a_wrong_trailer_fails(position: int) -> None:
    layer = bytearray(compress(TAR))
    layer[position] ^= 1
    assert failure(bytes(layer)).startswith("layer: gzip: ")


@pytest.mark.parametrize("gap", [b"", b"\0", bytes(200_000)])
def test_a_gzip_can_have_members_of_nothing_and_zeros_in_between(gap: bytes) -> None:
    layer = gap.join([compress(b""), compress(TAR[:1000]), compress(b""), compress(TAR[1000:]), compress(b""), b""])
    assert contents(layer) == contents(TAR)


@pytest.mark.parametrize(
    "garbage", [b"1", b"\0" * 100_000 + b"1", b"\x1f", b"\x1f\x8b", zlib.compress(b""), b"garbage" * 20_000]
)
def test_garbage_after_a_gzip_fails(garbage: bytes) -> None:
    assert failure(compress(TAR) + garbage).startswith("layer: gzip")


SEEDS = [
    archive({"a": FIRMWARE, "./b": b"content", "c": b""}, tarfile.USTAR_FORMAT),
    archive({"a": FIRMWARE, "b" * 110: b"content"}, tarfile.GNU_FORMAT),
    archive({"a": FIRMWARE, "b" * 110: b"content"}, tarfile.PAX_FORMAT),
    sparse_gnu(2) + sparse_pax((b"GNU.sparse.name", b"a"), (b"size", b"2311")) + END,
    compress(archive({"a": FIRMWARE, "b": b"content"})) + compress(b""),
]


@settings(max_examples=500)
@given(st.sampled_from(SEEDS), st.data())
def test_any_damaged_layer_is_read_in_bounds_or_fails(layer: bytes, data: st.DataObject) -> None:
    damaged = bytearray(layer)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(layer) - 1))
        damaged[position] = data.draw(st.integers(0, 255))
        if position < len(damaged) - 512 and layer[:2] != b"\x1f\x8b" and data.draw(st.booleans()):
            block = position - position % 512
            damaged[block : block + 512] = with_checksum(bytes(damaged[block : block + 512]))
    damaged = damaged[: data.draw(st.integers(0, len(layer)) | st.just(len(layer)))]
    wire = Wire(bytes(damaged))
    try:
        for entry in root_entries(wire, 20_000):
            assert "/" not in entry.name
            assert 0 <= entry.size <= 20_000
            assert len(read_whole(entry)) == entry.size
    except PermanentError as failed:
        assert failed.reason.startswith("layer: ")
    else:
        assert wire.read_to_the_end


# --- Layers that were made to do harm, and wires that break -----------------------------------------------------------


def test_a_layer_may_expand_to_the_limit_and_no_further() -> None:
    for pack in (bytes, compress):
        assert contents(pack(TAR), len(TAR)) == contents(TAR)
        for limit in (len(TAR) - 1, 2000, 1, 0):
            assert failure(pack(TAR), limit) == f"layer: expands to more than {limit} bytes"


@pytest.mark.parametrize("pack", [bytes, compress])
def test_an_entry_that_failed_does_not_go_on_with_other_bytes(pack: Callable[[bytes], bytes]) -> None:
    layer = pack(member("a", bytes(90_000)) + member("b", bytes(90_000)) + END)
    entry = next(root_entries(Wire(layer), 100_000))
    for _ in range(3):
        with pytest.raises(PermanentError, match=r"^layer: expands to more than 100000 bytes$"):
            read_whole(entry)


@pytest.mark.parametrize("name", ["a", "sub/a"])
def test_a_bomb_is_not_unpacked_beyond_the_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = repeated(100, bytes(MIB))
    unpacked = 0

    class Counting:
        def __init__(self, wbits: int) -> None:
            self._real = real(wbits)

        def __getattr__(self, attribute: str) -> object:
            return getattr(self._real, attribute)

        def decompress(self, chunk: bytes, max_length: int) -> bytes:
            nonlocal unpacked
            assert max_length > 0
            piece = self._real.decompress(chunk, max_length)
            unpacked += len(piece)
            return piece

    real = zlib.decompressobj
    monkeypatch.setattr("fleet_fn.oci.layer.zlib.decompressobj", Counting)
    for start in (member(name, size=4 * MIB), member(name) + END):
        unpacked, layer = 0, compress(start) + zeros
        with in_memory(1), pytest.raises(PermanentError) as caught:
            sizes(layer, 5 * MIB + 1)
        assert caught.value.reason == f"layer: expands to more than {5 * MIB + 1} bytes"
        assert unpacked == 5 * MIB + 2  # the last one tells that there is more


def test_a_plain_layer_is_not_read_beyond_the_limit() -> None:
    for start in (END, member("a", size=LIMIT - 512)):
        wire = Endless(start, b"1")
        with in_memory(2), pytest.raises(PermanentError, match=r"^layer: (expands to more than|tar header)"):
            list(root_entries(wire, LIMIT))
        assert wire.position <= LIMIT + 1


@pytest.mark.parametrize("name", ["a", "sub/a"])
def test_many_entries_cost_no_memory(name: str) -> None:
    layer = repeated(10_000, member(name))
    with in_memory(1):
        assert sum(1 for _ in root_entries(Wire(layer), LIMIT)) == (10_000 if name == "a" else 0)


def test_entries_without_end_come_to_an_end() -> None:
    entries = root_entries(Wire(repeated(50_001, member("sub/a") + member("a"))), LIMIT)
    assert sum(1 for _ in islice(entries, 50_000)) == 50_000
    with pytest.raises(PermanentError, match=r"^layer: more than 100000 entries$"):
        next(entries)


def test_gzip_members_of_nothing_come_to_an_end() -> None:
    empty = compress(b"")
    assert names(compress(member("a")) + empty * 99_999) == ["a"]
    wire = Endless(compress(member("a") + END), empty)
    with in_memory(2), pytest.raises(PermanentError, match=r"^layer: more than 100000 gzip members$"):
        list(root_entries(wire, LIMIT))


class Broken(Wire):
    """A wire that breaks where the layer ends, in one way or another."""

    def __init__(self, layer: bytes, error: Exception) -> None:
        super().__init__(layer)
        self._error = error

    def read(self, size: int, /) -> bytes:
        piece = super().read(size)
        if not piece:
            raise self._error
        return piece


@pytest.mark.parametrize(
    "error", [TransientError("reset", 5), PermanentError("no such blob"), TimeoutError(), OSError(5), zlib.error()]
)
@pytest.mark.parametrize("cut", [0, 1, 3, 10, 600, 2000])
@pytest.mark.parametrize("pack", [bytes, lambda tar: gzip.compress(tar, 0)])
def test_errors_of_the_stream_are_passed_on(error: Exception, cut: int, pack: Callable[[bytes], bytes]) -> None:
    wire = Broken(pack(TAR)[:cut], error)
    with pytest.raises(type(error)) as caught:
        [read_whole(entry) for entry in root_entries(wire, LIMIT)]
    assert caught.value is error


@pytest.mark.parametrize("pack", [bytes, compress])
def test_nothing_is_read_before_an_entry_is_asked_for_nor_after_the_last_one_that_is(
    pack: Callable[[bytes], bytes],
) -> None:
    wire = Wire(pack(archive({"a": b"content", "b": random.Random(1).randbytes(3 * MIB)})))
    entries = root_entries(wire, LIMIT)
    assert wire.position == 0
    for entry in entries:
        assert entry.name == "a"
        break
    before = wire.position
    assert before < MIB
    del entries, entry
    assert wire.position == before
