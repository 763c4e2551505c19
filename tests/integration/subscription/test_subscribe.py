"""`fleet-fn subscribe` between a real broker and a Drogue Cloud: what is taken, answered and acknowledged."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest

from tests.support.drogue import TOKEN, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT, event, running
from tests.support.http import Request, Response, Server
from tests.support.mosquitto import Mosquitto, Publisher
from tests.support.processes import workers
from tests.support.registry import need
from tests.support.statuses import STATUS, ago
from tests.support.subscriber import Subscriber, wait_for

CBOR = "application/cbor"
PAYLOAD = cbor2.dumps(STATUS)


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    need("mosquitto")
    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="module")
def publisher(broker: Mosquitto) -> Iterator[Publisher]:
    with broker.publisher() as publisher:
        yield publisher


@pytest.fixture(scope="module")
def subscriber(broker: Mosquitto, environment: dict[str, str]) -> Iterator[Subscriber]:
    with Subscriber({**environment, **broker.environment}) as subscriber:
        yield subscriber


@pytest.fixture
def own() -> Iterator[Mosquitto]:
    """A broker that a test may end."""
    need("mosquitto")
    with Mosquitto() as broker:
        yield broker


def devices(drogue: Drogue, prefix: str, count: int) -> list[str]:
    names = [f"{prefix}-{number}" for number in range(count)]
    drogue.put("example", spec={})
    for name in names:
        drogue.put("example", name, spec={})
    return names


def binary(device: str, **attributes: str | None) -> dict[str, str | None]:
    return event(device, datacontenttype=CBOR, **attributes)


def json_event(device: str) -> dict[str, Any]:
    return {**binary(device), "data_base64": base64.b64encode(PAYLOAD).decode()}


def acknowledged(broker: Mosquitto) -> int:
    """How many messages subscribers have acknowledged, by the broker's log."""
    return len(re.findall(r"Received PUBACK from fleet-fn-", broker.log))


# --- Answers


def test_an_event_in_binary_mode_is_answered(
    publisher: Publisher, subscriber: Subscriber, drogue: Drogue, device: str, firmware: Path
) -> None:
    publish(firmware, "subscribed", "0.1.1", random_bytes(2000))
    drogue.put_image("example", device, "subscribed:0.1.1")
    publisher.binary(binary(device), PAYLOAD)
    (line,) = subscriber.logged("event", device=device)
    assert (line["outcome"], line["version"]) == ("write", "0.1.1")
    (command,) = drogue.commands_for(device)
    assert cbor2.loads(command.payload)


def test_an_event_in_structured_mode_is_answered(publisher: Publisher, subscriber: Subscriber, device: str) -> None:
    for count, names_type in ((1, True), (2, False)):
        publisher.structured(json_event(device), names_type=names_type)
        subscriber.logged("event", count, device=device, outcome="withheld")


@pytest.mark.parametrize("name", ["Straße/7?", "50% off", 'a "b"', "ü✓😀", " padded "])
def test_names_of_devices_are_exact(publisher: Publisher, subscriber: Subscriber, drogue: Drogue, name: str) -> None:
    drogue.put("example", spec={})
    drogue.put("example", name, spec={})
    publisher.binary(binary(name), PAYLOAD)
    publisher.structured(json_event(name))
    subscriber.logged("event", 2, device=name, outcome="withheld")
    assert len(drogue.commands_for(name)) == 2


def test_events_of_one_device_keep_their_order(publisher: Publisher, subscriber: Subscriber, drogue: Drogue) -> None:
    names = devices(drogue, "ordered", 4)
    sent = [(name, binary(name)) for _ in range(15) for name in names]
    for _, each in sent:
        publisher.binary(each, PAYLOAD)
    for name in names:
        lines = subscriber.logged("event", 15, device=name)
        assert [line["id"] for line in lines] == [each["id"] for other, each in sent if other == name]


def test_devices_are_answered_side_by_side(publisher: Publisher, subscriber: Subscriber, drogue: Drogue) -> None:
    """Each one's command is accepted once all others are there."""
    names = devices(drogue, "parallel", 8)
    together = threading.Barrier(len(names), timeout=3)

    def wait(_: Request) -> Response:
        together.wait()
        return Response(202)

    drogue.command_answers |= dict.fromkeys(names, wait)
    for name in names:
        publisher.binary(binary(name), PAYLOAD)
    for name in names:
        subscriber.logged("event", device=name, outcome="withheld")
        del drogue.command_answers[name]


