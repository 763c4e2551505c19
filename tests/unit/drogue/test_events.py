"""Events as Drogue Cloud and the deliverers of Knative send them, and malformed ones."""

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote, unquote

import pytest
from cloudevents.core.exceptions import CloudEventValidationError
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fleet_fn.drogue.cloud_events import InvalidEventError, ReceivedEvent, is_valid
from fleet_fn.drogue.events import Event, read_event

#: An event as the cloud makes it.
ATTRIBUTES = {
    "specversion": "1.0",
    "id": "d2f1a1c4-5bb1-4b0c-8f0e-0f6c5d4d1c11",
    "source": "drogue://fleet/pump%2F1",
    "type": "io.drogue.event.v1",
    "subject": "dfu",
    "time": "2026-11-23T06:00:00.123456789Z",
    "application": "fleet",
    "applicationuid": "a0",
    "device": "pump/1",
    "deviceuid": "d0",
    "sender": "gateway",
    "senderuid": "g0",
    "instance": "drogue",
    "partitionkey": "fleet/gateway",
}
STRUCTURED = [("Content-Type", "application/cloudevents+json; charset=utf-8")]
#: What a compliant sender leaves as it is (HTTP binding, 3.1.3.2).
UNENCODED = "".join(chr(c) for c in range(0x21, 0x7F) if chr(c) not in '"%')

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


def raw(value: str) -> str:
    """A header's value as Drogue Cloud's sender puts it and WSGI hands it over."""
    return value.encode().decode("latin-1")


def binary(body: bytes = b"", content_type: str | None = "application/cbor", /, **attributes: str | None) -> Event:
    """Reads an event in binary mode; an attribute of None is left out."""
    headers = [(f"Ce-{name.title()}", value) for name, value in (ATTRIBUTES | attributes).items() if value is not None]
    return read_event(headers + ([("Content-Type", content_type)] if content_type else []), body)


def structured(members: object = None, /, **attributes: Any) -> Event:
    """Reads an event in structured mode; an attribute of None is left out."""
    chosen = {name: value for name, value in (ATTRIBUTES | attributes).items() if value is not None}
    return read_event(STRUCTURED, json.dumps(chosen if members is None else members).encode())


def test_key_is_short_and_depends_on_id_and_source() -> None:
    keys = {structured(id=name, source=source).key for name in ("1", "2", "1" * 60_000) for source in ("1", "2", "'1'")}
    assert len(keys) == 9
    assert {len(key) for key in keys} == {32}
    assert structured(time=None).key == binary(time=None).key


# --- Both modes -------------------------------------------------------------------------------------------------------

EXPECTED = Event(
    id="d2f1a1c4-5bb1-4b0c-8f0e-0f6c5d4d1c11",
    source="drogue://fleet/pump%2F1",
    type="io.drogue.event.v1",
    subject="dfu",
    application="fleet",
    device="pump/1",
    time=datetime(2026, 11, 23, 6, 0, 0, 123456, UTC),
    content_type="application/cbor",
    payload=b"\xa1\x00\xff",
    device_uid="d0",
)


def test_an_event_in_binary_mode_is_read() -> None:
    assert binary(b"\xa1\x00\xff") == EXPECTED


def test_the_same_event_in_structured_mode_is_the_same() -> None:
    data = base64.b64encode(b"\xa1\x00\xff").decode()
    assert structured(datacontenttype="application/cbor", data_base64=data) == EXPECTED


def test_the_headers_of_a_structured_event_are_nothing_to_go_by() -> None:
    body = json.dumps(ATTRIBUTES).encode()
    assert read_event([*STRUCTURED, ("Ce-Device", "other"), ("Ce-Id", "")], body) == structured()


def test_the_device_is_the_one_that_the_event_is_about_not_its_sender() -> None:
    assert binary(sender="gateway").device == "pump/1"


def test_other_headers_may_hold_anything() -> None:
    headers = [(f"ce-{name}", value) for name, value in ATTRIBUTES.items()]
    assert read_event([*headers, ("Prefer", "reply"), ("X-Odd", "\xff\x00")], b"").device == "pump/1"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_an_event_without_a_required_attribute_is_invalid(name: str) -> None:
    for read in (binary, structured):
        with pytest.raises(InvalidEventError, match=rf"^Missing required attribute: '{name}'$"):
            read(**{name: None})


