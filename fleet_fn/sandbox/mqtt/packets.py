"""The control packets that an MQTT server reads and writes.

MQTT 3.1.1 and 5.0, chapter 3.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from fleet_fn.sandbox.mqtt.wire import (
    MalformedError,
    Properties,
    Property,
    Reader,
    Value,
    write_properties,
    write_text,
    write_variable,
)

V3: Final = 4
V5: Final = 5
_QOS_MASK: Final = 0x03


class Kind(IntEnum):
    """The kinds of packets."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


class Reason(IntEnum):
    """The reason codes of MQTT 5 that the MQTT integration uses."""

    SUCCESS = 0x00
    NO_SUBSCRIPTION = 0x11
    UNSPECIFIED = 0x80
    MALFORMED = 0x81
    IMPLEMENTATION_SPECIFIC = 0x83
    BAD_CREDENTIALS = 0x86
    NOT_AUTHORIZED = 0x87
    KEEP_ALIVE_TIMEOUT = 0x8D
    INVALID_FILTER = 0x8F
    PACKET_TOO_LARGE = 0x95
    NO_WILDCARDS = 0xA2


#: What a CONNACK of released clouds says of wildcards is not so.
_ABILITIES: Final[Properties] = (
    (Property.RETAIN_AVAILABLE, 0),
    (Property.WILDCARDS_AVAILABLE, 1),
    (Property.SHARES_AVAILABLE, 1),
)
#: The return codes of MQTT 3.1.1 for refused credentials and a refused subscription.
V3_BAD_CREDENTIALS: Final = 4
V3_FAILURE: Final = 0x80


@dataclass(frozen=True, slots=True)
class Connect:
    """A client's request to connect."""

    version: int
    clean: bool
    keep_alive_seconds: int
    client_id: str
    user: str | None
    password: bytes | None
    properties: Properties = ()

    def limit(self, key: Property) -> int | None:
        """Return a number among the properties; None if it is not given."""
        return next((value for found, value in self.properties if found == key and isinstance(value, int)), None)


@dataclass(frozen=True, slots=True)
class Publish:
    """A message from a client; without a packet identifier at QoS 0."""

    topic: str
    payload: bytes
    packet_id: int | None


@dataclass(frozen=True, slots=True)
class Acknowledgment:
    """A client's PUBACK."""

    packet_id: int
    reason: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """A client's request for messages."""

    packet_id: int
    #: Filters, each with the largest QoS that the client wants.
    filters: tuple[tuple[str, int], ...]
    properties: Properties = ()


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """A client's request for no more messages."""

    packet_id: int
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The client's last packet."""


Packet = Connect | Publish | Acknowledgment | Subscribe | Unsubscribe | Ping | Disconnect


def read_packet(first: int, content: bytes, version: int) -> Packet | None:
    """Return a client's packet; None for one that the MQTT integration skips.

    Args:
        first: the first byte of the fixed header.
        content: everything behind the fixed header.
        version: the connection's version of MQTT; a CONNECT has its own.

    Raises:
        MalformedError: the packet is malformed, or no client may send it.

    """
    kind, flags, reader = first >> 4, first & 0x0F, Reader(content)
    if kind != Kind.PUBLISH and flags != (0x02 if kind in (6, Kind.SUBSCRIBE, Kind.UNSUBSCRIBE) else 0):
        raise MalformedError("the fixed header's flags are reserved")
    match kind:
        case Kind.CONNECT:
            packet: Packet = _connect(reader)
        case Kind.PUBLISH:
            return _publish(flags, reader, version)
        case Kind.PUBACK:
            packet = _acknowledgment(reader, version)
        case Kind.SUBSCRIBE:
            packet = _subscribe(reader, version)
        case Kind.UNSUBSCRIBE:
            packet = _unsubscribe(reader, version)
        case Kind.PINGREQ:
            packet = Ping()
        case Kind.DISCONNECT:
            reader.rest()
            packet = Disconnect()
        case 5 | 6 | 7:  # of QoS 2, which the server never has in progress
            return None
        case _:
            raise MalformedError(f"a client may not send packets of kind {kind}")
    reader.end()
    return packet


def read_version(content: bytes) -> int | None:
    """Return the version that a CONNECT asks for; None if it is unknown."""
    found = content[6:7]
    known = content[:6] == b"\x00\x04MQTT" and found in (bytes((V3,)), bytes((V5,)))
    return found[0] if known else None


