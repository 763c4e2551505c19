"""The sandbox's MQTT integration over real sockets: paho, mosquitto's clients, and bytes that no client sends."""

import json
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import trustme
from click.testing import CliRunner
from paho.mqtt.client import MQTTMessage

from fleet_fn.cli.sandbox import command
from fleet_fn.sandbox import MqttOptions, Sandbox
from tests.support.mqtt_client import PATIENCE, V3, V5, Subscriber
from tests.support.sandbox_log import Log

ODD = "a/b %ü:@x"
SHARED = "$share/g/app/shop"


def device(name: str, of: str = "shop", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"application": of, "name": name},
        "spec": {"authentication": {"credentials": [{"pass": "secret"}]}, **spec},
    }


OBJECTS = [
    {"metadata": {"name": "shop"}},
    {"metadata": {"name": "other"}},
    *(device(name) for name in ("till", "gate", ODD, *(f"lamp{number}" for number in range(20)))),
    device("till", of="other"),
]
#: Of MQTT 5.
CONNACK = b"\x20\x09\x00\x00\x06\x25\x00\x28\x01\x2a\x01"
MEMBERS = {"reader": "reader", "stranger": "none"}


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def sandbox(log: Log) -> Iterator[Sandbox]:
    with Sandbox(OBJECTS, mqtt=MqttOptions(), members=MEMBERS, log=log) as sandbox:
        yield sandbox


@pytest.fixture
def parted(log: Log) -> Iterator[Sandbox]:
    """One with four partitions for each application."""
    with Sandbox(OBJECTS, mqtt=MqttOptions(partitions=4), log=log) as sandbox:
        yield sandbox


def port(sandbox: Sandbox) -> int:
    return int(sandbox.mqtt.url.rpartition(":")[2])


def report(
    sandbox: Sandbox, payload: bytes = b"\xa0", device: str = "till", content_type: str = "application/octet-stream"
) -> None:
    """Send a status as a device does."""
    login = quote(device, safe="") + "@shop"
    answer = requests.post(
        f"{sandbox.url}/v1/dfu",
        data=payload,
        auth=(login, "secret"),
        headers={"Content-Type": content_type},
        timeout=PATIENCE,
    )
    assert answer.status_code == 202, answer.text


def user_properties(message: MQTTMessage) -> dict[str, str]:
    return dict(properties(message).UserProperty)


def properties(message: MQTTMessage) -> Any:
    """MQTT 5's properties of a message, whose names paho makes up as it reads them."""
    assert message.properties is not None
    return message.properties


class TestCredentials:
    @pytest.mark.parametrize("version", [V3, V5])
    def test_a_user_and_an_access_token_are_let_in(self, sandbox: Sandbox, version: Any) -> None:
        with Subscriber(port(sandbox), version) as subscriber:
            assert str(subscriber.connected) == "Success"

    def test_a_token_alone_is_a_password_or_a_user_name(self, sandbox: Sandbox) -> None:
        token = sandbox_token(sandbox)
        with raw(sandbox) as client:  # paho sends no password alone
            client.sendall(connect(5, flags=0x42, texts=(b"", token.encode())) + subscribe(b"app/shop"))
            assert [read(client), read(client)] == [CONNACK, b"\x90\x04\x00\x01\x00\x01"]
        for version in (V3, V5):
            with Subscriber(port(sandbox), version, user=token, password=None) as subscriber:
                assert subscriber.subscribe("app/shop") == ["Granted QoS 1"]

    @pytest.mark.parametrize("version", [V3, V5])
    @pytest.mark.parametrize(
        ("user", "password"), [("sandbox", "wrong"), ("nobody", "sandbox"), ("wrong", None), ("sandbox", "ü")]
    )
    def test_others_are_refused_and_their_secrets_not_logged(
        self, sandbox: Sandbox, log: Log, version: Any, user: str, password: str | None
    ) -> None:
        with Subscriber(port(sandbox), version, user=user, password=password) as subscriber:
            assert str(subscriber.connected) == "Bad user name or password"
        assert log.lines == ["MQTT client (no name): refused: unknown credentials"]

    def test_without_credentials_nothing_may_be_read(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox), user=None, password=None) as subscriber:
            assert subscriber.subscribe("app/shop") == ["Not authorized"]

    @pytest.mark.parametrize("level", [4, 5])
    def test_a_session_that_is_not_clean_is_refused(self, sandbox: Sandbox, level: int) -> None:
        with raw(sandbox) as client:
            client.sendall(connect(level, flags=0xC0))
            assert read(client)[:4] == (b"\x20\x02\x00\x04" if level == 4 else b"\x20\x03\x00\x86")
            assert client.recv(1) == b""


