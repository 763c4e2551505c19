"""One connection to the MQTT integration, from CONNECT to its end."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_fn.subscription.acknowledgements import Acknowledgements, Window
from fleet_fn.subscription.broker import (
    MQTT_5,
    PROTOCOLS,
    Broker,
    LostError,
    RefusedError,
    UnsupportedError,
    describe,
)
from fleet_fn.subscription.filter import Sharing
from fleet_fn.subscription.messages import Message
from fleet_fn.subscription.subscribing import Subscribing

#: A ping goes out after so long without a packet. A broker that answers none for as long is lost: soon enough for the
#: last events before that not to be stale on the next connection. It also bounds a TLS handshake.
_KEEPALIVE_SECONDS: Final = 12
#: While no message may be taken, one packet is read so often: else no ping could go out, and the broker would hang up.
_GLANCE_SECONDS: Final = 4.0
_CONNECT_SECONDS: Final = 5.0
#: Longest wait for the answer to CONNECT, and for the last bytes to go out.
_ANSWER_SECONDS: Final = 10.0
_FLUSH_SECONDS: Final = 2.0
#: Longest wait for packets, before due SUBSCRIBEs and pings are looked for.
_TICK_SECONDS: Final = 0.5
#: Packets that are read before acknowledgements go out.
_PACKETS: Final = 32
#: Larger messages are not sent (MQTT 5). No event of Drogue Cloud is a hundredth as large.
_MAX_PACKET_BYTES: Final = 16 * 1024 * 1024
_MAX_RECEIVE: Final = 65_535
#: Reasons in a CONNACK, in words that MQTT 3.1.1's codes are translated to.
_BAD_CREDENTIALS: Final = ("Bad user name or password", "Not authorized")
_BAD_VERSION: Final = "Unsupported protocol version"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a session does, besides the credentials and the version of MQTT."""

    broker: Broker
    group: str
    application: str
    sharing: Sharing
    #: Takes a message, whether it was sent before, and a function to call when it is done.
    take: Callable[[Message, bool, Callable[[], None]], None]
    #: Whether messages are taken no more.
    is_ending: Callable[[], bool]
    #: Whether all events that will be done are done.
    has_ended: Callable[[], bool]


