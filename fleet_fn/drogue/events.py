"""Read CloudEvents of Drogue Cloud from HTTP requests.

The CloudEvents SDK validates events, but its readers are not used. Some senders do not encode headers as the HTTP
binding demands, JSON has to be read strictly, and data has to stay bytes. The SDK's readers also take five times as
long for each event, and would add a tenth to the start-up time.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes

from cloudevents.core.exceptions import CloudEventValidationError, MissingRequiredAttributeError
from cloudevents.core.v1.event import CloudEvent

from fleet_fn.errors import one_line
from fleet_fn.observability.trace_context import Trace
from fleet_fn.strict_json import parse_json

#: A device sent something.
DEVICE_EVENT: Final = "io.drogue.event.v1"
#: An object of the device registry changed.
REGISTRY_EVENT: Final = "io.drogue.registry.v1"
#: The channel of the DFU protocol, and the name of its command.
DFU: Final = "dfu"
#: The Things Network's firmware port, which Drogue Cloud's integration makes the channel.
LORAWAN_PORT: Final = "223"

#: Hexadecimal digits of a key.
_KEY_DIGITS: Final = 32
_REQUIRED = ("specversion", "id", "source", "type")
#: Attributes that are read in binary mode, besides the media type. All others may hold anything.
_USED: Final = frozenset(
    (*_REQUIRED, "subject", "time", "application", "device", "deviceuid", "traceparent", "tracestate")
)
#: Characters of an attribute in a reason.
_MAX_SHOWN_CHARACTERS: Final = 100
#: The source of every event from Drogue Cloud begins with this.
_CLOUD: Final = "drogue://"
#: The application as it is, then the device with everything but letters and digits percent-encoded. Encoded or not,
#: unreserved characters mean the same (RFC 3986, section 2.3).
_SOURCE: Final = re.compile(rf"{_CLOUD}([!-.0-~]+)/((?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{{2}})+)")
#: Characters that headers carry unencoded: printable ASCII but space, double quote and percent (HTTP binding, 3.1.3.2).
_UNENCODED = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
#: Values that mean the same, encoded by the HTTP binding or not.
_PLAIN: Final = re.compile(r"[\x20-\x24\x26-\x7e]*")


class InvalidEventError(Exception):
    """The request holds no CloudEvent, or none that Drogue Cloud makes.

    The text says why, in one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


@lru_cache(maxsize=1024)  # each event needs its key several times
def _hash_key(source: str, id_: str) -> str:
    return hashlib.sha256(repr((source, id_)).encode()).hexdigest()[:_KEY_DIGITS]


class Event(NamedTuple):
    """An event of Drogue Cloud. Missing attributes are empty."""

    id: str
    source: str
    type: str
    subject: str
    application: str
    device: str
    #: When the event arrived in the cloud; None if unknown.
    time: datetime | None
    content_type: str | None
    payload: bytes
    #: UID of the device.
    device_uid: str = ""
    #: CloudEvents' distributed tracing extension.
    trace: Trace | None = None
    #: Why the device is in doubt and must not be sent anything; empty if it is certain.
    doubt: str = ""

    @property
    def key(self) -> str:
        """Short text that identifies the event by its `id` and `source`."""
        return _hash_key(self.source, self.id)

    @property
    def is_status(self) -> bool:
        """Return whether it is a status: on channel `dfu` or LoRaWAN's firmware port."""
        return self.type == DEVICE_EVENT and self.subject in (DFU, LORAWAN_PORT)

    @property
    def is_lorawan(self) -> bool:
        """Return whether a device of The Things Network sent it.

        Its answers go to a port, in CBOR.
        """
        return self.subject == LORAWAN_PORT

    @property
    def command(self) -> str:
        """Name of the command that answers the event."""
        return f"port:{LORAWAN_PORT}" if self.is_lorawan else DFU

    def status_payload(self) -> tuple[bytes, str | None]:
        """Return the bytes of the status, and their media type if the event names one.

        Raises:
            InvalidEventError: the device is missing or in doubt, or an uplink of The Things Network has no payload.

        """
        if self.doubt:
            raise InvalidEventError(self.doubt)
        for name in ("application", "device"):
            if not getattr(self, name):
                raise InvalidEventError(f"attribute {name!r} is missing")
        if self.is_lorawan:
            return _read_lorawan(self.payload), None
        return self.payload, self.content_type


