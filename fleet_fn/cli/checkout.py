"""The git checkout that a file lies in: its commit, and where that came from.

git reads the checkout's own configuration, as each git command there does. So nothing is asked of it that would run
hooks, a monitor, a pager or a program that checks signatures. git itself refuses checkouts of other users.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

#: Bound on each call; git reads local files only.
_TIMEOUT_SECONDS: Final = 5.0
_GIT: Final = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "core.untrackedCache=false")
_COMMIT: Final = re.compile(r"([0-9]{1,12}) ([0-9a-f]{40,64})")
#: git's short form of an ssh URL: `git@github.com:acme/pump.git`.
_SSH: Final = re.compile(r"(?:[^/:@]+@)?([A-Za-z0-9.-]+):(?!//)/?(.+)")
_SCHEMES: Final = ("http", "https", "ssh", "git")


class Checkout(NamedTuple):
    """The commit that is checked out."""

    #: Its name, with `-dirty` if a tracked file differs from it.
    revision: str
    #: When it was committed; Unix seconds.
    committed: int
    #: URL of its origin, without user and password; None if it has none that others can use.
    source: str | None


def find_checkout(folder: Path) -> Checkout | None:
    """Return the checkout that a folder lies in; None without one, or without git."""
    commit = _COMMIT.fullmatch(_git(folder, "rev-list", "--max-count=1", "--timestamp", "HEAD") or "")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=none")
    origin = _git(folder, "config", "--get", "remote.origin.url")
    revision = commit[2] if changes == "" else f"{commit[2]}-dirty"
    return Checkout(revision, int(commit[1]), public_url(origin) if origin else None)


def public_url(text: str) -> str | None:
    """Return the URL of a repository without user, password and query.

    It is None for a folder, and for what is no URL.
    """
    if "://" not in text and (ssh := _SSH.fullmatch(text)):
        text = f"ssh://{ssh[1]}/{ssh[2]}"
    try:
        url = urlsplit(text)
        host = url.hostname
        port = f":{url.port}" if url.port else ""
    except ValueError:
        return None
    if url.scheme not in _SCHEMES or not host or not text.isprintable() or " " in text:
        return None
    return f"{url.scheme}://{f'[{host}]' if ':' in host else host}{port}{url.path}"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command says; None if it fails or takes too long."""
    # Variables such as GIT_DIR, which hooks have, name another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        ended = subprocess.run(  # noqa: S603 - git, and arguments of ours
            [*_GIT, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.decode(errors="replace").strip()
