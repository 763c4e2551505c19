"""Who is updated when: what the registry says of it, and what devices are told."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest

from fleet_fn.update.policy import draw
from tests.support.drogue import Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import Answer, Function, event, running
from tests.support.statuses import STATUS, in_sync, midway, told

SIZE = 2000
COMING_UP = midway("2", SIZE)


@pytest.fixture(scope="session")
def image(firmware: Path) -> str:
    publish(firmware, "rolled-out", "2", random_bytes(SIZE, "rolled out"))
    return "rolled-out:2"


def desire(
    drogue: Drogue, device: str, image: str, *, application: Any = None, labels: Any = None, **policy: Any
) -> None:
    """A device of an application of its own, with a policy; and perhaps one of the application."""
    container = {"container": {"image": image}}
    drogue.put(device, spec={"firmware": {**container, **(application or {})}})
    drogue.put(device, device, labels=labels, spec={"firmware": policy})


def post(function: Function, device: str, status: dict[int, Any] = STATUS, **attributes: str | None) -> Answer:
    attributes = {"datacontenttype": "application/cbor", **attributes}
    return function.post(event(device, device, **attributes), cbor2.dumps(status))


def begin(function: Function, drogue: Drogue, device: str, image: str, **desired: Any) -> None:
    """Have a device begin its update before a policy holds it back; `desired` is what is desired from then on."""
    desire(drogue, device, image)
    change_is_known(function, device)
    assert post(function, device).outcome.startswith('write; version="2"; offset=0')
    desire(drogue, device, image, **desired)
    change_is_known(function, device)


def change_is_known(function: Function, device: str) -> None:
    assert post(function, device, type="io.drogue.registry.v1", subject="devices").outcome == "ignored"


def window(begin: timedelta, end: timedelta) -> dict[str, str]:
    now = datetime.now(UTC)
    return {"from": f"{now + begin:%H:%M}", "to": f"{now + end:%H:%M}"}


def soon() -> dict[str, str]:
    return window(timedelta(hours=2), timedelta(hours=3))


@pytest.mark.parametrize("status", [STATUS, midway("2", 512), COMING_UP])
def test_while_updates_are_paused_nobody_gets_a_block_or_a_swap(
    function: Function, drogue: Drogue, device: str, image: str, status: dict[int, Any]
) -> None:
    begin(function, drogue, device, image, rollout={"paused": True})
    answer = post(function, device, status)
    assert (answer.status, answer.outcome) == (204, 'withheld; reason="paused"')
    assert told(drogue, device)[1:] == [("sync", {0: b"0.1.0", 1: None, 2: 300})]
    assert post(function, device, in_sync("2")).outcome == "sync"


HOLDING = [{"percent": 0}, {"labels": {"ring": "canary"}}, {"percent": 100, "labels": {"ring": "canary", "x": "y"}}]


@pytest.mark.parametrize("rollout", HOLDING)
def test_a_device_that_is_not_meant_is_held_back_at_the_start_and_only_there(
    function: Function, drogue: Drogue, device: str, image: str, rollout: Any
) -> None:
    desire(drogue, device, image, labels={"ring": "other"}, rollout=rollout)
    for status in (STATUS, midway("1", 512)):
        assert post(function, device, status).outcome == 'withheld; reason="rollout"'
        assert told(drogue, device)[-1] == ("sync", {0: b"0.1.0", 1: None, 2: 300})
    begin(function, drogue, device, image, labels={"ring": "other"}, rollout=rollout)
    assert post(function, device, midway("2", 512)).outcome.startswith('write; version="2"; offset=512')
    assert post(function, device, COMING_UP).outcome == 'swap; version="2"'


@pytest.mark.parametrize("rollout", [{"percent": 100}, {"labels": {"ring": "canary"}}, {"percent": 0.5, "salt": "s"}])
def test_a_device_that_is_meant_starts(
    function: Function, drogue: Drogue, device: str, image: str, rollout: Any
) -> None:
    desire(drogue, device, image, labels={"ring": "canary", "more": "x"}, rollout=rollout)
    # This UID is among the first half percent that the salt draws.
    deviceuid = first_drawn("s", 0.5) if "salt" in rollout else "any"
    assert post(function, device, deviceuid=deviceuid).outcome.startswith('write; version="2"; offset=0')


def first_drawn(salt: str, percent: float) -> str:
    return next(uid for uid in map(str, range(100_000)) if draw(uid, "", salt) < percent / 100)


def test_the_share_of_devices_that_start_is_the_one_that_is_asked_for(
    function: Function, drogue: Drogue, device: str, image: str
) -> None:
    desire(drogue, device, image, rollout={"percent": 25})
    outcomes = [
        function.post(event(device, device, deviceuid=f"uid-{number}"), b'{"version": "1"}', path="/preview").json
        for number in range(200)
    ]
    started = sum(outcome["outcome"] == "write" for outcome in outcomes)
    assert {outcome["reason"] for outcome in outcomes} == {None, "rollout"}
    assert 25 <= started <= 75  # 4 standard deviations of 6


def test_outside_its_window_a_device_is_told_to_ask_again_when_it_opens(
    function: Function, drogue: Drogue, device: str, image: str
) -> None:
    begin(function, drogue, device, image, rollout={"window": soon()})
    for status in (STATUS, COMING_UP):
        assert post(function, device, status).outcome == 'withheld; reason="window"'
        kind, fields = told(drogue, device)[-1]
        assert (kind, fields[0]) == ("sync", b"0.1.0")
        opens = datetime.now(UTC) + timedelta(seconds=fields[2])
        wanted = datetime.now(UTC) + timedelta(hours=2)
        assert timedelta(0) <= wanted - opens + timedelta(seconds=2) <= timedelta(minutes=1, seconds=4)
    assert post(function, device, midway("2", 512)).outcome.startswith("write")


def test_within_its_window_it_starts_and_swaps(function: Function, drogue: Drogue, device: str, image: str) -> None:
    desire(drogue, device, image, rollout={"window": window(timedelta(hours=-1), timedelta(hours=1))})
    assert post(function, device).outcome.startswith("write")
    assert post(function, device, COMING_UP).outcome.startswith("swap")


def test_the_devices_own_fields_win_one_by_one(function: Function, drogue: Drogue, device: str, image: str) -> None:
    shared = {"rollout": {"percent": 0, "paused": True, "window": soon()}}
    own = {"percent": 100, "paused": False}
    now = {"window": window(timedelta(hours=-1), timedelta(hours=1))}
    desire(drogue, device, image, application=shared, rollout={**own, **now})
    assert post(function, device).outcome.startswith("write")
    desire(drogue, device, image, application=shared, rollout=own)
    change_is_known(function, device)
    assert post(function, device).outcome == 'withheld; reason="window"'
    assert post(function, device, midway("2", 512)).outcome.startswith("write")


@pytest.mark.parametrize("whose", ["device", "application"])
@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ({"rollout": {"percent": "many"}}, "rollout.percent"),
        ({"rollout": {"precent": 5}}, "precent"),
        ({"rollout": []}, "rollout"),
        ({"rollout": {"window": {"from": "01:00", "to": "25:00"}}}, "rollout.window.to"),
        ({"rollout": {"window": {"from": "01:00", "to": "02:00", "timezone": "Mars/Base"}}}, "timezone"),
        ({"maxAttempts": 0}, "maxAttempts"),
        ({"retry": 5}, "retry"),
    ],
)
def test_policy_that_cannot_be_understood_is_an_error_of_the_device(
    function: Function, drogue: Drogue, device: str, image: str, policy: Any, key: str, whose: str
) -> None:
    if whose == "device":
        desire(drogue, device, image, **policy)
    else:
        desire(drogue, device, image, application=policy)
    for status in (STATUS, midway("2", 512), COMING_UP, in_sync("2")):
        answer = post(function, device, status)
        assert (answer.status, answer.json["outcome"]) == (422, "failed")
        assert answer.reason.startswith(f"the {whose}'s spec.firmware.")
        assert key in answer.reason
    assert [kind for kind, _ in told(drogue, device)] == ["wait"] * 4
    (condition,) = drogue.reported(device, device)["conditions"]
    assert (condition["type"], condition["status"]) == ("InSync", "False")
    assert key in condition["reason"]


def test_why_a_device_is_held_back_is_reported_once(
    function: Function, drogue: Drogue, device: str, image: str
) -> None:
    desire(drogue, device, image, rollout={"percent": 0})
    for _ in range(3):
        post(function, device)
    assert drogue.writes_of(device, device) == 1
    found = drogue.reported(device, device)
    assert (found["current"], found["target"]) == ("0.1.0", "2")
    (condition,) = found["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "rollout")
    assert "update" not in found


# --- Stages -----------------------------------------------------------------------------------------------------------

STAGES = [{"percent": 1, "approval": True}, {"percent": 10, "after": "24h"}, {"percent": 100, "over": "48h"}]


def drawn(least: float, below: float) -> str:
    """The UID of a device that version 2 draws within a range, in percent."""
    return next(uid for uid in map(str, range(100_000)) if least <= 100 * draw(uid, "2", None) < below)


@pytest.fixture(scope="module")
def forgetful(environment: dict[str, str]) -> Iterator[Function]:
    """A function that reads each object anew."""
    with running(environment | {"SPEC_TTL_SECONDS": "0"}) as function:
        yield function


def reach(drogue: Drogue, device: str, image: str, **rollout: Any) -> None:
    """Have the application's rollout reach a stage."""
    firmware = {"container": {"image": image}, "rollout": {"stages": STAGES}}
    drogue.put(device, spec={"firmware": firmware}, status={"firmware": {"rollout": rollout}} if rollout else {})


