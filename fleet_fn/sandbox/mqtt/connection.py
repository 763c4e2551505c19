"""One MQTT connection: packets, and messages that wait for acknowledgment."""

import socket
import threading
from contextlib import suppress
from typing import Final, Self

from fleet_fn.sandbox.mqtt.faults import Faults
from fleet_fn.sandbox.mqtt.packets import (
    V3,
    V5,
    Acknowledgment,
    Connect,
    Kind,
    Packet,
    Reason,
    read_packet,
    read_version,
    write_disconnect,
    write_publish,
)
from fleet_fn.sandbox.mqtt.wire import MalformedError, Properties, Property

#: The largest packet from a client, without its fixed header.
MAX_PACKET_BYTES: Final = 16 * 1024
#: How long a client may take to send its CONNECT.
HANDSHAKE_SECONDS: Final = 15.0
#: Messages in progress if the client does not bound them, like the server of Drogue Cloud.
_MAX_IN_PROGRESS: Final = 16
_MAX_LENGTH_BYTES: Final = 4
_MAX_PACKET_ID: Final = 65_535


class ClosedError(Exception):
    """The connection is over."""


class ViolationError(Exception):
    """The client broke a rule: the connection ends, in MQTT 5 with a reason code."""

    def __init__(self, reason: Reason, problem: str) -> None:
        super().__init__(problem)
        self.reason = reason


class Connection:
    """A connection to a client. One thread reads; any thread may write."""

    def __init__(self, sock: socket.socket, faults: Faults) -> None:
        self._socket = sock
        self._faults = faults
        self._stream: Final = sock.makefile("rb")
        self.version = V3
        #: The client bounds the packets that it takes.
        self._max_packet_bytes: int | None = None
        self._credit = threading.BoundedSemaphore(_MAX_IN_PROGRESS)
        self._writing = threading.Lock()
        #: Held from the choice of a message's identifier until it is written, so that these keep their order.
        self._publishing = threading.Lock()
        self._changed = threading.Condition()
        #: The reason codes of messages in progress by packet identifier; None before the acknowledgment.
        self._in_progress: dict[int, int | None] = {}
        self._last_id = 0
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._stream.close()
        self._socket.close()

    def receive_connect(self) -> Connect:
        """Read the first packet; the socket's timeout is `HANDSHAKE_SECONDS` until then.

        Raises:
            ClosedError: the client is gone, or sent anything but a CONNECT of a known version. It gets no answer then.

        """
        try:
            if (first := self._read_first()) != Kind.CONNECT << 4:
                raise ClosedError("the first packet is no CONNECT")
            content = self._read_content()
            version = read_version(content)
            packet = None if version is None else read_packet(first, content, version)
        except (ViolationError, MalformedError) as error:
            raise ClosedError(str(error)) from error
        if not isinstance(packet, Connect):
            raise ClosedError("the first packet is no CONNECT of MQTT 3.1.1 or 5")
        self.version = packet.version
        self._max_packet_bytes = packet.limit(Property.MAXIMUM_PACKET_SIZE)
        self._credit = threading.BoundedSemaphore(packet.limit(Property.RECEIVE_MAXIMUM) or _MAX_IN_PROGRESS)
        keep_alive = packet.keep_alive_seconds
        self._socket.settimeout(keep_alive * 1.5 if keep_alive else None)
        return packet

    def receive(self) -> Packet:
        """Read the next packet, and settle acknowledgments.

        Raises:
            ClosedError: the connection is over.
            ViolationError: the client broke a rule.

        """
        while True:
            first, content = self._read_first(), self._read_content()
            if self._faults.is_silent:
                continue
            try:
                packet = read_packet(first, content, self.version)
            except MalformedError as error:
                raise ViolationError(Reason.MALFORMED, str(error)) from error
            if isinstance(packet, Acknowledgment):
                self._settle(packet)
            elif packet is not None:
                return packet

    def send(self, packet: bytes) -> None:
        """Write a packet.

        Raises:
            ClosedError: the connection is over.

        """
        if self._faults.is_silent:
            return
        try:
            with self._writing:
                self._socket.sendall(packet)
        except OSError as error:
            raise ClosedError(str(error)) from error

    def publish(self, topic: str, payload: bytes, properties: Properties | None, qos: int) -> None:
        """Send a message; at QoS 1, return once the client has acknowledged it.

        Raises:
            ClosedError: the connection is over.
            ViolationError: the client refuses the message, or takes no packet as large.

        """
        if not qos:
            self._send_message(write_publish(topic, payload, None, properties))
            return
        credit = self._credit
        while not credit.acquire(timeout=1):
            self._check_open()
        try:
            with self._publishing:
                with self._changed:
                    packet_id = self._reserve_id()
                self._send_message(write_publish(topic, payload, packet_id, properties))
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._in_progress[packet_id] is not None)
                reason = self._in_progress.pop(packet_id)
        finally:
            credit.release()
        if reason is None:
            raise ClosedError("the connection is over")
        if reason != Reason.SUCCESS:
            raise ViolationError(Reason.SUCCESS, f"it refused a message with reason code {reason:#04x}")

    def close(self, reason: Reason | None = None) -> None:
        """End the connection, in MQTT 5 with a reason code if one is given."""
        with self._changed:
            was_closed, self._is_closed = self._is_closed, True
            self._changed.notify_all()
        if was_closed:
            return
        if reason is not None and self.version == V5:
            with suppress(ClosedError):
                self.send(write_disconnect(reason))
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _send_message(self, packet: bytes) -> None:
        if self._max_packet_bytes is not None and len(packet) > self._max_packet_bytes:
            problem = f"a message of {len(packet)} bytes is above its Maximum Packet Size of {self._max_packet_bytes}"
            raise ViolationError(Reason.SUCCESS, problem)
        self.send(packet)

    def _reserve_id(self) -> int:
        self._check_open()
        while True:
            self._last_id = self._last_id % _MAX_PACKET_ID + 1
            if self._last_id not in self._in_progress:
                self._in_progress[self._last_id] = None
                return self._last_id

    def _settle(self, acknowledgment: Acknowledgment) -> None:
        with self._changed:
            # Like Drogue Cloud's server: MQTT 5, MQTT-4.6.0-2.
            first = next((number for number, reason in self._in_progress.items() if reason is None), None)
            if acknowledgment.packet_id != first:
                problem = "it acknowledged a message that it did not get, or before an earlier one"
                raise ViolationError(Reason.IMPLEMENTATION_SPECIFIC, problem)
            self._in_progress[acknowledgment.packet_id] = acknowledgment.reason
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ClosedError("the connection is over")

    def _read_first(self) -> int:
        """Return the first byte of a packet."""
        return self._take(1)[0]

    def _read_content(self) -> bytes:
        """Return everything behind a packet's fixed header."""
        length = 0
        for index in range(_MAX_LENGTH_BYTES):
            byte = self._take(1)[0]
            length |= (byte & 0x7F) << (7 * index)
            if not byte & 0x80:
                break
        else:
            raise ViolationError(Reason.MALFORMED, "the length of a packet has more than 4 bytes")
        if length > MAX_PACKET_BYTES:
            raise ViolationError(Reason.PACKET_TOO_LARGE, f"a packet of {length} bytes is too large")
        return self._take(length)

    def _take(self, count: int) -> bytes:
        try:
            taken = self._stream.read(count)
        except TimeoutError as error:
            raise ViolationError(Reason.KEEP_ALIVE_TIMEOUT, "it was silent for too long") from error
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise ClosedError(str(error)) from error
        if len(taken) < count:
            raise ClosedError("the client is gone")
        return taken
