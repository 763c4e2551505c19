"""The demo, as `make demo` runs it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests.support.function import ROOT
from tests.support.registry import need

DEVICES = 7
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DEMO = [sys.executable, "-m", "fleet_fn", "demo"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """One that would break the function if the demo handed it on, and a folder of its own for temporary files."""
    return {**os.environ, "TMPDIR": str(tmp_path), "EVENTS_TOKEN": "unknown to the sandbox", "THREADS": "none"}


def test_its_help_and_the_documents_count_the_devices_that_run() -> None:
    shown = subprocess.run([*DEMO, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"Update {DEVICES} simulated devices" in shown
    for file in (ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        lines = [line for line in file.read_text().splitlines() if "make demo" in line or line.startswith("demo:")]
        counts = re.findall(r"(\w+) (?:simulated )?devices", "\n".join(lines))
        assert set(counts) & set(NUMBERS) <= {NUMBERS[DEVICES]}, file


def start_demo(environment: dict[str, str], options: tuple[str, ...]) -> "subprocess.Popen[str]":
    """A demo in a process group of its own, so that what it leaves can be told."""
    return subprocess.Popen(
        [*DEMO, *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def has_processes(group: int) -> bool:
    """Whether processes of a group are left; one that was killed may take a moment until it is reaped."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def look_at_console(process: "subprocess.Popen[str]") -> str:
    """Wait for the demo's console, look at both applications, and press Ctrl-C; return the output so far."""
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.match(r"console: (http://\S+/) ", line):
                applications = requests.get(found[1], timeout=30).text
                assert re.findall(r'href="/applications/([a-z]+)"', applications) == ["example", "street"]
                break
    finally:
        os.killpg(process.pid, signal.SIGINT)
    return "".join(lines)


def check_updates(output: str) -> None:
    """Check the end of the updates: each device's line, and the fleet as the device registry has it."""
    assert "the function serves only what that key has signed" in output
    lines = output.splitlines()
    well = [line for line in lines if line.startswith("ok ")]
    assert len(well) == DEVICES
    assert len([line for line in well if line.endswith(", in sync")]) == DEVICES - 1
    assert "ok     door: 0.1.0, told to stay with it" in well
    table = {
        line.split()[0]: line.split()[1:]
        for line in lines[lines.index("what the device registry knows (fleet-fn fleet):") :]
        if line
    }
    assert table["sensor"][:3] == ["in-sync", "0.1.1", "0.1.1"]
    assert table["valve"][:5] == ["in-sync", "0.1.1", "0.1.1", "-", "2"]
    assert table["door"][:3] == ["held", "0.1.0", "0.1.1"]
    assert "rollout:" in table["door"]
    assert "lamp: lost power at byte" in output


def stop_demo(process: "subprocess.Popen[str]", sign: str) -> str:
    """Stop a demo at a line with a sign, and check how it ends; return the output up to there."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if sign in line:
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return "".join(lines)


def test_every_device_ends_on_the_new_version_and_nothing_is_left(environment: dict[str, str], tmp_path: Path) -> None:
    process = start_demo(environment, ("--console",))
    begin = look_at_console(process)
    rest, errors = process.communicate(timeout=100)
    output = begin + rest
    assert process.returncode == 0, errors
    assert "6 of 6 devices run 0.1.1 with the right bytes, 1 held back" in output
    assert re.search(r"1\.1\.0 halted after [34] devices rolled back, and \d+ got nothing of it; 20 of 20 run", output)
    assert re.search(r"^  held +\d+ +\d+ %  halted \d+$", output, re.MULTILINE)
    assert "  in-sync           20    100 %" in output
    check_updates(output)
    assert not list(tmp_path.iterdir())
    assert not has_processes(process.pid)


def test_a_demo_that_is_stopped_leaves_nothing_either(environment: dict[str, str], tmp_path: Path) -> None:
    process = start_demo(environment, ())
    stop_demo(process, "writes 0.1.1")
    assert not list(tmp_path.iterdir())
    assert not has_processes(process.pid)


def test_a_registry_updates_every_device_too_and_nothing_is_left(environment: dict[str, str], tmp_path: Path) -> None:
    """Stopped when the rollout begins, whose firmware comes from there as that of the updates does."""
    need("docker-registry")
    process = start_demo(environment, ("--registry",))
    check_updates(stop_demo(process, "$ fleet-fn rollout start"))
    assert not list(tmp_path.iterdir())
    assert not has_processes(process.pid)


def test_every_device_is_updated_over_mqtt_too_and_nothing_is_left(environment: dict[str, str], tmp_path: Path) -> None:
    process = start_demo(environment, ("--subscribe",))
    output = stop_demo(process, "$ fleet-fn rollout start")
    assert "function  takes events from mqtt://127.0.0.1:" in output
    check_updates(output)
    assert not list(tmp_path.iterdir())
    assert not has_processes(process.pid)


def test_a_demo_without_the_registry_that_it_needs_says_what_to_install(
    environment: dict[str, str], tmp_path: Path
) -> None:
    process = start_demo({**environment, "PATH": str(tmp_path)}, ("--registry",))
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors == ("demo: docker-registry is not installed: apt-get install docker-registry, on Debian and Ubuntu\n")
    assert not list(tmp_path.iterdir())
