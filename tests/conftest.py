"""What holds for all tests."""

import gc
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

# Where a result decides, the same examples every time; at a developer's, new ones.
# How long an example takes to draw says how busy the machine is.
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("developer", common)
settings.register_profile("ci", common, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")

# A shell has what it starts in the background ignore Ctrl-C, and so would whatever the tests start: they end some so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: A file system in memory, as Linux has it, and the room to be had there: the tests' files take some 260 MiB at most.
_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 4 * 1024**3


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep temporary files in memory if there is room, unless TMPDIR names another place.

    Tests write thousands of small files, and wait for a disk longer than they compute.
    """
    if "TMPDIR" in os.environ or not _has_room():  # a worker has its controller's
        return
    folder = tempfile.mkdtemp(prefix="fleet-tests-", dir=_MEMORY)
    Path(folder).chmod(0o1777)  # as the system's own, since some tests run programs of other users
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def _has_room() -> bool:
    if not os.access(_MEMORY, os.W_OK):
        return False
    found = os.statvfs(_MEMORY)
    available = re.search(r"MemAvailable: *([0-9]+) kB", Path("/proc/meminfo").read_text())
    return available is not None and min(found.f_bavail * found.f_frsize, 1024 * int(available[1])) >= _ROOM_BYTES


# Tests stay once they are collected. To look for garbage among thousands of them takes longer than most of them do.
gc.disable()


def pytest_collection_finish() -> None:
    """Have garbage looked for in what tests leave, and not in the tests."""
    gc.freeze()
    gc.enable()


class _ByFile(LoadFileScheduling):  # type: ignore[misc] # xdist has no types
    """Has one worker run all tests of a file, and those that share a browser, whose folder has them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.endswith("/browser") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile | None:
    """Return the scheduler of `--dist loadfile`."""
    return _ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_xdist_auto_num_workers() -> int:
    """Start two workers for each core: most of the time, a worker waits for processes, sockets and deadlines."""
    return 2 * (os.cpu_count() or 1)
