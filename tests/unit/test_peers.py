"""What `make peers` plans and judges by; the devices themselves need cargo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.peers.catalog import PEERS, Entry
from tests.peers.cloud import Cloud
from tests.peers.courses import (
    BOARDS,
    FACTORY,
    SCENARIOS,
    Course,
    Cut,
    Fuse,
    Kind,
    Lose,
    Move,
    Plain,
    Republish,
    new,
    newer,
)
from tests.peers.drive import Result, Run
from tests.peers.firmware import Firmware, Shelf
from tests.peers.run import Row, drive, table
from tests.peers.table import HEAD, is_right, line
from tests.peers.workshop import MissingError, Peer, Workshop

#: Bytes of the devices' active partition: `device/src/bootloader.rs`.
ACTIVE = 32 * 1024
KIND = Kind("manager-0.7")
UNDISTURBED = Plain(("boot", *("status", "answer") * 6, "updated", "boot", "status", "answer", "synced"))


class NoCloud(Cloud):
    """Keeps what it is told."""

    def __init__(self, reason: str = "") -> None:
        super().__init__("http://nowhere")
        self.desired: list[Any] = []
        self.why = reason

    def create(self, application: str, device: str, firmware: Mapping[str, Any]) -> None:
        self.desired.append((application, device, firmware))

    def desire(self, application: str, device: str, firmware: Mapping[str, Any]) -> None:
        self.desired.append((application, device, firmware))

    def reason(self, *_: str) -> str:
        return self.why


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def run_of(course: Course, shelf: Shelf, cloud: Cloud | None = None) -> Run:
    run = Run(course, "course-1", cloud or NoCloud(), shelf)
    run.start()
    return run


def take(run: Run, *lines: str) -> list[str]:
    """The orders to the last of the lines."""
    return [run.take(line) for line in lines][-1]


def test_firmware_has_its_size_and_a_header() -> None:
    firmware = Firmware("0.1.1", 100, crashes=True)
    assert len(firmware.content) == 100
    assert firmware.content[:11] == b"PEER\x01\x050.1.1"
    assert firmware.content[22:26] == (100).to_bytes(4, "little")
    assert firmware.sha256 != Firmware("0.1.1", 100, crashes=True, build=1).sha256


def test_shelf_puts_firmware_where_it_says(shelf: Shelf, tmp_path: Path) -> None:
    reference = shelf.publish(new(KIND))
    assert shelf.publish(new(KIND)) == reference
    name, _, _ = reference.partition(":")
    assert (tmp_path / name / "blobs" / "sha256" / new(KIND).sha256).read_bytes() == new(KIND).content


@pytest.mark.parametrize(
    ("size", "taken"), [(512, True), (1024 + 4, True), (1024 + 3, True), (1024 + 8, True), (1024 + 5, False)]
)
def test_managers_refuse_last_blocks_of_no_whole_words(size: int, taken: bool) -> None:
    assert Kind("manager-0.1").takes(size) is taken
    assert Kind("careful-0.1").takes(size)


@pytest.mark.parametrize("board", BOARDS)
def test_scenarios_fit_into_the_devices(board: str) -> None:
    for scenario in SCENARIOS.values():
        for course in scenario(Kind(board), UNDISTURBED):
            assert all(firmware.size <= ACTIVE for firmware in course.targets)
            assert all(len(firmware.version) <= 16 for firmware in course.targets)
            assert course.least <= course.most
            assert course.kind.board == board


def test_scenarios_reach_every_moment() -> None:
    moved = list(SCENARIOS["target moves"](KIND, UNDISTURBED))
    assert [course.happenings[0][0] for course in moved] == list(range(len(UNDISTURBED.moments)))


def test_last_target_is_the_one_that_came_last() -> None:
    course = Course(KIND, new(KIND), ((9, Move(newer(KIND))), (3, Move(FACTORY)), (12, Cut())))
    assert course.last == newer(KIND)
    other = Firmware("0.1.1", 96, build=7)
    assert Course(KIND, new(KIND), ((3, Republish(other)),)).last == other
    assert Course(KIND, new(KIND), ((3, Republish(other)),)).accepts(new(KIND))
    assert not course.accepts(new(KIND))
    assert Course(KIND, new(KIND), remedy=other).last == other
    assert Course(KIND, new(KIND), arrives=False).last == FACTORY


def test_run_arrives_with_the_right_bytes(shelf: Shelf) -> None:
    run = run_of(Course(KIND, new(KIND)), shelf)
    assert take(run, f"boot {FACTORY.started}") == ["go"]
    assert take(run, "status 0.1.0", "answer 200 WRITE 0.1.1@0+512") == ["go"]
    take(run, "updated", f"boot {new(KIND).started}", "status 0.1.1", "answer 200 SYNC 0.1.1", "synced")
    assert run.is_over
    assert (run.result.arrived, run.result.exchanges) == (True, 2)
    assert is_right(run._course, run.result)


def test_run_does_not_arrive_by_a_sync_of_what_it_was(shelf: Shelf) -> None:
    run = run_of(Course(KIND, new(KIND)), shelf)
    take(run, f"boot {FACTORY.started}", "status 0.1.0", "answer 200 SYNC 0.1.0", "synced")
    assert not run.is_over


@pytest.mark.parametrize(("started", "wrong"), [("nothing", False), (f"0.1.1 2080 {'0' * 64}", True)])
def test_run_ends_with_what_nobody_published(shelf: Shelf, started: str, wrong: bool) -> None:
    run = run_of(Course(KIND, new(KIND)), shelf)
    take(run, f"boot {started}")
    assert run.is_over
    assert (run.result.wrong, run.result.bricked) == (wrong, not wrong)
    assert not is_right(run._course, run.result)


def test_run_has_things_happen_at_their_moments(shelf: Shelf) -> None:
    cloud = NoCloud()
    happenings = ((1, Move(newer(KIND))), (2, Lose()), (3, Cut()), (4, Fuse(7)))
    run = run_of(Course(KIND, new(KIND), happenings), shelf, cloud)
    assert take(run, f"boot {FACTORY.started}") == ["go"]
    assert take(run, "status 0.1.0") == ["go"]
    assert cloud.desired[-1][2] == {"container": {"image": shelf.publish(newer(KIND))}}
    assert take(run, "answer 200 WAIT 1") == ["lose"]
    assert take(run, "status 0.1.0") == ["cut"]
    assert take(run, f"boot {FACTORY.started}") == ["fuse 7", "go"]
    assert take(run, "dark") == []


@pytest.mark.parametrize(("reason", "order"), [("device-offset", "cut"), ("", "go")])
def test_run_cuts_the_power_only_where_that_helps(shelf: Shelf, reason: str, order: str) -> None:
    run = run_of(Course(KIND, new(KIND)), shelf, NoCloud(reason))
    take(run, f"boot {FACTORY.started}")
    for _ in range(5):
        assert take(run, "status 0.1.0 0.1.1@512") == ["go"]
        take(run, "answer 200 WAIT 1")
    assert take(run, "status 0.1.0 0.1.1@512") == [order]
    assert run.result.helped == (order == "cut")


def test_run_that_stands_still_ends(shelf: Shelf) -> None:
    run = run_of(Course(KIND, new(KIND)), shelf)
    take(run, f"boot {FACTORY.started}")
    for _ in range(30):
        take(run, "status 0.1.0 0.1.1@512", "answer 200 WAIT 1")
    assert run.is_over
    assert not run.result.arrived


def test_remedy_comes_once_a_version_was_given_up(shelf: Shelf) -> None:
    cloud = NoCloud()
    run = run_of(Course(KIND, Firmware("0.1.1", 96, crashes=True), remedy=newer(KIND)), shelf, cloud)
    take(run, f"boot {FACTORY.started}", *("status 0.1.0", "answer 200 SYNC 0.1.0", "synced") * 2)
    assert len(cloud.desired) == 1
    take(run, "status 0.1.0", "answer 200 SYNC 0.1.0", "synced")
    assert cloud.desired[-1][2] == {"container": {"image": shelf.publish(newer(KIND))}}


def test_table_has_80_columns() -> None:
    course = Course(KIND, new(KIND))
    result = Result(arrived=True, exchanges=1234)
    for name in SCENARIOS:
        assert len(line(KIND.board, name, [(course, result)])) == len(HEAD) == 80
    assert " - " in line(KIND.board, "plain", [(Course(KIND, new(KIND), arrives=False), result)])


# --- The table of all peers


def run_of_peer(code: str, seconds: float = 60) -> Row:
    entry = Entry("peer", "something", lambda _: Peer("1.2"), ("-c", code), seconds)
    (row,) = drive([entry], Workshop(60))
    return row


@pytest.mark.parametrize(("code", "result"), [("", "passed"), ("raise SystemExit(3)", "failed")])
def test_result_is_the_exit_code(code: str, result: str) -> None:
    row = run_of_peer(code)
    assert (row.result, row.version, row.is_failure) == (result, "1.2", result == "failed")


def test_peer_that_takes_too_long_is_ended() -> None:
    row = run_of_peer("import time; time.sleep(60)", seconds=0.5)
    assert (row.result, row.is_failure) == ("more than 0 s", True)
    assert row.seconds < 30


@pytest.mark.parametrize(
    ("tests", "result", "note"),
    [
        ("def test_a(): pass", "passed", ""),
        ("def test_a(): assert False", "failed", ""),
        ("import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('no b')", "passed", "left out: no b"),
        ("import pytest\ndef test_a(): pytest.skip('no a')", "nothing ran", "no a"),
    ],
)
def test_what_is_left_out_is_told(tmp_path: Path, tests: str, result: str, note: str) -> None:
    (tmp_path / "test_it.py").write_text(tests)
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path))
    (row,) = drive([Entry("peer", "", lambda _: Peer("1"), command)], Workshop(60))
    assert (row.result, row.note) == (result, note)


def test_missing_peer_is_named_and_no_failure() -> None:
    def get(_: Workshop) -> Peer:
        raise MissingError("it needs Java 17")

    (row,) = drive([Entry("peer", "an update", get, ())], Workshop(60))
    assert (row.result, row.note, row.is_failure) == ("missing", "it needs Java 17", False)
    assert table([row]).splitlines() == [
        "peer  version  driven     result   seconds",
        "peer           an update  missing  0",
        "peer: it needs Java 17",
    ]


def test_table_of_all_peers_has_80_columns() -> None:
    rows = [Row(entry.name, "3adeb8663819", entry.driven, "missing", 1000) for entry in PEERS]
    assert max(map(len, table(rows).splitlines())) <= 80


def test_peers_need_only_known_ones() -> None:
    assert {name for entry in PEERS for name in entry.needs} <= {entry.name for entry in PEERS}
