"""An HTTP request with a CloudEvent: `read_event`, and the status in it as Drogue Cloud or The Things Network has it.

The input is the request: lines of headers, an empty line, the body. What must hold:

- What is no event is `InvalidEventError`, with a reason of one line; nothing else is raised.
- What an event has is text of Unicode, and a time with its offset from UTC, with which the function can reckon.
- In structured mode each attribute is what the JSON says, and the payload is its data; in binary mode the payload is
  the body. Nothing is invented.
- Application and device are those of Drogue Cloud's source, in both modes; other sources leave it to the attributes. If
  the two disagree, there is no status.
- A status of LoRaWAN's port is the bytes of the uplink's base64, or the payload as it came.
- Whatever payload it is, decoding it gives a status or `InvalidStatusError`.
"""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from fleet_fn.drogue.cloud_events import InvalidEventError
from fleet_fn.drogue.events import Event, read_event
from fleet_fn.drogue.lorawan import LORAWAN_PORT
from fleet_fn.protocol.dialects import InvalidStatusError, decode_status
from tests.fuzz.bounds import bounded

_ATTRIBUTES = {
    "id": "id",
    "source": "source",
    "type": "type",
    "subject": "subject",
    "deviceuid": "device_uid",
    "datacontenttype": "content_type",
}
_NOW = datetime(2026, 11, 26, tzinfo=UTC)


def one_input(data: bytes) -> None:
    head, _, body = data.partition(b"\n\n")
    headers = [(name.strip(), value.strip()) for name, _, value in _header_lines(head)]
    try:
        with bounded():
            event = read_event(headers, body)
    except InvalidEventError as error:
        assert str(error)
        assert str(error).isprintable()
        return
    assert event.id and event.source and event.type  # noqa: PT018 - one sentence
    if event.time is not None:
        assert isinstance((_NOW - event.time).total_seconds(), float)
    for field in (*_ATTRIBUTES.values(), "application", "device"):
        (getattr(event, field) or "").encode()
    if event.source.startswith("drogue://") and not event.doubt:
        application, _, device = event.source.removeprefix("drogue://").partition("/")
        assert event.application == application
        assert event.device in (device, unquote(device, errors="strict"))
    media_type = {name.lower(): value for name, value in headers}.get("content-type", "").partition(";")[0]
    if media_type.strip().lower() == "application/cloudevents+json":
        _check_structured(event, json.loads(body))
    else:
        assert event.payload == body
    _check_status(event)


def _header_lines(head: bytes) -> list[tuple[str, str, str]]:
    """The headers as WSGI hands them over."""
    return [line.decode("latin-1").partition(":") for line in head.split(b"\n") if line]


def _check_structured(event: Event, members: dict[str, Any]) -> None:
    for name, field in _ATTRIBUTES.items():
        told = members.get(name)
        assert getattr(event, field) == (told if told is not None else None if field == "content_type" else "")
    if not event.source.startswith("drogue://"):
        assert (event.application, event.device) == tuple(members.get(name) or "" for name in ("application", "device"))
    if members.get("data_base64") is not None:
        assert event.payload == _decoded(members["data_base64"])
    elif members.get("data") is None:
        assert event.payload == b""
    else:
        told = members["data"]
        assert (
            event.payload == told.encode()
            if isinstance(told, str) and event.payload[:1] != b'"'
            else (json.loads(event.payload) == told)
        )


def _check_status(event: Event) -> None:
    try:
        with bounded():
            payload, content_type = event.status_payload()
    except InvalidEventError as error:
        assert str(error)
        assert str(error).isprintable()
        return
    assert event.application and event.device and not event.doubt  # noqa: PT018 - one sentence
    if event.subject != LORAWAN_PORT:
        assert (payload, content_type) == (event.payload, event.content_type)
    elif payload != event.payload:
        assert payload == _decoded(json.loads(event.payload)["uplink_message"]["frm_payload"])
    try:
        decode_status(payload, content_type)
    except InvalidStatusError as refusal:
        assert str(refusal)


def _decoded(text: str) -> bytes:
    """What base64 spells; nothing may stand in it that decoders skip."""
    assert re.fullmatch("[A-Za-z0-9+/]*={0,2}", text)
    return base64.b64decode(text)
