"""Only verified bytes are served, also from files that are replaced, changed, truncated, or not regular."""

import errno
import hashlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError
from fleet_fn.firmware.store import NotReadyError
from fleet_fn.firmware.verified import MismatchError, UnreadableError, VerifiedFiles, hashing, verdict_cache
from tests.support.files import become_fifo, later, open_descriptors, tick
from tests.support.firmware import random_bytes
from tests.support.mappings import mapped

T = TypeVar("T")

RIGHT = bytes(range(256)) * 8
WRONG = bytes(reversed(RIGHT))


class Watched(SingleFlight):
    """Counts what it runs, and lets a test do something just before."""

    def __init__(
        self, before: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(clock)
        self.runs = 0
        self._before = before

    def result(self, key: Hashable, function: Callable[[], T], deadline: Deadline, *, keeps_error: bool = False) -> T:
        def watched() -> T:
            self._before()
            self.runs += 1
            return function()

        return super().result(key, watched, deadline, keeps_error=keeps_error)


def just_now() -> float:
    """A clock by which whatever a test writes was written a moment ago."""
    return time.time() + 1


@pytest.fixture
def single_flight() -> Watched:
    return Watched()


@pytest.fixture
def files(single_flight: Watched) -> VerifiedFiles:
    return VerifiedFiles(single_flight, later)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "firmware"
    path.write_bytes(RIGHT)
    tick(path)
    return path


def overwrite(path: Path, content: bytes) -> None:
    """Changes the file in place and makes its times look as before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path, content: bytes) -> None:
    """Puts another file in its place, with the times of the old one."""
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def read(files: VerifiedFiles, path: Path, content: bytes = RIGHT, seconds: float = 10) -> bytes:
    """All bytes of the file, which is expected to hold `content`."""
    checksum = hashlib.sha256(content).digest()
    with files.open(path, len(content), checksum, Deadline(seconds)) as file:
        return file.read(0, len(content))


# --- Serving ----------------------------------------------------------------------------------------------------------


def test_any_block_of_a_right_file_is_served(files: VerifiedFiles, path: Path) -> None:
    with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
        for offset, size in [(0, 1), (0, 2048), (5, 512), (2047, 1), (1536, 512)]:
            assert file.read(offset, size) == RIGHT[offset : offset + size]


@pytest.mark.parametrize(("offset", "size"), [(2048, 1), (2047, 2), (0, 2049)])
def test_a_block_beyond_the_end_is_a_failure_not_a_short_one(
    files: VerifiedFiles, path: Path, offset: int, size: int
) -> None:
    with (
        files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file,
        pytest.raises(PermanentError, match="are not all there"),
    ):
        file.read(offset, size)


def test_a_file_is_hashed_when_it_is_first_used_and_not_again(
    files: VerifiedFiles, path: Path, single_flight: Watched
) -> None:
    assert [read(files, path) for _ in range(5)] == [RIGHT] * 5
    assert single_flight.runs == 1


def test_a_file_that_changed_just_now_is_hashed_with_each_read(path: Path, single_flight: Watched) -> None:
    files = VerifiedFiles(single_flight, just_now)
    checksum = hashlib.sha256(RIGHT).digest()
    with files.open(path, len(RIGHT), checksum, Deadline(10)) as file:
        assert file.read(100, 50) == RIGHT[100:150]
        overwrite(path, WRONG)  # which its times need not show
        with pytest.raises(PermanentError, match=r"^digest mismatch"):
            file.read(100, 50)
        overwrite(path, RIGHT)
        assert file.read(2000, 48) == RIGHT[2000:]
        with pytest.raises(PermanentError, match="are not all there"):
            file.read(2000, 49)
    assert single_flight.runs == 0


def test_blocks_across_the_pieces_in_which_a_file_is_hashed_are_whole(path: Path, single_flight: Watched) -> None:
    content = hashlib.shake_256(b"").digest(3 * 1024 * 1024 + 7)
    path.write_bytes(content)
    mebibyte = 1024 * 1024
    for clock in (just_now, later):
        files = VerifiedFiles(single_flight, clock)
        with files.open(path, len(content), hashlib.sha256(content).digest(), Deadline(10)) as file:
            for offset, size in [
                (mebibyte - 5, 10),
                (0, len(content)),
                (mebibyte, mebibyte),
                (3 * mebibyte, 7),
                (5, 1),
            ]:
                assert file.read(offset, size) == content[offset : offset + size]


class Held(Deadline):
    """The deadline of a reader who is held up in the middle of hashing, and may be told that it has passed."""

    def __init__(self, remaining: float = 30) -> None:
        super().__init__(remaining)
        self.left = remaining
        self.asked = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.times = 0

    @property
    def remaining(self) -> float:
        self.times += 1
        self.asked.release()
        if self.times > 1:  # the first time is for its turn
            assert self.may_go_on.wait(30)
        return self.left


@contextmanager
def reading_at_once(path: Path, readers: int) -> Iterator[tuple[list[Held], Callable[[], list[Future[bytes]]]]]:
    """One who is in the middle of hashing the file, and others who have come meanwhile; what lets all go on."""
    files, deadlines = VerifiedFiles(SingleFlight(), just_now), [Held() for _ in range(readers)]

    def read_block(deadline: Held) -> bytes:
        with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), deadline) as file:
            return file.read(100, 50)

    with ThreadPoolExecutor(readers) as threads:
        results = [threads.submit(read_block, deadlines[0])]
        for _ in range(2):
            assert deadlines[0].asked.acquire(timeout=10)
        for deadline in deadlines[1:]:
            results.append(threads.submit(read_block, deadline))
            assert deadline.asked.acquire(timeout=10)

        def go_on() -> list[Future[bytes]]:
            for deadline in deadlines:
                deadline.may_go_on.set()
            wait(results, 30)
            return results

        yield deadlines, go_on


def test_those_who_read_a_file_that_changed_just_now_at_the_same_time_share_the_hashing(path: Path) -> None:
    with reading_at_once(path, 8) as (deadlines, go_on):
        assert [result.result() for result in go_on()] == [RIGHT[100:150]] * 8
    assert sorted(deadline.times for deadline in deadlines[1:]) == [1] * 6 + [2]


def test_reader_during_a_pass_gets_no_bytes_read_before(path: Path) -> None:
    with reading_at_once(path, 3) as (_, go_on):
        overwrite(path, WRONG)
        first, *others = go_on()
        assert first.result() == RIGHT[100:150]  # which it was when it was hashed
        for other in others:
            with pytest.raises(MismatchError, match=r"^digest mismatch"):
                other.result()


def test_who_runs_out_of_time_while_hashing_for_others_leaves_it_to_them(path: Path) -> None:
    with reading_at_once(path, 5) as (deadlines, go_on):
        for deadline in deadlines[:-1]:
            deadline.left = 0.0
        *others, last = go_on()
        assert last.result() == RIGHT[100:150]
        with pytest.raises(NotReadyError, match=r"^verifying$"):
            others[0].result()
        for other in others:
            with suppress(NotReadyError):
                assert other.result() == RIGHT[100:150]


def test_blocks_of_several_readers_are_told_apart(path: Path) -> None:
    files, together = VerifiedFiles(SingleFlight(), just_now), threading.Barrier(8)

    def read_blocks(number: int) -> bool:
        together.wait(10)
        with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
            return all(
                file.read(start + number, number) == RIGHT[start + number : start + 2 * number]
                for start in range(0, 2000, 40)
            )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read_blocks, range(8)))


def test_hashing_a_file_that_changed_just_now_ends_at_the_deadline(path: Path, single_flight: Watched) -> None:
    with pytest.raises(NotReadyError, match=r"^verifying$"):
        read(VerifiedFiles(single_flight, just_now), path, seconds=0)


def test_a_file_is_hashed_once_and_for_all_when_its_last_change_is_old_enough(
    path: Path, single_flight: Watched
) -> None:
    changed = path.stat().st_ctime
    for age, runs in ((2.9, 0), (3.1, 1), (3.2, 2)):
        files = VerifiedFiles(single_flight, lambda age=age: changed + age)  # type: ignore[misc]
        assert [read(files, path) for _ in range(3)] == [RIGHT] * 3
        assert single_flight.runs == runs


def test_a_link_to_a_right_file_is_as_good(files: VerifiedFiles, path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    assert read(files, link) == RIGHT


# --- Wrong bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [RIGHT[:-1], RIGHT + b"\0", b""], ids=["truncated", "longer", "empty"])
def test_a_file_of_another_size_fails_before_it_is_hashed(
    files: VerifiedFiles, path: Path, single_flight: Watched, content: bytes
) -> None:
    path.write_bytes(content)
    with pytest.raises(PermanentError) as caught:
        read(files, path)
    assert caught.value.reason == f"size mismatch: {len(content)} bytes, expected 2048"
    assert single_flight.runs == 0


def test_a_file_of_other_bytes_fails_each_time(files: VerifiedFiles, path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PermanentError, match=r"^digest mismatch"):
            read(files, path, WRONG)


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_file_that_changes_after_it_was_verified_is_verified_anew(
    files: VerifiedFiles, path: Path, single_flight: Watched, change: Callable[[Path, bytes], None]
) -> None:
    assert read(files, path) == RIGHT
    change(path, WRONG)
    with pytest.raises(PermanentError, match=r"^digest mismatch"):
        read(files, path)
    tick(path)
    change(path, RIGHT)
    assert read(files, path) == RIGHT
    assert single_flight.runs == 3


def test_verdict_holds_for_no_other_checksum(files: VerifiedFiles, path: Path) -> None:
    assert read(files, path) == RIGHT
    with pytest.raises(PermanentError, match=r"^digest mismatch"):
        read(files, path, WRONG)
    assert read(files, path) == RIGHT


@pytest.mark.parametrize("change", [overwrite, replace])
def test_a_file_that_changes_before_it_is_read_is_not_served_with_the_new_bytes(
    files: VerifiedFiles, path: Path, change: Callable[[Path, bytes], None]
) -> None:
    with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
        change(path, WRONG)
        with pytest.raises(NotReadyError, match=r"^the file is being changed$"):
            file.read(0, 512)


def test_a_file_that_is_cut_before_it_is_read_is_not_served(files: VerifiedFiles, path: Path) -> None:
    with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
        os.truncate(path, 1024)
        for offset in (0, 512, 1024):
            with pytest.raises(NotReadyError, match=r"^the file is being changed$"):
                file.read(offset, 512)


def test_a_file_that_is_replaced_before_it_is_hashed_is_not_here(path: Path) -> None:
    files = VerifiedFiles(Watched(before=lambda: replace(path, RIGHT)), later)
    with pytest.raises(NotReadyError, match=r"^the file is being replaced$"):
        read(files, path)


def test_a_file_that_changes_while_it_is_hashed_is_not_here(
    path: Path, single_flight: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ChangedMeanwhile:
        """A hash that takes so long that somebody changes the file."""

        def __init__(self) -> None:
            self._hash = hashlib.sha256()
            self.digest = self._hash.digest

        def update(self, chunk: bytes) -> None:
            overwrite(path, RIGHT)
            self._hash.update(chunk)

    files, checksum = VerifiedFiles(single_flight, later), hashlib.sha256(RIGHT).digest()
    monkeypatch.setattr("fleet_fn.firmware.verified.verdict.hashlib", SimpleNamespace(sha256=ChangedMeanwhile))
    with (
        pytest.raises(NotReadyError, match=r"^the file is being changed$"),
        files.open(path, len(RIGHT), checksum, Deadline(10)),
    ):
        pass


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["right", "wrong", "short", "gone"]), min_size=1, max_size=6), st.booleans())
def test_any_changes_of_a_file_serve_right_bytes_only(tmp_path: Path, changes: list[str], in_place: bool) -> None:
    files, path = VerifiedFiles(SingleFlight(), later), tmp_path / "firmware"
    path.unlink(missing_ok=True)
    for change in changes:
        if change == "gone":
            path.unlink(missing_ok=True)
        else:
            content = {"right": RIGHT, "wrong": WRONG, "short": RIGHT[:100]}[change]
            if in_place:
                path.write_bytes(content)
            else:
                path.with_name("other").write_bytes(content)
                path.with_name("other").replace(path)
            tick(path)
        try:
            assert read(files, path) == RIGHT
            assert change == "right"
        except (PermanentError, FileNotFoundError):
            assert change != "right"


# --- No files ---------------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_told_apart(files: VerifiedFiles, tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("nowhere", "dangling", "no/where"):
        with pytest.raises(FileNotFoundError):
            read(files, tmp_path / name)


def test_a_file_that_goes_before_it_is_hashed_fails(path: Path) -> None:
    with pytest.raises(PermanentError, match=r"^firmware: No such file or directory$"):
        read(VerifiedFiles(Watched(before=path.unlink), later), path)


def test_a_file_whose_disk_times_out_is_not_verified_for_ever(path: Path) -> None:
    def time_out() -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    with pytest.raises(PermanentError, match=r"^firmware: Connection timed out$"):
        read(VerifiedFiles(Watched(before=time_out), later), path)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder of things that are no files."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(RIGHT)
    return tmp_path


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["folder", "fifo", "to-fifo", "to-folder", "zero", "loop", "file/below", "x" * 300])
def test_file_that_is_not_regular_fails_at_once(files: VerifiedFiles, odd: Path, name: str) -> None:
    with pytest.raises(PermanentError, match=r"^firmware: ") as caught:
        read(files, odd / name)
    assert caught.value.reason.isprintable()


@pytest.mark.timeout(10)
def test_a_file_that_becomes_a_fifo_before_it_is_hashed_does_not_hang(path: Path) -> None:
    with pytest.raises(PermanentError, match=r"^firmware: not a regular file$"):
        read(VerifiedFiles(Watched(before=partial(become_fifo, path)), later), path)


def test_no_failure_leaves_a_descriptor_open(files: VerifiedFiles, odd: Path) -> None:
    def try_all() -> None:
        for name in ("folder", "fifo", "zero", "nowhere", "loop", "file"):
            with suppress(PermanentError, FileNotFoundError):
                read(files, odd / name, WRONG)
            with suppress(PermanentError, FileNotFoundError):
                read(files, odd / name, RIGHT)

    try_all()
    before = open_descriptors()
    for _ in range(20):
        try_all()
    # What earlier tests left may be closed meanwhile; a leak would be 20 or more.
    assert open_descriptors() <= before


# --- Time and company -------------------------------------------------------------------------------------------------


def test_hashing_beyond_the_deadline_is_not_here_and_goes_on(path: Path) -> None:
    may_hash = threading.Event()
    single_flight = Watched(before=may_hash.wait)
    files = VerifiedFiles(single_flight, later)
    for seconds in (0, 0.05):
        deadline = Deadline(seconds)
        with pytest.raises(NotReadyError, match=r"^verifying$"):
            read(files, path, seconds=seconds)
        assert deadline.elapsed < 1
    may_hash.set()
    assert read(files, path) == RIGHT
    assert single_flight.runs == 1
    assert read(files, path, seconds=0) == RIGHT  # no time is needed for what is known


def test_who_comes_late_to_a_long_hashing_does_not_wait(path: Path) -> None:
    now, may_hash = [0.0], threading.Event()
    single_flight = Watched(before=may_hash.wait, clock=lambda: now[0])
    files = VerifiedFiles(single_flight, later)
    with pytest.raises(NotReadyError):
        read(files, path, seconds=0)
    now[0] = 30.5
    deadline = Deadline(30)
    with pytest.raises(NotReadyError, match=r"^verifying$"):
        read(files, path, seconds=30)
    assert deadline.elapsed < 10
    may_hash.set()
    assert read(files, path, seconds=31) == RIGHT


def test_file_opened_by_the_caller_is_verified(files: VerifiedFiles, path: Path) -> None:
    checksum = hashlib.sha256(RIGHT).digest()
    with path.open("rb") as file:
        reader = files.verify(file.fileno(), path, len(RIGHT), checksum, Deadline(10))
        assert reader.read(100, 50) == RIGHT[100:150]
        with pytest.raises(MismatchError, match=r"^digest mismatch"):
            files.verify(file.fileno(), path, len(RIGHT), hashlib.sha256(WRONG).digest(), Deadline(10))
        with pytest.raises(MismatchError, match=r"^size mismatch"):
            files.verify(file.fileno(), path, len(RIGHT) + 1, checksum, Deadline(10))


def test_many_readers_at_once_get_their_blocks(files: VerifiedFiles, path: Path) -> None:
    together = threading.Barrier(8)

    def read_blocks(start: int) -> bool:
        together.wait(10)
        with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
            offsets = itertools.islice(itertools.cycle(range(start, 2000, 31)), 200)
            return all(file.read(offset, 48) == RIGHT[offset : offset + 48] for offset in offsets)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read_blocks, range(8)))


def test_readers_of_a_file_that_changes_back_and_forth_never_see_the_wrong_one(path: Path) -> None:
    files = VerifiedFiles(SingleFlight(), time.time)
    over = threading.Event()
    seen = set()

    def change() -> None:
        for content in itertools.cycle((WRONG, RIGHT)):
            if over.is_set():
                return
            replace(path, content)

    def read_often() -> None:
        for _ in range(150):
            with suppress(PermanentError, NotReadyError):
                seen.add(read(files, path))

    with ThreadPoolExecutor(5) as threads:
        changing = threads.submit(change)
        for reading in [threads.submit(read_often) for _ in range(4)]:
            reading.result()
        over.set()
        changing.result()
    assert seen <= {RIGHT}


# --- Files that stay open for a moment --------------------------------------------------------------------------------


def is_open(path: Path) -> bool:
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(path) in str(link.readlink()):
                return True
    return False


def test_file_stays_open_while_it_is_read(files: VerifiedFiles, path: Path) -> None:
    assert read(files, path) == RIGHT
    assert is_open(path)
    limit = time.monotonic() + 20
    while is_open(path):
        assert time.monotonic() < limit
        time.sleep(0.05)
    assert read(files, path) == RIGHT


def test_a_file_that_was_deleted_is_not_there_although_it_was_open(files: VerifiedFiles, path: Path) -> None:
    assert read(files, path) == RIGHT
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read(files, path)


def test_a_file_that_took_the_place_of_an_open_one_is_verified(files: VerifiedFiles, path: Path) -> None:
    assert read(files, path) == RIGHT
    replace(path, RIGHT[::-1])
    tick(path)
    with pytest.raises(MismatchError):
        read(files, path)
    assert read(files, path, RIGHT[::-1]) == RIGHT[::-1]


def test_no_more_files_stay_open_than_a_few(files: VerifiedFiles, tmp_path: Path) -> None:
    before = open_descriptors()
    for number in range(40):
        path = tmp_path / str(number)
        path.write_bytes(RIGHT)
        tick(path)
        assert read(files, path) == RIGHT
    assert open_descriptors() <= before + 8


def test_a_block_that_an_open_file_does_not_have_is_a_failure(files: VerifiedFiles, path: Path) -> None:
    assert read(files, path) == RIGHT
    with files.open(path, len(RIGHT), hashlib.sha256(RIGHT).digest(), Deadline(10)) as file:
        with pytest.raises(PermanentError, match="are not all there"):
            file.read(len(RIGHT) - 1, 2)
        assert file.read(0, 1) == RIGHT[:1]


def test_where_no_thread_can_be_had_to_close_it_no_file_stays_open(
    files: VerifiedFiles, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", refuse)
    assert read(files, path) == RIGHT
    assert not is_open(path)
    assert read(files, path) == RIGHT


# --- Changes that no time tells of ------------------------------------------------------------------------------------

#: More than a piece that is hashed at once, and no multiple of a chunk.
LARGE = random_bytes(300_001)
LARGE_CHECKSUM = hashlib.sha256(LARGE).digest()
positions = st.integers(0, len(LARGE) - 1)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


def block_of(files: VerifiedFiles, path: Path, offset: int, size: int) -> bytes:
    with files.open(path, len(LARGE), LARGE_CHECKSUM, Deadline(10)) as file:
        return file.read(offset, size)


def test_a_mapping_changes_a_file_without_a_trace(large: Path) -> None:
    with mapped(large) as mapping:
        assert any(mapping.flip(100) for _ in range(5))
    assert large.read_bytes() != LARGE


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("read"), positions, st.integers(1, 70_000)),
            st.tuples(st.just("damage"), positions, st.integers(1, 255)),
            st.tuples(st.just("mend"), positions, st.integers(1, 255)),
        ),
        max_size=30,
    )
)
def test_damage_anywhere_at_any_time_is_never_served(tmp_path: Path, steps: list[tuple[str, int, int]]) -> None:
    files, path = VerifiedFiles(SingleFlight(), later), tmp_path / "firmware"
    path.write_bytes(LARGE)
    with mapped(path) as mapping:
        damages: list[tuple[int, int]] = []
        # The first read verifies the file: in half of the runs it comes before all damage.
        for step, position, number in [("read", 0, 1), *steps] if len(steps) % 2 else steps:
            if step == "damage":
                mapping.flip(position, number)
                damages.append((position, number))
            elif step == "mend":
                while damages:
                    mapping.flip(*damages.pop())
            else:
                size = min(number, len(LARGE) - position)
                try:
                    assert block_of(files, path, position, size) == LARGE[position : position + size]
                except MismatchError:
                    # Or it is mended, and not hashed again as yet.
                    continue


@pytest.mark.parametrize("holds", ["a reader", "a file that is open still", "only a verdict"])
def test_a_block_with_a_damaged_byte_is_refused_however_it_is_read(large: Path, holds: str) -> None:
    files = VerifiedFiles(SingleFlight(), later)
    with mapped(large) as mapping, files.open(large, len(LARGE), LARGE_CHECKSUM, Deadline(10)) as file:
        if holds == "only a verdict":
            files._open_files._files.clear()
        mapping.flip(200_000)
        read_block = file.read if holds == "a reader" else partial(block_of, files, large)
        with pytest.raises(MismatchError, match=r"^digest mismatch"):
            read_block(199_900, 512)
        with pytest.raises(MismatchError):
            block_of(files, large, 0, 512)  # all of it is hashed again


def test_a_block_costs_the_hashing_of_its_own_chunks_only(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counted(content: bytes) -> object:
        hashed.append(len(content))
        return hashlib.sha256(content)

    files = VerifiedFiles(SingleFlight(), later)
    with files.open(large, len(LARGE), LARGE_CHECKSUM, Deadline(10)) as file:
        monkeypatch.setattr(hashing, "chunk_hash", counted)
        for offset, size, chunks in (
            (0, 512, [1024]),
            (512, 512, [1024]),
            (700, 512, [1024] * 2),
            (4096, 4096, [1024] * 4),
            (len(LARGE) - 10, 10, [len(LARGE) % 1024]),
        ):
            hashed.clear()
            assert file.read(offset, size) == LARGE[offset : offset + size]
            assert hashed == chunks


@pytest.mark.parametrize(
    ("size", "chunk_bytes"),
    [(0, 1024), (1, 1024), (64 << 20, 1024), ((64 << 20) + 1, 2048), (200 << 20, 4096), (2**32 - 1, 65536)],
)
def test_hashes_of_one_file_take_a_mebibyte_at_most(size: int, chunk_bytes: int) -> None:
    assert hashing.choose_chunk_bytes(size) == chunk_bytes
    assert -(-size // chunk_bytes) * 16 <= 1 << 20


def test_hashes_of_all_files_are_bounded_and_a_file_beyond_is_hashed_again(
    tmp_path: Path, single_flight: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict_cache, "_MAX_VERDICTS_BYTES", 3 * 2 * 16)  # of three files with two chunks each
    files, paths = VerifiedFiles(single_flight, later), [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(RIGHT)
    verdicts = files._verdicts
    for number, runs in ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (0, 4), (2, 4), (1, 5)):
        files._open_files._files.clear()
        assert read(files, paths[number]) == RIGHT
        assert single_flight.runs == runs
        assert verdicts._verdicts_bytes == sum(verdict.size for verdict in verdicts._verdicts.values()) <= 96


def test_a_file_that_is_read_all_the_time_keeps_its_hashes(
    tmp_path: Path, single_flight: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdict_cache, "_MAX_VERDICTS_BYTES", 2 * 2 * 16)
    files, paths = VerifiedFiles(single_flight, later), [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(RIGHT)
    for path in paths[:2]:
        assert read(files, path) == RIGHT
    files._open_files._sweep()
    assert read(files, paths[0]) == RIGHT
    files._open_files._sweep()
    assert read(files, paths[2]) == RIGHT
    assert list(files._verdicts._verdicts) == [str(paths[0]), str(paths[2])]


def test_a_block_that_the_disk_does_not_give_has_the_file_hashed_anew(
    large: Path, single_flight: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, pread, broken = VerifiedFiles(single_flight, later), os.pread, threading.Event()

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        if broken.is_set() and offset <= 200_000 < offset + size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    assert block_of(files, large, 199_900, 512) == LARGE[199_900:200_412]
    broken.set()
    with pytest.raises(UnreadableError, match=r"^firmware: Input/output error$"):
        block_of(files, large, 199_900, 512)
    broken.clear()
    assert block_of(files, large, 199_900, 512) == LARGE[199_900:200_412]
    assert single_flight.runs == 3


def test_a_wrong_read_of_a_right_file_is_no_verdict_for_ever(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, pread, broken = VerifiedFiles(SingleFlight(), later), os.pread, threading.Event()

    def flipping(descriptor: int, size: int, offset: int) -> bytes:
        content = pread(descriptor, size, offset)
        return content[::-1] if broken.is_set() else content

    monkeypatch.setattr(os, "pread", flipping)
    broken.set()
    with pytest.raises(MismatchError):
        block_of(files, large, 0, 512)
    broken.clear()
    limit = time.monotonic() + 10
    while True:
        with suppress(MismatchError):
            assert block_of(files, large, 0, 512) == LARGE[:512]
            return
        assert time.monotonic() < limit


def test_damage_is_told_once_with_the_file(large: Path, records: list[logging.LogRecord]) -> None:
    files = VerifiedFiles(SingleFlight(), later)
    with mapped(large) as mapping:
        assert block_of(files, large, 0, 512) == LARGE[:512]
        mapping.flip(100)
        for _ in range(3):
            with pytest.raises(MismatchError):
                block_of(files, large, 0, 512)
    (record,) = records
    assert record.getMessage() == "firmware on disk changed without a trace"
    assert vars(record)["fields"] == {"file": str(large)}