def test_all_missing_attributes_are_named() -> None:
    with pytest.raises(InvalidEventError) as caught:
        read_event([], b"{}")
    assert all(name in str(caught.value) for name in ("specversion", "id", "source", "type"))


@pytest.mark.parametrize("name", ["id", "source", "type", "subject"])
def test_an_event_with_an_empty_attribute_is_invalid(name: str) -> None:
    for read in (binary, structured):
        with pytest.raises(InvalidEventError, match=rf"'{name}'"):
            read(**{name: ""})


@pytest.mark.parametrize("version", ["0.3", "1.1", "1", "2.0", ""])
def test_only_version_1_0_is_taken(version: str) -> None:
    for read in (binary, structured):
        with pytest.raises(InvalidEventError, match=r"'specversion' must be '1\.0'"):
            read(specversion=version)


@pytest.mark.parametrize("name", ["id", "source", "type", "subject", "datacontenttype", "application", "device"])
@pytest.mark.parametrize("value", [5, True, ["x"], {"x": 1}])
def test_attributes_of_another_type_than_text_are_invalid(name: str, value: object) -> None:
    with pytest.raises(InvalidEventError, match=name):
        structured(**{name: value})


def test_optional_attributes_may_be_absent() -> None:
    for read in (binary, structured):
        event = read(source="/tool", subject=None, time=None, application=None, device=None)
        assert (event.subject, event.time, event.application, event.device) == ("", None, "", "")
    assert binary(b"", None).content_type is None
    assert structured().content_type is None


def test_members_that_are_null_are_absent() -> None:
    members = ATTRIBUTES | {"source": "/t", "time": None, "subject": None, "application": None, "dataschema": None}
    event = structured(members)
    assert (event.time, event.subject, event.application) == (None, "", "")
    with pytest.raises(InvalidEventError, match="Missing required attribute: 'id'"):
        structured(ATTRIBUTES | {"id": None})


def test_extensions_of_other_types_that_nobody_asks_for_are_fine() -> None:
    assert structured(lorawanport=223, lorawanretry=False).device == "pump/1"


# --- Names in headers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "device"),
    [
        ("pump", "pump"),
        ("pump/1", "pump/1"),
        ("pump 1", "pump 1"),
        ("pump%201", "pump 1"),
        ("100%", "100%"),
        ("100%25", "100%"),
        ("Gerät", "Gerät"),
        ("Ger%C3%A4t", "Gerät"),
        ("Ger%c3%a4t", "Ger%c3%a4t"),  # no compliant sender writes that
        ("%ZZ", "%ZZ"),
        ("%FF", "%FF"),
        ("a%20b c", "a%20b c"),
        ("%61", "%61"),
        ("%F0%9F%9A%80", "🚀"),
        ("🚀 %", "🚀 %"),
        ('"', '"'),
        ("%22", '"'),
        ("", ""),
    ],
)
def test_names_are_decoded_if_a_compliant_sender_encodes_them(value: str, device: str) -> None:
    assert binary(source="/tool", device=raw(value)).device == device


@given(names)
def test_what_a_compliant_sender_encodes_comes_back(name: str) -> None:
    assert binary(source="/tool", device=quote(name, safe=UNENCODED)).device == name


@given(names)
@example("a%20")
@example("%C3%BC")
@example("100%")
def test_what_drogue_cloud_sends_raw_comes_back_unless_it_reads_as_encoded(name: str) -> None:
    encodings = re.fullmatch(r"[!-~]*(%[0-9A-F]{2}[!-~]*)+", name) and '"' not in name
    assume(not encodings)
    assert binary(source="/tool", device=raw(name)).device == name


@given(names)
def test_in_structured_mode_names_are_what_they_are(name: str) -> None:
    assert structured(source="/tool", device=name).device == name
    assert structured(source="/tool", device=quote(name, safe="")).device == quote(name, safe="")


@pytest.mark.parametrize("value", ["\xff", "a\xc3", "\xed\xa0\x80"])
@pytest.mark.parametrize("name", ["application", "device"])
def test_a_name_that_is_not_utf_8_is_invalid_if_no_source_tells_it(name: str, value: str) -> None:
    with pytest.raises(InvalidEventError, match=r"^the name '.+' in a header is not UTF-8$"):
        binary(**{"source": "/tool", name: value}).status_payload()


