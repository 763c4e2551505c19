"""What keeps an update from harming a device: one rule of the protocol's description after the other."""

import base64
import hashlib
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet_fn.protocol.messages import Progress, Status, Swap, Sync, Write
from fleet_fn.sandbox.device_wire import Dialect, Encoding, decode_command, encode_status
from fleet_fn.sandbox.simulated_device import CrateDevice, FirmwareManagerDevice, SimulatedDevice
from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.http import Response
from tests.support.statuses import FORMS, STATUS, ago, blocks, in_sync, midway, post, told

SIZE = 200_000
EMBEDDED = [form for form in FORMS if form[0] != "documented"]
DOCUMENTED = [form for form in FORMS if form[0] == "documented"]


@pytest.fixture(scope="module")
def contents(firmware: Path) -> dict[str, bytes]:
    contents = {version: random_bytes(SIZE, version) for version in ("1.1", "1.2")}
    for version, content in contents.items():
        publish(firmware, "safe", version, content)
    return contents


@pytest.fixture
def managed(drogue: Drogue, device: str, contents: dict[str, bytes]) -> str:
    assert contents
    drogue.put_image("example", device, "safe:1.1")
    return device


def changes(function: Function, drogue: Drogue, device: str, spec: dict[str, Any]) -> None:
    """Change a device's spec, and let the function know, as Drogue Cloud does."""
    drogue.put("example", device, spec=spec)
    function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")


def wants(function: Function, drogue: Drogue, device: str, tag: str, **rollout: Any) -> None:
    changes(function, drogue, device, {"firmware": {"container": {"image": f"safe:{tag}"}, "rollout": rollout}})


def report(
    function: Function, device: str, status: Status, form: tuple[Dialect, Encoding], **attributes: str
) -> Answer:
    payload, content_type = encode_status(status, *form)
    return function.post(event(device, datacontenttype=content_type, **attributes), payload)


def last(drogue: Drogue, device: str) -> Any:
    sent = drogue.commands_for(device)[-1]
    return decode_command(sent.payload, sent.content_type)[0]


# --- A version that came up -------------------------------------------------------------------------------------------


def swap(function: Function, device: str, form: tuple[Dialect, Encoding]) -> None:
    """Take a device through an update to 1.1 up to its SWAP."""
    assert report(function, device, Status(b"1.0"), form).outcome.startswith("write")
    assert report(function, device, Status(b"1.0", progress=Progress(b"1.1", SIZE)), form).outcome.startswith("swap")


@pytest.mark.parametrize("form", FORMS)
def test_a_target_that_moves_between_swap_and_sync_waits_for_sync(
    function: Function, drogue: Drogue, managed: str, form: tuple[Dialect, Encoding]
) -> None:
    swap(function, managed, form)
    wants(function, drogue, managed, "1.2")
    told_sync = 0
    while report(function, managed, Status(b"1.1"), form).outcome == "sync":
        assert last(drogue, managed) == Sync(b"1.1", 300)
        told_sync += 1
    # It reports sooner than it was asked to: as far as can be told, it has not heard.
    assert told_sync == (2 if form in DOCUMENTED else 3)
    assert isinstance(last(drogue, managed), Write)
    assert last(drogue, managed).version == b"1.2"


@pytest.mark.parametrize(
    ("image", "reason"),
    [("safe:none", "no tag none in the layout safe"), ("nowhere:1", "no image layout nowhere")],
)
def test_sync_comes_whatever_is_wrong_with_the_target(
    function: Function, drogue: Drogue, managed: str, image: str, reason: str
) -> None:
    swap(function, managed, ("packed", "cbor"))
    changes(function, drogue, managed, {"firmware": {"container": {"image": image}}})
    assert post(function, managed, in_sync("1.1")).outcome == "sync"
    assert told(drogue, managed)[-1] == ("sync", {0: b"1.1", 1: None, 2: 300})
    found = drogue.reported(managed)
    (condition,) = found["conditions"]
    assert (found["target"], condition["status"], condition["reason"]) == ("Unknown", "False", reason)


def test_a_device_that_was_never_swapped_starts_at_once(function: Function, drogue: Drogue, managed: str) -> None:
    assert post(function, managed, in_sync("1.1")).outcome == "sync"
    wants(function, drogue, managed, "1.2")
    assert post(function, managed, in_sync("1.1")).outcome.startswith('write; version="1.2"; offset=0')


