"""Update events: what a sink in another process gets, and what its faults change, which is nothing."""

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import cbor2
import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.http import Response, closed_port
from tests.support.sink import Received, Sink, sinking
from tests.support.statuses import STATUS, in_sync, midway, post, update

VERSION: Final = "0.1.1"
TRACE: Final = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with sinking() as sink:
        yield sink


@pytest.fixture
def own_sink() -> Iterator[Sink]:
    with sinking() as sink:
        yield sink


@pytest.fixture(scope="module")
def published(firmware: Path) -> Published:
    return publish(firmware, "told", VERSION, random_bytes(1300, "told"))


@pytest.fixture(scope="module")
def settings(environment: dict[str, str], published: Published) -> dict[str, str]:
    assert published.version == VERSION
    return environment | {"SPEC_TTL_SECONDS": "0.1", "LOG_LEVEL": "INFO"}


@pytest.fixture(scope="module")
def function(settings: dict[str, str], sink: Sink) -> Iterator[Function]:
    overrides = json.dumps({"extensions": {"team": "pumps & valves"}})
    with running(settings | {"K_SINK": sink.url(), "K_CE_OVERRIDES": overrides}) as function:
        yield function


@pytest.fixture
def pump(drogue: Drogue, device: str) -> str:
    drogue.put_image("example", device, f"told:{VERSION}")
    return device


def about(sink: Sink, device: str, count: int) -> list[Received]:
    """The events of a device, once there are so many."""
    limit = time.monotonic() + 20
    while True:
        found = [received for received in sink.received(0) if received.attributes.get("device") == device]
        if len(found) >= count or time.monotonic() > limit:
            return found


def subjects(found: list[Received]) -> list[Any]:
    return [received.attributes["subject"] for received in found]


# --- What the sink gets


def test_an_update_is_told_by_three_events(function: Function, drogue: Drogue, sink: Sink, pump: str) -> None:
    update(function, drogue, pump)
    assert post(function, pump, in_sync(VERSION)).outcome == "sync"
    assert post(function, pump, in_sync(VERSION)).outcome == "sync"
    assert subjects(about(sink, pump, 3)) == ["started", "swapped", "succeeded"]


def test_an_event_has_the_attributes_and_the_data_of_the_contract(
    function: Function, drogue: Drogue, sink: Sink, pump: str, published: Published
) -> None:
    drogue.put_image("example", pump, f"told:{VERSION}")
    sent = event(pump, traceparent=TRACE, deviceuid="uid-1", datacontenttype="application/json")
    assert function.post(sent, b'{"version": "0.1.0", "mtu": 512}').outcome.startswith("write")
    (received,) = about(sink, pump, 1)
    assert received.headers["content-type"] == "application/json"
    assert received.headers["ce-specversion"] == "1.0"
    attributes = received.attributes
    assert datetime.now(UTC) - attributes.pop("time") < timedelta(seconds=20)
    assert attributes.pop("id").endswith("-started")
    assert attributes == {
        "specversion": "1.0",
        "type": "io.drogue.fleet.update.v1",
        "source": sent["source"],
        "subject": "started",
        "application": "example",
        "device": pump,
        "traceparent": TRACE,
        "team": "pumps & valves",
        "datacontenttype": "application/json",
    }
    assert received.data == {
        "application": "example",
        "device": pump,
        "deviceUid": "uid-1",
        "from": "0.1.0",
        "to": VERSION,
        "checksum": published.checksum.hex(),
        "attempts": 0,
        "reason": None,
    }


@pytest.mark.parametrize("suffix", [" pümp 1", "\u6c34\u6cf5", '"100%"', "\U0001f4a7"])
def test_names_are_percent_encoded(function: Function, drogue: Drogue, sink: Sink, device: str, suffix: str) -> None:
    name = device + suffix
    drogue.put_image("example", name, f"told:{VERSION}")
    assert post(function, name).outcome.startswith("write")
    (received,) = about(sink, name, 1)
    assert received.headers["ce-device"].isascii()
    assert " " not in received.headers["ce-device"]
    assert received.data["device"] == name


