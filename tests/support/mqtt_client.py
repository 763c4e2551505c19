"""A subscriber of an MQTT integration: paho, which acknowledges only what it is told to."""

import ssl
import threading
from typing import Any, Self

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, MQTTv5, MQTTv311
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

V3, V5 = MQTTv311, MQTTv5
PATIENCE = 10.0


class Subscriber:
    """A client that connects once, when its context begins."""

    def __init__(
        self,
        port: int,
        version: MQTTProtocolVersion = V5,
        *,
        user: str | None = "sandbox",
        password: str | None = "sandbox",
        client_id: str = "",
        keep_alive: int = 60,
        acknowledges: bool = True,
        tls: ssl.SSLContext | None = None,
        **connect: int,
    ) -> None:
        """Connect to a port of this machine; `connect` are properties of the CONNECT, by their names in paho."""
        self._changed = threading.Condition()
        self.connected: ReasonCode | None = None
        self.disconnected: ReasonCode | None = None
        self.messages: list[MQTTMessage] = []
        self._granted: dict[int, list[ReasonCode]] = {}
        self._ended: dict[int, list[ReasonCode]] = {}
        self._published: dict[int, ReasonCode] = {}
        self._acknowledges = acknowledges
        self.client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id,
            protocol=version,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        client.username_pw_set(user, password)
        if tls is not None:
            client.tls_set_context(tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        properties = None
        if version == V5:
            properties = Properties(PacketTypes.CONNECT)
            for name, value in connect.items():
                setattr(properties, name, value)
        client.connect("127.0.0.1", port, keep_alive, properties=properties)

    def __enter__(self) -> Self:
        self.client.loop_start()
        self.await_until(lambda: self.connected is not None or self.disconnected is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def await_until(self, condition: Any) -> None:
        """Wait for something that a callback brings about."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE), vars(self)

    def subscribe(
        self, *filters: str, qos: int = 1, mode: str | None = None, identifier: int | None = None
    ) -> list[str]:
        """Subscribe; return the names of the SUBACK's reason codes."""
        properties = None
        if mode is not None or identifier is not None:
            properties = Properties(PacketTypes.SUBSCRIBE)
            if mode is not None:
                properties.UserProperty = ("content-mode", mode)
            if identifier is not None:
                properties.SubscriptionIdentifier = identifier
        _, packet_id = self.client.subscribe([(topic, qos) for topic in filters], properties=properties)
        assert packet_id is not None
        self.await_until(lambda: packet_id in self._granted or self.disconnected is not None)
        return [str(code) for code in self._granted.get(packet_id, [])]

    def unsubscribe(self, topic: str) -> list[str]:
        """Unsubscribe; return the names of the UNSUBACK's reason codes."""
        _, packet_id = self.client.unsubscribe(topic)
        assert packet_id is not None
        self.await_until(lambda: packet_id in self._ended)
        return [str(code) for code in self._ended[packet_id]]

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> str:
        """Publish; return the name of the PUBACK's reason code."""
        packet_id = self.client.publish(topic, payload, qos).mid
        self.await_until(lambda: packet_id in self._published or self.disconnected is not None)
        return str(self._published.get(packet_id, "none"))

    def await_messages(self, count: int) -> list[MQTTMessage]:
        """Wait for messages; return the first ones."""
        self.await_until(lambda: len(self.messages) >= count)
        return self.messages[:count]

    def await_end(self) -> str:
        """Wait until the server has ended the connection; return the reason, or paho's word for none."""
        self.await_until(lambda: self.disconnected is not None)
        return str(self.disconnected)

    def acknowledge(self, message: MQTTMessage) -> None:
        """Send the PUBACK of a message."""
        self.client.ack(message.mid, message.qos)

    def _on_connect(self, _: Client, __: object, ___: ConnectFlags, code: ReasonCode, ____: Properties | None) -> None:
        with self._changed:
            self.connected = code
            self._changed.notify_all()

    def _on_disconnect(
        self, _: Client, __: object, ___: DisconnectFlags, code: ReasonCode, ____: Properties | None
    ) -> None:
        with self._changed:
            self.disconnected = code
            self._changed.notify_all()

    def _on_subscribe(self, _: Client, __: object, mid: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        with self._changed:
            self._granted[mid] = codes
            self._changed.notify_all()

    def _on_unsubscribe(self, _: Client, __: object, mid: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        with self._changed:
            self._ended[mid] = codes
            self._changed.notify_all()

    def _on_publish(self, _: Client, __: object, mid: int, code: ReasonCode, ___: Properties | None) -> None:
        with self._changed:
            self._published[mid] = code
            self._changed.notify_all()

    def _on_message(self, _: Client, __: object, message: MQTTMessage) -> None:
        if self._acknowledges:
            self.acknowledge(message)
        with self._changed:
            self.messages.append(message)
            self._changed.notify_all()
