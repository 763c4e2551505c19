"""Slow and unavailable registries: events are answered in time, and updates in progress go on."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, less_host, running
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Answer, Function, event
from tests.support.hostile import always, black_hole, endless, hang_up, pausing, redirect, trickling
from tests.support.http import Answer as Hook
from tests.support.http import Request, Response
from tests.support.images import ImageLayout
from tests.support.statuses import STATUS, ago, blocks, in_sync, midway, post, told
from tests.support.timing import DEADLINE, SLACK, Gate
from tests.support.token_realm import TokenRealm

#: Seconds: `MANIFEST_TTL_SECONDS` of the function with a short memory.
TTL = 0.5
#: Seconds after which nothing is fresh any more, and by which a registry that was away is asked again.
MOMENT = 1.05


@pytest.fixture(scope="module")
def hasty(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """A function with a short deadline, and with a short memory for tags."""
    environment = {
        "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        "MANIFEST_TTL_SECONDS": str(TTL),
        "SPEC_TTL_SECONDS": "3600",
        "WAIT_SECONDS": "7",
    }
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), **environment) as function:
        yield function


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Holds back answers until it is opened, at the end of the test at the latest."""
    gate = Gate(Response(503))
    yield gate
    gate.opened.set()


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    started = time.monotonic()
    answer = call()
    return answer, time.monotonic() - started


def late(answer: Hook) -> Hook:
    """`answer`, after a part of what an event has."""

    def answer_late(request: Request) -> Response | None:
        time.sleep(0.4 * DEADLINE)
        return answer(request)

    return answer_late


# --- The deadline


def test_event_is_answered_in_time_without_any_upstream_bytes(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str, gate: Gate
) -> None:
    trickle = trickling(Response(200, b"{}" * 1000))
    hooks: dict[str, Hook] = {}
    for how, hook in (("hangs", gate), ("trickles", trickle)):
        for what in ("manifest", "head", "token"):
            slow = f"{device}-{what}-{how}"
            hooks[slow] = hook
            drogue.put_image("example", slow, f"{slow}:1", imagePullPolicy="Always")
            publish(registry.folder, slow, "1", random_bytes(3000, slow))
            if what == "head":
                assert post(hasty, slow).outcome.startswith("write")
            if what == "token":
                registry.answers[f"/token/{slow}"] = hook
                challenge = f'Bearer realm="{registry.url}/token/{slow}"'
                hooks[slow] = always(Response(401, headers={"WWW-Authenticate": challenge}))
    realm = TokenRealm(f"{registry.url}/token/{device}")
    publish(registry.folder, device, "1", random_bytes(3000, device))
    drogue.put_image("example", device, f"{device}:1")
    registry.answers[f"/token/{device}"] = late(realm)
    hooks[device] = late(realm.guard(device, registry.honest))
    registry.answers.update(hooks)
    time.sleep(MOMENT)
    with ThreadPoolExecutor(len(hooks)) as pool:
        answers = list(pool.map(lambda slow: timed(lambda: post(hasty, slow)), hooks))
    for slow, (answer, elapsed) in zip(hooks, answers, strict=True):
        assert answer.status == 503, (slow, answer)
        assert elapsed < DEADLINE + SLACK, slow
        assert len(told(drogue, slow)) == ("head" in slow)


