"""The command line under its two names, with its dependencies and without them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

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


def test_commands_import_no_web_framework() -> None:
    """A start would take a fifth longer with it."""
    commands = [f"fleet_fn.cli.{name}" for name in ("publish", "inspect", "fleet", "rollout", "device", "sandbox")]
    unwanted = "{'flask', 'jinja2', 'werkzeug', 'oras'}"
    program = f"import sys, {', '.join(commands)}\nprint(*sorted({unwanted} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"


@pytest.mark.parametrize(("command", "name"), [(ENTRY_POINT, "fleet-fn"), (MODULE, "python -m fleet_fn")])
def test_version_is_that_of_the_project(command: list[str], name: str) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    shown = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == f"{name} {version}\n"


#: For each command that has them: what makes it end with which exit code, as docs/command-line.md says.
ENDS: Final = [
    (2, ["publish", "/dev/null", "no-reference", "--version", "1"]),
    (2, ["publish", "/dev/null", "oci-layout:{}:1", "--version", ""]),
    (2, ["publish", "/none", "oci-layout:{}:1", "--version", "1"]),
    (1, ["publish", "/dev/null", "oci-layout:{}:1", "--version", "1"]),
    (2, ["inspect", "no-reference"]),
    (2, ["inspect", "ghcr.io/acme/x:1", "--ca-file", "/none"]),
    (1, ["inspect", "oci-layout:{}/none:1"]),
    (2, ["fleet", "--application", "x"]),
    (2, ["rollout", "pause"]),
    (2, ["rollout", "pause", "--application", "x"]),
    (2, ["device", "--url", "x", "--application", "x", "--device", "x", "--password", "x"]),
    (1, ["device", "--url", "http://127.0.0.1:1", "--application", "x", "--device", "x", "--password", "x"]),
    (2, ["sandbox", "--objects", "/none"]),
    (2, ["demo", "--none"]),
    (2, ["serve"]),
    (2, ["none"]),
]


@pytest.mark.parametrize(("code", "arguments"), ENDS, ids=lambda part: str(part[0]) if isinstance(part, list) else "")
def test_exit_codes_are_those_of_the_page(code: int, arguments: list[str], tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    words = [argument.format(tmp_path) for argument in arguments]
    ended = subprocess.run([*MODULE, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_a_python_without_the_dependencies_says_what_to_do(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "bare")
    ended = subprocess.run([python, "-m", "fleet_fn", "serve"], cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"python -m fleet_fn: .* has no module gunicorn\. Run .*\.venv/bin/fleet-fn.*\n", ended.stderr)


def test_a_dependency_that_one_command_lacks_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "cbor2.py").write_text("raise ModuleNotFoundError('hidden', name='cbor2.part')")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run([*MODULE, "device", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "has no module cbor2. Run" in ended.stderr
