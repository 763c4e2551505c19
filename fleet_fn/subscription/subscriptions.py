"""The subscriptions of one session: asked for, answered, and given up."""

import time
from collections.abc import Callable, Collection
from typing import Final

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_fn.observability.log import logger
from fleet_fn.subscription.broker import MQTT_5, MQTT_INTEGRATION, PROTOCOLS, LostError
from fleet_fn.subscription.filters import Filters

#: Pause between two looks at which applications are wanted.
_LOOK_SECONDS: Final = 0.5


class Subscriptions:
    """Keeps a client subscribed to the applications that are wanted."""

    def __init__(self, client: Client, protocol: MQTTProtocolVersion, group: str) -> None:
        """Subscribe with `client`, which speaks `protocol`, as a member of `group`."""
        self._client = client
        self._protocol = protocol
        self._group = group
        self._filters = Filters(group)
        #: Applications by the identifier of the SUBSCRIBE that has no answer yet.
        self._asked: dict[int, str] = {}
        self._look = 0.0
        client.on_subscribe = self._on_subscribe

    def renew(self, applications: Callable[[], Collection[str]]) -> None:
        """Subscribe to wanted applications, and unsubscribe from others, if it is time to.

        Raises:
            LostError: the connection was lost, or the broker does not answer.

        """
        now = time.monotonic()
        if now < self._look:
            return
        self._look = now + _LOOK_SECONDS
        wanted = applications()
        for name, topic in self._filters.to_subscribe(wanted):
            code, mid = self._client.subscribe(topic, qos=1, properties=self._properties())
            _check(code)
            if mid is not None:
                self._asked[mid] = name
        if topics := self._filters.to_unsubscribe(wanted):
            _check(self._client.unsubscribe(topics)[0])
        if self._filters.is_late():
            raise LostError("no answer to a subscription in time")

    def _properties(self) -> Properties | None:
        """Return the properties that ask for events in binary mode, which only MQTT 5 has."""
        if self._protocol is not MQTT_5:
            return None
        properties = Properties(PacketTypes.SUBSCRIBE)
        properties.UserProperty = ("content-mode", "binary")
        return properties

    def _on_subscribe(self, _client: object, _data: object, mid: int, reasons: list[ReasonCode], _: object) -> None:
        name = self._asked.pop(mid, None)
        for reason in reasons if name is not None else ():
            self._take_answer(name or "", reason)

    def _take_answer(self, name: str, reason: ReasonCode) -> None:
        if reason.is_failure:
            if self._filters.refuse(name, reason.value):
                text = f"{MQTT_INTEGRATION}: {reason.getName()} (no such application, or not a member)"
                logger.warning(
                    "subscription refused; it is tried again", extra={"fields": {"application": name, "reason": text}}
                )
            return
        self._filters.accept(name)
        fields = {"application": name, "group": self._group, "protocol": PROTOCOLS[self._protocol]}
        logger.info("subscribed", extra={"fields": fields})
        if reason.value == 0:
            logger.warning("the broker grants QoS 0 only, so events may be lost", extra={"fields": fields})


def _check(code: MQTTErrorCode) -> None:
    if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
        raise LostError("connection closed")
