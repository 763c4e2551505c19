"""A version that fails on devices: what the application's object says of it, and what then halts."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cbor2
import pytest

from tests.support.drogue import MAX_BODY_BYTES, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.hostile import always
from tests.support.http import Request, Response
from tests.support.statuses import STATUS, in_sync, midway, told

SIZE = 1024
HALTED = 'withheld; reason="halted"'
_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _versions(firmware: Path) -> None:
    for version in ("0.1.0", "0.1.1", "0.1.2"):
        publish(firmware, "brake", version, random_bytes(SIZE, version))


@pytest.fixture(scope="module")
def forgetful(environment: dict[str, str]) -> Iterator[Function]:
    """A function that reads each object anew."""
    with running(environment | {"SPEC_TTL_SECONDS": "0"}) as function:
        yield function


class Fleet:
    """An application of its own, whose devices are updated from 0.1.0 to 0.1.1."""

    def __init__(self, function: Function, drogue: Drogue) -> None:
        self.function, self.drogue = function, drogue
        self.name = f"fleet-{next(_numbers)}"
        self.target("0.1.1")

    def target(self, version: str, **policy: Any) -> None:
        policy = {"rollout": {"maxFailed": 2}, **policy}
        self.drogue.put(self.name, spec={"firmware": {"container": {"image": f"brake:{version}"}, **policy}})

    def add(self, *devices: str) -> None:
        for device in devices:
            self.drogue.put(self.name, device, spec={})

    def post(self, device: str, status: dict[int, Any] = STATUS, function: Function | None = None) -> Answer:
        about = event(device, self.name, datacontenttype="application/cbor")
        return (function or self.function).post(about, cbor2.dumps(status))

    def download(self, device: str) -> None:
        """Have a device download all of its target."""
        self.add(device)
        assert self.post(device).outcome.startswith('write; version="0.1.1"; offset=0')
        assert self.post(device, midway("0.1.1", 512)).outcome.startswith("write")

    def swap(self, device: str) -> None:
        self.download(device)
        assert self.post(device, midway("0.1.1", SIZE)).outcome.startswith("swap")

    def roll_back(self, device: str) -> Answer:
        """Have a device swap to its target, and come back with its old version."""
        self.swap(device)
        return self.post(device)

    def failed(self) -> Any:
        """What the application's object says of failures; None if it says nothing."""
        firmware = self.drogue.object(self.name).get("status", {}).get("firmware", {})
        return firmware.get("rollout", {}).get("failed")

    @property
    def halts(self) -> float:
        """Halts that the function has told its metrics."""
        lines = self.function.request("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if 'updates_total{result="halted"}' in line)

    def status_of(self, device: str) -> Any:
        return self.drogue.reported(device, self.name)


@pytest.fixture
def fleet(forgetful: Function, drogue: Drogue) -> Fleet:
    return Fleet(forgetful, drogue)


def test_a_good_update_writes_nothing_into_the_application(fleet: Fleet) -> None:
    fleet.swap("a")
    assert fleet.post("a", in_sync("0.1.1")).outcome == "sync"
    assert fleet.drogue.writes_of(fleet.name) == 0


def test_the_first_rollback_of_a_device_is_recorded_once(fleet: Fleet) -> None:
    assert fleet.roll_back("a").outcome == 'withheld; reason="backoff"'
    assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}
    for _ in range(2):
        assert fleet.roll_back("a").outcome.startswith("withheld")
    assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}
    assert fleet.post("a").outcome == 'withheld; reason="attempts"'
    assert fleet.drogue.writes_of(fleet.name) == 1


def test_a_device_that_gives_up_after_the_count_was_cleared_is_recorded(fleet: Fleet) -> None:
    fleet.roll_back("a")
    fleet.drogue.put(fleet.name, spec=fleet.drogue.object(fleet.name)["spec"], status={})
    fleet.roll_back("a")
    assert fleet.failed() is None
    fleet.roll_back("a")
    assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}