# --- Who an event is about --------------------------------------------------------------------------------------------

#: Application names are host names, 63 characters at most.
applications = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True)
#: Characters that deliverers mangle, more often than chance has them.
odd_names = st.text(st.sampled_from(" \t?%/.2F0ab-\xe9\xff\xa0\u0100\u88c5\u7f6e\U0001f600"), min_size=1, max_size=12)
device_names = names | odd_names | odd_names.map(lambda name: quote(name, safe=""))


def cloud_source(application: str, device: str) -> str:
    """Write the source as Drogue Cloud does: of the device, everything but letters and digits encoded."""
    plain = [chr(byte) if byte < 0x80 and chr(byte).isalnum() else f"%{byte:02X}" for byte in device.encode()]
    return f"drogue://{application}/{''.join(plain)}"


def java(value: str) -> str:
    """Write a header as the JVM does: ISO 8859-1, and a question mark for each other UTF-16 unit."""
    units = value.encode("utf-16-be")
    return "".join(chr(units[i + 1]) if units[i] == 0 else "?" for i in range(0, len(units), 2))


#: How each sender writes an attribute into a header; HTTP strips what is around it.
SENDERS: dict[str, Callable[[str], str]] = {
    "drogue-event-source": raw,
    "knative": java,
    "knative, by character": lambda value: value.encode("latin-1", "replace").decode("latin-1"),
    "encoded": lambda value: quote(value, safe=UNENCODED),
    "encoded whole": lambda value: quote(value, safe=""),
}


def sent(sender: str, source: str, application: str, device: str, /, **attributes: str) -> Event:
    """Read a status as a sender writes it into headers, and a receiver takes it out of them."""
    write = SENDERS[sender]
    named = {"source": source} | {
        name: write(value).strip(" \t")
        for name, value in {"application": application, "device": device, "sender": device, **attributes}.items()
    }
    return binary(b"{}", "application/json", **named)


@given(application=applications, device=device_names)
@example(application="example", device="\u88c5\u7f6e")
@example(application="example", device="a%20b")
@example(application="example", device=" ")
@example(application="example", device="..")
@example(application="my-app-2", device="t\xfcr-\xe4")
def test_every_deliverer_reaches_the_device_that_the_cloud_named(application: str, device: str) -> None:
    for sender in SENDERS:
        event = sent(sender, cloud_source(application, device), application, device)
        assert (event.application, event.device) == (application, device), sender
        assert event.status_payload() == (b"{}", "application/json"), sender


@given(application=applications, device=device_names)
def test_an_encoded_source_reaches_its_device_or_none(application: str, device: str) -> None:
    """A sender that encodes the source too writes what the cloud writes for another device, which may exist.

    The attributes tell, but for names in which both encodings are the same.
    """
    source = quote(cloud_source(application, device), safe=UNENCODED)
    event = sent("encoded", source, application, device)
    if event.device != device and source != f"drogue://{application}/{quote(quote(device, safe=UNENCODED), safe='')}":
        with pytest.raises(InvalidEventError):
            event.status_payload()


@pytest.mark.parametrize("sender", SENDERS)
@given(application=applications, other=applications, device=device_names, another=device_names)
@example(application="a", other="a", device="\u88c5\u7f6e", another="\u88c5")
@example(application="a", other="b", device="x", another="x")
def test_attributes_of_another_device_are_invalid_or_look_like_it(
    sender: str, application: str, other: str, device: str, another: str
) -> None:
    write = SENDERS[sender]
    event = sent(sender, cloud_source(application, device), other, another)
    try:
        event.status_payload()
    except InvalidEventError as error:
        assert "but the source names" in str(error)
    else:
        mangled = [each(device).strip(" \t") for each in SENDERS.values()]
        assert (other, write(another).strip(" \t") in mangled) == (application, True) or (
            unquote(write(another)) == device
        )
    # Whatever the attributes say, it is this device or none.
    assert (event.application, event.device) == (application, device)


