"""What the build pipeline's manifests say, taken together."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.function import ROOT
from tests.support.tekton import VARIABLE, load

FOLDER = ROOT / "knative" / "tekton"
TASK = load(FOLDER / "firmware-build.yaml")
PIPELINE = load(FOLDER / "pipeline.yaml")
RUN = load(FOLDER / "pipeline-run.example.yaml")
STEPS = {step["name"]: step for step in TASK["spec"]["steps"]}
OURS = ("clone", "publish")
(PIPELINE_TASK,) = PIPELINE["spec"]["tasks"]


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
    return {f"{found[1]}.{found[2]}" for text in strings(value) for found in VARIABLE.finditer(text)}


def names(listed: list[dict[str, Any]]) -> list[str]:
    found = [entry["name"] for entry in listed]
    assert len(set(found)) == len(found)
    return found


def required(spec: dict[str, Any]) -> set[str]:
    return {param["name"] for param in spec["params"] if "default" not in param}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_everything_is_of_tektons_first_version_and_nothing_is_a_cluster_task(path: Path) -> None:
    found = load(path)
    if path.name != "kustomization.yaml":
        assert found["apiVersion"] == "tekton.dev/v1"
    assert "ClusterTask" not in set(strings(found))


def test_what_is_applied_is_the_task_and_the_pipeline() -> None:
    applied = [load(FOLDER / path) for path in load(FOLDER / "kustomization.yaml")["resources"]]
    assert applied == [TASK, PIPELINE]


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_nothing_is_put_into_a_script(step: dict[str, Any]) -> None:
    assert "$(params." not in step["script"]
    assert variables([step["script"], step.get("args"), step.get("command")]) == set()


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_script_is_one_of_posix_shell_that_ends_where_something_fails(step: dict[str, Any]) -> None:
    assert step["script"].startswith("#!/bin/sh\nset -eu\n")
    subprocess.run(["sh", "-n"], input=step["script"], text=True, check=True)


def test_the_task_uses_all_that_it_declares_and_nothing_else() -> None:
    spec = TASK["spec"]
    declared = {
        *(f"params.{name}" for name in names(spec["params"])),
        *(f"workspaces.{name}.path" for name in names(spec["workspaces"])),
        *(f"results.{name}.path" for name in names(spec["results"])),
    }
    assert variables({"steps": spec["steps"], "template": spec["stepTemplate"]}) == declared


def test_each_variable_of_a_step_is_used_by_its_script() -> None:
    common = set(names(TASK["spec"]["stepTemplate"]["env"]))
    found_anywhere = set()
    for step in STEPS.values():
        # git and Python read these themselves.
        own = {*names(step["env"])} - {"HOME", "DOCKER_CONFIG"}
        used = set(re.findall(r"\$\{?([A-Z_]+)", step["script"]))
        assert own <= used, step["name"]
        found_anywhere |= used & common
        known = {*own, *common, "HOME", "PROJECT_DIR", "FIRMWARE_VERSION", "SOURCE_DATE_EPOCH"}
        assert used <= known, step["name"]
    assert found_anywhere == common


def test_the_pipeline_offers_what_the_task_does_and_passes_it_on() -> None:
    offered = {param["name"]: param.get("default") for param in PIPELINE["spec"]["params"]}
    assert offered == {param["name"]: param.get("default") for param in TASK["spec"]["params"]}
    passed = {param["name"]: param["value"] for param in PIPELINE_TASK["params"]}
    assert passed == {name: f"$(params.{name})" for name in offered}
    assert PIPELINE_TASK["taskRef"] == {"kind": "Task", "name": TASK["metadata"]["name"]}


def test_the_parameters_that_runs_of_the_first_pipeline_give_are_there() -> None:
    given = {"GIT_REPO", "GIT_REVISION", "PROJECT_PATH", "REGISTRY", "BUILDER_IMAGE", "IMAGE", "CARGO_BUILD_ARGS"}
    assert given <= set(names(PIPELINE["spec"]["params"]))
    assert required(PIPELINE["spec"]) == {"GIT_REPO", "REGISTRY", "BUILDER_IMAGE", "IMAGE"}
    assert PIPELINE["metadata"]["name"] == "oci-firmware"


def test_workspaces_are_passed_on_and_those_with_credentials_are_optional() -> None:
    passed = {workspace["name"]: workspace["workspace"] for workspace in PIPELINE_TASK["workspaces"]}
    of_task = {workspace["name"]: workspace.get("optional", False) for workspace in TASK["spec"]["workspaces"]}
    of_pipeline = {workspace["name"]: workspace.get("optional", False) for workspace in PIPELINE["spec"]["workspaces"]}
    assert set(passed) == set(of_task)
    assert {name: of_pipeline[workspace] for name, workspace in passed.items()} == of_task
    assert set(passed.values()) == set(of_pipeline)
    assert [name for name, optional in of_pipeline.items() if not optional] == ["build"]


def test_the_pipeline_has_the_results_of_the_task() -> None:
    results = {result["name"]: result["value"] for result in PIPELINE["spec"]["results"]}
    assert results == {
        name: f"$(tasks.{PIPELINE_TASK['name']}.results.{name})" for name in names(TASK["spec"]["results"])
    }


def test_the_example_gives_what_the_pipeline_needs() -> None:
    spec = RUN["spec"]
    assert spec["pipelineRef"] == {"name": PIPELINE["metadata"]["name"]}
    assert required(PIPELINE["spec"]) <= set(names(spec["params"])) <= set(names(PIPELINE["spec"]["params"]))
    assert "PUBLISHER_IMAGE" in names(spec["params"])
    assert {"build"} <= set(names(spec["workspaces"])) <= set(names(PIPELINE["spec"]["workspaces"]))


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


def test_a_build_gains_no_privileges() -> None:
    assert STEPS["build"]["securityContext"] == {"allowPrivilegeEscalation": False}
    assert set(STEPS) == {"build", *OURS}


def test_a_build_sees_no_credentials() -> None:
    # A workspace that a step names is mounted in no step that does not name it.
    optional = {workspace["name"] for workspace in TASK["spec"]["workspaces"] if workspace.get("optional")}
    naming = {name: set(names(step.get("workspaces", []))) for name, step in STEPS.items()}
    assert naming["build"] == set()
    assert naming["clone"] | naming["publish"] == optional
    template = variables(TASK["spec"]["stepTemplate"])
    for name, step in STEPS.items():
        used = {text.split(".")[1] for text in variables(step) | template if text.startswith("workspaces.")}
        assert used <= naming[name] | {"source"}
        for workspace in step.get("workspaces", []):
            assert workspace["mountPath"] == f"/workspace/{workspace['name']}"  # which is what its variable says


def test_images_of_others_are_pinned() -> None:
    (image,) = [param["default"] for param in TASK["spec"]["params"] if param["name"] == "GIT_IMAGE"]
    assert re.fullmatch(r"[a-z.]+/[a-z/]+:[0-9.]+", image)
