"""MQTT's packets: any bytes are read or refused, and paho reads what is written, and the other way round."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from fleet_fn.sandbox.mqtt.packets import (
    V3,
    V5,
    Acknowledgment,
    Connect,
    Packet,
    Publish,
    Subscribe,
    Unsubscribe,
    read_packet,
    read_version,
    write_publish,
)
from fleet_fn.sandbox.mqtt.wire import (
    MAX_VARIABLE,
    MalformedError,
    Property,
    Reader,
    write_properties,
    write_text,
    write_variable,
)

#: Text that MQTT can carry.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
VERSIONS = st.sampled_from((V3, V5))
CONNECT = b"\x00\x04MQTT\x05\xc2\x00\x3c\x03\x21\x00\x07" + b"\x00\x02me" + b"\x00\x04user" + b"\x00\x04pass"


@given(st.integers(0, 255), st.binary(max_size=60), VERSIONS)
def test_any_bytes_are_read_or_malformed(first: int, content: bytes, version: int) -> None:
    try:
        packet = read_packet(first, content, version)
    except MalformedError:
        return
    assert packet is None or isinstance(packet, Packet)


@given(st.binary(max_size=60), VERSIONS)
def test_any_connect_is_read_or_malformed(content: bytes, version: int) -> None:
    whole = b"\x00\x04MQTT" + bytes((version,)) + content
    assert read_version(whole) == version
    try:
        packet = read_packet(0x10, whole, version)
    except MalformedError:
        return
    assert isinstance(packet, Connect)


@pytest.mark.parametrize(
    ("first", "content", "expected"),
    [
        (0x10, CONNECT, Connect(V5, True, 60, "me", "user", b"pass", ((Property.RECEIVE_MAXIMUM, 7),))),
        (0x32, b"\x00\x01a\x00\x05\x00hi", Publish("a", b"hi", 5)),
        (0x40, b"\x00\x05", Acknowledgment(5, 0)),
        (0x40, b"\x00\x05\x10", Acknowledgment(5, 0x10)),
        (0x82, b"\x00\x05\x02\x0b\x07\x00\x01a\x01", Subscribe(5, (("a", 1),), ((Property.SUBSCRIPTION_ID, 7),))),
        (0xA2, b"\x00\x05\x00\x00\x01a\x00\x01b", Unsubscribe(5, ("a", "b"))),
    ],
)
def test_a_packet_is_read_and_each_part_of_it_malformed(first: int, content: bytes, expected: Packet) -> None:
    assert read_packet(first, content, V5) == expected
    with pytest.raises(MalformedError):
        read_packet(first | 0x06, content, V5)
    for end in range(len(content)):
        try:
            shorter = read_packet(first, content[:end], V5)
        except MalformedError:
            continue
        assert shorter != expected


@pytest.mark.parametrize(
    "content",
    [
        b"\x00\x02\xff\xff",  # no UTF-8
        b"\x00\x01\x00",  # U+0000
        b"\x00\x03\xed\xa0\x80",  # a surrogate
    ],
)
def test_a_text_that_mqtt_forbids_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        Reader(content).text()


def test_a_property_that_comes_twice_or_is_unknown_is_malformed() -> None:
    Reader(b"\x0a\x26\x00\x00\x00\x00\x26\x00\x00\x00\x00").properties()
    for content in (b"\x06\x21\x00\x01\x21\x00\x01", b"\x02\x7e\x00"):
        with pytest.raises(MalformedError):
            Reader(content).properties()


@given(st.integers(0, MAX_VARIABLE))
def test_a_length_reads_as_it_was_written(value: int) -> None:
    reader = Reader(write_variable(value))
    assert reader.variable() == value
    reader.end()


@pytest.mark.parametrize("content", [b"\x80\x80\x80\x80\x01", b"\x80\x00", b"\x80"])
def test_a_length_that_is_too_long_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedError):
        Reader(content).variable()


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=8), TEXTS, st.integers(1, MAX_VARIABLE))
def test_paho_reads_the_properties_of_a_message(pairs: list[tuple[str, str]], kind: str, number: int) -> None:
    written = write_properties(
        [
            *((Property.USER, pair) for pair in pairs),
            (Property.CONTENT_TYPE, kind),
            (Property.SUBSCRIPTION_ID, number),
        ]
    )
    read: Any = Properties(PacketTypes.PUBLISH)
    _, length = read.unpack(written)
    assert length == len(written)
    assert getattr(read, "UserProperty", []) == pairs
    assert (read.ContentType, read.SubscriptionIdentifier) == (kind, [number])


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8), st.integers(1, MAX_VARIABLE))
def test_the_properties_that_paho_writes_are_read(pairs: list[tuple[str, str]], number: int) -> None:
    written: Any = Properties(PacketTypes.SUBSCRIBE)
    written.UserProperty = pairs
    written.SubscriptionIdentifier = number
    reader = Reader(written.pack())
    expected = [(Property.SUBSCRIPTION_ID, number), *((Property.USER, pair) for pair in pairs)]
    assert sorted(reader.properties(), key=str) == sorted(((int(key), value) for key, value in expected), key=str)
    reader.end()


@given(TEXTS, st.binary(max_size=300), st.one_of(st.none(), st.integers(1, 65_535)), VERSIONS)
def test_a_message_reads_as_it_was_written(topic: str, payload: bytes, packet_id: int | None, version: int) -> None:
    written = write_publish(topic, payload, packet_id, [] if version == V5 else None)
    reader = Reader(written[1:])
    content = reader.take(reader.variable())
    reader.end()
    assert read_packet(written[0], content, version) == Publish(topic, payload, packet_id)


def test_a_text_that_does_not_fit_is_refused() -> None:
    assert len(write_text("x" * 65_535)) == 65_537
    with pytest.raises(ValueError, match="65536 bytes"):
        write_text("x" * 65_536)
