"""Pipelines, run as Tekton runs them, but without images: the scripts of steps, in the environments that it makes."""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

#: What Tekton replaces, https://tekton.dev/docs/pipelines/variables/.
VARIABLE: Final = re.compile(r"\$\((params|workspaces|results|context|steps|tasks)\.([^)]*)\)")

#: A parameter, or the words of a list of it.
Value = str | list[str]

#: Runs a command where the folders before `--` cannot be written to.
_READ_ONLY: Final = """
while [ "$1" != -- ]; do
    mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 125
    shift
done
shift
exec "$@"
"""


@functools.cache
def can_mount() -> bool:
    """Whether workspaces that are read-only can be so here."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


@dataclass(frozen=True)
class Ended:
    """What a step left behind."""

    code: int
    #: Both streams, as a log has them.
    log: str


class TaskRun:
    """One run of a Task.

    Args:
        task: the Task.
        folder: an empty folder, for what Tekton keeps in a pod: results, homes, programs.
        params: what is given; the others have their defaults.
        workspaces: the folders of the workspaces that are bound.

    """

    def __init__(
        self, task: Mapping[str, Any], folder: Path, params: Mapping[str, Value], workspaces: Mapping[str, Path]
    ) -> None:
        spec = task["spec"]
        defaults = {param["name"]: param["default"] for param in spec["params"] if "default" in param}
        declared = {param["name"] for param in spec["params"]}
        assert set(params) <= declared
        assert declared == {*params, *defaults}
        given = {**defaults, **params}
        for param in spec["params"]:
            assert isinstance(given[param["name"]], list) == (param.get("type") == "array"), param
        optional = {workspace["name"]: "" for workspace in spec["workspaces"] if workspace.get("optional")}
        bound = optional | {name: str(path) for name, path in workspaces.items()}
        assert set(bound) == {workspace["name"] for workspace in spec["workspaces"]}
        self.folder = folder
        self._results = folder / "tekton" / "results"
        self._declared = {result["name"] for result in spec.get("results", [])}
        self._lists = {f"params.{name}": value for name, value in given.items() if isinstance(value, list)}
        self._variables = {
            **{f"params.{name}": value for name, value in given.items() if isinstance(value, str)},
            **{f"workspaces.{name}.path": path for name, path in bound.items()},
            **{f"results.{name}.path": str(self._results / name) for name in self._declared},
        }
        self._read_only = [bound[workspace["name"]] for workspace in spec["workspaces"] if workspace.get("readOnly")]
        self._steps: dict[str, dict[str, Any]] = {step["name"]: step for step in spec["steps"]}
        self.programs = folder / "bin"
        for made in (self._results, folder / "tekton" / "home", self.programs):
            made.mkdir(parents=True, exist_ok=True)
            made.chmod(0o777)
        # Not a link: Python would not know its environment from there.
        self.program("python", f'exec "{sys.executable}" "$@"')

    @property
    def steps(self) -> list[str]:
        return list(self._steps)

    @property
    def results(self) -> dict[str, str]:
        """What the Task says; a file that it does not declare is no result."""
        return {name: path.read_bytes().decode() for name in self._declared if (path := self._results / name).exists()}

    def home(self, step: str) -> Path:
        """The home of the user that a step's image has."""
        home = self.folder / f"home-{step}"
        if not home.is_symlink():
            home.mkdir(exist_ok=True)
        return home

    def program(self, name: str, script: str) -> None:
        """Puts a program into the images."""
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def run(self, step: str, folder: Path, user: int | None = None) -> Ended:
        """Runs one step.

        Args:
            step: its name.
            folder: the working directory that its image has.
            user: the user to run it as; that takes root.

        Workspaces that are read-only are so if this machine lets us make mounts.

        """
        home = self.home(step)
        environment = {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
        for variable in self._steps[step].get("env", []):
            value = VARIABLE.sub(lambda found: self._variables[f"{found[1]}.{found[2]}"], variable["value"])
            environment[variable["name"]] = re.sub("^/tekton/", f"{self.folder}/tekton/", value)
        script = self.folder / f"{step}.sh"
        script.write_text(self._steps[step]["script"])
        command = ["sh", str(script), *expand_list(self._steps[step].get("args", []), self._variables, self._lists)]
        if user is not None:
            os.chown(home, user, user)
            command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command]
        if self._read_only and can_mount():
            command = ["unshare", "--mount", "sh", "-c", _READ_ONLY, "sh", *self._read_only, "--", *command]
        ended = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return Ended(ended.returncode, ended.stdout.decode())