def read_event(headers: Iterable[tuple[str, str]], body: bytes) -> Event:
    """Read the event in an HTTP request, in binary or structured JSON mode.

    Args:
        headers: names and values; as in WSGI, values are bytes decoded as ISO 8859-1.
        body: the request's body.

    Raises:
        InvalidEventError: the request is no CloudEvent 1.0.

    """
    decode: Callable[[str], str] = _decode_name
    try:
        fields = {name.lower(): value for name, value in headers}
        mode = fields.get("content-type", "").partition(";")[0].strip().lower()
        if mode == "application/cloudevents+json":
            cloud_event, decode = _read_structured(body), _keep
        elif mode.startswith("application/cloudevents"):
            raise InvalidEventError(
                f"content type {mode!r} is not supported; send one event, in binary or structured JSON mode"
            )
        else:
            cloud_event = _Received(_read_attributes(fields), body)
    except CloudEventValidationError as error:
        raise InvalidEventError("; ".join(str(e) for errors in error.errors.values() for e in errors)) from error
    # OverflowError: a time beyond the calendar's end. RecursionError: data that nests too deeply to be written again.
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(str(error)) from error
    attributes = cloud_event.get_attributes()
    payload = cloud_event.get_data()
    source = cloud_event.get_source()
    about = _identify(source, _text(attributes, "application"), _text(attributes, "device"), decode)
    return Event(
        id=cloud_event.get_id(),
        source=source,
        type=cloud_event.get_type(),
        subject=cloud_event.get_subject() or "",
        application=about.application,
        device=about.device,
        device_uid=_text(attributes, "deviceuid") or "",
        time=cloud_event.get_time(),
        content_type=cloud_event.get_datacontenttype(),
        payload=payload if isinstance(payload, bytes) else b"",
        trace=Trace.read(attributes.get("traceparent"), attributes.get("tracestate")),
        doubt=about.doubt,
    )


# --- The device of an event -------------------------------------------------------------------------------------------


class _Identity(NamedTuple):
    application: str
    device: str
    #: Why these must not be used; empty if they may.
    doubt: str = ""


def _identify(source: str, application: str | None, device: str | None, decode: Callable[[str], str]) -> _Identity:
    """Decide which device an event is about.

    Drogue Cloud's source is plain ASCII, which every deliverer leaves alone. The attributes may have been mangled on
    the way, so they only have to agree with the source. Events from other senders have nothing but the attributes.

    Args:
        source: the event's source.
        application: the received attribute; None if it is missing.
        device: the received attribute; None if it is missing.
        decode: decodes an attribute of an event from another sender; it may raise InvalidEventError.

    """
    if named := _read_source(source):
        for name, exact, given in zip(("application", "device"), named, (application, device), strict=True):
            if given is None:
                return _Identity(*named, f"attribute {name!r} is missing")
            if not _may_stand_for(exact, given):
                return _Identity(*named, f"attribute {name!r} is {_clip(given)}, but the source names {_clip(exact)}")
        return _Identity(*named)
    try:
        application, device = decode(application or ""), decode(device or "")
    except InvalidEventError as error:
        return _Identity("", "", str(error))
    # Some tools write unencoded names into such a source. A deliverer may have put "?" in the place of a character.
    if source.startswith(_CLOUD) and ("?" in source or source != f"{_CLOUD}{application}/{device}"):
        return _Identity(
            application, device, f"source {_clip(source)} is not {_CLOUD}APPLICATION/PERCENT-ENCODED-DEVICE"
        )
    return _Identity(application, device)