class Session:
    """A connection, which one thread runs.

    paho-mqtt's client is not used by any other thread: they only wake this one.
    """

    def __init__(self, plan: Plan, window: Window, protocol: MQTTProtocolVersion) -> None:
        self._plan = plan
        self._protocol = protocol
        self._waking, self._wake = socket.socketpair()
        self._waking.setblocking(False)
        self._wake.setblocking(False)
        self._window = window
        self._acknowledgements = Acknowledgements(window, self.wake)
        self._taken = 0
        self._read = 0.0
        self._connack: ReasonCode | None = None
        self._disconnect: ReasonCode | None = None
        self._client = self._make_client()
        self._subscribing = Subscribing(self._client, protocol, plan.group, plan.application, plan.sharing)

    def wake(self) -> None:
        """Let the thread look for what has changed."""
        with suppress(OSError):  # it is awake, or has gone
            self._wake.send(b"\0")

    def run(self, user: str | None, password: str | None, connected: Callable[[], None]) -> None:
        """Take messages until the plan ends.

        Args:
            user: user name; None without one.
            password: password; None without one.
            connected: is called once the broker has accepted the connection.

        Raises:
            LostError: the connection was lost, or did not come about.

        """
        with closing(self._waking), closing(self._wake):
            try:
                self._connect(user, password)
                connected()
                while not self._plan.has_ended():
                    self._turn()
                self._leave()
            finally:
                self._close()

    # --- The connection

    def _make_client(self) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"fleet-fn-{uuid4().hex[:12]}",  # MQTT 3.1.1: each broker takes 23 characters
            clean_session=None if self._protocol is MQTT_5 else True,
            protocol=self._protocol,
            transport="tcp" if self._plan.broker.path is None else "websockets",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = _CONNECT_SECONDS
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self, user: str | None, password: str | None) -> None:
        client, broker = self._client, self._plan.broker
        client.username_pw_set(user, password)
        if broker.path is not None:
            client.ws_set_options(path=broker.path)
        try:
            if context := broker.tls():
                client.tls_set_context(context)
            if self._protocol is MQTT_5:
                properties = Properties(PacketTypes.CONNECT)
                properties.ReceiveMaximum = min(self._window.size, _MAX_RECEIVE)
                properties.MaximumPacketSize = _MAX_PACKET_BYTES
                client.connect(broker.host, broker.port, _KEEPALIVE_SECONDS, clean_start=True, properties=properties)
            else:
                client.connect(broker.host, broker.port, _KEEPALIVE_SECONDS)
        # ValueError: a host that is not in a certificate. IndexError: an answer that is no WebSocket's.
        except (OSError, ValueError, IndexError) as error:
            raise LostError(describe(error)) from error
        limit = time.monotonic() + _ANSWER_SECONDS
        while self._connack is None:
            self._exchange(reads=True)
            if time.monotonic() > limit:
                raise LostError("no answer in time")

    def _close(self) -> None:
        self._client.on_disconnect = None
        if sock := self._client.socket():
            with suppress(OSError):
                sock.close()

    def _turn(self) -> None:
        """Acknowledge, subscribe, and read what has come."""
        for mid in self._acknowledgements.due():
            self._client.ack(mid, 1)
        is_ending = self._plan.is_ending()
        if not is_ending:
            self._subscribing.renew()
        is_due = time.monotonic() - self._read > _GLANCE_SECONDS
        self._exchange(reads=not is_ending and (is_due or not self._window.is_full))

    def _exchange(self, *, reads: bool) -> None:
        """Write and read what can be; wait for a moment if there is nothing.

        Without reading, answers to pings cannot be seen, so none are sent.
        """
        client = self._client
        sock: Any = self._socket()
        poll = select.poll()
        poll.register(self._waking, select.POLLIN)
        poll.register(sock, (select.POLLIN if reads else 0) | (select.POLLOUT if client.want_write() else 0))
        is_pending = reads and bool(getattr(sock, "pending", int)())
        events = dict(poll.poll(0 if is_pending else _TICK_SECONDS * 1000))
        if not reads and events.get(sock.fileno(), 0) & (select.POLLHUP | select.POLLERR):
            raise self._lost(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        with suppress(BlockingIOError):
            self._waking.recv(4096)
        if client.want_write():
            self._check(client.loop_write())
        if not reads:
            return
        self._read = time.monotonic()
        # A WebSocket's frame may hold packets that the poll does not show, so read in any case.
        for _ in range(_PACKETS):
            taken = self._taken
            self._check(client.loop_read())
            if taken == self._taken or self._window.is_full:
                break
        if client.socket() is not None and client.loop_misc() != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._lost(MQTTErrorCode.MQTT_ERR_KEEPALIVE)

    def _socket(self) -> object:
        sock = self._client.socket()
        if sock is None:
            raise self._lost(MQTTErrorCode.MQTT_ERR_CONN_LOST)
        return sock

    def _check(self, code: MQTTErrorCode) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise self._lost(code)

    def _lost(self, code: MQTTErrorCode) -> LostError:
        """Return the error for a lost connection."""
        if self._connack is not None and self._connack.is_failure:
            name = self._connack.getName()
            if name == _BAD_VERSION:
                return UnsupportedError(f"{PROTOCOLS[self._protocol]} is not supported")
            if name in _BAD_CREDENTIALS:
                return RefusedError(f"our credentials were refused ({name})")
            return LostError(f"connection refused ({name})")
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL and self._connack is None:
            return LostError("the answer is no MQTT; check scheme and port of DROGUE_MQTT_URL")
        if code == MQTTErrorCode.MQTT_ERR_PROTOCOL:
            return UnsupportedError(f"a packet is malformed in {PROTOCOLS[self._protocol]}")
        if self._disconnect is not None:
            return LostError(f"connection closed ({self._disconnect.getName()})")
        if self._connack is None:
            return LostError("connection closed without an answer")
        return LostError("no answer to a ping" if code == MQTTErrorCode.MQTT_ERR_KEEPALIVE else "connection closed")

    def _leave(self) -> None:
        """Acknowledge what is done, and say goodbye."""
        for mid in self._acknowledgements.due():
            self._client.ack(mid, 1)
        limit = time.monotonic() + _FLUSH_SECONDS
        self._client.disconnect()
        while self._client.socket() is not None and time.monotonic() < limit:
            self._exchange(reads=False)

    # --- Callbacks

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: ReasonCode, _: object) -> None:
        self._connack = reason

    def _on_disconnect(self, _client: object, _data: object, flags: Any, reason: ReasonCode, _: object) -> None:
        if flags.is_disconnect_packet_from_server:
            self._disconnect = reason

    def _on_message(self, _client: object, _data: object, message: MQTTMessage) -> None:
        self._taken += 1
        properties = message.properties
        taken = Message(
            bytes(message.payload),
            getattr(properties, "ContentType", None),
            getattr(properties, "UserProperty", ()),
        )
        self._plan.take(taken, message.dup, self._acknowledgements.expect(message.mid, message.qos))