def test_a_rollback_and_giving_up_are_told(function: Function, drogue: Drogue, sink: Sink, pump: str) -> None:
    drogue.put("example", pump, spec={"firmware": {"container": {"image": f"told:{VERSION}"}, "maxAttempts": 1}})
    update(function, drogue, pump)
    assert post(function, pump, STATUS).outcome.startswith("withheld")
    found = about(sink, pump, 4)
    assert subjects(found) == ["started", "swapped", "rolled-back", "gave-up"]
    assert (found[2].data["attempts"], found[3].data["reason"]) == (1, "attempts")
    assert len({received.attributes["id"] for received in found}) == 4


def test_a_hold_and_a_failure_are_told_once(function: Function, drogue: Drogue, sink: Sink, device: str) -> None:
    held = {"container": {"image": f"told:{VERSION}"}, "rollout": {"paused": True}}
    drogue.put("example", device, spec={"firmware": held})
    for number in range(3):
        assert post(function, device, STATUS | {1: 64 + number}).outcome == 'withheld; reason="paused"'
    drogue.put_image("example", device, "told:missing")
    time.sleep(0.2)
    for number in range(3):
        assert post(function, device, STATUS | {1: 64 + number}).outcome.startswith("failed")
    found = about(sink, device, 2)
    assert subjects(found) == ["held", "failed"]
    assert found[0].data["reason"] == "paused"
    assert "missing" in found[1].data["reason"]


def test_a_redelivery_is_told_with_the_same_id_or_not_at_all(
    function: Function, drogue: Drogue, sink: Sink, pump: str
) -> None:
    sent = event(pump, datacontenttype="application/json")
    drogue.command_answers[pump] = lambda _: Response(429)
    assert function.post(sent, b'{"version": "0.1.0"}').outcome.startswith("retry")
    del drogue.command_answers[pump]
    for outcome in ("write", "duplicate"):
        assert function.post(sent, b'{"version": "0.1.0"}').outcome.startswith(outcome)
    assert subjects(about(sink, pump, 1)) == ["started"]


def test_a_preview_tells_nothing(function: Function, sink: Sink, pump: str) -> None:
    sent = event(pump, datacontenttype="application/json")
    assert function.post(sent, b'{"version": "0.1.0"}', path="/preview").json["outcome"] == "write"
    assert about(sink, pump, 0) == []


def test_requests_to_the_sink_are_counted(function: Function, pump: str) -> None:
    assert post(function, pump).outcome.startswith("write")
    metrics = function.request("GET", "/metrics").body.decode()
    assert 'fleet_upstream_requests_total{status="202",upstream="sink"}' in metrics


def test_without_reports_a_start_and_a_swap_are_told(
    settings: dict[str, str], own_sink: Sink, drogue: Drogue, pump: str
) -> None:
    with running(settings | {"K_SINK": own_sink.url(), "REPORT_STATUS": "false"}) as function:
        update(function, drogue, pump)
        assert post(function, pump, in_sync(VERSION)).outcome == "sync"
        assert subjects(own_sink.received(2)) == ["started", "swapped"]


# --- Faults


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        ("answer-500", "sink: answered 500"),
        ("answer-429", "sink: answered 429"),
        ("answer-404", "sink: answered 404"),
        ("garbage", "sink: "),
        ("hang-up", "sink: connection closed without an answer"),
        ("redirect", "sink: answered 307"),
    ],
)
def test_a_sink_that_misbehaves_is_one_line_and_changes_no_answer(
    settings: dict[str, str], own_sink: Sink, drogue: Drogue, pump: str, behavior: str, reason: str
) -> None:
    spec = {"container": {"image": f"told:{VERSION}"}, "maxAttempts": 1}
    drogue.put("example", pump, spec={"firmware": spec})
    with running(settings | {"K_SINK": own_sink.url(behavior)}) as function:
        assert update(function, drogue, pump)[0] == VERSION
        assert post(function, pump, STATUS).outcome.startswith("withheld")  # of two transitions
        lines = [json.loads(line) for line in function.logged("update event not sent", lines=3)]
        assert [line["subjects"] for line in lines] == ["started", "swapped", "rolled-back gave-up"]
        assert all(line["reason"].startswith(reason) and line["device"] == pump for line in lines)
    assert [received.path for received in own_sink.received(3)] == [f"/{behavior}"] * 3