@given(application=applications, device=device_names)
def test_in_structured_mode_the_source_tells_too(application: str, device: str) -> None:
    about = {"source": cloud_source(application, device), "application": application}
    for written in (device, java(device), device.strip(" "), quote(device, safe="")):
        event = structured(**about, device=written, data={})
        assert (event.application, event.device) == (application, device)
        assert event.status_payload() == (b"{}", None)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"device": "pump/2"}, "attribute 'device' is 'pump/2', but the source names 'pump/1'"),
        ({"device": ""}, "attribute 'device' is '', but the source names 'pump/1'"),
        ({"device": "pump?1"}, "attribute 'device' is 'pump?1', but the source names 'pump/1'"),
        ({"device": "pump%252F1"}, "attribute 'device' is 'pump%252F1', but the source names 'pump/1'"),
        ({"device": "PUMP/1"}, "attribute 'device' is 'PUMP/1', but the source names 'pump/1'"),
        ({"device": "pump/1,pump/1"}, "attribute 'device' is 'pump/1,pump/1', but the source names 'pump/1'"),
        ({"application": "other"}, "attribute 'application' is 'other', but the source names 'fleet'"),
        ({"application": None}, "attribute 'application' is missing"),
        ({"device": None}, "attribute 'device' is missing"),
        ({"source": "drogue://fleet/pump%252F1"}, "attribute 'device' is 'pump/1', but the source names 'pump%2F1'"),
    ],
)
def test_an_attribute_that_contradicts_the_source_is_invalid(attributes: dict[str, str | None], reason: str) -> None:
    for read in (binary, structured):
        with pytest.raises(InvalidEventError, match=f"^{re.escape(reason)}$"):
            read(**attributes).status_payload()


@pytest.mark.parametrize(
    "source",
    [
        "drogue://fleet/pump%2",
        "drogue://fleet/pump%ZZ1",
        "drogue://fleet/pump%FF1",
        "drogue://fleet/pump%ED%A0%801",
        "drogue://fleet/",
        "drogue://fleet",
        "drogue:///pump%2F1",
        "drogue://fleet/pump%2F1/",
        "drogue://fleet/pump%2F1?x",
        "drogue://fleet/pump 1",
        "drogue://fleet/pump%2F1 x",
        "drogue://",
    ],
)
def test_a_source_that_only_begins_as_the_clouds_is_invalid(source: str) -> None:
    for read in (binary, structured):
        with pytest.raises(InvalidEventError, match=r"is not drogue://APPLICATION/PERCENT-ENCODED-DEVICE$"):
            read(source=source).status_payload()


@given(device_names)
def test_a_source_with_the_names_as_they_are_is_fine_if_it_is_certain(name: str) -> None:
    """As people write it who have only read of the form."""
    source = f"drogue://fleet/{name}"
    for event in (binary(source=raw(source), device=raw(name)), structured(source=source, device=name)):
        try:
            event.status_payload()
        except InvalidEventError:
            assert re.search(r"[?%]", name)
        else:
            assert event.device in (name, unquote(name))


@pytest.mark.parametrize(
    "name", ["sender", "senderuid", "applicationuid", "instance", "partitionkey", "dataschema", "x"]
)
@pytest.mark.parametrize("value", ["\xff", "%ZZ", "", "a\xc3", "\xe4%b"])
def test_an_attribute_that_is_not_used_refuses_no_event(name: str, value: str) -> None:
    assert binary(b"\xa1\x00\xff", **{name: value}) == EXPECTED


@pytest.mark.parametrize("value", [5, True, "", [], {"x": 1}])
@pytest.mark.parametrize("name", ["sender", "senderuid", "dataschema", "partitionkey", "x"])
def test_a_member_that_is_not_used_refuses_no_event(name: str, value: object) -> None:
    assert structured(**{name: value}) == structured()


