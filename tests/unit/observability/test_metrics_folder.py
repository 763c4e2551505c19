"""The metrics folder of a server: counts of ended workers, and folders of killed servers."""

import fcntl
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from fleet_fn.observability import metrics_folder
from fleet_fn.observability.metrics_folder import FOLDER, Folder
from fleet_fn.web import server

FILES: Final = ("counter", "histogram")


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where folders are made, that nobody names."""
    monkeypatch.setattr(metrics_folder, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setenv(FOLDER, "")  # so that it is as it was, whatever a folder sets
    return tmp_path


@pytest.fixture
def folder(parent: Path) -> Iterator[Folder]:
    folder = Folder()
    assert folder.path.parent == parent
    yield folder
    folder.remove()


def key(name: str, **labels: str) -> str:
    return mmap_key(name, f"{name}_total", list(labels), list(labels.values()), "Help.")


def count(folder: Folder, slot: int, values: dict[str, float], kind: str = "counter") -> Path:
    """Count more as one process with this slot, which then ends."""
    mapped = MultiProcessValue(lambda: slot)  # as prometheus_client does in each process
    for name, value in values.items():
        metric, sample, labels, _ = json.loads(name)
        mapped(kind, metric, sample, tuple(labels), tuple(labels.values()), "Help.").inc(value)
    mapped.close_all_files()
    return folder.path / f"{kind}_{slot}.db"


def counted(file: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))}


def sums(folder: Folder) -> dict[str, float]:
    """What a scrape is told."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder.path))
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for sample in samples}


def end(slot: int) -> None:
    """Have the server see that the worker with this slot has ended."""
    server.child_exit(SimpleNamespace(LISTENERS=[object()]), SimpleNamespace(pid=11, slot=slot))


# --- Workers


@pytest.mark.parametrize("kind", FILES)
def test_worker_goes_on_from_the_counts_of_its_slot(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr(server, "_metrics", [folder])
    one, other, late = key("a", x="1"), key("a", x="\u00fc\u2603" * 3000), key("b")
    for values in ({one: 1.0, other: 2.5}, {one: 10.0, late: 2.0**53}, {late: 0.0}):
        file = count(folder, 0, values, kind)
        end(0)
    assert counted(file) == {one: 11.0, other: 2.5, late: 2.0**53}
    assert [each.name for each in folder.path.glob("*.db")] == [file.name]
    assert not capsys.readouterr().err


def test_at_no_moment_does_a_sum_fall_or_count_twice(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_metrics", [folder])
    for slot in range(20, 30):
        count(folder, slot, {key("a", x=str(number)): float(slot) for number in range(slot)})
    before = sums(folder)
    for slot in range(20, 30):
        end(slot)
        assert sums(folder) == before
        count(folder, slot, {key("a", x="0"): 0.0})
        assert sums(folder) == before


@pytest.mark.parametrize("slot", [1, 12, 0, -1, 2**40])
def test_worker_that_ends_takes_nothing_from_others(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], slot: int
) -> None:
    monkeypatch.setattr(server, "_metrics", [folder])
    files = [count(folder, other, {key("a"): 3.0}) for other in (0, 2, 11)]
    for _ in range(3):
        end(slot)
    assert [counted(file) for file in files] == [{key("a"): 3.0}] * 3
    assert not capsys.readouterr().err


def test_slot_is_free_when_its_worker_has_ended() -> None:
    workers: dict[int, SimpleNamespace] = {}
    arbiter = SimpleNamespace(WORKERS=workers)

    def fork(pid: int) -> int:
        worker = SimpleNamespace()
        server.pre_fork(arbiter, worker)
        workers[pid] = worker
        slot: int = worker.slot
        return slot

    assert [fork(pid) for pid in (11, 12, 13)] == [0, 1, 2]
    del workers[12]
    assert [fork(pid) for pid in (14, 15)] == [1, 3]
    workers.clear()
    assert fork(16) == 0


def test_process_counts_in_files_of_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_folder, "_slot", None)
    assert metrics_folder.process_identifier() == os.getpid()
    server.post_fork(None, SimpleNamespace(slot=0))
    gc.enable()
    assert metrics_folder.process_identifier() == 0


def empty(_: bytes) -> bytes:
    return b""


def without_its_length(_: bytes) -> bytes:
    return b"\x00\x00"


def truncated(content: bytes) -> bytes:
    """Cut within its last value."""
    used = int.from_bytes(content[:4], sys.byteorder)
    return content[: used - 10]


def of_a_wrong_length(content: bytes) -> bytes:
    """Whose last key would reach beyond its end."""
    used = int.from_bytes(content[:4], sys.byteorder)
    return (used - 40).to_bytes(4, sys.byteorder) + content[4:]