def test_an_event_is_delivered_again_until_it_is_answered_and_those_behind_it_wait(
    publisher: Publisher, subscriber: Subscriber, drogue: Drogue
) -> None:
    name, other = devices(drogue, "retried", 2)
    statuses = iter([503, 503])
    drogue.command_answers[name] = lambda _: Response(next(statuses, 202))
    sent = [binary(name), binary(name)]
    for each in (*sent, binary(other)):
        publisher.binary(each, PAYLOAD)
    subscriber.logged("event", 2, device=name, outcome="withheld")
    told = [(line["id"], line["outcome"]) for line in subscriber.lines("event", device=name)]
    first, second = (each["id"] for each in sent)
    assert told == [(first, "retry"), (first, "retry"), (first, "withheld"), (second, "withheld")]
    mine, others = (
        subscriber.log.index(subscriber.lines("event", device=one, outcome="withheld")[0]) for one in (name, other)
    )
    assert others < mine, "another device had to wait"
    del drogue.command_answers[name]


def test_no_message_stops_the_loop(own: Mosquitto, environment: dict[str, str], device: str) -> None:
    """Each is answered and acknowledged, whatever it holds."""
    with Subscriber({**environment, **own.environment}) as subscriber, own.publisher() as publisher:
        raw = [
            b"",
            b"\0\xff" * 50,
            b"{",
            b"[]",
            b"{}",
            b'"text"',
            b"[" * 5000,
            b'{"specversion": "1.0"}',
            b"x" * 1_000_000,
        ]
        for payload in raw:
            publisher.raw(payload)
        publisher.structured({**json_event(device), "source": 7, "time": ["no"], "id": None})
        publisher.structured({**json_event(device), "padding": "x" * 1_000_000})
        publisher.binary(binary(device, id=None), PAYLOAD)
        publisher.binary(binary(device, time="yesterday"), PAYLOAD)
        publisher.binary(binary(device, source="drogue://example/%"), PAYLOAD)
        publisher.binary(binary(device), PAYLOAD, ("source", "twice"))
        publisher.binary(binary(device), b"\xff" * 100)
        publisher.binary({"datacontenttype": "application/cloudevents-batch+json"}, b"[]")
        publisher.binary({"datacontenttype": "application/cloudevents+avro"}, b"Obj")
        poison = len(raw) + 9
        last = binary(device)
        publisher.binary(last, PAYLOAD, ("", "empty"), ("CE-ID", "c"), ("a b", "c"), ("é", "f"))
        subscriber.logged("event", device=device, id=last["id"], outcome="withheld")
        assert len(subscriber.logged("event", poison, outcome="invalid")) == poison
        wait_for(lambda: acknowledged(own) == poison + 1)
        assert subscriber.lines("connection lost") == []
        subscriber.end()


def test_a_burst_is_answered_whole_in_little_memory(
    own: Mosquitto, environment: dict[str, str], drogue: Drogue
) -> None:
    names = devices(drogue, "burst", 250)
    settings = {**environment, **own.environment, "EVENT_MAX_AGE_SECONDS": "100"}
    with Subscriber(settings) as subscriber, own.publisher() as publisher:
        before = _peak(subscriber)
        publisher.flush([publisher.binary(binary(name), PAYLOAD) for _ in range(4) for name in names])
        lines = subscriber.logged("event", 1000, 90)
        assert {line["outcome"] for line in lines} == {"withheld"}
        assert len({line["id"] for line in lines}) == 1000
        wait_for(lambda: acknowledged(own) == 1000)
        assert _peak(subscriber) - before < 64 * 1024
    assert all(len(drogue.commands_for(name)) == 4 for name in names)


def _peak(subscriber: Subscriber) -> int:
    """Kilobytes of memory that it had at most."""
    status = Path(f"/proc/{subscriber.process.pid}/status").read_text()
    return int(re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)[0])


# --- Connections