@pytest.mark.usefixtures("released")
def test_an_event_is_answered_in_time_where_a_manifest_comes_in_the_smallest_of_chunks_without_end(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    registry.answers[device] = endless(b" ")
    answer, elapsed = timed(lambda: post(hasty, device))
    assert answer.status in (422, 503)
    assert elapsed < DEADLINE + SLACK
    assert not blocks(drogue, device)


@pytest.mark.parametrize("how", ["hangs", "trickles", "redirects to what hangs", "redirects to where nobody is"])
def test_a_blob_that_does_not_come_in_time_is_waited_for_and_fetched_once(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str, released: Published, how: str
) -> None:
    gate = Gate(Response(200, released.content))
    registry.answers["/slow"] = gate
    with black_hole() as port:
        hooks: dict[str, Hook] = {
            "hangs": gate,
            "trickles": trickling(Response(200, released.content), 0.0005),
            "redirects to what hangs": always(redirect(f"{registry.url}/slow")),
            "redirects to where nobody is": always(redirect(f"http://127.0.0.1:{port}/")),
        }
        registry.answers[f"{device}/blobs"] = hooks[how]
        answer, elapsed = timed(lambda: post(hasty, device))
        assert answer.outcome.startswith('wait; reason="downloading')
        assert elapsed < DEADLINE + SLACK
        assert told(drogue, device) == [("wait", {0: None, 1: 7})]
        assert hasty.post(event(device), b'{"version": "0"}').outcome.startswith("wait")
        assert len(drogue.commands_for(device)) == 1, "this dialect has no WAIT"
        answers = [post(hasty, device, midway("1", 512)) for _ in range(5)]
        assert {answer.outcome.split(";")[0] for answer in answers} <= {"wait", "write"}
        if how == "redirects to where nobody is":
            return
        gate.opened.set()
        while not (answer := post(hasty, device)).outcome.startswith("write"):
            assert answer.outcome.startswith("wait")
            time.sleep(0.05)
    assert blocks(drogue, device)[-1] == (0, released.content[:512])
    assert registry.asked(device).count(f"GET blobs/sha256:{released.checksum.hex()}") == 1


def test_while_a_download_goes_on_events_are_told_to_wait_at_once(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    content = random_bytes(300_000, device)
    publish(registry.folder, device, "1", content)
    drogue.put_image("example", device, f"{device}:1")
    gate = Gate(Response(200))

    registry.answers[f"{device}/blobs"] = pausing(content, gate)
    assert post(hasty, device).outcome == 'wait; reason="downloading, 100000 of 300000 bytes"'
    answers = [timed(lambda: post(hasty, device, midway("1", 512))) for _ in range(10)]
    assert all(answer.outcome.startswith("wait") for answer, _ in answers)
    assert sorted(elapsed for _, elapsed in answers)[5] < 0.25 * DEADLINE
    gate.opened.set()
    while not (answer := post(hasty, device)).outcome.startswith("write"):
        assert answer.outcome.startswith("wait")
    assert blocks(drogue, device) == [(0, content[:512])]


def test_events_are_answered_in_time_where_the_registry_is_nowhere(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    drogue.put_image("example", device, f"{device}:1")
    with (
        black_hole() as port,
        running(
            drogue,
            registry,
            tmp_path,
            FIRMWARE_REGISTRY=f"127.0.0.1:{port}/",
            EVENT_DEADLINE_SECONDS=str(DEADLINE),
        ) as function,
    ):
        answer, elapsed = timed(lambda: post(function, device))
        assert (answer.status, less_host(answer.reason)) == (503, "OCI registry HOST: no answer in time")
        assert elapsed < DEADLINE + SLACK


@pytest.mark.parametrize("how", ["hangs", "speaks no TLS"])
def test_events_are_answered_in_time_if_the_registry_speaks_no_tls(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path, how: str
) -> None:
    drogue.put_image("example", device, f"{device}:1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_host = f"127.0.0.1:{silent.getsockname()[1]}"
        environment = {
            "FIRMWARE_REGISTRY": silent_host if how == "hangs" else registry.host,
            "FIRMWARE_REGISTRY_INSECURE": "false",
            "EVENT_DEADLINE_SECONDS": str(DEADLINE),
        }
        with running(drogue, registry, tmp_path, **environment) as function:
            answer, elapsed = timed(lambda: post(function, device))
    expected = (
        (503, "OCI registry HOST: no answer in time")
        if how == "hangs"
        else (422, "OCI registry HOST: does not speak TLS")
    )
    assert (answer.status, less_host(answer.reason)) == expected
    assert elapsed < DEADLINE + SLACK


def test_an_image_that_has_to_be_looked_through_is_waited_for(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    layout, content = ImageLayout(registry.folder / device), random_bytes(3000, device)
    layout.tag(layout.image_with_manifest_file(content, "1", gzipped=True), "1")
    drogue.put_image("example", device, f"{device}:1")
    gate = Gate(Response(200))

    def hold_back_the_layer(request: Request) -> Response:
        response = registry.honest(request)
        return gate(request) and response if response.body.startswith(b"\x1f\x8b") else response

    registry.answers[f"{device}/blobs"] = hold_back_the_layer
    answer, elapsed = timed(lambda: post(hasty, device))
    assert answer.outcome == 'wait; reason="looking for firmware.json in the image\'s layers"'
    assert elapsed < DEADLINE + SLACK
    assert told(drogue, device) == [("wait", {0: None, 1: 7})]
    gate.opened.set()
    while not (answer := post(hasty, device)).outcome.startswith("write"):
        assert answer.outcome.startswith("wait"), answer.body
    assert blocks(drogue, device) == [(0, content[:512])]


def test_a_tag_costs_a_head_after_its_time_and_a_digest_nothing(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    by_digest = f"{device}-digest"
    publish(registry.folder, device, "1", random_bytes(3000, device))
    released = publish(registry.folder, by_digest, "1", random_bytes(3000, by_digest))
    drogue.put_image("example", device, f"{device}:1")
    drogue.put_image("example", by_digest, f"{by_digest}@{released.digest}")
    for name in (device, by_digest):
        assert post(hasty, name).outcome.startswith("write")
    for _ in range(2):
        time.sleep(TTL + 0.05)
        for name in (device, by_digest):
            assert post(hasty, name, midway("1", 512)).outcome.startswith("write")
    assert registry.asked(device)[2:] == ["HEAD manifests/1"] * 2
    assert len(registry.asked(by_digest)) == 2


@pytest.mark.usefixtures("released")
def test_of_many_events_only_a_few_wait_for_a_registry_that_hangs(
    hasty: Function, registry: FakeRegistry, device: str, gate: Gate
) -> None:
    registry.answers[device] = gate
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(hasty, device), range(60)))
    assert {answer.status for answer in answers} == {503}
    # Each on its own would take 15 deadlines.
    assert time.monotonic() - started < 4 * DEADLINE
    assert len(registry.asked(device)) < 5


@pytest.mark.usefixtures("released")
def test_timeouts_are_retried_after_a_second_and_failures_later(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, device: str, gate: Gate
) -> None:
    missing = f"{device}-missing"
    drogue.put_image("example", missing, f"{missing}:1")
    assert post(hasty, missing).reason == f"OCI registry {registry.host}: no tag 1 in {missing}"
    publish(registry.folder, missing, "1", b"x" * 32)
    registry.answers[device] = gate
    assert post(hasty, device).status == 503
    del registry.answers[device]
    asked = registry.asked(device)
    answer, elapsed = timed(lambda: post(hasty, device))
    assert answer.status == 503
    assert elapsed < 0.5 * DEADLINE
    assert registry.asked(device) == asked
    time.sleep(MOMENT)
    assert post(hasty, device).outcome.startswith("write")
    assert post(hasty, missing).reason == f"OCI registry {registry.host}: no tag 1 in {missing}"
    assert registry.asked(missing) == ["GET manifests/1"]


# --- Retry-After


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("what", ["manifests", "blobs", "token"])
@pytest.mark.parametrize(
    ("after", "status"),
    [
        (lambda: "3", 503),
        (lambda: "100", 422),
        (lambda: "999999999", 422),
        (lambda: "99999999999999999999", 503),
        (lambda: in_seconds(10), 503),
        (lambda: in_seconds(100), 422),
        (lambda: in_seconds(-100), 503),
        (lambda: "soon", 503),
        (lambda: "-1", 503),
        (lambda: "", 503),
    ],
)
@pytest.mark.usefixtures("released")
def test_a_throttled_event_is_retried_if_the_device_still_listens_by_then(
    hasty: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    what: str,
    after: Callable[[], str],
    status: int,
) -> None:
    value = after()
    throttled = always(Response(429, headers={"Retry-After": value}))
    if what == "token":
        realm = f'Bearer realm="{registry.url}/token/{device}"'
        registry.answers[device] = always(Response(401, headers={"WWW-Authenticate": realm}))
        registry.answers[f"/token/{device}"] = throttled
    else:
        registry.answers[f"{device}/{what}"] = throttled
    answer = post(hasty, device)
    assert answer.status == status
    assert "answered 429" in answer.reason
    if status == 422:
        assert "asks to wait longer than the device listens" in answer.reason
        assert [variant for variant, _ in told(drogue, device)] == ["wait"]
    elif value == "3":
        assert answer.headers["retry-after"] == "3"
    else:
        assert 1 <= int(answer.headers["retry-after"]) <= 10


@pytest.mark.usefixtures("released")
def test_a_registry_that_is_not_available_says_when_to_ask_again(
    hasty: Function, registry: FakeRegistry, device: str
) -> None:
    registry.answers[device] = always(Response(503, headers={"Retry-After": "7"}))
    answer = post(hasty, device)
    assert (answer.status, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.usefixtures("released")
def test_what_is_left_of_the_events_age_decides(hasty: Function, registry: FakeRegistry, device: str) -> None:
    registry.answers[device] = always(Response(429, headers={"Retry-After": "20"}))
    assert post(hasty, device).status == 503
    old = (datetime.now(UTC) - timedelta(seconds=10)).isoformat()
    assert post(hasty, device, time=old).status == 422


# --- Away


@pytest.fixture
def ways(device: str, gate: Gate) -> dict[str, Hook]:
    """Names of devices and their repositories, each of which is to be away in another way."""
    return {f"{device}-hangs": gate, f"{device}-closes": hang_up, f"{device}-503": always(Response(503))}


def test_a_registry_that_takes_most_of_an_events_time_does_not_keep_updates_from_starting_or_ending(
    drogue: Drogue, registry: FakeRegistry, device: str, released: Published, tmp_path: Path
) -> None:
    def slow(request: Request) -> Response | None:
        time.sleep(3.6)
        return registry.honest(request)

    with running(drogue, registry, tmp_path, EVENT_DEADLINE_SECONDS="6", MANIFEST_TTL_SECONDS=str(MOMENT)) as function:
        assert post(function, device).outcome.startswith("write")
        time.sleep(MOMENT)  # what is known is old now, and would do to go on with
        registry.answers[f"{device}/manifests"] = slow
        assert post(function, device).outcome.startswith('write; version="1"; offset=0')
        time.sleep(MOMENT)
        assert post(function, device, midway("1", len(released.content))).outcome == 'swap; version="1"'


def test_without_the_registry_updates_by_tag_go_on_for_a_while_and_start_and_end_when_it_is_back(
    hasty: Function, drogue: Drogue, registry: FakeRegistry, ways: dict[str, Hook]
) -> None:
    content = {}
    for away in ways:
        content[away] = publish(registry.folder, away, "1", random_bytes(3000, away)).content
        drogue.put_image("example", away, f"{away}:1")
        assert post(hasty, away).outcome.startswith("write")
    looked = time.monotonic()
    registry.answers.update(ways)
    time.sleep(MOMENT)
    for away in ways:
        for offset in (512, 1024):
            assert post(hasty, away, midway("1", offset)).outcome == f'write; version="1"; offset={offset}; size=512'
            assert blocks(drogue, away)[-1] == (offset, content[away][offset : offset + 512])
        assert post(hasty, away, in_sync("1")).outcome == "sync"
        for status in (STATUS, midway("1", 3000), midway("2", 512)):
            answer, elapsed = timed(lambda away=away, status=status: post(hasty, away, status))  # type: ignore[misc]
            assert (answer.status, answer.json["outcome"]) == (503, "retry")
            assert elapsed < DEADLINE + SLACK
        (line,) = hasty.logged("serving stale manifest", f'"{away}:1"')
        assert '"WARNING"' in line
    time.sleep(max(0.0, looked + 10 * TTL + 0.1 - time.monotonic()))
    for away in ways:
        assert post(hasty, away, midway("1", 512)).status == 503
        del registry.answers[away]
    time.sleep(MOMENT)
    for away in ways:
        assert post(hasty, away, midway("1", 3000)).outcome == 'swap; version="1"'


def test_without_the_registry_updates_by_digest_go_all_the_way(
    hasty: Function, registry: FakeRegistry, drogue: Drogue, ways: dict[str, Hook]
) -> None:
    for away in ways:
        released = publish(registry.folder, away, "1", random_bytes(3000, away))
        drogue.put_image("example", away, f"{away}@{released.digest}")
        assert post(hasty, away).outcome.startswith("write")
    registry.answers.update(ways)
    time.sleep(MOMENT)
    for away in ways:
        outcomes = [post(hasty, away, status).outcome for status in (STATUS, midway("1", 512), midway("1", 3000))]
        assert [outcome.split(";")[0] for outcome in outcomes] == ["write", "write", "swap"]
        assert post(hasty, away, in_sync("1")).outcome == "sync"
        assert len(registry.asked(away)) == 2


@pytest.mark.usefixtures("released")
def test_deleted_tag_ends_updates_in_progress(hasty: Function, registry: FakeRegistry, device: str) -> None:
    assert post(hasty, device).outcome.startswith("write")
    registry.answers[f"{device}/manifests"] = always(Response(404))
    time.sleep(2 * TTL)
    assert post(hasty, device, midway("1", 512)).reason == f"OCI registry {registry.host}: no tag 1 in {device}"


def test_function_started_without_registry_serves_cached_digests(drogue: Drogue, tmp_path: Path, device: str) -> None:
    with FakeRegistry(tmp_path / "registry") as registry:
        released = publish(registry.folder, device, "1", random_bytes(3000, device))
        drogue.put_image("example", device, f"{device}@{released.digest}")
        drogue.put_image("example", f"{device}-tag", f"{device}:1")
        with running(drogue, registry, tmp_path / "cache") as function:
            assert post(function, device, time=ago(3)).outcome.startswith("write")
            assert post(function, f"{device}-tag", time=ago(3)).outcome.startswith("write")
    with running(drogue, registry, tmp_path / "cache") as function:
        outcomes = [post(function, device, status).outcome for status in (STATUS, midway("1", 512), midway("1", 3000))]
        assert [outcome.split(";")[0] for outcome in outcomes] == ["write", "write", "swap"]
        assert blocks(drogue, device)[1:] == [(0, released.content[:512]), (512, released.content[512:1024])]
        answer = post(function, f"{device}-tag")
        assert (answer.status, less_host(answer.reason)) == (503, "OCI registry HOST: connection refused")