def _read_source(source: str) -> tuple[str, str] | None:
    """Return the application and device in Drogue Cloud's source, else None."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        return None
    try:
        return match[1], unquote_to_bytes(match[2]).decode()
    except UnicodeError:
        return None


def _may_stand_for(name: str, given: str) -> bool:
    """Return whether an attribute may stand for a name that a deliverer mangled.

    Deliverers write UTF-8 (which WSGI reads as ISO 8859-1), ISO 8859-1 with "?" for each UTF-16 unit of other
    characters, or percent-encoding. HTTP strips spaces.
    """
    if given == name:
        return True
    by_unit = "".join("??" if character > "\uffff" else character for character in name)
    forms = (
        name,
        name.encode().decode("latin-1"),
        name.encode("latin-1", "replace").decode("latin-1"),
        by_unit.encode("latin-1", "replace").decode("latin-1"),
    )
    if given.strip(" \t") in [form.strip(" \t") for form in forms]:
        return True
    return "%" in given and given.isascii() and unquote_to_bytes(given) == name.encode()


def _keep(value: str) -> str:
    return value


def _clip(value: str) -> str:
    """Quote the beginning of a value: it may be as long as a request."""
    return repr(value[:_MAX_SHOWN_CHARACTERS])


class _Received(CloudEvent):
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


def _read_structured(body: bytes) -> _Received:
    """Return the event in a body in structured mode (CloudEvents 1.0, JSON format)."""
    members = parse_json(body)
    if not isinstance(members, dict):
        raise ValueError("a CloudEvent in JSON is an object")
    if "data" in members and "data_base64" in members:
        raise ValueError("both 'data' and 'data_base64'")
    attributes = {name: value for name, value in members.items() if value is not None and name != "dataschema"}
    payload = _pop_data(attributes)
    if "time" in attributes:
        attributes["time"] = _parse_time(attributes["time"])
    return _Received(attributes, payload)


def _pop_data(attributes: dict[str, Any]) -> bytes:
    """Remove and return the data of an event in JSON (JSON Event Format, 3.1)."""
    if "data_base64" in attributes:
        return _decode_base64(attributes.pop("data_base64"), "data_base64")
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


def _read_attributes(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes in headers (HTTP binding, 3.1.3).

    Names of devices stay undecoded.
    """
    attributes: dict[str, Any] = {}
    for header, value in fields.items():
        name = header.removeprefix("ce-")
        if name in _USED and name != header:
            is_exact = name in ("application", "device") or _PLAIN.fullmatch(value)
            attributes[name] = value if is_exact else _decode_other(name, value)
        elif header == "content-type" and value:
            attributes["datacontenttype"] = value
    if "time" in attributes:
        attributes["time"] = _parse_time(attributes["time"])
    return attributes


def _decode_other(name: str, value: str) -> str:
    """Decode an attribute other than a device's name: UTF-8, or else ISO 8859-1.

    The percent signs in Drogue Cloud's source are its own, so it stays as it is.
    """
    try:
        text = value.encode("latin-1").decode()
    except UnicodeError:
        return value
    return text if name == "source" and text.startswith(_CLOUD) else _percent_decode(text)


def _decode_name(value: str) -> str:
    """Decode a name in a header, UTF-8 or encoded by the HTTP binding.

    Raises:
        InvalidEventError: the name is not UTF-8.

    """
    try:
        return _percent_decode(value.encode("latin-1").decode())
    except UnicodeError as error:
        raise InvalidEventError(f"the name {_clip(value)} in a header is not UTF-8") from error


def _percent_decode(text: str) -> str:
    """Decode a header if the HTTP binding would encode the result like this."""
    decoded = unquote(text)
    return decoded if "%" in text and quote(decoded, safe=_UNENCODED) == text else text


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidEventError(f"attribute {name!r} is not a string")
    return value


def _read_lorawan(payload: bytes) -> bytes:
    """Return the device's bytes, also from a v3 uplink message of The Things Network."""
    if not payload.lstrip(b" \t\r\n").startswith(b"{"):
        return payload
    try:
        uplink = parse_json(payload)
    except ValueError as error:
        raise InvalidEventError(str(error)) from error
    if "uplink_message" not in uplink:
        return payload
    message = uplink["uplink_message"]
    if not isinstance(message, dict) or "frm_payload" not in message:
        raise InvalidEventError("the uplink has no uplink_message.frm_payload")
    try:
        return _decode_base64(message["frm_payload"], "uplink_message.frm_payload")
    except ValueError as error:
        raise InvalidEventError(str(error)) from error


def _decode_base64(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not base64") from error
