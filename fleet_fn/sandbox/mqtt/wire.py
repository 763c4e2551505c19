"""The data types of MQTT packets: read strictly, and written.

MQTT 5.0, sections 1.5 and 2.2.2.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

#: The largest value of a variable byte integer.
MAX_VARIABLE: Final = 268_435_455
_MAX_TEXT_BYTES: Final = 65_535
#: Bytes of a variable byte integer.
_MAX_VARIABLE_BYTES: Final = 4


class MalformedError(Exception):
    """A packet breaks the rules of its version of MQTT."""


class Property(IntEnum):
    """The properties of MQTT 5 that the sandbox reads or writes."""

    PAYLOAD_FORMAT = 0x01
    CONTENT_TYPE = 0x03
    SUBSCRIPTION_ID = 0x0B
    REASON = 0x1F
    RECEIVE_MAXIMUM = 0x21
    RETAIN_AVAILABLE = 0x25
    USER = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARDS_AVAILABLE = 0x28
    SHARES_AVAILABLE = 0x2A


#: The value of a property: an integer, a text, bytes, or a name and a value.
Value = int | str | bytes | tuple[str, str]
#: Properties in their order; those of `Property.USER` may repeat.
Properties = Sequence[tuple[int, Value]]

_BYTE: Final = frozenset({0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A})
_TWO_BYTES: Final = frozenset({0x13, 0x21, 0x22, 0x23})
_FOUR_BYTES: Final = frozenset({0x02, 0x11, 0x18, 0x27})
_TEXT: Final = frozenset({0x03, 0x08, 0x12, 0x15, 0x1A, 0x1C, 0x1F})
_BINARY: Final = frozenset({0x09, 0x16})


class Reader:
    """Reads the bytes of a packet from front to back."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        """All bytes are read."""
        return self._position == len(self._content)

    def take(self, count: int) -> bytes:
        """Read some bytes.

        Raises:
            MalformedError: the packet has fewer.

        """
        end = self._position + count
        if end > len(self._content):
            raise MalformedError("the packet ends early")
        taken = self._content[self._position : end]
        self._position = end
        return taken

    def rest(self) -> bytes:
        """Read all bytes that are left."""
        return self.take(len(self._content) - self._position)

    def end(self) -> None:
        """Raise MalformedError if bytes are left."""
        if not self.is_at_end:
            raise MalformedError("the packet has bytes behind its end")

    def integer(self, size: int) -> int:
        """Read an integer of `size` bytes."""
        return int.from_bytes(self.take(size), "big")

    def packet_id(self) -> int:
        """Read a packet identifier, which is never 0."""
        found = self.integer(2)
        if not found:
            raise MalformedError("the packet identifier is 0")
        return found

    def variable(self) -> int:
        """Read a variable byte integer."""
        value = 0
        for index in range(_MAX_VARIABLE_BYTES):
            byte = self.integer(1)
            value |= (byte & 0x7F) << (7 * index)
            if not byte & 0x80:
                if index and not byte:
                    raise MalformedError("a length has more bytes than it needs")
                return value
        raise MalformedError("a length has more than 4 bytes")

    def binary(self) -> bytes:
        """Read bytes behind their length."""
        return self.take(self.integer(2))

    def text(self) -> str:
        """Read a text: UTF-8 without U+0000."""
        try:
            found = self.binary().decode()
        except UnicodeDecodeError as error:
            raise MalformedError("a text is not UTF-8") from error
        if "\0" in found:
            raise MalformedError("a text has the character U+0000")
        return found

    def properties(self) -> list[tuple[int, Value]]:
        """Read the properties of a packet of MQTT 5."""
        reader = Reader(self.take(self.variable()))
        found: list[tuple[int, Value]] = []
        while not reader.is_at_end:
            key = reader.variable()
            if key != Property.USER and any(key == other for other, _ in found):
                raise MalformedError(f"the property {key:#04x} comes twice")
            found.append((key, reader._value(key)))
        return found

    def _value(self, key: int) -> Value:
        if key in _BYTE:
            return self.integer(1)
        if key in _TWO_BYTES:
            return self.integer(2)
        if key in _FOUR_BYTES:
            return self.integer(4)
        if key == Property.SUBSCRIPTION_ID:
            return self.variable()
        if key in _TEXT:
            return self.text()
        if key in _BINARY:
            return self.binary()
        if key == Property.USER:
            return self.text(), self.text()
        raise MalformedError(f"the property {key:#04x} is unknown")


def write_variable(value: int) -> bytes:
    """Return a variable byte integer."""
    written = bytearray()
    while True:
        value, byte = value >> 7, value & 0x7F
        written.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(written)


def write_text(value: str) -> bytes:
    """Return a text behind its length.

    Raises:
        ValueError: the text is too long for MQTT.

    """
    encoded = value.encode()
    if len(encoded) > _MAX_TEXT_BYTES:
        raise ValueError(f"a text of {len(encoded)} bytes does not fit into a packet")
    return len(encoded).to_bytes(2, "big") + encoded


def write_properties(properties: Properties) -> bytes:
    """Return the properties of a packet of MQTT 5, behind their length."""
    written = b"".join(write_variable(key) + _write_value(key, value) for key, value in properties)
    return write_variable(len(written)) + written


def _write_value(key: int, value: Value) -> bytes:
    if isinstance(value, tuple):
        return b"".join(map(write_text, value))
    if isinstance(value, str):
        return write_text(value)
    if isinstance(value, bytes):
        return len(value).to_bytes(2, "big") + value
    if key == Property.SUBSCRIPTION_ID:
        return write_variable(value)
    return value.to_bytes(1 if key in _BYTE else 2 if key in _TWO_BYTES else 4, "big")
