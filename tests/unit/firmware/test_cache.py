"""The cache fetches bytes once, stays within its bound, and never serves wrong bytes from a changed folder."""

import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fleet_fn.concurrency.single_flight import SingleFlight
from fleet_fn.deadline import Deadline
from fleet_fn.errors import PermanentError, TransientError
from fleet_fn.firmware.cache import Cache
from fleet_fn.firmware.store import NotReadyError, Reader
from fleet_fn.firmware.verified import VerifiedFiles
from fleet_fn.settings import Settings
from tests.support.files import become_fifo, later, open_descriptors, tick
from tests.support.firmware import random_bytes
from tests.support.mappings import mapped
from tests.support.timing import Clock
from tests.support.users import OTHER_POD, POD, VOLUME_GROUP, become, give_away, is_root, make_volume, open_to_others

Write = Callable[[bytes], object]

BOUND = 10_000
RIGHT = random_bytes(2048)


class Source:
    """Where firmware is fetched from; it counts how often."""

    def __init__(self, content: bytes = RIGHT, piece: int = 500) -> None:
        self.content = content
        self.runs = 0
        self._piece = piece

    def __call__(self, write: Write) -> None:
        self.runs += 1
        for start in range(0, len(self.content), self._piece):
            write(self.content[start : start + self._piece])


#: Where all firmware comes from, unless a test says otherwise; and how a half file tells.
FROM = "ghcr.io/acme/pump"
FROM_HASH = hashlib.sha256(FROM.encode()).hexdigest()[:16]