def test_at_the_limit_no_device_gets_anything_of_the_version(fleet: Fleet) -> None:
    fleet.download("all")
    fleet.add("midway", "new")
    fleet.post("midway")
    fleet.roll_back("a")
    assert fleet.post("new").outcome.startswith("write")
    assert fleet.roll_back("b").outcome == 'withheld; reason="backoff"'
    assert fleet.failed() == {"0.1.1": {"count": 2, "devices": ["a", "b"]}}
    (line,) = fleet.function.logged("rollout halted", f'"{fleet.name}"')
    assert json.loads(line).items() >= {"level": "WARNING", "device": "b", "version": "0.1.1"}.items()
    fleet.add("untouched")
    assert fleet.post("untouched").outcome == HALTED
    assert fleet.post("midway", midway("0.1.1", 512)).outcome == HALTED
    assert fleet.post("all", midway("0.1.1", SIZE)).outcome == HALTED
    assert fleet.post("a").outcome == HALTED
    assert told(fleet.drogue, "all")[-1][0] == "sync"
    hold = fleet.status_of("midway")["hold"]
    assert hold == {"reason": "halted", "message": "0.1.1 failed on 2 or more devices (rollout.maxFailed)"}
    assert fleet.post("c-in-sync", in_sync("0.1.1")).status == 422  # it does not exist
    fleet.add("in-sync")
    assert fleet.post("in-sync", in_sync("0.1.1")).outcome == "sync"


def test_a_new_version_is_not_halted(fleet: Fleet) -> None:
    for device in ("a", "b"):
        fleet.roll_back(device)
    fleet.target("0.1.2")
    assert fleet.post("a").outcome.startswith('write; version="0.1.2"; offset=0')
    assert "hold" not in fleet.status_of("a")
    (failed,) = fleet.status_of("a")["update"]["failed"]
    assert (failed["version"], failed["attempts"]) == ("0.1.1", 1)


@pytest.mark.parametrize(
    ("target", "status", "answers"),
    [
        ("0.1.2", midway("0.1.2", 512), ('write; version="0.1.2"; offset=0', 'write; version="0.1.2"; offset=512')),
        ("0.1.0", STATUS, ("sync", "sync")),
    ],
)
def test_a_rollback_is_recorded_although_the_target_has_moved(
    fleet: Fleet, target: str, status: dict[int, Any], answers: tuple[str, str]
) -> None:
    devices = ("a", "b")
    for device in devices:
        fleet.swap(device)
    fleet.target(target)
    halts = fleet.halts
    for device in devices:
        assert fleet.post(device).outcome.startswith(answers[0])
        (failed,) = fleet.status_of(device)["update"]["failed"]
        assert (failed["version"], failed["attempts"]) == ("0.1.1", 1)
    for device in devices:
        assert fleet.post(device, status).outcome.startswith(answers[1])
        assert len(fleet.status_of(device)["update"]["failed"]) == 1
    assert fleet.failed() == {"0.1.1": {"count": 2, "devices": ["a", "b"]}}
    assert (fleet.drogue.writes_of(fleet.name), fleet.halts) == (2, halts + 1)
    fleet.target("0.1.1")
    fleet.add("c")
    assert fleet.post("c").outcome == HALTED


def test_a_device_that_comes_up_after_the_target_has_moved_has_not_failed(fleet: Fleet) -> None:
    fleet.swap("a")
    fleet.target("0.1.2")
    assert fleet.post("a", in_sync("0.1.1")).outcome == "sync"
    assert fleet.failed() is None
    assert "failed" not in fleet.status_of("a")["update"]


def test_devices_that_fail_after_the_halt_are_counted_and_shown(fleet: Fleet) -> None:
    fleet.target("0.1.1", maxAttempts=1)
    for device in ("a", "b", "c"):
        fleet.swap(device)
    for device in ("a", "b"):
        fleet.post(device)
    assert fleet.post("c").outcome == HALTED
    assert fleet.failed()["0.1.1"] == {"count": 3, "devices": ["a", "b", "c"]}
    kinds = {condition["type"]: condition["status"] for condition in fleet.status_of("c")["conditions"]}
    assert kinds == {"InSync": "False", "UpdateFailed": "True"}


def test_a_cleared_count_lets_the_rollout_go_on(fleet: Fleet) -> None:
    for device in ("a", "b"):
        fleet.roll_back(device)
    found = fleet.drogue.object(fleet.name)
    fleet.drogue.put(fleet.name, spec=found["spec"], status={"firmware": {"rollout": {"failed": {}}}})
    assert fleet.post("a").outcome.startswith("write")


def test_without_a_limit_failures_are_recorded_and_nothing_halts(fleet: Fleet) -> None:
    fleet.target("0.1.1", rollout={})
    for device in ("a", "b", "c"):
        fleet.roll_back(device)
    assert fleet.failed()["0.1.1"]["count"] == 3
    fleet.add("d")
    assert fleet.post("d").outcome.startswith("write")