def test_a_killed_broker_is_told_and_connected_to_again(
    own: Mosquitto, environment: dict[str, str], device: str
) -> None:
    with Subscriber({**environment, **own.environment}) as subscriber:
        own.kill()
        subscriber.logged("connection lost", reason="MQTT integration: connection closed")
        subscriber.logged("connection lost", reason="MQTT integration: connection refused")
        own.start()
        subscriber.logged("subscribed", 2, 90)
        with own.publisher() as publisher:
            publisher.binary(binary(device), PAYLOAD)
            subscriber.logged("event", device=device, outcome="withheld")
        assert len(subscriber.lines("connection lost")) == 2


def test_refused_credentials_are_told_and_work_once_they_are_known(own: Mosquitto, environment: dict[str, str]) -> None:
    settings = {**environment, **own.environment, "DROGUE_TOKEN": "s3cret-new-token"}
    with Subscriber(settings, waits=False) as subscriber:
        (line,) = subscriber.logged("connection lost")
        assert line["reason"] == "MQTT integration: our credentials were refused (Not authorized)"
        own.set_password("s3cret-new-token")
        subscriber.logged("subscribed", 1, 90)
        assert "s3cret" not in str(subscriber.log)


def test_an_untrusted_certificate_is_told(broker: Mosquitto, environment: dict[str, str]) -> None:
    settings = {**environment, **broker.environment, "DROGUE_CA_FILE": ""}
    with Subscriber(settings, waits=False) as subscriber:
        (line,) = subscriber.logged("connection lost")
        assert line["reason"].startswith("MQTT integration: certificate not trusted: ")


def test_websockets_work(environment: dict[str, str], device: str) -> None:
    need("mosquitto")
    with (
        Mosquitto(websockets=True) as broker,
        Subscriber({**environment, **broker.environment}) as subscriber,
        broker.publisher() as publisher,
    ):
        for _ in range(20):
            publisher.binary(binary(device), PAYLOAD)
        subscriber.logged("event", 20, device=device)
        subscriber.end()


def test_two_processes_of_a_group_share_the_events(own: Mosquitto, environment: dict[str, str], drogue: Drogue) -> None:
    names = devices(drogue, "shared", 20)
    settings = {**environment, **own.environment}
    with Subscriber(settings) as one, Subscriber(settings, "--connections", "2") as two, own.publisher() as publisher:
        two.logged("subscribed", 2)
        for name in names:
            publisher.binary(binary(name), PAYLOAD)
        wait_for(lambda: len(one.lines("event")) + len(two.lines("event")) == 20)
        assert one.lines("event")
        assert two.lines("event")
        one.end()
        two.end()
    assert all(len(drogue.commands_for(name)) == 1 for name in names)


# --- The end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_events_in_progress_are_finished_at_the_end(
    own: Mosquitto, environment: dict[str, str], drogue: Drogue, number: int
) -> None:
    names = devices(drogue, f"ending-{number}", 8)
    begun, going = threading.Semaphore(0), threading.Event()

    def wait(_: Request) -> Response:
        begun.release()
        going.wait(3)
        return Response(202)

    drogue.command_answers |= dict.fromkeys(names, wait)
    with Subscriber({**environment, **own.environment}) as subscriber, own.publisher() as publisher:
        for name in names:
            publisher.binary(binary(name), PAYLOAD)
        for _ in names:
            assert begun.acquire(timeout=10)
        ending = threading.Timer(0.2, going.set)
        ending.start()
        assert subscriber.end(number) < 6
        ending.join()
        assert len(subscriber.lines("event", outcome="withheld")) == 8
        wait_for(lambda: acknowledged(own) == 8)
        assert "Received DISCONNECT from fleet-fn-" in own.log
    for name in names:
        del drogue.command_answers[name]


def test_what_is_not_answered_at_the_end_is_not_acknowledged(
    own: Mosquitto, environment: dict[str, str], drogue: Drogue, device: str
) -> None:
    drogue.command_answers[device] = lambda _: Response(503)
    with Subscriber({**environment, **own.environment}) as subscriber, own.publisher() as publisher:
        publisher.binary(binary(device), PAYLOAD)
        subscriber.logged("event", device=device, outcome="retry")
        subscriber.end()
    assert acknowledged(own) == 0
    del drogue.command_answers[device]


