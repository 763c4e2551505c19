"""A rollout in stages: which devices each lets in, and when."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.drogue.rollout_status import RolloutStatus, with_failure
from fleet_fn.drogue.spec_policy import Policy, Stage, read_policy
from fleet_fn.update.policy import Candidate, Hold, draw, hold_start
from fleet_fn.update.stages import Position

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
STAGES = (Stage(1, approval=True), Stage(10, after=24 * HOUR, success=95), Stage(100, over=48 * HOUR))


def status(stage: int = 0, since: datetime | None = NOW, **fields: Any) -> RolloutStatus:
    return RolloutStatus("2", stage, since, **fields)


def hold(uid: str, rollout: RolloutStatus, now: datetime = NOW, **policy: Any) -> Hold | None:
    return hold_start(Policy(**{"stages": STAGES, **policy}), Candidate(uid, {}), "2", now, rollout)


def uid_drawn(least: float, below: float) -> str:
    """The UID of a device that is drawn within a range, in percent."""
    uids = (str(UUID(int=number)) for number in range(10_000))
    return next(uid for uid in uids if least <= 100 * draw(uid, "2", None) < below)


def test_stages_are_read() -> None:
    section = [
        {"percent": 1, "approval": True},
        {"percent": 10, "after": "24h", "success": 95},
        {"percent": 100, "over": "2d"},
    ]
    policy = read_policy({"rollout": {"stages": section, "maxFailed": 5}})
    assert (policy.stages, policy.max_failed) == (STAGES, 5)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("1.5h", 5400), ("90m", 5400), ("7d", 604800), ("0s", 0), ("3650d", 315360000)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    (stage,) = read_policy({"rollout": {"stages": [{"percent": 1, "after": text}]}}).stages or ()
    assert stage.after == timedelta(seconds=seconds)


def test_a_device_has_either_a_percentage_or_stages() -> None:
    staged, share = Policy(stages=STAGES, max_failed=5), Policy(percent=0)
    assert share.over(staged) == Policy(percent=0, max_failed=5)
    assert staged.over(share) == staged
    assert Policy(paused=True).over(staged) == Policy(paused=True, stages=STAGES, max_failed=5)


def test_without_an_entry_for_the_version_the_first_stage_counts() -> None:
    drawn = uid_drawn(1, 10)
    for other in (RolloutStatus(), RolloutStatus("1", 2, NOW), RolloutStatus("1", complete=True)):
        assert hold(drawn, other) == Hold("approval", "not in stage 1 of 3 (1 % of devices), which waits for approval")


def test_each_stage_lets_in_its_share() -> None:
    drawn = uid_drawn(1, 10)
    assert hold(drawn, status(1)) is None
    assert hold(uid_drawn(0, 1), status(0)) is None
    assert hold(uid_drawn(10, 100), status(1)) == Hold("rollout", "not in stage 2 of 3 (10 % of devices)")
    assert hold("", status(1)) == Hold("rollout", "not in stage 2 of 3 (10 % of devices): it has no UID")


def test_an_approved_stage_waits_for_no_approval() -> None:
    assert hold(uid_drawn(1, 10), status(0, approved=True)) == Hold("rollout", "not in stage 1 of 3 (1 % of devices)")


def test_a_growing_stage_says_when_it_lets_a_device_in() -> None:
    drawn = uid_drawn(54, 56)
    held = hold(drawn, status(2), NOW + HOUR)
    assert held is not None
    assert (held.reason, held.message) == ("rollout", "not yet in stage 3 of 3 (up to 100 % of devices)")
    assert held.until is not None
    assert abs(held.until - (NOW + 24 * HOUR)) < HOUR
    assert hold(drawn, status(2), held.until - timedelta(minutes=1)) is not None
    assert hold(drawn, status(2), held.until + timedelta(minutes=1)) is None
    assert hold(drawn, status(2), NOW + 48 * HOUR) is None


@pytest.mark.parametrize("since", [None, NOW + 99 * HOUR])
def test_a_growing_stage_of_unknown_age_has_the_share_of_the_one_before(since: datetime | None) -> None:
    assert Position.of(STAGES, status(2, since), "2").percent_at(NOW) == 10


def test_a_stage_that_is_gone_counts_as_the_last() -> None:
    assert hold(uid_drawn(10, 100), status(7), NOW + 48 * HOUR) is None


def test_a_complete_rollout_holds_no_device_back() -> None:
    drawn = uid_drawn(10, 100)
    assert hold(drawn, status(complete=True)) is None
    assert hold_start(Policy(percent=0), Candidate(drawn, {}), "2", NOW, status(complete=True)) is None
    canaries = Policy(labels={"ring": "canary"})
    assert hold_start(canaries, Candidate(drawn, {}), "2", NOW, status(complete=True)) is not None


STAGE_LISTS = st.lists(
    st.tuples(
        st.floats(0, 100, allow_nan=False),
        st.none() | st.timedeltas(timedelta(), timedelta(days=9)),
    ),
    min_size=1,
    max_size=5,
).map(lambda given: tuple(Stage(percent, over=over) for percent, over in sorted(given, key=lambda pair: pair[0])))


@given(STAGE_LISTS, st.uuids(), st.data())
def test_no_stage_ever_removes_a_device(stages: tuple[Stage, ...], device: UUID, data: st.DataObject) -> None:
    policy, since, now, was_in = Policy(stages=stages), NOW, NOW, False
    for index in range(len(stages)):
        for _ in range(3):
            rollout = RolloutStatus("2", index, since)
            held = hold_start(policy, Candidate(str(device), {}), "2", now, rollout)
            assert not (was_in and held), "a device was removed"
            was_in = held is None
            if held and held.until:
                assert held.until > now
            now += data.draw(st.timedeltas(timedelta(), timedelta(days=9)))
        since = now
    if stages[-1].percent == 100 and not stages[-1].over:
        assert was_in


@pytest.mark.parametrize(
    "malformed",
    [
        None,
        [],
        {"rollout": []},
        {
            "rollout": {
                "version": 2,
                "stage": "1",
                "since": "yesterday",
                "approved": "true",
                "failed": [],
                "aborted": {},
            }
        },
        {"rollout": {"stage": -1, "failed": {"2": 5, "3": {"count": "9", "devices": {}}}, "aborted": [1]}},
    ],
)
def test_malformed_parts_of_the_status_count_as_missing(malformed: object) -> None:
    read = RolloutStatus.read(malformed)
    assert (read.version, read.stage, read.since, read.approved, read.aborted) == (None, 0, None, False, ())
    assert not read.halts("2", 1)
    assert not read.halts("3", 1)


def test_a_version_halts_at_the_limit_and_no_other() -> None:
    read = RolloutStatus.read(
        {"rollout": {"failed": {"2": {"count": 1, "devices": ["a", "b"]}, "3": {"count": 9}}, "aborted": ["4"]}}
    )
    assert [read.halts("2", most) for most in (1, 2, 3, None)] == [True, True, False, False]
    assert (read.halts("3", 9), read.halts("1", 1)) == (True, False)
    assert (read.halts("4", None), read.halts("4", 1000)) == (True, True)


@pytest.mark.parametrize("since", ["9999-12-31T23:59:59Z", "9990-06-01T00:00:00Z"])
def test_a_stage_that_began_too_late_for_any_time_to_pass_does_not_grow(since: str) -> None:
    stages = (Stage(10), Stage(100, over=timedelta(days=3650)))
    rollout = RolloutStatus.read({"rollout": {"version": "2", "stage": 1, "since": since}})
    assert hold(uid_drawn(0, 10), rollout, stages=stages) is None
    held = hold(uid_drawn(90, 100), rollout, stages=stages)
    assert held
    assert (held.reason, held.until) == ("rollout", None)


def test_a_count_beyond_all_numbers_of_devices_still_halts_and_can_grow() -> None:
    rollout = {"failed": {"2": {"count": int("9" * 4300), "devices": []}}}
    assert RolloutStatus.read({"rollout": rollout}).halts("2", 1000)
    grown = with_failure(rollout, "2", "a", is_first=True, room_bytes=1000)
    assert grown
    assert json.loads(json.dumps(grown))["failed"]["2"]["devices"] == ["a"]
