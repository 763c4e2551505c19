"""`build`: what it reads in the device registry, what it creates in a cluster, and what it says of runs."""

import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from click.testing import CliRunner
from lightkube.config.kubeconfig import KubeConfig

from fleet_fn.builds.cluster import Cluster
from fleet_fn.builds.labels import label_value
from fleet_fn.cli.main import main
from fleet_fn.errors import TransientError
from tests.support.drogue import TOKEN, USER, Drogue
from tests.support.function import ROOT
from tests.support.http import closed_port
from tests.support.kubernetes import (
    KUBE_APISERVER,
    Api,
    FakeApi,
    children,
    condition,
    fake_api,
    put_namespace,
    put_pipeline,
    real_api,
    runs,
    set_status,
)
from tests.support.tekton import can_mount, load

PIPELINE = load(ROOT / "knative" / "tekton" / "pipeline.yaml")
BUILD: dict[str, Any] = {
    "source": {"git": {"uri": "https://git.example.com/acme/sensor"}},
    "image": "registry.example.com/acme/builder:1",
    "artifact": {"path": "target/firmware.bin"},
}
DETAILED = {
    **BUILD,
    "source": {"git": {"uri": "git@git.example.com:acme/sensor.git", "rev": "v1.2", "project": "boards/nrf 52"}},
    "args": ["--release", 'a "b" ; `c` \\ é', ""],
    "env": [{"name": "FEATURES", "value": "a b\nc"}, {"name": "EMPTY", "value": ""}],
    "timeout": "20m",
}
RUN = r"firmware-[a-z0-9]{5}"


#: `make peers` builds the real one; elsewhere it need not be there.
HAS_REAL_API = all(map(shutil.which, (KUBE_APISERVER, "etcd")))


