"""`rollout` against the tests' cloud: what it writes, what it prints, and what it refuses."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.errors import one_line
from tests.support.drogue import TOKEN, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT
from tests.support.http import Request, Response, closed_port
from tests.support.sink import sinking

PATIENCE = 30.0
STAGES = [{"percent": 1, "approval": True}, {"percent": 10, "after": "1h"}, {"percent": 100}]


@dataclass(frozen=True)
class Ended:
    """What a command left behind."""

    code: int
    output: str
    errors: str

    @property
    def refusal(self) -> str:
        """Why it failed: one line, less the command's name and the URL that follows an upstream's reason."""
        assert self.code in (1, 2)
        *warnings, line = self.errors.splitlines()
        assert all(warning.startswith("warning: ") for warning in warnings)
        assert line.isprintable()
        command, _, reason = line.partition(": ")
        assert command.startswith("rollout ")
        return reason.partition("; DROGUE_API_URL is ")[0]


@dataclass
class Shop:
    """An application in a cloud, and an operator's terminal."""

    cloud: Drogue
    firmware: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        registry = {"FIRMWARE_REGISTRY": f"oci-layout:{self.firmware}"}
        return {**inherited, "PYTHONPATH": str(ROOT), **self.cloud.environment, **registry, **self.variables}

    def run(self, *arguments: str, application: str = "shop", **variables: str | None) -> Ended:
        """Run a command without a process, which is faster."""
        words = ["rollout", arguments[0], "--application", application, *arguments[1:]]
        environment: dict[str, str | None] = {**self.environment, **variables}
        result = CliRunner().invoke(main, words, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert TOKEN not in result.output
        assert all(one_line(line) == line for line in result.output.splitlines())
        return Ended(result.exit_code, result.stdout, result.stderr)

    def start_process(self, *arguments: str) -> "subprocess.Popen[str]":
        words = ["-m", "fleet_fn", "rollout", arguments[0], "--application", "shop", *arguments[1:]]
        return subprocess.Popen(
            [sys.executable, *words],
            env={**self.environment, "PYTHONWARNINGS": "error"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def put(self, firmware: Any = None, rollout: Any = None) -> None:
        status = {"firmware": {"rollout": rollout}} if rollout is not None else {}
        self.cloud.put("shop", spec={"firmware": firmware} if firmware else {}, status=status)

    @property
    def spec(self) -> Any:
        return self.cloud.object("shop")["spec"].get("firmware")

    @property
    def rollout(self) -> Any:
        return self.cloud.object("shop").get("status", {}).get("firmware", {}).get("rollout")


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        publish(folder, "sensor", version, random_bytes(2048, version))
    return folder


@pytest.fixture
def shop(layouts: Path) -> Iterator[Shop]:
    with Drogue() as cloud:
        yield Shop(cloud, layouts)


def container(version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    return {"container": {"image": f"sensor:{version}"}, **more}


def running(version: str = "1.1.0", stage: int = 0, **more: Any) -> dict[str, Any]:
    since = more.pop("since", "2026-01-01T00:00:00Z")
    return {"version": version, "stage": stage, "since": since, **more}


# --- start


def test_start_checks_the_firmware_and_makes_it_the_target(shop: Shop) -> None:
    shop.put(container(rollout={"stages": STAGES}, maxAttempts=2))
    ended = shop.run("start", "--image", "sensor:1.1.0")
    assert (ended.code, ended.errors) == (0, "")
    assert shop.spec == container("1.1.0", rollout={"stages": STAGES}, maxAttempts=2)
    written = shop.rollout
    assert written["previous"] == {"container": {"image": "sensor:1.0.0"}, "version": "1.0.0"}
    assert (written["version"], written["stage"], written["last"]["user"]) == ("1.1.0", 0, "service")
    shown = ended.output.splitlines()
    assert [line.split()[0] for line in shown[:5]] == ["image", "digest", "version", "size", "sha256"]
    assert "version    1.1.0" in shown
    assert "--- application shop" in shown
    assert any(line.startswith("-") and '"image": "sensor:1.0.0"' in line for line in shown)
    assert any(line.startswith("+") and '"image": "sensor:1.1.0"' in line for line in shown)


def test_start_again_changes_nothing(shop: Shop) -> None:
    shop.put(container())
    shop.run("start", "--image", "sensor:1.1.0")
    before = shop.cloud.object("shop")
    ended = shop.run("start", "--image", "sensor:1.1.0")
    assert (ended.code, ended.output.splitlines()[-1]) == (0, "nothing to change: 1.1.0 is the target")
    assert shop.cloud.object("shop") == before


def test_start_takes_a_reference_in_full(shop: Shop, layouts: Path) -> None:
    shop.put(container())
    assert shop.run("start", "--image", f"{layouts}/sensor:1.1.0").code == 0
    assert shop.spec == container("1.1.0")


def test_start_sets_stages(shop: Shop) -> None:
    shop.put(container(rollout={"percent": 3}))
    stages = ("--stage", "1,approval", "--stage", "10,after=24h,success=95", "--stage", "100,over=48h")
    assert shop.run("start", "--image", "sensor:1.1.0", *stages, "--max-failed", "5").code == 0
    assert shop.spec["rollout"] == {
        "stages": [
            {"percent": 1, "approval": True},
            {"percent": 10, "after": "24h", "success": 95},
            {"percent": 100, "over": "48h"},
        ],
        "maxFailed": 5,
    }
    assert shop.run("start", "--image", "sensor:1.1.0", "--percent", "50").code == 0
    assert shop.spec["rollout"] == {"percent": 50, "maxFailed": 5}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--image", "sensor:9"], "no tag 9"),
        (["--image", "none:1"], "no image layout"),
        (["--image", "Sensor"], "invalid reference 'Sensor'"),
        (
            ["--image", "sensor:1.1.0", "--stage", "5", "--stage", "1"],
            "the application's spec.firmware.rollout.stages[1]",
        ),
    ],
)
def test_start_refuses_what_the_function_would_refuse(shop: Shop, arguments: list[str], reason: str) -> None:
    shop.put(container())
    before = shop.cloud.object("shop")
    ended = shop.run("start", *arguments)
    assert ended.code == 1
    assert reason in ended.refusal
    assert shop.cloud.object("shop") == before


@pytest.mark.parametrize("stage", ["x", "1,after", "1,after=", "1,sometimes=3", "1,success=x"])
def test_a_malformed_stage_is_wrong_usage(shop: Shop, stage: str) -> None:
    ended = shop.run("start", "--image", "sensor:1.1.0", "--stage", stage)
    assert (ended.code, stage in ended.errors) == (2, True)


def test_start_refuses_bytes_that_are_not_the_published_ones(shop: Shop, tmp_path: Path) -> None:
    publish(tmp_path, "sensor", "1.1.0", random_bytes(2048, "1.1.0"))
    (blob,) = [path for path in (tmp_path / "sensor/blobs/sha256").iterdir() if path.stat().st_size == 2048]
    blob.chmod(0o600)
    blob.write_bytes(bytes(2048))
    shop.put(container())
    ended = shop.run("start", "--image", "sensor:1.1.0", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert "digest" in ended.refusal or "checksum" in ended.refusal
    assert shop.spec == container()


def test_start_needs_the_registry_of_the_function(shop: Shop) -> None:
    shop.put(container())
    ended = shop.run("start", "--image", "sensor:1.1.0", FIRMWARE_REGISTRY=None)
    assert ended.refusal.startswith("FIRMWARE_REGISTRY is not set. Set it as the function has it")


def test_start_warns_of_a_previous_version_that_is_gone(shop: Shop) -> None:
    shop.put(container("0.9"))
    ended = shop.run("start", "--image", "sensor:1.1.0")
    assert ended.errors.startswith("warning: the application's firmware so far cannot be resolved")
    assert shop.rollout["previous"] == {"container": {"image": "sensor:0.9"}}
    assert "is not known" in shop.run("abort", FIRMWARE_REGISTRY=None).refusal


def test_start_says_what_holds_the_rollout_back(shop: Shop) -> None:
    failed = {"1.1.0": {"count": 2, "devices": []}}
    shop.put(container(rollout={"paused": True, "maxFailed": 2}), {"failed": failed})
    ended = shop.run("start", "--image", "sensor:1.1.0")
    assert "updates are paused: rollout resume" in ended.errors
    assert "1.1.0 is halted: it failed on 2 devices" in ended.errors


# --- pause, resume, approve, abort


def test_pause_and_resume_are_shown_and_written(shop: Shop) -> None:
    shop.put(container())
    ended = shop.run("pause")
    assert '+      "paused": true' in ended.output
    assert shop.spec == container(rollout={"paused": True})
    assert shop.run("pause").output == "nothing to change: updates are paused\n"
    assert shop.run("resume").code == 0
    assert shop.spec == container(rollout={"paused": False})
    assert shop.run("resume").output == "nothing to change: updates are neither paused nor halted\n"


def test_resume_clears_the_halt_of_the_target_only(shop: Shop) -> None:
    failed = {version: {"count": 2, "devices": []} for version in ("1.0.0", "1.1.0")}
    shop.put(container("1.1.0", rollout={"maxFailed": 2}), {"failed": failed, "aborted": ["1.1.0", "0.9"]})
    assert shop.run("resume").code == 0
    assert (shop.rollout["failed"], shop.rollout["aborted"]) == ({"1.0.0": failed["1.0.0"]}, ["0.9"])
    ended = shop.run("resume")
    assert "halted are 0.9, 1.0.0, which is not the target" in ended.output
    assert shop.run("resume", "--version", "1.0.0").code == 0
    assert "failed" not in shop.rollout
    assert shop.run("resume", "--version", "7").refusal == "7 is not halted; halted are: 0.9"


def test_a_target_that_is_recorded_needs_no_registry(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    assert shop.run("approve", FIRMWARE_REGISTRY=None).code == 0
    assert shop.rollout["approved"] is True
    shop.put(container("1.1.0", rollout={"stages": STAGES}), {})
    assert "set FIRMWARE_REGISTRY" in shop.run("approve", FIRMWARE_REGISTRY=None).refusal
    assert shop.run("approve").code == 0
    assert (shop.rollout["version"], shop.rollout["approved"]) == ("1.1.0", True)
    assert shop.run("approve").output == "nothing to change: the stage is approved\n"


def test_a_registry_that_is_gone_is_a_warning_if_the_target_is_recorded(shop: Shop, tmp_path: Path) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    ended = shop.run("approve", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert ended.code == 0
    assert ended.errors.endswith("going by the recorded version, 1.1.0\n")


def test_abort_goes_back_to_where_start_began(shop: Shop) -> None:
    shop.put(container(rollout={"stages": STAGES}))
    spec = shop.spec
    shop.run("start", "--image", "sensor:1.1.0")
    assert shop.run("abort").code == 0
    assert shop.spec == spec
    assert (shop.rollout["version"], shop.rollout["complete"], shop.rollout["aborted"]) == ("1.0.0", True, ["1.1.0"])
    assert "no previous firmware is recorded" in shop.run("abort").refusal


def test_dry_run_writes_nothing(shop: Shop) -> None:
    shop.put(container(rollout={"stages": STAGES}))
    shop.run("start", "--image", "sensor:1.1.0")
    before, writes = shop.cloud.object("shop"), shop.cloud.writes_of("shop")
    for command in (["start", "--image", "sensor:1.2.0"], ["pause"], ["approve"], ["abort"]):
        ended = shop.run(*command, "--dry-run")
        assert (ended.code, ended.output.splitlines()[-1]) == (0, "--dry-run: nothing was written")
        assert "+++ application shop (changed)" in ended.output
    assert (shop.cloud.object("shop"), shop.cloud.writes_of("shop")) == (before, writes)


# --- Other writers, rights, failures


def test_a_change_is_made_again_on_top_of_another(shop: Shop) -> None:
    shop.put(container())
    writes: list[int] = []

    def first(_: Request) -> Response:
        """Another writer is faster the first two times."""
        if len(writes) < 2:
            writes.append(1)
            shop.put(container(rollout={"percent": len(writes)}))
            shop.cloud.write_answers[("shop",)] = first
            return Response(409)
        return Response(200)

    shop.cloud.write_answers[("shop",)] = first
    assert shop.run("pause").code == 0
    assert shop.spec == container(rollout={"percent": 2, "paused": True})


def test_start_does_not_hide_another_writers_firmware(shop: Shop) -> None:
    shop.put(container())

    def once(_: Request) -> Response:
        shop.cloud.write_answers.clear()
        shop.put(container("1.2.0"))
        return Response(409)

    shop.cloud.write_answers[("shop",)] = once
    assert "firmware has changed meanwhile" in shop.run("start", "--image", "sensor:1.1.0").refusal
    assert shop.spec == container("1.2.0")


@pytest.mark.parametrize(
    ("role", "reason"),
    [
        ("reader", "device registry: 403 for a write of application shop (our role is not manager or admin, or our "),
        (None, "device registry: 403 for application shop (our credentials were refused, or not a member)"),
    ],
)
def test_missing_rights_are_named(shop: Shop, role: str | None, reason: str) -> None:
    shop.put(container())
    shop.cloud.roles["shop"] = role
    ended = shop.run("pause")
    assert ended.code == 1
    assert ended.refusal.startswith(reason)


def test_an_unknown_application_is_named(shop: Shop) -> None:
    assert shop.run("pause").refusal.startswith("device registry: 404 for application shop (wrong name")


def test_an_object_that_is_too_large_is_named(shop: Shop) -> None:
    shop.put(container(**{"x-notes": "x" * 65_000}))
    assert "its object is above 65,536 bytes" in shop.run("start", "--image", "sensor:1.1.0").refusal


def test_settings_are_checked_first(shop: Shop) -> None:
    ended = shop.run("pause", DROGUE_API_URL="x")
    assert ended.code == 2
    assert "DROGUE_API_URL" in ended.errors


def test_a_section_that_the_function_refuses_is_not_written(shop: Shop) -> None:
    shop.put(container(rolout={"percent": 1}))
    assert "did you mean rollout?" in shop.run("pause").refusal


def test_a_cloud_that_is_gone(shop: Shop) -> None:
    with closed_port() as port:
        ended = shop.run("pause", DROGUE_API_URL=f"http://127.0.0.1:{port}")
    assert (ended.code, "device registry" in ended.errors) == (1, True)


# --- Who did it


def token(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"h.{body}.s"


@pytest.mark.parametrize(
    ("given", "user"),
    [(TOKEN, None), (token({"preferred_username": "bob"}), "bob"), (token([]), None), ("a.b.c", None)],
)
def test_a_bare_token_may_name_its_user(shop: Shop, given: str, user: str | None) -> None:
    with Drogue(lambda _: True) as cloud:
        other = Shop(cloud, shop.firmware)
        other.put(container())
        assert other.run("pause", DROGUE_USER=None, DROGUE_TOKEN=given).code == 0
        assert other.rollout["last"].get("user") == user


def test_the_sink_is_told(shop: Shop) -> None:
    shop.put(container())
    with sinking() as sink:
        shop.variables["K_SINK"] = sink.url()
        assert shop.run("pause").errors == ""
        assert shop.run("pause").code == 0
        assert shop.run("resume", "--dry-run").code == 0
        (event,) = sink.received(1)
    assert event.attributes["type"] == "io.drogue.fleet.rollout.v1"
    assert (event.attributes["subject"], event.attributes["application"]) == ("pause", "shop")
    assert (event.data["user"], event.data["action"]) == ("service", "pause")
    assert event.data["change"]["spec.firmware"]["after"] == container(rollout={"paused": True})


def test_a_sink_that_is_gone_is_a_warning(shop: Shop) -> None:
    shop.put(container())
    with closed_port() as port:
        ended = shop.run("pause", K_SINK=f"http://127.0.0.1:{port}")
    assert (ended.code, ended.errors.startswith("warning: the change is made, but no event")) == (0, True)
    assert shop.spec["rollout"] == {"paused": True}


# --- Processes


def test_many_processes_change_one_application(shop: Shop) -> None:
    shop.put(container(rollout={"stages": STAGES}), running())
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    processes = [shop.start_process(command) for command in ("pause", "approve")]
    for process in processes:
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, errors) == (0, ""), output
    assert shop.rollout["approved"] is True
    assert shop.spec["rollout"]["paused"] is True