def sandbox_token(sandbox: Sandbox) -> str:
    form = {"grant_type": "client_credentials"}
    answer = requests.post(f"{sandbox.url}/auth/token", form, auth=("sandbox", "sandbox"), timeout=PATIENCE)
    return str(answer.json()["access_token"])


class TestSubscription:
    @pytest.mark.parametrize("version", [V3, V5])
    @pytest.mark.parametrize(
        "topic", ["app/shop", "a/shop", "application/shop", "$share/g/app/shop", "$shared/g/a/shop"]
    )
    def test_its_messages_have_its_topic_without_the_share(self, sandbox: Sandbox, version: Any, topic: str) -> None:
        with Subscriber(port(sandbox), version) as subscriber:
            assert subscriber.subscribe(topic) == ["Granted QoS 1"]
            report(sandbox)
            [message] = subscriber.await_messages(1)
        assert message.topic == "/".join(topic.split("/")[-2:])
        assert (message.qos, message.retain, message.dup) == (1, False, False)

    @pytest.mark.parametrize(
        ("topic", "reason"),
        [
            ("app/+", "Wildcard subscription not supported"),
            ("#", "Wildcard subscription not supported"),
            ("$share/g/app/#", "Wildcard subscription not supported"),
            ("apps/shop", "Topic filter invalid"),
            ("app/shop/till", "Topic filter invalid"),
            ("shop", "Topic filter invalid"),
            ("$share/g/app", "Topic filter invalid"),
            ("app/nothing", "Not authorized"),
        ],
    )
    def test_others_are_refused_one_by_one(self, sandbox: Sandbox, topic: str, reason: str) -> None:
        with Subscriber(port(sandbox)) as subscriber:
            assert subscriber.subscribe("app/shop", topic, "app/other") == ["Granted QoS 1", reason, "Granted QoS 1"]
        with Subscriber(port(sandbox), V3) as subscriber:
            assert subscriber.subscribe(topic, "app/shop") == ["Unspecified error", "Granted QoS 1"]

    def test_membership_is_checked(self, sandbox: Sandbox) -> None:
        for user, granted in (("reader", "Granted QoS 1"), ("stranger", "Not authorized")):
            with Subscriber(port(sandbox), user=user) as subscriber:
                assert subscriber.subscribe("app/shop") == [granted]

    @pytest.mark.parametrize(("wanted", "granted"), [(0, 0), (1, 1), (2, 1)])
    def test_qos_is_0_or_1(self, sandbox: Sandbox, wanted: int, granted: int) -> None:
        with Subscriber(port(sandbox)) as subscriber:
            assert subscriber.subscribe("app/shop", qos=wanted) == [f"Granted QoS {granted}"]
            report(sandbox)
            assert subscriber.await_messages(1)[0].qos == granted

    def test_it_ends_by_its_topic_and_a_shared_one_never_does(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe("app/shop", "$share/g/app/other")
            assert subscriber.unsubscribe("app/shop") == ["Success"]
            assert subscriber.unsubscribe("app/shop") == ["No subscription found"]
            assert subscriber.unsubscribe("$share/g/app/other") == ["No subscription found"]
            report(sandbox)
            sandbox.put(device("till", of="other", note=1))
            [message] = subscriber.await_messages(1)
            assert message.topic == "app/other"

    def test_an_unknown_content_mode_ends_the_connection(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as subscriber:
            assert subscriber.subscribe("app/shop", mode="strange") == []
            assert subscriber.await_end() == "Unspecified error"


class TestMessage:
    def test_in_binary_mode_its_attributes_are_user_properties(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe("app/shop", mode="binary", identifier=300)
            report(sandbox, b"\xff\x00", ODD, "application/cbor")
            [message] = subscriber.await_messages(1)
        assert message.payload == b"\xff\x00"
        given = properties(message)
        assert (given.ContentType, given.SubscriptionIdentifier) == ("application/cbor", [300])
        found = user_properties(message)
        assert "datacontenttype" not in found
        assert found["time"].endswith("+00:00")
        expected = {
            "specversion": "1.0",
            "type": "io.drogue.event.v1",
            "subject": "dfu",
            "application": "shop",
            "device": ODD,
        }
        assert expected.items() <= found.items()

    @pytest.mark.parametrize("version", [V3, V5])
    @pytest.mark.parametrize(
        ("payload", "content_type", "data"),
        [
            (b'{ "a": [1, "\xc3\xbc"] }', "application/json", {"data": {"a": [1, "ü"]}}),
            (b"12", "text/plain", {"data": "12"}),
            (b"\xff", "text/plain", {"data_base64": "/w=="}),
            (b"\xa0", "application/cbor", {"data_base64": "oA=="}),
            (b"", "application/cbor", {"data_base64": ""}),
        ],
    )
    def test_in_structured_mode_it_is_json(
        self, sandbox: Sandbox, version: Any, payload: bytes, content_type: str, data: dict[str, Any]
    ) -> None:
        with Subscriber(port(sandbox), version) as subscriber:
            subscriber.subscribe("app/shop", mode="structured" if version == V5 else None)
            report(sandbox, payload, content_type=content_type)
            [message] = subscriber.await_messages(1)
        found = json.loads(message.payload)
        assert {"device": "till", "datacontenttype": content_type, **data}.items() <= found.items()
        assert len({"data", "data_base64"} & found.keys()) == 1
        assert found["time"].endswith("Z")
        if version == V5:
            given = properties(message)
            assert given.ContentType == "application/cloudevents+json; charset=utf-8"
            assert given.PayloadFormatIndicator == 1
            assert not hasattr(given, "UserProperty")

    def test_changes_of_devices_come_without_data(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as binary, Subscriber(port(sandbox)) as structured:
            binary.subscribe("app/shop", mode="binary")
            structured.subscribe("app/shop")
            sandbox.put(device("till", note=1))
            [message] = binary.await_messages(1)
            assert (message.payload, user_properties(message)["type"]) == (b"", "io.drogue.registry.v1")
            assert {"data", "data_base64"}.isdisjoint(json.loads(structured.await_messages(1)[0].payload))


class TestGroup:
    def test_the_next_message_comes_after_the_acknowledgment(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox), acknowledges=False) as subscriber:
            subscriber.subscribe(SHARED)
            for payload in (b"1", b"2", b"3"):
                report(sandbox, payload)
            [first] = subscriber.await_messages(1)
            assert subscriber.subscribe("app/other") == ["Granted QoS 1"]  # the server had time to send more
            assert len(subscriber.messages) == 1
            subscriber.acknowledge(first)
            subscriber.await_messages(2)

    @pytest.mark.parametrize("version", [V3, V5])
    def test_who_comes_again_gets_what_it_did_not_acknowledge(self, sandbox: Sandbox, version: Any) -> None:
        with Subscriber(port(sandbox), version, acknowledges=False) as subscriber:
            subscriber.subscribe(SHARED)
            report(sandbox, b"1")
            report(sandbox, b"2")
            subscriber.acknowledge(subscriber.await_messages(1)[0])
            subscriber.await_messages(2)
        report(sandbox, b"3")
        with Subscriber(port(sandbox), V5) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            assert [message.payload for message in subscriber.await_messages(2)] == [b"2", b"3"]
        assert sandbox.wait_for_deliveries("shop", PATIENCE)

    def test_a_new_one_gets_the_events_from_now_on(self, sandbox: Sandbox) -> None:
        report(sandbox, b"early")
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            report(sandbox, b"late")
            assert subscriber.await_messages(1)[0].payload == b"late"

    def test_without_a_share_it_is_the_client_id_or_one_of_its_own(self, sandbox: Sandbox) -> None:
        for client_id, expected in (("me", [b"1", b"2"]), ("", [b"2"])):
            with Subscriber(port(sandbox), client_id=client_id) as subscriber:
                subscriber.subscribe("app/other" if client_id else "app/shop")
                subscriber.subscribe("app/shop")
            report(sandbox, b"1")
            with Subscriber(port(sandbox), client_id=client_id) as subscriber:
                subscriber.subscribe("app/shop", mode="binary")
                report(sandbox, b"2")
                assert [each.payload for each in subscriber.await_messages(len(expected))] == expected

    def test_others_get_every_event(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as one, Subscriber(port(sandbox)) as other:
            one.subscribe("$share/one/app/shop", mode="binary")
            other.subscribe("$share/other/app/shop", mode="binary")
            report(sandbox, b"1")
            assert [each.await_messages(1)[0].payload for each in (one, other)] == [b"1", b"1"]

    def test_members_share_the_partitions_and_the_order_of_a_device_holds(self, parted: Sandbox) -> None:
        names = [f"lamp{number}" for number in range(20)]
        with Subscriber(port(parted)) as one, Subscriber(port(parted)) as other:
            for each in (one, other):
                each.subscribe(SHARED, mode="binary")
            for payload in (b"1", b"2", b"3"):
                for name in names:
                    report(parted, payload, name)
            one.await_until(lambda: len(one.messages) + len(other.messages) == 60)
            assert one.messages
            assert other.messages
            seen = [(user_properties(each)["device"], each.payload) for each in one.messages + other.messages]
        by_device = {name: [payload for of, payload in seen if of == name] for name in names}
        assert by_device == {name: [b"1", b"2", b"3"] for name in names}

    def test_a_member_takes_over_from_one_that_leaves(self, parted: Sandbox) -> None:
        with Subscriber(port(parted)) as stays:
            with Subscriber(port(parted), acknowledges=False) as leaves:
                for each in (stays, leaves):
                    each.subscribe(SHARED, mode="binary")
                for number in range(20):
                    report(parted, b"1", f"lamp{number}")
                leaves.await_messages(1)
            stays.await_messages(20)
            assert {user_properties(each)["device"] for each in stays.messages} == {f"lamp{n}" for n in range(20)}

    def test_with_one_partition_one_member_gets_all(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox)) as one, Subscriber(port(sandbox)) as other:
            for each in (one, other):
                each.subscribe(SHARED)
            for number in range(10):
                report(sandbox, b"1", f"lamp{number}")
            one.await_messages(10)
            assert other.messages == []

    def test_receive_maximum_bounds_what_is_in_progress(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox), acknowledges=False, ReceiveMaximum=1) as subscriber:
            subscriber.subscribe("app/shop", "app/other")
            report(sandbox)
            sandbox.put(device("till", of="other", note=1))
            [first] = subscriber.await_messages(1)
            subscriber.subscribe("app/shop")
            assert len(subscriber.messages) == 1
            subscriber.acknowledge(first)
            subscriber.await_messages(2)

    def test_acknowledgments_out_of_order_end_the_connection(self, sandbox: Sandbox) -> None:
        """Drogue Cloud's server checks the order over all subscriptions of a connection."""
        with Subscriber(port(sandbox), acknowledges=False) as subscriber:
            for group in ("one", "other"):
                subscriber.subscribe(f"$share/{group}/app/shop")
            report(sandbox)
            first, second = subscriber.await_messages(2)
            subscriber.acknowledge(second)
            assert subscriber.await_end() == "Implementation specific error"
            subscriber.acknowledge(first)

    def test_a_refused_message_ends_the_connection_and_comes_again(self, sandbox: Sandbox) -> None:
        with raw(sandbox) as client:
            client.sendall(connect(5))
            assert read(client)[0] == 0x20
            client.sendall(subscribe(SHARED.encode()))
            assert read(client)[0] == 0x90
            report(sandbox, b"1")
            assert read(client)[0] == 0x32
            client.sendall(packet(0x40, b"\x00\x01\x83"))
            assert read(client) == b"\xe0\x02\x00\x00"
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            assert subscriber.await_messages(1)[0].payload == b"1"

    def test_a_message_above_the_clients_maximum_ends_the_connection(self, sandbox: Sandbox, log: Log) -> None:
        with Subscriber(port(sandbox), MaximumPacketSize=2000) as subscriber:
            subscriber.subscribe(SHARED)
            report(sandbox, bytes(3000))
            subscriber.await_end()
            assert subscriber.messages == []
        log.await_line("above its Maximum Packet Size of 2000")


class TestCommand:
    @pytest.mark.parametrize("version", [V3, V5])
    def test_a_message_to_its_topic_reaches_the_device(self, sandbox: Sandbox, version: Any) -> None:
        with ThreadPoolExecutor(1) as pool, Subscriber(port(sandbox), version) as subscriber:
            subscriber.subscribe("app/shop")
            login = ("gate@shop", "secret")
            waiting = pool.submit(requests.post, f"{sandbox.url}/v1/dfu?ct=30", b"{}", auth=login, timeout=60)
            subscriber.await_messages(1)
            assert subscriber.publish("Command/shop/gate/dfu", b'{ "op": "SYNC" }') == "Success"
            answer = waiting.result(PATIENCE)
        assert (answer.status_code, answer.content, answer.headers["command"]) == (200, b'{"op":"SYNC"}', "dfu")

    @pytest.mark.parametrize(
        ("user", "topic", "reason"),
        [
            ("sandbox", "command/shop/gate", "Implementation specific error"),
            ("sandbox", "commands/shop/gate/dfu", "Implementation specific error"),
            ("sandbox", "command/shop/nothing/dfu", "Not authorized"),
            ("sandbox", "command/nothing/gate/dfu", "Not authorized"),
            ("reader", "command/shop/gate/dfu", "Not authorized"),
        ],
    )
    def test_any_other_is_refused(self, sandbox: Sandbox, user: str, topic: str, reason: str) -> None:
        with Subscriber(port(sandbox), user=user) as subscriber:
            assert subscriber.publish(topic, b"{}") == reason
            assert subscriber.subscribe("app/shop") == ["Granted QoS 1"]
        with Subscriber(port(sandbox), V3, user=user) as subscriber:
            assert subscriber.publish(topic, b"{}") == "none"
            assert subscriber.disconnected is not None


def packet(first: int, content: bytes) -> bytes:
    length, value = b"", len(content)
    while True:
        value, byte = value >> 7, value & 0x7F
        length += bytes((byte | (0x80 if value else 0),))
        if not value:
            return bytes((first,)) + length + content


def text(content: bytes) -> bytes:
    return len(content).to_bytes(2, "big") + content


def connect(
    level: int, flags: int = 0xC2, keep_alive: int = 0, texts: tuple[bytes, ...] = (b"raw", b"sandbox", b"sandbox")
) -> bytes:
    more = b"\x00" if level == 5 else b""
    head = text(b"MQTT") + bytes((level, flags)) + keep_alive.to_bytes(2, "big") + more
    return packet(0x10, head + b"".join(map(text, texts)))


def subscribe(topic: bytes) -> bytes:
    """A SUBSCRIBE of MQTT 5."""
    return packet(0x82, b"\x00\x01\x00" + text(topic) + b"\x01")


def raw(sandbox: Sandbox) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port(sandbox)), PATIENCE)