@pytest.mark.parametrize("source", [ATTRIBUTES["source"], "drogue://fleet/%FF", "/tool"])
@pytest.mark.parametrize(
    ("type_", "subject"),
    [
        ("io.drogue.event.v1", "temperature"),
        ("io.drogue.event.v1", "t\xfcr"),
        ("io.drogue.event.v1", "??"),
        ("io.drogue.connection.v1", "connection"),
        ("io.drogue.registry.v1", "devices"),
        ("\xff", "dfu"),
    ],
)
@pytest.mark.parametrize("device", ["\xff", "??", "other", None])
def test_no_name_refuses_an_event_that_is_no_status(source: str, type_: str, subject: str, device: str | None) -> None:
    event = binary(source=source, type=type_, subject=subject, device=device)
    assert not event.is_status
    assert (event.application, event.device) == ("fleet", "pump/1") or source != ATTRIBUTES["source"]


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-23T06:00:00Z", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("2026-11-23t06:00:00z", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("2026-11-23T06:00:00.5Z", datetime(2026, 11, 23, 6, 0, 0, 500000, UTC)),
        ("2026-11-23T06:00:00.999999999Z", datetime(2026, 11, 23, 6, 0, 0, 999999, UTC)),
        ("2026-11-23T06:00:00-03:30", datetime(2026, 11, 23, 6, tzinfo=timezone(-timedelta(hours=3, minutes=30)))),
        ("2026-11-23T06:00:00+00:00", datetime(2026, 11, 23, 6, tzinfo=UTC)),
    ],
)
def test_times_are_read_with_nanoseconds_and_offsets(text: str, time: datetime) -> None:
    for read in (binary, structured):
        assert read(time=text).time == time


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "1700000000",
        "2026-11-23",
        "2026-11-23T06:00:00",
        "2026-13-01T06:00:00Z",
        "2026-11-23T25:00:00Z",
        "2026-11-23T06:00:00+25:00",
        "9999-12-31T24:00:00Z",
        "2026-11-23T06:00:00Z\u00fc",
    ],
)
def test_times_that_are_none_are_invalid(text: str) -> None:
    with pytest.raises(InvalidEventError):
        binary(time=raw(text))
    with pytest.raises(InvalidEventError):
        structured(time=text)


@pytest.mark.parametrize("value", [0, 1700000000, 1.5, True, [], {}])
def test_a_time_that_is_no_text_is_invalid(value: object) -> None:
    with pytest.raises(InvalidEventError, match=r"^attribute 'time' is not a string$"):
        structured(time=value)


# --- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content_type", ["application/json", "application/cbor", "text/plain", "x/y; z=é", None])
def test_in_binary_mode_the_body_is_the_payload_whatever_its_type(content_type: str | None) -> None:
    body = b'{"a": NaN, \xff'
    event = binary(body, content_type and raw(content_type))
    assert event.payload == body


@pytest.mark.parametrize(
    ("members", "payload"),
    [
        ({"data": {"version": "0.1.0"}}, b'{"version": "0.1.0"}'),
        ({"data": {"version": "ü"}, "datacontenttype": "application/json"}, '{"version": "ü"}'.encode()),
        ({"data": "text", "datacontenttype": "text/plain"}, b"text"),
        ({"data": "ü", "datacontenttype": "application/octet-stream"}, "ü".encode()),
        ({"data": "text"}, b'"text"'),
        ({"data": "text", "datacontenttype": "application/vnd.x+json; charset=utf-8"}, b'"text"'),
        ({"data": {"a": 1}, "datacontenttype": "application/cbor"}, b'{"a": 1}'),
        ({"data_base64": ""}, b""),
        ({"data_base64": "AP8="}, b"\x00\xff"),
        ({"data_base64": "AP8=", "datacontenttype": "application/json"}, b"\x00\xff"),
        ({}, b""),
    ],
)
def test_in_structured_mode_the_payload_is_in_data_or_data_base64(members: dict[str, Any], payload: bytes) -> None:
    assert structured(ATTRIBUTES | members).payload == payload


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"data": {}, "data_base64": ""}, "both 'data' and 'data_base64'"),
        ({"data_base64": 5}, "data_base64 is not a string"),
        ({"data_base64": ["AA=="]}, "data_base64 is not a string"),
        ({"data_base64": "AA"}, "data_base64 is not base64"),
        ({"data_base64": "A A="}, "data_base64 is not base64"),
        ({"data_base64": "AA==\n"}, "data_base64 is not base64"),
        ({"data_base64": "-_8="}, "data_base64 is not base64"),
        ({"data_base64": "ü"}, "data_base64 is not base64"),
    ],
)
def test_data_that_cannot_be_had_is_invalid(members: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidEventError, match=rf"^{re.escape(reason)}$"):
        structured(ATTRIBUTES | members)