def test_an_aborted_version_is_given_to_no_device_and_not_finished(fleet: Fleet) -> None:
    fleet.download("a")
    found = fleet.drogue.object(fleet.name)
    fleet.drogue.put(fleet.name, spec=found["spec"], status={"firmware": {"rollout": {"aborted": ["0.1.1"]}}})
    assert fleet.post("a", midway("0.1.1", SIZE)).outcome == HALTED
    assert fleet.status_of("a")["hold"]["message"] == "the rollout of 0.1.1 was aborted"
    fleet.target("0.1.0")
    assert fleet.post("a", midway("0.1.1", 512)).outcome == "sync"


def test_other_parts_of_the_application_stay(fleet: Fleet) -> None:
    found = fleet.drogue.object(fleet.name)
    rollout = {"version": "0.1.1", "stage": 1, "x": [1], "failed": {"0.1.0": {"count": 7, "devices": ["z"]}}}
    status = {"other": {"a": 1}, "firmware": {"note": "ü", "rollout": rollout}}
    fleet.drogue.put(fleet.name, spec=found["spec"], status=status)
    fleet.roll_back("a")
    changed = fleet.drogue.object(fleet.name)
    failed = changed["status"]["firmware"]["rollout"].pop("failed")
    assert failed == {"0.1.1": {"count": 1, "devices": ["a"]}, "0.1.0": {"count": 7, "devices": ["z"]}}
    rollout.pop("failed")
    assert (changed["spec"], changed["status"]) == (found["spec"], status)


def test_many_failures_at_once_are_each_counted_once(forgetful: Function, function: Function, drogue: Drogue) -> None:
    fleet = Fleet(forgetful, drogue)
    fleet.target("0.1.1", rollout={"maxFailed": 1000})
    devices = [f"küche/ofen {number}" for number in range(24)]
    for device in devices:
        fleet.swap(device)
    with ThreadPoolExecutor(8) as pool:
        pods = itertools.cycle((forgetful, function))
        posts = [pool.submit(fleet.post, device, function=pod) for device, pod in zip(devices, pods, strict=False)]
        answers = [post.result() for post in posts]
    assert {answer.outcome for answer in answers} == {'withheld; reason="backoff"'}
    assert fleet.failed()["0.1.1"]["count"] == 24
    assert sorted(fleet.failed()["0.1.1"]["devices"]) == sorted(devices)


def test_a_failure_that_cannot_be_recorded_now_is_recorded_with_the_next_status(
    fleet: Fleet, function: Function
) -> None:
    fleet.swap("a")
    fleet.drogue.write_answers[(fleet.name,)] = always(Response(503))
    assert fleet.post("a").outcome == 'withheld; reason="backoff"'
    assert fleet.failed() is None
    assert "swapped" in fleet.status_of("a")["update"], "the device's object forgot a swap that nothing else tells"
    del fleet.drogue.write_answers[(fleet.name,)]
    # The process that could not write pauses its reports of the device; another one does not.
    assert fleet.post("a", function=function).outcome == 'withheld; reason="backoff"'
    assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}
    assert fleet.status_of("a")["update"]["attempts"] == 1


def test_a_failure_is_recorded_soon_although_objects_are_remembered(
    environment: dict[str, str], drogue: Drogue
) -> None:
    with running(environment | {"SPEC_TTL_SECONDS": "3600"}) as function:
        fleet = Fleet(function, drogue)
        fleet.swap("a")
        fleet.drogue.write_answers[(fleet.name,)] = always(Response(503))
        assert fleet.post("a").outcome == 'withheld; reason="backoff"'
        del fleet.drogue.write_answers[(fleet.name,)]
        assert fleet.post("a").outcome == 'withheld; reason="backoff"'
        assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}


def test_an_old_record_in_memory_counts_no_device(fleet: Fleet, environment: dict[str, str]) -> None:
    with running(environment | {"SPEC_TTL_SECONDS": "3600"}) as remembering:
        fleet.download("a")
        assert fleet.post("a", midway("0.1.1", SIZE), function=remembering).outcome.startswith("swap")
        assert fleet.post("a", in_sync("0.1.1")).outcome == "sync"
        fleet.target("0.1.2")
        status = in_sync("0.1.1")
        assert [fleet.post("a", status).outcome for _ in range(2)] == ["sync", "sync"]
        assert fleet.post("a", status).outcome.startswith('write; version="0.1.2"; offset=0')
        assert fleet.post("a", status | {3: {0: b"0.1.2", 1: SIZE}}).outcome.startswith("swap")
        for function in (remembering, fleet.function, remembering):
            assert fleet.post("a", in_sync("0.1.2"), function=function).outcome == "sync"
    assert fleet.failed() is None
    assert "failed" not in fleet.status_of("a")["update"]


