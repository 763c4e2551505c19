"""The cache of a running function: no other user can change a byte that it serves, and it stays within its bound."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.drogue import Drogue
from tests.support.fake_registry import FakeRegistry, release, running
from tests.support.files import become_fifo
from tests.support.firmware import Published, publish, random_bytes
from tests.support.function import Function
from tests.support.hostile import chunked, endless, flooding, head, pausing
from tests.support.http import Request, Response
from tests.support.images import EMPTY, OCTETS, ImageLayout
from tests.support.processes import descriptors, forget_peak, peak_resident, resident, threads, workers
from tests.support.statuses import STATUS, ago, blocks, midway, post, record_start, told
from tests.support.timing import Gate

MIB = 1024 * 1024


@pytest.fixture
def released(registry: FakeRegistry, drogue: Drogue, device: str) -> Published:
    """What the device is being updated to."""
    return release_begun(registry, drogue, device)


def release_begun(registry: FakeRegistry, drogue: Drogue, device: str, size: int = 20_000) -> Published:
    """Publish what the device should run, and record that its update to that was begun."""
    released = release(registry, drogue, device, size)
    record_start(drogue, device, "1", released.checksum)
    return released


def fetched(registry: FakeRegistry, device: str) -> int:
    """How often the blob was."""
    return sum(asked.startswith("GET blobs/") for asked in registry.asked(device))


# --- What lies in the cache, changed by somebody


def overwritten(path: Path) -> None:
    """Other bytes of the same size, in place, and as if nothing had been."""
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"other" * 100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(path: Path) -> None:
    times, size = path.stat(), path.stat().st_size
    other = path.with_name("other")
    other.write_bytes(b"x" * size)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)


def linked(path: Path) -> None:
    other = path.parent.parent / f"other-{path.name}"
    other.write_bytes(b"x" * path.stat().st_size)
    path.unlink()
    path.symlink_to(other)


def linked_to(target: str, path: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def linked_to_nothing(path: Path) -> None:
    linked_to("nothing", path)


def linked_to_itself(path: Path) -> None:
    linked_to(path.name, path)


def linked_to_what_has_no_end(path: Path) -> None:
    linked_to("/dev/zero", path)


def turned_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").touch()


def truncated(path: Path) -> None:
    os.truncate(path, 600)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def lengthened(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def deleted(path: Path) -> None:
    path.unlink()


def locked_away(path: Path) -> None:
    path.chmod(0)


DAMAGES: list[Callable[[Path], None]] = [
    overwritten,
    replaced,
    linked,
    linked_to_nothing,
    linked_to_itself,
    linked_to_what_has_no_end,
    turned_into_a_folder,
    become_fifo,
    truncated,
    emptied,
    lengthened,
    deleted,
    locked_away,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_was_changed_just_now_is_fetched_anew(
    function: Function,
    drogue: Drogue,
    registry: FakeRegistry,
    device: str,
    released: Published,
    cache: Path,
    damage: Callable[[Path], None],
) -> None:
    assert post(function, device, midway("1", 512)).outcome.startswith("write")
    damage(cache / released.checksum.hex())
    for offset in (512, 1024):
        assert post(function, device, midway("1", offset)).outcome.startswith("write")
        assert blocks(drogue, device)[-1] == (offset, released.content[offset : offset + 512])
    assert fetched(registry, device) == (1 if damage is locked_away and os.geteuid() == 0 else 2)


def test_a_file_that_was_changed_after_a_while_is_fetched_anew(
    function: Function, drogue: Drogue, registry: FakeRegistry, device: str, cache: Path
) -> None:
    devices = {damage: f"{device}-{damage.__name__}" for damage in DAMAGES}
    contents = {damage: release_begun(registry, drogue, devices[damage]) for damage in DAMAGES}
    for damaged in devices.values():
        assert post(function, damaged, midway("1", 512)).outcome.startswith("write")
    time.sleep(3.1)  # from now on their times tell whether they were changed
    for damaged in devices.values():
        for _ in range(2):
            assert post(function, damaged, midway("1", 512)).outcome.startswith("write")
        assert fetched(registry, damaged) == 1
    for damage, damaged in devices.items():
        damage(cache / contents[damage].checksum.hex())
        assert post(function, damaged, midway("1", 512)).outcome.startswith("write"), damage
        assert blocks(drogue, damaged) == [(512, contents[damage].content[512:1024])] * 4
    for damage, damaged in devices.items():
        if damage is not locked_away:
            assert fetched(registry, damaged) == 2, damage


def test_no_damage_leaves_anything_open(
    function: Function, registry: FakeRegistry, device: str, released: Published, cache: Path
) -> None:
    def all_damages() -> tuple[int, int]:
        for damage in DAMAGES:
            assert post(function, device, midway("1", 512)).outcome.startswith("write")
            damage(cache / released.checksum.hex())
            assert post(function, device, midway("1", 512)).outcome.startswith("write"), damage
        return descriptors(function), threads(function)

    all_damages()  # until all connections and threads are there that are kept
    before, now = all_damages(), all_damages()
    assert now[0] <= before[0] + 2
    limit = time.monotonic() + 10
    while threads(function) > before[1] and time.monotonic() < limit:
        time.sleep(0.05)  # a thread that verified a file may be ending
    assert threads(function) <= before[1]
    assert fetched(registry, device) > len(DAMAGES)


def test_a_manifest_that_was_changed_is_fetched_anew(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    released = publish(registry.folder, device, "1", random_bytes(20_000, device))
    other = publish(registry.folder, device, "2", random_bytes(20_000, "other"))
    manifest = registry.folder / device / "blobs" / "sha256" / other.digest.removeprefix("sha256:")
    drogue.put_image("example", device, f"{device}@{released.digest}")
    for age in (6, 3):
        with running(drogue, registry, tmp_path) as function:
            assert post(function, device, time=ago(age)).outcome.startswith("write")
            assert blocks(drogue, device)[-1] == (0, released.content[:512])
        (small,) = tmp_path.glob("*.small")
        small.write_bytes(manifest.read_bytes())
    assert registry.asked(device).count(f"GET manifests/{released.digest}") == 2


@pytest.fixture(scope="module")
def disturbed(
    drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Function, Path]]:
    """A function, and the folder of its cache, which is made anew where a test leaves none."""
    folder = tmp_path_factory.mktemp("disturbed") / "parent" / "cache"
    with running(drogue, registry, folder) as function:
        yield function, folder


def test_a_cache_that_was_deleted_is_made_anew(
    disturbed: tuple[Function, Path], drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    function, folder = disturbed
    for offset in (512, 1024):
        assert post(function, device, midway("1", offset)).outcome.startswith("write")
        shutil.rmtree(folder)
    assert blocks(drogue, device) == [(512, released.content[512:1024]), (1024, released.content[1024:1536])]
    assert fetched(registry, device) == 2


def has_begun(folder: Path, size: int) -> bool:
    """Whether room is taken up in a cache for a download, which is waited for."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        with suppress(FileNotFoundError):
            if any(part.stat().st_size == size for part in folder.glob(".*.part")):
                return True
        time.sleep(0.01)
    return False


