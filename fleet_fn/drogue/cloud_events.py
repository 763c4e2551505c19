"""Read CloudEvents from HTTP requests, in binary or structured JSON mode.

The CloudEvents SDK says what is wrong with an event, but its readers are not used. Some senders do not encode headers
as the HTTP binding demands, JSON has to be read strictly, and data has to stay bytes. The SDK's readers also take five
times as long for each event, and would add a tenth to the start-up time.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote, unquote

from cloudevents.core.exceptions import CloudEventValidationError, MissingRequiredAttributeError
from cloudevents.core.v1.event import CloudEvent

from fleet_fn.errors import one_line
from fleet_fn.strict_json import parse_json

#: The source of every event from Drogue Cloud begins with this.
CLOUD: Final = "drogue://"

_REQUIRED = ("specversion", "id", "source", "type")
#: Attributes that are read in binary mode, besides the media type. All others may hold anything.
ATTRIBUTES: Final = (
    *_REQUIRED,
    "subject",
    "time",
    "application",
    "device",
    "deviceuid",
    "traceparent",
    "tracestate",
)
_HEADERS: Final = tuple((name, f"ce-{name}") for name in ATTRIBUTES)
#: Characters of an attribute in a reason.
_MAX_SHOWN_CHARACTERS: Final = 100
#: Characters that headers carry unencoded: printable ASCII but space, double quote and percent (HTTP binding, 3.1.3.2).
_UNENCODED = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
#: Values that mean the same, encoded by the HTTP binding or not.
_PLAIN: Final = re.compile(r"[\x20-\x24\x26-\x7e]*")
#: A source that a header can carry as it is: percent signs included, but neither spaces nor quotes.
_PLAIN_SOURCE: Final = re.compile(r"[!#-~]*")


class InvalidEventError(Exception):
    """The request holds no CloudEvent, or none that Drogue Cloud makes.

    The text says why, in one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


class ReceivedEvent(CloudEvent):
    """A received CloudEvent.

    Unlike the SDK's class, it invents no missing attributes: those are up to the sender.
    """

    def __init__(self, attributes: dict[str, Any], data: Any = None) -> None:
        missing = [name for name in _REQUIRED if name not in attributes]
        if missing:
            raise CloudEventValidationError({name: [MissingRequiredAttributeError(name)] for name in missing})
        has_time = "time" in attributes
        super().__init__(attributes, data)
        if not has_time:
            del attributes["time"]


def read_structured(body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return attributes and data of an event in structured mode (JSON format 1.0).

    Raises:
        CloudEventValidationError, ValueError, OverflowError, RecursionError: it is no CloudEvent.

    """
    members = parse_json(body)
    if not isinstance(members, dict):
        raise ValueError("a CloudEvent in JSON is an object")
    if "data" in members and "data_base64" in members:
        raise ValueError("both 'data' and 'data_base64'")
    attributes = {name: value for name, value in members.items() if value is not None and name != "dataschema"}
    payload = _pop_data(attributes)
    if "time" in attributes:
        attributes["time"] = _parse_time(attributes["time"])
    ReceivedEvent(attributes)  # validates
    return attributes, payload


def read_binary(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes in a request in binary mode (HTTP binding, 3.1.3).

    The names of application and device stay undecoded.

    Args:
        headers: values by names in lower case.

    Raises:
        CloudEventValidationError, ValueError, OverflowError: it is no CloudEvent.

    """
    attributes: dict[str, Any] = {}
    for name, header in _HEADERS:
        value = headers.get(header)
        if value is not None:
            is_exact = name in ("application", "device") or _PLAIN.fullmatch(value)
            attributes[name] = value if is_exact else _decode_other(name, value)
    if media_type := headers.get("content-type"):
        attributes["datacontenttype"] = media_type
    if "time" in attributes:
        attributes["time"] = _parse_time(attributes["time"])
    if not is_valid(attributes):
        ReceivedEvent(attributes)  # says what is wrong
    return attributes


def is_valid(attributes: Mapping[str, Any]) -> bool:
    """Return whether attributes from headers make a CloudEvent.

    The SDK would find the same, and take a fiftieth of an event's time for it.
    """
    time = attributes.get("time")
    return (
        attributes.get("specversion") == "1.0"
        and all(map(attributes.get, _REQUIRED))
        and attributes.get("subject") != ""
        and (time is None or time.tzinfo is not None)
    )


def decode_name(value: str) -> str:
    """Decode a name in a header, UTF-8 or encoded by the HTTP binding.

    Raises:
        InvalidEventError: the name is not UTF-8.

    """
    try:
        return _percent_decode(value.encode("latin-1").decode())
    except UnicodeError as error:
        raise InvalidEventError(f"the name {clip(value)} in a header is not UTF-8") from error


def encode_attribute(name: str, value: str) -> str:
    """Encode an attribute for a header, as the HTTP binding demands (3.1.3.2).

    Drogue Cloud's source is sent as it is, as all its deliverers do: its percent signs are its own.
    """
    if name == "source" and value.startswith(CLOUD) and _PLAIN_SOURCE.fullmatch(value):
        return value
    return quote(value, safe=_UNENCODED)


def text_attribute(attributes: Mapping[str, Any], name: str) -> str | None:
    """Return an attribute, or None if it is missing.

    Raises:
        InvalidEventError: the attribute is not a string.

    """
    value = attributes.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidEventError(f"attribute {name!r} is not a string")
    return value


def clip(value: str) -> str:
    """Quote the beginning of a value: it may be as long as a request."""
    return repr(value[:_MAX_SHOWN_CHARACTERS])


def decode_base64(value: object, name: str) -> bytes:
    """Return the bytes of the member `name`.

    Raises:
        ValueError: the member is not base64.

    """
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not base64") from error


def _pop_data(attributes: dict[str, Any]) -> bytes:
    """Remove and return the data of an event in JSON (JSON Event Format, 3.1)."""
    if "data_base64" in attributes:
        return decode_base64(attributes.pop("data_base64"), "data_base64")
    if "data" not in attributes:
        return b""
    value = attributes.pop("data")
    media_type = str(attributes.get("datacontenttype", "application/json")).partition(";")[0].strip().lower()
    if isinstance(value, str) and not media_type.endswith(("/json", "+json")):
        return value.encode()
    return json.dumps(value, ensure_ascii=False).encode()


def _parse_time(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("attribute 'time' is not a string")
    return datetime.fromisoformat(value.upper())  # `t` and `z` may be lower case (RFC 3339, 5.6)


def _decode_other(name: str, value: str) -> str:
    """Decode an attribute other than a device's name: UTF-8, or else ISO 8859-1.

    The percent signs in Drogue Cloud's source are its own, so it stays as it is.
    """
    try:
        text = value.encode("latin-1").decode()
    except UnicodeError:
        return value
    return text if name == "source" and text.startswith(CLOUD) else _percent_decode(text)


def _percent_decode(text: str) -> str:
    """Decode a header if the HTTP binding would encode the result like this."""
    decoded = unquote(text)
    return decoded if "%" in text and quote(decoded, safe=_UNENCODED) == text else text