@pytest.mark.parametrize("status", [403, 404, 413])
def test_a_refused_record_leaves_the_devices_own_count(fleet: Fleet, status: int) -> None:
    fleet.drogue.write_answers[(fleet.name,)] = always(Response(status))
    assert fleet.roll_back("a").outcome == 'withheld; reason="backoff"'
    assert fleet.failed() is None
    assert fleet.status_of("a")["update"]["attempts"] == 1
    assert any("failed update not recorded" in line for line in fleet.function.log)


def test_long_texts_in_the_application_hide_no_failure(fleet: Fleet) -> None:
    found = fleet.drogue.object(fleet.name)
    fleet.drogue.put(fleet.name, spec=found["spec"] | {"note": "水" * 18_000, "\u2028": "\U0001f4a7"})
    for device in ("a", "b"):
        fleet.roll_back(device)
    assert fleet.failed() == {"0.1.1": {"count": 2, "devices": ["a", "b"]}}
    assert fleet.drogue.object(fleet.name)["spec"]["note"] == "水" * 18_000
    fleet.drogue.put(fleet.name, "c", spec={"note": "水" * 18_000})
    assert fleet.post("c").outcome == HALTED
    assert fleet.status_of("c")["hold"]["reason"] == "halted"


def test_a_halt_is_told_although_the_answer_to_its_record_is_lost(fleet: Fleet) -> None:
    fleet.roll_back("a")
    fleet.swap("b")
    names, drogue = (fleet.name,), fleet.drogue

    def store_and_lose(request: Request) -> Response:
        del drogue.write_answers[names]
        drogue.put(fleet.name, **{key: json.loads(request.body)[key] for key in ("spec", "status")})
        return Response(504)

    halts = fleet.halts
    drogue.write_answers[names] = store_and_lose
    assert fleet.post("b").outcome == 'withheld; reason="backoff"'
    assert fleet.failed() == {"0.1.1": {"count": 2, "devices": ["a", "b"]}}
    assert fleet.status_of("b")["update"]["attempts"] == 1
    assert fleet.halts == halts + 1


def test_names_that_have_no_room_are_only_counted(fleet: Fleet) -> None:
    names = [f"{number}{'x' * 250}" for number in range(150)]
    fleet.target("0.1.1", rollout={"maxFailed": 1000})
    found = fleet.drogue.object(fleet.name)
    rollout = {"failed": {"0.1.0": {"count": 150, "devices": names}, "0.1.1": {"count": 90, "devices": names[:90]}}}
    fleet.drogue.put(fleet.name, spec=found["spec"], status={"firmware": {"rollout": rollout}})
    fleet.roll_back("a")
    assert fleet.failed()["0.1.0"] == {"count": 150, "devices": []}
    assert fleet.failed()["0.1.1"]["devices"][-1] == "a"
    assert len(json.dumps(fleet.drogue.object(fleet.name))) < MAX_BODY_BYTES


def test_a_failure_that_only_the_second_look_shows_is_recorded(
    environment: dict[str, str], forgetful: Function, drogue: Drogue
) -> None:
    fleet = Fleet(forgetful, drogue)
    fleet.download("a")
    started = fleet.status_of("a")["update"]
    restarted = started | {"restart": {"sent": 512, "midway": 128}}
    fleet.target("0.1.1", rollout={"paused": True})
    drogue.put(fleet.name, "a", spec={}, status={"firmware": {"update": restarted}})
    with running(environment | {"SPEC_TTL_SECONDS": "3600"}) as remembering:
        assert fleet.post("a", midway("0.1.1", 512), remembering).outcome == 'withheld; reason="paused"'
        # Another process goes on with the update, up to the swap.
        swapped = started | {"swapped": started["started"]}
        drogue.put(fleet.name, "a", spec={}, status={"firmware": {"update": swapped}})
        assert fleet.post("a", function=remembering).outcome == 'withheld; reason="paused"'
    assert fleet.status_of("a")["update"]["attempts"] == 1
    assert fleet.failed() == {"0.1.1": {"count": 1, "devices": ["a"]}}
