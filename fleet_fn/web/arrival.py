"""A request on its way in: which bytes belong to it, and whether all of it has come.

A worker collects a request's bytes here while its sender takes its time, and gives it to a thread when it is whole.
This is no parser: the server's parser gets the very bytes, and decides what the request means. Anything that looks
malformed counts as whole at once, so that the parser can refuse it.
"""

import re
from typing import Final

#: Bytes of an event's body at most.
MAX_BODY_BYTES: Final = 64 * 1024
#: Bytes of a larger body that are read and dropped, so that its sender listens to the answer.
MAX_DISCARDED_BYTES: Final = 16 * 1024 * 1024
#: Where a request's environment has the event's deadline, if its body has been read already. The deadline began then.
DEADLINE: Final = "fleet_fn.deadline"

#: Bytes of a chunked body at most, chunk sizes and extensions included.
_MAX_CHUNKED: Final = 8 * MAX_BODY_BYTES
#: Bytes of a line that tells a chunk's size, and of a trailer.
_MAX_LINE: Final = 8192
_HEAD_ENDS: Final = b"\r\n\r\n"
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
#: The fields that tell where a request ends, or that its body waits for an answer.
_FIELD: Final = re.compile(rb"\r\n(content-length|transfer-encoding|expect):[ \t]*([^\r\n]*)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,15}")
#: How methods begin; an empty line may precede them (RFC 9112, section 2.2).
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
        """A request whose first line has at most `max_line` bytes, and whose whole head `max_head`."""
        self._max_line = max_line
        self._max_head = max_head
        #: The request as far as it is understood, and bytes beyond that.
        self._kept = bytearray()
        self._pending = bytearray()
        self._is_chunked = False
        self._in_trailers = False
        #: Bytes to come of the body, or of a chunk with the line break that ends it.
        self._left = 0
        #: Bytes of the chunks whose sizes have come, and of the body those that were dropped.
        self._announced = 0
        self._dropped = 0
        #: Its head is there.
        self.has_head = False
        #: The sender waits for `100 Continue` before it sends the body (RFC 9110, section 10.1.1).
        self.awaits_continue = False
        #: Its body is larger than any that is wanted, and is dropped.
        self.is_large = False
        #: All of it is there, or as much as will be looked at.
        self.is_whole = False
        #: Where it ends is not known, so nothing can follow it.
        self.is_cut = False

    @property
    def is_begun(self) -> bool:
        """Whether any byte has come."""
        return self.has_head or bool(self._pending)

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return len(self._kept) + len(self._pending)

    def feed(self, data: bytes) -> None:
        """Take the bytes that came next; those after the request's end are kept for the next one."""
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
        """Take what is there for the whole request: no more will come, or not in time."""
        if not self.is_whole:
            self._give_up()

    def take(self) -> bytes:
        """Return the request's bytes; `next` is all that can be asked for after that."""
        kept, self._kept = bytes(self._kept), bytearray()
        return kept

    def next(self) -> "Arrival":
        """Return the request that follows on the same connection, as far as it has come."""
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
        """Find out how long the body is."""
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
                self._give_up()  # it is refused, and need not be sent
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
        """Take the line with a chunk's size, or a trailer; False if it has not come."""
        end = self._pending.find(b"\r\n")
        if end < 0 or end > _MAX_LINE:
            if len(self._pending) > _MAX_LINE:
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
        """Drop what follows once more than the largest body is there, for the parser to find it too large."""
        body = self._announced - max(0, self._left - len(b"\r\n"))
        if body > MAX_BODY_BYTES or len(self._kept) > _MAX_CHUNKED:
            self.is_large = self.is_cut = True

    def _keep(self, count: int) -> None:
        """Add so many pending bytes to the request; those of a body that is too large are dropped."""
        if self.is_large:
            self._dropped += count
        else:
            self._kept += self._pending[:count]
        del self._pending[:count]

    def _check_dropped(self) -> None:
        if self._dropped > MAX_DISCARDED_BYTES and not self.is_whole:
            self._give_up()
