"""What clouds, old and new, answer to `fleet-fn subscribe`, and what it makes of that."""

import base64
import json
from collections.abc import Iterator

import cbor2
import pytest

from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.function import event, running
from tests.support.http import Response
from tests.support.oidc import Provider
from tests.support.scripted_broker import MQTT_3, MQTT_5, Peer, ScriptedBroker
from tests.support.statuses import STATUS
from tests.support.subscriber import Subscriber, wait_for

PAYLOAD = cbor2.dumps(STATUS)


@pytest.fixture
def broker() -> Iterator[ScriptedBroker]:
    with ScriptedBroker() as broker:
        yield broker


def binary(broker: ScriptedBroker, device: str, peer: Peer | None = None, **attributes: str | None) -> int:
    known = {name: value for name, value in event(device, **attributes).items() if value is not None}
    return broker.publish(PAYLOAD, content_type="application/cbor", properties=known, peer=peer)


def structured(broker: ScriptedBroker, device: str, **attributes: str | None) -> int:
    whole = {**event(device, datacontenttype="application/cbor", **attributes)}
    return broker.publish(json.dumps({**whole, "data_base64": base64.b64encode(PAYLOAD).decode()}).encode())


def test_the_newest_protocol_and_binary_mode_are_asked_for(
    broker: ScriptedBroker, environment: dict[str, str], device: str
) -> None:
    with Subscriber({**environment, **broker.environment}, "--group", "pumps") as subscriber:
        (connect,) = broker.connects
        assert (connect.level, connect.user, connect.password) == (MQTT_5, USER, TOKEN)
        assert (broker.subscribed, broker.binary_asked) == (["$share/pumps/app/example"], [True])
        mid = binary(broker, device)
        wait_for(lambda: broker.acknowledged == [mid])
        subscriber.logged("event", device=device, outcome="withheld")
        subscriber.end()
    assert broker.disconnects == 1


def test_a_cloud_without_mqtt_5_is_asked_with_3_1_1(
    broker: ScriptedBroker, environment: dict[str, str], device: str
) -> None:
    broker.connack = lambda connect: connect.level == MQTT_5
    with Subscriber({**environment, **broker.environment}) as subscriber:
        assert [connect.level for connect in broker.connects] == [MQTT_5, MQTT_3]
        (line,) = subscriber.lines("falling back to MQTT 3.1.1")
        assert line["reason"] == "MQTT integration: MQTT 5 is not supported"
        mid = structured(broker, device)
        wait_for(lambda: broker.acknowledged == [mid])
        subscriber.logged("event", device=device, outcome="withheld")
        subscriber.end()


def test_a_cloud_that_only_knows_the_old_prefix_is_asked_with_that(
    broker: ScriptedBroker, environment: dict[str, str]
) -> None:
    broker.suback = lambda topic: 1 if topic.startswith("$shared/") else 0x8F
    with Subscriber({**environment, **broker.environment}, "--application", "a") as subscriber:
        assert subscriber.lines("subscription refused") == []
        subscriber.end()
    assert broker.subscribed == ["$share/fleet-fn/app/a", "$shared/fleet-fn/app/a"]


def test_a_refused_application_is_told_once_and_the_others_go_on(
    broker: ScriptedBroker, environment: dict[str, str], device: str
) -> None:
    refused = {"$share/fleet-fn/app/secret"}
    broker.suback = lambda topic: 0x87 if topic in refused else 1
    options = ("--application", "secret", "--application", "example")
    with Subscriber({**environment, **broker.environment}, *options) as subscriber:
        subscriber.logged("subscribed", application="example")
        mid = binary(broker, device, broker.peer_of("example"))
        wait_for(lambda: broker.acknowledged == [mid])
        wait_for(lambda: broker.subscribed.count("$share/fleet-fn/app/secret") >= 2)
        (line,) = subscriber.lines("subscription refused")
        assert line["application"] == "secret"
        assert line["reason"] == "MQTT integration: Not authorized (no such application, or not a member)"
        refused.clear()
        subscriber.logged("subscribed", application="secret")
        assert len(broker.connects) == 2


