"""Starting the function, as people and platforms do it."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from tests.support.drogue import Drogue
from tests.support.firmware import publish
from tests.support.function import ROOT, Function, event, serving
from tests.support.processes import descriptors, workers
from tests.support.users import give_away

GUNICORN = [sys.executable, "-m", "gunicorn", "fleet_fn.app:create_app()"]
SERVE = [sys.executable, "-m", "fleet_fn", "serve"]


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**inherited, "PYTHONPATH": str(ROOT), "PORT": "0", **variables}


@contextmanager
def started(command: list[str], variables: Mapping[str, str], folder: Path) -> Iterator[tuple[str, int]]:
    """The URL and the process id of a function that was started in `folder`."""
    with serving(command, environment(**variables), folder) as function:
        yield f"http://127.0.0.1:{function.port}", function.process.pid
        function.end()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_serve_runs_the_function_from_any_folder(drogue: Drogue, tmp_path: Path, elsewhere: bool) -> None:
    variables = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "WEB_CONCURRENCY": "2"}
    before = set(tmp_path.iterdir())
    with started(SERVE, variables, tmp_path if elsewhere else ROOT) as (url, _):
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 200
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", [SERVE, GUNICORN], ids=["serve", "gunicorn"])
@pytest.mark.parametrize(
    ("host", "address", "other"),
    [("127.0.0.2", "127.0.0.2", "127.0.0.1"), ("::1", "[::1]", "127.0.0.1"), ("[::1]", "[::1]", "127.0.0.1")],
)
def test_the_function_listens_on_its_host_alone(
    drogue: Drogue, tmp_path: Path, command: list[str], host: str, address: str, other: str
) -> None:
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "HOST": host}
    with serving(command, environment(**settings), ROOT) as function:
        assert requests.get(f"http://{address}:{function.port}/readyz", timeout=20).status_code == 200
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://{other}:{function.port}/readyz", timeout=20)
        function.end()


#: Starts as gunicorn does, and tells of how many arenas (malloc_info(3)) 16 threads have taken memory at once.
ARENAS = """
import ctypes, sys, threading
from fleet_fn.web import server
server.on_starting(None)
libc, met = ctypes.CDLL(None), threading.Barrier(16)
libc.malloc.restype = ctypes.c_void_p
def take():
    met.wait()
    libc.malloc(1000)
    met.wait()
threads = [threading.Thread(target=take) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
server.on_exit(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="without glibc there are no arenas")
@pytest.mark.parametrize(("given", "most"), [({}, 2), ({"MALLOC_ARENA_MAX": "1"}, 1), ({"MALLOC_ARENA_MAX": "7"}, 7)])
def test_glibc_keeps_few_arenas_unless_told_otherwise(
    drogue: Drogue, tmp_path: Path, given: dict[str, str], most: int
) -> None:
    variables = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", **given}
    told = tmp_path / "malloc_info.xml"
    subprocess.run([sys.executable, "-c", ARENAS, told], cwd=ROOT, env=environment(**variables), check=True)
    assert told.read_text().count("<heap nr=") == most


@pytest.mark.parametrize("hard", [1024, 4096])
def test_idle_connections_leave_a_worker_enough_descriptors_whatever_the_limits_are(
    drogue: Drogue, tmp_path: Path, hard: int
) -> None:
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
    with Function(settings, within=["prlimit", f"--nofile=1024:{hard}"]) as function, ExitStack() as idle:
        before = workers(function)
        with suppress(TimeoutError):  # the queue of those who wait is full as well
            for _ in range(1200):
                idle.enter_context(socket.create_connection(("127.0.0.1", function.port), timeout=2))
        taken = 0
        while workers(function) == before and (now := descriptors(function)) != taken:
            taken = now
            time.sleep(0.5)  # until it takes no more of them
        drogue.put("example", spec={})
        drogue.put("example", "late", spec={})
        idle.close()
        assert function.post(event("late"), b'{"version": "1"}').status == 204
        assert workers(function) == before


def test_plain_gunicorn_takes_the_recommended_settings_from_its_working_directory(
    drogue: Drogue, tmp_path: Path
) -> None:
    variables = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "THREADS": "3"}
    with started(GUNICORN, variables, ROOT) as (url, _):
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 200


