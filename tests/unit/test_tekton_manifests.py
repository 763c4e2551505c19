"""What the build pipeline's manifests say, taken together."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.function import ROOT
from tests.support.tekton import VARIABLE, load

FOLDER = ROOT / "knative" / "tekton"
NAMES = ("clone", "build", "publish")
TASKS = {name: load(FOLDER / f"firmware-{name}.yaml") for name in NAMES}
PIPELINE = load(FOLDER / "pipeline.yaml")
RUN = load(FOLDER / "pipeline-run.example.yaml")
STEPS: dict[str, dict[str, Any]] = {name: task["spec"]["steps"][0] for name, task in TASKS.items()}
OURS = ("clone", "publish")
PIPELINE_TASKS: dict[str, dict[str, Any]] = {task["name"]: task for task in PIPELINE["spec"]["tasks"]}
#: What programs of others read for themselves.
FOREIGN = {"HOME", "DOCKER_CONFIG", "SOURCE_DATE_EPOCH", "FIRMWARE_VERSION"}


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, str):
        yield value


def variables(value: object) -> set[str]:
    """The variables of Tekton's that are used."""
    return {
        f"{found[1]}.{found[2].removesuffix('[*]')}" for text in strings(value) for found in VARIABLE.finditer(text)
    }


def names(listed: list[dict[str, Any]]) -> list[str]:
    found = [entry["name"] for entry in listed]
    assert len(set(found)) == len(found)
    return found


def required(spec: dict[str, Any]) -> set[str]:
    return {param["name"] for param in spec["params"] if "default" not in param}


def defaults(spec: dict[str, Any]) -> dict[str, Any]:
    return {param["name"]: param["default"] for param in spec["params"] if "default" in param}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_everything_is_of_tektons_first_version_and_nothing_is_a_cluster_task(path: Any) -> None:
    found = load(path)
    if path.name != "kustomization.yaml":
        assert found["apiVersion"] == "tekton.dev/v1"
    assert "ClusterTask" not in set(strings(found))


