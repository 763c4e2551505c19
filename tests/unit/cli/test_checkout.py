"""The git checkout of a firmware: its commit, its origin, and what git must not do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fleet_fn.cli.checkout import Checkout, find_checkout, public_url
from tests.support.registry import missing

COMMITTED = 1_795_413_600


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    if shutil.which("git") is None:
        missing("git is not installed")
    folder = tmp_path / "pump"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "main.rs").write_text("fn main() {}")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "Begin")
    git(folder, "remote", "add", "origin", "https://jane:s3cret@git.example/acme/pump.git")
    return folder


def git(folder: Path, *arguments: str) -> str:
    who = {f"GIT_{role}_{what}": "jane" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    date = {"GIT_COMMITTER_DATE": f"{COMMITTED} +0200", "GIT_CONFIG_GLOBAL": "/dev/null"}
    environment = {"PATH": os.environ["PATH"], **who, **date}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_checkout_tells_its_commit_and_its_origin(repository: Path) -> None:
    build = repository / "target"
    build.mkdir()
    (build / "pump.bin").write_bytes(b"not tracked")
    revision = git(repository, "rev-parse", "HEAD")
    assert find_checkout(build) == Checkout(revision, COMMITTED, "https://git.example/acme/pump.git")


def test_a_change_in_a_tracked_file_makes_it_dirty(repository: Path) -> None:
    revision = git(repository, "rev-parse", "HEAD")
    (repository / "main.rs").write_text("fn main() { panic!() }")
    found = find_checkout(repository)
    assert found is not None
    assert found.revision == f"{revision}-dirty"


def test_variables_that_hooks_have_name_no_other_checkout(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    found = find_checkout(repository)
    assert found is not None
    assert found.revision == git(repository, "rev-parse", "HEAD")


def test_git_runs_none_of_the_checkouts_programs(repository: Path, tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    hooks = repository / ".git" / "hooks"
    for hook in ("post-index-change", "fsmonitor-watchman"):
        shutil.copy(program, hooks / hook)
    for setting in ("core.fsmonitor", "core.pager", "core.sshCommand", "gpg.program", "diff.external"):
        git(repository, "config", setting, str(program))
    git(repository, "config", "log.showSignature", "true")
    index = (repository / ".git" / "index").read_bytes()
    os.utime(repository / "main.rs", (1, 1))
    found = find_checkout(repository)
    assert found is not None
    assert not found.revision.endswith("-dirty")
    assert not trace.exists()
    assert (repository / ".git" / "index").read_bytes() == index


def test_without_a_checkout_a_commit_or_git_there_is_none(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert find_checkout(empty) is None
    git(empty, "init", "--quiet")
    assert find_checkout(empty) is None
    assert find_checkout(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(empty))
    assert find_checkout(repository) is None


def test_git_that_hangs_is_given_up(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    hanging = tmp_path / "bin" / "git"
    hanging.write_text("#!/bin/sh\nexec sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("fleet_fn.cli.checkout._TIMEOUT_SECONDS", 0.1)
    assert find_checkout(repository) is None


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("https://git.example/acme/pump", "https://git.example/acme/pump"),
        ("https://jane:s3cret@git.example:8443/acme/pump.git", "https://git.example:8443/acme/pump.git"),
        ("https://ghp_s3cret@git.example/acme/pump?token=s3cret#x", "https://git.example/acme/pump"),
        ("https://jane:a@b@git.example/acme", "https://git.example/acme"),
        ("ssh://git@git.example:2222/acme/pump.git", "ssh://git.example:2222/acme/pump.git"),
        ("git@git.example:acme/pump.git", "ssh://git.example/acme/pump.git"),
        ("git.example:/srv/pump.git", "ssh://git.example/srv/pump.git"),
        ("https://[::1]:80/x", "https://[::1]:80/x"),
        ("/srv/git/pump.git", None),
        ("../pump", None),
        ("file:///srv/git/pump.git", None),
        ("ext::sh -c id", None),
        ("https://", None),
        ("https://[::1/x", None),
        ("https://git.example:port/x", None),
        ("https://git.example/a b", None),
        ("", None),
    ],
)
def test_an_origin_is_shown_without_secrets(origin: str, url: str | None) -> None:
    assert public_url(origin) == url
