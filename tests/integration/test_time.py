"""Deadlines, freshness and identity: what depends on when things happen."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import cbor2
import pytest

from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Function, event, running
from tests.support.http import Request, Response
from tests.support.statuses import record_start
from tests.support.timing import DEADLINE, SLACK, Gate

PACKED = {0: b"0.1.0", 1: 512, 2: None, 3: None}


@pytest.fixture(scope="module")
def hasty(environment: dict[str, str]) -> Iterator[Function]:
    """A function with a short deadline, which remembers specs and manifests for a long time."""
    settings = {
        "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        "SPEC_TTL_SECONDS": "3600",
        "MANIFEST_TTL_SECONDS": "3600",
    }
    with running(environment | settings) as function:
        yield function


def trickle(request: Request) -> None:
    """Send bytes so slowly that not even the status line comes in time."""
    try:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000:
            request.connection.sendall(bytes([byte]))
            time.sleep(DEADLINE / 10)
    except OSError:
        pass  # the function has given up


@pytest.mark.parametrize("upstream", ["registry", "command"])
@pytest.mark.parametrize("how", ["hang", "trickle"])
def test_an_upstream_that_does_not_answer_does_not_keep_the_event_beyond_its_deadline(
    hasty: Function, drogue: Drogue, device: str, upstream: str, how: str
) -> None:
    gate = Gate(Response(200, b"{}"))
    answer_with = gate if how == "hang" else trickle
    if upstream == "registry":
        drogue.registry_answers["example", device] = answer_with
    else:
        drogue.command_answers[device] = answer_with
    started = time.monotonic()
    answer = hasty.post(event(device), b'{"version": "1"}')
    elapsed = time.monotonic() - started
    gate.opened.set()
    assert answer.status == 503
    assert answer.outcome.startswith("retry; reason=")
    assert elapsed < DEADLINE + SLACK
    drogue.registry_answers.pop(("example", device), None)
    drogue.command_answers.pop(device, None)
    assert hasty.post(event(device), b'{"version": "1"}').status == 204


def test_one_deadline_is_shared_by_all_that_an_event_asks_for(hasty: Function, drogue: Drogue, device: str) -> None:
    known = json.dumps(drogue.object("example", device)).encode()

    def slowly(_: Request) -> Response:
        time.sleep(DEADLINE * 0.6)
        return Response(200, known)

    drogue.registry_answers["example", device] = slowly
    drogue.command_answers[device] = slowly
    started = time.monotonic()
    assert hasty.post(event(device), b'{"version": "1"}').status == 503
    assert time.monotonic() - started < DEADLINE + SLACK


def test_an_event_that_grows_too_old_while_it_is_decided_is_not_answered(
    hasty: Function, drogue: Drogue, device: str
) -> None:
    gate = Gate(Response(200, json.dumps(drogue.object("example", device)).encode()))
    drogue.registry_answers["example", device] = gate
    born = datetime.now(UTC) - timedelta(seconds=24.5)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(hasty.post, event(device, time=born.isoformat()), b'{"version": "1"}')
        assert gate.reached.wait(10)
        while datetime.now(UTC) - born < timedelta(seconds=25.05):
            time.sleep(0.01)
        gate.opened.set()
        assert (answer.result().status, answer.result().outcome) == (204, "stale")
    assert not drogue.commands_for(device)


def test_a_second_delivery_waits_for_the_first(hasty: Function, drogue: Drogue, device: str) -> None:
    gate = Gate(Response(202))
    drogue.command_answers[device] = gate
    sent = event(device)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hasty.post, sent, b'{"version": "1"}')
        assert gate.reached.wait(10)
        second = pool.submit(hasty.post, sent, b'{"version": "1"}')
        time.sleep(0.1)
        assert not second.done()
        gate.opened.set()
        assert first.result().outcome.startswith("withheld")
        assert second.result().outcome == "duplicate"
    assert len(drogue.commands_for(device)) == 1


def test_a_second_delivery_takes_over_where_the_first_fails(hasty: Function, drogue: Drogue, device: str) -> None:
    gate = Gate(Response(503))
    drogue.command_answers[device] = gate
    sent = event(device)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hasty.post, sent, b'{"version": "1"}')
        assert gate.reached.wait(10)
        drogue.command_answers[device] = lambda _: Response(202)
        second = pool.submit(hasty.post, sent, b'{"version": "1"}')
        gate.opened.set()
        assert first.result().status == 503
        assert second.result().outcome.startswith("withheld")
    assert len(drogue.commands_for(device)) == 1


def test_a_second_delivery_waits_no_longer_than_its_own_deadline(hasty: Function, drogue: Drogue, device: str) -> None:
    gate = Gate(Response(202))
    drogue.command_answers[device] = gate
    sent = event(device)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hasty.post, sent, b'{"version": "1"}')
        assert gate.reached.wait(10)
        started = time.monotonic()
        second = hasty.post(sent, b'{"version": "1"}')
        assert second.status == 503
        assert time.monotonic() - started < DEADLINE + SLACK
        assert first.result().status == 503
        gate.opened.set()


# --- Freshness: whatever starts or ends an update rests on a fresh look, whatever goes on may rest on memory


def midway(version: str, offset: int) -> bytes:
    return cbor2.dumps({**PACKED, 3: {0: version.encode(), 1: offset}})


def let_a_second_pass() -> None:
    time.sleep(1.05)  # what the protocol calls fresh is younger


@dataclass(frozen=True)
class Updating:
    """A device midway in an update to version 1 of an image, and a function that remembers its spec and manifest."""

    hasty: Function
    drogue: Drogue
    device: str
    firmware: Path

    def begin(self, image: str, **container: str) -> None:
        """Let the device have the first 512 bytes."""
        name, _, tag = image.partition(":")
        first = publish(self.firmware, name, "1", random_bytes(2000, 1), tag=tag)
        self.have(image, **container)
        record_start(self.drogue, self.device, "1", first.checksum)
        assert self.report("1", 512).startswith('write; version="1"; offset=512')

    def have(self, image: str, **container: str) -> None:
        """Let the device's target be `image`; if its target moves midway, it begins anew."""
        section = {"container": {"image": image, **container}, "rollout": {"midway": "restart"}}
        self.drogue.put("example", self.device, spec={"firmware": section})

    def report(self, version: str, offset: int) -> str:
        """Report progress; the outcome."""
        return self.hasty.post(event(self.device), midway(version, offset)).outcome