@pytest.mark.parametrize("command", [SERVE, GUNICORN], ids=["serve", "gunicorn"])
def test_a_worker_of_another_class_may_use_all_cpus(drogue: Drogue, tmp_path: Path, command: list[str]) -> None:
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "WEB_CONCURRENCY": "1"}
    with serving(command, environment(GUNICORN_CMD_ARGS="--worker-class sync", **settings), ROOT) as function:
        assert requests.get(f"http://127.0.0.1:{function.port}/readyz", timeout=20).status_code == 200
        assert [os.sched_getaffinity(pid) for pid in workers(function)] == [os.sched_getaffinity(0)]
        function.end()


def test_plain_gunicorn_elsewhere_says_that_it_lacks_the_recommended_settings(drogue: Drogue, tmp_path: Path) -> None:
    variables = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "LOG_FORMAT": "text"}
    told = {}
    for folder in (ROOT, tmp_path):
        with (
            (tmp_path / "log").open("wb") as log,
            serving(GUNICORN, environment(**variables), folder, log) as function,
        ):
            assert requests.get(f"http://127.0.0.1:{function.port}/readyz", timeout=20).status_code == 200
            function.end()
        told[folder] = (tmp_path / "log").read_text()
    assert told[ROOT] == ""
    (line,) = told[tmp_path].splitlines()
    assert " WARNING gunicorn runs without the recommended settings" in line
    assert "--config python:fleet_fn.web.server" in line


@pytest.mark.parametrize(
    ("variables", "warned"),
    [
        ({}, True),
        ({"DROGUE_TOKEN": "x"}, False),
        (
            {
                "DROGUE_OIDC_TOKEN_URL": "http://x/",
                "DROGUE_OIDC_CLIENT_ID": "x",
                "DROGUE_OIDC_CLIENT_SECRET": "x",
            },
            False,
        ),
    ],
    ids=["none", "token", "OpenID"],
)
def test_missing_credentials_for_the_cloud_are_warned_of(
    drogue: Drogue, tmp_path: Path, variables: dict[str, str], warned: bool
) -> None:
    settings = {"DROGUE_API_URL": drogue.url, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "LOG_FORMAT": "text"}
    drogue.put("locked", "device1")
    with (
        (tmp_path / "log").open("wb") as log,
        serving(SERVE, environment(**settings, **variables), tmp_path, log) as function,
    ):
        assert requests.get(f"http://127.0.0.1:{function.port}/readyz", timeout=20).status_code == 200
        function.end()
    told = (tmp_path / "log").read_text()
    assert ("WARNING no credentials for Drogue Cloud are set" in told) is warned
    assert len(told.splitlines()) == warned


@pytest.mark.parametrize(("workers", "warned"), [("1", False), ("2", True)])
def test_workers_that_get_no_registry_events_are_warned_of(
    drogue: Drogue, tmp_path: Path, workers: str, warned: bool
) -> None:
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "LOG_FORMAT": "text"}
    more = {"IN_SYNC_TTL_SECONDS": "1800", "WEB_CONCURRENCY": workers}
    with (
        (tmp_path / "log").open("wb") as log,
        serving(SERVE, environment(**settings, **more), tmp_path, log) as function,
    ):
        assert requests.get(f"http://127.0.0.1:{function.port}/readyz", timeout=20).status_code == 200
        function.end()
    assert ("each registry event reaches one of 2 workers" in (tmp_path / "log").read_text()) is warned


def test_an_event_says_that_credentials_are_missing(drogue: Drogue, tmp_path: Path) -> None:
    drogue.put("locked", "device1")
    settings = {"DROGUE_API_URL": drogue.url, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}"}
    with Function(settings) as function:
        answer = function.post(event("device1", "locked"), b'{"version": "1"}')
    assert answer.status == 422
    assert answer.reason.endswith("; no DROGUE_TOKEN is set")