def test_half_written_file_of_a_killed_process_is_not_served(
    disturbed: tuple[Function, Path], drogue: Drogue, registry: FakeRegistry, device: str, released: Published
) -> None:
    function, folder = disturbed
    gate = Gate(Response(200))
    registry.answers[f"{device}/blobs"] = pausing(released.content, gate)
    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(post, function, device)
        assert has_begun(folder, 20_000)
        (worker,) = workers(function)
        os.kill(worker, signal.SIGKILL)
        assert isinstance(lost.exception(), OSError)
    gate.opened.set()
    del registry.answers[f"{device}/blobs"]
    assert post(function, device).outcome.startswith("write")
    assert blocks(drogue, device) == [(0, released.content[:512])]
    assert fetched(registry, device) == 2
    assert not list(folder.glob(".*.part"))


@pytest.mark.usefixtures("released")
def test_a_cache_that_cannot_be_written_fails_and_says_so(
    disturbed: tuple[Function, Path], drogue: Drogue, device: str
) -> None:
    function, folder = disturbed
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.touch()
    answer = post(function, device)
    folder.parent.unlink()
    assert (answer.status, answer.reason) == (422, "firmware cache: Not a directory")
    assert [variant for variant, _ in told(drogue, device)] == ["wait"]
    assert post(function, device).outcome.startswith("write")


# --- Bounds


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def small(drogue: Drogue, registry: FakeRegistry, small_cache: Path) -> Iterator[Function]:
    """A function with a small cache, and a memory for manifests."""
    environment = {"FIRMWARE_CACHE_BYTES": "100000", "MANIFEST_TTL_SECONDS": "3600"}
    with running(drogue, registry, small_cache, **environment) as function:
        yield function


def test_firmware_larger_than_the_cache_fails(
    small: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    release_begun(registry, drogue, device, 100_001)
    answer = post(small, device)
    assert answer.status == 422
    assert answer.reason == "firmware of 100001 bytes is larger than the cache (FIRMWARE_CACHE_BYTES=100000)"
    assert fetched(registry, device) == 0


def test_least_recently_used_is_evicted_and_the_bound_holds(
    small: Function, drogue: Drogue, registry: FakeRegistry, device: str, small_cache: Path
) -> None:
    contents = {f"{device}-{letter}": b"" for letter in "abc"}
    first, second, third = contents

    def is_served(name: str) -> bool:
        answer = post(small, name, midway("1", 512))
        assert answer.outcome.startswith("write"), answer.body
        assert blocks(drogue, name)[-1] == (512, contents[name][512:1024])
        assert sum(file.stat().st_size for file in small_cache.iterdir()) <= 100_000
        return True

    for name in contents:
        contents[name] = release_begun(registry, drogue, name, 40_000).content
    assert is_served(first)
    assert is_served(second)
    assert is_served(first)
    assert is_served(third)  # the second goes
    assert is_served(first)
    assert [fetched(registry, name) for name in contents] == [1, 1, 1]
    assert is_served(second)  # the third goes
    assert is_served(first)
    assert [fetched(registry, name) for name in contents] == [1, 2, 1]
    assert is_served(third)
    assert [fetched(registry, name) for name in contents] == [1, 2, 2]


def test_a_firmware_waits_for_room_that_another_one_takes_up_while_it_is_fetched(
    small: Function, drogue: Drogue, registry: FakeRegistry, device: str, small_cache: Path
) -> None:
    coming, waiting = f"{device}-coming", f"{device}-waiting"
    gate = Gate(Response(200))
    registry.answers[f"{coming}/blobs"] = pausing(release_begun(registry, drogue, coming, 60_000).content, gate)
    released = release_begun(registry, drogue, waiting, 60_000)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, small, coming)
        assert has_begun(small_cache, 60_000)
        refused = post(small, waiting)
        assert refused.outcome == (
            'wait; reason="the firmware cache has no room while other firmware is being fetched or read"'
        )
        gate.opened.set()
        assert answer.result().outcome.startswith("write")
    assert post(small, waiting).outcome.startswith("write")
    assert blocks(drogue, waiting) == [(0, released.content[:512])]


