"""A program in a fork does what it does in a Python that was started for it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forks
from tests.support.forks import Forked
from tests.support.function import ROOT

#: Arguments and standard input; how they end: well, with a message, with one and no code of its own.
PROGRAMS = [
    (["json.tool", "--compact"], b'["\xc3\xbc"]'),
    (["json.tool"], b"no JSON"),
    (["fleet_fn", "inspect", "127.0.0.1:1/pump:1"], b""),
    (["fleet_fn", "publish"], b""),
    (["fleet_fn", "publish", "-", "oci-layout:layout:1", "--version", "1"], b"firmware"),
]


@pytest.mark.parametrize(("words", "given"), PROGRAMS, ids=["well", "reason", "failure", "usage", "folder"])
def test_a_fork_says_and_ends_as_a_start_does(tmp_path: Path, words: list[str], given: bytes) -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SOURCE_DATE_EPOCH": "0"}
    folder, ended = tmp_path / "folder", []
    for is_forked in (False, True):
        folder.mkdir()
        if is_forked:
            run = forks.run(words, environment, folder, 20, given)
        else:
            command = [sys.executable, "-m", *words]
            run = subprocess.run(command, cwd=folder, env=environment, input=given, capture_output=True, timeout=20)
        ended.append((run.returncode, run.stdout, run.stderr, sorted(path.name for path in folder.iterdir())))
        shutil.rmtree(folder)
    started, forked = ended
    assert forked == started


def test_a_fork_ends_by_a_signal_and_leaves_nobody_who_writes(tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as output, (tmp_path / "errors").open("wb") as errors:
        words = ["http.server", "--bind", "127.0.0.1", "0"]
        process = Forked(words, {}, tmp_path, (0, write, errors.fileno()), [errors.fileno()])
        os.close(write)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.send_signal(signal.SIGKILL)
        assert output.read() == ""  # nobody else can write
        assert process.wait(20) == process.returncode == process.poll() == -signal.SIGKILL
