"""The subscription of one session: asked for, answered, and asked for again."""

from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_fn.observability.log import logger
from fleet_fn.subscription.broker import MQTT_5, MQTT_INTEGRATION, PROTOCOLS, LostError
from fleet_fn.subscription.filter import Filter, Sharing


class Subscribing:
    """Keeps a client subscribed to an application."""

    def __init__(
        self, client: Client, protocol: MQTTProtocolVersion, group: str, application: str, sharing: Sharing
    ) -> None:
        """Subscribe with `client`, which speaks `protocol`, as a member of `group`."""
        self._client = client
        self._protocol = protocol
        self._filter = Filter(group, application, sharing)
        self._fields: Final = {"application": application, "group": group, "protocol": PROTOCOLS[protocol]}
        client.on_subscribe = self._on_subscribe

    def renew(self) -> None:
        """Subscribe if it is time to.

        Raises:
            LostError: the connection was lost, or the broker does not answer.

        """
        if topic := self._filter.ask():
            code, _ = self._client.subscribe(topic, qos=1, properties=self._properties())
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                raise LostError("connection closed")
        if self._filter.is_late():
            raise LostError("no answer to a subscription in time")

    def _properties(self) -> Properties | None:
        """Return the properties that ask for events in binary mode, which only MQTT 5 has."""
        if self._protocol is not MQTT_5:
            return None
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.UserProperty = ("content-mode", "binary")
        return properties

    def _on_subscribe(self, _client: object, _data: object, _mid: int, reasons: list[ReasonCode], _: object) -> None:
        for reason in reasons[:1]:
            if reason.is_failure:
                self._refused(reason)
            else:
                self._accepted(reason)

    def _refused(self, reason: ReasonCode) -> None:
        if self._filter.refuse(reason.value):
            text = f"{MQTT_INTEGRATION}: {reason.getName()} (no such application, or not a member)"
            fields = {"application": self._fields["application"], "reason": text}
            logger.warning("subscription refused; it is tried again", extra={"fields": fields})

    def _accepted(self, reason: ReasonCode) -> None:
        self._filter.accept()
        logger.info("subscribed", extra={"fields": self._fields})
        if reason.value == 0:
            logger.warning("the broker grants QoS 0 only, so events may be lost", extra={"fields": self._fields})
