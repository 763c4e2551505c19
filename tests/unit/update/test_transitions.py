"""Transitions of updates: what the report of an answer tells that the device's object did not."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_fn.drogue.status_report import FAILED, IN_SYNC, UNKNOWN, Condition, Report, Reported
from fleet_fn.drogue.update_record import Record
from fleet_fn.protocol.messages import Swap, Sync
from fleet_fn.protocol.step import Block
from fleet_fn.update.transitions import (
    Subject,
    Transition,
    failure_of,
    transitions_of,
    transitions_without_record,
)
from fleet_fn.update.values import Confirm, Hold

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
NOON = "2026-05-04T12:00:00Z"
SUM = "ab" * 32
RECORD = Record("2", SUM)
STARTED = Record("2", SUM, started=NOON)
SWAPPED = Record("2", SUM, started=NOON, swapped=NOON)
SYNCED = Record("2", SUM, started=NOON, swapped=NOON, synced=NOON, syncs=1)
FAILED_ONCE = Record("2", SUM, attempts=1)
OTHER = Record("3", "cd" * 32, started=NOON)
GIVEN_UP = Hold("attempts", "2 did not come up", 300, "2 did not come up")
BACKOFF = Hold("backoff", "2 did not come up", 300)
PAUSED = Hold("paused", "updates are paused", 300)
BLOCK = Block(b"2", 0, 512)


def said(current: str, reason: str = "", *, gave_up: bool = False, record: Record | None = None) -> Reported:
    conditions = [Condition(IN_SYNC, "False", reason)]
    if gave_up:
        conditions.append(Condition(FAILED, "True", "attempts"))
    return Reported(current, "2", tuple(conditions), record)


def report(
    current: str, before: Record | None, record: Record | None, *, step: object = None, target: str = "2"
) -> Report:
    reason = step.reason if isinstance(step, Hold) else ""
    conditions = [Condition(IN_SYNC, "True" if current == target else "False", reason)]
    if isinstance(step, Hold) and step.given_up:
        conditions.append(Condition(FAILED, "True", step.reason, step.message))
    return Report(current, target, tuple(conditions), before, record)


@pytest.mark.parametrize(
    ("step", "current", "before", "after", "subjects"),
    [
        (BLOCK, "1", None, STARTED, ["started"]),
        (BLOCK, "1", OTHER, STARTED, ["started"]),
        (BLOCK, "1", Record("2", "ff" * 32, started=NOON), STARTED, ["started"]),
        (BLOCK, "1", FAILED_ONCE, Record("2", SUM, started=NOON, attempts=1), ["started"]),
        (BLOCK, "1", STARTED, Record("2", SUM, started=NOON, retry="again"), []),
        (BLOCK, "1", STARTED, STARTED, []),
        (Swap(b"2", b""), "1", STARTED, SWAPPED, ["swapped"]),
        (Swap(b"2", b""), "1", None, Record("2", SUM, swapped=NOON), ["swapped"]),
        (Sync(b"2", 300), "2", SWAPPED, SYNCED, ["succeeded"]),
        (Sync(b"2", 300), "2", SYNCED, Record("2", SUM, started=NOON, swapped=NOON, synced=NOON, syncs=2), []),
        (Confirm(b"2", 300), "2", SWAPPED, SYNCED, ["succeeded"]),
        (Confirm(b"1", 300), "1", STARTED, Record("2", SUM, started=NOON, synced=NOON, syncs=1), []),
        (BACKOFF, "1", SWAPPED, FAILED_ONCE, ["rolled-back"]),
        (PAUSED, "1", SWAPPED, FAILED_ONCE, ["rolled-back", "held"]),
        (GIVEN_UP, "1", SWAPPED, Record("2", SUM, attempts=3), ["rolled-back", "gave-up"]),
        (GIVEN_UP, "1", FAILED_ONCE, FAILED_ONCE, ["gave-up"]),
        (PAUSED, "1", None, None, ["held"]),
        (PAUSED, "1", OTHER, OTHER, ["held"]),
    ],
)
def test_transitions_by_what_changes(
    step: object, current: str, before: Record | None, after: Record | None, subjects: list[str]
) -> None:
    found = transitions_of(step, report(current, before, after, step=step), SUM, said("1", record=before))
    assert [transition.subject for transition in found] == subjects
    assert {(transition.to_version, transition.checksum) for transition in found} <= {("2", SUM)}


def test_transition_names_both_versions_and_the_attempts() -> None:
    (back,) = transitions_of(BACKOFF, report("1", SWAPPED, FAILED_ONCE, step=BACKOFF), SUM, said("1"))
    assert back == Transition(Subject.ROLLED_BACK, "1", "2", SUM, 1)


def test_success_names_the_version_before() -> None:
    (success,) = transitions_of(Sync(b"2", 300), report("2", SWAPPED, SYNCED), SUM, said("1"))
    assert success == Transition(Subject.SUCCEEDED, "1", "2", SUM)


def test_success_names_no_version_before_if_the_new_one_is_told_already() -> None:
    (success,) = transitions_of(Sync(b"2", 300), report("2", SWAPPED, SYNCED), SUM, said("2"))
    assert success.from_version == ""


@pytest.mark.parametrize(
    ("step", "reported"),
    [
        (PAUSED, said("1", "paused")),
        (BACKOFF, said("1")),
        (GIVEN_UP, said("1", "attempts", gave_up=True)),
        (GIVEN_UP, said("1", "no such tag", gave_up=True)),
    ],
)
def test_hold_told_before_or_after_a_failure_is_no_transition(step: Hold, reported: Reported) -> None:
    assert transitions_of(step, report("1", RECORD, RECORD, step=step), SUM, reported) == ()


def test_hold_tells_attempts_of_its_own_bytes_only() -> None:
    held = report("1", FAILED_ONCE, FAILED_ONCE, step=PAUSED)
    (same,) = transitions_of(PAUSED, held, SUM, said("1"))
    (other,) = transitions_of(PAUSED, held, "cd" * 32, said("1"))
    assert (same.attempts, other.attempts) == (1, 0)
    assert same.reason == "paused"


def test_failure_is_told_once() -> None:
    failure = Report("1", UNKNOWN, (Condition(IN_SYNC, "False", "no such tag"),))
    reported = said("1", record=FAILED_ONCE)
    transition = Transition(Subject.FAILED, "1", "2", SUM, 1, "no such tag")
    assert failure_of("no such tag", failure, reported) == (transition,)
    assert failure_of("no such tag", failure, said("1", "no such tag")) == ()


def test_failure_of_an_unknown_target() -> None:
    failure = Report("1", UNKNOWN, (Condition(IN_SYNC, "False", "no such tag"),))
    for reported in (Reported(), Reported("1", UNKNOWN, record=FAILED_ONCE)):
        assert failure_of("no such tag", failure, reported) == (
            Transition(Subject.FAILED, "1", "", "", 0, "no such tag"),
        )


@pytest.mark.parametrize(
    ("step", "subjects"),
    [
        (BLOCK, ["started"]),
        (Swap(b"2", b""), ["swapped"]),
        (Block(b"2", 512, 512), []),
        (PAUSED, []),
        (Sync(b"2", 300), []),
    ],
)
def test_without_records_a_start_and_a_swap_are_transitions(step: object, subjects: list[str]) -> None:
    found = transitions_without_record(step, "1", "2", SUM)
    assert [transition.subject for transition in found] == subjects
    assert all(transition == Transition(transition.subject, "1", "2", SUM) for transition in found)


times = st.none() | st.just(NOON)
records = st.builds(
    Record,
    st.sampled_from(["1", "2"]),
    st.sampled_from([SUM, "cd" * 32]),
    started=times,
    swapped=times,
    synced=times,
    attempts=st.integers(0, 3),
)
steps = st.sampled_from([BLOCK, Swap(b"2", b""), Sync(b"2", 300), Confirm(b"2", 300), PAUSED, BACKOFF, GIVEN_UP])
objects = st.builds(
    said,
    st.sampled_from(["1", "2"]),
    st.sampled_from(["", "paused", "no such tag"]),
    gave_up=st.booleans(),
    record=st.none() | records,
)


@given(steps, st.sampled_from(["1", "2"]), objects, st.none() | records)
def test_transitions_are_news_and_told_once(
    step: object, current: str, reported: Reported, after: Record | None
) -> None:
    told = report(current, reported.record, after, step=step)
    found = transitions_of(step, told, SUM, reported)
    assert len({transition.subject for transition in found}) == len(found)
    if found:
        assert told.is_news(reported)
    section = {"update": reported.record.to_json()} if reported.record else {}
    stored = Reported.read(told.merge_into(section, NOW))
    assert transitions_of(step, told._replace(before=stored.record), SUM, stored) == ()


@given(st.sampled_from(["no such tag", "paused"]), objects)
def test_failures_are_news_and_told_once(reason: str, reported: Reported) -> None:
    failure = Report("1", UNKNOWN, (Condition(IN_SYNC, "False", reason),))
    if failure_of(reason, failure, reported):
        assert failure.is_news(reported)
    assert failure_of(reason, failure, Reported.read(failure.merge_into({}, NOW))) == ()
