"""The command line under its two names, with its dependencies and without them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.function import ROOT
from tests.support.installed import make_environment

ENTRY_POINT = [str(Path(sys.executable).with_name("fleet-fn"))]
MODULE = [sys.executable, "-m", "fleet_fn"]


@pytest.mark.parametrize(("command", "name"), [(ENTRY_POINT, "fleet-fn"), (MODULE, "python -m fleet_fn")])
@pytest.mark.parametrize("arguments", [[], ["serve"]], ids=["all", "serve"])
def test_help_shows_the_name_that_was_called(command: list[str], name: str, arguments: list[str]) -> None:
    shown = subprocess.run([*command, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.startswith(" ".join(["Usage:", name, *arguments, "[OPTIONS]"]))


def test_a_python_without_the_dependencies_says_what_to_do(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "bare")
    ended = subprocess.run([python, "-m", "fleet_fn", "serve"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"python -m fleet_fn: .* has no module click\. Run .*\.venv/bin/fleet-fn.*\n", ended.stderr)


def test_a_dependency_that_one_command_lacks_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "cbor2.py").write_text("raise ModuleNotFoundError('hidden', name='cbor2.part')")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run([*MODULE, "device", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "has no module cbor2. Run" in ended.stderr