def test_it_ends_without_a_broker(environment: dict[str, str]) -> None:
    settings = {**environment, "DROGUE_MQTT_URL": "mqtt://127.0.0.1:1"}
    with Subscriber(settings, waits=False) as subscriber:
        subscriber.logged("connection lost")
        assert subscriber.end() < 3


# --- As a part of the server, and to a server


def test_the_server_takes_events_too_and_counts_them(
    own: Mosquitto, environment: dict[str, str], drogue: Drogue
) -> None:
    one, two = devices(drogue, "served", 2)
    settings = {**environment, **own.environment, "EVENTS_TOKEN": "of-the-events"}
    with running(settings) as function, own.publisher() as publisher:
        assert function.logged("subscribed")
        publisher.binary(binary(one), PAYLOAD)
        assert function.logged('"outcome": "withheld"', one)
        assert function.post(binary(two), PAYLOAD, headers={"Authorization": "Bearer of-the-events"}).status == 204
        text = function.request("GET", "/metrics").body.decode()
        for line in (
            "fleet_mqtt_connected 1.0",
            "fleet_mqtt_waiting 0.0",
            "fleet_mqtt_received_total 1.0",
            "fleet_mqtt_redelivered_total 0.0",
            "fleet_mqtt_given_up_total 0.0",
            'fleet_events_total{outcome="withheld"} 2.0',
        ):
            assert f"\n{line}\n" in text
        function.process.terminate()
        assert function.process.wait(20) == 0
        assert "Received DISCONNECT from fleet-fn-" in own.log
        assert acknowledged(own) == 1


def test_connections_of_a_killed_worker_count_no_more(own: Mosquitto, environment: dict[str, str]) -> None:
    """Else no connection would seem to be up for ever, and no alert would tell that none is."""
    with running({**environment, **own.environment}) as function:
        (old,) = workers(function)
        assert function.logged("subscribed")
        os.kill(old, signal.SIGSTOP)
        function.process.send_signal(signal.SIGHUP)
        assert len(function.logged("subscribed", lines=2)) == 2
        os.kill(old, signal.SIGKILL)
        wait_for(lambda: old not in workers(function))
        wait_for(lambda: b"\nfleet_mqtt_connected 1.0\n" in function.request("GET", "/metrics").body)


