"""A CloudEvent from Drogue Cloud: who reports what, when it came, and on which command the answer goes out.

The CloudEvents SDK decides what is an event. How one lies in a request is read here: some senders encode headers as the
HTTP binding wants it and some do not, JSON is read strictly, and data stays the bytes that it is. The SDK's own readers
would take a tenth of the start besides, and of each event five times the time.
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
from fleet_fn.protocol.strict_json import parse_json

#: A device sent something.
DEVICE_EVENT: Final = "io.drogue.event.v1"
#: An object of the device registry changed.
REGISTRY_EVENT: Final = "io.drogue.registry.v1"
#: The channel of the DFU protocol, and the name of its command.
DFU: Final = "dfu"
#: The Things Network's firmware port, which Drogue Cloud's integration makes the channel.
LORAWAN_PORT: Final = "223"

#: Hexadecimal digits of a key.
_KEY: Final = 32
_REQUIRED = ("specversion", "id", "source", "type")
#: Attributes that the function reads in binary mode, beside the media type. All others may hold anything.
_USED: Final = frozenset(
    (*_REQUIRED, "subject", "time", "application", "device", "deviceuid", "traceparent", "tracestate")
)
#: Characters of an attribute in a reason.
_MAX_SHOWN: Final = 100
#: What the source of every event from Drogue Cloud begins with.
_CLOUD: Final = "drogue://"
#: That source: the application as it is; of the device, everything but letters and digits percent-encoded. Characters
#: that RFC 3986 (2.3) calls unreserved mean the same either way.
_SOURCE: Final = re.compile(rf"{_CLOUD}([!-.0-~]+)/((?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{{2}})+)")
#: Printable ASCII but space, double quote and percent stands for itself in a header (HTTP binding, 3.1.3.2).
_UNENCODED = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
#: What stands for itself, whoever wrote it.
_PLAIN: Final = re.compile(r"[\x20-\x24\x26-\x7e]*")


class InvalidEventError(Exception):
    """A request is no CloudEvent, or not one that Drogue Cloud makes. The text says why, in one line."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


@lru_cache(maxsize=1024)  # each event's is asked for several times
def _key(source: str, id_: str) -> str:
    return hashlib.sha256(repr((source, id_)).encode()).hexdigest()[:_KEY]


class Event(NamedTuple):
    """An event of Drogue Cloud. Attributes that it does not have are empty."""

    id: str
    source: str
    type: str
    subject: str
    application: str
    device: str
    #: When the event arrived in the cloud; None where it does not say.
    time: datetime | None
    content_type: str | None
    payload: bytes
    #: UID of the device.
    device_uid: str = ""
    #: CloudEvents' distributed tracing extension.
    trace: Trace | None = None
    #: Why the device is in doubt, and must not be sent anything; empty if it is certain.
    doubt: str = ""

    @property
    def key(self) -> str:
        """The text that tells it from all others, however long its `id` and `source` are."""
        return _key(self.source, self.id)

    @property
    def is_status(self) -> bool:
        """Whether this is a device's status: what it sent on the `dfu` channel, or on LoRaWAN's firmware port."""
        return self.type == DEVICE_EVENT and self.subject in (DFU, LORAWAN_PORT)

    @property
    def is_lorawan(self) -> bool:
        """Whether the device is one of The Things Network's, which is answered by port, and in CBOR always."""
        return self.subject == LORAWAN_PORT

    @property
    def command(self) -> str:
        """The name of the command that answers."""
        return f"port:{LORAWAN_PORT}" if self.is_lorawan else DFU

    def status_payload(self) -> tuple[bytes, str | None]:
        """Return the bytes of the status, and their media type if the event names one.

        Raises:
            InvalidEventError: no device is named, its name is in doubt, or an uplink of The Things Network has no
                payload.

        """
        if self.doubt:
            raise InvalidEventError(self.doubt)
        for name in ("application", "device"):
            if not getattr(self, name):
                raise InvalidEventError(f"attribute {name!r} is missing")
        if self.is_lorawan:
            return _lorawan_payload(self.payload), None
        return self.payload, self.content_type


