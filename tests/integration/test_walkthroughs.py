"""The README's quick start and the page of things to try, run word for word but for ports, folders and environment."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.support.function import ROOT
from tests.support.registry import need

#: Seconds for a server to start, or a command to end.
LIMIT = 30.0
#: Below the ports that systems give to connections, so that none is taken between being found and being used.
PORTS = range(20000, 30000)


class Machine:
    """A newcomer's machine: terminals, in which blocks of a page are pasted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports()
        self.ports = {port: str(next(ports)) for port in ("8080", "8081", "5000", "1883")}

    def run(self, block: str) -> str:
        """Run the commands of a block, and return what they print."""
        run: subprocess.CompletedProcess[str] = subprocess.run(
            **self._shell(block), capture_output=True, text=True, timeout=LIMIT
        )
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    @contextmanager
    def running(self, block: str, ready: str) -> Iterator[None]:
        """Run the commands of a block, whose last one stays until the end; `ready` answers with any status before."""
        with (self.folder / "terminal").open("wb+") as shown:
            process = subprocess.Popen(**self._shell(block), stdout=shown, stderr=shown, start_new_session=True)
            try:
                self._wait(process, self.local(ready))
                yield
            except AssertionError as error:
                error.add_note((self.folder / "terminal").read_text())
                raise
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(LIMIT)

    def local(self, text: str) -> str:
        """Return a text of a page with this machine's ports and folders in it."""
        for documented, port in self.ports.items():
            text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{port}")
        return text.replace("/tmp/", f"{self.folder}/")

    def _shell(self, block: str) -> dict[str, Any]:
        text = self.local(block).replace("fleet-fn sandbox ", f"fleet-fn sandbox --port {self.ports['8081']} ")
        text = text.replace("--mqtt-port 1883", f"--mqtt-port {self.ports['1883']}")
        return {
            "args": ["bash", "-euc", text.replace(". .venv/bin/activate\n", "")],
            "cwd": ROOT,
            "env": {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                "PORT": self.ports["8080"],
            },
        }

    def _wait(self, process: "subprocess.Popen[bytes]", url: str) -> None:
        limit = monotonic() + LIMIT
        while monotonic() < limit and process.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=LIMIT).close()
            except urllib.error.HTTPError:
                return
            except OSError:
                sleep(0.05)
            else:
                return
        raise AssertionError(f"{url} does not answer")


def free_ports() -> Iterator[int]:
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


class Page:
    """The blocks of a page, below one of its headings."""

    def __init__(self, name: str, heading: str) -> None:
        text = (ROOT / name).read_text()
        section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        assert section
        self._blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)

    def __call__(self, language: str) -> list[str]:
        return [text for name, text in self._blocks if name == language]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    need("curl")
    return Machine(tmp_path)


SANDBOX, FUNCTION = "http://127.0.0.1:8081/", "http://127.0.0.1:8080/readyz"
QUICK_START = Page("README.md", "Quick start")
PREVIEWS = Page("docs/try-it.md", "What would a device be told?")
REAL_EVENT = Page("docs/try-it.md", "How do I send a real event?")
OWN_OBJECTS = Page("docs/try-it.md", "How do I try applications and devices of my own?")
BAD_VERSION = Page("docs/try-it.md", "How do I try a bad version, and then its fix?")
HALT = Page("docs/try-it.md", "How do I try a rollout that halts by itself?")
SIGNATURES = Page("docs/try-it.md", "How do I try signatures, and a range of versions?")
REGISTRY = Page("docs/try-it.md", "How do I try a real registry?")
CHANGES = Page("docs/rollouts.md", "How do I change an object by hand?")
MQTT = Page("docs/try-it.md", "How do I try it over MQTT, without a way in?")
OPENID = Page("docs/try-it.md", "How do I try OpenID without a provider?")


#: Runs a command in a terminal of 80 columns.
IN_TERMINAL = "TERM=xterm COLUMNS=80 python -c 'import pty, sys; pty.spawn(sys.argv[1:])'"


def timeless(table: str) -> list[str]:
    """Return the lines of a terminal's table without styles, each time of some seconds replaced by a word."""
    unstyled = re.sub(r"\x1b\[[\d;]*m", "", table)
    return [line.rstrip() for line in re.sub(r" *\b\d+s\b", " TIME", unstyled).splitlines()]


