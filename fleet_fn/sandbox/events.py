"""The CloudEvents that Drogue Cloud makes of messages and registry changes."""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fleet_fn.sandbox.registry import now

_INSTANCE: Final = "sandbox"


class NotAcceptableError(Exception):
    """A payload claims to be JSON, and is not."""


@dataclass(frozen=True, slots=True)
class Event:
    """A CloudEvent; one without data has no `datacontenttype` either."""

    attributes: dict[str, str]
    data: bytes | None

    def __str__(self) -> str:
        of = self.attributes
        return f"{of['application']}/{of['device']} {of['subject']}"


def device_event(
    application: Mapping[str, Any],
    sender: Mapping[str, Any],
    device: Mapping[str, Any],
    channel: str,
    payload: bytes,
    content_type: str | None,
) -> Event:
    """Return the event of a payload from `sender`, the device itself or its gateway.

    Raises:
        NotAcceptableError: the payload claims to be JSON and is not.

    """
    data, content_type = normalize_payload(payload, content_type)
    return _event("io.drogue.event.v1", application, sender, device, channel, data, content_type)


def registry_event(application: Mapping[str, Any], device: Mapping[str, Any]) -> Event:
    """Return the event of a change of a device in the registry."""
    return _event("io.drogue.registry.v1", application, device, device, "devices", None, None)


def _event(
    kind: str,
    application: Mapping[str, Any],
    sender: Mapping[str, Any],
    device: Mapping[str, Any],
    subject: str,
    data: bytes | None,
    content_type: str | None,
) -> Event:
    of_application, of_sender, of_device = application["metadata"], sender["metadata"], device["metadata"]
    name, key = of_application["name"], _percent_encode(of_sender["name"])
    return Event(
        {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "type": kind,
            # The application is raw, as Drogue Cloud writes it. Only this attribute survives every deliverer unchanged.
            "source": f"drogue://{name}/{_percent_encode(of_device['name'])}",
            "subject": subject,
            "time": now(),
            **({} if content_type is None else {"datacontenttype": content_type}),
            "application": name,
            "applicationuid": of_application["uid"],
            "device": of_device["name"],
            "deviceuid": of_device["uid"],
            "sender": of_sender["name"],
            "senderuid": of_sender["uid"],
            "instance": _INSTANCE,
            "partitionkey": f"{_percent_encode(name)}/{key}",
        },
        data,
    )


def _percent_encode(name: str) -> str:
    """Encode everything but letters and digits; `urllib` would leave some punctuation."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"%{byte:02X}" for byte in name.encode())


def normalize_payload(payload: bytes, content_type: str | None) -> tuple[bytes, str]:
    """Return a payload and its content type as Drogue Cloud passes them on.

    JSON is written anew.

    Raises:
        NotAcceptableError: the payload claims to be JSON and is not.

    """
    claims_json = content_type is not None and (
        content_type.startswith(("application/json", "text/json")) or content_type.endswith("+json")
    )
    if content_type is not None and not claims_json:
        return payload, content_type
    try:
        value = json.loads(payload.decode(), parse_constant=_refuse_constant)
        written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        if claims_json:
            raise NotAcceptableError from None
        return payload, "application/octet-stream"
    return written, "application/json"  # for every kind of JSON


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