def read_event(headers: Iterable[tuple[str, str]], body: bytes) -> Event:
    """Read the event in an HTTP request, in binary or structured JSON mode.

    Args:
        headers: names and values, the latter as WSGI has them: bytes read as ISO 8859-1.
        body: the request's body.

    Raises:
        InvalidEventError: the request is no CloudEvent 1.0.

    """
    decode: Callable[[str], str] = _decoded
    try:
        fields = {name.lower(): value for name, value in headers}
        mode = fields.get("content-type", "").partition(";")[0].strip().lower()
        if mode == "application/cloudevents+json":
            cloud_event, decode = _structured(body), _unchanged
        elif mode.startswith("application/cloudevents"):
            raise InvalidEventError(f"content type {mode!r}: one event, in binary or in JSON mode, is what is taken")
        else:
            cloud_event = _Received(_attributes(fields), body)
    except CloudEventValidationError as error:
        raise InvalidEventError("; ".join(str(e) for errors in error.errors.values() for e in errors)) from error
    # A time may lie beyond the calendar's end, and data that could be read may nest too deeply to be written again.
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(str(error)) from error
    attributes = cloud_event.get_attributes()
    payload = cloud_event.get_data()
    source = cloud_event.get_source()
    about = _about(source, _text(attributes, "application"), _text(attributes, "device"), decode)
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


# --- Who an event is about --------------------------------------------------------------------------------------------


class _About(NamedTuple):
    application: str
    device: str
    #: Why these must not be acted on.
    doubt: str = ""


def _about(source: str, application: str | None, device: str | None, decode: Callable[[str], str]) -> _About:
    """Decide which device an event is about.

    Drogue Cloud's source is plain ASCII, which every deliverer leaves alone; the attributes may have been mangled on
    the way, and only have to agree with it. Events from other senders have nothing but the attributes.

    Args:
        source: the event's source.
        application: the attribute as it came; None if there is none.
        device: the attribute as it came; None if there is none.
        decode: returns what an attribute says if no source tells; it may raise InvalidEventError.

    """
    if named := _named_by(source):
        for name, exact, given in zip(("application", "device"), named, (application, device), strict=True):
            if given is None:
                return _About(*named, f"attribute {name!r} is missing")
            if not _may_stand_for(exact, given):
                return _About(*named, f"attribute {name!r} is {_shown(given)}, but the source names {_shown(exact)}")
        return _About(*named)
    try:
        application, device = decode(application or ""), decode(device or "")
    except InvalidEventError as error:
        return _About("", "", str(error))
    # Some tools write names into such a source as they are. A "?" may be what a deliverer made of a character.
    if source.startswith(_CLOUD) and ("?" in source or source != f"{_CLOUD}{application}/{device}"):
        return _About(application, device, f"source {_shown(source)} is not {_CLOUD}APPLICATION/PERCENT-ENCODED-DEVICE")
    return _About(application, device)


def _named_by(source: str) -> tuple[str, str] | None:
    """Return the application and the device that Drogue Cloud's source names; None if it is another source."""
    match = _SOURCE.fullmatch(source)
    if match is None:
        return None
    try:
        return match[1], unquote_to_bytes(match[2]).decode()
    except UnicodeError:
        return None


def _may_stand_for(name: str, given: str) -> bool:
    """Tell whether an attribute, as it came, may be what a deliverer made of a name.

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


def _unchanged(value: str) -> str:
    return value


def _shown(value: str) -> str:
    """Quote the beginning of a value: it may be as long as a request."""
    return repr(value[:_MAX_SHOWN])


class _Received(CloudEvent):
    """A CloudEvent as it came: the SDK invents what is missing, which is a sender's place."""

    def __init__(self, attributes: dict[str, Any], data: Any = None) -> None:
        missing = [name for name in _REQUIRED if name not in attributes]
        if missing:
            raise CloudEventValidationError({name: [MissingRequiredAttributeError(name)] for name in missing})
        has_time = "time" in attributes
        super().__init__(attributes, data)
        if not has_time:
            del attributes["time"]