def test_quick_start_ends_with_an_updated_device(machine: Machine) -> None:
    publish, serve, report, update = QUICK_START("sh")
    (block,), (table,) = QUICK_START("json"), QUICK_START("text")
    with machine.running(publish, SANDBOX), machine.running(serve, FUNCTION):
        assert json.loads(machine.run(report)) == json.loads(block)
        shown = machine.run(update.replace("fleet-fn fleet", f"{IN_TERMINAL} fleet-fn fleet"))
    updated, _, fleet = shown.partition("DEVICE ")
    assert re.search(r"^device1: 0\.1\.0 -> 0\.1\.1, 20480 bytes, .*, in sync$", updated, re.MULTILINE)
    assert timeless(f"DEVICE {fleet}") == timeless(table)


def test_previews_and_a_real_event_are_answered_as_the_page_shows(machine: Machine) -> None:
    publish, serve, *_, update = QUICK_START("sh")
    with machine.running(publish, SANDBOX), machine.running(serve, FUNCTION):
        machine.run(update)
        shown = [machine.run(block) for block in PREVIEWS("sh")]
        assert [json.loads(text) for text in shown] == [json.loads(text) for text in PREVIEWS("json")]
        (post,), (told,) = REAL_EVENT("sh"), REAL_EVENT("text")
        assert set(told.splitlines()) <= set(machine.run(post).splitlines())
        assert "Fleet-Outcome: duplicate" in machine.run(post).splitlines()


def test_own_applications_and_devices_are_updated(machine: Machine) -> None:
    publish, serve, *_ = QUICK_START("sh")
    objects, sandbox, update = OWN_OBJECTS("sh")
    with machine.running(publish, SANDBOX):
        pass
    machine.run(objects)
    with machine.running(sandbox, SANDBOX), machine.running(serve, FUNCTION):
        assert "bed-7: in sync with 1.2.3" in machine.run(update)


SHOW_APPLICATION = "curl -fsS -u sandbox:sandbox http://127.0.0.1:8081/api/registry/v1alpha1/apps/example"
LIST_DEVICES = f"{SHOW_APPLICATION}/devices"


def await_devices(machine: Machine, is_so: Callable[[Any], bool]) -> None:
    """Wait until something is so of the `status.firmware` of all ten devices."""
    limit = monotonic() + LIMIT
    found: list[Any] = []
    while monotonic() < limit:
        found = [each.get("status", {}).get("firmware", {}) for each in json.loads(machine.run(LIST_DEVICES))]
        if all(map(is_so, found)):
            assert len(found) == 10
            return
        sleep(0.2)
    raise AssertionError(found)


def await_failures(machine: Machine, version: str, count: int) -> None:
    """Wait until the application's status knows of so many devices on which a version failed."""
    limit = monotonic() + LIMIT
    rollout: Any = {}
    while rollout.get("failed", {}).get(version, {}).get("count", 0) < count:
        assert monotonic() < limit, rollout
        sleep(0.2)
        application = json.loads(machine.run(SHOW_APPLICATION))
        rollout = application.get("status", {}).get("firmware", {}).get("rollout", {})


def test_devices_roll_back_from_a_bad_version_and_take_its_fix(machine: Machine) -> None:
    publish, serve, *_ = QUICK_START("sh")
    sandbox, devices, fix = BAD_VERSION("sh")

    with machine.running(publish, SANDBOX):
        pass
    with (
        machine.running(sandbox, SANDBOX),
        machine.running(f"export MANIFEST_TTL_SECONDS=1\n{serve}", FUNCTION),
        machine.running(devices, SANDBOX),
    ):
        await_devices(machine, lambda firmware: firmware.get("update", {}).get("attempts", 0) > 0)
        machine.run(fix)
        await_devices(machine, lambda firmware: firmware.get("current") == "0.2.1")


def test_a_bad_rollout_halts_and_its_fix_goes_to_the_broken_devices_first(machine: Machine) -> None:
    publish, serve, *_ = QUICK_START("sh")
    sandbox, *_ = BAD_VERSION("sh")
    devices, start, show, broken, others = HALT("sh")
    variables = start.partition("fleet-fn")[0]

    def is_fixed(firmware: Any) -> bool:
        return bool(firmware.get("current") == "1.1.1")

    with machine.running(publish, SANDBOX):
        pass
    with (
        machine.running(sandbox, SANDBOX),
        machine.running(f"export SPEC_TTL_SECONDS=1\n{serve}", FUNCTION),
        machine.running(devices, SANDBOX),
    ):
        await_devices(machine, lambda firmware: firmware.get("current") == "0.1.1")
        machine.run(start)
        await_failures(machine, "1.1.0", 2)
        assert "halted: 1.1.0 failed on" in machine.run(variables + show)
        machine.run(variables + broken)
        await_devices(machine, lambda firmware: is_fixed(firmware) or not firmware.get("update", {}).get("failed"))
        machine.run(variables + others)
        await_devices(machine, is_fixed)