def _connect(reader: Reader) -> Connect:
    reader.take(6)  # read_version has checked it
    version, flags, keep_alive = reader.integer(1), reader.integer(1), reader.integer(2)
    if flags & 0x01:
        raise MalformedError("a flag of CONNECT is reserved")
    properties: list[tuple[int, Value]] = reader.properties() if version == V5 else []
    client_id, clean = reader.text(), bool(flags & 0x02)
    if not client_id and not clean and version == V3:
        raise MalformedError("a client without an identifier needs a clean session")
    if flags & 0x04:
        if version == V5:
            reader.properties()
        reader.text()
        reader.binary()
    if (flags >> 3) & _QOS_MASK == _QOS_MASK or (flags & 0x38 and not flags & 0x04):
        raise MalformedError("the flags of the will are malformed")
    user = reader.text() if flags & 0x80 else None
    password = reader.binary() if flags & 0x40 else None
    return Connect(version, clean, keep_alive, client_id, user, password, tuple(properties))


def _publish(flags: int, reader: Reader, version: int) -> Publish:
    qos = (flags >> 1) & _QOS_MASK
    if qos == _QOS_MASK:
        raise MalformedError("the QoS is 3")
    topic = reader.text()
    packet_id = reader.packet_id() if qos else None
    if version == V5:
        reader.properties()
    return Publish(topic, reader.rest(), packet_id)


def _acknowledgment(reader: Reader, version: int) -> Acknowledgment:
    packet_id, reason = reader.packet_id(), 0
    if version == V5 and not reader.is_at_end:
        reason = reader.integer(1)
        if not reader.is_at_end:
            reader.properties()
    return Acknowledgment(packet_id, reason)


def _subscribe(reader: Reader, version: int) -> Subscribe:
    packet_id = reader.packet_id()
    properties: list[tuple[int, Value]] = reader.properties() if version == V5 else []
    filters = []
    while not reader.is_at_end:
        topic, options = reader.text(), reader.integer(1)
        if options & _QOS_MASK == _QOS_MASK or options & (0xC0 if version == V5 else 0xFC):
            raise MalformedError("the options of a subscription are malformed")
        filters.append((topic, options & _QOS_MASK))
    if not filters:
        raise MalformedError("SUBSCRIBE has no filter")
    return Subscribe(packet_id, tuple(filters), tuple(properties))


def _unsubscribe(reader: Reader, version: int) -> Unsubscribe:
    packet_id = reader.packet_id()
    if version == V5:
        reader.properties()
    filters = []
    while not reader.is_at_end:
        filters.append(reader.text())
    if not filters:
        raise MalformedError("UNSUBSCRIBE has no filter")
    return Unsubscribe(packet_id, tuple(filters))


def write_connack(version: int, code: int) -> bytes:
    """Return the answer to a CONNECT."""
    properties = b"" if version == V3 else write_properties(() if code else _ABILITIES)
    return _write(Kind.CONNACK, bytes((0, code)) + properties)


def write_publish(topic: str, payload: bytes, packet_id: int | None, properties: Properties | None) -> bytes:
    """Return a message.

    It is at QoS 1 if it has a packet identifier, and of MQTT 5 if it has properties.

    Raises:
        ValueError: the message does not fit into a packet.

    """
    number = b"" if packet_id is None else packet_id.to_bytes(2, "big")
    more = b"" if properties is None else write_properties(properties)
    return _write(Kind.PUBLISH, write_text(topic) + number + more + payload, 0 if packet_id is None else 0x02)


def write_puback(version: int, packet_id: int, code: int, reason: str) -> bytes:
    """Return the answer to a client's message; MQTT 3.1.1 has no reasons."""
    more = b"" if version == V3 else bytes((code,)) + write_properties(((Property.REASON, reason),) if reason else ())
    return _write(Kind.PUBACK, packet_id.to_bytes(2, "big") + more)


def write_suback(version: int, packet_id: int, codes: list[int]) -> bytes:
    """Return the answer to a SUBSCRIBE, with one code for each filter."""
    return _write(Kind.SUBACK, packet_id.to_bytes(2, "big") + _no_properties(version) + bytes(codes))


def write_unsuback(version: int, packet_id: int, codes: list[int]) -> bytes:
    """Return the answer to an UNSUBSCRIBE; MQTT 3.1.1 has no codes."""
    return _write(
        Kind.UNSUBACK, packet_id.to_bytes(2, "big") + _no_properties(version) + (bytes(codes) if version == V5 else b"")
    )


def write_pingresp() -> bytes:
    """Return the answer to a PINGREQ."""
    return _write(Kind.PINGRESP, b"")


def write_disconnect(code: int) -> bytes:
    """Return the server's last packet, which only MQTT 5 has."""
    return _write(Kind.DISCONNECT, bytes((code, 0)))


def _no_properties(version: int) -> bytes:
    return b"\x00" if version == V5 else b""


def _write(kind: Kind, content: bytes, flags: int = 0) -> bytes:
    return bytes((kind << 4 | flags,)) + write_variable(len(content)) + content