# --- Several at once


def test_thirty_events_at_two_processes_fetch_a_blob_once(
    drogue: Drogue, registry: FakeRegistry, device: str, tmp_path: Path
) -> None:
    names = [f"{device}-{number}" for number in range(30)]
    released = publish(registry.folder, device, "1", random_bytes(300_000, device))
    for name in names:
        drogue.put_image("example", name, f"{device}@{released.digest}")

    def slowly(request: Request) -> Response:
        time.sleep(0.3)
        return registry.honest(request)

    registry.answers[f"{device}/blobs"] = slowly
    with running(drogue, registry, tmp_path, WEB_CONCURRENCY="2") as function, ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda name: post(function, name), names))
        assert len(workers(function)) == 2
    assert {answer.outcome for answer in answers} == {'write; version="1"; offset=0; size=512'}
    assert [blocks(drogue, name) for name in names] == [[(0, released.content[:512])]] * 30
    assert fetched(registry, device) == 1


# --- Memory


@pytest.fixture(scope="module")
def used(drogue: Drogue, registry: FakeRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    """A function that has served before, in a Python of its own: a fork has more in its memory."""
    drogue.put("example", spec={})
    release_begun(registry, drogue, "used")
    with running(drogue, registry, tmp_path_factory.mktemp("cache"), PYTHONWARNINGS="error") as function:
        for status in (STATUS, *(midway("1", 512 * number) for number in range(1, 5))):
            assert post(function, "used", status).outcome.startswith("write")
        yield function


@pytest.fixture
def measured(used: Function) -> Function:
    """The same, with its peak of memory forgotten."""
    forget_peak(used)
    return used


def test_large_firmware_is_served_in_little_memory(
    measured: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    large, chunk, count = f"{device}-large", random_bytes(MIB, device), 200
    checksum = hashlib.sha256()
    for _ in range(count):
        checksum.update(chunk)
    layout = ImageLayout(registry.folder / large)
    layer = {"mediaType": OCTETS, "digest": f"sha256:{checksum.hexdigest()}", "size": count * MIB}
    layout.tag(layout.manifest(layout.blob(b"{}", EMPTY), [layer]), "1")
    drogue.put_image("example", large, f"{large}:1")
    record_start(drogue, large, "1", checksum.digest())

    def generate(request: Request) -> None:
        request.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (count * MIB))
        for _ in range(count):
            request.connection.sendall(chunk)

    registry.answers[f"{large}/blobs"] = generate
    before = resident(measured)
    offset = 199 * MIB + 512
    limit = time.monotonic() + 60
    while not (answer := post(measured, large, midway("1", offset))).outcome.startswith("write"):
        assert answer.outcome.startswith("wait"), answer.body
        assert time.monotonic() < limit
    assert blocks(drogue, large) == [(offset, chunk[512:1024])]
    assert fetched(registry, large) == 1
    assert peak_resident(measured) < 1.3 * before


def test_endless_answers_take_little_memory(
    measured: Function, drogue: Drogue, registry: FakeRegistry, device: str
) -> None:
    many = json.dumps({"layers": [{}] * 1_000_000}).encode()
    hooks = {
        "manifest": endless(b" " * 65536),
        "trailers": flooding(b"X: y\r\n" * 100, head(200, {"Transfer-Encoding": "chunked"}) + b"0\r\n"),
        "interim answers": flooding(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        "long": chunked(*[b" " * 65536] * 65),
        "members": chunked(many),
        "token": lambda _: Response(401, headers={"WWW-Authenticate": f'Bearer realm="{registry.url}/token/{device}"'}),
    }
    registry.answers[f"/token/{device}"] = endless(b"x" * 65536)
    before = resident(measured)
    for what, hook in hooks.items():
        name = f"{device}-{what}"
        drogue.put_image("example", name, f"{name}:1")
        registry.answers[name] = hook
        assert post(measured, name).status == 422, what
        # 4 MiB are read at most; as JSON they are up to 25 times that for a moment.
        assert peak_resident(measured) - before < (128 if what == "members" else 32) * MIB, what
        forget_peak(measured)