@pytest.mark.parametrize("options", [[], ["--preload"]])
def test_a_wrong_setting_stops_plain_gunicorn_elsewhere_without_a_traceback(options: list[str], tmp_path: Path) -> None:
    variables = {"DROGUE_API_URL": "ftp://me:s3cret@x", "FIRMWARE_REGISTRY": "oci-layout:/"}
    ended = subprocess.run(
        [*GUNICORN, *options], cwd=tmp_path, env=environment(**variables), capture_output=True, text=True, timeout=60
    )
    assert ended.returncode not in (0, 1)
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("[")]
    assert line.startswith("fleet_fn: DROGUE_API_URL is 'ftp://…@x', which is not an http:// or https:// URL")


WRONG_SETTINGS = [
    (
        {"FIRMWARE_REGISTRY": "oci-layout:/"},
        "DROGUE_API_URL is not set. Set it to the base URL of Drogue Cloud, e.g. https://api.example.com",
    ),
    ({"DROGUE_API_URL": "http://x"}, "FIRMWARE_REGISTRY is not set. Set it to a prefix"),
    (
        {"DROGUE_API_URL": "ftp://me:s3cret@x", "FIRMWARE_REGISTRY": "oci-layout:/"},
        "DROGUE_API_URL is 'ftp://…@x', which is not an http:// or https:// URL",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", "POLL_SECONDS": "1.5"},
        "POLL_SECONDS is '1.5'. Set it to a whole number",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", "EVENTS_USER": "me"},
        "EVENTS_PASSWORD is not set, although EVENTS_USER is. Set it to the password",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/nothere"},
        "FIRMWARE_REGISTRY is 'oci-layout:/nothere', which names a folder that does not exist: '/nothere'. Set ",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", "DROGUE_TOKEN": "s3cret\n"},
        "DROGUE_TOKEN contains a control character (a trailing newline?). Set it to an access token",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", "K_SINK": "broker/fleet"},
        "K_SINK is 'broker/fleet', which is not an http:// or https:// URL",
    ),
    (
        {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", "K_CE_OVERRIDES": "{team: pumps}"},
        "K_CE_OVERRIDES is '{team: pumps}'. Set it to JSON as in ",
    ),
]


@pytest.mark.parametrize(("variables", "told"), WRONG_SETTINGS)
def test_a_wrong_setting_stops_the_start_with_one_line_and_no_traceback(variables: dict[str, str], told: str) -> None:
    check_refusal(SERVE, variables, told)


@pytest.mark.parametrize(
    ("variables", "told"), [case for case in WRONG_SETTINGS if {"DROGUE_TOKEN", "K_SINK"} & set(case[0])]
)
def test_a_wrong_setting_stops_plain_gunicorn_as_it_stops_serve(variables: dict[str, str], told: str) -> None:
    check_refusal(GUNICORN, variables, told)


def check_refusal(command: list[str], variables: dict[str, str], told: str) -> None:
    ended = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("[")]  # those are gunicorn's own
    assert told in line
    assert "s3cret" not in ended.stderr + ended.stdout
    assert "Booting worker" not in ended.stderr


@pytest.fixture(params=[("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")], ids=["IPv4", "IPv6"])
def taken(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, str], str]]:
    """The variables that name an address on which another process listens, and that address."""
    host, shown = request.param
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as server:
        port = str(server.getsockname()[1])
        yield {"HOST": host, "PORT": port}, f"{shown}:{port}"


@pytest.mark.parametrize("command", [SERVE, GUNICORN], ids=["serve", "gunicorn"])
def test_a_port_in_use_stops_the_start_with_one_line(command: list[str], taken: tuple[dict[str, str], str]) -> None:
    variables, address = taken
    (line,) = refused(command, **variables)
    port = variables["PORT"]
    assert line == (
        f"fleet_fn: PORT is {port}, but another process listens on {address}. Stop it, or set PORT to a free port"
    )


@pytest.mark.parametrize("command", [SERVE, GUNICORN], ids=["serve", "gunicorn"])
def test_an_address_of_another_machine_stops_the_start_with_one_line(command: list[str]) -> None:
    (line,) = refused(command, HOST="192.0.2.1")
    assert line.startswith("fleet_fn: HOST is '192.0.2.1', which is no address of this machine. Set HOST to ")