# --- A target that moves midway ---------------------------------------------------------------------------------------


def drive(
    function: Function, drogue: Drogue, name: str, device: SimulatedDevice, form: tuple[Dialect, Encoding]
) -> Iterator[str]:
    """Have a device do as it is told; yields each outcome."""
    while True:
        sent = len(drogue.commands_for(name))
        outcome = report(function, name, device.status(), form).headers.get("fleet-outcome", "")
        for command in drogue.commands_for(name)[sent:]:
            device.handle(*decode_command(command.payload, command.content_type))
        yield outcome


@pytest.mark.parametrize("form", EMBEDDED)
@pytest.mark.parametrize("make", [FirmwareManagerDevice, CrateDevice])
def test_a_device_that_cannot_restart_finishes_what_it_has_begun(
    function: Function,
    drogue: Drogue,
    managed: str,
    contents: dict[str, bytes],
    form: tuple[Dialect, Encoding],
    make: type[SimulatedDevice],
) -> None:
    device = make(b"1.0", mtu=16_384)
    course = drive(function, drogue, managed, device, form)
    for _ in range(5):
        assert next(course).startswith('write; version="1.1"')
    wants(function, drogue, managed, "1.2")
    outcomes = list(itertools.islice(course, 2))
    condition = drogue.reported(managed)["conditions"][0]
    assert (condition["reason"], drogue.reported(managed)["target"]) == ("finishing", "1.2")
    outcomes += itertools.islice(itertools.takewhile(lambda _: device.version != b"1.2", course), 60)
    assert all(outcome.startswith(("write", "swap", "sync")) for outcome in outcomes), outcomes
    assert [boot.sha256 for boot in device.boots] == [
        hashlib.sha256(contents[version]).hexdigest() for version in ("1.1", "1.2")
    ]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("policy", [None, "finish", "restart"])
def test_what_a_device_midway_gets_is_the_operators_choice(
    function: Function, drogue: Drogue, managed: str, form: tuple[Dialect, Encoding], policy: str | None
) -> None:
    assert report(function, managed, Status(b"1.0"), form).outcome.startswith("write")
    wants(function, drogue, managed, "1.2", **({"midway": policy} if policy else {}))
    outcome = report(function, managed, Status(b"1.0", progress=Progress(b"1.1", 512)), form).outcome
    finishes = policy == "finish" or (policy is None and form in EMBEDDED)
    expected = 'write; version="1.1"; offset=512' if finishes else 'write; version="1.2"; offset=0'
    assert outcome.startswith(expected)


def test_a_device_midway_in_a_version_that_is_gone_restarts(
    function: Function, drogue: Drogue, device: str, firmware: Path, contents: dict[str, bytes]
) -> None:
    assert contents
    publish(firmware, f"{device}-gone", "1", random_bytes(2000, device))
    changes(function, drogue, device, {"firmware": {"container": {"image": f"{device}-gone:1"}}})
    assert post(function, device).outcome.startswith("write")
    for path in sorted((firmware / f"{device}-gone").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    wants(function, drogue, device, "1.2")
    assert post(function, device, midway("1", 512)).outcome.startswith('write; version="1.2"; offset=0')


def test_a_paused_device_midway_gets_nothing_of_what_it_has_begun(
    function: Function, drogue: Drogue, managed: str
) -> None:
    assert post(function, managed).outcome.startswith("write")
    wants(function, drogue, managed, "1.2", paused=True)
    assert post(function, managed, midway("1.1", 512)).outcome == 'withheld; reason="paused"'


# --- Records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [None, "other bytes"])
@pytest.mark.parametrize("offset", [512, 1000, SIZE])
def test_a_device_midway_without_a_record_of_these_bytes_restarts(
    function: Function, drogue: Drogue, managed: str, offset: int, record: str | None
) -> None:
    if record:
        update = {"version": "1.1", "checksum": "ab" * 32, "started": "2026-11-28T12:00:00Z"}
        drogue.put("example", managed, spec=drogue.object("example", managed)["spec"],
                   status={"firmware": {"update": update}})  # fmt: skip
    assert post(function, managed, midway("1.1", offset)).outcome.startswith('write; version="1.1"; offset=0')


def test_a_record_that_is_wiped_after_an_order_is_not_taken_for_all_is_well(
    function: Function, drogue: Drogue, managed: str
) -> None:
    assert post(function, managed, midway("1.1", 2048)).outcome.startswith('write; version="1.1"; offset=0')
    changes(function, drogue, managed, drogue.object("example", managed)["spec"])
    drogue.put("example", managed, spec=drogue.object("example", managed)["spec"], status={})
    function.post(event(managed, type="io.drogue.registry.v1", subject="devices"), b"")
    for offset in (2048, SIZE):
        assert post(function, managed, midway("1.1", offset)).outcome.split(";")[0] in ("write", "failed")
        assert told(drogue, managed)[-1][0] in ("write", "sync")
        assert all(at == 0 for at, _ in blocks(drogue, managed))


@pytest.mark.parametrize("mtus", [(512, 1024), (1024, 512, 64)])
def test_orders_to_restart_end_whatever_becomes_of_the_block_size(
    function: Function, managed: str, mtus: tuple[int, ...]
) -> None:
    outcomes = []
    for number in range(10):
        status = midway("1.1", 512) | {1: mtus[number % len(mtus)]}
        answer = post(
            function, managed, status, time=(datetime.now(UTC) - timedelta(seconds=20 - 2 * number)).isoformat()
        )
        outcomes.append(answer.outcome.split(";")[0])
        if outcomes[-1] == "failed":
            assert answer.reason == "device-offset"
            break
    assert outcomes[-1] == "failed"
    assert len(outcomes) <= 7


def test_one_time_in_the_future_holds_up_no_later_status(function: Function, drogue: Drogue, managed: str) -> None:
    assert post(function, managed, time="2036-01-01T00:00:00Z").outcome.startswith("write")
    assert post(function, managed, midway("1.1", SIZE)).outcome.startswith("swap")
    assert post(function, managed).outcome == 'withheld; reason="backoff"'
    record = drogue.reported(managed)["update"]
    assert record["attempts"] == 1
    assert datetime.fromisoformat(record["answered"]["time"]) <= datetime.now(UTC)
    record["answered"]["time"] = "2036-01-01T00:00:00+00:00"
    drogue.put("example", managed, spec=drogue.object("example", managed)["spec"],
               status={"firmware": {"update": record}})  # fmt: skip
    function.post(event(managed, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, managed, STATUS | {1: 64}).outcome.startswith("write")
    assert post(function, managed, midway("1.1", SIZE)).outcome.startswith("swap")
    assert post(function, managed).outcome == 'withheld; reason="backoff"'
    assert drogue.reported(managed)["update"]["attempts"] == 2


def test_a_device_that_was_created_anew_is_not_continued_by_the_record_of_its_namesake(
    function: Function, drogue: Drogue, managed: str
) -> None:
    assert post(function, managed).outcome.startswith("write")
    assert post(function, managed, midway("1.1", 512)).outcome.startswith('write; version="1.1"; offset=512')
    found = drogue.object("example", managed)
    drogue.recreate("example", managed, spec=found["spec"])
    uid = drogue.object("example", managed)["metadata"]["uid"]
    answer = post(function, managed, midway("1.1", 1024), deviceuid=uid)
    assert answer.outcome.startswith('write; version="1.1"; offset=0')


# --- Commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mtu", [48_000, 49_121, 65_000, 65_472, 65_535, 65_536, 2**32 - 1])
def test_a_block_is_shortened_until_its_command_fits(
    function: Function,
    drogue: Drogue,
    managed: str,
    contents: dict[str, bytes],
    mtu: int,
    form: tuple[Dialect, Encoding],
) -> None:
    flash = b""
    for _ in range(2):
        progress = Progress(b"1.1", len(flash)) if flash else None
        answer = report(function, managed, Status(b"1.0", mtu, 2**32 - 1, progress), form)
        assert answer.outcome.startswith("write")
        write = last(drogue, managed)
        assert write.offset == len(flash)
        flash += write.data
        payload = drogue.commands_for(managed)[-1].payload
        assert len(payload) <= 65_536
        if len(write.data) != min(mtu, 65_536):
            assert len(write.data) % 32 == 0
            one_more = len(payload) + (40 if form[1] == "json" else 32)
            assert one_more > 65_536, "the block could be larger"
    assert contents["1.1"].startswith(flash)


def test_the_last_block_is_not_cut_if_it_fits(function: Function, managed: str) -> None:
    assert post(function, managed).outcome.startswith("write")
    start = SIZE - 65_001
    answer = post(function, managed, midway("1.1", start) | {1: 65_536})
    assert answer.outcome == f'write; version="1.1"; offset={start}; size=65001'


@pytest.mark.parametrize("where", ["device", "application"])
def test_a_spec_can_cap_the_block(function: Function, drogue: Drogue, managed: str, where: str) -> None:
    cap = {"mtu": 2016}
    own = {"container": {"image": "safe:1.1"}}
    try:
        if where == "application":
            drogue.put("example", spec={"firmware": cap})
            function.post(event("", type="io.drogue.registry.v1", subject="devices"), b"")
        changes(function, drogue, managed, {"firmware": own | (cap if where == "device" else {})})
        assert post(function, managed, STATUS | {1: 4096}).outcome.endswith("size=2016")
        assert post(function, managed, STATUS | {1: 512}).outcome.endswith("size=512")
    finally:
        drogue.put("example", spec={})


@pytest.mark.parametrize("where", ["device", "application"])
def test_a_disabled_device_is_never_sent_anything(
    drogue: Drogue, environment: dict[str, str], device: str, contents: dict[str, bytes], where: str
) -> None:
    assert contents
    core = {"core": {"disabled": True}}
    application = f"disabled-{where}"
    drogue.put(application, spec=core if where == "application" else {})
    image = {"firmware": {"container": {"image": "safe:1.1"}}}
    drogue.put(application, device, spec=image | (core if where == "device" else {}))
    with running(environment) as function:
        answer = function.post(event(device, application, datacontenttype="application/cbor"), cbor2.dumps(STATUS))
    assert (answer.status, answer.reason) == (422, "device disabled")
    assert not drogue.commands_for(device)
    condition = drogue.reported(device, application)["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("False", "device disabled")


@pytest.mark.parametrize("code", [404, 406, 413])
@pytest.mark.parametrize("offset", [0, 512])
def test_a_refused_command_leaves_its_reason_and_no_start(
    function: Function, drogue: Drogue, managed: str, code: int, offset: int
) -> None:
    if offset:
        assert post(function, managed).outcome.startswith("write")
    before = (drogue.reported(managed) or {}).get("update")
    drogue.command_answers[managed] = lambda _: Response(code)
    answer = post(function, managed, midway("1.1", offset) if offset else STATUS)
    assert answer.status == 422
    assert "command API" in answer.reason
    found = drogue.reported(managed)
    assert (found["conditions"][0]["reason"], found["target"]) == (answer.reason, "Unknown")
    assert found.get("update") == before
    del drogue.command_answers[managed]
    answer = post(function, managed, midway("1.1", offset) if offset else STATUS)
    assert answer.outcome.startswith(f'write; version="1.1"; offset={offset}')
    assert "reason" not in drogue.reported(managed)["conditions"][0]


def test_a_block_that_is_asked_for_again_and_again_is_reported_and_goes_when_it_is_taken(
    function: Function, drogue: Drogue, managed: str
) -> None:
    assert post(function, managed).outcome.startswith("write")
    for number in range(1, 8):
        assert post(function, managed, midway("1.1", 1024)).outcome.startswith("write")
        condition = drogue.reported(managed)["conditions"][0]
        assert condition.get("reason") == ("block-refused" if number >= 5 else None)
    assert "refuses the block at 1024" in condition["message"]
    assert "--pad-to 32" in condition["message"]
    writes = drogue.writes_of("example", managed)
    assert writes == 2
    assert post(function, managed, midway("1.1", 1536)).outcome.startswith("write")
    assert "reason" not in drogue.reported(managed)["conditions"][0]


def test_a_device_that_refuses_to_start_is_told_sync_after_a_while(
    function: Function, drogue: Drogue, managed: str
) -> None:
    """A bootloader whose firmware was never marked good refuses, and the device forgets the version."""
    now = datetime.now(UTC)
    outcomes = [
        post(function, managed, time=(now - timedelta(seconds=22 - 1.5 * number)).isoformat()).outcome
        for number in range(12)
    ]
    assert [outcome.split(";")[0] for outcome in outcomes] == ["write"] * 5 + ["sync"] + ["write"] * 5 + ["sync"]
    assert told(drogue, managed)[5] == ("sync", {0: STATUS[0], 1: None, 2: 300})


def test_a_swap_that_was_refused_for_too_long_is_no_attempt(function: Function, drogue: Drogue, managed: str) -> None:
    assert post(function, managed, time=ago(10)).outcome.startswith("write")
    drogue.command_answers[managed] = lambda _: Response(429, headers={"Retry-After": "60"})
    assert post(function, managed, midway("1.1", SIZE), time=ago(5)).status == 422
    del drogue.command_answers[managed]
    assert "swapped" not in drogue.reported(managed)["update"]
    assert post(function, managed, time=ago(1)).outcome.startswith("write")  # its power was cut


def test_a_device_that_keeps_the_progress_of_the_version_that_it_runs_gets_the_next(
    function: Function, drogue: Drogue, managed: str
) -> None:
    form: tuple[Dialect, Encoding] = ("packed", "cbor")
    swap(function, managed, form)
    up = Status(b"1.1", progress=Progress(b"1.1", SIZE))
    assert report(function, managed, up, form).outcome == "sync"
    wants(function, drogue, managed, "1.2")
    outcomes = [report(function, managed, up, form).outcome.split(";")[0] for _ in range(3)]
    assert outcomes == ["sync", "sync", "write"]


# --- Gateways ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correlation_id", "held"), [(None, True), (7, False)])
def test_a_device_is_held_while_its_gateway_would_take_its_blocks(
    function: Function, drogue: Drogue, managed: str, correlation_id: int | None, held: bool
) -> None:
    gateway = f"{managed}-gateway"
    drogue.put_image("example", gateway, "safe:1.1")
    own = {"firmware": {"container": {"image": "safe:1.1"}}, "gatewaySelector": {"matchNames": [gateway, "other"]}}
    changes(function, drogue, managed, own)
    assert post(function, gateway, STATUS | {2: correlation_id}).outcome.startswith("write")
    outcome = post(function, managed).outcome
    assert outcome.startswith('withheld; reason="paused"' if held else "write")
    if not held:
        return
    message = drogue.reported(managed)["conditions"][0]["message"]
    assert gateway in message
    assert post(function, managed, in_sync("1.1")).outcome == "sync"
    # Once the gateway is up again, the device goes on.
    assert post(function, gateway, midway("1.1", SIZE)).outcome.startswith("swap")
    assert post(function, gateway, in_sync("1.1")).outcome == "sync"
    changes(function, drogue, managed, own)
    function.post(event(gateway, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, managed).outcome.startswith("write")


@pytest.mark.parametrize("answer", [Response(404), Response(503)])
def test_a_gateway_that_cannot_be_read_costs_a_device_in_sync_nothing(
    function: Function, drogue: Drogue, managed: str, answer: Response
) -> None:
    gateway = f"{managed}-gateway"
    drogue.put("example", gateway, spec={})
    drogue.registry_answers["example", gateway] = lambda _: answer
    own = {"firmware": {"container": {"image": "safe:1.1"}}, "gatewaySelector": {"matchNames": [gateway]}}
    changes(function, drogue, managed, own)
    assert post(function, managed, in_sync("1.1")).outcome == "sync"
    assert drogue.reads_of("example", gateway) == 0
    if answer.status == 404:
        assert post(function, managed).outcome.startswith("write")
        before = drogue.reads_of("example", gateway)
        for offset in range(512, 4096, 512):
            assert post(function, managed, midway("1.1", offset)).outcome.startswith("write")
        assert drogue.reads_of("example", gateway) <= before + 1


def test_shapes_of_the_messages_here_are_what_devices_read() -> None:
    """The helper above decodes as devices do: one known block, in JSON."""
    payload = json.dumps({"op": "WRITE", "version": "1", "offset": 0, "size": 2,
                          "data": base64.b64encode(b"hi").decode()}).encode()  # fmt: skip
    assert decode_command(payload, "application/json")[0] == Write(b"1", 0, b"hi")
    swap_payload = json.dumps({"op": "SWAP", "version": "1", "checksum": "00" * 32}).encode()
    assert decode_command(swap_payload, "application/json")[0] == Swap(b"1", bytes(32))