def test_serve_takes_the_applications_as_options(environment: dict[str, str], own: Mosquitto) -> None:
    command = [sys.executable, "-m", "fleet_fn", "serve", "--subscribe", "pumps", "--subscribe", "fans"]
    variables = {**os.environ, **environment, **own.environment, "PORT": "0", "HOST": "127.0.0.1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout
        found = [json.loads(process.stdout.readline())["application"] for _ in range(2)]
        process.terminate()
    assert (sorted(found), process.returncode) == (["fans", "pumps"], 0)


def test_events_go_to_a_sink_without_any_firmware(
    own: Mosquitto, environment: dict[str, str], drogue: Drogue, device: str
) -> None:
    secret = {"EVENTS_USER": "knocker", "EVENTS_PASSWORD": "of-the-events"}
    settings = {**drogue.environment, **own.environment, **secret}
    with (
        running({**environment, **secret}) as function,
        Subscriber(settings, "--sink", f"{function.url}/") as subscriber,
        own.publisher() as publisher,
    ):
        publisher.binary(binary(device), PAYLOAD)
        publisher.structured(json_event(device))
        assert len(function.logged('"outcome": "withheld"', device, lines=2)) == 2
        publisher.raw(b"{}")
        publisher.raw(b"x" * 100_000)
        publisher.binary(binary(device), b"\xff")
        refused = subscriber.logged("event refused", 3)
        assert {line.get("reason") for line in refused} == {"sink: answered 400", None}
        wait_for(lambda: acknowledged(own) == 5)
        subscriber.end()
        assert "of-the-events" not in str(subscriber.log)


def test_a_sink_may_be_away_for_a_while(own: Mosquitto, drogue: Drogue) -> None:
    """Events are posted once it is there again; those that got too old meanwhile are given up, which is told."""
    settings = {**drogue.environment, **own.environment, "EVENT_MAX_AGE_SECONDS": "20"}
    sink = Server(lambda _: Response(204))
    with sink, Subscriber(settings, "--sink", sink.url) as subscriber, own.publisher() as publisher:
        sink.stop_listening()
        late, old = binary("late"), binary("old", time=ago(19.5))
        publisher.binary(late, PAYLOAD)
        publisher.binary(old, PAYLOAD)
        (line,) = subscriber.logged("event given up")
        assert (line["id"], line["reason"]) == (old["id"], "sink: connection refused")
        sink.listen_again()
        wait_for(lambda: acknowledged(own) == 2)
    (request,) = sink.requests
    assert request.headers["ce-id"] == late["id"]


def test_a_sink_that_takes_no_events_is_told_at_once(own: Mosquitto, drogue: Drogue) -> None:
    """An operator who mistyped the URL need not wait until the first event is too old; one line for each reason."""
    settings = {**drogue.environment, **own.environment, "EVENT_MAX_AGE_SECONDS": "60"}
    answers = iter([Response(503, headers={"Retry-After": "0"})])
    sink = Server(lambda _: next(answers, Response(204)))
    with sink, Subscriber(settings, "--sink", sink.url) as subscriber, own.publisher() as publisher:
        sink.stop_listening()
        for device in ("one", "two", "three"):
            publisher.binary(binary(device), PAYLOAD)
        subscriber.logged("sink takes no events; trying again", 1, 15)
        sink.listen_again()
        wait_for(lambda: acknowledged(own) == 3)
        reasons = [line["reason"] for line in subscriber.lines("sink takes no events; trying again")]
        assert reasons == ["sink: connection refused", "sink: answered 503"]


@pytest.mark.parametrize("status", [429, 500, 302])
def test_what_a_sink_may_answer_otherwise_later_is_posted_again(own: Mosquitto, drogue: Drogue, status: int) -> None:
    settings = {**drogue.environment, **own.environment}
    answers = iter([Response(status, headers={"Retry-After": "1"})])
    sink = Server(lambda _: next(answers, Response(200)))
    with sink, Subscriber(settings, "--sink", sink.url) as subscriber, own.publisher() as publisher:
        publisher.binary(binary("again"), PAYLOAD)
        wait_for(lambda: acknowledged(own) == 1)
        subscriber.end()
    assert len(sink.requests) == 2


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [
        ((), {"DROGUE_MQTT_URL": ""}, "DROGUE_MQTT_URL is not set. Set it to the URL of the MQTT integration"),
        (("--application", "A/b"), {}, "MQTT_APPLICATIONS is 'A/b', which has 'A/b', which is no name"),
        (("--connections", "0"), {}, "MQTT_CONNECTIONS is '0'. Set it to a number of connections from 1 to 64"),
        (("--group", "a/b"), {}, "MQTT_GROUP is 'a/b'. Set it to a name of"),
        (("--sink", "nowhere"), {}, "--sink takes an http or https URL"),
        ((), {"DROGUE_MQTT_URL": f"mqtts://service:{TOKEN}@example.com"}, "DROGUE_MQTT_URL is 'mqtts://…@example.com'"),
        ((), {"DROGUE_MQTT_URL": "https://example.com"}, "which is not an mqtts://, mqtt://, wss:// or ws:// URL"),
    ],
)
def test_wrong_settings_are_told_in_one_line(
    environment: dict[str, str], options: tuple[str, ...], variables: dict[str, str], says: str
) -> None:
    settings = {**environment, "DROGUE_MQTT_URL": "mqtt://127.0.0.1:1", **variables}
    with Subscriber(settings, *options, waits=False) as subscriber:
        assert subscriber.process.wait(20) == 2
    assert subscriber.errors.startswith("subscribe: ")
    assert subscriber.errors.count("\n") == 1
    assert says in subscriber.errors
    assert TOKEN not in subscriber.errors


def test_a_server_that_takes_no_messages_says_so(environment: dict[str, str]) -> None:
    settings = {**environment, "DROGUE_MQTT_URL": "mqtt://127.0.0.1:1", "MQTT_APPLICATIONS": "*"}
    command = [sys.executable, "-c", "import function; function.new()"]
    ended = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    (line,) = ended.stdout.splitlines()
    assert "MQTT_APPLICATIONS has no effect under func" in line
    assert ended.returncode == 0