@pytest.fixture(scope="module", params=["fake", "real"] if HAS_REAL_API else ["fake"])
def api(request: pytest.FixtureRequest) -> Iterator[Api]:
    if request.param == "fake":
        with fake_api() as fake:
            yield fake
    else:
        with real_api() as real:
            yield real


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own, with the Pipeline."""
    name = "test-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    put_namespace(api, name)
    put_pipeline(api, name, PIPELINE)
    return name


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str

    @property
    def refusal(self) -> str:
        """Why it failed, in one line."""
        assert self.code == 1, self
        *_, line = self.errors.splitlines()
        assert line.startswith("build: ")
        assert line.isprintable()
        return line.removeprefix("build: ")


@dataclass
class Builder:
    """Calls the command: here, and in a process of its own if a test watches that."""

    environment: dict[str, str]
    arguments: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str, **environment: str) -> Ended:
        unset: dict[str, str | None] = dict.fromkeys(os.environ)
        runner = CliRunner(env=unset | self.environment | environment)
        ended = runner.invoke(main, ["build", *arguments], catch_exceptions=False)
        assert TOKEN not in ended.output
        return Ended(ended.exit_code, ended.stdout, ended.stderr)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fleet_fn", "build", *arguments]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Drogue]:
    with Drogue() as drogue:
        yield drogue


@pytest.fixture
def builder(cloud: Drogue, tmp_path: Path) -> Builder:
    cloud.put_image("acme", None, "sensor:1.2.3", build=BUILD)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "DROGUE_API_URL": cloud.url,
        "DROGUE_USER": USER,
        "DROGUE_TOKEN": TOKEN,
        "FIRMWARE_REGISTRY": "registry.example.com/{application}/",
        "COLUMNS": "200",
    }
    return Builder(environment)


@pytest.fixture
def in_cluster(builder: Builder, api: Api, namespace: str, tmp_path: Path) -> Builder:
    builder.environment["KUBECONFIG"] = str(api.kubeconfig(tmp_path / "kubeconfig", namespace=namespace))
    return builder


def params(run: dict[str, Any]) -> dict[str, Any]:
    return {param["name"]: param["value"] for param in run["spec"]["params"]}


# --- What is created --------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_run_and_needs_no_cluster(builder: Builder) -> None:
    ended = builder("--application", "acme", "--dry-run")
    assert (ended.code, ended.errors) == (0, "")
    assert yaml.safe_load(ended.output) == {
        "apiVersion": "tekton.dev/v1",
        "kind": "PipelineRun",
        "metadata": {
            "generateName": "firmware-",
            "labels": {
                "app.kubernetes.io/part-of": "fleet-function",
                "app.kubernetes.io/managed-by": "fleet-fn",
                "io.drogue.firmware/application": "acme",
            },
            "annotations": {"io.drogue.firmware/application": "acme"},
        },
        "spec": {
            "pipelineRef": {"name": "oci-firmware"},
            "params": [
                {"name": "GIT_REPO", "value": "https://git.example.com/acme/sensor"},
                {"name": "BUILDER_IMAGE", "value": "registry.example.com/acme/builder:1"},
                {"name": "ARTIFACT_PATH", "value": "target/firmware.bin"},
                {"name": "REGISTRY", "value": "registry.example.com/acme"},
                {"name": "IMAGE", "value": "sensor"},
                {
                    "name": "BUILD_COMMAND",
                    "value": 'builder=$PWD/build.sh && cd "$PROJECT_DIR" && exec "$builder" "$@"',
                },
            ],
            "workspaces": [
                {
                    "name": "build",
                    "volumeClaimTemplate": {
                        "spec": {
                            "accessModes": ["ReadWriteOnce"],
                            "resources": {"requests": {"storage": "2Gi"}},
                        }
                    },
                }
            ],
            "taskRunTemplate": {
                "podTemplate": {"automountServiceAccountToken": False, "securityContext": {"fsGroup": 65532}}
            },
            "timeouts": {"pipeline": "1h0m0s"},
        },
    }


def test_everything_of_a_build_is_data(builder: Builder, cloud: Drogue) -> None:
    cloud.put_image("acme", None, "boards/sensor", build=DETAILED)
    ended = builder("--application", "acme", "--dry-run", "--version", "2.0")
    run = yaml.safe_load(ended.output)
    assert params(run) == {
        "GIT_REPO": "git@git.example.com:acme/sensor.git",
        "GIT_REVISION": "v1.2",
        "VERSION": "2.0",
        "PROJECT_PATH": "boards/nrf 52",
        "BUILDER_IMAGE": "registry.example.com/acme/builder:1",
        "ARTIFACT_PATH": "target/firmware.bin",
        "REGISTRY": "registry.example.com/acme/boards",
        "IMAGE": "sensor",
        "BUILD_COMMAND": 'builder=$PWD/build.sh && cd "$PROJECT_DIR" && exec "$builder" "$@"',
        "ARGS": ["--release", 'a "b" ; `c` \\ é', ""],
        "ENV": ["FEATURES=a b\nc", "EMPTY="],
    }
    assert run["spec"]["timeouts"] == {"pipeline": "20m"}
    types = {param["name"]: param.get("type", "string") for param in PIPELINE["spec"]["params"]}
    for name, value in params(run).items():
        assert types[name] == ("array" if isinstance(value, list) else "string")


def test_secrets_and_parameters_are_named(builder: Builder) -> None:
    options = [
        *("--registry-secret", "registry", "--git-secret", "repository", "--ssh-secret", "keys"),
        *("--signing-secret", "signing", "--service-account", "builder", "--storage", "500Mi", "-n", "firmware"),
        *("--param", "HARDWARE=rev-a,rev-b", "--param", "LATEST=false", "--param", 'BUILD_COMMAND=make $$ "$(x)"'),
    ]
    run = yaml.safe_load(
        builder("--application", "acme", "--dry-run", *options, FIRMWARE_REGISTRY_INSECURE="true").output
    )
    assert run["metadata"]["namespace"] == "firmware"
    workspaces = {workspace.pop("name"): workspace for workspace in run["spec"]["workspaces"]}
    volume = workspaces.pop("build")["volumeClaimTemplate"]["spec"]
    assert volume["resources"] == {"requests": {"storage": "500Mi"}}
    file = {"key": ".dockerconfigjson", "path": "config.json"}
    assert workspaces == {
        "dockerconfig": {"secret": {"secretName": "registry", "items": [file]}},
        "basic-auth": {"secret": {"secretName": "repository"}},
        "ssh-directory": {"secret": {"secretName": "keys"}},
        "signing-key": {"secret": {"secretName": "signing"}},
    }
    assert set(workspaces) < {workspace["name"] for workspace in PIPELINE["spec"]["workspaces"]}
    assert run["spec"]["taskRunTemplate"]["serviceAccountName"] == "builder"
    given = params(run)
    assert {name: given[name] for name in ("HARDWARE", "LATEST", "BUILD_COMMAND", "INSECURE")} == {
        "HARDWARE": "rev-a,rev-b",
        "LATEST": "false",
        "BUILD_COMMAND": 'make $$ "$(x)"',
        "INSECURE": "true",
    }


def test_a_devices_own_source_wins_as_a_whole(builder: Builder, cloud: Drogue) -> None:
    cloud.put("acme", "plain", spec={})
    cloud.put("acme", "own", spec={"firmware": {"oci": {"image": "other", "build": DETAILED}}})
    cloud.put_image("acme", "unbuilt", "other")
    plain = yaml.safe_load(builder("--application", "acme", "--device", "plain", "--dry-run").output)
    own = yaml.safe_load(builder("--application", "acme", "--device", "own", "--dry-run").output)
    assert (params(plain)["IMAGE"], params(own)["IMAGE"]) == ("sensor", "other")
    assert own["metadata"]["labels"]["io.drogue.firmware/device"] == "own"
    assert own["metadata"]["annotations"]["io.drogue.firmware/device"] == "own"
    refused = builder("--application", "acme", "--device", "unbuilt", "--dry-run")
    assert refused.refusal.startswith("the device's spec.firmware.container.build is not set")


def test_a_registry_prefix_that_ends_in_a_name_is_kept(builder: Builder) -> None:
    run = yaml.safe_load(builder("--application", "acme", "--dry-run", FIRMWARE_REGISTRY="localhost:5000").output)
    assert (params(run)["REGISTRY"], params(run)["IMAGE"]) == ("localhost:5000", "sensor")


def test_a_trigger_is_printed_for_a_forge(builder: Builder) -> None:
    ended = builder("--application", "acme", "--trigger", "gitlab", "--on", "tag", "--webhook-secret", "hook")
    assert (ended.code, ended.errors) == (0, "")
    template, trigger = yaml.safe_load_all(ended.output)
    assert (template["kind"], trigger["kind"]) == ("TriggerTemplate", "Trigger")
    assert trigger["metadata"]["name"] == "firmware-acme-gitlab"
    (run,) = template["spec"]["resourcetemplates"]
    assert params(run).pop("GIT_REVISION") == "$(tt.params.revision)"
    told = str(trigger["spec"]["interceptors"])
    assert "hook" in told
    assert "refs/tags/" in told
    assert "refs/heads/" not in told


def test_what_a_trigger_names_is_not_a_reference_of_yaml(builder: Builder) -> None:
    assert "&id" not in builder("--application", "acme", "--trigger", "github").output


def test_a_revision_that_no_push_moves_has_no_trigger(builder: Builder, cloud: Drogue) -> None:
    source = {"git": {"uri": "https://git.example.com/acme/sensor", "rev": "refs/tags/v1"}}
    cloud.put_image("acme", None, "sensor", build={**BUILD, "source": source})
    refused = builder("--application", "acme", "--trigger", "github")
    assert refused.refusal == "source.git.rev is refs/tags/v1, which no push moves; a trigger needs a branch"


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_build_with_an_unknown_key_is_refused(builder: Builder, cloud: Drogue) -> None:
    cloud.put_image("acme", None, "sensor", build={**BUILD, "arg": []})
    assert builder("--application", "acme", "--dry-run").refusal == (
        "the application's spec.firmware.container.build contains arg (did you mean args?); it may contain source, "
        "image, args, env, artifact and timeout"
    )


@pytest.mark.parametrize(
    ("firmware", "reason"),
    [
        (None, "the application's spec.firmware names no firmware"),
        ({"file": {"name": "x"}}, "the application's spec.firmware names no container"),
        ({"container": {"image": "x"}}, "the application's spec.firmware.container.build is not set"),
        ({"container": {"image": "x", "builds": {}}}, "the application's spec.firmware.container contains builds (did"),
    ],
    ids=["none", "file", "no build", "misspelt"],
)
def test_firmware_that_describes_no_build_is_refused(
    builder: Builder, cloud: Drogue, firmware: Any, reason: str
) -> None:
    cloud.put("acme", spec={} if firmware is None else {"firmware": firmware})
    assert builder("--application", "acme", "--dry-run").refusal.startswith(reason)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Name the application"),
        (["--device", "x"], "--device needs --application"),
        (["--list", "--dry-run"], "--list and --dry-run exclude each other"),
        (["--watch", "x", "--application", "acme"], "takes no --application"),
        (["--application", "acme", "--trigger", "github", "--dry-run"], "--trigger and --dry-run exclude each other"),
        (["--application", "acme", "--trigger", "github", "--version", "1"], "--trigger takes no --version"),
        (["--application", "acme", "--on", "tag"], "--on and --webhook-secret are for --trigger"),
        (["--watch", "a/../b"], "is no name of a Kubernetes object"),
        (["--namespace", "x?y", "--list"], "is no name of a Kubernetes object"),
        (["--application", "acme", "--version", "latest"], "can be no version"),
        (["--application", "acme", "--version", "1/2"], "can be no version"),
        (["--application", "acme", "--param", "HARDWAR=x"], "did you mean HARDWARE?"),
        (["--application", "acme", "--param", "GIT_REPO=x"], "'GIT_REPO' is none of BUILD_COMMAND"),
        (["--application", "acme", "--param", "HARDWARE=$(x)"], "Tekton and Kubernetes replace"),
        (["--application", "acme", "--storage", "much"], "is no quantity"),
    ],
)
def test_options_that_make_no_sense_are_wrong_usage(builder: Builder, arguments: list[str], reason: str) -> None:
    ended = builder(*arguments)
    assert ended.code == 2
    assert reason in ended.errors


@pytest.mark.parametrize("registry", ["", "oci-layout:/tmp"])
def test_a_registry_that_a_pipeline_cannot_publish_to_is_refused(builder: Builder, registry: str) -> None:
    refused = builder("--application", "acme", "--dry-run", FIRMWARE_REGISTRY=registry)
    assert refused.code == 2
    assert refused.errors.startswith("build: FIRMWARE_REGISTRY is ")


def test_an_application_that_is_not_there_names_the_device_registry(builder: Builder) -> None:
    assert builder("--application", "nowhere", "--dry-run").refusal.startswith(
        "device registry: 404 for application nowhere"
    )


# --- In a cluster -----------------------------------------------------------------------------------------------------


def test_a_run_is_created_as_it_is_printed(in_cluster: Builder, api: Api, namespace: str, cloud: Drogue) -> None:
    cloud.put_image("acme", None, "sensor", build=DETAILED)
    ended = in_cluster("--application", "acme")
    assert ended.code == 0, ended.errors
    (created,) = runs(api, namespace)
    name = created["metadata"]["name"]
    assert re.fullmatch(RUN, name)
    assert ended.output.splitlines() == [
        f"created {name} in the namespace {namespace}",
        f"follow it with: fleet-fn build --watch {name} --namespace {namespace}",
    ]
    assert ended.errors == ""
    printed = yaml.safe_load(in_cluster("--application", "acme", "--dry-run").output)
    volume = created["spec"]["workspaces"][0]["volumeClaimTemplate"]
    volume.pop("metadata", None), volume.pop("status", None)
    assert created["spec"] == printed["spec"]
    assert printed["metadata"].items() <= created["metadata"].items()


def test_a_tag_that_devices_stay_at_is_told(in_cluster: Builder) -> None:
    assert in_cluster("--application", "acme").errors == (
        "devices keep sensor:1.2.3 until container.image names the version that is built\n"
    )
    assert in_cluster("--application", "acme", "--version", "1.2.3").errors == ""


@pytest.mark.parametrize("name", ["a" * 64, "Ünïcode", "-x-", "a b", "sha256-" + "0" * 40])
def test_a_name_that_is_no_label_is_found_all_the_same(
    in_cluster: Builder, api: Api, namespace: str, cloud: Drogue, name: str
) -> None:
    cloud.put("acme", name, spec={"firmware": {"container": {"image": "sensor", "build": BUILD}}})
    assert in_cluster("--application", "acme", f"--device={name}").code == 0
    (created,) = runs(api, namespace)
    assert created["metadata"]["labels"]["io.drogue.firmware/device"] == label_value(name) != name
    assert created["metadata"]["annotations"]["io.drogue.firmware/device"] == name
    assert created["metadata"]["name"] in in_cluster("--list", "--application", "acme", f"--device={name}").output
    assert "no builds" in in_cluster("--list", "--application", "acme", f"--device={label_value(name)}").output


RESULTS = {
    "version": "1.3",
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "reference": "registry.example.com/acme/sensor:1.3",
    "digest": "sha256:" + "a" * 64,
}
STARTED = "2026-11-29T12:00:00Z"
ENDED = "2026-11-29T12:01:02Z"
SUCCEEDED = condition(
    "True",
    "Succeeded",
    "Tasks Completed: 3 (Failed: 0, Cancelled 0), Skipped: 0",
    startTime=STARTED,
    completionTime=ENDED,
    results=[{"name": name, "value": value} for name, value in RESULTS.items()],
)
FAILED = condition(
    "False",
    "Failed",
    "Tasks Completed: 2 (Failed: 1, Cancelled 0), Skipped: 1\x1b[2J",
    startTime=STARTED,
    completionTime=ENDED,
    childReferences=children("clone", "build"),
)
STATES: dict[str, tuple[dict[str, Any], str, str]] = {
    "pending": ({}, "-", ""),
    "running": (
        condition("Unknown", "Running", "x", startTime=STARTED, childReferences=children("build", "clone")),
        "",
        "build registry.example.com/acme/sensor",
    ),
    "succeeded": (SUCCEEDED, "1m02s", f"{RESULTS['reference']}@{RESULTS['digest']}"),
    "failed": (FAILED, "1m02s", "Failed: Tasks Completed: 2 (Failed: 1, Cancelled 0), Skipped: 1\ufffd[2J"),
    "cancelled": (
        condition("False", "Cancelled", "by someone", startTime=STARTED, completionTime=ENDED),
        "1m02s",
        "Canc",
    ),
    "timed out": (
        condition("False", "PipelineRunTimeout", "too long", startTime=STARTED, completionTime=ENDED),
        "1m02s",
        "PipelineRunTimeout: too long",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_a_list_shows_each_runs_state(in_cluster: Builder, api: Api, namespace: str, state: str) -> None:
    status, took, details = STATES[state]
    in_cluster("--application", "acme")
    name = runs(api, namespace)[0]["metadata"]["name"]
    if status:
        set_status(api, namespace, name, status)
    ended = in_cluster("--list")
    assert (ended.code, ended.errors) == (0, "")
    header, row = ended.output.splitlines()
    assert header.split() == ["RUN", "STATE", "AGE", "TOOK", "FOR", "REVISION", "DETAILS"]
    assert row.startswith(f"{name}  {state} ")
    assert took in row
    assert " acme " in row
    assert details in row
    assert ("0123456789ab  " in row) == (state == "succeeded")


def test_a_list_has_the_runs_of_all_of_an_application_or_of_a_device(
    in_cluster: Builder, api: Api, namespace: str, cloud: Drogue
) -> None:
    assert in_cluster("--list").output == f"no builds in the namespace {namespace}\n"
    cloud.put_image("other", None, "sensor", build=BUILD)
    cloud.put("acme", "device1", spec={})
    for arguments in (["acme"], ["acme", "--device", "device1"], ["other"]):
        in_cluster("--application", *arguments)
    by_hand = load(ROOT / "knative" / "tekton" / "pipeline-run.example.yaml")
    api.request("POST", f"/apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns", by_hand)

    def listed(*arguments: str) -> list[str]:
        _, *rows = in_cluster("--list", *arguments).output.splitlines()
        return sorted(row.split()[4] for row in rows)

    assert listed() == ["-", "acme", "acme/device1", "other"]
    assert listed("--application", "acme") == ["acme", "acme/device1"]
    assert listed("--application", "acme", "--device", "device1") == ["acme/device1"]


def test_a_list_of_more_than_a_page_is_whole_and_newest_first(in_cluster: Builder, api: Api, namespace: str) -> None:
    made = {"apiVersion": "tekton.dev/v1", "kind": "PipelineRun", "spec": {"pipelineRef": {"name": "x"}}}
    labels = {"app.kubernetes.io/part-of": "fleet-function"}
    for number in range(205):
        metadata = {"name": f"run-{number:03}", "labels": labels}
        api.request("POST", f"/apis/tekton.dev/v1/namespaces/{namespace}/pipelineruns", made | {"metadata": metadata})
    _, *rows = in_cluster("--list").output.splitlines()
    names = [row.split()[0] for row in rows]
    assert sorted(names) == [f"run-{number:03}" for number in range(205)]
    created = {run["metadata"]["name"]: run["metadata"]["creationTimestamp"] for run in runs(api, namespace)}
    assert [created[name] for name in names] == sorted(created.values(), reverse=True)


def test_a_run_is_followed_to_its_end(in_cluster: Builder, api: Api, namespace: str) -> None:
    command = in_cluster.command("--application", "acme", "--watch")
    with subprocess.Popen(command, env=in_cluster.environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        created = process.stdout.readline()
        name = created.split()[1]
        assert "pending" in process.stdout.readline()
        for task in ("clone", "build"):
            set_status(
                api,
                namespace,
                name,
                condition("Unknown", "Running", "not yet", startTime=STARTED, childReferences=children(task)),
            )
            assert process.stdout.readline().split()[1:] == ["running", task, "not", "yet"]
        set_status(api, namespace, name, SUCCEEDED)
        end = dict(line.split(maxsplit=1) for line in process.stdout.read().splitlines())
    assert process.returncode == 0
    assert end == {
        "run": name,
        "state": "succeeded",
        "took": "1m02s",
        "revision": RESULTS["commit"],
        "version": "1.3",
        "firmware": f"{RESULTS['reference']}@{RESULTS['digest']}",
    }


def test_a_run_that_failed_says_where_to_read_on(in_cluster: Builder, api: Api, namespace: str) -> None:
    in_cluster("--application", "acme")
    name = runs(api, namespace)[0]["metadata"]["name"]
    set_status(api, namespace, name, FAILED)
    ended = in_cluster("--watch", name)
    assert ended.code == 1
    assert ended.output.splitlines()[-1] == (
        f"log       kubectl logs -n {namespace} -l tekton.dev/pipelineRun={name},tekton.dev/pipelineTask=build "
        "--all-containers --tail=-1"
    )


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_run_goes_on_when_watching_ends(in_cluster: Builder, api: Api, namespace: str, sent: signal.Signals) -> None:
    command = in_cluster.command("--application", "acme", "--watch")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=in_cluster.environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout
        assert process.stderr
        name = process.stdout.readline().split()[1]
        assert "pending" in process.stdout.readline()
        process.send_signal(sent)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert f"build: {name} goes on; follow it with: fleet-fn build --watch {name} --namespace {namespace}" in errors
    assert "status" not in runs(api, namespace)[0]["spec"]


def test_a_run_can_be_cancelled(in_cluster: Builder, api: Api, namespace: str) -> None:
    in_cluster("--application", "acme")
    name = runs(api, namespace)[0]["metadata"]["name"]
    assert in_cluster("--cancel", name).output == f"{name} is being cancelled\n"
    assert runs(api, namespace)[0]["spec"]["status"] == "Cancelled"
    set_status(api, namespace, name, STATES["cancelled"][0])
    assert in_cluster("--cancel", name).refusal == f"{name} is over already: cancelled"


# --- Clusters that refuse ---------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there_is_told(in_cluster: Builder, namespace: str) -> None:
    expected = f"Kubernetes API: the PipelineRun x is not in the namespace {namespace}"
    assert in_cluster("--watch", "x").refusal == expected
    assert in_cluster("--cancel", "x").refusal == expected


def test_a_namespace_without_the_pipeline_is_told(in_cluster: Builder) -> None:
    assert in_cluster("--application", "acme", "-n", "default").refusal == (
        "Kubernetes API: no Pipeline oci-firmware in the namespace default: kubectl apply -n default -k "
        "knative/tekton, or name another --namespace"
    )


def test_a_pipeline_of_an_earlier_release_is_told(in_cluster: Builder, api: Api, cloud: Drogue) -> None:
    put_namespace(api, "earlier")
    old = {**PIPELINE, "spec": {**PIPELINE["spec"]}}
    old["spec"]["params"] = [param for param in PIPELINE["spec"]["params"] if param["name"] not in ("ARGS", "ENV")]
    put_pipeline(api, "earlier", old)
    assert in_cluster("--application", "acme", "-n", "earlier").code == 0
    cloud.put_image("acme", None, "sensor", build=DETAILED)
    assert in_cluster("--application", "acme", "-n", "earlier").refusal == (
        "the Pipeline in the namespace earlier is older than this command: it takes no ARGS, ENV. Apply it again: "
        "kubectl apply -n earlier -k knative/tekton"
    )


@pytest.mark.parametrize(
    ("arguments", "verb"), [(["--list"], "list"), (["--application", "acme"], "get"), (["--watch", "x"], "get")]
)
def test_missing_rights_are_told(
    in_cluster: Builder, api: Api, namespace: str, tmp_path: Path, arguments: list[str], verb: str
) -> None:
    config = api.kubeconfig(tmp_path / "nobody", user="nobody", namespace=namespace)
    refusal = in_cluster(*arguments, KUBECONFIG=str(config)).refusal
    assert refusal.startswith(f"Kubernetes API: no right in the namespace {namespace} (403): pipeline")
    assert f'User "nobody" cannot {verb} resource' in refusal
    assert refusal.endswith("ask for a Role like that in docs/build.md, or name another --namespace")


@pytest.mark.skipif(not HAS_REAL_API, reason="the fake has no roles; make peers builds kube-apiserver")
def test_the_rights_in_the_documentation_suffice(in_cluster: Builder, api: Api, namespace: str, tmp_path: Path) -> None:
    if isinstance(api, FakeApi):
        return
    page = (ROOT / "docs" / "build.md").read_text()
    (documented,) = re.findall(r"^```yaml\n(rules:\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    group = "rbac.authorization.k8s.io"
    path = f"/apis/{group}/v1/namespaces/{namespace}"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "builder"}, **yaml.safe_load(documented)}
    api.request("POST", f"{path}/roles", role)
    subjects = [{"apiGroup": group, "kind": "User", "name": "nobody"}]
    binding: dict[str, Any] = {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": {"name": "builder"}}
    binding |= {"roleRef": {"apiGroup": group, "kind": "Role", "name": "builder"}, "subjects": subjects}
    api.request("POST", f"{path}/rolebindings", binding)
    in_cluster.environment["KUBECONFIG"] = str(
        api.kubeconfig(tmp_path / "as-nobody", user="nobody", namespace=namespace)
    )
    deadline = time.monotonic() + 10
    while (created := in_cluster("--application", "acme")).code and time.monotonic() < deadline:
        time.sleep(0.1)  # until the API server has read the role
    name = created.output.split()[1]
    assert name in in_cluster("--list").output
    assert 'cannot patch resource "pipelineruns"' in in_cluster("--cancel", name).refusal
    set_status(api, namespace, name, SUCCEEDED)
    assert in_cluster("--watch", name).code == 0


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_program_may_give_the_credentials(in_cluster: Builder, namespace: str, version: str) -> None:
    path = Path(in_cluster.environment["KUBECONFIG"])
    config = yaml.safe_load(path.read_text())
    token = config["users"][0]["user"].pop("token")
    group = f"client.authentication.k8s.io/{version}"
    answer = {"apiVersion": group, "kind": "ExecCredential", "status": {"token": token}}
    program = {"apiVersion": group, "command": "echo", "args": [json.dumps(answer)], "interactiveMode": "Never"}
    config["users"][0]["user"]["exec"] = program
    path.write_text(yaml.safe_dump(config))
    assert in_cluster("--list").output == f"no builds in the namespace {namespace}\n"
    program |= {"command": "sh", "args": ["-c", "echo log in first >&2; exit 1"]}
    path.write_text(yaml.safe_dump(config))
    assert "Exec sh returned 1: log in first" in in_cluster("--list").refusal
    program |= {"command": "no-such-program"}
    path.write_text(yaml.safe_dump(config))
    assert "no-such-program: No such file or directory" in in_cluster("--list").refusal


def test_credentials_that_are_refused_are_told(in_cluster: Builder, api: Api, tmp_path: Path) -> None:
    config = api.kubeconfig(tmp_path / "wrong", user="s3cret-token")
    refused = in_cluster("--list", KUBECONFIG=str(config))
    assert "refuses the credentials (401): log in again, or check KUBECONFIG" in refused.refusal
    assert "s3cret-token" not in refused.errors


def test_a_cluster_without_tekton_is_told(builder: Builder, tmp_path: Path) -> None:
    with fake_api(has_tekton=False) as bare:
        builder.environment["KUBECONFIG"] = str(bare.kubeconfig(tmp_path / "kubeconfig"))
        for arguments in (["--list"], ["--application", "acme"], ["--watch", "x"]):
            assert builder(*arguments).refusal == (
                "Kubernetes API: Tekton Pipelines (tekton.dev/v1) is not installed in this cluster: see "
                "https://tekton.dev/docs/installation/"
            )


def test_a_cluster_that_does_not_answer_is_told(builder: Builder, tmp_path: Path) -> None:
    with fake_api() as fake, closed_port() as port:
        config = fake.kubeconfig(tmp_path / "kubeconfig")
        config.write_text(config.read_text().replace(str(fake.server.port), str(port)))
        refusal = builder("--list", KUBECONFIG=str(config)).refusal
    assert refusal.startswith(f"Kubernetes API: http://127.0.0.1:{port}: ")


def test_a_cluster_that_falls_silent_is_told_while_watching(builder: Builder, tmp_path: Path) -> None:
    with fake_api() as fake, closed_port() as port:
        config = fake.kubeconfig(tmp_path / "kubeconfig")
        config.write_text(config.read_text().replace(str(fake.server.port), str(port)))
        environment = builder.environment | {"KUBECONFIG": str(config)}
        command = builder.command("--watch", "x")
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            told = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
    assert told.startswith(f"build: Kubernetes API: http://127.0.0.1:{port}: ")
    assert told.endswith("; asking again\n")
    assert "asking again" not in rest
    assert process.returncode == 130


def test_a_silent_cluster_is_left_after_two_minutes_however_long_it_takes_to_answer(tmp_path: Path) -> None:
    seconds = iter(range(0, 10_000, 17))  # a pause, and a request that gets no answer in time
    with closed_port() as port:
        content = {
            "clusters": [{"name": "a", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "users": [{"name": "a", "user": {}}],
            "current-context": "a",
        }
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(content))
        config = KubeConfig.from_file(tmp_path / "kubeconfig").get()
        assert config
        pauses: list[float] = []
        told: list[str] = []
        cluster = Cluster(config, "default", pause=pauses.append, clock=lambda: float(next(seconds)))
        with closing(cluster), pytest.raises(TransientError):
            list(cluster.follow("x", lambda error: told.append(error.reason)))
    assert len(pauses) == 7
    assert len(told) == 1


def test_the_next_commands_name_the_same_context(in_cluster: Builder, api: Api, namespace: str) -> None:
    path = Path(in_cluster.environment["KUBECONFIG"])
    config = yaml.safe_load(path.read_text())
    config["contexts"][0]["name"] = "my cluster"
    config["current-context"] = "another"
    path.write_text(yaml.safe_dump(config))
    chosen = ("--context", "my cluster")
    *_, follow = in_cluster("--application", "acme", *chosen).output.splitlines()
    name = runs(api, namespace)[0]["metadata"]["name"]
    assert follow.endswith(f"--watch {name} --namespace {namespace} --context 'my cluster'")
    set_status(api, namespace, name, FAILED)
    *_, log = in_cluster("--watch", name, *chosen).output.splitlines()
    assert f"kubectl logs -n {namespace} --context 'my cluster' -l tekton.dev" in log
    refusal = in_cluster("--application", "acme", "-n", "default", *chosen).refusal
    assert "kubectl apply -n default --context 'my cluster' -k knative/tekton" in refusal


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "neither KUBECONFIG nor ~/.kube/config, and this is no pod"),
        ("[", "is no kubeconfig: while parsing a flow node expected the node content"),
        ("clusters: []\ncontexts: []\nusers: []\n", "No current context set"),
        ("clusters: []\ncontexts: [{name: a, context: {cluster: b}}]\ncurrent-context: a\n", "'b' is missing"),
        ("clusters: []\ncontexts: []\ncurrent-context: a\n", "Context 'a' not found"),
        ("- a", "is no kubeconfig"),
    ],
    ids=["missing", "no YAML", "no context", "no cluster", "unknown context", "a list"],
)
def test_a_kubeconfig_that_is_none_is_told(builder: Builder, tmp_path: Path, content: str | None, reason: str) -> None:
    environment = {}
    if content is not None:
        (tmp_path / "kubeconfig").write_text(content)
        environment["KUBECONFIG"] = str(tmp_path / "kubeconfig")
    refusal = builder("--list", **environment).refusal
    assert refusal.startswith("Kubernetes API: ")
    assert reason in refusal


@pytest.mark.skipif(not can_mount(), reason="a pod's account cannot be put in its place here")
def test_in_a_pod_its_account_is_used(builder: Builder, tmp_path: Path) -> None:
    ca = trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(tls)
    account = tmp_path / "account"
    account.mkdir()
    ca.cert_pem.write_to_path(str(account / "ca.crt"))
    (account / "namespace").write_text("firmware")
    with fake_api(tls=tls) as fake:
        put_namespace(fake, "firmware")
        put_pipeline(fake, "firmware", PIPELINE)
        (account / "token").write_text(fake.tokens["admin"])
        place = "/var/run/secrets/kubernetes.io/serviceaccount"
        script = f'mount -t tmpfs none /run && mkdir -p {place} && cp "$0"/* {place} && exec "$@"'
        inside = builder.command("--application", "acme")
        environment = builder.environment | {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(fake.server.port),
        }
        command = ["unshare", "--mount", "sh", "-c", script, str(account), *inside]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert ended.stdout.startswith("created firmware-"), ended.stderr
        assert ended.stdout.endswith(" --namespace firmware\n")


def test_ages_are_those_of_the_clock(in_cluster: Builder, api: Api, namespace: str) -> None:
    in_cluster("--application", "acme")
    name = runs(api, namespace)[0]["metadata"]["name"]
    started = (datetime.now(UTC) - timedelta(minutes=61)).strftime("%Y-%m-%dT%H:%M:%SZ")
    set_status(api, namespace, name, condition("Unknown", "Running", startTime=started))
    (row,) = in_cluster("--list").output.splitlines()[1:]
    assert row.split()[3] == "1h01m"