def refused(command: list[str], **variables: str) -> list[str]:
    """What a start says that ends with 2 before any worker runs, without gunicorn's own lines."""
    variables = {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", **variables}
    ended = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "Booting worker" not in ended.stderr
    return [line for line in ended.stderr.splitlines() if not line.startswith("[")]


def test_an_address_that_gunicorn_is_given_needs_no_free_port(
    drogue: Drogue, tmp_path: Path, taken: tuple[dict[str, str], str]
) -> None:
    variables, _ = taken
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", **variables}
    with started([*GUNICORN, "--bind", "127.0.0.1:0"], settings, ROOT) as (url, _):
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 200


def make_link(path: Path) -> None:
    path.symlink_to(path.parent)


def make_open_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o770)


def make_strangers_folder(path: Path) -> None:
    path.mkdir()
    give_away(path)


@pytest.mark.parametrize(
    ("command", "make"),
    [
        *((SERVE, make) for make in (Path.touch, make_link, make_open_folder, make_strangers_folder)),
        (GUNICORN, make_strangers_folder),
    ],
)
def test_a_default_cache_folder_that_a_stranger_prepared_stops_the_start(
    command: list[str], tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / f"fleet-firmware-{os.geteuid()}"
    make(folder)
    variables = {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "ghcr.io/acme/", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("[")]
    assert f"FIRMWARE_CACHE_DIR is not set, and the default folder is not safe: '{folder}' " in line
    assert "Booting worker" not in ended.stderr


@pytest.mark.parametrize("variable", ["HOST", "PORT", "WEB_CONCURRENCY", "THREADS"])
def test_serve_tells_of_wrong_server_settings_too(variable: str) -> None:
    variables = {"DROGUE_API_URL": "http://x", "FIRMWARE_REGISTRY": "oci-layout:/", variable: "many"}
    ended = subprocess.run(SERVE, env=environment(**variables), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert f"{variable} is 'many'. Set it to " in line


@pytest.mark.parametrize("modules", ["fleet_fn.app", "fleet_fn.web.server, fleet_fn.web.worker", "function"])
def test_the_function_imports_no_registry_client_and_no_command_line(modules: str) -> None:
    program = (
        f"import sys, {modules}\n"
        "heavy = {'oras', 'requests', 'jsonschema', 'click.testing', 'fleet_fn.cli', 'rich', 'yaml', 'email.mime'}\n"
        "heavy.add('cryptography')\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.strip() == ""


def test_an_event_imports_neither_oras_nor_requests(drogue: Drogue, tmp_path: Path) -> None:
    """They are for `publish` and for simulated devices; a start would take 0.3 s longer with them."""
    publish(tmp_path / "images", "app", "2", b"x" * 64)
    drogue.put("imports", spec={"firmware": {"container": {"image": "app:2"}}})
    drogue.put("imports", "device1", spec={})
    headers = {f"ce-{name}": value for name, value in event("device1", "imports").items()}
    program = (
        "import sys\n"
        "from werkzeug.test import Client\n"
        "from fleet_fn.app import create_app\n"
        f"answer = Client(create_app()).post('/', headers={headers!r}, data='{{\"version\": \"1\"}}')\n"
        "print(answer.headers['Fleet-Outcome'], file=sys.stderr)\n"
        "unwanted = {'oras', 'requests', 'jsonschema', 'rich', 'yaml', 'fleet_fn.sink', 'cryptography'}\n"
        "print(*sorted(unwanted & set(sys.modules)), file=sys.stderr)"
    )
    settings = {**drogue.environment, "FIRMWARE_REGISTRY": f"oci-layout:{tmp_path / 'images'}"}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(**settings), capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == 'write; version="2"; offset=0; size=64\n\n'


@pytest.mark.parametrize("command", ["", "serve", "publish", "inspect", "device", "sandbox", "demo"])
def test_every_command_explains_itself(command: str) -> None:
    words = [sys.executable, "-m", "fleet_fn", *([command] if command else []), "--help"]
    ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.startswith(f"Usage: python -m fleet_fn {command}".rstrip())