class Slow(Source):
    """Gives half of it, and the rest when it may; or it raises what it is told."""

    def __init__(self, content: bytes = RIGHT, error: Exception | None = None) -> None:
        super().__init__(content, len(content) // 2)
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self._error = error

    def __call__(self, write: Write) -> None:
        def write_slowly(piece: bytes) -> None:
            write(piece)
            self.begun.set()
            assert self.may_end.wait(30)
            if self._error:
                raise self._error

        super().__call__(write_slowly)


def make_cache(
    folder: Path,
    bound: int = BOUND,
    *,
    wall: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> Cache:
    """A cache as another process would have it: it shares nothing but the folder."""
    single_flight = SingleFlight(clock)
    return Cache(folder, bound, VerifiedFiles(single_flight, wall), single_flight, clock=clock)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cache"


@pytest.fixture
def cache(folder: Path) -> Cache:
    return make_cache(folder)


def opened(
    cache: Cache, content: bytes = RIGHT, source: Callable[[Write], None] | None = None, seconds: float = 20
) -> Any:
    checksum = hashlib.sha256(content).digest()
    return cache.open(len(content), checksum, FROM, source or Source(content), Deadline(seconds))


def get(
    cache: Cache, content: bytes = RIGHT, source: Callable[[Write], None] | None = None, seconds: float = 20
) -> bytes:
    """All bytes of a firmware, by way of the cache."""
    reader: Reader
    with opened(cache, content, source, seconds) as reader:
        return reader.read(0, len(content))


def never(_: Write) -> None:
    raise AssertionError("there is nothing to fetch")


def path_of(folder: Path, content: bytes = RIGHT) -> Path:
    return folder / hashlib.sha256(content).hexdigest()


def part_of(folder: Path, content: bytes = RIGHT) -> Path:
    path = path_of(folder, content)
    return path.with_name(f".{path.name}.{FROM_HASH}.part")


def kept(folder: Path) -> set[str]:
    """The names of what takes room, whole or half."""
    return {path.name for path in folder.iterdir() if path.name != ".lock" and path.suffix != ".used"}


def holds(folder: Path, *contents: bytes) -> bool:
    return kept(folder) == {path_of(folder, content).name for content in contents}


def total(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if not path.is_symlink())


@contextmanager
def background_ends() -> Iterator[None]:
    """Waits for the threads that were begun meanwhile."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


# --- Serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", [time.time, later])
def test_any_block_is_served_and_the_bytes_are_fetched_once(folder: Path, wall: Callable[[], float]) -> None:
    cache, source = make_cache(folder, wall=wall), Source()
    for offset, size in [(0, 1), (0, 2048), (5, 512), (2047, 1), (1536, 512)]:
        with opened(cache, source=source) as reader:
            assert reader.read(offset, size) == RIGHT[offset : offset + size]
    assert source.runs == 1


def test_a_block_beyond_the_end_is_a_failure_not_a_short_one(cache: Cache) -> None:
    with opened(cache) as reader, pytest.raises(PermanentError, match="are not all there"):
        reader.read(2047, 2)


def test_bytes_fetched_by_one_process_serve_another(folder: Path) -> None:
    assert get(make_cache(folder)) == RIGHT
    assert get(make_cache(folder), source=never) == RIGHT


def test_folder_is_created_when_first_needed_and_private(tmp_path: Path, folder: Path) -> None:
    cache = make_cache(folder)
    assert not folder.parent.exists()
    get(cache)
    for path, mode in [(folder.parent, 0o700), (folder, 0o700), (path_of(folder), 0o600)]:
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert list(tmp_path.iterdir()) == [folder.parent]


def test_using_a_file_leaves_its_times_as_they_are(cache: Cache, folder: Path) -> None:
    get(cache)
    before = path_of(folder).stat()
    get(cache)
    after = path_of(folder).stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_firmware_larger_than_the_cache_fails_before_anything_else(folder: Path) -> None:
    with pytest.raises(PermanentError) as caught:
        get(make_cache(folder, 2047), source=never)
    assert caught.value.reason == "firmware of 2048 bytes is larger than the cache (FIRMWARE_CACHE_BYTES=2047)"
    assert not folder.exists()
    assert get(make_cache(folder, 2048)) == RIGHT


# --- Wrong bytes from the source --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (RIGHT[:-1], "size mismatch: 2047 bytes, expected 2048"),
        (b"", "size mismatch: 0 bytes, expected 2048"),
        (RIGHT + b"\0", "size mismatch: more than 2048 bytes"),
        (RIGHT[::-1], "digest mismatch: the bytes have another SHA-256 than they should"),
    ],
    ids=["short", "empty", "long", "other"],
)
def test_a_source_that_lies_fails_leaves_nothing_and_is_asked_again_by_the_next(
    cache: Cache, folder: Path, lie: bytes, reason: str
) -> None:
    for _ in range(2):
        source = Source(lie)
        with pytest.raises(PermanentError) as caught:
            get(cache, source=source)
        assert caught.value.reason == reason
        assert source.runs == 1
        assert not kept(folder)
    assert get(cache) == RIGHT


def test_a_source_without_end_is_stopped_at_the_size(cache: Cache, folder: Path) -> None:
    asked = 0

    def endless(write: Write) -> None:
        nonlocal asked
        while True:
            asked += 1
            write(bytes(1000))

    with pytest.raises(PermanentError, match=r"^size mismatch: more than 2048 bytes$"):
        get(cache, source=endless)
    assert asked == 3
    assert not kept(folder)


@pytest.mark.parametrize(
    "error", [PermanentError("blob missing"), TransientError("registry away", 7), KeyError("a mistake")]
)
def test_error_of_the_source_is_raised_and_leaves_no_file(cache: Cache, folder: Path, error: Exception) -> None:
    def broken(write: Write) -> None:
        write(RIGHT[:1000])
        raise error

    with pytest.raises(type(error)) as caught:
        get(cache, source=broken)
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "after", None) == getattr(error, "after", None)
    assert not kept(folder)


def test_wrong_expected_size_fails_and_affects_no_other_reader(cache: Cache) -> None:
    get(cache)
    for size in (2047, 2049):
        with (
            pytest.raises(PermanentError, match=rf"^size mismatch: 2048 bytes, expected {size}$"),
            cache.open(size, hashlib.sha256(RIGHT).digest(), FROM, never, Deadline(20)),
        ):
            pass
    assert get(cache, source=never) == RIGHT


# --- Files that somebody changed --------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def flip(path: Path) -> None:
    """Changes one byte and makes the time look as before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(bytes([RIGHT[1024] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def inflate(path: Path) -> None:
    """To a size that would take hours to hash."""
    os.truncate(path, 1 << 40)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def replace(path: Path) -> None:
    path.with_name("other").write_bytes(RIGHT[::-1])
    path.with_name("other").rename(path)


def replace_by_link(path: Path) -> None:
    """Even one to the right bytes: who knows where they lie, or whether they go."""
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


DAMAGES: list[Callable[[Path], None]] = [
    truncate,
    flip,
    append,
    inflate,
    replace,
    replace_by_link,
    become_fifo,
    Path.unlink,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("wall", [time.time, later])
@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_file_is_fetched_again_for_the_same_event(
    folder: Path, damage: Callable[[Path], None], wall: Callable[[], float]
) -> None:
    cache, source = make_cache(folder, wall=wall), Source()
    for runs in (1, 2):
        assert get(cache, source=source) == RIGHT
        assert source.runs == runs
        tick(path_of(folder))
        damage(path_of(folder))
    assert get(make_cache(folder, wall=wall), source=source) == RIGHT  # which has not seen it before


@pytest.mark.parametrize("damage", DAMAGES)
def test_changed_file_that_cannot_be_fetched_is_not_served(
    cache: Cache, folder: Path, damage: Callable[[Path], None]
) -> None:
    def broken(_: Write) -> None:
        raise TransientError("registry away")

    get(cache)
    damage(path_of(folder))
    with pytest.raises(TransientError, match="registry away"):
        get(cache, source=broken)
    assert not kept(folder)


@pytest.mark.parametrize("wall", [time.time, later])
def test_a_file_that_is_changed_while_it_is_open_is_not_served(folder: Path, wall: Callable[[], float]) -> None:
    cache, source = make_cache(folder, wall=wall), Source()
    get(cache, source=source)
    with opened(cache, source=source) as reader:
        assert reader.read(1000, 100) == RIGHT[1000:1100]
        tick(path_of(folder))
        flip(path_of(folder))
        with suppress(NotReadyError):
            assert reader.read(1000, 100) == RIGHT[1000:1100]
    assert get(cache, source=source) == RIGHT
    assert source.runs == 2


def test_a_file_that_is_deleted_while_it_is_open_is_served_all_the_same(cache: Cache, folder: Path) -> None:
    with opened(cache) as reader:
        shutil.rmtree(folder)
        assert reader.read(0, 2048) == RIGHT


def test_a_folder_in_a_files_place_goes(cache: Cache, folder: Path) -> None:
    path_of(folder).mkdir(parents=True)
    (path_of(folder) / "file").write_bytes(b"x")
    assert get(cache) == RIGHT


def test_links_in_the_folder_are_not_followed(cache: Cache, folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    os.utime(victim, (1, 1))
    folder.mkdir(parents=True)
    part = part_of(folder)
    part.symlink_to(victim)
    with pytest.raises(PermanentError, match=r"^firmware cache: "):
        get(cache)
    part.unlink()
    (folder / f".{path_of(folder).name}.used").symlink_to(victim)
    assert get(cache) == RIGHT
    assert victim.read_bytes() == b"precious"
    assert victim.stat().st_mtime == 1


# --- Time -------------------------------------------------------------------------------------------------------------


def test_a_download_beyond_the_deadline_goes_on_and_a_later_event_finds_it(cache: Cache) -> None:
    source, deadline = Slow(), Deadline(0.1)
    with background_ends():
        with pytest.raises(NotReadyError) as caught:
            get(cache, source=source, seconds=0)
        assert source.begun.wait(10)
        with pytest.raises(NotReadyError) as caught:
            get(cache, source=source, seconds=0.05)
        assert caught.value.reason == "downloading, 1024 of 2048 bytes"
        assert deadline.elapsed < 5
        source.may_end.set()
    assert get(cache, source=never) == RIGHT
    assert source.runs == 1


def test_latecomer_to_a_long_download_does_not_wait(folder: Path) -> None:
    clock, source = Clock(0.0), Slow()
    cache = make_cache(folder, clock=clock)
    with background_ends():
        with pytest.raises(NotReadyError):
            get(cache, source=source, seconds=0)
        assert source.begun.wait(10)
        clock.now += 30.5
        deadline = Deadline(30)
        with pytest.raises(NotReadyError, match="1024 of 2048"):
            get(cache, source=source, seconds=30)
        assert deadline.elapsed < 5
        with ThreadPoolExecutor() as threads:  # one who could have waited since it began may wait now
            patient = threads.submit(get, cache, RIGHT, source, 31)
            source.may_end.set()
            assert patient.result() == RIGHT
    assert source.runs == 1


def test_error_without_a_waiter_is_raised_once_for_the_next_caller(cache: Cache) -> None:
    source = Slow(error=PermanentError("blob missing"))
    with background_ends():
        with pytest.raises(NotReadyError):
            get(cache, source=source, seconds=0)
        source.may_end.set()
    with pytest.raises(PermanentError, match=r"^blob missing$"):
        get(cache, source=never)
    assert get(cache) == RIGHT


def test_an_error_that_was_heard_is_not_kept(cache: Cache) -> None:
    with pytest.raises(PermanentError, match=r"^size mismatch"):
        get(cache, source=Source(b"x"))
    assert get(cache) == RIGHT


def test_a_source_that_is_away_is_left_alone_for_a_second(folder: Path) -> None:
    clock, runs = Clock(0.0), 0
    cache = make_cache(folder, clock=clock)

    def away(_: Write) -> None:
        nonlocal runs
        runs += 1
        raise TransientError("registry away", 3)

    for now, expected in [(0.0, 1), (0.9, 1), (1.1, 2), (2.0, 2)]:
        clock.now = now
        with pytest.raises(TransientError, match="registry away") as caught:
            get(cache, source=away)
        assert caught.value.retry_after == 3
        assert runs == expected
    clock.now = 2.2
    assert get(cache) == RIGHT


def test_hashing_a_file_that_has_only_just_come_ends_at_the_deadline(folder: Path) -> None:
    get(make_cache(folder))
    with pytest.raises(NotReadyError, match=r"^verifying$"):
        get(make_cache(folder), source=never, seconds=0)


# --- Company ----------------------------------------------------------------------------------------------------------


def test_however_many_threads_ask_at_once_it_is_fetched_once(cache: Cache) -> None:
    source, together = Slow(), threading.Barrier(16)

    def ask(_: int) -> bytes:
        together.wait(10)
        if together.n_waiting == 0:
            source.may_end.set()
        return get(cache, source=source)

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(ask, range(16))) == [RIGHT] * 16
    assert source.runs == 1


def test_who_hears_of_the_same_failure_hears_of_it_in_an_error_of_its_own(cache: Cache) -> None:
    source = Slow(error=PermanentError("blob missing"))

    def ask(_: int) -> Exception:
        with pytest.raises(PermanentError, match="blob missing") as caught:
            get(cache, source=source)
        return caught.value

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, number) for number in range(4)]
        assert source.begun.wait(10)
        source.may_end.set()
        errors = [future.result() for future in asked]
    assert len({id(error) for error in errors}) == 4


def test_two_that_expect_different_sizes_do_not_hear_of_each_others_failure(cache: Cache) -> None:
    honest = Slow()
    with ThreadPoolExecutor() as threads:
        right = threads.submit(get, cache, RIGHT, honest)
        assert honest.begun.wait(10)
        wrong = threads.submit(cache.open(100, hashlib.sha256(RIGHT).digest(), FROM, Source(), Deadline(20)).__enter__)
        honest.may_end.set()
        assert right.result() == RIGHT
        with pytest.raises(PermanentError, match=r"^size mismatch: 2048 bytes, expected 100$"):
            wrong.result()


SPAWN = multiprocessing.get_context("spawn")


ROUNDS = 25


def fetch_in_process(folder: Path, log: Path, together: Any, answer: Connection) -> None:
    """What each of several processes does, in several threads."""
    cache = make_cache(folder, 2048 * ROUNDS)

    def ask(number: int) -> bytes:
        content = random_bytes(2048, number)

        def logged(write: Write) -> None:
            with log.open("a") as file:
                file.write(f"{number}\n")
            Source(content)(write)

        together.wait(60)
        return get(cache, content, logged, seconds=60)

    def ask_for_all(_: int) -> list[bytes]:
        return [ask(number) for number in range(ROUNDS)]

    with ThreadPoolExecutor(4) as threads:
        answer.send(list(threads.map(ask_for_all, range(4))))


def test_however_many_processes_ask_at_once_it_is_fetched_once(folder: Path, tmp_path: Path) -> None:
    log, together = tmp_path / "log", SPAWN.Barrier(16)
    pipes = [SPAWN.Pipe(duplex=False) for _ in range(4)]
    processes = [SPAWN.Process(target=fetch_in_process, args=(folder, log, together, sender)) for _, sender in pipes]
    for process in processes:
        process.start()
    contents = [random_bytes(2048, number) for number in range(ROUNDS)]
    for (receiver, sender), process in zip(pipes, processes, strict=True):
        sender.close()
        assert receiver.recv() == [contents] * 4
        receiver.close()
        process.join(60)
        process.close()
    assert log.read_text().split() == [str(number) for number in range(ROUNDS)]
    assert holds(folder, *contents)


def fetch_half(folder: Path, content: bytes, answer: Connection) -> None:
    def half(write: Write) -> None:
        write(bytes(len(content) // 2))  # wrong ones, should anybody go on with them
        answer.send("half")
        threading.Event().wait()

    get(make_cache(folder), content, half)


@contextmanager
def fetching_half(folder: Path, content: bytes = RIGHT) -> Iterator[SpawnProcess]:
    """A process that is in the middle of a download, and stays there."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=fetch_half, args=(folder, content, sender))
    process.start()
    try:
        assert receiver.recv() == "half"
        yield process
    finally:
        process.kill()
        process.join(60)
        process.close()
        receiver.close()
        sender.close()


def test_download_of_a_killed_process_is_taken_over_by_a_waiting_one(cache: Cache, folder: Path) -> None:
    source = Source()
    with fetching_half(folder) as process:
        with pytest.raises(NotReadyError, match=r"^downloading$"):
            get(cache, source=source, seconds=0.05)
        assert source.runs == 0
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert get(cache, source=source) == RIGHT
    assert source.runs == 1
    assert holds(folder, RIGHT)


def test_part_file_of_a_killed_process_does_not_block_the_firmware(cache: Cache, folder: Path) -> None:
    large = random_bytes(6000, "large")
    with fetching_half(folder, large):
        pass
    assert total(folder) == 6000
    assert get(cache, large) == large
    assert holds(folder, large)


def test_part_file_of_a_killed_process_is_evicted_first(cache: Cache, folder: Path) -> None:
    old, large = random_bytes(4000, "old"), random_bytes(5000, "large")
    get(cache, old)
    with fetching_half(folder, random_bytes(5000, "lost")):
        pass
    assert total(folder) == 9000
    assert get(cache, large) == large
    assert holds(folder, old, large)


# --- The bound --------------------------------------------------------------------------------------------------------

A, B, C, D = (random_bytes(3000, name) for name in "ABCD")


def test_the_least_recently_used_goes_first(folder: Path) -> None:
    cache = make_cache(folder)
    for content in (A, B, C, A):  # the last one is only read
        get(cache, content)
    get(cache, D)
    assert holds(folder, A, C, D)
    get(make_cache(folder), C, never)  # by another process
    get(cache, B)
    assert holds(folder, B, C, D)
    assert total(folder) <= BOUND
    assert {path.name for path in folder.glob("*.used")} == {
        f".{path_of(folder, content).name}.used" for content in (B, C, D)
    }


def test_no_more_goes_than_has_to(folder: Path) -> None:
    cache = make_cache(folder, 9000)
    for content in (A, B, C):
        get(cache, content)
    assert holds(folder, A, B, C)
    small = random_bytes(1, "small")
    get(cache, small)
    assert holds(folder, B, C, small)


def test_a_file_that_is_being_read_stays(folder: Path) -> None:
    cache = make_cache(folder)
    with opened(cache, A) as reader:
        for content in (B, C, D):
            get(cache, content)
        assert holds(folder, A, C, D)
        assert reader.read(0, 3000) == A
    get(cache, C)
    get(cache, D)
    get(cache, B)
    assert holds(folder, B, C, D)


def test_where_all_is_being_read_there_is_no_room_for_a_while(folder: Path) -> None:
    cache, large = make_cache(folder), random_bytes(5000, "large")
    get(cache, A)
    with opened(cache, B), opened(make_cache(folder), C):
        with pytest.raises(NotReadyError) as caught:
            get(cache, large)
        assert caught.value.reason == "the firmware cache has no room while other firmware is being fetched or read"
        assert holds(folder, A, B, C)  # nor did anything go in vain
    assert get(cache, large) == large


@pytest.mark.parametrize("file_system_can", [True, False])
def test_a_download_takes_its_room_when_it_begins(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch, file_system_can: bool
) -> None:
    if not file_system_can:
        monkeypatch.setattr(os, "posix_fallocate", unsupported)
    source, large = Slow(random_bytes(8000, "slow")), random_bytes(3000, "large")
    with background_ends():
        with pytest.raises(NotReadyError):
            get(cache, source.content, source, seconds=0)
        assert source.begun.wait(10)
        assert total(folder) == 8000
        for other in (cache, make_cache(folder)):
            with pytest.raises(NotReadyError, match="no room while other firmware is being fetched"):
                get(other, large)
        assert get(cache, RIGHT[:2000]) == RIGHT[:2000]
        source.may_end.set()
    assert get(cache, large) == large
    assert total(folder) <= BOUND


def unsupported(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "not supported")


def test_foreign_files_are_neither_counted_nor_touched(cache: Cache, folder: Path) -> None:
    folder.mkdir(parents=True)
    foreign = [folder / name for name in ("notes", "a" * 64 + ".bin", "A" * 64, ".hidden", "b" * 63)]
    for path in foreign:
        path.write_bytes(bytes(BOUND))
    (folder / ("c" * 64)).mkdir()
    for content in (A, B, C, D):
        assert get(cache, content) == content
    assert all(path.read_bytes() == bytes(BOUND) for path in foreign)
    assert (folder / ("c" * 64)).is_dir()


def test_a_cache_that_was_made_smaller_shrinks_when_it_next_needs_room(folder: Path) -> None:
    for content in (A, B, C):
        get(make_cache(folder), content)
    get(make_cache(folder, 6000), D)
    assert holds(folder, C, D)


# --- Trouble with the file system -------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_a_failure_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    for folder, why in [("file", errno.ENOTDIR), ("file/below", errno.ENOTDIR), ("loop", errno.ELOOP)]:
        cache = make_cache(tmp_path / folder)
        with pytest.raises(PermanentError) as caught:
            get(cache, source=never)
        assert caught.value.reason in (f"firmware cache: {os.strerror(code)}" for code in (why, errno.EEXIST))


def run_in_process(function: Callable[..., object], *arguments: object) -> Any:
    """What `function` returns in a process of its own."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=send_result, args=(function, arguments, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        receiver.close()
        process.join(60)
        process.close()


def send_result(function: Callable[..., object], arguments: tuple[object, ...], answer: Connection) -> None:
    answer.send(function(*arguments))


def outcome(action: Callable[[], object]) -> str:
    """What an action raises, in words, or its result's type."""
    try:
        return type(action()).__name__
    except (PermanentError, TransientError, NotReadyError) as error:
        return f"{type(error).__name__}: {error.reason}"


def fetch_with_little_disk(folder: Path, limit: int) -> list[str]:
    """Outcomes where no file may become larger than `limit`: what writing a byte more raises is as with a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cache = make_cache(folder)
    before = open_descriptors()
    outcomes = [outcome(lambda content=content: get(cache, content)) for content in (A, B, RIGHT)]  # type: ignore[misc]
    assert open_descriptors() == before
    return outcomes


def test_where_the_disk_is_full_the_event_fails_and_the_half_file_goes(folder: Path) -> None:
    why = f"PermanentError: firmware cache: {os.strerror(errno.EFBIG)}"
    assert run_in_process(fetch_with_little_disk, folder, 2500) == [why, why, "bytes"]
    assert holds(folder, RIGHT)


def test_where_room_cannot_be_taken_in_advance_writing_tells(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert get(cache, A) == A
    monkeypatch.setattr(os, "pwrite", full)

    def fragile(write: Write) -> None:
        try:
            write(B)
        except OSError as error:
            raise TransientError(
                "registry: connection lost"
            ) from error  # a source must not take it for its own trouble

    with pytest.raises(PermanentError, match=r"^firmware cache: No space left on device$"):
        get(cache, B, fragile)
    assert holds(folder, A)


def use_folder_that_is_read_only(folder: Path) -> list[str]:
    os.chdir(folder)
    folder.chmod(0o555)
    path_of(folder).chmod(0o444)
    if not os.getuid():  # for whom no file is read-only
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    cache = make_cache(Path())
    logging.disable()
    cache.small_files.save("key", b"content", Deadline(5))
    return [
        outcome(lambda: get(cache, source=never)),
        outcome(lambda: get(cache, A)),
        str(cache.small_files.load("key", b"", 9)),
    ]


def test_a_folder_that_is_read_only_serves_what_it_has(cache: Cache, folder: Path) -> None:
    get(cache)
    try:
        why = f"PermanentError: firmware cache: {os.strerror(errno.EACCES)}"
        assert run_in_process(use_folder_that_is_read_only, folder) == ["bytes", why, "None"]
    finally:
        folder.chmod(0o700)


def test_a_folder_that_is_deleted_during_a_download_gets_nothing_of_it(cache: Cache, folder: Path) -> None:
    source = Slow()
    with ThreadPoolExecutor() as threads:
        early = threads.submit(get, cache, RIGHT, source)
        assert source.begun.wait(10)
        shutil.rmtree(folder)
        with fetching_half(folder):  # somebody else has begun anew, and is not disturbed
            source.may_end.set()
            with pytest.raises(NotReadyError, match="was evicted right after its download"):
                early.result()
            assert kept(folder) == {part_of(folder).name}
    assert get(cache) == RIGHT


def test_who_waits_for_its_turn_in_a_folder_that_is_deleted_waits_for_it_in_the_new_one(
    cache: Cache, folder: Path
) -> None:
    source = Source()

    def lock() -> IO[bytes]:
        folder.mkdir(exist_ok=True, parents=True)
        file = (folder / ".lock").open("wb")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    with background_ends(), lock() as old:
        with pytest.raises(NotReadyError):
            get(cache, source=source, seconds=0.2)
        (folder / ".lock").unlink()
        with lock():
            old.close()
            with pytest.raises(NotReadyError):
                get(cache, source=source, seconds=0.4)
            assert total(folder) == 0
    assert get(cache, source=source) == RIGHT
    assert source.runs == 1


def test_download_without_bytes_evicts_no_file(cache: Cache, folder: Path) -> None:
    get(cache, A)

    def refuse(_: Write) -> None:
        raise PermanentError("size mismatch: the blob has other bytes than it should")

    with pytest.raises(PermanentError, match="size mismatch"), cache.open(BOUND, bytes(32), FROM, refuse, Deadline(20)):
        pass
    assert holds(folder, A)


def test_fault_of_one_source_does_not_affect_another(cache: Cache, folder: Path) -> None:
    checksum = hashlib.sha256(RIGHT).digest()
    stuck = Slow(error=PermanentError("access denied"))
    with background_ends():
        with pytest.raises(NotReadyError), cache.open(len(RIGHT), checksum, "mine", stuck, Deadline(0)):
            pass
        assert stuck.begun.wait(10)
        for other in (cache, make_cache(folder)):
            with other.open(len(RIGHT), checksum, "yours", Source(), Deadline(20)) as reader:
                assert reader.read(0, len(RIGHT)) == RIGHT
        stuck.may_end.set()


def test_a_claim_is_believed_only_once_its_source_has_proved_it(folder: Path) -> None:
    def claimed(cache: Cache, source: str, fill: Source | Callable[[Write], None]) -> bytes:
        checksum = hashlib.sha256(RIGHT).digest()
        with cache.open(len(RIGHT), checksum, source, fill, Deadline(20), is_claim=True) as reader:
            return reader.read(0, len(RIGHT))

    get(make_cache(folder))
    for cache in (make_cache(folder), make_cache(folder)):
        with pytest.raises(PermanentError, match="mismatch"):
            claimed(cache, "liar", Source(b"something else"))
    honest, before = Source(), path_of(folder).stat().st_ino
    first = make_cache(folder)
    for cache in (first, first, make_cache(folder)):
        assert claimed(cache, "honest", honest) == RIGHT
    assert honest.runs == 1
    assert path_of(folder).stat().st_ino == before, "whoever reads it is not disturbed"
    with pytest.raises(PermanentError, match="mismatch"):
        claimed(first, "liar", Source(bytes(len(RIGHT))))
    assert get(first, source=never) == RIGHT


def use_without_descriptors(folder: Path) -> list[str]:
    cache = make_cache(folder)
    get(cache)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    without = outcome(lambda: get(cache, source=never))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return [without, outcome(lambda: get(cache, source=never))]


def test_too_many_open_files_cost_no_file(folder: Path) -> None:
    why = f"PermanentError: firmware cache: {os.strerror(errno.EMFILE)}"
    assert run_in_process(use_without_descriptors, folder) == [why, "bytes"]


def test_no_descriptor_stays_open(cache: Cache, folder: Path) -> None:
    def try_all() -> None:
        with background_ends():
            for damage in DAMAGES:
                get(cache)
                damage(path_of(folder))
                for source in (Source(b""), Source(RIGHT * 2), Source(RIGHT[::-1])):
                    with pytest.raises(PermanentError):
                        get(cache, source=source)
            for content in (A, B, C, D):
                with suppress(NotReadyError):
                    get(cache, content, seconds=0)
                cache.small_files.save("key", content[:100], Deadline(5))
        shutil.rmtree(folder)

    try_all()
    before = open_descriptors()
    for _ in range(3):
        try_all()
    assert open_descriptors() == before


SIZE = 200 * 1024 * 1024


def resident(field: str) -> int:
    """Bytes: what this process has in memory, now (`VmRSS`) or had at most (`VmHWM`)."""
    return int(re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def memory_for_large_firmware(folder: Path) -> tuple[int, int]:
    """Resident bytes before and, at most, while a large firmware is fetched and served."""
    piece, digest = bytes(256 * 1024), hashlib.sha256()
    for _ in range(SIZE // len(piece)):
        digest.update(piece)

    def fill(write: Write) -> None:
        for _ in range(SIZE // len(piece)):
            write(piece)

    single_flight = SingleFlight()
    cache = Cache(folder, SIZE, VerifiedFiles(single_flight), single_flight)
    before = resident("VmRSS")
    for _ in range(2):
        with cache.open(SIZE, digest.digest(), "", fill, Deadline(60)) as reader:
            assert reader.read(SIZE - 512, 512) == bytes(512)
    return before, resident("VmHWM")


def test_a_large_firmware_takes_little_memory(folder: Path) -> None:
    before, peak = run_in_process(memory_for_large_firmware, folder)
    assert peak < 1.3 * before


# --- Small content ----------------------------------------------------------------------------------------------------


def load(cache: Cache, key: str, content: bytes, limit: int = 4096) -> bytes | None:
    return cache.small_files.load(key, hashlib.sha256(content).digest(), limit)


@pytest.mark.parametrize("key", ["", "registry/name@sha256:0", "../../etc/passwd", "\0", "\udc80", "x" * 5000])
def test_small_content_is_found_under_any_key_by_all_processes(cache: Cache, folder: Path, key: str) -> None:
    assert load(cache, key, b"content") is None
    cache.small_files.save(key, b"content", Deadline(5))
    cache.small_files.save(key + "other", b"else", Deadline(5))
    assert load(make_cache(folder), key, b"content") == b"content"
    assert {path.parent for path in folder.rglob("*")} == {folder}


def test_small_content_with_wrong_bytes_counts_as_missing(cache: Cache, folder: Path) -> None:
    cache.small_files.save("key", b"content", Deadline(5))
    assert load(cache, "key", b"another") is None
    assert load(cache, "key", b"content", limit=7) == b"content"
    assert load(cache, "key", b"content", limit=6) is None
    for damage in (truncate, append, inflate, replace, replace_by_link, become_fifo, Path.unlink):
        cache.small_files.save("key", RIGHT, Deadline(5))
        (path,) = (folder / name for name in kept(folder))
        damage(path)
        assert load(cache, "key", RIGHT) is None
    cache.small_files.save("key", RIGHT, Deadline(5))
    assert load(cache, "key", RIGHT) == RIGHT
    cache.small_files.save("key", b"another", Deadline(5))
    assert load(cache, "key", b"another") == b"another"


def test_small_content_counts_and_goes_like_everything_else(folder: Path) -> None:
    cache = make_cache(folder)
    cache.small_files.save("old", RIGHT[:1000], Deadline(5))
    cache.small_files.save("used", RIGHT[:1001], Deadline(5))
    for content in (A, B):
        get(cache, content)
    load(cache, "used", RIGHT[:1001])
    get(cache, C)
    assert load(cache, "old", RIGHT[:1000]) is None
    assert load(cache, "used", RIGHT[:1001]) == RIGHT[:1001]
    cache.small_files.save("old", RIGHT[:1000], Deadline(5))
    assert total(folder) <= BOUND
    assert not path_of(folder, A).exists()


def test_small_content_that_cannot_be_kept_is_a_warning(tmp_path: Path, records: list[logging.LogRecord]) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = make_cache(tmp_path / "file")
    cache.small_files.save("key", b"content", Deadline(5))
    (record,) = records
    assert record.levelno == logging.WARNING
    assert vars(record)["fields"]["reason"].startswith("firmware cache: ")
    assert load(cache, "key", b"content") is None


def test_small_content_without_a_thread_is_a_warning(
    cache: Cache, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    cache.small_files.save("key", b"content", Deadline(5))
    (record,) = records
    assert record.levelno == logging.WARNING
    assert vars(record)["fields"] == {"reason": "no thread can be started"}


def test_small_content_is_not_waited_for(cache: Cache, folder: Path) -> None:
    folder.mkdir(parents=True)
    with background_ends(), (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # somebody who holds everything up
        for seconds, at_most in ((30.0, 10.0), (0.0, 0.3)):
            deadline = Deadline(seconds)
            cache.small_files.save("key", b"content", deadline)
            assert deadline.elapsed < at_most
    assert load(cache, "key", b"content") == b"content"


def test_a_note_comes_back_as_it_was_or_not_at_all(cache: Cache, folder: Path) -> None:
    for content in (b"", b"content"):
        cache.small_files.save_note("key", content, Deadline(5))
        assert make_cache(folder).small_files.load_note("key", 100) == content
        (file,) = (path for path in folder.iterdir() if path.suffix == ".small")
        damaged = bytearray(file.read_bytes())
        damaged[-1] ^= 1
        file.write_bytes(damaged)
        assert cache.small_files.load_note("key", 100) is None
    assert cache.small_files.load_note("other", 100) is None


# --- Other users ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wall", [time.time, later])
@pytest.mark.parametrize("take", [open_to_others, give_away])
def test_a_file_that_another_user_owns_or_may_write_is_fetched_anew(
    folder: Path, take: Callable[[Path], None], wall: Callable[[], float]
) -> None:
    source = Source()
    for runs in (1, 2):
        cache = make_cache(folder, wall=wall)
        for _ in range(2):
            assert get(cache, source=source) == RIGHT
            assert source.runs == runs
        assert path_of(folder).stat().st_uid == os.geteuid()
        assert stat.S_IMODE(path_of(folder).stat().st_mode) == 0o600
        tick(path_of(folder))
        take(path_of(folder))
    assert get(cache, source=source) == RIGHT
    assert source.runs == 3


@pytest.mark.parametrize("take", [open_to_others, give_away])
def test_a_note_that_another_user_may_have_written_is_none(
    cache: Cache, folder: Path, take: Callable[[Path], None]
) -> None:
    cache.small_files.save_note("key", b"content", Deadline(5))
    cache.small_files.save("small", b"content", Deadline(5))
    for path in folder.glob("*.small"):
        take(path)
    assert cache.small_files.load_note("key", 100) is None
    assert load(cache, "small", b"content") is None
    cache.small_files.save_note("key", b"content", Deadline(5))
    assert cache.small_files.load_note("key", 100) == b"content"


def test_files_of_another_user_do_not_block_the_cache(cache: Cache, folder: Path) -> None:
    get(cache, A)
    strange = [folder / ".lock", part_of(folder), folder / f".{path_of(folder).name}.used", path_of(folder, bytes(9))]
    for path in strange:
        path.write_bytes(bytes(BOUND))
        give_away(path)
    with ExitStack() as stack:
        for path in strange:
            fcntl.flock(stack.enter_context(path.open("rb")), fcntl.LOCK_EX)
        assert get(cache) == RIGHT
    assert holds(folder, A, RIGHT)
    assert stat.S_IMODE((folder / ".lock").stat().st_mode) == 0o600


def test_a_folder_that_a_mount_opened_is_closed_again(cache: Cache, folder: Path) -> None:
    get(cache)
    folder.chmod(0o2770)
    assert get(make_cache(folder), source=never) == RIGHT
    assert stat.S_IMODE(folder.stat().st_mode) == 0o2750


def test_a_folder_that_became_another_users_is_not_used(tmp_path: Path, cache: Cache, folder: Path) -> None:
    get(cache)
    cache.small_files.save_note("key", b"", Deadline(5))
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    if is_root():
        os.chown(elsewhere, POD, POD)
    before = kept(elsewhere)
    fresh = make_cache(folder)
    with pytest.raises(PermanentError, match=r"^firmware cache: Not a directory$"):
        get(fresh)
    assert fresh.small_files.load_note("key", 100) is None
    if is_root():
        with pytest.raises(PermanentError, match=rf"^firmware cache: '{elsewhere}' belongs to user {POD}$"):
            get(make_cache(elsewhere))
    assert kept(elsewhere) == before


def use_volume_as(user: int, volume: Path) -> tuple[str, int, list[str]]:
    """Fetch into a volume as a user of its group; return the folder, its mode, and what came of it."""
    "".encode("idna")  # loads what this user may not read
    become(user, VOLUME_GROUP)
    variables = {
        "DROGUE_API_URL": "https://api.example",
        "FIRMWARE_REGISTRY": "ghcr.io/acme/",
        "FIRMWARE_CACHE_DIR": str(volume),
    }
    folder = Path(Settings.from_environment(variables).firmware_cache_dir)
    source, cache = Source(), make_cache(folder)
    outcomes = [outcome(lambda: get(cache, source=source)), outcome(lambda: get(make_cache(folder), source=never))]
    return str(folder), stat.S_IMODE(folder.stat().st_mode) & 0o777, [*outcomes, str(source.runs)]


def test_in_a_volume_each_user_has_a_cache_of_its_own() -> None:
    users = [POD, OTHER_POD] if is_root() else [os.geteuid()]
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        volume = make_volume(Path(parent, "volume"))
        for user in users:
            used = run_in_process(use_volume_as, user, volume)
            assert used == (f"{volume}/fleet-firmware-{user}", 0o700, ["bytes", "bytes", "1"])
        assert {path.name for path in volume.iterdir()} == {f"fleet-firmware-{user}" for user in users}


@pytest.mark.parametrize("wall", [time.time, later])
def test_a_change_that_no_time_tells_of_is_fetched_anew(folder: Path, wall: Callable[[], float]) -> None:
    cache, source = make_cache(folder, wall=wall), Source()
    for runs in (1, 2, 3):
        assert get(cache, source=source) == RIGHT
        assert source.runs == runs
        with mapped(path_of(folder)) as mapping:
            assert get(cache, source=source) == RIGHT
            mapping.flip(1500)
            with opened(cache, source=source) as reader:
                assert reader.read(1400, 200) == RIGHT[1400:1600]


# --- Whatever happens -------------------------------------------------------------------------------------------------

FIRMWARE = [random_bytes(size, "firmware") for size in (1, 700, 2000, 3000, 4500, 10_000)]
numbers = st.integers(0, len(FIRMWARE) - 1)


class Pod(RuleBasedStateMachine):
    """Processes that share a folder in which somebody rages."""

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.being_read: list[tuple[bytes, Reader, ExitStack]] = []

    @initialize(root=st.just(None))
    def start(self, root: None) -> None:  # noqa: ARG002
        self.folder = Path(self.resources.enter_context(tempfile.TemporaryDirectory()), "cache")
        self.caches = [make_cache(self.folder, wall=wall) for wall in (time.time, later)]

    def teardown(self) -> None:
        for _, _, stack in self.being_read:
            stack.close()
        self.resources.close()

    @rule(number=numbers, process=st.integers(0, 1))
    def read(self, number: int, process: int) -> None:
        content = FIRMWARE[number]
        try:
            assert get(self.caches[process], content) == content
        except NotReadyError as error:
            assert "no room" in error.reason
            assert self.being_read

    @rule(number=numbers, process=st.integers(0, 1))
    def begin_to_read(self, number: int, process: int) -> None:
        with ExitStack() as stack, suppress(NotReadyError):
            reader = stack.enter_context(opened(self.caches[process], FIRMWARE[number]))
            self.being_read.append((FIRMWARE[number], reader, stack.pop_all()))

    @precondition(lambda self: self.being_read)
    @rule(number=st.integers(0))
    def end_to_read(self, number: int) -> None:
        content, reader, stack = self.being_read.pop(number % len(self.being_read))
        with stack, suppress(NotReadyError):
            assert reader.read(0, len(content)) == content

    @rule(number=numbers, lie=st.binary(max_size=10))
    def be_lied_to(self, number: int, lie: bytes) -> None:
        with suppress(PermanentError, NotReadyError):
            assert get(self.caches[0], FIRMWARE[number], Source(lie)) == FIRMWARE[number]

    @rule(key=st.sampled_from("ab"), content=st.binary(max_size=50))
    def keep(self, key: str, content: bytes) -> None:
        self.caches[0].small_files.save(key, content, Deadline(5))
        assert load(self.caches[1], key, content) in (content, None)

    @rule(
        number=st.integers(0), damage=st.sampled_from(["truncate", "flip", "map", "replace", "open", "delete", "link"])
    )
    def damage(self, number: int, damage: str) -> None:
        paths = sorted(self.folder.iterdir()) if self.folder.exists() else []
        if not paths:
            return
        path = paths[number % len(paths)]
        size = 0 if path.is_symlink() else path.stat().st_size  # `total` counts no link
        if damage == "truncate" and not path.is_symlink():
            os.truncate(path, size // 2)
        elif damage == "flip" and size:
            with path.open("r+b") as file:
                file.seek(number % size)
                file.write(b"?")
        elif damage == "map" and size and not path.is_symlink():
            with mapped(path) as mapping:
                mapping.flip(number % size)
        elif damage == "open" and not path.is_symlink():
            open_to_others(path)
        elif damage == "replace":
            path.with_name("other").write_bytes(bytes(size))
            path.with_name("other").rename(path)
        elif damage == "delete":
            path.unlink()
        elif damage == "link" and not path.name.startswith("."):
            path.unlink()
            path.symlink_to("/dev/zero")

    @rule(number=numbers)
    def be_killed(self, number: int) -> None:
        if self.folder.exists() and total(self.folder) + len(FIRMWARE[number]) <= BOUND:
            path = path_of(self.folder, FIRMWARE[number])
            path.with_name(f".{path.name}.{FROM_HASH}.part").write_bytes(bytes(len(FIRMWARE[number])))

    @rule()
    def delete_all(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @invariant()
    def never_more_than_the_bound(self) -> None:
        if self.folder.exists():
            assert total(self.folder) <= BOUND


Pod.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestWhateverHappens = Pod.TestCase