def read(client: socket.socket) -> bytes:
    """One packet, whose length has one byte or two."""
    head = client.recv(2, socket.MSG_WAITALL)
    if len(head) < 2:
        return head
    length = head[1]
    if length & 0x80:
        head += client.recv(1)
        length = (length & 0x7F) | head[2] << 7
    return head + client.recv(length, socket.MSG_WAITALL)


class TestWire:
    @pytest.mark.parametrize(
        "first",
        [
            b"GET / HTTP/1.1\r\n\r\n",
            connect(3),
            connect(6),
            packet(0x10, b"\x00\x04MQTT"),
            packet(0x30, b"\x00\x01a"),
            b"\x10\xff\xff\xff\xff\x7f",
            connect(4, flags=0xC3),
        ],
    )
    def test_what_is_no_connect_gets_no_answer(self, sandbox: Sandbox, first: bytes) -> None:
        with raw(sandbox) as client:
            client.sendall(first)
            assert client.recv(1) == b""

    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            (packet(0x32, bytes(16 * 1024 + 1)), 0x95),
            (b"\x30\xff\xff\xff\xff\x01", 0x81),
            (packet(0x36, b"\x00\x01a\x00\x01\x00"), 0x81),
            (packet(0x82, b"\x00\x01\x00"), 0x81),
            (packet(0x82, b"\x00\x00\x00\x00\x01a\x01"), 0x81),
            (packet(0x80, b"\x00\x01\x00\x00\x01a\x01"), 0x81),
            (packet(0x40, b"\x00\x07"), 0x83),
            (packet(0x20, b"\x00\x00"), 0x81),
            (connect(5), 0x83),
        ],
    )
    def test_what_breaks_the_rules_ends_the_connection(self, sandbox: Sandbox, bad: bytes, reason: int) -> None:
        for level in (5, 4):
            with raw(sandbox) as client:
                client.sendall(connect(level))
                assert read(client)[0] == 0x20
                client.sendall(bad if level == 5 else bad.replace(b"MQTT\x05", b"MQTT\x04"))
                assert read(client) == (bytes((0xE0, 2, reason, 0)) if level == 5 else b"")

    def test_the_largest_packet_is_16_kib(self, sandbox: Sandbox) -> None:
        topic = b"command/shop/till/dfu"
        with Subscriber(port(sandbox), V5) as subscriber:
            size = 16 * 1024 - len(topic) - 5
            assert subscriber.publish(topic.decode(), bytes(size)) == "Success"
            assert subscriber.publish(topic.decode(), bytes(size + 1)) == "none"
            assert subscriber.await_end() == "Packet too large"

    def test_a_client_that_is_silent_for_too_long_is_turned_out(self, sandbox: Sandbox) -> None:
        with raw(sandbox) as client:
            client.sendall(connect(5, keep_alive=1))
            assert read(client)[0] == 0x20
            assert read(client) == b"\xe0\x02\x8d\x00"

    def test_a_ping_is_answered(self, sandbox: Sandbox) -> None:
        with raw(sandbox) as client:
            client.sendall(connect(4) + b"\xc0\x00")
            assert read(client) == b"\x20\x02\x00\x00"
            assert read(client) == b"\xd0\x00"

    def test_bytes_may_come_one_by_one(self, sandbox: Sandbox) -> None:
        with raw(sandbox) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in connect(5):
                client.send(bytes((byte,)))
            assert read(client) == CONNACK

    def test_stopping_ends_all_connections(self) -> None:
        with Sandbox(OBJECTS, mqtt=MqttOptions()) as sandbox:
            client = raw(sandbox)
            client.sendall(connect(5))
            assert read(client)[0] == 0x20
            with Subscriber(port(sandbox), acknowledges=False) as subscriber:
                subscriber.subscribe("app/shop")
                report(sandbox)
                subscriber.await_messages(1)
                sandbox.stop()
                subscriber.await_end()
        assert client.recv(1) == b""
        client.close()


