"""`rollout` against the tests' cloud: what it writes, what it prints, and what it refuses."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fleet_fn.cli.main import main
from fleet_fn.drogue.update_record import timestamp
from fleet_fn.errors import one_line
from tests.support.drogue import TOKEN, Drogue
from tests.support.firmware import publish, random_bytes
from tests.support.function import ROOT
from tests.support.http import Request, Response, closed_port
from tests.support.images import metadata
from tests.support.signer import Attacher, Signer
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


@pytest.mark.parametrize(
    ("stages", "reason"),
    [
        (("5", "1"), "percent of stage 2 is 1; it must be a number from 5 to 100"),
        (("101",), "percent of stage 1 is 101; it must be a number from 0 to 100"),
        (("1", "5,after=24"), 'after of stage 2 is "24"; it must be a number and a unit, such as 24h'),
        (("1,over=3w",), 'over of stage 1 is "3w"; it must be'),
        (("1,success=101",), "success of stage 1 is 101; it must be a number from 0 to 100"),
        (("1",) * 101, "rollout.stages is a list of 101; it must be a list of 1 to 100 maps"),
    ],
)
def test_a_stage_that_the_function_refuses_is_wrong_usage(shop: Shop, stages: Sequence[str], reason: str) -> None:
    ended = shop.run("start", "--image", "sensor:1.1.0", *(f"--stage={stage}" for stage in stages))
    assert (ended.code, ended.output) == (2, "")
    assert f"Invalid value for '--stage': {reason}" in " ".join(ended.errors.split())


def test_start_refuses_bytes_that_are_not_the_published_ones(shop: Shop, tmp_path: Path) -> None:
    publish(tmp_path, "sensor", "1.1.0", random_bytes(2048, "1.1.0"))
    (blob,) = [path for path in (tmp_path / "sensor/blobs/sha256").iterdir() if path.stat().st_size == 2048]
    blob.chmod(0o600)
    blob.write_bytes(bytes(2048))
    shop.put(container())
    ended = shop.run("start", "--image", "sensor:1.1.0", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert "digest" in ended.refusal or "checksum" in ended.refusal
    assert shop.spec == container()


def test_start_takes_only_what_the_function_would_serve(shop: Shop, tmp_path: Path) -> None:
    """It checks signatures by the same keys, and says by which key the firmware is signed."""
    signer, key = Signer(), tmp_path / "release.pub"
    key.write_bytes(signer.public)
    published = publish(tmp_path, "sensor", "1.1.0", random_bytes(2048, "1.1.0"))
    shop.put(container())
    variables = {"FIRMWARE_REGISTRY": f"oci-layout:{tmp_path}", "FIRMWARE_VERIFY_KEYS": str(key)}
    ended = shop.run("start", "--image", "sensor:1.1.0", **variables)
    assert ended.refusal == "not signed by a trusted key: no signature"
    assert shop.spec == container()
    Attacher(tmp_path / "sensor").sign(signer, published.digest)
    ended = shop.run("start", "--image", "sensor:1.1.0", **variables)
    assert ended.code == 0
    assert "signature  good, by release.pub" in ended.output.splitlines()
    assert shop.spec == container("1.1.0")


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


def test_files_need_no_registry_and_do_not_hide_a_recorded_image(shop: Shop, tmp_path: Path) -> None:
    shop.variables |= {"FIRMWARE_REGISTRY": "", "FIRMWARE_DIR": str(tmp_path)}
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    ended = shop.run("approve")
    assert (ended.code, ended.errors) == (0, "")
    shop.put(container("1.1.0", rollout={"stages": STAGES}), {})
    assert "set FIRMWARE_REGISTRY" in shop.run("approve").refusal
    assert shop.run("start", "--image", "sensor:1.1.0").refusal.startswith("FIRMWARE_REGISTRY is not set. Set")
    (tmp_path / "sensor.bin").write_bytes(b"sensor")
    (tmp_path / "sensor.json").write_text(metadata(b"sensor", "2.0.0"))
    shop.put({"file": {"name": "sensor"}, "rollout": {"stages": STAGES}}, {})
    assert shop.run("approve").code == 0
    assert shop.rollout["version"] == "2.0.0"


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


def test_abort_of_a_tag_that_moved_unnoticed_goes_back_one_version(shop: Shop, tmp_path: Path) -> None:
    shop.variables["FIRMWARE_REGISTRY"] = f"oci-layout:{tmp_path}"
    good = publish(tmp_path, "sensor", "1.0.0", random_bytes(64, 1), "latest")
    shop.put(container("latest"))
    assert shop.run("start", "--image", "sensor:latest").code == 0
    publish(tmp_path, "sensor", "1.1.0", random_bytes(64, 2), "latest")
    assert shop.run("abort").code == 0
    assert shop.spec == {"container": {"image": f"sensor@{good.digest}"}}
    assert (shop.rollout["version"], shop.rollout["aborted"]) == ("1.0.0", ["1.1.0"])


def test_dry_run_writes_nothing(shop: Shop) -> None:
    shop.put(container(rollout={"stages": STAGES}))
    shop.run("start", "--image", "sensor:1.1.0")
    before, writes = shop.cloud.object("shop"), shop.cloud.writes_of("shop")
    for command in (["start", "--image", "sensor:1.2.0"], ["pause"], ["approve"], ["abort"]):
        ended = shop.run(*command, "--dry-run")
        assert (ended.code, ended.output.splitlines()[-1]) == (0, "--dry-run: nothing was written")
        assert "+++ application shop (changed)" in ended.output
    assert (shop.cloud.object("shop"), shop.cloud.writes_of("shop")) == (before, writes)


# --- advance


def ago(**time: float) -> str:
    return timestamp(datetime.now(UTC) - timedelta(**time))


def report(shop: Shop, device: str, current: str, target: str = "1.1.0", **update: Any) -> None:
    """A device whose object says that it runs a version."""
    is_in_sync = current == target
    status: dict[str, Any] = {
        "current": current,
        "target": target,
        "reported": ago(),
        "conditions": [{"type": "InSync", "status": str(is_in_sync), "lastTransitionTime": ago()}],
        **({"update": {"version": target, "checksum": "ab" * 32, **update}} if update else {}),
    }
    shop.cloud.put("shop", device, spec={}, status={"firmware": status})


def test_advance_moves_when_all_is_there(shop: Shop) -> None:
    stages = [{"percent": 100, "approval": True, "after": "1h", "success": 60}, {"percent": 100}]
    shop.put(container("1.1.0", rollout={"stages": stages}), running(since=ago(minutes=59)))
    ended = shop.run("advance")
    assert ended.code == 0
    assert "stays at stage 1 of 2 (100 % of devices), waiting: after: the stage is not over until" in ended.output
    assert "approval: not given (rollout approve)" in ended.output
    assert shop.run("approve").code == 0
    shop.put(container("1.1.0", rollout={"stages": stages}), {**shop.rollout, "since": ago(minutes=61)})
    for device in ("a", "b", "c"):
        report(shop, device, "1.0.0")
    assert "success: none of the 3 devices drawn has a result yet" in shop.run("advance").output
    report(shop, "a", "1.1.0")
    report(shop, "b", "1.0.0", attempts=1)
    ended = shop.run("advance")
    assert ended.code == 1
    assert "1 of the 2 devices with a result are in sync (50.0 %), and 60 % are needed" in ended.output
    assert shop.rollout["stage"] == 0
    report(shop, "c", "1.1.0")
    ended = shop.run("advance")
    assert ended.code == 0
    assert ended.output.startswith("1.1.0: stage 2 of 2 (100 % of devices) begins; ")
    assert '+    "stage": 1' in ended.output
    assert (shop.rollout["stage"], "approved" in shop.rollout) == (1, False)
    assert shop.run("advance").output == "1.1.0: stage 2 of 2 (100 % of devices) is reached in full\n"


def test_advance_does_not_wait_for_devices_that_are_not_drawn(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": [{"percent": 0.0001, "success": 99}, {"percent": 100}]}), running())
    shop.cloud.put("shop", "a", spec={})
    ended = shop.run("advance")
    assert (ended.code, shop.rollout["stage"]) == (0, 1)
    assert "success: no device is drawn yet" in ended.output


@pytest.mark.parametrize(
    ("policy", "status", "code", "reason"),
    [
        ({"paused": True}, {}, 0, "paused: updates are paused"),
        (
            {"maxFailed": 2},
            {"failed": {"1.1.0": {"count": 2}}},
            1,
            "halted: 1.1.0 failed on 2 devices, and maxFailed is",
        ),
        ({}, {"aborted": ["1.1.0"]}, 1, "aborted: 1.1.0 was aborted"),
    ],
)
def test_advance_stays_while_updates_are_stopped(shop: Shop, policy: Any, status: Any, code: int, reason: str) -> None:
    shop.put(container("1.1.0", rollout={"stages": [{"percent": 1}, {"percent": 2}], **policy}), running(**status))
    ended = shop.run("advance")
    assert (ended.code, shop.rollout["stage"]) == (code, 0)
    assert reason in ended.output
    assert shop.cloud.writes_of("shop") == 0


def test_advance_records_a_version_that_came_without_start(shop: Shop, tmp_path: Path) -> None:
    shop.variables["FIRMWARE_REGISTRY"] = f"oci-layout:{tmp_path}"
    publish(tmp_path, "sensor", "1.0.0", random_bytes(64, 1), "latest")
    shop.put(container("latest", rollout={"stages": STAGES}))
    assert "1.0.0: stage 1 of 3 (1 % of devices) begins, because its rollout is new" in shop.run("advance").output
    shop.put(shop.spec, {**shop.rollout, "stage": 2})
    moved = publish(tmp_path, "sensor", "1.1.0", random_bytes(64, 2), "latest")
    assert shop.run("advance").code == 0
    assert (shop.rollout["version"], shop.rollout["stage"]) == ("1.1.0", 0)
    assert shop.rollout["image"] == f"sensor@{moved.digest}"
    assert shop.rollout["previous"]["version"] == "1.0.0"
    assert shop.run("abort").code == 0
    assert shop.run("show").output.splitlines()[1].endswith("version 1.0.0")


def test_advance_does_not_move_a_rollout_that_halts_meanwhile(shop: Shop) -> None:
    policy = {"stages": [{"percent": 1}, {"percent": 2}], "maxFailed": 1}
    shop.put(container("1.1.0", rollout=policy), running())

    def once(_: Request) -> Response:
        shop.cloud.write_answers.clear()
        shop.put(container("1.1.0", rollout=policy), running(failed={"1.1.0": {"count": 1, "devices": ["a"]}}))
        return Response(409)

    shop.cloud.write_answers[("shop",)] = once
    assert shop.run("advance").output == "1.1.0: another process changed the rollout meanwhile; nothing to do\n"
    assert shop.rollout["stage"] == 0
    assert shop.run("advance").code == 1


def test_advance_without_stages_has_nothing_to_do(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"percent": 7}))
    assert shop.run("advance").output == "1.1.0: there are no stages; 7 % of devices are let in\n"


def test_advance_needs_a_registry_if_the_version_is_not_recorded(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}))
    ended = shop.run("advance", FIRMWARE_REGISTRY=None)
    assert (ended.code, "set FIRMWARE_REGISTRY" in ended.errors) == (2, True)


def test_advance_does_not_guess_while_the_registry_is_gone(shop: Shop, tmp_path: Path) -> None:
    shop.put(container("1.1.0", rollout={"stages": [{"percent": 1}, {"percent": 2}]}), running())
    ended = shop.run("advance", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert (ended.code, shop.rollout["stage"]) == (2, 0)


def test_advance_cannot_read(shop: Shop) -> None:
    assert shop.run("advance").code == 2


def test_processes_that_advance_at_the_same_time_move_one_stage(shop: Shop) -> None:
    stages = [{"percent": percent} for percent in (1, 2, 3, 4, 5)]
    shop.put(container("1.1.0", rollout={"stages": stages}), running())
    both = threading.Barrier(2, timeout=PATIENCE)

    def together(_: Request) -> Response:
        """Let no process write before both have read."""
        both.wait()
        return Response(200)

    shop.cloud.write_answers[("shop",)] = together
    processes = [shop.start_process("advance") for _ in range(2)]
    outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert shop.rollout["stage"] == 1
    said = sorted(output.splitlines()[0] for output, _ in outputs)
    assert said == [
        "1.1.0: another process changed the rollout meanwhile; nothing to do",
        "1.1.0: stage 2 of 5 (2 % of devices) begins; the stage asks for nothing more",
    ]


def test_watch_moves_until_the_rollout_is_complete(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": [{"percent": 1}, {"percent": 2}, {"percent": 100}]}))
    process = shop.start_process("advance", "--watch", "--interval", "1")
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    said = [line for line in output.splitlines() if line.startswith("1.1.0: ")]
    assert [line.split(" (")[0] for line in said] == [
        "1.1.0: stage 1 of 3",
        "1.1.0: stage 2 of 3",
        "1.1.0: stage 3 of 3",
        "1.1.0: stage 3 of 3",
    ]
    assert said[-1].endswith("is reached in full")


def test_watch_ends_when_the_rollout_halts(shop: Shop) -> None:
    policy = {"stages": STAGES, "maxFailed": 1}
    shop.put(container("1.1.0", rollout=policy), running())
    process = shop.start_process("advance", "--watch", "--interval", "1")
    assert process.stdout is not None
    assert "waiting" in process.stdout.readline()
    shop.put(container("1.1.0", rollout=policy), running(failed={"1.1.0": {"count": 1, "devices": ["a"]}}))
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "halted: 1.1.0 failed on 1 device, and maxFailed is 1" in output) == (1, True)


def test_watch_goes_on_when_the_cloud_is_gone_for_a_while(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    process = shop.start_process("advance", "--watch", "--interval", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    shop.cloud.registry_answers[("shop",)] = lambda _: Response(503)
    assert "trying again in 1 s" in process.stderr.readline()
    shop.cloud.registry_answers.clear()
    shop.put(container("1.1.0"), running())
    output, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (0, "1.1.0: there are no stages; 100 % of devices are let in\n")


def test_a_signal_ends_watch(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running())
    process = shop.start_process("advance", "--watch")
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


# --- show


def test_show_tells_all(shop: Shop) -> None:
    stages = [{"percent": 100, "approval": True, "success": 90}, {"percent": 100, "after": "2h"}]
    failed = {"1.1.0": {"count": 3, "devices": ["b", "c"]}}
    shop.put(container(rollout={"stages": stages, "maxFailed": 5, "labels": {"ring": "a"}}), {"failed": failed})
    shop.run("start", "--image", "sensor:1.1.0")
    report(shop, "a", "1.1.0")
    report(shop, "b", "1.0.0", attempts=1)
    for device in ("a", "b"):
        shop.cloud.put("shop", device, labels={"ring": "a"}, spec={})
    ended = shop.run("show")
    assert (ended.code, ended.errors) == (0, "")
    rows = [line.split(maxsplit=1) for line in ended.output.splitlines() if line[0] != " "]
    told = {name: text for name, text in rows if name != "next"}
    assert told["application"] == "shop"
    assert told["firmware"] == "sensor:1.1.0, version 1.1.0"
    assert told["rollout"].startswith("failing: approval: not given")
    assert told["stages"].startswith("> 100 %  approval, success 90 %  since ")
    assert told["labels"] == "ring=a"
    assert told["maxFailed"] == "5"
    assert told["failed"] == "1.1.0: 3 devices (b, c and 1 more)"
    assert told["previous"] == "sensor:1.0.0, version 1.0.0"
    assert told["last"].startswith("start by service, ")
    assert "2 of 2 devices drawn; of these 1 in-sync, 1 rolled-back, 0 failed, success 50 %" in told["devices"]


def test_show_as_json(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}), running(approved=True))
    report(shop, "a", "1.1.0")
    told = json.loads(shop.run("show", "--json").output)
    assert (told["application"], told["version"], told["standing"]) == ("shop", "1.1.0", "ready")
    assert told["requirements"] == [{"key": "approval", "met": True, "message": "approval: given"}]
    assert told["stages"] == STAGES
    assert told["devices"]["devices"] == 1
    fleet = CliRunner().invoke(main, ["fleet", "--application", "shop", "--json"], env={**shop.environment})
    assert told["devices"] == json.loads(fleet.stdout)["rollout"], "two commands tell the same numbers differently"


def test_show_without_a_version(shop: Shop, tmp_path: Path) -> None:
    shop.put(container("1.1.0", rollout={"stages": STAGES}))
    ended = shop.run("show", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}")
    assert ended.code == 0
    assert "firmware    sensor:1.1.0, version unknown\nproblem     " in ended.output


def test_show_cannot_read(shop: Shop) -> None:
    assert shop.run("show").code == 2


# --- Devices


def test_start_begins_with_selected_devices(shop: Shop) -> None:
    shop.put(container(rollout={"labels": {"ring": "a"}, "percent": 50}))
    for device, version in (("a", "1.0.0"), ("b", "0.9"), ("c", "1.0.0")):
        report(shop, device, version, "1.0.0")
    shop.cloud.put("shop", "c", spec={"firmware": {"file": {"name": "own"}}})
    ended = shop.run("start", "--image", "sensor:1.1.0", "--from-version", "1.0.0", "--dry-run")
    assert "1 device would be labelled fleet-rollout=1.1.0 (running 1.0.0): a" in ended.output
    assert "left out, because they name their own firmware: c" in ended.errors
    assert shop.cloud.object("shop", "a")["metadata"]["labels"] == {}
    ended = shop.run("start", "--image", "sensor:1.1.0", "--from-version", "1.0.0", "--from-version", "1.0.1")
    assert ended.code == 0
    labels = {device: shop.cloud.object("shop", device)["metadata"]["labels"] for device in "abc"}
    assert labels == {"a": {"fleet-rollout": "1.1.0"}, "b": {}, "c": {}}
    assert shop.spec["rollout"] == {"labels": {"ring": "a", "fleet-rollout": "1.1.0"}, "percent": 50}
    writes = shop.cloud.writes_of("shop", "a")
    assert shop.run("start", "--image", "sensor:1.1.0", "--from-version", "1.0.0").code == 0
    assert shop.cloud.writes_of("shop", "a") == writes
    assert "rollout start selected them" in shop.run("show").output
    assert shop.run("start", "--image", "sensor:1.1.0").code == 0
    assert shop.spec["rollout"] == {"labels": {"ring": "a"}, "percent": 50}


def test_start_begins_with_the_broken_ones(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    report(shop, "bad", "1.0.0", attempts=1)
    report(shop, "good", "1.1.0")
    assert shop.run("start", "--image", "sensor:1.2.0", "--state", "rolled-back", "--state", "failed").code == 0
    assert shop.cloud.object("shop", "bad")["metadata"]["labels"] == {"fleet-rollout": "1.2.0"}
    assert shop.cloud.object("shop", "good")["metadata"]["labels"] == {}
    refusal = shop.run("start", "--image", "sensor:1.2.0", "--state", "stalled").refusal
    assert refusal == "no device is selected: stalled"


def test_a_device_that_changes_meanwhile_keeps_that_change(shop: Shop) -> None:
    shop.put(container())
    report(shop, "a", "1.0.0", "1.0.0")

    def once(_: Request) -> Response:
        shop.cloud.write_answers.clear()
        shop.cloud.put("shop", "a", labels={"site": "oslo"}, spec={})
        return Response(409)

    shop.cloud.write_answers[("shop", "a")] = once
    assert shop.run("start", "--image", "sensor:1.1.0", "--state", "in-sync").code == 0
    assert shop.cloud.object("shop", "a")["metadata"]["labels"] == {"site": "oslo", "fleet-rollout": "1.1.0"}


def test_retry_is_for_the_devices_that_failed(shop: Shop) -> None:
    shop.put(container("1.1.0", rollout={"maxFailed": 1}), running(failed={"1.1.0": {"count": 1}}))
    report(shop, "bad", "1.0.0", attempts=1)
    report(shop, "good", "1.1.0")
    assert "1 device would try again" in shop.run("retry", "--failed", "--dry-run").output
    ended = shop.run("retry", "--failed")
    assert (ended.code, "1 device will try again" in ended.output) == (0, True)
    assert '+    "retry": "' in ended.output
    assert ended.errors == "warning: 1.1.0 is halted: its devices get it only after rollout resume\n"
    assert shop.cloud.object("shop", "good")["spec"] == {}
    first = shop.cloud.object("shop", "bad")["spec"]["firmware"]["retry"]
    assert datetime.fromisoformat(first)
    ended = shop.run("retry", "--device", "good", "--device", "bad")
    assert "warning: good is in-sync: there is nothing to retry" in ended.errors
    assert shop.run("retry", "--device", "none").code == 1
    assert shop.run("retry").code == 2


def test_retry_leaves_a_device_whose_section_is_malformed(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    report(shop, "bad", "1.0.0", attempts=1)
    shop.cloud.put("shop", "bad", spec={"firmware": {"retri": "1"}})
    ended = shop.run("retry", "--failed")
    assert ended.refusal == "none of the devices could be changed"
    assert "bad: the device's spec.firmware contains retri (did you mean retry?)" in ended.errors


def test_a_retry_that_breaks_off_midway_tells_whom_it_changed(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    for name in ("first", "second"):
        report(shop, name, "1.0.0", attempts=1)
    shop.cloud.write_answers[("shop", "second")] = lambda _: Response(503)
    with sinking() as sink:
        shop.variables["K_SINK"] = sink.url()
        ended = shop.run("retry", "--failed")
        (event,) = sink.received(1)
    assert ended.code == 1
    assert "1 device will try again" in ended.output
    assert "503" in ended.errors
    assert event.data["change"]["devices"] == ["first"]


def test_devices_are_left_alone_once_none_can_be_changed(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    for number in range(100):
        report(shop, f"d{number:03}", "1.0.0", attempts=1)
    shop.cloud.roles["shop"] = "reader"
    ended = shop.run("retry", "--failed")
    assert ended.code == 1
    assert "no device can be changed: device registry: 404 for a write of device d009" in ended.refusal
    assert "our role is not manager or admin" in ended.refusal
    assert sum(len(names) == 2 for names in shop.cloud.writes) <= 18


def test_many_devices_are_changed_at_the_same_time(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    names = [f"d{number:03}" for number in range(150)]
    for name in names:
        report(shop, name, "1.0.0", attempts=1)
    ended = shop.run("retry", "--failed")
    assert (ended.code, "150 devices will try again" in ended.output) == (0, True)
    assert len({shop.cloud.object("shop", name)["spec"]["firmware"]["retry"] for name in names}) == 1


def test_retry_without_failures(shop: Shop) -> None:
    shop.put(container("1.1.0"))
    report(shop, "good", "1.1.0")
    assert shop.run("retry", "--failed").output == "nothing to change: no device rolled back or gave up\n"


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


# --- Ranges, hardware, requirements and downgrades --------------------------------------------------------------------


RANGE = {"container": {"image": "sensor", "version": "1.x", "platform": "linux/arm"}}


def test_the_target_of_a_range_is_its_highest_version(shop: Shop, tmp_path: Path) -> None:
    for version in ("1.0.0", "1.9.0", "2.0.0"):
        publish(tmp_path, "sensor", version, random_bytes(2048, version))
    publish(tmp_path, "sensor", "1.10.0", random_bytes(2048), hardware="rev-a,rev-b", requires=">=1.9")
    there = f"oci-layout:{tmp_path}"
    shop.put({**RANGE, "rollout": {"stages": STAGES}})
    shown = shop.run("show", FIRMWARE_REGISTRY=there).output
    for row in ("firmware    sensor 1.x, version 1.10.0", "hardware    rev-a, rev-b", "requires    >=1.9"):
        assert row in shown.splitlines()
    told = json.loads(shop.run("show", "--json", FIRMWARE_REGISTRY=there).output)
    assert (told["version"], told["hardware"], told["requires"]) == ("1.10.0", ["rev-a", "rev-b"], ">=1.9")
    assert shop.run("advance", FIRMWARE_REGISTRY=there).code == 0
    assert (shop.rollout["version"], shop.rollout["stage"]) == ("1.10.0", 0)
    assert shop.rollout["image"].startswith("sensor@sha256:")


def test_a_range_that_nothing_is_in_has_no_target(shop: Shop, tmp_path: Path) -> None:
    shop.put({"container": {"image": "sensor", "version": ">=3"}})
    ended = shop.run("show")
    assert "problem     no tag is a semantic version in >=3" in ended.output.splitlines()
    publish(tmp_path, "sensor", "0.9.0", random_bytes(2048), tag="3.1.0")
    shown = shop.run("show", FIRMWARE_REGISTRY=f"oci-layout:{tmp_path}").output
    assert "tag 3.1.0 names a firmware of version 0.9.0" in shown


def test_an_image_takes_the_place_of_a_range_and_abort_pins_what_it_named(shop: Shop) -> None:
    shop.put(RANGE)
    assert shop.run("start", "--image", "sensor:1.1.0").code == 0
    assert shop.spec == {"container": {"image": "sensor:1.1.0", "platform": "linux/arm"}}
    previous = shop.rollout["previous"]
    assert previous["version"] == "1.2.0"
    assert previous["container"]["image"].startswith("sensor@sha256:")
    assert "version" not in previous["container"]
    assert shop.run("abort").code == 0
    assert shop.spec == {"container": previous["container"]}


def test_a_higher_version_in_a_range_can_be_aborted(shop: Shop, tmp_path: Path) -> None:
    publish(tmp_path, "sensor", "1.0.0", random_bytes(2048, "1.0.0"))
    there = f"oci-layout:{tmp_path}"
    shop.put({**RANGE, "rollout": {"stages": STAGES}, "downgrades": "refuse"})
    assert shop.run("advance", FIRMWARE_REGISTRY=there).code == 0
    image = shop.rollout["image"]
    publish(tmp_path, "sensor", "1.1.0", random_bytes(2048, "1.1.0"))
    ended = shop.run("abort", FIRMWARE_REGISTRY=there)
    assert ended.code == 0, ended.errors
    assert shop.spec["container"] == {"image": image, "platform": "linux/arm"}
    assert shop.rollout["aborted"] == ["1.1.0"]
    assert "devices that run 1.1.0 stay there, because downgrades is refuse" in ended.output


def test_start_tells_which_devices_do_not_get_the_firmware(shop: Shop, tmp_path: Path) -> None:
    publish(tmp_path, "sensor", "1.1.0", random_bytes(2048, "1.1.0"), hardware="rev-a,rev-b", requires=">=1.0")
    publish(tmp_path, "sensor", "1.2.0", random_bytes(2048, "1.2.0"), requires="newer")
    publish(tmp_path, "sensor", "blue", random_bytes(2048, "blue"))
    there = f"oci-layout:{tmp_path}"
    shop.put()
    ended = shop.run("start", "--image", "sensor:1.1.0", FIRMWARE_REGISTRY=there)
    assert ended.code == 0
    assert {"hardware   rev-a, rev-b", "requires   >=1.0"} <= set(ended.output.splitlines())
    assert "warning: it is built for rev-a or rev-b, and the application names none" in ended.errors
    assert "warning: devices that run another version than >=1.0 do not get it" in ended.errors
    shop.put({"hardware": "rev-b", "downgrades": "refuse"})
    assert "built for" not in shop.run("start", "--image", "sensor:1.1.0", FIRMWARE_REGISTRY=there).errors
    errors = shop.run("start", "--image", "sensor:blue", FIRMWARE_REGISTRY=there).errors
    assert "downgrades is refuse, and blue is no semantic version: devices do not get it" in errors
    refused = shop.run("start", "--image", "sensor:1.2.0", FIRMWARE_REGISTRY=there)
    assert (refused.code, "annotation io.drogue.firmware.requires contains" in refused.refusal) == (1, True)