class PipelineRun:
    """One run of a Pipeline: each Task has a pod of its own, and only workspaces are shared.

    Args:
        pipeline: the Pipeline.
        tasks: the Tasks that it may name.
        folder: an empty folder.
        params: what is given.
        workspaces: the folders of the workspaces that are bound. The one that is needed is a volume of the run's own.

    """

    def __init__(
        self,
        pipeline: Mapping[str, Any],
        tasks: Mapping[str, Mapping[str, Any]],
        folder: Path,
        params: Mapping[str, Value],
        workspaces: Mapping[str, Path],
    ) -> None:
        spec = pipeline["spec"]
        self._tasks = tasks
        self._pipeline_tasks: dict[str, dict[str, Any]] = {task["name"]: task for task in spec["tasks"]}
        self._declared: dict[str, str] = {result["name"]: result["value"] for result in spec["results"]}
        (needed,) = [workspace["name"] for workspace in spec["workspaces"] if not workspace.get("optional")]
        self.folder = folder
        self.volume = folder / "volume"
        self.volume.mkdir()
        self._workspaces = {needed: self.volume, **workspaces}
        defaults = {param["name"]: param["default"] for param in spec["params"] if "default" in param}
        assert {*params, *defaults} == {param["name"] for param in spec["params"]}
        given = {**defaults, **params}
        self._lists = {f"params.{name}": value for name, value in given.items() if isinstance(value, list)}
        self._variables = {f"params.{name}": value for name, value in given.items() if isinstance(value, str)}
        self._runs: dict[str, TaskRun] = {}

    @property
    def tasks(self) -> list[str]:
        """The names of the Tasks in the Pipeline, in the order in which they run."""
        return list(self._pipeline_tasks)

    def pod(self, name: str) -> Path:
        """The folder of what a Task has for itself."""
        return self.folder / f"pod-{name}"

    def task_run(self, name: str) -> TaskRun:
        """The run of a Task. Those whose results are its parameters have to be over."""
        if name not in self._runs:
            task = self._pipeline_tasks[name]
            params = {param["name"]: self._expand(param["value"]) for param in task["params"]}
            workspaces = {}
            for bound in task["workspaces"]:
                if bound["workspace"] in self._workspaces:
                    path = self._workspaces[bound["workspace"]] / bound.get("subPath", "")
                    path.mkdir(exist_ok=True)
                    path.chmod(0o777)
                    workspaces[bound["name"]] = path
            self.pod(name).mkdir(exist_ok=True)
            self._runs[name] = TaskRun(self._tasks[task["taskRef"]["name"]], self.pod(name), params, workspaces)
        return self._runs[name]

    def run(self, name: str, folder: Path, user: int | None = None) -> Ended:
        """Runs the one step of a Task, in the working directory that its image has."""
        run = self.task_run(name)
        (step,) = run.steps
        ended = run.run(step, folder, user)
        for result, value in run.results.items():
            self._variables[f"tasks.{name}.results.{result}"] = value
        return ended

    @property
    def results(self) -> dict[str, str]:
        """The results of the Pipeline, as far as they are there."""
        found = {}
        for name, value in self._declared.items():
            if all(f"{variable[1]}.{variable[2]}" in self._variables for variable in VARIABLE.finditer(value)):
                found[name] = self._expand(value)
        return found

    def _expand(self, value: Any) -> Any:
        if isinstance(value, list):
            return expand_list(value, self._variables, self._lists)
        return VARIABLE.sub(lambda found: self._variables[f"{found[1]}.{found[2]}"], value)


def expand_list(words: list[str], variables: Mapping[str, str], lists: Mapping[str, list[str]]) -> list[str]:
    """Replaces variables in words; a word `$(params.NAME[*])` becomes the words of that list."""
    expanded: list[str] = []
    for word in words:
        whole = VARIABLE.fullmatch(word)
        if whole and whole[2].endswith("[*]"):
            expanded += lists[f"{whole[1]}.{whole[2].removesuffix('[*]')}"]
        else:
            expanded.append(VARIABLE.sub(lambda found: variables[f"{found[1]}.{found[2]}"], word))
    return expanded


def load(path: Path) -> dict[str, Any]:
    """The one object in a file."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded
