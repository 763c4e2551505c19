"""What is reported of devices: when, in which shape, and what of it matters for what they are told."""

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
import requests

from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.hostile import always, hang_up
from tests.support.http import Request, Response
from tests.support.statuses import STATUS, blocks, in_sync, midway, told
from tests.support.timing import DEADLINE, SLACK, Gate

SIZE, MTU = 20_000, 50
OLD = STATUS | {1: MTU}


@pytest.fixture(scope="session")
def content(firmware: Path) -> bytes:
    content = random_bytes(SIZE, "reported")
    publish(firmware, "reported", "0.1.1", content)
    publish(firmware, "reported", "0.1.2", random_bytes(SIZE, "newer"))
    return content


@pytest.fixture
def managed(drogue: Drogue, device: str, content: bytes) -> str:
    assert content
    drogue.put_image("example", device, "reported:0.1.1")
    return device


@pytest.fixture(scope="module")
def hasty(environment: dict[str, str]) -> Iterator[Function]:
    with running(environment | {"EVENT_DEADLINE_SECONDS": str(DEADLINE)}) as function:
        yield function


@pytest.fixture
def two(environment: dict[str, str]) -> Iterator[tuple[Function, Function]]:
    """Two processes that remember specs for long."""
    remembering = environment | {"SPEC_TTL_SECONDS": "3600"}
    with running(remembering) as one, running(remembering) as other:
        yield one, other


def post(function: Function, device: str, status: dict[int, Any], **attributes: str | None) -> Answer:
    return function.post(event(device, datacontenttype="application/cbor", **attributes), cbor2.dumps(status))


def at(offset: int, version: str = "0.1.1") -> dict[int, Any]:
    return midway(version, offset) | {1: MTU}


def conditions(drogue: Drogue, device: str) -> dict[str, dict[str, str]]:
    return {condition["type"]: condition for condition in drogue.reported(device)["conditions"]}


# --- What is written, and when


def test_an_update_of_400_blocks_is_reported_at_its_transitions(
    function: Function, drogue: Drogue, managed: str
) -> None:
    reported = []

    def exchange(status: dict[int, Any]) -> None:
        writes = drogue.writes_of("example", managed)
        assert post(function, managed, status).status == 204
        if drogue.writes_of("example", managed) > writes:
            progress = conditions(drogue, managed).get("UpdateProgress", {})
            reported.append(progress.get("message", drogue.reported(managed)["conditions"][0]["status"]))

    exchange(OLD)
    for offset in range(MTU, SIZE, MTU):
        exchange(at(offset))
    exchange(at(SIZE))
    exchange(in_sync("0.1.1"))
    for _ in range(3):
        exchange(in_sync("0.1.1"))
    tenths = [f"{tenth}0.00" for tenth in range(1, 11)]
    assert reported == ["0.25", *tenths, "100.00", "True"]


def test_the_shape_is_the_one_that_consoles_read(function: Function, drogue: Drogue, managed: str) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    time = datetime.now(UTC).isoformat()
    post(function, managed, OLD, time=time)
    found = drogue.reported(managed)
    started = found["update"].pop("started")
    answered = found["update"].pop("answered")
    assert (len(answered["events"]), answered["time"]) == (1, time)
    assert found["update"].pop("device") == event(managed)["deviceuid"]
    assert re.fullmatch("reported@sha256:[0-9a-f]{64}", found["update"].pop("origin")["image"])
    assert before <= datetime.fromisoformat(started) <= datetime.now(UTC)
    times = [condition.pop("lastTransitionTime") for condition in found["conditions"]]
    times += [found.pop("reported"), found.pop("seen")]
    assert all(before <= datetime.fromisoformat(time) <= datetime.now(UTC) and time.endswith("Z") for time in times)
    checksum = hashlib.sha256(random_bytes(SIZE, "reported")).hexdigest()
    assert found == {
        "current": "0.1.0",
        "target": "0.1.1",
        "conditions": [
            {"type": "InSync", "status": "False"},
            {"type": "UpdateProgress", "status": "Unknown", "message": "0.25"},
        ],
        "update": {"version": "0.1.1", "checksum": checksum, "attempts": 0},
    }
    post(function, managed, at(SIZE))
    post(function, managed, in_sync("0.1.1"))
    found = drogue.reported(managed)
    assert (found["current"], found["target"]) == ("0.1.1", "0.1.1")
    assert [(c["type"], c["status"], sorted(c)) for c in found["conditions"]] == [
        ("InSync", "True", ["lastTransitionTime", "status", "type"])
    ]
    assert found["update"]["swapped"]
    assert found["update"]["synced"]


def test_what_one_process_has_noted_does_not_keep_another_from_reporting(
    two: tuple[Function, Function], drogue: Drogue, managed: str
) -> None:
    one, other = two
    assert post(other, managed, OLD).outcome.startswith("write")
    assert post(one, managed, at(SIZE)).outcome.startswith("swap")
    assert post(other, managed, in_sync("0.1.1")).outcome == "sync"
    assert conditions(drogue, managed)["InSync"]["status"] == "True"


def test_the_time_of_a_transition_changes_with_the_status_only(
    function: Function, drogue: Drogue, managed: str
) -> None:
    past = "2020-01-01T00:00:00Z"
    stood = [
        {"type": "InSync", "status": "False", "lastTransitionTime": past, "reason": "x"},
        {"type": "UpdateProgress", "status": "False", "lastTransitionTime": past},
    ]
    drogue.put_image("example", managed, "reported:0.1.1")
    drogue.put(
        "example",
        managed,
        spec={"firmware": {"container": {"image": "reported:0.1.1"}}},
        status={"firmware": {"current": "0", "target": "1", "conditions": stood}},
    )
    post(function, managed, OLD)
    found = conditions(drogue, managed)
    assert found["InSync"]["lastTransitionTime"] == past
    assert found["UpdateProgress"]["lastTransitionTime"] != past


def test_what_others_wrote_stays(function: Function, drogue: Drogue, managed: str) -> None:
    theirs = {"type": "Reachable", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z", "odd": [1, None]}
    spec = {"firmware": {"container": {"image": "reported:0.1.1"}, "x-unrelated": 1.5}, "other": {"ä": "ö"}}
    status = {"connection": {"connected": True}, "firmware": {"note": "keep", "conditions": [theirs]}}
    drogue.put("example", managed, labels={"ring": "canary"}, spec=spec, status=status)
    read = drogue._objects["example", managed]["metadata"]
    for given in (OLD, at(SIZE), in_sync("0.1.1")):
        assert post(function, managed, given).status == 204
        stands = drogue._objects["example", managed]
        assert stands["spec"] == spec
        assert stands["status"]["connection"] == {"connected": True}
        assert stands["status"]["firmware"]["note"] == "keep"
        assert stands["status"]["firmware"]["conditions"][-1] == theirs
        assert {**stands["metadata"], "resourceVersion": 0} == {**read, "resourceVersion": 0}


@pytest.mark.parametrize(
    "status",
    [
        {"firmware": "broken"},
        {"firmware": {"conditions": {}, "update": []}},
        {"firmware": {"conditions": ["x", {"type": 5}], "update": {"version": 1, "checksum": None}}},
        {"firmware": {"update": {"version": "0.1.1", "checksum": "x", "attempts": -1, "restart": 5, "previous": "?"}}},
        None,
    ],
)
def test_whatever_stands_there_it_is_reported(function: Function, drogue: Drogue, managed: str, status: object) -> None:
    drogue.put("example", managed, spec={"firmware": {"container": {"image": "reported:0.1.1"}}}, status=status)
    assert post(function, managed, OLD).outcome.startswith("write")
    assert drogue.reported(managed)["target"] == "0.1.1"


def test_an_error_is_reported_once_and_goes_when_it_is_mended(
    function: Function, drogue: Drogue, device: str, content: bytes
) -> None:
    assert content
    drogue.put_image("example", device, f"reported:{device}")
    for _ in range(3):
        assert post(function, device, OLD).status == 422
    assert drogue.writes_of("example", device) == 1
    found = drogue.reported(device)
    assert (found["current"], found["target"]) == ("0.1.0", "Unknown")
    (condition,) = found["conditions"]
    assert (condition["type"], condition["status"]) == ("InSync", "False")
    assert condition["reason"] == f"no tag {device} in the layout reported"
    drogue.put_image("example", device, "reported:0.1.1")
    function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")
    post(function, device, in_sync("0.1.1"))
    assert conditions(drogue, device).keys() == {"InSync"}


def test_nothing_is_reported_of_devices_for_which_nothing_is_desired(
    function: Function, drogue: Drogue, device: str
) -> None:
    post(function, device, OLD)
    assert drogue.writes_of("example", device) == 0
    assert drogue.reported(device) is None


def test_a_preview_reports_nothing(function: Function, drogue: Drogue, managed: str) -> None:
    for status in (OLD, at(512, "0.0.9"), at(SIZE), in_sync("0.1.1")):
        function.post(event(managed), cbor2.dumps(status), path="/preview")
    assert drogue.writes_of("example", managed) == 0


def test_where_status_is_not_to_be_reported_nothing_is_written_and_what_stands_there_means_nothing(
    drogue: Drogue, environment: dict[str, str], managed: str
) -> None:
    record = {"version": "0.1.1", "checksum": "x", "attempts": 99, "restart": {"sent": 1, "midway": 2, "stuck": True}}
    spec = {"firmware": {"container": {"image": "reported:0.1.1"}}}
    drogue.put("example", managed, spec=spec, status={"firmware": {"update": record}})
    with running(environment | {"REPORT_STATUS": "false"}) as function:
        outcomes = [
            post(function, managed, status).outcome.split(";")[0]
            for status in (OLD, at(MTU), at(512, "0.0.9"), at(SIZE), in_sync("0.1.1"))
        ]
    assert outcomes == ["write", "write", "write", "swap", "sync"]
    assert drogue.writes_of("example", managed) == 0


# --- Writing goes wrong


def conflicts(times: int) -> Any:
    """Somebody else writes the object first, so many times."""
    left = itertools.count(times, -1)

    def answer(_: Request) -> Response:
        return Response(409 if next(left) > 0 else 204)

    return answer


def test_a_conflict_is_read_again_and_tried_again(function: Function, drogue: Drogue, managed: str) -> None:
    drogue.write_answers["example", managed] = conflicts(1)
    assert post(function, managed, OLD).outcome.startswith("write")
    assert drogue.writes_of("example", managed) == 2
    assert drogue.reported(managed)["target"] == "0.1.1"


def test_a_second_conflict_gives_up_a_report_of_progress_and_makes_no_failure_of_a_success(
    function: Function, drogue: Drogue, managed: str
) -> None:
    assert post(function, managed, OLD).outcome.startswith("write")
    assert post(function, managed, at(MTU)).outcome.startswith("write")
    reported, written = drogue.reported(managed), drogue.writes_of("example", managed)
    drogue.write_answers["example", managed] = conflicts(2)
    assert post(function, managed, at(SIZE // 10 - MTU)).outcome.startswith("write")
    assert drogue.writes_of("example", managed) == written + 2
    assert drogue.reported(managed) == reported
    assert function.logged("status not reported")


def test_a_record_is_written_however_many_conflicts_there_are(function: Function, drogue: Drogue, managed: str) -> None:
    drogue.write_answers["example", managed] = conflicts(7)
    assert post(function, managed, at(1000, "0.0.9")).outcome.startswith("write")
    assert drogue.writes_of("example", managed) >= 8
    assert drogue.reported(managed)["update"]["version"] == "0.1.1"


class Annotator:
    """Another writer: it changes a device's annotations every 50 ms, over a connection of its own."""

    def __init__(self, drogue: Drogue, device: str) -> None:
        self._url = f"{drogue.url}/api/registry/v1alpha1/apps/example/devices/{device}"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> "Annotator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _write(self) -> None:
        with requests.Session() as session:
            session.auth = (USER, TOKEN)
            while not self._end.wait(0.05):
                found = session.get(self._url, timeout=10).json()
                found["metadata"]["annotations"] = {"example.com/seen": str(self.written)}
                self.written += session.put(self._url, json=found, timeout=10).status_code == 204


def test_records_are_written_beside_a_writer_that_changes_the_object_every_50_ms(
    firmware: Path, content: bytes
) -> None:
    """The registry takes 20 ms for each answer, as one with a database of its own may."""

    def slowly(answer: Any) -> Any:
        def answer_slowly(request: Request) -> Response | None:
            response: Response | None = answer(request)
            time.sleep(0.02)
            return response

        return answer_slowly

    assert content
    settings = {"FIRMWARE_REGISTRY": f"oci-layout:{firmware}"}
    with Drogue(through=slowly) as drogue, Function({**drogue.environment, **settings}) as function:
        drogue.put("example", spec={})
        drogue.put_image("example", "busy", "reported:0.1.1")
        with Annotator(drogue, "busy") as other:
            for number in range(8):
                assert post(function, "busy", at(1000 + number, f"0.0.{number}")).outcome.startswith("write"), number
        assert drogue.reported("busy")["update"]["version"] == "0.1.1"
        assert drogue.object("example", "busy")["metadata"]["annotations"]
    assert other.written


# --- What PostgreSQL cannot store


def test_a_version_with_u_0000_is_reported_escaped_and_its_attempts_are_counted(
    function: Function, drogue: Drogue, managed: str
) -> None:
    odd = OLD | {0: b"0.1.0\0"}
    assert post(function, managed, odd).outcome.startswith("write")
    written = drogue.writes_of("example", managed)
    assert post(function, managed, at(MTU) | {0: b"0.1.0\0"}).outcome.startswith("write")
    assert drogue.writes_of("example", managed) == written  # its version is no news
    assert post(function, managed, at(SIZE) | {0: b"0.1.0\0"}).outcome.startswith("swap")
    assert post(function, managed, odd).outcome == 'withheld; reason="backoff"'
    reported = drogue.reported(managed)
    assert (reported["current"], reported["update"]["attempts"]) == ("0.1.0\\x00", 1)


def test_a_firmware_whose_version_has_u_0000_is_malformed(
    function: Function, drogue: Drogue, firmware: Path, device: str
) -> None:
    publish(firmware, "odd", "0.1.1\0", random_bytes(100), tag="odd")
    drogue.put_image("example", device, "odd:odd")
    answer = post(function, device, OLD)
    assert (answer.status, "U+0000" in answer.reason) == (422, True)
    assert "U+0000" in conditions(drogue, device)["InSync"]["reason"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [(always(Response(403)), "failed"), (always(Response(400)), "failed"), (always(Response(500)), "retry"),
     (hang_up, "retry")],
)  # fmt: skip
def test_no_start_and_no_swap_is_sent_while_its_record_cannot_be_written(
    function: Function, drogue: Drogue, managed: str, answer: Any, outcome: str
) -> None:
    drogue.write_answers["example", managed] = answer
    refused = post(function, managed, OLD)
    assert refused.outcome.split(";")[0] == outcome
    assert "device registry" in refused.reason
    assert "write" not in [kind for kind, _ in told(drogue, managed)]
    del drogue.write_answers["example", managed]
    assert post(function, managed, OLD).outcome.startswith("write")
    drogue.write_answers["example", managed] = answer
    assert post(function, managed, at(SIZE)).outcome.split(";")[0] == outcome
    assert "swap" not in [kind for kind, _ in told(drogue, managed)]
    del drogue.write_answers["example", managed]
    assert post(function, managed, at(SIZE)).outcome.startswith("swap")


@pytest.mark.parametrize("answer", [always(Response(403)), always(Response(500)), always(Response(400)), hang_up])
def test_a_report_that_fails_is_no_matter_to_the_device_and_is_not_tried_with_every_event(
    function: Function, drogue: Drogue, managed: str, answer: Any
) -> None:
    assert post(function, managed, OLD).outcome.startswith("write")
    written = drogue.writes_of("example", managed)
    drogue.write_answers["example", managed] = answer
    for tenth in range(1, 5):
        assert post(function, managed, at(tenth * SIZE // 10 - 1)).outcome.startswith("write")
    assert len(drogue.commands_for(managed)) == 5
    assert drogue.writes_of("example", managed) <= written + 2
    del drogue.write_answers["example", managed]


def test_a_registry_that_hangs_while_it_is_written_does_not_keep_the_event_beyond_its_deadline(
    hasty: Function, drogue: Drogue, managed: str
) -> None:
    gate = Gate(Response(204))
    drogue.write_answers["example", managed] = gate
    started = datetime.now(UTC)
    answer = post(hasty, managed, OLD)
    assert (datetime.now(UTC) - started).total_seconds() < DEADLINE + SLACK
    assert answer.outcome.startswith("retry")
    assert not drogue.commands_for(managed)
    gate.opened.set()


# --- Attempts


def fail_to_come_up(function: Function, device: str) -> str:
    """An attempt: swapped to, and back with the old version; what the device hears then."""
    assert post(function, device, OLD).outcome.startswith("write")
    assert post(function, device, at(SIZE)).outcome.startswith("swap")
    return post(function, device, OLD).outcome


def test_a_device_that_never_comes_up_is_given_up_until_somebody_does_something(
    function: Function, drogue: Drogue, managed: str
) -> None:
    polls = []
    for attempt in (1, 2):
        assert fail_to_come_up(function, managed) == 'withheld; reason="backoff"'
        polls.append(told(drogue, managed)[-1][1][2])
        assert drogue.reported(managed)["update"]["attempts"] == attempt
    assert fail_to_come_up(function, managed) == 'withheld; reason="attempts"'
    assert polls == [600, 1200]
    for status in (OLD, OLD, at(SIZE)):
        assert post(function, managed, status).outcome == 'withheld; reason="attempts"'
        assert told(drogue, managed)[-1] == ("sync", {0: b"0.1.0", 1: None, 2: 300})
    failed = conditions(drogue, managed)["UpdateFailed"]
    assert failed["status"] == "True"
    assert "0.1.1" in failed["message"]
    spec = {"firmware": {"container": {"image": "reported:0.1.1"}, "retry": "2026-11-25"}}
    drogue.put("example", managed, spec=spec)
    function.post(event(managed, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, managed, OLD).outcome.startswith("write")
    assert "UpdateFailed" not in conditions(drogue, managed)
    assert drogue.reported(managed)["update"]["attempts"] == 0


def test_a_new_target_starts_afresh(function: Function, drogue: Drogue, managed: str) -> None:
    spec = {"firmware": {"container": {"image": "reported:0.1.1"}, "maxAttempts": 1}}
    drogue.put("example", managed, spec=spec)
    assert fail_to_come_up(function, managed) == 'withheld; reason="attempts"'
    drogue.put_image("example", managed, "reported:0.1.2")
    function.post(event(managed, type="io.drogue.registry.v1", subject="devices"), b"")
    assert post(function, managed, OLD).outcome.startswith('write; version="0.1.2"')


def test_a_swap_that_the_device_did_not_hear_is_sent_again_and_is_no_attempt(
    function: Function, drogue: Drogue, managed: str
) -> None:
    post(function, managed, OLD)
    for _ in range(5):
        assert post(function, managed, at(SIZE)).outcome.startswith("swap")
    assert drogue.reported(managed)["update"]["attempts"] == 0
    assert drogue.writes_of("example", managed) == 6


def test_an_attempt_is_counted_once_by_whichever_processes_hear_of_it(
    two: tuple[Function, Function], drogue: Drogue, managed: str
) -> None:
    one, other = two
    assert post(other, managed, {**OLD, 1: 32}).outcome.startswith("write")
    assert fail_to_come_up(one, managed) == 'withheld; reason="backoff"'
    for function, mtu in ((other, 64), (one, 128), (other, 256)):
        assert post(function, managed, {**OLD, 1: mtu}).outcome.startswith("write")
    assert drogue.reported(managed)["update"]["attempts"] == 1


# --- Guards


@pytest.mark.parametrize("midway_policy", ["finish", "restart"])
def test_a_tag_pushed_anew_under_the_same_version_never_swaps_a_mixture(
    drogue: Drogue, environment: dict[str, str], firmware: Path, device: str, midway_policy: str
) -> None:
    """Two processes answer in turn; the block size changes with each status."""
    old, new = random_bytes(3000, f"{device} old"), random_bytes(3000, f"{device} new")
    publish(firmware, device, "1", old)
    spec = {"firmware": {"container": {"image": f"{device}:1"}, "rollout": {"midway": midway_policy}}}
    drogue.put("example", device, spec=spec)
    ttls = {"SPEC_TTL_SECONDS": "2", "MANIFEST_TTL_SECONDS": "3600"}
    status, flash, waits, repushed = OLD, bytearray(), 0, None
    with running(environment | ttls) as one, running(environment | ttls) as other:
        for number, function in enumerate(itertools.islice(itertools.cycle((one, other)), 200)):
            if not repushed and len(flash) > 1500:
                repushed = publish(firmware, device, "1", new)
                time.sleep(1.05)  # what the protocol calls fresh is younger
            answer = post(function, device, {**status, 1: (100, 64, 128)[number % 3]})
            assert answer.status == 204
            kind, fields = told(drogue, device)[-1]
            if kind == "swap":
                assert fields[2] == hashlib.sha256(flash).digest()
                break
            if kind == "wait":
                waits += 1
                time.sleep(fields[1])
                continue
            del flash[fields[2] :]
            flash += fields[3]
            status = at(len(flash), "1")
    assert bytes(flash) == new
    assert waits


def move_target_midway(function: Function, drogue: Drogue, device: str) -> None:
    """Start a device with 0.1.1, and want 0.1.2 of it at once, whatever it has begun."""
    assert post(function, device, OLD).outcome.startswith("write")
    spec = {"firmware": {"container": {"image": "reported:0.1.2"}, "rollout": {"midway": "restart"}}}
    drogue.put("example", device, spec=spec)
    function.post(event(device, type="io.drogue.registry.v1", subject="devices"), b"")


def test_a_device_with_the_fields_habits_that_is_restarted_midway_gets_no_block_until_its_power_is_cycled(
    function: Function, drogue: Drogue, managed: str
) -> None:
    move_target_midway(function, drogue, managed)
    assert post(function, managed, at(1000)).outcome.startswith('write; version="0.1.2"; offset=0')
    assert drogue.reported(managed)["update"]["restart"] == {"sent": MTU, "midway": 1000}
    sent = len(blocks(drogue, managed))
    for status in (at(1000, "0.1.2"), at(1000, "0.1.2"), at(MTU + 1, "0.1.2"), at(SIZE, "0.1.2")):
        answer = post(function, managed, status)
        assert (answer.status, answer.reason) == (422, "device-offset")
        assert told(drogue, managed)[-1] == ("sync", {0: b"0.1.0", 1: None, 2: 300})
    assert len(blocks(drogue, managed)) == sent
    condition = conditions(drogue, managed)["InSync"]
    assert condition["reason"] == "device-offset"
    assert "power-cycle it" in condition["message"]
    assert post(function, managed, OLD).outcome.startswith('write; version="0.1.2"; offset=0')
    assert post(function, managed, at(MTU, "0.1.2")).outcome.startswith(f'write; version="0.1.2"; offset={MTU}')


def test_a_device_of_the_crate_that_is_restarted_midway_goes_on_once_it_reports_the_block(
    function: Function, drogue: Drogue, managed: str
) -> None:
    move_target_midway(function, drogue, managed)
    assert post(function, managed, at(1000)).outcome.startswith('write; version="0.1.2"; offset=0')
    assert post(function, managed, at(1000 + MTU, "0.1.2")).reason == "device-offset"
    assert post(function, managed, at(MTU, "0.1.2")).outcome.startswith(f'write; version="0.1.2"; offset={MTU}')
    assert "restart" not in drogue.reported(managed)["update"]


def test_one_that_writes_where_it_is_told_goes_on(function: Function, drogue: Drogue, managed: str) -> None:
    assert post(function, managed, at(1000, "0.0.9")).outcome.startswith('write; version="0.1.1"; offset=0')
    assert post(function, managed, at(MTU)).outcome.startswith(f'write; version="0.1.1"; offset={MTU}')
    assert "restart" not in drogue.reported(managed)["update"]


@pytest.mark.parametrize("answer", [always(Response(500)), always(Response(409)), hang_up])
def test_while_a_restart_cannot_be_noted_it_is_not_ordered(
    function: Function, drogue: Drogue, managed: str, answer: Any
) -> None:
    drogue.write_answers["example", managed] = answer
    refused = post(function, managed, at(1000, "0.0.9"))
    assert (refused.status, refused.json["outcome"]) == (503, "retry")
    assert not drogue.commands_for(managed)
    del drogue.write_answers["example", managed]
    assert post(function, managed, at(1000, "0.0.9")).outcome.startswith('write; version="0.1.1"; offset=0')


def test_credentials_that_may_not_write_are_no_matter_of_a_retry(
    function: Function, drogue: Drogue, managed: str
) -> None:
    drogue.write_answers["example", managed] = always(Response(403))
    refused = post(function, managed, at(1000, "0.0.9"))
    what = f"a write of device {managed} of application example"
    assert (refused.status, refused.reason) == (422, f"device registry: 403 for {what} (our credentials were refused)")
    assert not drogue.commands_for(managed)
    del drogue.write_answers["example", managed]


def test_a_reader_cannot_write_what_has_to_be_noted_first_and_is_told_which_role_can(
    function: Function, drogue: Drogue, managed: str
) -> None:
    drogue.roles["example"] = "reader"
    refused = post(function, managed, at(1000, "0.0.9"))
    drogue.roles["example"] = "manager"
    what = f"a write of device {managed} of application example"
    causes = "our role is not manager or admin, or the device was deleted"
    assert (refused.status, refused.reason) == (422, f"device registry: 404 for {what} ({causes})")
    assert not drogue.commands_for(managed)


def test_what_another_process_noted_meanwhile_is_respected(function: Function, drogue: Drogue, managed: str) -> None:
    """Between the look and the note, another process notes that the device is stuck."""
    record = {"version": "0.1.1", "checksum": hashlib.sha256(random_bytes(SIZE, "reported")).hexdigest()}
    interfered = threading.Event()

    def interfere(_: Request) -> Response:
        if interfered.is_set():
            return Response(204)
        interfered.set()
        stuck = {**record, "restart": {"sent": MTU, "midway": 700, "stuck": True}}
        spec = {"firmware": {"container": {"image": "reported:0.1.1"}}}
        drogue.put("example", managed, spec=spec, status={"firmware": {"update": stuck}})
        return Response(204)

    drogue.write_answers["example", managed] = interfere
    answer = post(function, managed, at(1000, "0.0.9"))
    assert (answer.status, answer.reason) == (422, "device-offset")
    assert not blocks(drogue, managed)


def test_events_of_one_device_at_once_lose_nothing_of_what_is_noted(
    function: Function, drogue: Drogue, managed: str
) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(function, managed, at(1000, "0.0.9")), range(8)))
    assert {answer.status for answer in answers} <= {204, 503}
    assert len(blocks(drogue, managed)) == 1
    assert drogue.reported(managed)["update"]["restart"] == {"sent": MTU, "midway": 1000}


# --- Heartbeats


def see(drogue: Drogue, device: str, seen: datetime | None) -> None:
    """Have a device's object say when it was seen."""
    firmware = drogue.reported(device) | {"seen": seen and seen.isoformat()}
    known = drogue.object("example", device)
    drogue.put("example", device, spec=known["spec"], status={"firmware": firmware})


@pytest.mark.parametrize(
    ("seen_ago", "is_written"),
    [(timedelta(hours=23), False), (timedelta(hours=25), True), (timedelta(days=-1), True), (None, True)],
)
def test_a_device_in_sync_is_said_to_be_seen_once_a_day(
    environment: dict[str, str], drogue: Drogue, managed: str, seen_ago: timedelta | None, is_written: bool
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    with running(environment | {"SPEC_TTL_SECONDS": "0"}) as function:
        post(function, managed, in_sync("0.1.1"))
        see(drogue, managed, None if seen_ago is None else now - seen_ago)
        writes = drogue.writes_of("example", managed)
        for _ in range(3):
            assert post(function, managed, in_sync("0.1.1")).outcome == "sync"
        assert drogue.writes_of("example", managed) == writes + is_written
    if is_written:
        found = drogue.reported(managed)
        assert all(now <= datetime.fromisoformat(found[key]) <= datetime.now(UTC) for key in ("seen", "reported"))


def test_without_heartbeats_a_device_in_sync_is_not_written(
    environment: dict[str, str], drogue: Drogue, managed: str
) -> None:
    with running(environment | {"SPEC_TTL_SECONDS": "0", "REPORT_SEEN_SECONDS": "0"}) as function:
        post(function, managed, in_sync("0.1.1"))
        see(drogue, managed, datetime(2020, 1, 1, tzinfo=UTC))
        writes = drogue.writes_of("example", managed)
        assert post(function, managed, in_sync("0.1.1")).outcome == "sync"
        assert drogue.writes_of("example", managed) == writes