def hours_ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).isoformat()


def test_stages_let_in_more_and_more_devices(forgetful: Function, drogue: Drogue, device: str, image: str) -> None:
    def outcome(uid: str) -> str:
        return post(forgetful, device, deviceuid=uid).outcome

    desire(drogue, device, image)
    first, second, third = drawn(0, 1), drawn(1, 10), drawn(90, 100)
    reach(drogue, device, image)
    assert outcome(second) == 'withheld; reason="approval"'
    assert drogue.reported(device, device)["hold"] == {
        "reason": "approval",
        "message": "not in stage 1 of 3 (1 % of devices), which waits for approval",
    }
    reach(drogue, device, image, version="2", approved=True)
    assert outcome(second) == 'withheld; reason="rollout"'
    reach(drogue, device, image, version="1", stage=2)
    assert outcome(second) == 'withheld; reason="approval"', "the rollout is another version's"
    assert outcome(first).startswith('write; version="2"; offset=0')
    drogue.recreate(device, device, spec={})
    reach(drogue, device, image, version="2", stage=1, since=hours_ago(1))
    assert outcome(third) == 'withheld; reason="rollout"'
    assert outcome(second).startswith('write; version="2"; offset=0')


def test_a_growing_stage_tells_when_a_device_is_let_in(
    forgetful: Function, drogue: Drogue, device: str, image: str
) -> None:
    desire(drogue, device, image)
    uid = drawn(90, 100)
    reach(drogue, device, image, version="2", stage=2, since=hours_ago(24))
    assert post(forgetful, device, deviceuid=uid).outcome == 'withheld; reason="rollout"'
    writes = drogue.writes_of(device, device)
    until = datetime.fromisoformat(drogue.reported(device, device)["hold"]["until"])
    assert timedelta(hours=15) < until - datetime.now(UTC) < timedelta(hours=25)
    assert post(forgetful, device, deviceuid=uid).outcome == 'withheld; reason="rollout"'
    assert drogue.writes_of(device, device) == writes, "a share that grows is no news of each device"
    reach(drogue, device, image, version="2", stage=2, since=hours_ago(49))
    assert post(forgetful, device, deviceuid=uid).outcome.startswith("write")