class TestFaults:
    def test_connections_are_dropped_and_may_come_again(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox), acknowledges=False) as subscriber:
            subscriber.subscribe(SHARED)
            report(sandbox, b"1")
            subscriber.await_messages(1)
            sandbox.mqtt.drop_connections()
            subscriber.await_end()
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            assert subscriber.await_messages(1)[0].payload == b"1"

    @pytest.mark.parametrize("version", [V3, V5])
    def test_credentials_are_refused(self, sandbox: Sandbox, version: Any) -> None:
        sandbox.mqtt.faults.refuses_credentials = True
        with Subscriber(port(sandbox), version) as subscriber:
            assert str(subscriber.connected) == "Bad user name or password"
        sandbox.mqtt.faults.refuses_credentials = False
        with Subscriber(port(sandbox), version) as subscriber:
            assert str(subscriber.connected) == "Success"

    def test_silence_lasts_until_the_client_gives_up(self, sandbox: Sandbox) -> None:
        with Subscriber(port(sandbox), keep_alive=1) as subscriber:
            subscriber.subscribe(SHARED)
            sandbox.mqtt.faults.is_silent = True
            report(sandbox, b"1")
            assert subscriber.await_end() == "Keep alive timeout"
            assert subscriber.messages == []
        sandbox.mqtt.faults.is_silent = False
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            assert subscriber.await_messages(1)[0].payload == b"1"

    def test_a_record_that_is_no_event_ends_each_connection_until_it_is_gone(self, sandbox: Sandbox) -> None:
        sandbox.mqtt.faults.poisoned.add("shop")
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED)
            report(sandbox, b"1")
            assert subscriber.await_end() == "Normal disconnection"
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED)
            assert subscriber.await_end() == "Normal disconnection"
            assert subscriber.messages == []
        sandbox.mqtt.faults.poisoned.clear()
        with Subscriber(port(sandbox)) as subscriber:
            subscriber.subscribe(SHARED, mode="binary")
            assert subscriber.await_messages(1)[0].payload == b"1"


