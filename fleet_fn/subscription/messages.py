"""Messages of the MQTT integration, as the HTTP requests that deliver them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

from fleet_fn.drogue.cloud_events import encode_attribute
from fleet_fn.strict_json import parse_json

#: The media type of an event in structured mode. MQTT 3.1.1 cannot name it.
_STRUCTURED: Final = "application/cloudevents+json"
#: A message with this property is in binary mode: each event has the attribute.
_MARK: Final = "specversion"
_PRINTABLE: Final = "".join(map(chr, range(0x20, 0x7F)))


@dataclass(frozen=True, slots=True)
class Message:
    """An MQTT message, as the broker sent it."""

    payload: bytes
    #: MQTT 5: the property `content type`, and the user properties.
    content_type: str | None = None
    properties: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """The HTTP request that delivers an event; it need not hold a valid one."""

    #: Values by names in lower case.
    headers: Mapping[str, str]
    body: bytes
    #: The payload was larger than the bound, and the body is its beginning.
    is_cut: bool
    #: The event's source: events of one source are delivered in their order. None if there is none.
    source: str | None
    #: Unix time of the event; None if it has none.
    time: float | None = None
    #: Identifier of the event, for log lines.
    id: str | None = None
    #: Monotonic time at which the message came.
    since: float = field(default_factory=monotonic)


def to_request(message: Message, max_body_bytes: int) -> Request:
    """Return the request that delivers a message.

    Structured events stay as they are. Attributes of binary events become headers, percent-encoded (CloudEvents' HTTP
    binding, 3.1.3). One byte more than `max_body_bytes` is kept of a larger payload, so that the function refuses it.
    """
    is_cut = len(message.payload) > max_body_bytes
    body = bytes(message.payload[: max_body_bytes + 1])
    content_type = message.content_type
    properties = _join(message.properties)
    if content_type is None and _MARK not in properties:
        content_type = _STRUCTURED
    headers = {} if content_type is None else {"content-type": quote(content_type, safe=_PRINTABLE)}
    if (content_type or "").lower().startswith("application/cloudevents"):
        attributes = {} if is_cut else _read_attributes(body)
    else:
        attributes = properties
        headers |= {f"ce-{name}": encode_attribute(name, value) for name, value in properties.items()}
    return Request(
        headers,
        body,
        is_cut,
        _text(attributes.get("source")),
        _unix_time(attributes.get("time")),
        _text(attributes.get("id")),
    )


def _join(properties: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return attributes by name; as in HTTP, a comma joins the values of one name.

    Properties whose names no attribute can have are left out (CloudEvents 1.0, section 3.1).
    """
    joined: dict[str, str] = {}
    for name, value in properties:
        if name.isascii() and name.isalnum() and name == name.lower():
            joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _read_attributes(body: bytes) -> Mapping[str, Any]:
    """Return the members of an event in JSON; none if it is malformed."""
    try:
        members = parse_json(body)
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _unix_time(value: object) -> float | None:
    """Return the time in an attribute; None if there is none."""
    try:
        return datetime.fromisoformat(value.upper()).timestamp() if isinstance(value, str) else None
    except (ValueError, OverflowError, OSError):  # OSError: the local time of a time without a zone
        return None


#: Delivers a request and returns the receiver's answer.
Deliver = Callable[[Request], "Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The receiver's answer to a request; with a final one, the event is done."""

    is_final: bool
    #: Seconds after which the receiver wants to be asked again; None if it does not say.
    retry_after: float | None = None
    #: Why the answer is not final; empty if it is.
    reason: str = ""
