"""What policy and the notes forbid, status by status; and processes with old views against devices of the field."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_fn.drogue.spec_policy import Policy, Window
from fleet_fn.drogue.update_record import FailedVersion, LastAnswered, PendingRestart, Record, Superseded, record_for
from fleet_fn.protocol.messages import Progress, Status, Swap, Sync, Write
from fleet_fn.protocol.step import Block, Target
from fleet_fn.sandbox.simulated_device import CarefulDevice, FirmwareManagerDevice, SimulatedDevice
from fleet_fn.update.decision import confirm, decide
from fleet_fn.update.values import Again, Confirm, Decision, DecisionContext, Freshness, Hold, Settle, Stuck

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TARGET = Target(b"0.1.1", 1300, bytes(32))
CHECKSUM = TARGET.checksum.hex()
OLD = Status(b"0.1.0")
STARTED = Record("0.1.1", CHECKSUM, started="2026-11-25T11:00:00Z")
SWAPPED = replace(STARTED, swapped="2026-11-25T11:30:00Z")
ONCE_FAILED = replace(
    SWAPPED,
    attempts=1,
    started=None,
    swapped=None,
    failed=(FailedVersion("0.1.1", STARTED.checksum, 1, datetime(2026, 11, 25, 12, tzinfo=UTC)),),
)
REPUSHED = replace(STARTED, checksum="ff" * 32)
EARLIER = Record("0.1.0-rc", "ee" * 32, started="2026-11-25T11:00:00Z")
TTL = timedelta(seconds=10)
RESTARTED = replace(STARTED, restart=PendingRestart(sent=512, midway=1024))


def at(offset: int, version: bytes = TARGET.version) -> Status:
    return replace(OLD, progress=Progress(version, offset))


def verdict(status: Status, record: Record | None = None, target: Target = TARGET, **more: object) -> Decision:
    fields = {"now": NOW, "mtu": 512, "poll": 300, "record": record, **more}
    return decide(status, target, DecisionContext(**fields))  # type: ignore[arg-type]  # tests name what they set


def held(given: Decision) -> Hold:
    assert isinstance(given.step, Hold)
    return given.step


def block(offset: int, size: int = 512) -> Block:
    return Block(TARGET.version, offset, size)


# --- Updates as they should be ----------------------------------------------------------------------------------------


def test_a_start_is_recorded_before_its_block_is_sent() -> None:
    started = verdict(OLD)
    assert started.step == block(0)
    assert started.record == Record("0.1.1", CHECKSUM, started="2026-11-25T12:00:00Z")
    assert (started.records_first, started.rests_on) == (True, Freshness.EVERYTHING)


def test_blocks_in_between_leave_the_record_as_it_is_and_rest_on_memory() -> None:
    given = verdict(at(1024), STARTED)
    assert given == Decision(block(1024, 276), STARTED, records_first=False, rests_on=Freshness.MEMORY)


def test_a_swap_is_recorded_before_it_is_sent_and_its_first_time_counts() -> None:
    swapped = verdict(at(1300), STARTED)
    assert isinstance(swapped.step, Swap)
    assert (swapped.records_first, swapped.rests_on) == (True, Freshness.EVERYTHING)
    assert swapped.record == replace(STARTED, swapped="2026-11-25T12:00:00Z")
    again = verdict(at(1300), SWAPPED)
    assert (again.record, again.records_first) == (SWAPPED, True)


def test_a_device_in_sync_keeps_its_notes_but_for_a_restart_and_is_noted_to_have_come_up() -> None:
    came_up = replace(SWAPPED, synced="2026-11-25T12:00:00Z", syncs=1)
    assert verdict(Status(b"0.1.1"), SWAPPED) == Decision(Sync(b"0.1.1", 300), came_up)
    assert verdict(Status(b"0.1.1"), came_up, now=NOW + timedelta(hours=1)).record == came_up
    assert verdict(Status(b"0.1.1"), RESTARTED).record == STARTED
    earlier = replace(came_up, version="0.1.0")
    assert verdict(Status(b"0.1.1"), earlier) == Decision(Sync(b"0.1.1", 300), earlier)


@pytest.mark.parametrize("status", [Status(b"0.1.1"), replace(Status(b"0.1.1"), progress=Progress(b"0.1.1", 0)), OLD])
def test_a_failed_swap_to_an_earlier_target_is_recorded_once(status: Status) -> None:
    swapped = replace(SWAPPED, version="0.0.9")
    failed = FailedVersion("0.0.9", CHECKSUM, 1, NOW)
    given = verdict(status, swapped)
    assert given.rests_on is Freshness.NOW
    assert given.record
    assert given.record.failed == (failed,)
    again = verdict(status, given.record)
    assert again.record
    assert again.record.failed == (failed,)
    if status is not OLD:
        # A device that comes up with the earlier target after all has to hear SYNC.
        assert (given.record, again) == (replace(swapped, failed=(failed,)), Decision(given.step, given.record))
        assert isinstance(verdict(Status(b"0.0.9"), given.record).step, Confirm)


@pytest.mark.parametrize("swapped", ["2026-11-25T12:30:00.9Z", "2026-11-25T12:00:00.5Z", "2026-11-25T11:59:59.999999Z"])
def test_a_failed_swap_is_recorded_once_although_clocks_differ(swapped: str) -> None:
    record = verdict(Status(b"0.1.1"), replace(SWAPPED, version="0.0.9", swapped=swapped)).record
    assert record
    stored = Record.read(record.to_json())
    assert stored
    assert len(stored.failed) == 1
    assert verdict(Status(b"0.1.1"), stored) == Decision(Sync(b"0.1.1", 300), stored)


@pytest.mark.parametrize(
    "status", [Status(b"0.0.9"), at(512, b"0.0.9"), replace(OLD, progress=Progress(b"0.0.9", 1300))]
)
def test_a_device_that_has_blocks_or_came_up_has_not_failed(status: Status) -> None:
    record = verdict(status, replace(SWAPPED, version="0.0.9")).record
    assert record
    assert record.failed == ()


def test_one_that_had_come_up_and_is_back_with_another_version_has_not_failed() -> None:
    given = verdict(OLD, replace(SWAPPED, attempts=2, synced="2026-11-25T11:40:00Z"))
    assert given.step == block(0)
    assert given.record == replace(STARTED, attempts=2, started="2026-11-25T12:00:00Z")


@pytest.mark.parametrize("record", [None, EARLIER, replace(STARTED, started=None), REPUSHED])
@pytest.mark.parametrize("offset", [512, 1024, 1300, 1312])
def test_a_device_midway_without_a_record_of_these_bytes_begins_from_0(offset: int, record: Record | None) -> None:
    given = verdict(at(offset), record)
    assert isinstance(given.step, Block)
    assert (given.step.offset, given.records_first, given.rests_on) == (0, True, Freshness.EVERYTHING)
    assert given.record is not None
    assert (given.record.version, given.record.checksum) == ("0.1.1", CHECKSUM)
    assert given.record.restart == PendingRestart(512, offset, orders=1)


@pytest.mark.parametrize("offset", [300, 512, 700])
def test_any_block_of_a_recorded_update_rests_on_memory(offset: int) -> None:
    assert verdict(at(offset), STARTED).rests_on is Freshness.MEMORY


@pytest.mark.parametrize(("uid", "offset"), [("one", 512), ("", 512), ("another", 0)])
def test_a_device_that_was_created_anew_is_not_continued_by_the_record_of_its_namesake(uid: str, offset: int) -> None:
    started = verdict(OLD, device_uid="one").record
    assert started
    assert started.device == "one"
    step = verdict(at(512), started, device_uid=uid).step
    assert isinstance(step, Block)
    assert step.offset == offset


def test_without_records_devices_are_believed() -> None:
    for status, step in ((OLD, block(0)), (at(512), block(512)), (at(1300), Swap(b"0.1.1", bytes(32)))):
        given = verdict(status, keeps_records=False)
        assert (given.step, given.record, given.records_first) == (step, None, False)


# --- Other bytes under the same version -------------------------------------------------------------------------------


def begun_with_other_bytes(seconds_ago: float) -> Record:
    """Return the record of an update that was started with the target's bytes after other bytes had its version."""
    superseded = Superseded("0.1.1", "ff" * 32, NOW - timedelta(seconds=seconds_ago))
    return replace(STARTED, earlier=(superseded,), restart=PendingRestart(512, midway=0))


def test_a_start_with_other_bytes_of_a_version_waits_for_its_second_block() -> None:
    start = verdict(OLD, REPUSHED, spec_ttl=TTL)
    assert (start.step, start.records_first) == (block(0), True)
    assert start.record is not None
    assert start.record.restart == PendingRestart(512, midway=0)
    waits = verdict(at(512), start.record, spec_ttl=TTL, now=NOW + timedelta(seconds=5))
    assert (waits.step, waits.record, waits.rests_on) == (Settle(7), start.record, Freshness.NOW)
    goes_on = verdict(at(512), start.record, spec_ttl=TTL, now=NOW + timedelta(seconds=12))
    assert (goes_on.step, goes_on.records_first) == (block(512), True)
    assert goes_on.record is not None
    assert goes_on.record.restart is None


def test_a_status_from_before_the_wait_was_over_does_not_end_it() -> None:
    """Another process may have answered it with the other bytes."""
    old = LastAnswered(("old",), NOW + timedelta(seconds=5))
    given = verdict(at(512), begun_with_other_bytes(0), spec_ttl=TTL, now=NOW + timedelta(seconds=14), answered=old)
    assert given.step == Settle(1)


@pytest.mark.parametrize("offset", [256, 700, 1024, 1300])
def test_a_block_of_another_process_meanwhile_is_found_out(offset: int) -> None:
    record: Record | None = begun_with_other_bytes(3)
    assert verdict(at(offset), record, spec_ttl=TTL).step == Settle(9)
    for order in range(1, 6):
        given = verdict(at(offset), record, spec_ttl=TTL, now=NOW + timedelta(seconds=9))
        assert given.record
        record = given.record
        assert record.restart
        assert (given.step, record.restart.orders) == (block(0, record.restart.sent), order)
        assert record.restart.sent <= offset
    assert verdict(at(offset), record, spec_ttl=TTL, now=NOW + timedelta(seconds=9)).step == Stuck()


def test_the_wait_is_remembered_over_a_target_in_between_and_ends_with_every_memory() -> None:
    between = record_for(Target(b"0.2", 5, b"x" * 32), REPUSHED, None, NOW)
    start = verdict(OLD, between, spec_ttl=TTL, now=NOW + timedelta(seconds=1))
    assert start.record is not None
    assert start.record.restart == PendingRestart(512, midway=0)
    late = verdict(OLD, between, spec_ttl=TTL, now=NOW + timedelta(seconds=13))
    assert late.record is not None
    assert late.record.restart is None
    # Nothing is remembered, or the bytes are the same as before.
    for record, ttl in ((REPUSHED, timedelta()), (STARTED, TTL)):
        start = verdict(OLD, record, spec_ttl=ttl)
        assert start.record is not None
        assert start.record.restart is None


@pytest.mark.parametrize("at_", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_no_time_in_a_record_is_too_far_away(at_: str) -> None:
    earlier = [{"version": "0.1.1", "checksum": "ff", "at": at_}]
    record = Record.read(STARTED.to_json() | {"earlier": earlier, "answered": {"events": [], "time": at_}})
    assert record
    assert record.earlier[0].at
    for status in (OLD, at(512), at(1300)):
        verdict(status, record, spec_ttl=timedelta(days=365), answered=LastAnswered(("x",), NOW))
    assert isinstance(record.is_under_way(NOW), bool)


def test_a_clock_that_is_ahead_holds_up_nothing() -> None:
    record = begun_with_other_bytes(-(10.0**8))
    assert verdict(at(512), record, spec_ttl=TTL).step == Settle(12)


@pytest.mark.parametrize("mtu", [1024, 513])
def test_an_order_within_a_version_has_the_device_report_less_than_it_did(mtu: int) -> None:
    """Offsets that a process causes which does not know of the order only grow."""
    given = verdict(at(512), None, mtu=mtu)
    assert given.step == block(0, 256)


# --- A version that came up -------------------------------------------------------------------------------------------


UP = replace(SWAPPED, version="0.1.0")


def test_a_device_that_came_up_hears_sync_before_its_next_update() -> None:
    first = verdict(OLD, UP)
    assert first.step == Confirm(b"0.1.0", 300)
    assert first.record == replace(UP, synced="2026-11-25T12:00:00Z", syncs=1)
    assert not first.records_first


@pytest.mark.parametrize("policy", [Policy(paused=True), Policy(percent=0.0)])
def test_so_it_does_if_its_next_update_is_held(policy: Policy) -> None:
    assert isinstance(verdict(OLD, UP, policy=policy).step, Confirm)


def test_so_it_does_if_its_target_is_unknown() -> None:
    given = confirm(OLD, None, DecisionContext(NOW, 512, 300, UP))
    assert given
    assert given.step == Confirm(b"0.1.0", 300)
    assert confirm(OLD, None, DecisionContext(NOW, 512, 300, SWAPPED)) is None


def test_a_time_ahead_of_our_clock_does_not_show_that_it_heard_sync() -> None:
    told = replace(UP, synced="2026-11-25T12:00:00Z", syncs=1)
    ahead = LastAnswered(("event",), NOW + timedelta(days=1))
    assert confirm(OLD, None, DecisionContext(NOW, 512, 300, told, answered=ahead))


@pytest.mark.parametrize("offset", [0, 1300])
def test_progress_that_is_left_over_from_the_version_that_runs_is_none(offset: int) -> None:
    assert verdict(at(offset, b"0.1.0"), UP).step == Confirm(b"0.1.0", 300)


def test_a_time_that_is_none_confirms_nothing_for_ever() -> None:
    fields = UP.to_json() | {"synced": "yesterday", "started": "then"}
    record = Record.read(fields)
    assert record
    assert (record.synced, record.started) == (None, None)
    for _ in range(3):
        given = verdict(OLD, record)
        assert isinstance(given.step, Confirm)
        record = given.record
    assert verdict(OLD, record).step == block(0)


@pytest.mark.parametrize(("seconds", "poll", "heard"), [(30, 300, False), (269, 300, False), (270, 300, True),
                                                        (30, 1, False), (45, 1, True)])  # fmt: skip
def test_a_status_sooner_than_asked_for_shows_that_sync_was_lost(seconds: int, poll: int, heard: bool) -> None:
    told = replace(UP, synced="2026-11-25T12:00:00Z", syncs=1)
    given = verdict(OLD, told, poll=poll, now=NOW + timedelta(seconds=seconds))
    assert isinstance(given.step, Block if heard else Confirm)


def test_a_device_that_keeps_no_time_is_told_a_few_times() -> None:
    record: Record | None = UP
    for _ in range(3):
        given = verdict(OLD, record)
        assert isinstance(given.step, Confirm)
        record = given.record
    assert verdict(OLD, record).step == block(0)


def test_a_device_that_refuses_to_start_is_told_sync_between_two_starts() -> None:
    """As bootloaders do whose firmware was never marked good: flashed by other means, say."""
    assert verdict(at(0), None, tells_refusals=True).step == block(0)
    refused = verdict(at(0), STARTED, tells_refusals=True)
    assert refused.step == Confirm(b"0.1.0", 300)
    again = verdict(at(0), refused.record, tells_refusals=True)
    assert again.step == block(0)
    assert again.record
    assert (again.record.started is not None, again.record.syncs, again.record.synced) == (True, 0, None)
    assert verdict(at(0), STARTED).step == block(0)


def test_a_device_that_came_back_from_a_swap_with_progress_at_0_has_failed() -> None:
    given = verdict(at(0), SWAPPED, tells_refusals=True)
    assert (held(given).reason, given.record) == ("backoff", ONCE_FAILED)


def test_an_order_of_no_bytes_is_none() -> None:
    record = Record.read(STARTED.to_json() | {"restart": {"sent": 0, "midway": 1024}})
    assert record == STARTED


def test_a_device_in_sync_has_no_update_under_way() -> None:
    given = verdict(Status(b"0.1.1"), EARLIER)
    assert given.record == replace(EARLIER, started=None)
    assert EARLIER.is_under_way(NOW)
    assert not EARLIER.is_under_way(NOW + timedelta(days=1))
    ahead = replace(EARLIER, started="2036-01-01T00:00:00Z", answered=LastAnswered((), NOW + timedelta(days=3650)))
    assert not ahead.is_under_way(NOW)


@pytest.mark.parametrize("record", [None, STARTED, SWAPPED, replace(UP, swapped=None)])
def test_a_device_that_did_not_come_up_by_a_swap_needs_no_sync_first(record: Record | None) -> None:
    assert not isinstance(verdict(OLD, record).step, Confirm)


# --- Devices that are restarted midway --------------------------------------------------------------------------------


def test_a_device_midway_in_another_version_is_noted_before_it_is_told_to_begin_anew() -> None:
    given = verdict(at(1024, b"0.1.0-rc"), EARLIER)
    assert (given.step, given.records_first, given.rests_on) == (block(0), True, Freshness.EVERYTHING)
    assert given.record is not None
    assert given.record.restart == PendingRestart(sent=512, midway=1024)


def test_one_that_is_at_0_expects_0_and_needs_no_note() -> None:
    given = verdict(at(0, b"0.1.0-rc"), EARLIER)
    assert (given.step, given.records_first) == (block(0), True)
    assert given.record is not None
    assert given.record.restart is None


def test_one_beyond_the_end_is_noted_too() -> None:
    given = verdict(at(5000), STARTED)
    assert (given.step, given.records_first) == (block(0), True)
    assert given.record == replace(STARTED, restart=PendingRestart(512, 5000, orders=1))


def test_one_that_wrote_the_block_goes_on_and_the_note_is_cleared_before_it_hears_so() -> None:
    given = verdict(at(512), RESTARTED)
    assert (given.step, given.records_first, given.record) == (block(512), True, STARTED)


@pytest.mark.parametrize("padded", [1300, 1304, 1312])
def test_a_single_block_may_be_reported_with_its_padding(padded: int) -> None:
    record = replace(STARTED, restart=PendingRestart(sent=1300, midway=4096))
    given = verdict(at(padded), record, mtu=2048)
    assert isinstance(given.step, Swap)


@pytest.mark.parametrize("offset", [1024, 256, 1300, 5000])
def test_one_that_reports_another_offset_is_stuck(offset: int) -> None:
    given = verdict(at(offset), RESTARTED)
    assert isinstance(given.step, Stuck)
    assert "power-cycle it" in given.step.message
    assert given.record == replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True))
    assert given.rests_on is Freshness.NOW


@pytest.mark.parametrize("status", [at(513), at(1024), at(1300), at(512, b"0.1.0-rc")])
@pytest.mark.parametrize("target", [TARGET, Target(b"0.2", 700, bytes(32))])
def test_one_that_is_stuck_gets_neither_block_nor_swap_of_any_target(status: Status, target: Target) -> None:
    stuck = replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True))
    assert isinstance(verdict(status, stuck, target).step, Stuck)


@pytest.mark.parametrize("version", [b"", b"0.1.0-rc"])
def test_one_that_is_stuck_and_reports_its_having_nothing_as_progress_at_0_starts(version: bytes) -> None:
    stuck = replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True))
    assert verdict(at(0, version), stuck).step == block(0)
    assert verdict(at(0), stuck).step == Stuck()


def test_one_that_is_stuck_goes_on_once_it_reports_the_very_block_that_was_sent() -> None:
    given = verdict(at(512), replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True)))
    assert (given.step, given.record, given.records_first) == (block(512), STARTED, True)


@pytest.mark.parametrize("target", [TARGET, Target(b"0.2", 700, bytes(32))])
def test_a_status_without_progress_clears_it(target: Target) -> None:
    given = verdict(OLD, replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True)), target)
    assert given.step == Block(target.version, 0, 512)
    assert given.records_first
    assert given.record is not None
    assert given.record.restart is None


def test_one_that_was_at_the_very_offset_that_the_block_ends_at_is_told_to_begin_with_a_shorter_one() -> None:
    first = verdict(at(512, b"0.1.0-rc"), EARLIER)
    assert first.step == block(0)
    second = verdict(at(512), first.record)
    assert (second.step, second.records_first) == (block(0, 256), True)
    assert verdict(at(256), second.record).step == block(256)


def test_one_whose_version_does_not_show_whether_it_heard_is_told_a_few_times() -> None:
    given = verdict(at(1024), REPUSHED)
    for _ in range(4):
        given = verdict(at(1024), given.record)
        assert (given.step, given.records_first) == (block(0), True)
    assert given.record
    assert given.record.restart == PendingRestart(512, 1024, orders=5)
    assert isinstance(verdict(at(1024), given.record).step, Stuck)
    assert isinstance(verdict(at(700), verdict(at(1024)).record).step, Stuck)


def test_another_retry_token_has_a_stuck_device_begin_anew_once_more() -> None:
    stuck = replace(RESTARTED, restart=PendingRestart(512, 1024, stuck=True))
    given = verdict(at(1024), stuck, policy=Policy(retry="again"))
    assert (given.step, given.records_first) == (block(0), True)
    assert given.record is not None
    assert given.record.restart == PendingRestart(512, 1024, orders=1)


def test_one_byte_cannot_be_told_from_none() -> None:
    record = replace(STARTED, restart=PendingRestart(sent=1, midway=1))
    assert isinstance(verdict(at(1), record, mtu=1).step, Stuck)


def test_a_restart_that_was_refused_is_not_forgotten_while_the_device_runs_its_target() -> None:
    """It is in sync, and has what it says of its progress in RAM all the same, for when the target comes back."""
    in_sync = replace(at(1300), version=b"0.1.0")
    record = replace(STARTED, restart=PendingRestart(sent=512, midway=1300))
    given = verdict(in_sync, record, Target(b"0.1.0", 900, bytes(32)))
    assert isinstance(given.step, Sync)
    assert given.record == record
    assert verdict(at(1300), given.record).step == Stuck()


@pytest.mark.parametrize("mtus", [[512, 1024], [1024, 512], [64, 4096, 32]])
def test_orders_end_whatever_becomes_of_the_block_size(mtus: list[int]) -> None:
    known: Record | None = REPUSHED
    for number in range(12):
        given = verdict(at(512), known, mtu=mtus[number % len(mtus)])
        known = given.record
        if isinstance(given.step, Stuck):
            break
        assert isinstance(given.step, Block)
        assert given.step.offset == 0
    assert isinstance(given.step, Stuck)


def test_an_order_to_begin_anew_keeps_to_the_block_size_that_the_device_has_by_now() -> None:
    record = replace(STARTED, restart=PendingRestart(sent=512, midway=1024, orders=1))
    given = verdict(at(1024), record, mtu=51)
    assert given.step == block(0, 51)
    assert given.record == replace(STARTED, restart=PendingRestart(sent=51, midway=1024, orders=2))
    assert given.records_first


def test_a_restart_that_was_not_heard_is_ordered_again() -> None:
    first = verdict(at(1024, b"0.1.0-rc"), EARLIER)
    again = verdict(at(1024, b"0.1.0-rc"), first.record)
    assert (again.step, again.records_first, again.record) == (block(0), True, first.record)


def test_a_target_that_comes_back_before_the_restart_was_heard_begins_anew_too() -> None:
    away = verdict(at(1024), STARTED, Target(b"0.2", 700, b"x" * 32))
    back = verdict(at(1024), away.record)
    assert (back.step, back.records_first) == (block(0), True)


# --- Attempts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [OLD, at(0, b"")])
def test_a_device_that_swapped_and_came_back_without_progress_has_failed_once_and_keeps_away_for_a_while(
    status: Status,
) -> None:
    first = verdict(status, SWAPPED)
    assert (held(first).reason, held(first).poll) == ("backoff", 600)
    assert first.record == ONCE_FAILED
    second = verdict(OLD, replace(SWAPPED, attempts=1))
    assert held(second).poll == 1200
    assert verdict(OLD, first.record).step == block(0)


def test_so_many_attempts_that_nobody_can_have_made_them_keep_a_device_away_for_no_longer_than_a_day() -> None:
    noted = replace(SWAPPED, attempts=2**32 - 2)
    assert held(verdict(OLD, noted, policy=Policy(max_attempts=2**32))).poll == 24 * 60 * 60


def test_the_pause_between_attempts_does_not_grow_beyond_a_day() -> None:
    assert held(verdict(OLD, replace(SWAPPED, attempts=40), policy=Policy(max_attempts=99))).poll == 24 * 60 * 60
    assert held(verdict(OLD, replace(SWAPPED, attempts=2), poll=10**6, policy=Policy(max_attempts=99))).poll == 10**6
    assert held(verdict(OLD, SWAPPED, poll=0)).poll == 0


def test_a_swap_that_nobody_heard_is_sent_again_and_is_no_attempt() -> None:
    given = verdict(at(1300), SWAPPED)
    assert isinstance(given.step, Swap)
    assert given.record == SWAPPED


@pytest.mark.parametrize(("most", "attempts"), [(None, 3), (1, 1), (5, 5)])
def test_after_so_many_attempts_the_update_is_given_up(most: int | None, attempts: int) -> None:
    policy = Policy(max_attempts=most)
    given = verdict(OLD, replace(SWAPPED, attempts=attempts - 1), policy=policy)
    assert (held(given).reason, held(given).poll, held(given).given_up) == ("attempts", 300, held(given).message)
    assert "0.1.1" in held(given).message
    assert given.record is not None
    assert given.record.attempts == attempts
    for status in (OLD, at(512), at(1300)):
        assert held(verdict(status, given.record, policy=policy)).reason == "attempts"


def test_a_new_target_starts_afresh_and_so_do_other_bytes_and_another_retry_token() -> None:
    given_up = replace(STARTED, attempts=3)
    for record in (replace(given_up, version="0.1.0"), replace(given_up, checksum="ff" * 32)):
        assert verdict(OLD, record).step == block(0)
    given = verdict(OLD, given_up, policy=Policy(retry="again"))
    assert given.step == block(0)
    assert given.record is not None
    assert (given.record.attempts, given.record.retry) == (0, "again")
    assert held(verdict(OLD, replace(given_up, retry="again"), policy=Policy(retry="again"))).reason == "attempts"


# --- Policy -----------------------------------------------------------------------------------------------------------

NIGHT = Window(60, 300, UTC, frozenset(range(7)))
HELD_BACK = [
    (Policy(percent=0.0), "rollout", 300),
    (Policy(labels={"ring": "canary"}), "rollout", 300),
    (Policy(window=NIGHT), "window", 13 * 60 * 60),
]


@pytest.mark.parametrize("status", [OLD, at(512), at(1300)])
def test_paused_holds_back_everything(status: Status) -> None:
    given = verdict(status, STARTED, policy=Policy(paused=True))
    assert (held(given).reason, held(given).poll) == ("paused", 300)


def test_paused_is_no_concern_of_a_device_in_sync() -> None:
    assert isinstance(verdict(Status(b"0.1.1"), policy=Policy(paused=True)).step, Sync)


@pytest.mark.parametrize(("policy", "reason", "poll"), HELD_BACK)
@pytest.mark.parametrize("status", [OLD, at(0), at(1024, b"0.1.0-rc"), at(5000)])
def test_a_start_is_held_back_with_a_reason(policy: Policy, reason: str, poll: int, status: Status) -> None:
    given = verdict(status, EARLIER, policy=policy)
    assert (held(given).reason, held(given).poll) == (reason, poll)
    assert given.record == EARLIER
    assert (given.records_first, given.rests_on) == (False, Freshness.MEMORY)


@pytest.mark.parametrize("policy", [policy for policy, *_ in HELD_BACK])
def test_a_device_midway_goes_on(policy: Policy) -> None:
    assert verdict(at(1024), STARTED, policy=policy).step == block(1024, 276)


def test_a_swap_waits_for_the_window_and_for_nothing_else() -> None:
    waiting = verdict(at(1300), STARTED, policy=Policy(window=NIGHT))
    assert (held(waiting).reason, held(waiting).poll, waiting.record) == ("window", 13 * 60 * 60, STARTED)
    for policy in (Policy(percent=0.0), Policy(labels={"a": "b"})):
        assert isinstance(verdict(at(1300), STARTED, policy=policy).step, Swap)
    open_now = verdict(at(1300), STARTED, policy=Policy(window=NIGHT), now=NOW + timedelta(hours=13))
    assert isinstance(open_now.step, Swap)


# --- Statuses that were answered --------------------------------------------------------------------------------------

MINUTE = timedelta(minutes=1)
THIS = LastAnswered(("this",), NOW - MINUTE, "status")
THE_ONE_BEFORE = LastAnswered(("earlier",), NOW - 2 * MINUTE, "other status")
THE_NEXT = LastAnswered(("later",), NOW, "other status")
#: Four are remembered.
SEVERAL = LastAnswered(("d", "c", "b", "a"), NOW)


@pytest.mark.parametrize("status", [OLD, at(512), at(1300), Status(b"0.1.1")])
def test_a_status_whose_answer_is_recorded_is_not_answered_again(status: Status) -> None:
    record = replace(SWAPPED, answered=THIS.after(SEVERAL))
    for event in ("this", "d", "b"):
        for time in (NOW, None):
            given = verdict(status, record, answered=LastAnswered((event,), time))
            assert given == Decision(Again(), record, rests_on=Freshness.NOW)


@pytest.mark.parametrize(
    ("before", "this"),
    [(THE_ONE_BEFORE, THIS), (None, THIS), (LastAnswered(("other",), NOW - MINUTE), THIS), (THIS, LastAnswered(("x",))),
     (LastAnswered(("other",)), THIS), (LastAnswered((), NOW - MINUTE), THIS),
     (THIS.after(SEVERAL), LastAnswered(("a",), NOW))],
)  # fmt: skip
def test_any_later_status_is_answered(before: LastAnswered | None, this: LastAnswered | None) -> None:
    assert verdict(OLD, replace(STARTED, answered=before), answered=this).step == block(0)


@pytest.mark.parametrize(
    ("status", "known"), [(OLD, STARTED), (at(1300), SWAPPED), (at(5000), STARTED), (at(512), REPUSHED)]
)
def test_a_status_older_than_an_answered_one_starts_and_swaps_nothing(status: Status, known: Record) -> None:
    """The device has reported since, and would take the command for the answer to that."""
    known = replace(known, answered=THIS)
    assert verdict(status, known, answered=THE_ONE_BEFORE) == Decision(Again(), known, rests_on=Freshness.NOW)


def test_an_old_status_of_a_device_that_was_swapped_since_gets_no_sync_for_its_old_version() -> None:
    known = replace(SWAPPED, answered=THIS)
    for policy in (Policy(), Policy(paused=True)):
        given = verdict(OLD, known, answered=THE_ONE_BEFORE, policy=policy)
        assert given == Decision(Again(), known, rests_on=Freshness.NOW)


def test_an_old_status_confirms_no_restart() -> None:
    """One in the middle was answered, a later one got an order, and the first is delivered again."""
    order = verdict(at(1024), None, answered=THIS)
    assert order.record
    assert order.record.restart == PendingRestart(512, 1024, orders=1)
    old = verdict(at(512), order.record, answered=THE_ONE_BEFORE)
    assert old == Decision(Again(), order.record, rests_on=Freshness.NOW)


@pytest.mark.parametrize("status", [at(512), at(700), at(0, b"0.1.0"), at(0)])
@pytest.mark.parametrize("known", [SWAPPED, RESTARTED])
def test_an_old_status_of_a_device_that_was_swapped_or_restarted_since_changes_nothing(
    status: Status, known: Record
) -> None:
    known = replace(known, answered=THIS)
    assert verdict(status, known, answered=THE_ONE_BEFORE) == Decision(Again(), known, rests_on=Freshness.NOW)


def test_a_block_in_between_is_sent_whenever_its_status_came() -> None:
    assert verdict(at(512), replace(STARTED, answered=THIS), answered=THE_ONE_BEFORE).step == block(512)


@pytest.mark.parametrize(("status", "known"), [(OLD, STARTED), (at(5000), STARTED)])
@pytest.mark.parametrize(
    ("seconds", "fingerprint", "again"),
    [(0.0, "status", True), (0.9, "status", True), (1.0, "status", False), (0.9, "other", False)],
)
def test_a_status_published_twice_is_answered_once(
    status: Status, known: Record, seconds: float, fingerprint: str, again: bool
) -> None:
    twin = LastAnswered(("twin",), NOW - MINUTE + timedelta(seconds=seconds), fingerprint)
    now = NOW - MINUTE + timedelta(seconds=2)
    given = verdict(status, replace(known, answered=THIS), answered=twin, now=now)
    assert isinstance(given.step, Again) == again


def test_a_clock_that_stands_still_publishes_no_status_twice() -> None:
    known = replace(STARTED, answered=THIS)
    assert verdict(OLD, known, answered=replace(THIS, events=("later",))).step == block(0)


def test_the_event_is_recorded_with_each_start_each_swap_and_each_change() -> None:
    for status, known in (
        (OLD, None),
        (at(1300), STARTED),
        (Status(b"0.1.1"), SWAPPED),
        (OLD, STARTED),
        (at(1300), replace(SWAPPED, answered=THE_ONE_BEFORE)),
        (OLD, UP),
    ):
        recorded = verdict(status, known, answered=THIS).record
        assert recorded
        assert recorded.answered == THIS.after(known.answered if known else None)
    assert verdict(at(512), STARTED, answered=THIS).record == STARTED


@pytest.mark.parametrize("ahead", [timedelta(seconds=1), timedelta(days=3650)])
def test_a_time_ahead_of_our_clock_holds_up_no_later_status(ahead: timedelta) -> None:
    given = verdict(OLD, answered=replace(THIS, time=NOW + ahead))
    assert given.record
    assert given.record.answered == replace(THIS, time=NOW)
    poisoned = replace(SWAPPED, answered=LastAnswered(("poison",), NOW + ahead))
    counted = verdict(OLD, poisoned, answered=THIS)
    assert held(counted).reason == "backoff"
    assert counted.record
    assert (counted.record.attempts, counted.record.answered) == (
        1,
        LastAnswered(("this", "poison"), THIS.time, "status"),
    )


@pytest.mark.parametrize(
    "known", [STARTED, SWAPPED, REPUSHED, EARLIER, RESTARTED, replace(RESTARTED, checksum="ff" * 32)]
)
@pytest.mark.parametrize("status", [OLD, Status(b"0.1.1")])
def test_what_a_late_status_says_of_having_nothing_is_not_recorded(known: Record, status: Status) -> None:
    known = replace(known, answered=THIS)
    late = verdict(status, known, answered=THE_ONE_BEFORE)
    assert (late.record, late.records_first) == (known, False)
    assert not isinstance(late.step, Block | Swap)


# --- Processes with old views -----------------------------------------------------------------------------------------


def released(version: bytes, size: int, seed: int) -> tuple[Target, bytes]:
    content = bytes((index * 7 + seed * 31 + index // 251) % 256 for index in range(size))
    return Target(version, size, hashlib.sha256(content).digest()), content


RELEASED = [released(b"1", 640, 1), released(b"1", 640, 2), released(b"1", 333, 3), released(b"2", 500, 4)]
CONTENTS = dict(RELEASED)
MTUS = (64, 16, 32, 96, 100, 512)


@dataclass
class View:
    """What a process remembers, and since when."""

    record: Record | None
    target: Target
    record_since: float
    target_since: float


@dataclass(frozen=True)
class Sent:
    """A status on its way."""

    status: Status
    correlation_id: int | None
    answered: LastAnswered
    at: float


@dataclass
class World:
    """A device, its object in the registry, and processes that each remember something of both."""

    device: SimulatedDevice
    #: A device midway is given the rest of what it has begun.
    finishes: bool = False
    #: Seconds for which a process remembers an object or a tag.
    remembered: float = 300.0
    target: Target = RELEASED[0][0]
    record: Record | None = None
    seconds: float = 0.0
    #: When the record was wiped last, and the versions and checksums that it knew; those of earlier ones, too, which
    #: processes may still remember.
    wiped: float = -1000.0
    lost: list[tuple[str, str]] = field(default_factory=list)
    #: What the last verdict was on.
    served: Target = RELEASED[0][0]
    views: dict[int, View] = field(default_factory=dict)
    sent: int = 0
    #: Those of them that a block or a SWAP was the answer to.
    taken: list[Sent] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    def pass_time(self, seconds: float) -> None:
        self.seconds += seconds

    def move_target(self, target: Target) -> None:
        if self._remembers_wiped and not self._is_same(target, self.lost):
            return
        self.target = target
        # Looks at starts and swaps are as old as a second.
        self.seconds += 1.1

    def wipe(self) -> None:
        """The object is replaced by one without status.

        What the record knew of earlier bytes is lost with it. Nothing makes up for that if the same version is
        published with other bytes while processes remember the record, or if the device has to hear SYNC.
        """
        if self.record and self.device.marked_good:
            known = [(self.record.version, self.record.checksum)]
            known += [(earlier.version, earlier.checksum) for earlier in self.record.earlier]
            if self._is_same(self.target, known):
                self.lost = known + (self.lost if self._remembers_wiped else [])
                self.record, self.wiped = None, self.seconds

    @property
    def _remembers_wiped(self) -> bool:
        """Whether a process may remember a record that was wiped."""
        return self.seconds < self.wiped + self.remembered + 3

    def _is_same(self, target: Target, known: list[tuple[str, str]]) -> bool:
        """Whether all `known` bytes of the target's version are the target's."""
        return all(
            checksum == target.checksum.hex() for version, checksum in known if version.encode() == target.version
        )

    def exchange(self, process: int, mtu: int, *, lost: bool = False, unwritten: bool = False) -> None:
        """A status, and what a process makes of it. The command may be lost, and so may a report."""
        status = replace(self.device.status(), mtu=mtu)
        answered = LastAnswered((f"event {self.sent}",), self.now, repr((status.version, mtu, status.progress)))
        sent = Sent(status, getattr(self.device, "_correlation_id", None), answered, self.seconds)
        self.sent += 1
        if isinstance(self._answer(sent, process, lost=lost, unwritten=unwritten), Block | Swap):
            self.taken.append(sent)
        self.seconds += 1

    def deliver_again(self, process: int, earlier: int) -> None:
        """One of the last statuses that got a device on comes once more, to whichever process."""
        if len(self.taken) > earlier and self.seconds - self.taken[-1 - earlier].at < 25:
            self._answer(self.taken[-1 - earlier], process)

    def _answer(self, sent: Sent, process: int, *, lost: bool = False, unwritten: bool = False) -> object:
        view = self.views.setdefault(process, self._present())
        for memory in ("record", "target"):
            if self.seconds - getattr(view, f"{memory}_since") > self.remembered:
                setattr(view, memory, getattr(self, memory))
                setattr(view, f"{memory}_since", self.seconds)
        given = self._judged(sent, view)
        if given.records_first and not self._write(view, given.record, unwritten=unwritten):
            return None
        command = self._command(given.step)
        # A device that misses SYNC, and keeps still for as long as if it had heard it, is beyond help.
        if command and not (lost and not isinstance(command, Sync)):
            self.device.handle(command, sent.correlation_id)
        if not given.records_first:
            self._write(view, given.record, unwritten=unwritten)
        return given.step

    def _write(self, view: View, record: Record | None, *, unwritten: bool) -> bool:
        """Whether the record was written; what another process recorded meanwhile is not undone."""
        if unwritten or view.record != self.record:
            return False
        self.record = view.record = record
        return True

    def _present(self) -> View:
        return View(self.record, self.target, self.seconds, self.seconds)

    def _judged(self, sent: Sent, view: View) -> Decision:
        looked = Freshness.MEMORY
        given = self._judge(sent, view)
        while given.rests_on.value > looked.value:
            looked = given.rests_on
            view.record, view.record_since = self.record, self.seconds
            view.target, view.target_since = self.target, self.seconds
            given = self._judge(sent, view)
        return given

    def _judge(self, sent: Sent, view: View) -> Decision:
        policy = Policy(max_attempts=1000)
        ttl = timedelta(seconds=self.remembered)
        mtu = sent.status.mtu or 512
        situation = DecisionContext(self.now, mtu, 0, view.record, policy, answered=sent.answered, spec_ttl=ttl)
        self.served = self._served(sent.status, view)
        return decide(sent.status, self.served, situation)

    def _served(self, status: Status, view: View) -> Target:
        record, progress = view.record, status.progress
        if self.finishes and record and progress and progress.offset and record.describes(progress.version):
            return next(target for target in CONTENTS if record.is_of(target))
        return view.target

    def _command(self, step: object) -> Sync | Swap | Write | None:
        match step:
            case Block(version, offset, size):
                return Write(version, offset, CONTENTS[self.served][offset : offset + size])
            case Hold() | Stuck():
                return Sync(self.device.version, 0)
            case Confirm(version):
                return Sync(version, 0)
            case Sync() | Swap():
                return step
        return None


def is_published(image: bytes, version: bytes) -> bool:
    return any(target.version == version and content == image for target, content in RELEASED)


def careful() -> SimulatedDevice:
    return CarefulDevice(b"0", bootable=is_published)


def firmware_manager() -> SimulatedDevice:
    return FirmwareManagerDevice(b"0", bootable=is_published)


#: One thing that happens, made of a few bytes of chance. Zeros make the plainest of its kind.
Happening = Callable[[World], None]
Kind = Callable[[int, int, int, int], Happening]


def exchange(process: int, mtu: int, lost: int, unwritten: int) -> Happening:
    return lambda world: world.exchange(
        process % 3, MTUS[mtu % len(MTUS)], lost=lost % 10 == 9, unwritten=unwritten % 10 == 9
    )


def steady_exchange(process: int, lost: int, *_: int) -> Happening:
    return lambda world: world.exchange(process % 3, 64, lost=lost % 10 == 9)


def move(target: int, *_: int) -> Happening:
    return lambda world: world.move_target(RELEASED[target % len(RELEASED)][0])


def delivered_again(process: int, earlier: int, *_: int) -> Happening:
    return lambda world: world.deliver_again(process % 3, earlier % 2)


def power_loss(*_: int) -> Happening:
    return lambda world: world.device.power_cycle()


def wipe(*_: int) -> Happening:
    return World.wipe


def pause(seconds: int, *_: int) -> Happening:
    pauses = (0.3, 5.0, 30.0, 120.0, 301.0, 303.0)
    return lambda world: world.pass_time(pauses[seconds % len(pauses)])


def short_pause(seconds: int, *_: int) -> Happening:
    pauses = (0.3, 1.1, 5.0, 13.0)
    return lambda world: world.pass_time(pauses[seconds % len(pauses)])


def courses(kinds: dict[Kind, int]) -> st.SearchStrategy[list[Happening]]:
    """Sixty to ninety events, of each kind as many in thirty as `kinds` says.

    They are drawn as one run of bytes: to draw each number of each event takes ten times as long as all the rest.
    """
    table = [kind for kind, share in kinds.items() for _ in range(share)]
    each = 5

    def read(chance: bytes) -> list[Happening]:
        events = (chance[at : at + each] for at in range(0, len(chance) - each + 1, each))
        return [table[kind % len(table)](*numbers) for kind, *numbers in events]

    return st.binary(min_size=60 * each, max_size=90 * each).map(read)


@pytest.mark.parametrize("finishes", [False, True])
@pytest.mark.parametrize("make", [careful, firmware_manager])
@settings(max_examples=200)
@given(events=courses({exchange: 23, move: 3, power_loss: 1, pause: 2, wipe: 1}))
def test_whatever_processes_remember_no_device_boots_a_mixture(
    make: Callable[[], SimulatedDevice], finishes: bool, events: list[Happening]
) -> None:
    """Block sizes and the target change at any moment, records vanish, and each process remembers for 300 s."""
    assert_no_mixture(World(make(), finishes), events)


@pytest.mark.parametrize("make", [careful, firmware_manager])
@settings(max_examples=200)
@given(events=courses({steady_exchange: 22, power_loss: 2, delivered_again: 6}))
def test_whatever_is_delivered_again_no_device_boots_a_mixture(
    make: Callable[[], SimulatedDevice], events: list[Happening]
) -> None:
    """By a process that did not answer it the first time, and knows of that from the record alone."""
    assert_no_mixture(World(make()), events)


@pytest.mark.parametrize("finishes", [False, True])
@pytest.mark.parametrize("make", [careful, firmware_manager])
@settings(max_examples=50)
@given(events=courses({exchange: 19, move: 3, power_loss: 1, short_pause: 2, delivered_again: 5}))
def test_whatever_is_delivered_again_meanwhile_no_device_boots_a_mixture(
    make: Callable[[], SimulatedDevice], finishes: bool, events: list[Happening]
) -> None:
    """While targets move, block sizes change and processes remember for 10 s, less than an event may be old."""
    assert_no_mixture(World(make(), finishes, remembered=10.0), events)


def assert_no_mixture(world: World, events: list[Happening]) -> None:
    for happen in events:
        happen(world)
    for boot in world.device.boots:
        if boot.version == b"0":
            continue
        published = {
            hashlib.sha256(content).hexdigest() for target, content in RELEASED if target.version == boot.version
        }
        assert boot.sha256 in published
        assert boot.sha256 == boot.announced