class TestTls:
    def test_it_speaks_tls_with_a_certificate(self) -> None:
        authority = trustme.CA()
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
        authority.issue_cert("127.0.0.1").configure_cert(server)
        authority.configure_trust(client)
        with Sandbox(OBJECTS, mqtt=MqttOptions(tls=server)) as sandbox:
            assert sandbox.mqtt.url.startswith("mqtts://")
            with Subscriber(port(sandbox), tls=client) as subscriber:
                subscriber.subscribe(SHARED, mode="binary")
                report(sandbox, b"1")
                assert subscriber.await_messages(1)[0].payload == b"1"
            with raw(sandbox) as plain:
                plain.sendall(connect(5))
                with suppress(ConnectionResetError):
                    assert read(plain)[:1] in (b"", b"\x15")  # nothing, or an alert


class TestMosquitto:
    @pytest.fixture(autouse=True)
    def _clients(self) -> None:
        if not shutil.which("mosquitto_sub"):
            pytest.skip("mosquitto_sub is not installed")

    @pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
    def test_mosquitto_sub_prints_events_and_mosquitto_pub_sends_commands(
        self, sandbox: Sandbox, log: Log, version: str
    ) -> None:
        login = ["-p", str(port(sandbox)), "-V", version, "-u", "sandbox", "-P", "sandbox", "-q", "1"]
        reading = ["mosquitto_sub", *login, "-t", SHARED, "-F", "%t %p", "-C", "1"]
        with subprocess.Popen(reading, stdout=subprocess.PIPE, text=True) as process:
            log.await_line("subscribed to shop, group g")
            report(sandbox, b'{"a": 1}', content_type="application/json")
            topic, _, payload = process.communicate(timeout=PATIENCE)[0].partition(" ")
        assert (process.returncode, topic, json.loads(payload)["data"]) == (0, "app/shop", {"a": 1})
        subprocess.run(
            ["mosquitto_pub", *login, "-t", "command/shop/till/dfu", "-m", "{}"], check=True, timeout=PATIENCE
        )
        assert "shop/till command dfu: 2 bytes, lost, since the device does not wait" in log.lines


