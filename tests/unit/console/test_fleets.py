"""The generated fleets: the same each time, with devices in every state."""

from collections import Counter

from fleet_fn.drogue.listing import read_device
from fleet_fn.fleet.rollout.application import Application
from fleet_fn.fleet.rows import read_row
from fleet_fn.fleet.states import State
from tests.support.fleets import HOSTILE, NOON, Story, make_fleet


def test_same_seed_makes_the_same_fleet() -> None:
    assert make_fleet(Story(devices=50)) == make_fleet(Story(devices=50))
    assert make_fleet(Story(devices=50)) != make_fleet(Story(devices=50, seed=2))


def test_devices_are_in_each_state_for_each_reason() -> None:
    application, *devices = make_fleet(Story(devices=3000))
    rows = [read_row(read_device(device, "thermostats"), NOON) for device in devices]
    assert {row.state for row in rows} == set(State)
    reasons = {row.reason for row in rows}
    assert {
        "approval",
        "window",
        "backoff",
        "attempts",
        "block-refused",
        "unsigned",
        "swapped",
        "confirming",
    } <= reasons
    failed = Counter(row.state for row in rows)[State.ROLLED_BACK] + sum(row.gave_up for row in rows)
    assert Application.read(application).rollout.failed["1.5.0"].count == failed


def test_hostile_fleet_has_each_name() -> None:
    _, *devices = make_fleet(Story(devices=40, hostile=True))
    names = [device["metadata"]["name"] for device in devices]
    assert set(HOSTILE) < set(names)
    assert all(len(name.encode()) <= 255 for name in names)
