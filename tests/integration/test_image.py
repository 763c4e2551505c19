"""The container image: its instructions are followed in a folder, and run as a platform runs them."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest

from tests.support.containerfile import Image, build
from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import event, serving
from tests.support.installed import checkout, make_environment, wheels
from tests.support.registry import DockerRegistry


def _anyones_python() -> str | None:
    """A Python that other users of this machine may run, too, of the version whose wheels there are."""
    candidates = [sys.base_prefix, "/usr", "/usr/local"]
    for python in (Path(prefix, "bin", f"python3.{sys.version_info.minor}") for prefix in candidates):
        if python.exists() and all(folder.stat().st_mode & 0o001 for folder in python.resolve().parents):
            return str(python)
    return None


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image, out of a checkout that only its owner may read."""
    python = _anyones_python() or sys.executable
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        base = make_environment(folder / "base", python)
        install = [sys.executable, "-m", "pip", "--python", str(base), "install", "--quiet", "pip"]
        subprocess.run(install, env={**os.environ, **wheels()}, check=True)
        context = checkout(folder / "context")
        for path in context.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        bases = {"docker.io/library/python:3.13-slim": folder / "base"}
        yield build(context / "Containerfile", context, bases, folder, **wheels())
    finally:
        shutil.rmtree(folder)


def run(image: Image, *command: str, folder: str | None = None) -> "subprocess.CompletedProcess[str]":
    folder = folder or image.path(image.folder)
    return subprocess.run(
        [*image.entrypoint, *command], cwd=folder, env=image.environment, capture_output=True, text=True, timeout=60
    )


def test_its_command_line_is_the_projects_in_any_folder(image: Image) -> None:
    for folder in (None, "/"):
        assert run(image, "publish", "--help", folder=folder).stdout.startswith("Usage: python -m fleet_fn publish")


def test_it_serves_where_nothing_else_is_said_and_says_what_it_lacks(image: Image) -> None:
    process = run(image, *image.command)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert process.stderr.startswith("fleet_fn: DROGUE_API_URL is not set. Set it to ")
    assert image.ports == [8080]


def test_its_user_is_a_number_and_not_root(image: Image) -> None:
    assert [int(part) > 0 for part in image.user.split(":")] == [True, True]  # a platform cannot look names up


def test_nothing_is_left_that_installs_or_builds(image: Image) -> None:
    tools = "pip", "setuptools", "wheel"
    found = [tool for tool in tools if run_python(image, f"import {tool}").returncode == 0]
    assert found == []


def run_python(image: Image, code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["python", "-Ic", code], env=image.environment, capture_output=True, text=True, timeout=60)


def test_bytecode_is_there_and_is_not_compared_with_its_source(image: Image) -> None:
    sources = [path for path in image.root.rglob("*.py") if "fleet_fn" in path.parts or "flask" in path.parts]
    assert len(sources) > 80
    for source in sources:
        bytecode = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        assert int.from_bytes(bytecode[4:8], "little") == 0b01, source  # PEP 552: by a hash, unchecked


def test_tests_and_other_things_of_the_repository_are_not_in_it(image: Image) -> None:
    application = {path.name for path in (image.root / "app").iterdir()}
    assert application == {"LICENSE", "requirements.lock", "gunicorn.conf.py", "fleet_fn", "__pycache__"}


# --- As a platform runs it


def contained(image: Image, cache: Path) -> list[str]:
    """What runs the image's command as its own user without any privilege, with nothing to write to but `cache`."""
    if os.geteuid() != 0 or _anyones_python() is None:
        pytest.skip("only root can start a process as another user, with a Python that this one may run")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mounts cannot be made here")
    contain = """
        mount --make-rprivate /
        mount -t tmpfs -o mode=1777,size=64m tmpfs "$0"
        for folder in / /tmp /var/tmp; do
            if mountpoint -q $folder; then mount -o remount,bind,ro $folder; fi
        done
        exec setpriv --reuid "$1" --regid "$1" --clear-groups --no-new-privs --bounding-set=-all "${@:2}"
    """
    user = image.user.partition(":")[0]
    return ["unshare", "--mount", "bash", "-ec", contain, str(cache), user, *image.entrypoint, *image.command]


@pytest.fixture
def cache(image: Image) -> Path:
    """Where a volume for the firmware cache is mounted."""
    folder = image.root / "var" / "cache" / "fleet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_it_updates_devices_without_privileges_on_a_read_only_root(
    image: Image, cache: Path, drogue: Drogue, docker_registry: DockerRegistry, device: str, tmp_path: Path
) -> None:
    content = random_bytes(3000)
    (tmp_path / "firmware.bin").write_bytes(content)
    reference = f"{docker_registry.host}/contained:0.1.1"
    published = run(image, "publish", str(tmp_path / "firmware.bin"), reference, "--version", "0.1.1", "--insecure")
    assert published.returncode == 0, published.stderr
    drogue.put_image("example", device, "contained:0.1.1")
    variables = {
        **drogue.environment,
        **docker_registry.environment,
        "FIRMWARE_CACHE_DIR": str(cache),
        "FIRMWARE_CACHE_BYTES": "10000",
    }
    environment = {**image.environment, "PORT": "0", **variables}
    with serving(contained(image, cache), environment, image.path(image.folder)) as function:
        assert function.request("GET", "/readyz").status == 200
        for offset in (0, 2048):
            status = {"version": "0.1.0", "mtu": 2048, "status": {"version": "0.1.1", "offset": offset}}
            answer = function.post(event(device, datacontenttype="application/cbor"), cbor2.dumps(status))
            assert answer.outcome.startswith("write")
        function.end()
    assert b"".join(cbor2.loads(sent.payload)["data"] for sent in drogue.commands_for(device)) == content
    assert not list(cache.iterdir()), "it was written beside the mount"


def test_without_a_folder_that_can_be_written_it_says_which_one_it_lacks(image: Image, cache: Path) -> None:
    variables = {"DROGUE_API_URL": "http://127.0.0.1:1", "FIRMWARE_REGISTRY": "ghcr.io/acme/"}
    process = subprocess.run(
        contained(image, cache),
        cwd=image.path(image.folder),
        env={**image.environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    message = "FIRMWARE_CACHE_DIR is not set, and the default folder cannot be written. Set it to a folder that "
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert process.stderr.startswith(f"fleet_fn: {message}")