def test_a_complete_rollout_has_no_stages(forgetful: Function, drogue: Drogue, device: str, image: str) -> None:
    desire(drogue, device, image)
    reach(drogue, device, image, version="2", complete=True)
    assert post(forgetful, device, deviceuid=drawn(90, 100)).outcome.startswith("write")


@pytest.mark.parametrize(
    ("policy", "told_as"),
    [
        ({"rolout": {"percent": 0}}, "spec.firmware contains rolout (did you mean rollout?)"),
        ({"percent": 0}, "spec.firmware contains percent (did you mean rollout.percent?)"),
        ({"rollout": {"stages": [{"percent": 9}, {"percent": 1}]}}, "spec.firmware.rollout.stages[1].percent is 1"),
        ({"rollout": {"stages": [{"percent": 9, "over": "2w"}]}}, 'stages[0].over is "2w"; it must be a number and'),
        ({"rollout": {"stages": [{"percent": 0, "success": 9}]}}, "stages[0].success is 9; it must be left out"),
    ],
)
def test_a_misspelt_or_malformed_key_updates_no_device(
    forgetful: Function, drogue: Drogue, device: str, image: str, policy: Any, told_as: str
) -> None:
    desire(drogue, device, image, application=policy)
    answer = post(forgetful, device)
    assert (answer.status, answer.outcome.partition(";")[0]) == (422, "failed")
    (condition,) = drogue.reported(device, device)["conditions"]
    assert told_as in condition["reason"]
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]