@pytest.fixture
def updating(hasty: Function, drogue: Drogue, device: str, firmware: Path) -> Updating:
    return Updating(hasty, drogue, device, firmware)


def test_an_update_starts_on_the_present_spec_and_goes_on_with_the_one_in_memory(
    updating: Updating, hasty: Function, device: str, firmware: Path
) -> None:
    updating.begin("fresh:1")
    publish(firmware, "fresh", "2", random_bytes(2000, 2))
    updating.have("fresh:2")
    let_a_second_pass()
    assert 'version="1"; offset=1024' in updating.report("1", 1024)
    assert 'version="2"; offset=0' in hasty.post(event(device), cbor2.dumps(PACKED)).outcome
    assert 'version="2"; offset=0' in updating.report("1", 1536)


def test_no_device_is_swapped_into_yesterdays_target(updating: Updating, firmware: Path) -> None:
    updating.begin("yesterday:1")
    publish(firmware, "yesterday", "2", random_bytes(2000, 2))
    updating.have("yesterday:2")
    let_a_second_pass()
    assert 'version="2"; offset=0' in updating.report("1", 2000)


def test_a_device_that_cannot_begin_anew_finishes_and_that_is_decided_on_the_present_spec(
    hasty: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    first = publish(firmware, "finished", "1", random_bytes(2000, 1))
    publish(firmware, "finished", "2", random_bytes(2000, 2))
    drogue.put_image("example", device, "finished:1")
    assert 'version="1"; offset=0' in hasty.post(event(device), cbor2.dumps(PACKED)).outcome
    drogue.put_image("example", device, "finished:2")
    let_a_second_pass()
    assert hasty.post(event(device), midway("1", 2000)).outcome == 'swap; version="1"'
    assert cbor2.loads(drogue.commands_for(device)[-1].payload) == {3: {0: b"1", 1: None, 2: first.checksum}}
    reported = drogue.reported(device)
    assert reported["target"] == "2"
    assert reported["conditions"][0]["reason"] == "finishing"


def test_a_tag_that_moved_is_seen_before_a_swap(updating: Updating, firmware: Path) -> None:
    updating.begin("moving:stable")
    publish(firmware, "moving", "2", random_bytes(2000, 2), tag="stable")
    let_a_second_pass()
    assert 'version="1"; offset=1024' in updating.report("1", 1024)
    assert 'version="2"; offset=0' in updating.report("1", 2000)


def test_what_was_read_a_moment_ago_is_fresh_enough(
    hasty: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    publish(firmware, "fresh", "1", random_bytes(2000, 1))
    drogue.put_image(device, None, "fresh:1")
    for name in ("one", "two", "three"):
        drogue.put(device, name, spec={})
        assert "offset=0" in hasty.post(event(name, device), cbor2.dumps(PACKED)).outcome
        # What the record is written into was read for the decision.
        assert drogue.reads_of(device, name) == 1
    assert drogue.reads_of(device) <= 2  # one, unless the machine took a second for three events


def test_an_image_to_be_pulled_always_is_looked_up_for_each_status(updating: Updating, firmware: Path) -> None:
    updating.begin("always:stable", imagePullPolicy="Always")
    publish(firmware, "always", "2", random_bytes(2000, 2), tag="stable")
    assert updating.report("1", 512).startswith('write; version="2"; offset=0')


def test_what_failed_to_resolve_is_remembered_for_a_while(
    hasty: Function, drogue: Drogue, device: str, firmware: Path
) -> None:
    drogue.put_image("example", device, f"failing:{device}")
    assert hasty.post(event(device), cbor2.dumps(PACKED)).status == 422
    publish(firmware, "failing", device, b"x" * 32)
    assert hasty.post(event(device), cbor2.dumps(PACKED)).status == 422


def test_events_in_flight_are_answered_when_the_platform_stops_the_function(
    drogue: Drogue, environment: dict[str, str], device: str
) -> None:
    gate = Gate(Response(202))
    drogue.command_answers[device] = gate
    with running(environment) as function:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(function.post, event(device), b'{"version": "1"}')
            assert gate.reached.wait(20)
            function.process.terminate()
            time.sleep(0.2)
            gate.opened.set()
            assert answer.result().status == 204
        assert function.process.wait(20) == 0
