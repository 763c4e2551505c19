"""Events of Drogue Cloud: devices' messages, and changes in the device registry."""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from cloudevents.core.exceptions import CloudEventValidationError

from fleet_fn.drogue.cloud_events import (
    InvalidEventError,
    decode_name,
    read_binary,
    read_structured,
    text_attribute,
)
from fleet_fn.drogue.event_identity import identify
from fleet_fn.drogue.lorawan import LORAWAN_PORT, read_uplink
from fleet_fn.observability.trace_context import Trace

#: A device sent something.
DEVICE_EVENT: Final = "io.drogue.event.v1"
#: An object of the device registry changed.
REGISTRY_EVENT: Final = "io.drogue.registry.v1"
#: The channel of the DFU protocol, and the name of its command.
DFU: Final = "dfu"

#: Hexadecimal digits of a key.
_KEY_DIGITS: Final = 32


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
    def is_certain(self) -> bool:
        """Return whether it names its application and device, without doubt."""
        return bool(self.application and self.device) and not self.doubt

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
            return read_uplink(self.payload), None
        return self.payload, self.content_type


def read_event(headers: Iterable[tuple[str, str]], body: bytes) -> Event:
    """Read the event in an HTTP request, in binary or structured JSON mode.

    Args:
        headers: names and values; as in WSGI, values are bytes decoded as ISO 8859-1.
        body: the request's body.

    Raises:
        InvalidEventError: the request is no CloudEvent 1.0.

    """
    decode: Callable[[str], str] = decode_name
    payload = body
    try:
        fields = {name.lower(): value for name, value in headers}
        mode = fields.get("content-type", "").partition(";")[0].strip().lower()
        if mode == "application/cloudevents+json":
            (attributes, payload), decode = read_structured(body), _keep
        elif mode.startswith("application/cloudevents"):
            raise InvalidEventError(
                f"content type {mode!r} is not supported; send one event, in binary or structured JSON mode"
            )
        else:
            attributes = read_binary(fields)
    except CloudEventValidationError as error:
        raise InvalidEventError("; ".join(str(e) for errors in error.errors.values() for e in errors)) from error
    # OverflowError: a time beyond the calendar's end. RecursionError: data that nests too deeply to be written again.
    except (ValueError, OverflowError, RecursionError) as error:
        raise InvalidEventError(str(error)) from error
    find = attributes.get
    source = attributes["source"]
    about = identify(source, text_attribute(attributes, "application"), text_attribute(attributes, "device"), decode)
    return Event(
        id=attributes["id"],
        source=source,
        type=attributes["type"],
        subject=find("subject", ""),
        application=about.application,
        device=about.device,
        device_uid=text_attribute(attributes, "deviceuid") or "",
        time=find("time"),
        content_type=find("datacontenttype"),
        payload=payload,
        trace=Trace.read(find("traceparent"), find("tracestate")),
        doubt=about.doubt,
    )


def _keep(value: str) -> str:
    return value
