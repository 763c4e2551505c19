"""The project as others install it: a copy of what git would give them, and an environment of its own."""

import shutil
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Final

from tests.support.function import ROOT
from tests.support.registry import missing

_WHEELS: Final = ROOT / ".venv" / "wheels"


def wheels() -> dict[str, str]:
    """The environment in which pip installs from the wheels that `make` has fetched, and asks nobody else."""
    if not _WHEELS.is_dir():
        missing("the wheels to install are not there: `make test` fetches them")
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(_WHEELS),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def checkout(folder: Path) -> Path:
    """Copies the files that git knows, or would add, into `folder`."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout.split(b"\0")
    for file in (Path(name.decode()) for name in files if name):
        if (ROOT / file).is_file():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes((ROOT / file).read_bytes())
    return folder


def make_environment(folder: Path, python: str = sys.executable) -> Path:
    """A virtual environment of a Python, with nothing in it; returns its own."""
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python"


def give_pip(python: Path) -> None:
    """Give an environment of this Python's version its pip: copied with its bytecode, as installing it takes long."""
    pip = distribution("pip")
    (library,) = python.parents[1].glob("lib/python3.*/site-packages")
    for folder in {file.parts[0] for file in pip.files or () if file.parts[0].startswith("pip")}:
        shutil.copytree(Path(str(pip.locate_file(folder))), library / folder)
    program = python.with_name("pip")
    program.write_text(f"#!{python}\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n")
    program.chmod(0o755)
