"""The CloudEvents that Drogue Cloud makes of what devices send and of what changes in the registry."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fleet_fn.cli.sandbox.registry import now

_INSTANCE: Final = "sandbox"


class NotAcceptable(Exception):
    """A payload that claims to be JSON, and isn't."""


@dataclass(frozen=True, slots=True)
class Event:
    """A CloudEvent, in binary mode."""

    attributes: Mapping[str, str]
    data: bytes

    def __str__(self) -> str:
        of = self.attributes
        return f"{of['application']}/{of['device']} {of['subject']}"

    def headers(self) -> dict[str, bytes]:
        """The event's HTTP headers: UTF-8 as it is, not percent-encoded, since Drogue Cloud does no better."""
        return {
            "Content-Type" if name == "datacontenttype" else f"ce-{name}": value.encode()
            for name, value in self.attributes.items()
        }


def device_event(
    application: Mapping[str, Any],
    sender: Mapping[str, Any],
    device: Mapping[str, Any],
    channel: str,
    payload: bytes,
    content_type: str | None,
) -> Event:
    """The event of a payload that `sender`, a gateway or the device itself, transmitted about `device`.

    Raises:
        NotAcceptable: it claims to be JSON and isn't.

    """
    if content_type is None:
        content_type = "application/json" if _is_json(payload) else "application/octet-stream"
    elif content_type.startswith(("application/json", "text/json")) or content_type.endswith("+json"):
        if not _is_json(payload):
            raise NotAcceptable
        content_type = "application/json"  # whatever kind of JSON it was
    return _event("io.drogue.event.v1", application, sender, device, channel, payload, content_type)


def registry_event(application: Mapping[str, Any], device: Mapping[str, Any]) -> Event:
    """The event that tells that a device changed in the registry."""
    return _event("io.drogue.registry.v1", application, device, device, "devices", b"", "application/octet-stream")


def _event(
    kind: str,
    application: Mapping[str, Any],
    sender: Mapping[str, Any],
    device: Mapping[str, Any],
    subject: str,
    data: bytes,
    content_type: str,
) -> Event:
    of_application, of_sender, of_device = application["metadata"], sender["metadata"], device["metadata"]
    encoded = _percent_encoded(of_application["name"])
    return Event(
        {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "type": kind,
            "source": f"drogue://{encoded}/{_percent_encoded(of_device['name'])}",
            "subject": subject,
            "time": now(),
            "datacontenttype": content_type,
            "application": of_application["name"],
            "applicationuid": of_application["uid"],
            "device": of_device["name"],
            "deviceuid": of_device["uid"],
            "sender": of_sender["name"],
            "senderuid": of_sender["uid"],
            "instance": _INSTANCE,
            "partitionkey": f"{encoded}/{_percent_encoded(of_sender['name'])}",
        },
        data,
    )


def _percent_encoded(name: str) -> str:
    """Everything but letters and digits; `urllib` would leave some punctuation."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"%{byte:02X}" for byte in name.encode())


def _is_json(payload: bytes) -> bool:
    try:
        json.loads(payload.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
