"""The metrics folder of a server: counts of ended workers, and folders of killed servers."""

import fcntl
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


def count(folder: Folder, process: object, values: dict[str, float], kind: str = "counter") -> Path:
    """What a process has counted."""
    file = folder.path / f"{kind}_{process}.db"
    counted = MmapedDict(str(file))
    for name, value in values.items():
        counted.write_value(name, value, 0.0)
    counted.close()
    return file


def ended(folder: Folder, kind: str = "counter") -> dict[str, float]:
    values = MmapedDict.read_all_values_from_file(str(folder.path / f"{kind}_ended.db"))
    return {key: value for key, value, _, _ in values}


def sums(folder: Folder) -> dict[str, float]:
    """What a scrape is told."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder.path))
    samples = [sample for family in registry.collect() for sample in family.samples]
    return {f"{sample.name}{sorted(sample.labels.items())}": sample.value for sample in samples}


# --- Workers


@pytest.mark.parametrize("kind", FILES)
def test_what_workers_have_counted_stays_when_they_end(folder: Folder, kind: str) -> None:
    one, other, late = key("a", x="1"), key("a", x="ü☃" * 3000), key("b")
    files = [
        count(folder, 11, {one: 1.0, other: 2.5}, kind),
        count(folder, 12, {one: 10.0, late: 2.0**53}, kind),
        count(folder, 13, {late: 0.0}, kind),
    ]
    for pid in (12, 11, 13):
        folder.end_worker(pid)
    assert ended(folder, kind) == {one: 11.0, other: 2.5, late: 2.0**53}
    assert not any(file.exists() for file in files)


def test_at_no_moment_does_a_sum_fall_or_count_twice(folder: Folder) -> None:
    for pid in range(20, 30):
        count(folder, pid, {key("a", x=str(number)): float(pid) for number in range(pid)})
    before = sums(folder)
    for pid in range(20, 30):
        folder.end_worker(pid)
        assert sums(folder) == before


@pytest.mark.parametrize("pid", [12, 0, -1, 2**40])
def test_a_process_that_has_counted_nothing_or_has_ended_already_changes_nothing(folder: Folder, pid: int) -> None:
    count(folder, 11, {key("a"): 3.0})
    folder.end_worker(pid)
    for _ in range(3):
        folder.end_worker(11)
        folder.end_worker(pid)
    assert ended(folder) == {key("a"): 3.0}


def test_a_process_that_has_the_id_of_one_before_it_is_added_to_that(folder: Folder) -> None:
    for _ in range(3):
        count(folder, 11, {key("a"): 3.0})
        folder.end_worker(11)
    assert ended(folder) == {key("a"): 9.0}


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
    """And not the scrapes of all workers after it, which would read it, too."""
    monkeypatch.setattr(server, "_metrics", [folder])
    for each in FILES:
        for pid in (11, 12):
            count(folder, pid, {key(f"{each}s", x="1"): 1.0, key(f"{each}s", x="2"): 1.0}, each)
    broken = folder.path / f"{kind}_11.db"
    broken.write_bytes(damage(broken.read_bytes()))
    server.child_exit(None, SimpleNamespace(pid=11))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith("fleet_fn: counts of worker 11 are lost: ")
    assert not list(folder.path.glob("*_11.db"))
    sums(folder)
    server.child_exit(None, SimpleNamespace(pid=12))
    assert not capsys.readouterr().err
    for each in FILES:
        expected = 1.0 if each == kind else 2.0
        assert ended(folder, each) == {key(f"{each}s", x="1"): expected, key(f"{each}s", x="2"): expected}


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
