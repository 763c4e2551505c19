"""A Task's steps, run as Tekton runs them, but without images: their scripts, in the environments that it makes."""

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
        self, task: Mapping[str, Any], folder: Path, params: Mapping[str, str], workspaces: Mapping[str, Path]
    ) -> None:
        spec = task["spec"]
        defaults = {param["name"]: param["default"] for param in spec["params"] if "default" in param}
        declared = {param["name"] for param in spec["params"]}
        assert set(params) <= declared
        assert declared == {*params, *defaults}
        optional = {workspace["name"]: "" for workspace in spec["workspaces"] if workspace.get("optional")}
        bound = optional | {name: str(path) for name, path in workspaces.items()}
        assert set(bound) == {workspace["name"] for workspace in spec["workspaces"]}
        self.folder = folder
        self._results = folder / "tekton" / "results"
        self._variables = {
            **{f"params.{name}": value for name, value in {**defaults, **params}.items()},
            **{f"workspaces.{name}.path": path for name, path in bound.items()},
            **{f"results.{result['name']}.path": str(self._results / result["name"]) for result in spec["results"]},
        }
        self._template: list[dict[str, str]] = spec["stepTemplate"]["env"]
        self._steps: dict[str, dict[str, Any]] = {step["name"]: step for step in spec["steps"]}
        self.programs = folder / "bin"
        for made in (self._results, folder / "tekton" / "home", self.programs):
            made.mkdir(parents=True)
            made.chmod(0o777)
        # Not a link: Python would not know its environment from there.
        self.program("python", f'exec "{sys.executable}" "$@"')

    @property
    def steps(self) -> list[str]:
        return list(self._steps)

    @property
    def results(self) -> dict[str, str]:
        return {file.name: file.read_bytes().decode() for file in self._results.iterdir()}

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

        """
        home = self.home(step)
        environment = {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)}
        for variable in [*self._template, *self._steps[step].get("env", [])]:
            value = VARIABLE.sub(lambda found: self._variables[f"{found[1]}.{found[2]}"], variable["value"])
            environment[variable["name"]] = re.sub("^/tekton/", f"{self.folder}/tekton/", value)
        script = self.folder / f"{step}.sh"
        script.write_text(self._steps[step]["script"])
        if user is not None:
            os.chown(home, user, user)
        ended = subprocess.run(
            ["sh", str(script)],
            cwd=folder,
            env=environment,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        return Ended(ended.returncode, ended.stdout.decode())


def load(path: Path) -> dict[str, Any]:
    """The one object in a file."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded
