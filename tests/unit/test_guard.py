"""What policy and the notes forbid, status by status; and processes with old views against devices of the field."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_fn.cli.simulated_device import CarefulDevice, FirmwareManagerDevice, SimulatedDevice
from fleet_fn.guard import Again, Hold, Look, Situation, Stuck, Verdict, judge
from fleet_fn.policy import Policy, Window
from fleet_fn.protocol.messages import Progress, Status, Swap, Sync, Write
from fleet_fn.protocol.step import Block, Target
from fleet_fn.record import LastAnswered, Record, Restart, record_for

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
TARGET = Target(b"0.1.1", 1300, bytes(32))
CHECKSUM = TARGET.checksum.hex()
OLD = Status(b"0.1.0")
STARTED = Record("0.1.1", CHECKSUM, started="2026-11-25T11:00:00Z")
SWAPPED = replace(STARTED, swapped="2026-11-25T11:30:00Z")
REPUSHED = replace(STARTED, checksum="ff" * 32)
EARLIER = Record("0.1.0-rc", "ee" * 32)
RESTARTED = replace(STARTED, restart=Restart(sent=512, midway=1024))


def at(offset: int, version: bytes = TARGET.version) -> Status:
    return replace(OLD, progress=Progress(version, offset))


def verdict(status: Status, record: Record | None = None, target: Target = TARGET, **more: object) -> Verdict:
    fields = {"now": NOW, "mtu": 512, "poll": 300, "record": record, **more}
    return judge(status, target, Situation(**fields))  # type: ignore[arg-type]  # tests name what they set


def held(given: Verdict) -> Hold:
    assert isinstance(given.step, Hold)
    return given.step


def block(offset: int, size: int = 512) -> Block:
    return Block(TARGET.version, offset, size)


# --- Updates as they should be ----------------------------------------------------------------------------------------


def test_a_start_is_noted_with_what_it_starts() -> None:
    started = verdict(OLD)
    assert started.step == block(0)
    assert started.record == Record("0.1.1", CHECKSUM, started="2026-11-25T12:00:00Z")
    assert (started.notes_first, started.rests_on) == (False, Look.EVERYTHING)


def test_blocks_in_between_change_nothing_in_the_notes_and_rest_on_memory() -> None:
    given = verdict(at(1024), STARTED)
    assert given == Verdict(block(1024, 276), STARTED, notes_first=False, rests_on=Look.MEMORY)


def test_a_swap_is_noted_once() -> None:
    swapped = verdict(at(1300), STARTED)
    assert isinstance(swapped.step, Swap)
    assert swapped.record == replace(STARTED, swapped="2026-11-25T12:00:00Z")
    assert verdict(at(1300), SWAPPED).record == SWAPPED


def test_a_device_in_sync_keeps_its_notes_but_for_a_restart_and_is_noted_to_have_come_up() -> None:
    came_up = replace(SWAPPED, synced="2026-11-25T12:00:00Z")
    assert verdict(Status(b"0.1.1"), SWAPPED) == Verdict(Sync(b"0.1.1", 300), came_up)
    assert verdict(Status(b"0.1.1"), came_up, now=NOW + timedelta(hours=1)).record == came_up
    assert verdict(Status(b"0.1.1"), RESTARTED).record == STARTED
    assert verdict(Status(b"0.1.1"), replace(SWAPPED, version="0.1.0")).record == replace(SWAPPED, version="0.1.0")


def test_one_that_had_come_up_and_is_back_with_another_version_has_not_failed() -> None:
    given = verdict(OLD, replace(SWAPPED, attempts=2, synced="2026-11-25T11:40:00Z"))
    assert given.step == block(0)
    assert given.record == replace(STARTED, attempts=2, started="2026-11-25T12:00:00Z")


@pytest.mark.parametrize("record", [None, EARLIER, REPUSHED])
def test_a_block_for_a_device_of_which_other_things_are_noted_wants_a_look_at_its_object(record: Record | None) -> None:
    assert verdict(at(1024), record).rests_on is not Look.MEMORY


def test_blocks_of_which_nothing_is_noted_go_on_and_are_noted_then() -> None:
    for record in (None, EARLIER):
        given = verdict(at(1024), record)
        assert (given.step, given.notes_first) == (block(1024, 276), False)
        assert given.record is not None
        assert (given.record.version, given.record.checksum) == ("0.1.1", CHECKSUM)


@pytest.mark.parametrize("offset", [300, 512, 700])
def test_a_second_block_and_one_off_the_grid_want_a_look_at_the_devices_object(offset: int) -> None:
    assert verdict(at(offset), STARTED).rests_on is Look.DEVICE


# --- Other bytes under the same version -------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [512, 1024, 1300, 1312])
def test_a_device_midway_in_other_bytes_of_the_same_version_begins_from_0(offset: int) -> None:
    given = verdict(at(offset), REPUSHED)
    assert (given.step, given.notes_first, given.rests_on) == (block(0), True, Look.EVERYTHING)
    assert given.record is not None
    assert (given.record.checksum, given.record.restart) == (CHECKSUM, Restart(512, offset, orders=1))


def test_bytes_that_replace_others_of_their_version_are_noted_before_the_first_of_them_goes_out() -> None:
    given = verdict(OLD, REPUSHED)
    assert (given.step, given.notes_first) == (block(0), True)
    assert given.record is not None
    assert given.record.republished


@pytest.mark.parametrize("between", [REPUSHED, record_for(Target(b"0.2", 5, b"x" * 32), REPUSHED, None)])
def test_the_second_of_such_blocks_takes_the_update_off_the_grid(between: Record) -> None:
    record = record_for(TARGET, between, None).with_start(NOW)
    assert record.republished
    second = verdict(at(512), record)
    assert second.step == block(512, 256)
    assert verdict(at(768), record).step == block(768, 512)
    assert verdict(at(768), record).rests_on is Look.DEVICE


# --- Devices that are restarted midway --------------------------------------------------------------------------------


def test_a_device_midway_in_another_version_is_noted_before_it_is_told_to_begin_anew() -> None:
    given = verdict(at(1024, b"0.1.0-rc"), EARLIER)
    assert (given.step, given.notes_first, given.rests_on) == (block(0), True, Look.EVERYTHING)
    assert given.record is not None
    assert given.record.restart == Restart(sent=512, midway=1024)


def test_one_that_is_at_0_expects_0_and_needs_no_note() -> None:
    given = verdict(at(0, b"0.1.0-rc"), EARLIER)
    assert (given.step, given.notes_first) == (block(0), False)
    assert given.record is not None
    assert given.record.restart is None


def test_one_beyond_the_end_is_noted_too() -> None:
    given = verdict(at(5000), STARTED)
    assert (given.step, given.notes_first) == (block(0), True)
    assert given.record == replace(STARTED, restart=Restart(512, 5000, orders=1))


def test_one_that_wrote_the_block_goes_on_and_the_note_is_cleared_before_it_hears_so() -> None:
    given = verdict(at(512), RESTARTED)
    assert (given.step, given.notes_first, given.record) == (block(512), True, STARTED)


@pytest.mark.parametrize("padded", [1300, 1304, 1312])
def test_a_single_block_may_be_reported_with_its_padding(padded: int) -> None:
    record = replace(STARTED, restart=Restart(sent=1300, midway=4096))
    given = verdict(at(padded), record, mtu=2048)
    assert isinstance(given.step, Swap)


@pytest.mark.parametrize("offset", [1024, 256, 1300, 5000])
def test_one_that_reports_another_offset_is_stuck(offset: int) -> None:
    given = verdict(at(offset), RESTARTED)
    assert isinstance(given.step, Stuck)
    assert "power-cycle it" in given.step.message
    assert given.record == replace(RESTARTED, restart=Restart(512, 1024, stuck=True))
    assert given.rests_on is Look.NOW


@pytest.mark.parametrize("status", [at(512), at(0), at(1300), at(512, b"0.1.0-rc")])
@pytest.mark.parametrize("target", [TARGET, Target(b"0.2", 700, bytes(32))])
def test_one_that_is_stuck_gets_neither_block_nor_swap_of_any_target(status: Status, target: Target) -> None:
    stuck = replace(RESTARTED, restart=Restart(512, 1024, stuck=True))
    assert isinstance(verdict(status, stuck, target).step, Stuck)


@pytest.mark.parametrize("target", [TARGET, Target(b"0.2", 700, bytes(32))])
def test_a_status_without_progress_clears_it(target: Target) -> None:
    given = verdict(OLD, replace(RESTARTED, restart=Restart(512, 1024, stuck=True)), target)
    assert given.step == Block(target.version, 0, 512)
    assert given.notes_first
    assert given.record is not None
    assert given.record.restart is None


def test_one_that_was_at_the_very_offset_that_the_block_ends_at_is_told_to_begin_with_a_shorter_one() -> None:
    first = verdict(at(512, b"0.1.0-rc"), EARLIER)
    assert first.step == block(0)
    second = verdict(at(512), first.record)
    assert (second.step, second.notes_first) == (block(0, 256), True)
    assert verdict(at(256), second.record).step == block(256)


def test_one_whose_version_does_not_show_whether_it_heard_is_told_a_few_times() -> None:
    given = verdict(at(1024), REPUSHED)
    for _ in range(4):
        given = verdict(at(1024), given.record)
        assert (given.step, given.notes_first) == (block(0), True)
    assert isinstance(verdict(at(1024), given.record).step, Stuck)
    assert isinstance(verdict(at(700), verdict(at(1024), REPUSHED).record).step, Stuck)


def test_another_retry_token_has_a_stuck_device_begin_anew_once_more() -> None:
    stuck = replace(RESTARTED, restart=Restart(512, 1024, stuck=True))
    given = verdict(at(1024), stuck, policy=Policy(retry="again"))
    assert (given.step, given.notes_first) == (block(0), True)
    assert given.record is not None
    assert given.record.restart == Restart(512, 1024, orders=1)


def test_one_byte_cannot_be_told_from_none() -> None:
    record = replace(STARTED, restart=Restart(sent=1, midway=1))
    assert isinstance(verdict(at(1), record, mtu=1).step, Stuck)


def test_a_restart_that_was_refused_is_not_forgotten_while_the_device_runs_its_target() -> None:
    """It is in sync, and has what it says of its progress in RAM all the same, for when the target comes back."""
    in_sync = replace(at(1300), version=b"0.1.0")
    record = replace(STARTED, restart=Restart(sent=512, midway=1300))
    given = verdict(in_sync, record, Target(b"0.1.0", 900, bytes(32)))
    assert isinstance(given.step, Sync)
    assert given.record == record
    assert verdict(at(1300), given.record).step == Stuck()


def test_an_order_to_begin_anew_counts_once_its_command_has_been_taken() -> None:
    """However often the event comes again because it has not been."""
    status, known = at(1024), REPUSHED
    for _ in range(8):
        given = verdict(status, known)
        assert given.step == block(0)
        assert given.record
        known = given.record.not_answered(known)
    for orders in range(2, 6):
        given = verdict(status, known)
        assert given.step == block(0)
        assert given.record
        assert given.record.restart == Restart(512, 1024, orders=orders)
        known = given.record
    assert verdict(status, known).step == Stuck()


def test_an_order_to_begin_anew_keeps_to_the_block_size_that_the_device_has_by_now() -> None:
    record = replace(STARTED, restart=Restart(sent=512, midway=1024, orders=1))
    given = verdict(at(1024), record, mtu=51)
    assert given.step == block(0, 51)
    assert given.record == replace(STARTED, restart=Restart(sent=51, midway=1024, orders=2))
    assert given.notes_first


def test_a_restart_that_was_not_heard_is_ordered_again_without_another_note() -> None:
    first = verdict(at(1024, b"0.1.0-rc"), EARLIER)
    again = verdict(at(1024, b"0.1.0-rc"), first.record)
    assert (again.step, again.notes_first, again.record) == (block(0), False, first.record)


def test_a_target_that_comes_back_before_the_restart_was_heard_begins_anew_too() -> None:
    away = verdict(at(1024), STARTED, Target(b"0.2", 700, b"x" * 32))
    back = verdict(at(1024), away.record)
    assert (back.step, back.notes_first) == (block(0), True)


# --- Attempts ---------------------------------------------------------------------------------------------------------


def test_a_device_that_swapped_and_came_back_without_progress_has_failed_once_and_keeps_away_for_a_while() -> None:
    first = verdict(OLD, SWAPPED)
    assert (held(first).reason, held(first).poll) == ("backoff", 600)
    assert first.record == replace(SWAPPED, attempts=1, started=None, swapped=None)
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
    assert (held(given).reason, held(given).poll, held(given).gives_up) == ("attempts", 300, True)
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
    assert (given.notes_first, given.rests_on) == (False, Look.MEMORY)


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
THIS = LastAnswered(("this",), NOW)
THE_ONE_BEFORE, THE_NEXT = LastAnswered(("earlier",), NOW - MINUTE), LastAnswered(("later",), NOW + MINUTE)
#: Four are remembered.
SEVERAL = LastAnswered(("d", "c", "b", "a"), NOW + MINUTE)


@pytest.mark.parametrize("status", [OLD, at(512), at(1300), Status(b"0.1.1")])
def test_a_status_whose_answer_is_noted_is_not_answered_again(status: Status) -> None:
    record = replace(SWAPPED, answered=THIS.after(SEVERAL))
    for event in ("this", "d", "b"):
        for time in (NOW, None):
            assert verdict(status, record, answered=LastAnswered((event,), time)) == Verdict(Again(), record)


@pytest.mark.parametrize(
    ("before", "this"),
    [(THE_ONE_BEFORE, THIS), (THE_NEXT, THIS), (None, THIS), (LastAnswered(("other",), NOW), THIS), (THE_NEXT, None),
     (THE_NEXT, LastAnswered(("this",))), (LastAnswered(("other",)), THIS), (LastAnswered((), NOW), THIS),
     (THIS.after(SEVERAL), LastAnswered(("a",), NOW))],
)  # fmt: skip
def test_any_other_status_is_answered_whenever_it_came(before: LastAnswered | None, this: LastAnswered | None) -> None:
    assert verdict(OLD, replace(STARTED, answered=before), answered=this).step == block(0)


def test_what_changes_the_notes_is_noted_with_them_and_so_is_each_start_and_each_swap() -> None:
    for status, known in (
        (OLD, None),
        (at(1300), STARTED),
        (Status(b"0.1.1"), SWAPPED),
        (OLD, STARTED),
        (at(1300), replace(SWAPPED, answered=THE_ONE_BEFORE)),
    ):
        noted = verdict(status, known, answered=THIS).record
        assert noted
        assert noted.answered == THIS.after(known.answered if known else None)
    at_once = replace(THIS, time=NOW - MINUTE)
    earlier = replace(SWAPPED, answered=THE_ONE_BEFORE), replace(STARTED, answered=THE_ONE_BEFORE)
    for status, known in ((at(512), STARTED), (at(1300), earlier[0]), (OLD, earlier[1])):
        noted = verdict(status, known, answered=at_once).record
        assert noted == known


def test_a_restart_is_noted_before_it_is_ordered_and_that_it_was_only_then() -> None:
    status = at(1024, b"0.1.0-rc")
    given = verdict(status, answered=THIS)
    assert given.notes_first
    assert given.record
    ordered = given.record.not_answered(None)
    assert ordered.restart == Restart(sent=512, midway=1024)
    # The command may not have been taken, and the status come again for it.
    assert verdict(status, ordered, answered=THIS).step == block(0)
    assert verdict(status, given.record, answered=THIS).step == Again()
    assert verdict(status, given.record, answered=THE_NEXT).step == block(0)


@pytest.mark.parametrize(
    "known", [STARTED, SWAPPED, REPUSHED, EARLIER, RESTARTED, replace(RESTARTED, checksum="ff" * 32)]
)
@pytest.mark.parametrize("status", [OLD, Status(b"0.1.1")])
def test_what_a_late_status_tells_of_having_nothing_is_not_noted(known: Record, status: Status) -> None:
    """The device has said something since, and was told something else for it."""
    known = replace(known, answered=THIS)
    late = verdict(status, known, answered=THE_ONE_BEFORE)
    assert late.record is not None
    assert replace(late.record, answered=THIS) == known
    assert not late.notes_first
    assert late.step == verdict(status, known, answered=THE_NEXT).step
    if late.record != known:
        assert late.record.answered == LastAnswered(("earlier", "this"), NOW)


def test_a_late_start_does_not_have_a_device_go_on_with_bytes_that_it_did_not_begin_with() -> None:
    known = replace(REPUSHED, answered=THIS)
    late = verdict(OLD, known, answered=THE_ONE_BEFORE)
    assert late.step == block(0)
    assert verdict(at(512), late.record, answered=THE_NEXT).step == block(0)


# --- Processes with old views -----------------------------------------------------------------------------------------


def released(version: bytes, size: int, seed: int) -> tuple[Target, bytes]:
    content = bytes((index * 7 + seed * 31 + index // 251) % 256 for index in range(size))
    return Target(version, size, hashlib.sha256(content).digest()), content


RELEASED = [released(b"1", 640, 1), released(b"1", 640, 2), released(b"1", 333, 3), released(b"2", 500, 4)]
CONTENTS = dict(RELEASED)
MTU = 64


@dataclass
class View:
    """What a process remembers, and since when: counted in changes of the target."""

    record: Record | None
    target: Target
    record_since: int
    target_since: int


@dataclass(frozen=True)
class Sent:
    """A status on its way."""

    status: Status
    correlation_id: int | None
    answered: LastAnswered
    #: Changes of the target before it.
    changes: int


@dataclass
class World:
    """A device, its object in the registry, and processes that each remember something of both."""

    device: SimulatedDevice
    target: Target = RELEASED[0][0]
    record: Record | None = None
    changes: int = 0
    views: dict[int, View] = field(default_factory=dict)
    sent: int = 0
    #: Those of them that a block or a SWAP was the answer to.
    taken: list[Sent] = field(default_factory=list)

    def move_target(self, target: Target) -> None:
        self.target = target
        self.changes += 1

    def exchange(self, process: int, *, lost: bool = False, unwritten: bool = False) -> None:
        """A status, and what a process makes of it. The command may be lost, and so may a note."""
        status = self.device.status()
        answered = LastAnswered((f"event {self.sent}",), NOW + timedelta(seconds=10 * self.sent))
        sent = Sent(status, getattr(self.device, "_correlation_id", None), answered, self.changes)
        self.sent += 1
        if isinstance(self._answer(sent, process, lost=lost, unwritten=unwritten), Block | Swap):
            self.taken.append(sent)

    def deliver_again(self, process: int, earlier: int) -> None:
        """One of the last statuses that got a device on comes once more, for the target that it was answered for."""
        if len(self.taken) > earlier and self.taken[-1 - earlier].changes == self.changes:
            self._answer(self.taken[-1 - earlier], process)

    def _answer(self, sent: Sent, process: int, *, lost: bool = False, unwritten: bool = False) -> object:
        view = self.views.setdefault(process, self._present())
        for memory in ("record", "target"):
            # Nothing is remembered for longer than it takes to change the target twice.
            if getattr(view, f"{memory}_since") < self.changes - 1:
                setattr(view, memory, getattr(self, memory))
                setattr(view, f"{memory}_since", self.changes)
        given = self._judged(sent, view)
        if given.notes_first and given.record:
            ordered = given.record.not_answered(view.record)
            if not self._note(view, ordered, unwritten=unwritten):
                return None
        if (command := self._command(given.step, view.target)) and not lost:
            self.device.handle(command, sent.correlation_id)
        self._note(view, given.record, unwritten=unwritten and _concerns_bytes(view.record, given.record))
        return given.step

    def _note(self, view: View, record: Record | None, *, unwritten: bool) -> bool:
        """Whether it has been noted; what another process noted meanwhile is not undone."""
        if record == self.record:
            return True
        if unwritten or view.record != self.record:
            return False
        self.record = view.record = record
        return True

    def _present(self) -> View:
        return View(self.record, self.target, self.changes, self.changes)

    def _judged(self, sent: Sent, view: View) -> Verdict:
        looked = Look.MEMORY
        given = self._judge(sent, view)
        while given.rests_on.value > looked.value:
            looked = given.rests_on
            view.record, view.record_since = self.record, self.changes
            if looked.value >= Look.EVERYTHING.value:
                view.target, view.target_since = self.target, self.changes
            given = self._judge(sent, view)
        return given

    def _judge(self, sent: Sent, view: View) -> Verdict:
        situation = Situation(NOW, MTU, 0, view.record, Policy(max_attempts=1000), answered=sent.answered)
        return judge(sent.status, view.target, situation)

    def _command(self, step: object, target: Target) -> Sync | Swap | Write | None:
        match step:
            case Block(version, offset, size):
                return Write(version, offset, CONTENTS[target][offset : offset + size])
            case Hold():
                return Sync(self.device.version, 0)
            case Sync() | Swap():
                return step
        return None


def _concerns_bytes(before: Record | None, after: Record | None) -> bool:
    """Whether it makes a difference to which bytes may be sent, so that it has to be noted before any are."""
    return (before and before.restart) != (after and after.restart) or bool(after and after.republished)


def is_published(image: bytes, version: bytes) -> bool:
    return any(target.version == version and content == image for target, content in RELEASED)


def careful() -> SimulatedDevice:
    return CarefulDevice(b"0", mtu=MTU, bootable=is_published)


def firmware_manager() -> SimulatedDevice:
    return FirmwareManagerDevice(b"0", mtu=MTU, bootable=is_published)


ONE_IN_TEN = st.integers(0, 9).map(lambda dice: dice == 0)
EXCHANGES = st.builds(
    lambda process, lost, unwritten: lambda world: world.exchange(process, lost=lost, unwritten=unwritten),
    st.integers(0, 2),
    ONE_IN_TEN,
    ONE_IN_TEN,
)
ANSWERED_EXCHANGES = st.builds(
    lambda process, lost: lambda world: world.exchange(process, lost=lost), st.integers(0, 2), ONE_IN_TEN
)
MOVES = st.sampled_from([target for target, _ in RELEASED]).map(lambda target: lambda world: world.move_target(target))
DELIVERED_AGAIN = st.builds(
    lambda process, earlier: lambda world: world.deliver_again(process, earlier), st.integers(0, 2), st.integers(0, 1)
)
POWER_LOSSES = st.just(lambda world: world.device.power_cycle())
EVENTS: st.SearchStrategy[list[Callable[[World], None]]] = st.lists(
    st.integers(0, 29).flatmap(lambda dice: MOVES if dice < 3 else POWER_LOSSES if dice == 3 else EXCHANGES),
    min_size=60,
    max_size=90,
)


@pytest.mark.parametrize("make", [careful, firmware_manager])
@settings(max_examples=200)
@given(events=EVENTS)
def test_whatever_processes_remember_no_device_boots_a_mixture(
    make: Callable[[], SimulatedDevice], events: list[Callable[[World], None]]
) -> None:
    assert_no_mixture(make(), events)


@pytest.mark.parametrize("make", [careful, firmware_manager])
@settings(max_examples=200)
@given(
    events=st.lists(
        st.integers(0, 29).flatmap(
            lambda dice: POWER_LOSSES if dice < 2 else DELIVERED_AGAIN if dice < 8 else ANSWERED_EXCHANGES
        ),
        min_size=60,
        max_size=90,
    )
)
def test_whatever_is_delivered_again_no_device_boots_a_mixture(
    make: Callable[[], SimulatedDevice], events: list[Callable[[World], None]]
) -> None:
    """By a process that did not answer it the first time, and knows of that from the notes alone."""
    assert_no_mixture(make(), events)


def assert_no_mixture(device: SimulatedDevice, events: list[Callable[[World], None]]) -> None:
    world = World(device)
    for happen in events:
        happen(world)
    for boot in device.boots:
        if boot.version == b"0":
            continue
        published = {
            hashlib.sha256(content).hexdigest() for target, content in RELEASED if target.version == boot.version
        }
        assert boot.sha256 in published
        assert boot.sha256 == boot.announced