def test_refused_credentials_are_told_once_and_tried_again(broker: ScriptedBroker, environment: dict[str, str]) -> None:
    code = [0x86]
    broker.connack = lambda _: code[0]
    with Subscriber({**environment, **broker.environment}, waits=False) as subscriber:
        wait_for(lambda: len(broker.connects) >= 2)
        (line,) = subscriber.lines("connection lost")
        assert line["reason"] == "MQTT integration: our credentials were refused (Bad user name or password)"
        assert TOKEN not in str(subscriber.log)
        code[0] = 0
        subscriber.logged("subscribed")


def test_acknowledgements_keep_the_order_of_the_messages(
    broker: ScriptedBroker, environment: dict[str, str], drogue: Drogue, device: str
) -> None:
    """Of two devices, the first one's event is answered last."""
    other = f"{device}-other"
    drogue.put("example", other, spec={})
    with Subscriber({**environment, **broker.environment}) as subscriber:

        def after_the_other(_: object) -> Response:
            subscriber.logged("event", device=other)
            assert broker.acknowledged == []
            return Response(202)

        drogue.command_answers[device] = after_the_other
        mids = [binary(broker, device), binary(broker, other)]
        wait_for(lambda: broker.acknowledged == mids)
    del drogue.command_answers[device]


def test_a_name_that_mqtt_5_forbids_is_read_in_json(
    broker: ScriptedBroker, environment: dict[str, str], drogue: Drogue
) -> None:
    """Else the message would come again for ever, and hold up all others."""
    name = "zero\ufeffwidth"
    drogue.put("example", spec={})
    drogue.put("example", name, spec={})
    with Subscriber({**environment, **broker.environment}) as subscriber:
        binary(broker, name)
        subscriber.logged("falling back to MQTT 3.1.1", reason="MQTT integration: a packet is malformed in MQTT 5")
        subscriber.logged("subscribed", 2)
        mid = structured(broker, name)
        wait_for(lambda: broker.acknowledged == [mid])
        subscriber.logged("event", device=name, outcome="withheld")


@pytest.mark.parametrize("sink", [False, True])
def test_control_characters_end_no_header(
    broker: ScriptedBroker, environment: dict[str, str], device: str, sink: bool
) -> None:
    known = {name: value for name, value in event(device).items() if value is not None}
    with running(environment) as function:
        options = ("--sink", function.url) if sink else ()
        with Subscriber({**environment, **broker.environment}, *options) as subscriber:
            broker.publish(PAYLOAD, content_type="application/cbor\r\nce-x: y; \xe9\x01", properties=known)
            broker.publish(
                PAYLOAD, content_type="application/cbor", properties={**known, "id": "a\r\nb", "x\r\ny": "z"}
            )
            mid = binary(broker, device)
            wait_for(lambda: broker.acknowledged == [1, 2, mid])
            subscriber.end()


def test_an_application_whose_connections_end_does_not_hold_up_the_others(
    broker: ScriptedBroker, environment: dict[str, str], device: str
) -> None:
    """Drogue Cloud closes each connection whose topic has a record that is no CloudEvent."""
    broker.poisoned.add("poisoned")
    options = ("--application", "poisoned", "--application", "example")
    with Subscriber({**environment, **broker.environment}, *options, waits=False) as subscriber:
        subscriber.logged("each connection ends soon", application="poisoned", seconds=60)
        peer = broker.peer_of("example")
        mid = binary(broker, device, peer)
        wait_for(lambda: mid in peer.acknowledged)
        assert len(subscriber.lines("subscribed", application="example")) == 1
        subscriber.end()


def test_an_application_whose_events_are_retried_does_not_hold_up_the_others(
    broker: ScriptedBroker, environment: dict[str, str], drogue: Drogue, device: str
) -> None:
    """A broker sends the next event of an application after the last one's acknowledgement."""
    stuck = f"{device}-stuck"
    drogue.put("example", stuck, spec={})
    drogue.command_answers[stuck] = lambda _: Response(503)
    options = ("--application", "other", "--application", "example")
    with Subscriber({**environment, **broker.environment}, *options) as subscriber:
        subscriber.logged("subscribed", 2)
        binary(broker, stuck, broker.peer_of("other"))
        subscriber.logged("event", device=stuck, outcome="retry")
        peer = broker.peer_of("example")
        mid = binary(broker, device, peer)
        wait_for(lambda: peer.acknowledged == [mid], 5)
        assert broker.peer_of("other").acknowledged == []
    del drogue.command_answers[stuck]


