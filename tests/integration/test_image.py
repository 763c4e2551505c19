"""The container images: their instructions are followed in a folder, and run as a platform runs them."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cbor2
import pytest
import requests

from tests.support.containerfile import Image, build
from tests.support.drogue import Drogue
from tests.support.firmware import random_bytes
from tests.support.function import ROOT, event, serving
from tests.support.installed import checkout, give_pip, make_environment, wheels
from tests.support.registry import DockerRegistry

CONTAINERFILE = ROOT / "Containerfile"
(BASE,) = re.findall(r"^ARG PYTHON=(.+)$", CONTAINERFILE.read_text(), re.MULTILINE)
#: Modules of the function's image that need a package that it lacks: only the command line, or an extra, imports them.
LACKING = {"fleet_fn.oci.upload": "requests", "fleet_fn.observability.spans": "opentelemetry"}
#: Commands of the command line that are not the function's.
COMMANDS = ("subscribe", "publish", "inspect", "fleet", "rollout", "console", "build", "device", "sandbox", "demo")


def _anyones_python() -> str | None:
    """A Python that other users of this machine may run, too, of the version whose wheels there are."""
    candidates = [sys.base_prefix, "/usr", "/usr/local"]
    for python in (Path(prefix, "bin", f"python3.{sys.version_info.minor}") for prefix in candidates):
        if python.exists() and all(folder.stat().st_mode & 0o001 for folder in python.resolve().parents):
            return str(python)
    return None


@pytest.fixture(scope="module")
def stages() -> Iterator[dict[str, Image]]:
    """The stages, out of a checkout that only its owner may read."""
    python = _anyones_python() or sys.executable
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        base = make_environment(folder / "base", python)
        give_pip(base)
        context = checkout(folder / "context")
        for path in context.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)
        yield build(context / "Containerfile", context, {BASE: folder / "base"}, folder, **wheels())
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(stages: dict[str, Image]) -> Image:
    """The function's image, which is made if no target is named."""
    assert list(stages)[-1] == "function"
    return stages["function"]


@pytest.fixture(scope="module")
def publisher(stages: dict[str, Image]) -> Image:
    return stages["publisher"]


def run(image: Image, *command: str, folder: str | None = None) -> "subprocess.CompletedProcess[str]":
    folder = folder or image.path(image.folder)
    return subprocess.run(
        [*image.entrypoint, *command], cwd=folder, env=image.environment, capture_output=True, text=True, timeout=60
    )


def test_the_publishers_command_line_is_the_projects_in_any_folder(publisher: Image) -> None:
    for command in COMMANDS:
        shown = run(publisher, command, "--help", folder="/").stdout
        assert shown.startswith(f"Usage: python -m fleet_fn {command}")
    assert "publish" in run(publisher, *publisher.command).stdout


@pytest.mark.parametrize("arguments", [[command] for command in COMMANDS] + [[], ["--help"], ["serve", "--help"]])
def test_the_function_has_no_other_command_and_says_which_image_has(image: Image, arguments: list[str]) -> None:
    for folder in (None, "/"):
        ended = run(image, *arguments, folder=folder)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == (
            "python -m fleet_fn: this image has only `serve`; the other commands are in the publisher image\n"
        )


def test_plain_gunicorn_runs_the_function(image: Image, drogue: Drogue, tmp_path: Path) -> None:
    variables = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "PORT": "0"}
    command = ["python", "-m", "gunicorn", "fleet_fn.app:create_app()"]
    with serving(command, {**image.environment, **variables}, image.path(image.folder)) as function:
        assert function.request("GET", "/readyz").status == 200
        function.end()


def packages(image: Image) -> set[str]:
    code = "from importlib.metadata import distributions as all; print(*{found.name.lower() for found in all()})"
    return set(run_python(image, code).stdout.split())


def test_the_function_lacks_what_only_the_command_line_needs(image: Image, publisher: Image) -> None:
    tools = {"authlib", "click", "flask", "flask-wtf", "oras", "requests", "rich"} | {
        "certifi",
        "charset-normalizer",
        "idna",
        "jinja2",
        "joserfc",
        "jsonschema",
        "pygments",
        "urllib3",
        "werkzeug",
    }
    assert packages(image) & tools == set()
    assert packages(image) | tools <= packages(publisher)
    rooms = {path.name for path in (image.root / "app" / "fleet_fn").iterdir()}
    assert not rooms & {"builds", "cli", "console", "fleet", "openid", "sandbox"}
    assert {path.name for path in (publisher.root / "app" / "fleet_fn").iterdir()} > rooms


def test_each_package_is_of_the_version_that_is_locked(image: Image, publisher: Image) -> None:
    for stage, lock in ((image, "requirements.lock"), (publisher, "requirements-tools.lock")):
        locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
        found = {re.sub(r"[-_.]+", "-", name) for name in packages(stage)}
        assert found <= locked
        # For some versions of Python, and for Python in a browser.
        assert locked - found <= {"typing-extensions", "httpx2-jsfetch"}


