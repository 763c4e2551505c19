"""MQTT messages of events, in the two content modes of CloudEvents."""

import base64
import json
from typing import Any, Final

from fleet_fn.sandbox.events import Event
from fleet_fn.sandbox.mqtt.wire import Properties, Property

_STRUCTURED: Final = "application/cloudevents+json; charset=utf-8"


def structured(event: Event) -> bytes:
    """Return the payload of an event in structured mode, a JSON object."""
    content: dict[str, Any] = dict(event.attributes)
    if event.data is not None:
        content |= _data(event.data, event.attributes.get("datacontenttype", ""))
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def structured_properties(identifier: int | None) -> Properties:
    """Return MQTT 5's properties of a message in structured mode.

    `identifier` is the subscription's.
    """
    return [(Property.PAYLOAD_FORMAT, 1), (Property.CONTENT_TYPE, _STRUCTURED), *_subscription(identifier)]


def binary(event: Event, identifier: int | None) -> tuple[bytes, Properties]:
    """Return the payload and MQTT 5's properties of a message in binary mode.

    The attributes are user properties. The type of the data is MQTT's content type instead; its schema is lost.
    """
    attributes = dict(event.attributes)
    content_type = attributes.pop("datacontenttype", None)
    attributes.pop("dataschema", None)
    attributes["time"] = attributes["time"].removesuffix("Z") + "+00:00"
    properties: Properties = [
        *((Property.USER, pair) for pair in attributes.items()),
        *([] if content_type is None else [(Property.CONTENT_TYPE, content_type)]),
        *_subscription(identifier),
    ]
    return event.data or b"", properties


def _subscription(identifier: int | None) -> Properties:
    return [] if identifier is None else [(Property.SUBSCRIPTION_ID, identifier)]


def _data(data: bytes, content_type: str) -> dict[str, Any]:
    """Return the member of structured JSON that has the data."""
    try:
        if content_type.startswith(("application/json", "text/json")) or content_type.endswith("+json"):
            return {"data": json.loads(data)}
        if content_type.startswith("text/plain"):
            return {"data": data.decode()}
    except ValueError:  # not what it claims to be
        pass
    return {"data_base64": base64.b64encode(data).decode()}