def with_member(member: bytes) -> bytes:
    return json.dumps(ATTRIBUTES).encode()[:-1] + b", " + member + b"}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"no", "not JSON"),
        (b"[]", "is an object"),
        (b"null", "is an object"),
        (b'"text"', "is an object"),
        (with_member(b'"id": "again"'), "twice"),
        (with_member(b'"data": {"a": 1, "a": 2}'), "twice"),
        (with_member(b'"data": NaN'), "NaN"),
        (with_member(b'"data": [-Infinity]'), "Infinity"),
        (with_member(b'"data": 1e999'), "beyond"),
        (with_member(b'"data": ' + b"9" * 5000), "digits"),
        (with_member(b'"data": "\\ud800"'), "Unicode"),
        (with_member(b'"x": "\\udfff"'), "Unicode"),
        (with_member(b'"x": "\xff"'), "UTF-8"),
        (with_member(b'"x": "\xed\xa0\x80"'), "UTF-8"),
        (json.dumps(ATTRIBUTES).encode("utf-16"), "UTF-8"),
        (json.dumps(ATTRIBUTES).encode() + b"x", "not JSON"),
        (b"[" * 61440, "nested"),
        (b'{"a":' * 12288, "nested|not JSON"),
        (with_member(b'"data": ' + b"[" * 30000 + b"]" * 30000), "nested"),
        (with_member(b'"a b": 1'), "lowercase letters and numbers"),
        (with_member(b'"a\\nb": 1'), "lowercase letters and numbers"),
        (with_member(b'"": 1'), "at least 1 character"),
    ],
)
def test_what_two_readers_could_understand_differently_is_invalid(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidEventError, match=reason) as caught:
        read_event(STRUCTURED, body)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_too_deep_nesting_makes_event_invalid(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    for depth in range(5, 1200, 3):
        try:
            read_event(STRUCTURED, with_member(b'"data": ' + opening * depth + b"1" + closing * depth))
        except InvalidEventError as error:
            assert str(error) == "nested too deeply"
            assert depth > 100


@pytest.mark.parametrize(
    "content_type",
    [
        "application/cloudevents-batch+json",
        "application/cloudevents+avro",
        "application/cloudevents",
        "Application/CloudEvents-Batch+JSON; charset=utf-8",
    ],
)
def test_batches_and_other_formats_are_invalid(content_type: str) -> None:
    with pytest.raises(
        InvalidEventError, match=r"^content type 'application/cloudevents.*' is not supported; send one event"
    ):
        read_event([("Content-Type", content_type)], b"[]")


headers = st.lists(
    st.tuples(
        st.sampled_from([*(f"Ce-{name}" for name in ATTRIBUTES), "Content-Type", "ce-", "ce-data", "ce-x_y", "x"])
        | st.text(max_size=20),
        st.text(st.characters(max_codepoint=255), max_size=40)
        | st.sampled_from(["1.0", "application/cloudevents+json", *ATTRIBUTES.values()]),
    ),
    max_size=12,
)
bodies = st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*ATTRIBUTES, "data", "data_base64"]), inner),
).map(lambda value: json.dumps(value).encode())


@given(headers, bodies, st.booleans(), st.booleans())
def test_whatever_comes_is_an_event_or_invalid_for_a_reason_of_one_line(
    headers: list[tuple[str, str]], body: bytes, complete: bool, json_mode: bool
) -> None:
    if complete:
        headers = [(f"ce-{name}", value) for name, value in ATTRIBUTES.items()] + headers
    if json_mode:
        headers = headers + STRUCTURED
    try:
        event = read_event(headers, body)
        event.status_payload()
    except InvalidEventError as error:
        assert str(error)
        assert str(error).isprintable()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            **{name: st.sampled_from(["", "x"]) for name in (*ATTRIBUTES, "traceparent", "tracestate")},
            "specversion": st.sampled_from(["", "0.3", "1.0", "1.0 "]),
            "time": st.datetimes(timezones=st.sampled_from([None, UTC])),
            "datacontenttype": st.just("x"),
        },
    )
)
@example({"specversion": "1.0", "id": "1", "source": "x", "type": "x"})
def test_attributes_from_headers_are_valid_if_the_sdk_says_so(attributes: dict[str, Any]) -> None:
    try:
        ReceivedEvent(dict(attributes))
    except CloudEventValidationError:
        assert not is_valid(attributes)
    else:
        assert is_valid(attributes)


@given(st.dictionaries(st.sampled_from([*ATTRIBUTES, "data", "data_base64", "datacontenttype"]), st.text() | st.none()))
def test_whatever_the_members_are_it_is_an_event_or_invalid(members: dict[str, str | None]) -> None:
    try:
        event = structured(ATTRIBUTES | members)
    except InvalidEventError:
        return
    assert event.id
    assert event.source
    assert event.time is None or event.time.tzinfo is not None


