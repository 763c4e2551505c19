"""An MQTT broker that answers as a test tells it: as clouds old and new do, and as none should."""

import itertools
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
PINGREQ, PINGRESP, DISCONNECT = 12, 13, 14
MQTT_3, MQTT_5 = 4, 5
#: The identifiers of properties.
_CONTENT_TYPE, _USER_PROPERTY = 0x03, 0x26


@dataclass(frozen=True)
class Connect:
    """What a client said of itself."""

    level: int
    client_id: str
    user: str | None
    password: str | None


@dataclass
class Peer:
    """A client's connection."""

    connection: socket.socket
    level: int = 0
    mids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    applications: list[str] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)


class ScriptedBroker:
    """A broker without TLS on a port that nobody else has."""

    def __init__(self) -> None:
        #: The code that answers a CONNECT, and a filter in a SUBSCRIBE.
        self.connack: Callable[[Connect], int] = lambda _: 0
        self.suback: Callable[[str], int] = lambda _: 1
        #: Applications whose connections end as soon as they have subscribed.
        self.poisoned: set[str] = set()
        #: It keeps connections, but says nothing on them.
        self.is_silent = False
        #: It says this to each client, and hangs up; nothing if it is empty.
        self.greeting = b""
        self.pings = 0
        self.connects: list[Connect] = []
        self.subscribed: list[str] = []
        self.binary_asked: list[bool] = []
        self.acknowledged: list[int] = []
        self.disconnects = 0
        self.peers: list[Peer] = []

    def __enter__(self) -> "ScriptedBroker":
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.drop()
        self._acceptor.join()

    @property
    def environment(self) -> dict[str, str]:
        return {"DROGUE_MQTT_URL": f"mqtt://127.0.0.1:{self.port}", "MQTT_APPLICATIONS": "example"}

    def drop(self) -> None:
        """End all connections without a word."""
        for peer in self.peers:
            with suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)

    def publish(
        self,
        payload: bytes,
        *,
        content_type: str | None = None,
        properties: dict[str, str] | None = None,
        peer: Peer | None = None,
    ) -> int:
        """Send a message with QoS 1 to a client, or the last one; return its identifier. UTF-8 is not checked."""
        peer = peer or self.peers[-1]
        mid = next(peer.mids)
        body = _text("app/example") + struct.pack("!H", mid)
        if peer.level == MQTT_5:
            block = b"".join(bytes([_USER_PROPERTY]) + _text(k) + _text(v) for k, v in (properties or {}).items())
            if content_type is not None:
                block += bytes([_CONTENT_TYPE]) + _text(content_type)
            body += _length(len(block)) + block
        self._send(peer, PUBLISH << 4 | 0b0010, body + payload)
        return mid

    def disconnect(self, reason: int) -> None:
        """Say goodbye to the last client, as only MQTT 5 can."""
        self._send(self.peers[-1], DISCONNECT << 4, bytes([reason]))

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(Peer(connection),), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        with suppress(OSError, EOFError), peer.connection:
            if self.greeting:
                self._receive(peer.connection)
                peer.connection.sendall(self.greeting)
                raise EOFError
            while True:
                kind, body = self._receive(peer.connection)
                self._answer(peer, kind, body)

    def _answer(self, peer: Peer, kind: int, body: bytes) -> None:
        is_new = peer.level == MQTT_5
        if kind == CONNECT:
            connect = _read_connect(body)
            peer.level = connect.level
            self.connects.append(connect)
            code = self.connack(connect)
            if not code:
                self.peers.append(peer)
            # A broker that does not know MQTT 5 answers as MQTT 3.1.1 does.
            self._send(peer, CONNACK << 4, bytes([0, code]) + b"\0" * (connect.level == MQTT_5 and code != 1))
            if code:
                raise EOFError
        elif kind == SUBSCRIBE:
            rest, has_mode = body[2:], False
            if is_new:
                size, rest = _take_length(rest)
                has_mode = b"content-mode\0\x06binary" in rest[:size]
                rest = rest[size:]
            topics = [topic for topic, _ in _filters(rest, 1)]
            self.subscribed += topics
            peer.applications += [topic.rpartition("/")[2] for topic in topics]
            self.binary_asked.append(has_mode)
            codes = bytes(self.suback(topic) for topic in topics)
            self._send(peer, SUBACK << 4, body[:2] + b"\0" * is_new + codes)
            if self.poisoned & set(peer.applications):
                self._send(peer, DISCONNECT << 4, b"\0")
                raise EOFError
        elif kind == PUBACK:
            peer.acknowledged.append(int.from_bytes(body[:2], "big"))
            self.acknowledged.append(peer.acknowledged[-1])
        elif kind == PINGREQ:
            self.pings += 1
            self._send(peer, PINGRESP << 4, b"")
        elif kind == DISCONNECT:
            self.disconnects += 1
            raise EOFError

    def peer_of(self, application: str) -> Peer:
        """Return the last client that subscribed to an application."""
        return next(peer for peer in reversed(self.peers) if application in peer.applications)

    def _send(self, peer: Peer, head: int, body: bytes) -> None:
        if self.is_silent:
            return
        peer.connection.sendall(bytes([head]) + _length(len(body)) + body)

    @staticmethod
    def _receive(connection: socket.socket) -> tuple[int, bytes]:
        def exactly(count: int) -> bytes:
            found = b""
            while len(found) < count:
                piece = connection.recv(count - len(found))
                if not piece:
                    raise EOFError
                found += piece
            return found

        kind, size, shift = exactly(1)[0] >> 4, 0, 0
        while True:
            octet = exactly(1)[0]
            size |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                return kind, exactly(size)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!H", len(encoded)) + encoded


def _length(value: int) -> bytes:
    found = bytearray()
    while True:
        value, octet = value >> 7, value & 0x7F
        found.append(octet | (0x80 if value else 0))
        if not value:
            return bytes(found)


def _take_length(data: bytes) -> tuple[int, bytes]:
    size = shift = count = 0
    while True:
        octet = data[count]
        size |= (octet & 0x7F) << shift
        shift, count = shift + 7, count + 1
        if octet < 0x80:
            return size, data[count:]


def _take_text(data: bytes) -> tuple[str, bytes]:
    size = int.from_bytes(data[:2], "big")
    return data[2 : 2 + size].decode(), data[2 + size :]


def _filters(data: bytes, trailing: int) -> list[tuple[str, bytes]]:
    found = []
    while data:
        topic, data = _take_text(data)
        found.append((topic, data[:trailing]))
        data = data[trailing:]
    return found


def _read_connect(body: bytes) -> Connect:
    _, rest = _take_text(body)
    level, flags, rest = rest[0], rest[1], rest[4:]
    assert flags & 0b0000_0010, "a clean session is wanted"
    if level == MQTT_5:
        size, rest = _take_length(rest)
        rest = rest[size:]
    client_id, rest = _take_text(rest)
    user = password = None
    if flags & 0x80:
        user, rest = _take_text(rest)
    if flags & 0x40:
        password, rest = _take_text(rest)
    return Connect(level, client_id, user, password)