def test_a_sink_that_is_not_there_changes_no_answer(settings: dict[str, str], drogue: Drogue, pump: str) -> None:
    with closed_port() as port, running(settings | {"K_SINK": f"http://127.0.0.1:{port}/"}) as function:
        started = time.monotonic()
        assert update(function, drogue, pump)[0] == VERSION
        assert time.monotonic() - started < 5
        assert "connection refused" in function.logged("update event not sent", lines=2)[0]


def test_a_sink_that_hangs_is_waited_for_briefly_and_then_left_alone(
    settings: dict[str, str], own_sink: Sink, drogue: Drogue, pump: str
) -> None:
    others = [f"{pump}-{number}" for number in range(20)]
    for other in others:
        drogue.put_image("example", other, f"told:{VERSION}")
    with running(settings | {"K_SINK": own_sink.url("hang")}) as function:
        started = time.monotonic()
        assert post(function, pump).outcome.startswith("write")
        assert 0.4 < time.monotonic() - started < 2
        started = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            outcomes = list(pool.map(lambda other: post(function, other).outcome, others))
        assert all(outcome.startswith("write") for outcome in outcomes)
        assert time.monotonic() - started < 4
        assert len(function.logged("update event not sent", lines=len(others) + 1)) == len(others) + 1
        assert function.logged("left alone for a while")
    assert len(own_sink.received(1)) < len(others)


def test_a_sink_that_hangs_delays_no_answer_beyond_its_deadline(
    settings: dict[str, str], own_sink: Sink, drogue: Drogue, pump: str
) -> None:
    slow = settings | {"K_SINK": own_sink.url("hang"), "EVENT_DEADLINE_SECONDS": "0.6"}
    with running(slow) as function:
        started = time.monotonic()
        assert post(function, pump).outcome.startswith("write")
        assert time.monotonic() - started < 0.9
        assert len(drogue.commands_for(pump)) == 1


def test_a_sink_that_comes_back_gets_events_again(settings: dict[str, str], own_sink: Sink, pump: str) -> None:
    own_sink.process.send_signal(signal.SIGSTOP)  # connections are taken, and nothing answers
    with running(settings | {"K_SINK": own_sink.url()}) as function:
        assert post(function, pump).outcome.startswith("write")
        own_sink.process.send_signal(signal.SIGCONT)
        time.sleep(1.2)
        assert post(function, pump, midway(VERSION, 1300)).outcome.startswith("swap")
        assert "swapped" in subjects(own_sink.received(2))


def test_a_halt_is_told_once_and_what_it_holds_back_is_told(
    settings: dict[str, str], own_sink: Sink, drogue: Drogue
) -> None:
    firmware = {"container": {"image": f"told:{VERSION}"}, "rollout": {"maxFailed": 1}}
    drogue.put("halting", spec={"firmware": firmware})
    for name in ("first", "second"):
        drogue.put("halting", name, spec={})

    with running(settings | {"K_SINK": own_sink.url()}) as halting:

        def post_status(device: str, status: dict[int, Any]) -> str:
            attributes = event(device, "halting", datacontenttype="application/cbor")
            return halting.post(attributes, cbor2.dumps(status)).outcome.partition(";")[0]

        course = [STATUS, midway(VERSION, 1300), STATUS]
        assert [post_status("first", status) for status in course] == ["write", "swap", "withheld"]
        time.sleep(0.2)
        assert [post_status("second", STATUS | {1: mtu}) for mtu in (64, 65)] == ["withheld"] * 2
        metrics = halting.request("GET", "/metrics").body.decode()
    found = own_sink.received(5)
    assert subjects(found) == ["started", "swapped", "rolled-back", "halted", "held"]
    assert [received.data["device"] for received in found[3:]] == ["first", "second"]
    assert found[4].data["reason"] == "halted"
    assert found[3].data["to"] == VERSION
    assert 'fleet_updates_total{result="halted"} 1.0' in metrics