def test_the_tasks_and_the_pipeline_are_applied() -> None:
    applied = [load(FOLDER / path) for path in load(FOLDER / "kustomization.yaml")["resources"]]
    assert applied == [*TASKS.values(), PIPELINE]
    files = {path.name for path in FOLDER.glob("firmware-*.yaml")}
    assert files == {f"firmware-{name}.yaml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_put_into_a_script(name: str) -> None:
    step = STEPS[name]
    assert "$(params." not in step["script"]
    assert variables([step["script"], step.get("command")]) == set()
    # Each a word of its own: a list's words become words, and no shell reads them.
    assert step.get("args", []) == (["$(params.ENV[*])", "--", "$(params.ARGS[*])"] if name == "build" else [])


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_one_of_posix_shell_that_ends_where_something_fails(name: str) -> None:
    script = STEPS[name]["script"]
    assert script.startswith("#!/bin/sh\nset -eu\n")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_task_uses_all_that_it_declares_and_nothing_else(name: str) -> None:
    spec = TASKS[name]["spec"]
    declared = {
        *(f"params.{param}" for param in names(spec["params"])),
        *(f"workspaces.{workspace}.path" for workspace in names(spec["workspaces"])),
        *(f"results.{result}.path" for result in names(spec.get("results", []))),
    }
    assert variables(spec["steps"]) == declared


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_of_a_step_is_used_by_its_script(name: str) -> None:
    step = STEPS[name]
    given = set(names(step["env"]))
    used = set(re.findall(r"\$\{?([A-Z_]+)", step["script"]))
    set_there = set(re.findall(r"\b([A-Z_]+)=", step["script"])) | {"FIRMWARE_VERSION", "HOME"}
    assert given - FOREIGN <= used
    assert used <= given | set_there


def test_the_pipeline_gives_each_task_what_it_takes() -> None:
    assert list(PIPELINE_TASKS) == list(NAMES)
    offered = defaults(PIPELINE["spec"])
    for name, task in PIPELINE_TASKS.items():
        spec = TASKS[name]["spec"]
        assert task["taskRef"] == {"kind": "Task", "name": TASKS[name]["metadata"]["name"]}
        passed = {param["name"]: param["value"] for param in task["params"]}
        assert set(passed) == set(names(spec["params"]))
        of_pipeline = {
            param for param, value in passed.items() if value in (f"$(params.{param})", [f"$(params.{param}[*])"])
        }
        assert {param: offered.get(param) for param in of_pipeline} == {
            param: defaults(spec).get(param) for param in of_pipeline
        }


def test_each_parameter_of_the_pipeline_is_passed_on() -> None:
    passed = variables([task["params"] for task in PIPELINE_TASKS.values()])
    assert {name for name in passed if name.startswith("params.")} == {
        f"params.{name}" for name in names(PIPELINE["spec"]["params"])
    }


def test_the_parameters_that_runs_of_the_first_pipeline_give_are_there() -> None:
    given = {"GIT_REPO", "GIT_REVISION", "PROJECT_PATH", "REGISTRY", "BUILDER_IMAGE", "IMAGE", "CARGO_BUILD_ARGS"}
    assert given <= set(names(PIPELINE["spec"]["params"]))
    assert required(PIPELINE["spec"]) == {"GIT_REPO", "REGISTRY", "BUILDER_IMAGE", "IMAGE"}
    assert PIPELINE["metadata"]["name"] == "oci-firmware"


def test_workspaces_are_passed_on_and_those_with_credentials_are_optional() -> None:
    of_pipeline = {workspace["name"]: workspace.get("optional", False) for workspace in PIPELINE["spec"]["workspaces"]}
    used = set()
    for name, task in PIPELINE_TASKS.items():
        of_task = {
            workspace["name"]: workspace.get("optional", False) for workspace in TASKS[name]["spec"]["workspaces"]
        }
        passed = {workspace["name"]: workspace["workspace"] for workspace in task["workspaces"]}
        assert {workspace: of_pipeline[given] for workspace, given in passed.items()} == of_task
        used |= set(passed.values())
    assert used == set(of_pipeline)
    assert [name for name, optional in of_pipeline.items() if not optional] == ["build"]


def test_the_pipeline_has_the_results_of_the_tasks() -> None:
    results = {result["name"]: result["value"] for result in PIPELINE["spec"]["results"]}
    assert results == {
        result: f"$(tasks.{name}.results.{result})"
        for name, task in TASKS.items()
        for result in names(task["spec"].get("results", []))
    }


def test_the_example_gives_what_the_pipeline_needs() -> None:
    spec = RUN["spec"]
    assert spec["pipelineRef"] == {"name": PIPELINE["metadata"]["name"]}
    assert required(PIPELINE["spec"]) <= set(names(spec["params"])) <= set(names(PIPELINE["spec"]["params"]))
    assert "PUBLISHER_IMAGE" in names(spec["params"])
    workspaces = {workspace["name"]: workspace for workspace in spec["workspaces"]}
    assert {"build"} <= set(workspaces) <= set(names(PIPELINE["spec"]["workspaces"]))
    # Pods share a volume of the run's own; an emptyDir would be another one in each.
    assert "volumeClaimTemplate" in workspaces["build"]
    assert spec["taskRunTemplate"]["podTemplate"]["securityContext"]["fsGroup"] > 0


@pytest.mark.parametrize("name", OURS)
def test_our_own_steps_have_no_privileges(name: str) -> None:
    context = dict(STEPS[name]["securityContext"])
    assert context.pop("runAsUser") > 0
    assert context == {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_images_of_others_are_pinned() -> None:
    assert re.fullmatch(r"[a-z.]+/[a-z/]+:[0-9.]+@sha256:[0-9a-f]{64}", defaults(TASKS["clone"]["spec"])["GIT_IMAGE"])


# --- The build is not trusted -----------------------------------------------------------------------------------------


def test_a_build_has_a_pod_of_its_own() -> None:
    # Steps of one pod share /tekton/results, /tekton/home and each workspace that no step names.
    assert [len(task["spec"]["steps"]) for task in TASKS.values()] == [1, 1, 1]
    assert not [task for task in TASKS.values() if {"sidecars", "stepTemplate", "volumes"} & set(task["spec"])]


def test_a_build_gains_no_privileges() -> None:
    assert STEPS["build"]["securityContext"] == {"allowPrivilegeEscalation": False}


def test_a_build_says_nothing_and_sees_no_credentials() -> None:
    spec = TASKS["build"]["spec"]
    assert "results" not in spec
    assert [workspace for workspace in spec["workspaces"] if workspace.get("optional")] == []
    assert {workspace["workspace"] for workspace in PIPELINE_TASKS["build"]["workspaces"]} == {"build"}


def test_only_the_task_that_needs_credentials_gets_them() -> None:
    given = {
        name: {workspace["workspace"] for workspace in task["workspaces"]} - {"build"}
        for name, task in PIPELINE_TASKS.items()
    }
    assert given == {
        "clone": {"basic-auth", "ssh-directory"},
        "build": set(),
        "publish": {"dockerconfig", "signing-key"},
    }


def test_what_is_published_is_described_by_the_clone_alone() -> None:
    passed = {param["name"]: param["value"] for param in PIPELINE_TASKS["publish"]["params"]}
    described = {name: value for name, value in passed.items() if "$(tasks." in value}
    assert described == {
        "VERSION": "$(tasks.clone.results.version)",
        "COMMIT": "$(tasks.clone.results.commit)",
        "COMMITTER_DATE": "$(tasks.clone.results.committer-date)",
        "URL": "$(tasks.clone.results.url)",
    }
    assert PIPELINE_TASKS["publish"]["runAfter"] == ["build"]


def test_a_build_writes_to_one_folder_that_nothing_but_the_firmware_is_read_from() -> None:
    places = {}
    for name, task in PIPELINE_TASKS.items():
        read_only = {
            workspace["name"] for workspace in TASKS[name]["spec"]["workspaces"] if workspace.get("readOnly", False)
        }
        for workspace in task["workspaces"]:
            if workspace["workspace"] == "build":
                places[name, workspace["subPath"]] = "ro" if workspace["name"] in read_only else "rw"
    assert places == {
        ("clone", "source"): "rw",
        ("build", "source"): "ro",
        ("build", "output"): "rw",
        ("publish", "output"): "ro",
    }


def test_nothing_runs_git_after_the_build() -> None:
    assert not re.search(r"\bgit\b", STEPS["publish"]["script"])
