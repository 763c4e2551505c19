"""The bytes of a request on its way in, and whether all of them have come.

A worker collects the bytes of a slow request here, and gives the request to a thread when it is whole. This is no
parser: the server's parser gets the same bytes, and decides what they mean. A request that looks malformed counts as
whole at once, so that the parser can refuse it.
"""

import re
from typing import Final

#: Largest body of an event.
MAX_BODY_BYTES: Final = 64 * 1024
#: How much of a larger body is read and dropped, so that its sender reads the answer.
MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
#: Key of a request's WSGI environment: the event's deadline, begun with the request's first byte. Only present if the
#: server has read the whole body.
DEADLINE: Final = "fleet_fn.deadline"

#: Largest chunked body, chunk sizes and extensions included.
_MAX_CHUNKED_BYTES: Final = 8 * MAX_BODY_BYTES
#: Longest line with a chunk's size, and longest trailer.
_MAX_LINE_BYTES: Final = 8192
_HEAD_ENDS: Final = b"\r\n\r\n"
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
#: The fields that say where a request ends, or that its body waits for `100 Continue`.
_FIELD: Final = re.compile(rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,15}")
#: First character of a method, or of an empty line before it (RFC 9112, section 2.2).
_BEGINNING: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z\r-]")


class Arrival:
    """The bytes of one HTTP/1.1 request, in the order in which they come."""

    __slots__ = (
        "_announced",
        "_dropped",
        "_in_trailers",
        "_is_chunked",
        "_kept",
        "_left",
        "_max_head",
        "_max_line",
        "_pending",
        "awaits_continue",
        "has_head",
        "is_cut",
        "is_large",
        "is_whole",
    )

    def __init__(self, max_line: int, max_head: int) -> None:
        """Expect a first line of at most `max_line` bytes, and a head of `max_head`."""
        self._max_line = max_line
        self._max_head = max_head
        #: Bytes known to belong to the request, and later bytes.
        self._kept = bytearray()
        self._pending = bytearray()
        self._is_chunked = False
        self._in_trailers = False
        #: Missing bytes of the body, or of a chunk and the line break that ends it.
        self._left = 0
        #: Sum of the chunk sizes so far, and bytes of the body that were dropped.
        self._announced = 0
        self._dropped = 0
        #: The whole head has come.
        self.has_head = False
        #: The sender waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1).
        self.awaits_continue = False
        #: The body is too large, and is dropped.
        self.is_large = False
        #: The whole request has come, or no more of it will be read.
        self.is_whole = False
        #: The request's end is unknown, so no other request can follow it.
        self.is_cut = False

    @property
    def is_begun(self) -> bool:
        """Is true once a byte has come."""
        return self.has_head or bool(self._pending)

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self._kept) + len(self._pending)

    def feed(self, data: bytes) -> None:
        """Take the next bytes; those after the request's end are for the next request."""
        searched = max(0, len(self._pending) - len(_HEAD_ENDS) + 1)
        self._pending += data
        if self.is_whole:
            return
        if not self.has_head:
            self._find_head(searched)
        if self.has_head and not self.is_whole:
            if self._is_chunked:
                self._take_chunks()
            else:
                self._take_body()

    def end(self) -> None:
        """Declare the request whole: no more bytes will come, or not in time."""
        if not self.is_whole:
            self._give_up()

    def take(self) -> bytes:
        """Return the request's bytes, and forget them.

        After that, only `next` may be called.
        """
        kept, self._kept = bytes(self._kept), bytearray()
        return kept

    def next(self) -> "Arrival":
        """Return the next request on the connection, with its bytes that have come."""
        other = Arrival(self._max_line, self._max_head)
        if self._pending:
            other.feed(bytes(self._pending))
        return other

    def _give_up(self) -> None:
        self._kept += self._pending
        self._pending.clear()
        self.is_whole = self.is_cut = True

    def _find_head(self, searched: int) -> None:
        pending = self._pending
        end = pending.find(_HEAD_ENDS, searched)
        if end < 0:
            line_ends = len(pending) <= self._max_line or pending.find(b"\r\n", 2) >= 0
            is_hopeless = not line_ends or len(pending) > self._max_head
            if is_hopeless or not _BEGINNING.match(pending) or _BARE_LF.search(pending, searched):
                self._give_up()
            return
        self.has_head = True
        self._keep(end + len(_HEAD_ENDS))
        self._read_head()

    def _read_head(self) -> None:
        """Read the length of the body from the head."""
        fields: dict[bytes, list[bytes]] = {}
        for name, value in _FIELD.findall(self._kept):
            fields.setdefault(name.lower(), []).append(value.strip(b" \t").lower())
        lengths, codings = fields.get(b"content-length", []), fields.get(b"transfer-encoding", [])
        line = self._kept.lstrip(b"\r\n").partition(b"\r\n")[0]
        self.awaits_continue = fields.get(b"expect") == [b"100-continue"] and line.endswith(b"HTTP/1.1")
        if not lengths and not codings:
            self.is_whole = True
        elif len(lengths) + len(codings) > 1:
            self._give_up()
        elif codings:
            self._is_chunked = codings[0].rpartition(b",")[2].strip(b" \t") == b"chunked"
            if not self._is_chunked:
                self._give_up()
        elif _LENGTH.fullmatch(lengths[0]):
            self._left = int(lengths[0])
            self.is_large = self._left > MAX_BODY_BYTES
            if self.is_large and self.awaits_continue:
                self._give_up()  # the request is refused, so its body need not be sent
        else:
            self._give_up()

    def _take_body(self) -> None:
        count = min(self._left, len(self._pending))
        self._left -= count
        self._keep(count)
        self._check_dropped()
        self.is_whole = self.is_whole or not self._left

    def _take_chunks(self) -> None:
        while self._pending and not self.is_whole:
            if self._left:
                count = min(self._left, len(self._pending))
                self._left -= count
                self._keep(count)
                self._check_chunks()
            elif not self._take_line():
                break
        self._check_dropped()

    def _take_line(self) -> bool:
        """Take a line with a chunk's size, or a trailer; return False if it is not there."""
        end = self._pending.find(b"\r\n")
        if end < 0 or end > _MAX_LINE_BYTES:
            if len(self._pending) > _MAX_LINE_BYTES:
                self._give_up()
            return False
        line = bytes(self._pending[:end])
        size = line.partition(b";")[0].rstrip(b" \t")
        self._keep(end + 2)
        if self._in_trailers:
            self.is_whole = not line
            self._check_chunks()
        elif not _CHUNK_SIZE.fullmatch(size):
            self._give_up()
        elif int(size, 16):
            self._announced += int(size, 16)
            self._left = int(size, 16) + len(b"\r\n")
        else:
            self._in_trailers = True
        return True

    def _check_chunks(self) -> None:
        """Drop the rest of a body once it is too large.

        The parser gets enough of it to see that.
        """
        body = self._announced - max(0, self._left - len(b"\r\n"))
        if body > MAX_BODY_BYTES or len(self._kept) > _MAX_CHUNKED_BYTES:
            self.is_large = self.is_cut = True

    def _keep(self, count: int) -> None:
        """Move `count` pending bytes to the request; drop them if its body is too large."""
        if self.is_large:
            self._dropped += count
        else:
            self._kept += self._pending[:count]
        del self._pending[:count]

    def _check_dropped(self) -> None:
        if self._dropped > MAX_DISCARDED_BYTES and not self.is_whole:
            self._give_up()
