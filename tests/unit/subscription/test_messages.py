"""MQTT messages as HTTP requests, which the function's own reader then reads."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.drogue.events import read_event
from fleet_fn.subscription.messages import Message, Request, to_request
from tests.support.function import event

LIMIT = 1000
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def binary(device: str = "device1", **attributes: str | None) -> Message:
    known = event(device, **attributes)
    properties = tuple((name, value) for name, value in known.items() if value is not None)
    return Message(b"status", "application/cbor", properties)


def structured(content_type: str | None, **members: object) -> Message:
    return Message(json.dumps({**event(), **members}).encode(), content_type)


def read(request: Request) -> object:
    return read_event(request.headers.items(), request.body)


@given(NAMES)
def test_binary_events_have_the_exact_device(name: str) -> None:
    known = event(name)
    found = read_event(*_parts(to_request(binary(name), LIMIT)))
    assert (found.application, found.device, found.source) == ("example", name, known["source"])
    assert (found.payload, found.content_type, found.doubt) == (b"status", "application/cbor", "")


@given(NAMES, NAMES)
def test_binary_events_of_other_clouds_keep_their_attributes(name: str, subject: str) -> None:
    message = binary(name, source="https://example.com/a%20b", subject=subject, application="é p")
    found = read_event(*_parts(to_request(message, LIMIT)))
    assert (found.application, found.device, found.subject) == ("é p", name, subject)
    assert found.source == "https://example.com/a%20b"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), NAMES, NAMES)
def test_headers_are_printable_ascii(content_type: str, name: str, value: str) -> None:
    request = to_request(Message(b"", content_type, (("specversion", "1.0"), (name, value))), LIMIT)
    for header, text in request.headers.items():
        assert header.isascii()
        assert header.replace("-", "").isalnum()
        assert text.isascii()
        assert text == "" or text.isprintable()


@pytest.mark.parametrize(
    "content_type", [None, "application/cloudevents+json", "application/CloudEvents+JSON; charset=utf-8"]
)
def test_structured_events_stay_as_they_are(content_type: str | None) -> None:
    data = base64.b64encode(b"status").decode()
    message = structured(content_type, datacontenttype="application/cbor", data_base64=data)
    request = to_request(message, LIMIT)
    assert request.body == message.payload
    found = read_event(*_parts(request))
    assert (found.device, found.payload) == ("device1", b"status")


@pytest.mark.parametrize("content_type", [None, "application/cbor", "application/cloudevents+json"])
def test_each_event_has_its_source_time_and_id(content_type: str | None) -> None:
    attributes = event(time="2026-11-29T12:00:00.5Z", id="id1")
    known = tuple((name, value) for name, value in attributes.items() if value is not None)
    is_binary = content_type == "application/cbor"
    message = Message(b"", content_type, known) if is_binary else Message(json.dumps(attributes).encode(), content_type)
    request = to_request(message, LIMIT)
    assert (request.source, request.id) == ("drogue://example/device1", "id1")
    assert request.time == datetime(2026, 11, 29, 12, 0, 0, 500_000, UTC).timestamp()


@given(st.binary(max_size=300), st.none() | st.text(max_size=30), st.text(max_size=40) | st.datetimes().map(str))
def test_no_message_raises(payload: bytes, content_type: str | None, moment: str) -> None:
    to_request(Message(payload, content_type, (("specversion", "1.0"), ("time", moment))), LIMIT)
    to_request(Message(json.dumps({"time": moment}).encode()), LIMIT)


@pytest.mark.parametrize("moment", ["0001-01-01", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
def test_times_at_the_ends_of_the_calendar_are_none_or_far_away(moment: str) -> None:
    found = to_request(Message(b"", None, (("specversion", "1.0"), ("time", moment))), LIMIT).time
    assert found is None or abs(found) > 1e10


def test_properties_that_are_no_attributes_are_left_out() -> None:
    properties = (
        ("specversion", "1.0"),
        ("ID", "a"),
        ("a b", "c"),
        ("x\r\ny", "z"),
        ("é", "f"),
        ("", "g"),
        ("k9", "h"),
    )
    assert to_request(Message(b"", None, properties), LIMIT).headers == {"ce-specversion": "1.0", "ce-k9": "h"}


def test_two_values_of_an_attribute_are_joined_as_http_does() -> None:
    properties = (("specversion", "1.0"), ("source", "a"), ("source", "b"))
    assert to_request(Message(b"", None, properties), LIMIT).headers["ce-source"] == "a,b"


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 50 * LIMIT])
def test_no_more_than_the_bound_is_kept(size: int) -> None:
    request = to_request(Message(b"x" * size), LIMIT)
    assert (len(request.body), request.is_cut) == (min(size, LIMIT + 1), size > LIMIT)


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[1]", b"7", b"[" * 900, b'{"source": 1, "time": 2, "id": []}', b'{"time": "x"}']
)
def test_what_is_no_event_has_no_source(payload: bytes) -> None:
    request = to_request(Message(payload), LIMIT)
    assert (request.source, request.time, request.id) == (None, None, None)
    assert request.headers == {"content-type": "application/cloudevents+json"}


def _parts(request: Request) -> tuple[list[tuple[str, str]], bytes]:
    return list(request.headers.items()), request.body