def test_a_rollout_is_changed_as_the_page_says(machine: Machine) -> None:
    publish, serve, report, _ = QUICK_START("sh")
    (change,) = CHANGES("sh")
    with machine.running(publish, SANDBOX), machine.running(serve, FUNCTION):
        changed = json.loads(machine.run(f'{change}curl -fsS -u sandbox:sandbox "$app"\n'))
        assert changed["spec"]["firmware"] == {"container": {"image": "example:latest"}, "rollout": {"paused": True}}
        assert json.loads(machine.run(report))["op"] == "SYNC"


def test_a_range_leads_a_device_through_signed_versions_and_stops_at_an_unsigned_one(machine: Machine) -> None:
    need("openssl")
    publish, settings, *_ = QUICK_START("sh")
    versions, sandbox, serve, update, unsigned, preview, sign = SIGNATURES("sh")
    (told,) = SIGNATURES("json")
    variables = settings.rpartition("fleet-fn serve")[0] + "export MANIFEST_TTL_SECONDS=1\n"
    machine.run(publish.rpartition("fleet-fn sandbox")[0] + versions)
    with machine.running(sandbox, SANDBOX), machine.running(variables + serve, FUNCTION):
        seen, limit = [""], monotonic() + 2 * LIMIT
        with machine.running(update, SANDBOX):
            while seen[-1] != "2.0.0":
                assert monotonic() < limit, seen
                lamp = json.loads(machine.run(LIST_DEVICES.replace("/example/", "/lamps/")))[0]
                seen.append(lamp.get("status", {}).get("firmware", {}).get("current", ""))
                sleep(0.2)
        assert "1.1.0" in seen
        machine.run(unsigned)
        while (shown := json.loads(machine.run(preview))) != json.loads(told):
            assert monotonic() < limit, shown
            sleep(0.2)
        machine.run(sign)
        while (shown := json.loads(machine.run(preview)))["outcome"] != "write":
            assert monotonic() < limit, shown
            sleep(0.2)
        assert shown["command"]["version"] == "2.1.0"


def test_a_device_is_updated_out_of_a_real_registry(machine: Machine) -> None:
    need("docker-registry")
    publish, settings, *_ = QUICK_START("sh")
    store, serve, sandbox, update = REGISTRY("sh")
    machine.run(publish.rpartition("fleet-fn sandbox")[0])
    configure, registry, *commands = store.splitlines(keepends=True)
    with (
        machine.running(configure + registry.replace(" &", ""), "http://127.0.0.1:5000/v2/"),
        machine.running(sandbox, SANDBOX),
        machine.running(settings.rpartition("fleet-fn serve")[0] + serve, FUNCTION),
    ):
        assert "version    0.1.1" in machine.run("".join(commands))
        assert "device1: in sync with 0.1.1" in machine.run(update.replace("kill %1\n", ""))


def test_a_device_is_updated_over_mqtt(machine: Machine) -> None:
    publishing = QUICK_START("sh")[0].rpartition("fleet-fn sandbox")[0]
    machine.run(publishing)
    sandbox, subscriber, device = MQTT("sh")
    # Only the sandbox answers requests: the device waits until the function has subscribed, and answers its event.
    with machine.running(sandbox, SANDBOX), machine.running(subscriber, SANDBOX):
        assert re.search(r"0\.1\.0 -> 0\.1\.1, 20480 bytes, .*, in sync", machine.run(device))


def test_openid_is_tried_without_a_provider(machine: Machine) -> None:
    publish, settings, *_ = QUICK_START("sh")
    serve, sandbox, update = OPENID("sh")
    machine.run(publish.rpartition("fleet-fn sandbox")[0])
    with (
        machine.running(sandbox, SANDBOX),
        machine.running(settings.rpartition("fleet-fn serve")[0] + serve, FUNCTION),
    ):
        assert "device1: in sync with 0.1.1" in machine.run(update)
