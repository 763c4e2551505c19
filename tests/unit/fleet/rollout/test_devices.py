"""Selected devices: their labels, and their retries."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.drogue.update_record import FailedVersion
from fleet_fn.fleet.rollout.application import RefusedError
from fleet_fn.fleet.rollout.devices import Selection, label_value, with_label, with_retry
from fleet_fn.fleet.rows import Row
from fleet_fn.fleet.states import State
from fleet_fn.sandbox.labels import Selector


@given(st.text())
def test_any_version_is_a_value_that_selectors_take(version: str) -> None:
    value = label_value(version)
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value)
    assert Selector.parse(f"fleet-rollout={value}")


@pytest.mark.parametrize("version", ["1.1.0", "2026.11.23-rc1", "x" * 63])
def test_a_version_that_can_be_a_value_is_one(version: str) -> None:
    assert label_value(version) == version


def test_versions_that_look_alike_have_other_values() -> None:
    versions = ["1.0+a", "1.0_a", "1.0 a", "x" * 64, "x" * 65, "", ".", "-"]
    assert len(set(map(label_value, versions))) == len(versions)


def test_a_selection_needs_a_version_and_a_state_if_both_are_named() -> None:
    row = Row("a", State.FAILED, current="1")
    assert Selection(("1", "2"), (State.FAILED,)).matches(row)
    assert not Selection(("2",), (State.FAILED,)).matches(row)
    assert not Selection(("1",), (State.STALLED,)).matches(row)
    failed = Row("a", State.IN_SYNC, failed=(FailedVersion("1", "ab", 1),))
    assert Selection(failed=("1",)).matches(failed)
    assert not Selection(failed=("2",)).matches(failed)
    assert str(Selection(failed=("1",))) == "1 failed on them"
    assert not Selection()
    assert str(Selection(("1", "2"), (State.FAILED,))) == "running 1 or 2, failed"


def test_a_label_is_added_once() -> None:
    labelled = with_label({"metadata": {"name": "a"}, "spec": {}}, "1")
    assert labelled == {"metadata": {"name": "a", "labels": {"fleet-rollout": "1"}}, "spec": {}}
    assert with_label(labelled, "1") is None


def test_a_retry_keeps_the_devices_own_keys() -> None:
    changed = with_retry({"spec": {"firmware": {"maxAttempts": 2}, "core": {}}}, "now")
    assert changed == {"spec": {"firmware": {"maxAttempts": 2, "retry": "now"}, "core": {}}}
    with pytest.raises(RefusedError, match="the device's spec is not a map"):
        with_retry({"spec": 1}, "now")