def test_what_all_connections_meet_is_told_once(broker: ScriptedBroker, environment: dict[str, str]) -> None:
    broker.connack = lambda _: 0x86
    options = [option for number in range(20) for option in ("--application", f"a{number}")]
    with Subscriber({**environment, **broker.environment}, *options, waits=False) as subscriber:
        wait_for(lambda: len(broker.connects) >= 25)
        assert len(subscriber.lines("connection lost")) == 1


@pytest.mark.parametrize("said", [b"HTTP/1.1 503 Service Unavailable\r\n" * 9, b"\x15\x03\x03\x00\x02\x02\x46"])
def test_what_is_no_mqtt_changes_no_version(broker: ScriptedBroker, environment: dict[str, str], said: bytes) -> None:
    """A proxy whose cloud is away says that, and so does a port that wants TLS."""
    broker.greeting = said
    with Subscriber({**environment, **broker.environment}, waits=False) as subscriber:
        (line,) = subscriber.logged("connection lost")
        assert line["reason"] == "MQTT integration: the answer is no MQTT; check scheme and port of DROGUE_MQTT_URL"
        broker.greeting = b""
        subscriber.logged("subscribed", protocol="MQTT 5")
        assert subscriber.lines("falling back") == []


def test_a_goodbye_is_told_and_the_connection_comes_back(broker: ScriptedBroker, environment: dict[str, str]) -> None:
    with Subscriber({**environment, **broker.environment}) as subscriber:
        broker.disconnect(0x8B)
        (line,) = subscriber.logged("connection lost")
        assert line["reason"] == "MQTT integration: connection closed (Server shutting down)"
        subscriber.logged("subscribed", 2)


def test_a_bearer_token_is_the_user_and_is_fetched_anew_if_refused(
    broker: ScriptedBroker, environment: dict[str, str]
) -> None:
    with Provider() as provider:
        bearer = {name: value for name, value in environment.items() if name not in ("DROGUE_USER", "DROGUE_TOKEN")}
        broker.connack = lambda _: 0x87 if len(broker.connects) == 1 else 0
        with Subscriber({**bearer, **provider.environment, **broker.environment}):
            first, second = broker.connects
        assert provider.asked == 2
        assert first.user != second.user
        assert [first.password, second.password] == [None, None]


def test_all_applications_of_the_token_are_taken_but_those_excluded(
    broker: ScriptedBroker, environment: dict[str, str]
) -> None:
    with Drogue() as drogue:
        for name in ("pumps", "fans", "lamps"):
            drogue.put(name, spec={})
        settings = {**environment, **drogue.environment, **broker.environment, "MQTT_APPLICATIONS": ""}
        with Subscriber(settings, "--exclude", "fans") as subscriber:
            subscriber.logged("subscribed", 2)
            subscriber.end()
    assert sorted(broker.subscribed) == ["$share/fleet-fn/app/lamps", "$share/fleet-fn/app/pumps"]


def test_a_token_that_sees_no_application_is_told_so(broker: ScriptedBroker, environment: dict[str, str]) -> None:
    with Drogue() as drogue:
        settings = {**environment, **drogue.environment, **broker.environment, "MQTT_APPLICATIONS": "*"}
        with Subscriber(settings, waits=False) as subscriber:
            subscriber.logged("there is no application to take events of")
            subscriber.end()


def test_an_unsupported_version_is_no_reason_to_end(broker: ScriptedBroker, environment: dict[str, str]) -> None:
    broker.connack = lambda connect: connect.level != MQTT_3 or len(broker.connects) < 4
    with Subscriber({**environment, **broker.environment}) as subscriber:
        assert len(subscriber.lines("connection lost")) == 1