# --- Statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "subject", "is_status"),
    [
        ("io.drogue.event.v1", "dfu", True),
        ("io.drogue.event.v1", "223", True),
        ("io.drogue.event.v1", "DFU", False),
        ("io.drogue.event.v1", "222", False),
        ("io.drogue.event.v1", None, False),
        ("io.drogue.connection.v1", "connection", False),
        ("io.drogue.registry.v1", "devices", False),
        ("io.drogue.registry.v1", "dfu", False),
    ],
)
def test_a_status_is_what_a_device_sends_on_a_channel_for_firmware(
    type_: str, subject: str | None, is_status: bool
) -> None:
    assert binary(type=type_, subject=subject).is_status is is_status


def test_a_status_on_dfu_is_answered_there_and_read_as_its_content_type_says() -> None:
    event = binary(b"payload", "application/json")
    assert (event.command, event.is_lorawan) == ("dfu", False)
    assert event.status_payload() == (b"payload", "application/json")


@pytest.mark.parametrize("name", ["application", "device"])
def test_a_status_of_nobody_is_invalid(name: str) -> None:
    with pytest.raises(InvalidEventError, match=rf"^attribute '{name}' is missing$"):
        binary(**{name: None}).status_payload()


def uplink(payload: object) -> bytes:
    message = {"end_device_ids": {"device_id": "d"}, "uplink_message": {"f_port": 223, "frm_payload": payload}}
    return json.dumps(message).encode()


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json", None])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"\xa4\x00E0.1.0\x01\x19\x02\x00\x02\xf6\x03\xf6", b"\xa4\x00E0.1.0\x01\x19\x02\x00\x02\xf6\x03\xf6"),
        (b'{"version": "0.1.0"}', b'{"version": "0.1.0"}'),
        (uplink("oQD/"), b"\xa1\x00\xff"),
        (b" \r\n\t" + uplink("oQD/"), b"\xa1\x00\xff"),
        (uplink(""), b""),
        (b"", b""),
    ],
)
def test_a_lorawan_status_is_raw_or_in_the_uplink_whatever_the_content_type_says(
    content_type: str | None, body: bytes, status: bytes
) -> None:
    event = binary(body, content_type, subject="223", lorawanport="223")
    assert (event.command, event.is_lorawan) == ("port:223", True)
    assert event.status_payload() == (status, None)


def test_an_uplink_in_the_data_of_a_structured_event_is_read_too() -> None:
    assert structured(subject="223", data=json.loads(uplink("oQD/"))).status_payload() == (b"\xa1\x00\xff", None)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b'{"uplink_message": {"frm_payload": "AA=="}', "not JSON"),
        (b'{"uplink_message": null}', "the uplink has no uplink_message.frm_payload"),
        (b'{"uplink_message": []}', "the uplink has no uplink_message.frm_payload"),
        (b'{"uplink_message": {}}', "the uplink has no uplink_message.frm_payload"),
        (uplink(None), "uplink_message.frm_payload is not a string"),
        (uplink(5), "uplink_message.frm_payload is not a string"),
        (uplink("AA"), "uplink_message.frm_payload is not base64"),
        (uplink("A\nA="), "uplink_message.frm_payload is not base64"),
        (b'{"uplink_message": {"frm_payload": "AA==", "frm_payload": "AA=="}}', "a key stands twice"),
        (b'{"uplink_message":' + b"[" * 60000, "nested too deeply"),
        (b'{"uplink_message": "\xff"}', "UTF-8"),
    ],
)
def test_a_malformed_uplink_is_invalid(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidEventError, match=reason):
        binary(body, subject="223").status_payload()


@given(bodies)
def test_whatever_an_uplink_holds_it_has_a_payload_or_is_invalid(body: bytes) -> None:
    try:
        payload, content_type = binary(body, subject="223").status_payload()
    except InvalidEventError:
        return
    assert isinstance(payload, bytes)
    assert content_type is None


def test_a_broken_header_of_a_structured_event_does_not_matter_either() -> None:
    body = json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t"}).encode()
    headers = [("Content-Type", "application/cloudevents+json"), ("ce-id", "\xff"), ("CE-X-Y", "z"), ("ce-time", "?")]
    assert read_event(headers, body).id == "1"