class TestCommandLine:
    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            (["--mqtt-key", "x"], "--mqtt-key is for the MQTT integration: give --mqtt-port, too"),
            (["--mqtt-partitions", "2"], "--mqtt-partitions is for the MQTT integration: give --mqtt-port, too"),
            (
                ["--mqtt-port", "0", "--mqtt-key", "x"],
                "--mqtt-key is the key of a certificate: give --mqtt-cert, too",
            ),
            (["--mqtt-port", "0", "--mqtt-cert", "/nowhere"], "--mqtt-cert: /nowhere: No such file or directory"),
            (
                ["--mqtt-port", "0", "--mqtt-cert", __file__],
                f"--mqtt-cert: {__file__} holds no certificate with its unencrypted key, as PEM",
            ),
        ],
    )
    def test_options_that_make_no_sense_are_refused(self, arguments: list[str], problem: str) -> None:
        result = CliRunner().invoke(command, ["--port", "0", *arguments])
        assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"Error: {problem}\n")

    def test_a_port_that_is_taken_is_told_in_one_line(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            result = CliRunner().invoke(command, ["--port", "0", "--mqtt-port", str(number)])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"Error: --mqtt-port is {number}, but another process listens on ")

    def test_it_prints_the_settings_of_a_subscriber(self, tmp_path: Path) -> None:
        certificate = trustme.CA().issue_cert("127.0.0.1")
        certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "tls.pem")
        arguments = ["--port", "0", "--mqtt-port", "0", "--mqtt-cert", str(tmp_path / "tls.pem")]
        with subprocess.Popen(
            [sys.executable, "-m", "fleet_fn", "sandbox", *arguments], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert "  events go to  MQTT only\n" in (next(lines), next(lines))
            assert " DROGUE_MQTT_URL=mqtts://127.0.0.1:" in next(lines)
            process.terminate()