def _structured(body: bytes) -> _Received:
    """The event that a body is in structured mode (CloudEvents 1.0, JSON Event Format)."""
    members = parse_json(body)
    if not isinstance(members, dict):
        raise ValueError("a CloudEvent in JSON is an object")
    if "data" in members and "data_base64" in members:
        raise ValueError("both 'data' and 'data_base64'")
    attributes = {name: value for name, value in members.items() if value is not None and name != "dataschema"}
    payload = _member_bytes(attributes)
    if "time" in attributes:
        attributes["time"] = _time(attributes["time"])
    return _Received(attributes, payload)


def _member_bytes(attributes: dict[str, Any]) -> bytes:
    """Takes the data out of the members of an event in JSON (JSON Event Format, 3.1)."""
    if "data_base64" in attributes:
        return _base64(attributes.pop("data_base64"), "data_base64")
    if "data" not in attributes:
        return b""
    value = attributes.pop("data")
    media_type = str(attributes.get("datacontenttype", "application/json")).partition(";")[0].strip().lower()
    if isinstance(value, str) and not media_type.endswith(("/json", "+json")):
        return value.encode()
    return json.dumps(value, ensure_ascii=False).encode()


def _time(value: object) -> datetime:
    if not isinstance(value, str):
        raise ValueError("attribute 'time' is not a string")
    return datetime.fromisoformat(value.upper())  # `t` and `z` may be lower case (RFC 3339, 5.6)


def _attributes(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes that headers carry (HTTP binding, 3.1.3); those that name the device as they came."""
    attributes: dict[str, Any] = {}
    for header, value in fields.items():
        name = header.removeprefix("ce-")
        if name in _USED and name != header:
            is_exact = name in ("application", "device") or _PLAIN.fullmatch(value)
            attributes[name] = value if is_exact else _readable(name, value)
        elif header == "content-type" and value:
            attributes["datacontenttype"] = value
    if "time" in attributes:
        attributes["time"] = _time(attributes["time"])
    return attributes


def _readable(name: str, value: str) -> str:
    """Return an attribute other than those that name the device; one that is not UTF-8 is ISO 8859-1.

    Drogue Cloud's source is not decoded: its percent signs belong to it.
    """
    try:
        text = value.encode("latin-1").decode()
    except UnicodeError:
        return value
    return text if name == "source" and text.startswith(_CLOUD) else _percent_decoded(text)


def _decoded(value: str) -> str:
    """Return the name in a header of a sender whose source does not tell it: encoded by the HTTP binding, or UTF-8.

    Raises:
        InvalidEventError: it is not UTF-8.

    """
    try:
        return _percent_decoded(value.encode("latin-1").decode())
    except UnicodeError as error:
        raise InvalidEventError(f"the name {_shown(value)} in a header is not UTF-8") from error


def _percent_decoded(text: str) -> str:
    """Decode a header if a sender that follows the HTTP binding would have encoded it like this."""
    decoded = unquote(text)
    return decoded if "%" in text and quote(decoded, safe=_UNENCODED) == text else text


def _text(attributes: Mapping[str, Any], name: str) -> str | None:
    value = attributes.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidEventError(f"attribute {name!r} is not a string")
    return value


def _lorawan_payload(payload: bytes) -> bytes:
    """The device's own bytes: The Things Network hands on either these, or its whole v3 uplink message as JSON."""
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
        return _base64(message["frm_payload"], "uplink_message.frm_payload")
    except ValueError as error:
        raise InvalidEventError(str(error)) from error


def _base64(value: object, name: str) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name} is not base64") from error
