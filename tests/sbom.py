"""Lists the Python packages of the images, in CycloneDX: `make sbom`."""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any, Final

from tests.support.function import ROOT

TOOLS: Final = ROOT / ".venv" / "sbom" / "bin"
#: One of those that images are made for: packages have the same names and versions on each.
_PLATFORM: Final = "x86_64-manylinux_2_28"
#: What each image installs, and the extras that it is made of.
IMAGES: Final = {
    "fleet-function": ("requirements.lock", ()),
    "fleet-publisher": ("requirements-tools.lock", ("tools",)),
}


def python_version() -> str:
    """The Python of the images."""
    found = re.search(r"^ARG PYTHON=\S+/python:(\d+\.\d+\.\d+)", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    assert found
    return found[1]


def write(name: str, target: Path) -> None:
    """Writes the list of an image's packages: the same one whenever and wherever it is made from the same files."""
    lock, extras = IMAGES[name]
    with tempfile.TemporaryDirectory() as folder:
        packages, project, python = (Path(folder, path) for path in ("packages", "pyproject.toml", "python"))
        install = ["pip", "install", "--quiet", "--target", str(packages), "--python", sys.executable]
        place = ["--python-version", python_version(), "--python-platform", _PLATFORM]
        locked = ["--require-hashes", "--only-binary", ":all:", "--requirement", str(ROOT / lock)]
        index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
        environment = {**os.environ, "UV_DEFAULT_INDEX": index}
        subprocess.run([str(TOOLS / "uv"), *install, *place, *locked], env=environment, check=True)
        project.write_text(root_component(name, extras))
        # The tool asks a Python for its packages; it must not load them itself, for they are another Python's.
        python.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        listing = [str(TOOLS / "cyclonedx-py"), "environment", "-S", "--output-reproducible"]
        subprocess.run([*listing, "--pyproject", str(project), "--output-file", str(target), str(python)], check=True)


def root_component(name: str, extras: tuple[str, ...]) -> str:
    """What an image consists of, in the form that the tool reads: not all extras of the project are in it."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line]
    direct += [line for extra in extras for line in project["optional-dependencies"][extra]]
    fields = {"name": name, "version": project["version"], "license": project["license"], "dependencies": direct}
    return "\n".join(["[project]", *(f"{key} = {value!r}" for key, value in fields.items())])


if __name__ == "__main__":
    for image in IMAGES:
        path = ROOT / "build" / f"{image}.cdx.json"
        path.parent.mkdir(exist_ok=True)
        write(image, path)
        print(path.relative_to(ROOT))  # noqa: T201 - a command of the Makefile