def test_the_function_imports_nothing_that_it_lacks(image: Image) -> None:
    """Each module but those that only the command line imports."""
    code = """
import importlib, pkgutil, fleet_fn
for found in pkgutil.walk_packages(fleet_fn.__path__, "fleet_fn."):
    try:
        importlib.import_module(found.name)
    except ModuleNotFoundError as error:
        print(found.name, error.name)
"""
    ended = subprocess.run(
        ["python", "-c", code], cwd=image.root, env=image.environment, capture_output=True, text=True, timeout=60
    )
    lacking = dict(line.split() for line in ended.stdout.splitlines())
    assert (lacking, ended.stderr) == (LACKING, "")


def test_images_install_locked_wheels_and_their_base_is_pinned() -> None:
    text = CONTAINERFILE.read_text()
    assert re.fullmatch(r"docker\.io/library/python:3\.[0-9.]+-slim-[a-z]+@sha256:[0-9a-f]{64}", BASE)
    froms = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    stages = {name for _, name in froms}
    assert {base for base, _ in froms} <= {"${PYTHON}", *stages}
    installs = re.findall(r"^RUN .*?[^\\]$", text, re.MULTILINE | re.DOTALL)
    installing = [each for each in installs if " install " in each]
    assert len(installing) == 2
    assert all("--require-hashes --only-binary :all:" in each for each in installing)


def test_it_serves_where_nothing_else_is_said_and_says_what_it_lacks(image: Image) -> None:
    process = run(image, *image.command)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1)
    assert process.stderr.startswith("fleet_fn: DROGUE_API_URL is not set. Set it to ")
    assert image.ports == [8080]


def test_its_user_is_a_number_and_not_root(image: Image, publisher: Image) -> None:
    for stage in (image, publisher):
        assert [int(part) > 0 for part in stage.user.split(":")] == [True, True]  # a platform cannot look names up


def test_nothing_is_left_that_installs_or_builds(image: Image, publisher: Image) -> None:
    tools = "pip", "setuptools", "wheel"
    for stage in (image, publisher):
        found = [tool for tool in tools if run_python(stage, f"import {tool}").returncode == 0]
        assert found == []


def run_python(image: Image, code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["python", "-Ic", code], env=image.environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("stage", "packages"), [("function", ("fleet_fn", "gunicorn")), ("publisher", ("fleet_fn", "oras"))]
)
def test_bytecode_is_there_and_is_not_compared_with_its_source(
    stages: dict[str, Image], stage: str, packages: tuple[str, ...]
) -> None:
    sources = [path for path in stages[stage].root.rglob("*.py") if set(packages) & set(path.parts)]
    assert len(sources) > 80
    for source in sources:
        bytecode = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        assert int.from_bytes(bytecode[4:8], "little") == 0b01, source  # PEP 552: by a hash, unchecked


def test_tests_and_other_things_of_the_repository_are_not_in_it(image: Image, publisher: Image) -> None:
    expected = {"LICENSE", "requirements.lock", "gunicorn.conf.py", "fleet_fn", "__pycache__"}
    assert {path.name for path in (image.root / "app").iterdir()} == expected
    assert {path.name for path in (publisher.root / "app").iterdir()} == expected | {"requirements-tools.lock"}


# --- As a platform runs it


def contained(image: Image, cache: Path, *command: str) -> list[str]:
    """What runs a command, else the image's own, as its user without privileges, with only `cache` to write to."""
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
    return [
        "unshare",
        "--mount",
        "bash",
        "-ec",
        contain,
        str(cache),
        user,
        *image.entrypoint,
        *(command or image.command),
    ]


@pytest.fixture
def cache(image: Image) -> Path:
    """Where a volume for the firmware cache is mounted."""
    folder = image.root / "var" / "cache" / "fleet"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_it_updates_devices_without_privileges_on_a_read_only_root(
    image: Image,
    publisher: Image,
    cache: Path,
    drogue: Drogue,
    docker_registry: DockerRegistry,
    device: str,
    tmp_path: Path,
) -> None:
    content = random_bytes(3000)
    (tmp_path / "firmware.bin").write_bytes(content)
    reference = f"{docker_registry.host}/contained:0.1.1"
    published = run(publisher, "publish", str(tmp_path / "firmware.bin"), reference, "--version", "0.1.1", "--insecure")
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


def test_the_console_serves_without_privileges_on_a_read_only_root(publisher: Image) -> None:
    """With the packages, templates and static files that it needs, and one folder to write to."""
    folder = publisher.root / "tmp"
    folder.mkdir(exist_ok=True)
    command = contained(publisher, folder, "console", "--port", "0")
    variables = {"DROGUE_API_URL": "http://127.0.0.1:1", "TMPDIR": str(folder)}
    with subprocess.Popen(
        command,
        cwd=publisher.path(publisher.folder),
        env={**publisher.environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert (found := re.fullmatch(r"console: (http://127\.0\.0\.1:\d+)/ .*\n", line)), line
            for path, status in (("/healthz", 200), ("/static/base.css", 200), ("/sign-out", 404), ("/", 503)):
                assert requests.get(found[1] + path, timeout=30).status_code == status
        finally:
            process.terminate()
    assert process.returncode == 0


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
