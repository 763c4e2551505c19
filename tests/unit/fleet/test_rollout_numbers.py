"""The numbers of a rollout, compared with what policy does to each device."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fleet_fn.drogue.device_registry_object import read_object
from fleet_fn.drogue.listing import Device
from fleet_fn.drogue.spec_policy import read_policy
from fleet_fn.drogue.spec_source import File
from fleet_fn.fleet.rollout_numbers import RolloutCount, RolloutNumbers
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.fleet.stops import Stop, StopKind
from fleet_fn.update.policy import draw

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SOURCE = {"container": {"image": "sensor:stable"}}


def count(
    devices: Sequence[tuple[Device, Row]], rollout: Mapping[str, Any] | None = None, status: object = None
) -> RolloutCount:
    """What is counted of these devices of an application with this `spec.firmware.rollout`."""
    found = {
        "metadata": {"name": "shop"},
        "spec": {"firmware": {**SOURCE, **({"rollout": rollout} if rollout else {})}},
        "status": {"firmware": {"rollout": status}},
    }
    counted = RolloutCount(read_object(found, "application"))
    for device, row in devices:
        counted.add(device, row)
    return counted


def numbers(
    devices: Sequence[tuple[Device, Row]],
    rollout: Mapping[str, Any] | None = None,
    status: object = None,
    version: str | None = "1.2.0",
) -> RolloutNumbers:
    found = count(devices, rollout, status).numbers(NOON, version)
    assert found
    return found


def device(uid: str, state: State = State.HELD, *, labels: Mapping[str, str] | None = None, **own: Any) -> Any:
    """A device of UID `uid` whose update to 1.2.0 is in this state."""
    current = "1.2.0" if state is State.IN_SYNC else "1.1.0"
    row = Row(uid, state, current=current, target="1.2.0", in_sync=state is State.IN_SYNC)
    return Device(uid, uid=uid, labels=labels or {}, **own), row


def uids(amount: int) -> list[str]:
    return [f"uid-{number}" for number in range(amount)]


def test_numbers_without_a_policy_are_of_all_devices() -> None:
    states = [State.IN_SYNC] * 5 + [State.ROLLED_BACK] * 2 + [State.UPDATING, State.STALLED, State.HELD, State.UNKNOWN]
    found = numbers([device(uid, state) for uid, state in zip(uids(11), states, strict=True)])
    assert found == RolloutNumbers("1.2.0", 100.0, 11, 11, 5, 2, 0)
    assert (found.with_result, found.success) == (7, 500 / 7)


def test_success_is_unknown_without_a_result() -> None:
    assert numbers([]).success is None
    assert numbers([device("a")]).success is None


def test_failure_counts_if_the_update_was_given_up() -> None:
    given_up = Row("a", State.FAILED, target="1.2.0", in_sync=False, gave_up=True)
    broken = Row("b", State.FAILED, target="Unknown", in_sync=False)
    found = numbers([(Device("a", uid="a"), given_up), (Device("b", uid="b"), broken)])
    assert (found.drawn, found.failed, found.with_result) == (2, 1, 1)


def test_devices_are_drawn_as_policy_draws_them() -> None:
    names = uids(2500)
    found = numbers([device(uid, State.IN_SYNC) for uid in names], {"percent": 10})
    assert found.percent == 10
    assert found.devices == 2500
    assert found.drawn == found.in_sync == sum(draw(uid, "1.2.0", None) < 0.1 for uid in names)
    salted = numbers([device(uid) for uid in names], {"percent": 10, "salt": "s"})
    assert salted.drawn == sum(draw(uid, "1.2.0", "s") < 0.1 for uid in names)


def test_results_of_devices_that_are_not_drawn_do_not_count() -> None:
    found = numbers([device(uid, State.ROLLED_BACK) for uid in uids(10)], {"percent": 0})
    assert (found.devices, found.drawn, found.with_result) == (10, 0, 0)


def test_results_of_other_versions_do_not_count() -> None:
    row = Row("a", State.IN_SYNC, current="1.1.0", target="1.1.0", in_sync=True)
    back = Row("b", State.ROLLED_BACK, current="1.0.0", target="1.1.0", in_sync=False)
    found = numbers([(Device("a", uid="a"), row), (Device("b", uid="b"), back)])
    assert (found.drawn, found.with_result) == (2, 0)


def test_devices_with_a_source_of_their_own_and_disabled_ones_are_no_part_of_it() -> None:
    found = numbers([device("a"), device("b", source=File("special")), device("c", disabled=True)])
    assert (found.devices, found.drawn) == (1, 1)


def test_labels_of_the_policy_select_devices() -> None:
    devices = [device("a", labels={"ring": "canary"}), device("b", labels={"ring": "other"}), device("c")]
    found = numbers(devices, {"labels": {"ring": "canary"}})
    assert (found.devices, found.drawn) == (3, 1)


def test_device_overrides_the_percentage() -> None:
    everybody, nobody = (read_policy({"rollout": {"percent": percent}}) for percent in (100, 0))
    found = numbers([device("a", policy=everybody), device("b", policy=nobody), device("c")], {"percent": 0})
    assert (found.percent, found.drawn) == (0, 1)


def test_uid_of_any_characters_is_drawn_as_it_is() -> None:
    odd = ["a\nb", "ü", "\ud800", "", "a\0b"]
    found = numbers([device(uid) for uid in odd * 300], {"percent": 50, "salt": "x"})
    drawable = [uid for uid in odd if uid and uid != "\ud800"]
    assert found.devices == 1500
    assert found.drawn == 300 * sum(draw(uid, "1.2.0", "x") < 0.5 for uid in drawable)


def test_target_that_is_no_text_is_no_version() -> None:
    assert count([at("\ud800", 5), at("1.2.0", 1)]).numbers(NOON) == numbers([at("1.2.0", 1)] * 2)


def test_stages_say_how_many_are_drawn() -> None:
    names = uids(2000)
    rollout = {"stages": [{"percent": 1}, {"percent": 10}, {"percent": 100, "over": "10h"}]}
    status = {"version": "1.2.0", "stage": 1, "since": "2026-11-23T07:00:00Z"}
    devices = [device(uid) for uid in names]
    second = numbers(devices, rollout, status)
    assert (second.stage, second.stages, second.percent) == (1, 3, 10)
    assert second.drawn == sum(draw(uid, "1.2.0", None) < 0.1 for uid in names)
    growing = numbers(devices, rollout, {**status, "stage": 2})
    assert (growing.stage, growing.percent) == (2, 55)  # five of ten hours have passed
    assert numbers(devices, rollout, {**status, "version": "1.1.0"}).stage == 0
    complete = numbers(devices, rollout, {**status, "complete": True})
    assert (complete.percent, complete.drawn, complete.stage, complete.stages) == (100, 2000, None, None)


@pytest.mark.parametrize(
    ("rollout", "status", "stop"),
    [
        ({"maxFailed": 2}, {"failed": {"1.2.0": {"count": 1}}}, None),
        (
            {"maxFailed": 1, "paused": True},
            {"failed": {"1.2.0": {"count": 1}}},
            Stop(StopKind.HALTED, "1.2.0 failed on 1 device, and maxFailed is 1"),
        ),
        ({"maxFailed": 1}, {"failed": {"1.1.0": {"count": 1}}}, None),
        ({"paused": True}, {"aborted": ["1.2.0"]}, Stop(StopKind.ABORTED, "1.2.0 was aborted")),
        ({"paused": True}, {}, Stop(StopKind.PAUSED, "updates are paused")),
    ],
)
def test_numbers_say_why_no_device_gets_the_version(
    rollout: dict[str, Any], status: dict[str, Any], stop: Stop | None
) -> None:
    assert numbers([device("a")], rollout, status).stop == stop


# --- The version ------------------------------------------------------------------------------------------------------


def at(target: str, minutes: float) -> tuple[Device, Row]:
    """A device that reported a target some minutes after noon."""
    uid = f"{target}-{minutes}"
    return Device(uid, uid=uid), Row(uid, State.HELD, target=target, reported=NOON + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    ("devices", "rollout", "version"),
    [
        ([], None, None),
        ([at("1.1.0", 0), at("1.2.0", 5), at("1.1.0", 3)], None, "1.2.0"),
        ([], {"version": "1.2.0", "since": "2026-11-23T12:00:00Z"}, "1.2.0"),
        ([at("1.1.0", -60)], {"version": "1.2.0", "since": "2026-11-23T12:00:00Z"}, "1.2.0"),
        # Processes read the new target within a minute.
        ([at("1.1.0", 0.9)], {"version": "1.2.0", "since": "2026-11-23T12:00:00Z"}, "1.2.0"),
        ([at("1.2.0", 9), at("1.1.0", 9.9)], {"version": "1.2.0", "since": "2026-11-23T12:00:00Z"}, "1.2.0"),
        # Somebody has named another firmware since.
        ([at("1.2.0", 5), at("1.3.0", 9)], {"version": "1.2.0", "since": "2026-11-23T12:00:00Z"}, "1.3.0"),
        ([at("1.3.0", 9)], {"version": "1.2.0"}, "1.2.0"),
    ],
)
def test_version_is_that_of_the_rollout_or_of_later_reports(
    devices: list[tuple[Device, Row]], rollout: object, version: str | None
) -> None:
    found = count(devices, status=rollout).numbers(NOON)
    assert (found.version if found else None) == version


def test_unknown_target_is_no_version() -> None:
    row = Row("a", State.FAILED, target="Unknown", reported=NOON)
    assert count([(Device("a"), row)]).numbers(NOON) is None


@pytest.mark.parametrize(
    ("firmware", "problem"),
    [
        (None, ""),
        ({**SOURCE, "rollout": {"percent": 101}}, "the application's spec.firmware.rollout.percent is 101; it must be"),
    ],
)
def test_application_without_a_readable_rollout_has_no_numbers(firmware: object, problem: str) -> None:
    counted = RolloutCount(read_object({"spec": {"firmware": firmware}}, "application"))
    counted.add(*at("1.2.0", 0))
    assert counted.problem.startswith(problem)
    assert bool(counted.problem) == bool(problem)
    assert counted.numbers(NOON, "1.2.0") is None


def test_the_rollout_of_a_range_is_of_the_highest_version() -> None:
    """Devices that are led through other versions report those as their targets, later than the highest."""
    found = {"metadata": {"name": "shop"}, "spec": {"firmware": {"container": {"image": "sensor", "version": "1.x"}}}}
    targets = ["1.9.0", "1.10.0", "blue", "1.5.0"]
    for recorded, expected in ((None, "1.10.0"), ("1.2.0", "1.10.0"), ("1.11.0", "1.11.0")):
        status = {"firmware": {"rollout": {"version": recorded}}} if recorded else {}
        counted = RolloutCount(read_object({**found, "status": status}, "application"))
        for minute, target in enumerate(targets):
            row = Row(target, State.UPDATING, current="1.0.0", target=target, reported=NOON + timedelta(hours=minute))
            counted.add(Device(target, uid=target, labels={}), row)
        numbers = counted.numbers(NOON + timedelta(days=1))
        assert numbers
        assert numbers.version == expected