@pytest.mark.parametrize("damage", [empty, without_its_length, truncated, of_a_wrong_length])
@pytest.mark.parametrize("kind", FILES)
def test_a_half_written_file_of_a_dead_worker_costs_one_line_and_what_was_in_it(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
    kind: str,
) -> None:
    """And not the scrapes of all workers after it, which would read it, nor the counts of the next one in its slot."""
    monkeypatch.setattr(server, "_metrics", [folder])
    one, other = "1", "2"
    for each in FILES:
        for slot in (0, 1):
            count(folder, slot, {key(f"{each}s", x=x): 1.0 for x in (one, other)}, each)
    broken = folder.path / f"{kind}_0.db"
    broken.write_bytes(damage(broken.read_bytes()))
    end(0)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("fleet_fn: counts of worker 11 are lost: ")
    assert not broken.exists()
    sums(folder)
    end(1)
    assert not capsys.readouterr().err
    for each in FILES:
        count(folder, 0, {key(f"{each}s", x=one): 1.0}, each)  # the next worker with this slot can count
        kept = {} if each == kind else {key(f"{each}s", x=one): 2.0, key(f"{each}s", x=other): 1.0}
        assert counted(folder.path / f"{each}_0.db") == {key(f"{each}s", x=one): 1.0} | kept
        assert counted(folder.path / f"{each}_1.db") == {key(f"{each}s", x=x): 1.0 for x in (one, other)}
    sums(folder)


# --- Servers


def left(parent: Path, age: float, name: str = "fleet-metrics-left") -> Path:
    """A folder of that age which a killed server has left."""
    folder = parent / name
    folder.mkdir()
    (folder / ".life").touch()
    (folder / "counter_1.db").touch()
    made_old(folder, age)
    return folder


def made_old(folder: Path, age: float = 3600) -> None:
    os.utime(folder, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    ("name", "age", "stays"),
    [
        ("fleet-metrics-left", 3600, False),
        ("fleet-metrics-left", 61, False),
        ("fleet-metrics-left", 30, True),  # it may be that its server has not locked it yet
        ("fleet-metrics-left", -3600, True),
        ("others-metrics-left", 3600, True),
    ],
)
def test_what_a_killed_server_has_left_is_removed_at_the_next_start(
    parent: Path, name: str, age: float, stays: bool
) -> None:
    other = left(parent, age, name)
    Folder().remove()
    assert other.exists() == stays


def test_a_folder_whose_server_runs_or_one_of_its_workers_stays(parent: Path) -> None:
    other = left(parent, 3600)
    with (other / ".life").open("rb") as life:
        fcntl.flock(life, fcntl.LOCK_SH)
        Folder().remove()
        assert other.exists()
    Folder().remove()
    assert not other.exists()


def test_a_real_server_keeps_its_folder_until_it_is_killed(parent: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fleet_fn.observability import metrics_folder;"
        "metrics_folder._SHARED_MEMORY = Path(sys.argv[1]);"
        "print(metrics_folder.Folder().path, flush=True);"
        "sys.stdin.read()"
    )
    environment = {name: value for name, value in os.environ.items() if name != FOLDER}
    command = [sys.executable, "-c", code, str(parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout
        path = Path(other.stdout.readline().strip())
        assert path.parent == parent
        made_old(path)
        Folder().remove()
        assert path.exists()
        other.kill()
    Folder().remove()
    assert not path.exists()


def test_nothing_that_looks_alike_and_is_no_folder_keeps_a_server_from_its_start(parent: Path) -> None:
    (parent / "fleet-metrics-file").touch()
    (parent / "fleet-metrics-empty").mkdir()
    (parent / "fleet-metrics-link").symlink_to(parent / "nowhere")
    for name in ("fleet-metrics-file", "fleet-metrics-empty"):
        made_old(parent / name)
    Folder().remove()
    assert (parent / "fleet-metrics-file").exists()


def test_a_folder_that_is_named_is_emptied_of_what_was_counted_and_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = tmp_path / "a" / "b"
    named.mkdir(parents=True)
    for name in ("counter_1.db", "gauge_all_1.db", "notes.txt"):
        (named / name).touch()
    monkeypatch.setenv(FOLDER, str(named))
    folder = Folder()
    assert (folder.path, os.environ[FOLDER]) == (named, str(named))
    assert not list(named.glob("*.db"))
    folder.remove()
    assert (named / "notes.txt").exists()


def test_whoever_inherits_another_servers_folder_makes_one_of_its_own(parent: Path) -> None:
    """As gunicorn does that is told to replace itself, while the other still runs."""
    first = Folder()
    count(first, 11, {key("a"): 1.0})
    second = Folder()
    assert second.path != first.path
    assert os.environ[FOLDER] == str(second.path)
    assert list(first.path.glob("*.db"))
    second.remove()
    first.remove()
    assert not list(parent.iterdir())


def test_where_no_folder_can_be_made_a_server_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="Not a directory"):
        Folder()
